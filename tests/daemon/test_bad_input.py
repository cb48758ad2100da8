"""What nobody should send, over the API and the command line: refused by code and place, and nothing comes of it.

An error quotes to its caller what names something: keys, ids, paths, query parameters, up to 80 characters of
each. It never quotes values: of headers, in bodies, in documents. All requests here carry `CANARY` as such values.

Elsewhere: deliveries that cannot be read (`test_webhooks`), clients that are slow or send garbage
(`test_connections`), settings (`test_settings`, `test_faults`), every finding of lint (`test_lint`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.beside import asked_for_health
from support.cli import Command
from support.daemon import Answer, DaemonProcess, eventually, running

CANARY = "c4n4ry-that-nobody-else-writes"
MIB = 1024 * 1024
QUOTED = 80  # characters of a name that stand in a message
HELLO = """
id: hello
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: hook, type: trigger.webhook.inbound, params: {path: hello}}
"""
CARRIED = {
    "Cookie": f"session={CANARY}",
    "X_Api_Key": CANARY,
    "User_Agent": CANARY,
    "Referer": f"http://h/?{CANARY}",
}
RUN = "/api/workflows/hello/run"
ROLLBACK = "/api/workflows/hello/rollback"
RETRY = "/api/executions/nobody/retry"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("bad")) as started:
        started.load(HELLO)
        started.until(started.begin("hello"))
        yield started
        assert CANARY not in started.log.read_text()
        assert CANARY not in started.http("GET", "/metrics").text


def stored(daemon: DaemonProcess) -> dict[str, int]:
    """How much there is of everything, once nothing runs that would add to it.

    Of notes on what was refused before, which come when there is leisure, nothing is said.
    """
    eventually("nothing runs", lambda: not count(daemon, "executions WHERE finished_at IS NULL"))
    with daemon.file() as raw:
        tables = [
            name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        found = {name: raw.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    assert found["workflows"] >= 1
    del found["why"]
    return found | {"blobs": sum(1 for _ in (daemon.state / "blobs").rglob("*"))}


def count(daemon: DaemonProcess, what: str) -> int:
    with daemon.file() as raw:
        return int(raw.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def ask(daemon: DaemonProcess, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """The answer to a request that carries the canary, which must not be in it."""
    answer = daemon.http(method, path, body, **CARRIED, **headers)
    assert CANARY not in answer.text
    assert not any(CANARY in value for value in answer.headers.values())
    return answer


def said(answer: Answer) -> str:
    """All that a problem tells people."""
    problem = answer.json
    findings = [f"{one['message']} {one['hint']}" for one in problem.get("findings", [])]
    return " ".join([problem["detail"], problem.get("hint") or "", *findings])


def raw(daemon: DaemonProcess, sent: bytes) -> Answer:
    """The answer to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
        client.sendall(sent.replace(b"TOKEN", daemon.token.encode(), 1))
        got = b""
        while b"\r\n\r\n" not in got and (some := client.recv(65536)):
            got += some
        head, _, body = got.partition(b"\r\n\r\n")
        headers = dict(
            line.decode("latin-1").lower().split(": ", 1) for line in head.split(b"\r\n")[1:]
        )
        while len(body) < int(headers["content-length"]) and (some := client.recv(65536)):
            body += some
    return Answer(int(head.split()[1]), headers, body)


# -- documents


def a_document(rest: str = "", *, nodes: str = "", name: str = "bad") -> bytes:
    """One with a secret in it; `nodes` begin on line 5, `rest` follows them."""
    return f"""id: {name}
vars: {{password: {CANARY}}}
nodes:
  - {{id: start, type: trigger.time.manual}}
{nodes}
{rest}
""".encode()


CALL = f'  - {{id: call, type: action.http.request, params: {{url: "http://h/", headers: {{authorization: "Bearer {CANARY}"}}'

# name: what is sent, the code of the first finding, its line and column, words of message or hint
DOCUMENTS: dict[str, tuple[bytes, str, int, int, str]] = {
    "nothing": (b"", "document.not_map", 1, 1, "a map with id, nodes and edges"),
    "a list": (b"[]", "document.not_map", 1, 1, "a map with id, nodes and edges"),
    "malformed YAML": (a_document("edges: [{from: start"), "document.malformed", 7, 1, "not valid YAML"),
    "a tab": (b"id: x\n\tnodes: 1", "document.malformed", 2, 1, "not valid YAML"),
    "malformed JSON": (f'{{"vars": {{"p": "{CANARY}"}}, "id" 1}}'.encode(), "json.malformed", 1, 56, "not valid JSON"),
    "an alias": (b"id: x\nvars: &a {}\nb: *a", "document.alias", 2, 7, "write the value out"),
    "a merge key of aliases": (b"a: &a {}\nb: {<<: *a}", "document.alias", 1, 4, "write the value out"),
    "a tag": (b"id: !!python/object:os.system x", "document.tag", 1, 5, "python/object:os.system is refused"),
    "a very long tag": (b"!" * 20_000, "document.tag", 1, 1, "is refused"),
    "two documents": (b"id: x\n---\nid: y", "document.several", 2, 1, "more than one document"),
    "a key twice": (a_document("vars: {}"), "document.duplicate_key", 6, 1, "duplicate key 'vars'"),
    "a key twice in JSON": (b'{"id": "x",\n "id": "y"}', "document.duplicate_key", 2, 2, "duplicate key 'id'"),
    "an id twice": (a_document(nodes="  - {id: start, type: logic.merge}"), "node.duplicate_id", 5, 6, "'start'"),
    "a cycle": (
        a_document(
            "edges: [{from: start, to: a}, {from: a, to: b}, {from: b, to: a}]",
            nodes="  - {id: a, type: logic.merge}\n  - {id: b, type: logic.merge}",
        ), "edges.cycle", 7, 49, "a → b → a",
    ),
    "an unknown type": (a_document(nodes="  - {id: a, type: transform.data.sett}"), "node.unknown_type", 5, 13, "did you mean 'transform.data.set'?"),
    "an edge to nowhere": (a_document("edges: [{from: start, to: nowhere}]"), "edge.unknown_node", 6, 23, "'nowhere'"),
    "an edge from nowhere": (a_document("edges: [{from: strat, to: start}]"), "edge.unknown_node", 6, 10, "did you mean 'start'?"),
    "a reserved id": (a_document(nodes="  - {id: execution, type: logic.merge}"), "node.reserved_id", 5, 6, "'execution'"),
    "an id that is a path": (b"id: ../x\nnodes: []", "document.bad_id", 1, 1, "letters, digits"),
    "deep lists": (b"id: x\nvars: " + b"[" * 100 + b"]" * 100, "document.depth", 2, 70, "nested deeper than 64"),
    "deep lists without an end": (b"[" * 20_000, "document.depth", 1, 65, "nested deeper than 64"),
    "deep JSON": (b'{"id": "x", "vars": ' + b"[" * 600 + b"]" * 600 + b"}", "document.depth", 1, 84, "nested deeper than 64"),
    "no UTF-8": (b"id: x\nname: \xff\n", "document.encoding", 2, 7, "not valid UTF-8 at byte 12"),
    "UTF-16": ("id: x".encode("utf-16"), "document.encoding", 1, 1, "not valid UTF-8"),
    "a zero": (b"id: x\nname: \0", "document.malformed", 2, 7, "U+0000 is not allowed"),
    "half a character": (b'id: "\\ud800"', "document.text", 1, 5, "write the character itself"),
    "a number beyond a float": (b'{"id": "x", "vars": {"a": 1e400}}', "json.number", 1, 27, "1e400 is beyond a float"),
    "infinity": (b"id: x\nvars: {a: .inf}", "json.constant", 2, 11, "JSON has no .inf"),
    "a number as id": (b"id: 12345678901234567890\nnodes: []", "document.bad_value", 1, 1, "id must be text"),
    "a secret of the wrong kind": (a_document(nodes=f"{CALL}, timeoutMs: {CANARY}}}}}"), "params.invalid", 5, 137, "timeoutMs must be a number"),
    "a secret in an expression": (a_document(nodes=f"""{CALL}, body: "{{{{ '{CANARY}' | uper }}}}"}}}}"""), "expression.invalid", 5, 182, "did you mean"),
    "a secret in what is no expression": (a_document(nodes=f"""{CALL}, body: "{{{{ '{CANARY}' + }}}}"}}}}"""), "expression.invalid", 5, 181, "unexpected"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_bad_document_is_refused_with_its_place_and_not_stored(
    daemon: DaemonProcess, name: str
) -> None:
    text, code, line, column, words = DOCUMENTS[name]
    before = stored(daemon)

    refused = ask(daemon, "POST", "/api/workflows?activate=true&name=a.yaml", text)
    linted = ask(daemon, "POST", "/api/workflows/lint", text)

    first = refused.json["findings"][0]
    assert (refused.status, refused.code) == (422, "document.invalid")
    assert (first["code"], first["line"], first["column"]) == (code, line, column)
    assert refused.json["detail"].startswith(f"a.yaml:{line}:{column}: ")
    assert words in said(refused)
    assert len(first["message"]) < 300
    assert linted.json == {"ok": False, "findings": refused.json["findings"]}
    assert stored(daemon) == before


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_tell_the_same_of_a_bad_document(
    daemon: DaemonProcess, stackd: Command, tmp_path: Path, name: str
) -> None:
    text, _, line, column, words = DOCUMENTS[name]
    file = tmp_path / "a.yaml"
    file.write_bytes(text)

    imported = stackd("workflows", "import", str(file))
    linted = stackd("workflows", "lint", str(file))

    assert (imported.code, linted.code) == (2, 1)
    assert imported.err.startswith(f"error: {file}:{line}:{column}: ")
    assert words.replace("'", "") in imported.err.replace("'", "")
    assert f"{file}:{line}:{column}: " in linted.out + linted.err
    for one in (imported, linted):
        assert CANARY not in one.out + one.err


def test_a_huge_document_is_refused_before_it_is_read(
    daemon: DaemonProcess, stackd: Command, tmp_path: Path
) -> None:
    before = stored(daemon)
    document = a_document(f"# {'x' * 256 * 1024}")
    body = a_document(f"# {'x' * 10 * MIB}")
    (tmp_path / "a.yaml").write_bytes(document)

    refused = ask(daemon, "POST", "/api/workflows", document)
    over = ask(daemon, "POST", "/api/workflows", body)
    imported = stackd("workflows", "import", str(tmp_path / "a.yaml"))

    assert (refused.status, refused.code) == (413, "document.too_large")
    assert "262,144" in refused.json["detail"]
    assert (over.status, over.code) == (413, "body.too_large")
    assert imported.code == 2
    assert "262,144" in imported.err
    assert stored(daemon) == before


def test_integers_of_twenty_digits_in_a_document_stay_exact(daemon: DaemonProcess) -> None:
    number = 12345678901234567890123
    daemon.load(
        f"id: exact\nvars: {{n: {number}}}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n"
        '  - {id: a, type: transform.data.set, params: {values: {n: "{{ vars.n + 1 }}"}}}\n'
        "edges: [{from: start, to: a}]"
    )

    shown = daemon.http("GET", "/api/workflows/exact")
    ran = daemon.http("POST", "/api/workflows/exact/run?wait=20", {})

    assert shown.json["document"]["vars"] == {"n": number}
    assert ran.json["output"] == {"n": number + 1}


def test_a_webhook_path_that_another_has_is_refused_and_names_its_owner(
    daemon: DaemonProcess,
) -> None:
    before = stored(daemon)

    refused = ask(
        daemon, "POST", "/api/workflows", HELLO.replace("id: hello", "id: thief").encode()
    )

    assert (refused.status, refused.code) == (409, "webhook.path_taken")
    assert "'hello' belongs to workflow 'hello' (node 'hook')" in refused.json["detail"]
    assert refused.json["hint"] == "choose another params.path"
    assert stored(daemon) == before


# -- bodies


SECRET = f'"password": "{CANARY}"'
BODIES: dict[str, tuple[str | bytes, int, str, str]] = {
    "malformed": (f'{{"input": {{{SECRET}}}', 422, "json.malformed", "line 1, column 57"),
    "a word": (f'{{"input": {CANARY}}}', 422, "json.malformed", "line 1, column 11"),
    "a text": (f'"{CANARY}"', 422, "json.not_object", "must be a JSON object"),
    "a list": (f'["{CANARY}"]', 422, "json.not_object", "must be a JSON object"),
    "two": (f'{{"input": {{{SECRET}}}}} {{}}', 422, "json.malformed", "line 1, column 59"),
    "an unknown member": (f'{{"inptu": "{CANARY}"}}', 422, "input.unknown_key", "did you mean 'input'?"),
    "a member of great length": (f'{{"{"x" * 5000}": "{CANARY}"}}', 422, "input.unknown_key", "known here: input"),
    "a key twice": (f'{{"input": {{"a": "{CANARY}",\n"a": 1}}}}', 422, "json.duplicate_key", "'a' (line 2, column 1)"),
    "a key twice, written differently": ('{"input": {"a": 1, "\\u0061": 2}}', 422, "json.duplicate_key", "'a' (line 1, column 20)"),
    "NaN": ('{"input": [1,\n  NaN]}', 422, "json.constant", "no NaN (line 2, column 3)"),
    "minus infinity": ('{"input": -Infinity}', 422, "json.constant", "(line 1, column 11)"),
    "a number beyond a float": ('{"é": 1, "input": 1e400}', 422, "json.number", "1e400 is too large to hold (line 1, column 19)"),
    "a number of 5000 digits": (f'{{"input": [-{"9" * 5000}]}}', 422, "json.number", "(line 1, column 12)"),
    "half a character": (f'{{"input": ["{CANARY}", "\\udc00"]}}', 422, "json.text", "(line 1, column 46)"),
    "half a character in a key": ('{"input": {"\\ud83d": 1}}', 422, "json.text", "(line 1, column 12)"),
    "a zero": ('{"input": "\0"}', 422, "json.malformed", "line 1, column 12"),
    "deep lists": (f'{{"input": {"[" * 600}{"]" * 600}}}', 422, "json.depth", "deeper than 500 levels (line 1, column 510)"),
    "no UTF-8": (b'{"input": "\xff"}', 422, "json.encoding", "at byte 11"),
    "UTF-16": ('{"input": 1}'.encode("utf-16"), 422, "json.encoding", "at byte 0"),
    "a byte order mark": (b'\xef\xbb\xbf{"input": 1}', 422, "json.malformed", "line 1, column 1"),
    "too large": (f'{{"input": "{CANARY}{"x" * 10 * MIB}"}}', 413, "body.too_large", "10485760 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_with_its_place_and_starts_nothing(
    daemon: DaemonProcess, name: str
) -> None:
    body, status, code, words = BODIES[name]
    text = body if isinstance(body, bytes) else body.encode()
    before = stored(daemon)

    answers = [
        ask(daemon, "POST", path, text, Content_Type="application/json")
        for path in (RUN, "/api/executions", "/api/tokens", ROLLBACK, RETRY)
    ]

    if code == "input.unknown_key":  # each knows others
        answers = answers[:1]
    for answer in answers:
        assert (answer.status, answer.code) == (status, code)
        assert words in said(answer)
        assert len(said(answer)) < 300
    assert stored(daemon) == before


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/api/executions", {"input": CANARY}, 422, "input.workflow_id", "workflowId is missing"),
        ("/api/executions", {"workflowId": [CANARY]}, 422, "input.workflow_id", "must be text"),
        ("/api/executions", {"workflowId": "nobody", "input": CANARY}, 404, "workflow.not_found", "'nobody'"),
        ("/api/executions", {"workflowId": "\0"}, 404, "workflow.not_found", r"'\x00'"),
        ("/api/executions", {"workflowId": "x" * 50_000}, 404, "workflow.not_found", "xxx…'"),
        ("/api/workflows/hello/rollback", {"version": 0}, 404, "workflow.no_version", "stackd workflows versions hello"),
        ("/api/workflows/hello/rollback", {"version": 10**20}, 422, "input.version", "number of a version"),
        ("/api/workflows/hello/rollback", {"version": "1"}, 422, "input.version", "number of a version"),
        ("/api/workflows/hello/rollback", {"version": True}, 422, "input.version", "number of a version"),
        ("/api/workflows/hello/rollback", {"version": 1.0}, 422, "input.version", "number of a version"),
        ("/api/workflows/hello/rollback", {}, 409, "workflow.no_earlier_version", "stackd workflows versions hello"),
        ("/api/tokens", {"name": [CANARY], "scopes": ["read"]}, 422, "token.name", "must be text"),
        ("/api/tokens", {"name": "a\0", "scopes": ["read"]}, 422, "token.name", "1 to 100 characters"),
        ("/api/tokens", {"name": "a", "scopes": CANARY}, 422, "token.scope", "must be a list"),
        ("/api/tokens", {"name": "a", "scopes": ["raed"]}, 422, "token.scope", "did you mean 'read'?"),
        ("/api/tokens", {"name": "a", "scopes": ["read"], "expiresAt": CANARY}, 422, "token.expiry", "RFC 3339"),
        ("/api/tokens", {"name": "a", "scopes": ["read"], "expiresAt": 1e300}, 422, "token.expiry", "RFC 3339"),
        ("/api/executions/nobody/resolve", {"decision": CANARY}, 422, "input.decision", "retry, skip, fail"),
        ("/api/executions/nobody/retry", {"from": [CANARY]}, 422, "input.from", "must be the id of a node"),
        ("/api/executions/nobody/retry", {"form": CANARY}, 422, "input.unknown_key", "did you mean 'from'?"),
        ("/api/executions/nobody/resolve", {"decision": "skip"}, 404, "execution.not_found", "'nobody'"),
        ("/api/workflows/nobody/lint", {"a": CANARY}, 404, "workflow.not_found", "'nobody'"),
        ("/api/workflows/nobody/versions", {}, 405, "method.not_allowed", "use GET"),
    ],
)  # fmt: skip
def test_a_body_that_asks_for_what_cannot_be_is_refused(
    daemon: DaemonProcess, path: str, body: Any, status: int, code: str, words: str
) -> None:
    before = stored(daemon)

    refused = ask(daemon, "POST", path, body)

    assert (refused.status, refused.code) == (status, code)
    assert words in said(refused)
    assert len(said(refused)) < 300
    assert stored(daemon) == before


@pytest.mark.parametrize(
    ("path", "content_type", "hint"),
    [
        (path, kind, hint)
        for path, hint in ((RUN, "application/json"), ("/api/tokens", "application/json"), ("/api/workflows", "application/yaml"), ("/api/workflows/lint", "application/yaml"))
        for kind in ("image/png", "multipart/form-data; boundary=x", "text/html")
    ],
)  # fmt: skip
def test_a_body_that_says_it_is_something_else_is_refused(
    daemon: DaemonProcess, path: str, content_type: str, hint: str
) -> None:
    before = stored(daemon)

    refused = ask(daemon, "POST", path, b"{}", Content_Type=content_type)

    assert (refused.status, refused.code) == (415, "body.type_unknown")
    assert repr(content_type.split(";")[0]) in said(refused)
    assert refused.json["hint"] == f"send Content-Type: {hint}"
    assert stored(daemon) == before


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/vnd.x+json", "application/x-www-form-urlencoded", "text/plain", "odd"],
)  # fmt: skip
def test_a_body_that_does_not_say_what_it_is_is_read_as_what_is_taken(
    daemon: DaemonProcess, content_type: str
) -> None:
    answer = ask(daemon, "POST", f"{RUN}?wait=20", b'{"input": 7}', Content_Type=content_type)

    assert (answer.status, answer.json["input"]) == (200, 7)


@pytest.mark.parametrize(
    "text",
    ["12345678901234567890", "-98765432109876543210987654321", "1e-400", r'"\u0000"', r'{"\u0000": 1}', "[0.1, 1E2, -0.0]"],
)  # fmt: skip
def test_an_odd_input_that_json_allows_is_kept_exactly(daemon: DaemonProcess, text: str) -> None:
    answer = ask(daemon, "POST", f"{RUN}?wait=20", f'{{"input": {text}}}'.encode())

    assert answer.status == 200
    assert f'"input":{text},' in answer.text


# -- idempotency keys


@pytest.mark.parametrize(
    ("key", "status"),
    [(b"k" * 255, 202), (b"k" * 256, 422), ("é".encode() * 256, 422), (b"\xff\xfe", 202), (b"a\tb", 202), (b"\x01", 400), (b"a\x7f", 400)],
)  # fmt: skip
def test_a_key_is_any_text_a_header_can_hold_up_to_255_characters(
    daemon: DaemonProcess, key: bytes, status: int
) -> None:
    sent = b"POST %b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\nIdempotency-Key: %b\r\nContent-Length: 2\r\n\r\n{}"
    before = stored(daemon)

    first, again = (raw(daemon, sent % (RUN.encode(), key)) for _ in range(2))

    assert first.status == again.status == status
    if status == 202:
        assert first.json["executionId"] == again.json["executionId"]
    else:
        assert first.code in ("dedupe.key_too_long", "request.malformed")
        assert stored(daemon) == before


def test_a_key_that_comes_with_another_input_or_a_bad_one_starts_nothing(
    daemon: DaemonProcess,
) -> None:
    first = ask(daemon, "POST", RUN, {"input": 1}, Idempotency_Key="same")
    before = stored(daemon)
    again = ask(daemon, "POST", RUN, {"input": 1}, Idempotency_Key="same")
    other = ask(daemon, "POST", RUN, {"input": CANARY}, Idempotency_Key="same")
    bad = ask(daemon, "POST", RUN, b"{", Idempotency_Key="same")

    assert again.json == first.json
    assert (other.status, other.code) == (422, "idempotency.mismatch")
    assert bad.code == "json.malformed"
    assert stored(daemon) == before
    assert daemon.execution(first.json["executionId"])["input"] == 1


# -- queries

LISTS = ("/api/executions", "/api/workflows", "/api/tokens", "/api/workflows/hello/versions", "/api/executions/{id}/nodes")  # fmt: skip
NO_LIMITS = ("0", "501", "-1", "+5", "5 ", "1e2", "", "ten", "\0", "\u0661", "9" * 5000, "1_0")


@pytest.fixture
def an_execution(daemon: DaemonProcess) -> str:
    return str(daemon.api.get("/api/executions", limit=1)["items"][0]["id"])


@pytest.mark.parametrize("path", LISTS)
def test_a_limit_that_is_none_is_refused(
    daemon: DaemonProcess, an_execution: str, path: str
) -> None:
    for limit in NO_LIMITS:
        refused = ask(daemon, "GET", f"{path.format(id=an_execution)}?limit={quote(limit)}")

        assert (refused.status, refused.code) == (422, "query.limit"), limit
        assert "is not a number from 1 to 500" in said(refused)
        assert len(said(refused)) < QUOTED + 100


@pytest.mark.parametrize(
    ("path", "code", "hint"),
    [
        ("/api/executions?statsu=failed", "query.unknown", "did you mean 'status'?"),
        ("/api/workflows/hello?x=1", "query.unknown", "this route takes none"),
        (f"/api/config?{'x' * 5000}=1", "query.unknown", "this route takes none"),
        ("/api/executions?limit=1&limit=2", "query.repeated", "give it once"),
        ("/api/executions?status=done", "query.status", ""),
        (f"/api/executions?status={'x' * 5000}", "query.status", ""),
        ("/api/executions?status=%ED%A0%80", "query.status", ""),
        ("/api/executions?cursor=-1", "query.cursor", "nextCursor"),
        ("/api/executions?cursor=%D9%A1", "query.cursor", "nextCursor"),
        (f"/api/executions?cursor={'9' * 5000}", "query.cursor", "nextCursor"),
        ("/api/workflows/hello/versions?cursor=%00", "query.cursor", ""),
        ("/api/workflows/hello/versions/-1", "query.version", ""),
        ("/api/workflows/hello/versions/99999999999999999999999", "query.version", ""),
        ("/api/events?types=NodeFinishd", "query.types", "did you mean NodeFinished?"),
        ("/api/events?types=%00", "query.types", "known: "),
        ("/api/events?type=NodeFinished", "query.unknown", "did you mean 'types'?"),
    ],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_a_bad_query_is_refused(daemon: DaemonProcess, path: str, code: str, hint: str) -> None:
    refused = ask(daemon, "GET", path)

    assert (refused.status, refused.code) == (422, code)
    assert hint in (refused.json.get("hint") or "")
    assert len(refused.json["detail"]) < QUOTED + 120


@pytest.mark.parametrize("seconds", ["", "soon", "-1", "-0", "+1", "nan", "inf", "1e400", "1_0", "0x10", "\u0661", "9" * 5000])  # fmt: skip
@pytest.mark.parametrize("path", [RUN, "/api/executions"])
def test_a_wait_that_is_no_time_is_refused_and_starts_nothing(
    daemon: DaemonProcess, path: str, seconds: str
) -> None:
    before = stored(daemon)

    refused = ask(daemon, "POST", f"{path}?wait={quote(seconds)}", {"workflowId": "hello"})

    assert (refused.status, refused.code) == (422, "query.wait")
    assert stored(daemon) == before


@pytest.mark.parametrize("seconds", ["99999999999999999999", "1e99", "20.5"])
def test_a_longer_wait_than_there_is_is_the_longest(daemon: DaemonProcess, seconds: str) -> None:
    assert ask(daemon, "POST", f"{RUN}?wait={seconds}", {}).status == 200


@pytest.mark.parametrize("activate", ["maybe", "2", "%00"])
def test_an_activate_that_is_neither_true_nor_false_imports_nothing(
    daemon: DaemonProcess, activate: str
) -> None:
    before = stored(daemon)

    refused = ask(daemon, "POST", f"/api/workflows?activate={activate}", a_document())

    assert (refused.status, refused.code) == (422, "query.activate")
    assert stored(daemon) == before


@pytest.mark.parametrize("path", ["/api/workflows", "/api/tokens", "/api/executions/{id}/nodes"])
@pytest.mark.parametrize("cursor", ["%00", "%ED%A0%80", "%FF", "x" * 5000, "%27%3B--"])
def test_any_text_may_be_where_a_list_by_name_goes_on(
    daemon: DaemonProcess, an_execution: str, path: str, cursor: str
) -> None:
    assert ask(daemon, "GET", f"{path.format(id=an_execution)}?cursor={cursor}").status == 200


# -- paths and methods


@pytest.mark.parametrize("name", ["%00", "%FF", "%ED%A0%80", "%", "%zz", "a%2Fb", "..%2f..%2fetc", "%C0%AE%C0%AE", "x" * 5000])  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/executions/{}", "execution.not_found"),
        ("GET", "/api/executions/{}/nodes", "execution.not_found"),
        ("POST", "/api/executions/{}/cancel", "execution.not_found"),
        ("GET", "/api/workflows/{}", "workflow.not_found"),
        ("GET", "/api/workflows/{}/versions", "workflow.not_found"),
        ("POST", "/api/workflows/{}/run", "workflow.not_found"),
        ("POST", "/api/workflows/{}/rollback", "workflow.not_found"),
        ("POST", "/api/workflows/{}/activate", "workflow.not_found"),
        ("POST", "/api/executions/{}/retry", "execution.not_found"),
        ("GET", "/api/blobs/{}", "blob.not_found"),
        ("DELETE", "/api/tokens/{}", "token.not_found"),
        ("POST", "/api/webhooks/{}", "webhook.not_found"),
        ("GET", "/api/nothing/{}", "path.not_found"),
        ("GET", "/{}", "path.not_found"),
    ],
)
def test_an_odd_name_names_nothing(
    daemon: DaemonProcess, method: str, path: str, code: str, name: str
) -> None:
    answer = ask(daemon, method, path.format(name), {} if method == "POST" else None)

    assert (answer.status, answer.code) == (404, code)
    assert len(answer.json["detail"]) < QUOTED + 50


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/livez", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/api/workflows", "GET, HEAD, POST"),
        ("/api/workflows/hello", "DELETE, GET, HEAD"),
        ("/api/workflows/hello/run", "POST"),
        ("/api/executions", "GET, HEAD, POST"),
        ("/api/events", "GET, HEAD"),
        ("/api/webhooks/hello", "POST"),
        ("/api/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_have_is_told_those_that_it_has(
    daemon: DaemonProcess, path: str, methods: str
) -> None:
    for method in {"OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "HEAD", "GET"} - set(
        methods.split(", ")
    ):
        answer = ask(daemon, method, path)

        assert (answer.status, answer.headers["allow"].replace(",", ", ")) == (405, methods)
        if method != "HEAD":
            assert answer.code == "method.not_allowed"
            assert answer.json["hint"] == f"use {methods}"


@pytest.mark.parametrize("path", ["/livez", "/api/workflows", "/api/executions", "/api/events", "/api/openapi.json", "/metrics"])  # fmt: skip
def test_head_is_get_without_its_body_and_ends(daemon: DaemonProcess, path: str) -> None:
    answer = ask(daemon, "HEAD", path)

    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers.get("content-length", 1)) > 0


HEAD = b"Host: h\r\nAuthorization: Bearer TOKEN\r\nX-Api-Key: %b\r\n" % CANARY.encode()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HEAD + b"X-A: b\r\n" * 200 + b"\r\n", id="200 headers"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HEAD + b"X-A: b\r\n" * 100_000 + b"\r\n", id="100,000 headers"),
        pytest.param(b"GET /livez?" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", id="long query"),
        pytest.param(b"BREW /livez HTTP/1.1\r\n" + HEAD + b"\r\n", id="method"),
        pytest.param(b"get /livez HTTP/1.1\r\n" + HEAD + b"\r\n", id="small method"),
        pytest.param(b"GET * HTTP/1.1\r\n" + HEAD + b"\r\n", id="star"),
        pytest.param(b"GET /\xff\xfe HTTP/1.1\r\n" + HEAD + b"\r\n", id="bytes in the target"),
        pytest.param(b"GET /livez HTTP/9.9\r\n" + HEAD + b"\r\n", id="version"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HEAD + b"Expect: \xff\r\nContent-Length: 2\r\n\r\n{}", id="an expectation that is no text"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="two lengths"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", id="a length of 30 digits"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HEAD + b"Content-Length: 0x2\r\n\r\n{}", id="a length that is none"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HEAD + b"Host: other\r\n\r\n", id="two hosts"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HEAD + b"X-A: b\r\n c\r\n\r\n", id="a folded header"),
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_a_problem_without_what_it_held(
    daemon: DaemonProcess, sent: bytes
) -> None:
    try:
        answer = raw(daemon, sent)
    except ConnectionError:  # told and closed while the rest was on its way
        assert len(sent) > 100_000
        return

    assert (answer.status, answer.code) == (400, "request.malformed")
    assert CANARY not in answer.text


@pytest.mark.parametrize("host", [b"", b"\xff\xfe", b'a"b<c>/..@', b"a b", b"h:99999999", b"x" * 5000, b"localhost"])  # fmt: skip
def test_a_host_that_is_none_stands_in_no_address(daemon: DaemonProcess, host: bytes) -> None:
    sent = b"GET /api/workflows/hello HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\nHost: %b\r\n\r\n"

    answer = raw(daemon, sent % host)

    (webhook,) = answer.json["webhooks"]
    assert webhook["url"] == f"{daemon.url}/api/webhooks/hello"


def test_a_body_in_another_transfer_coding_is_refused(daemon: DaemonProcess) -> None:
    sent = b"POST %b HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    before = stored(daemon)

    answers = [raw(daemon, sent % path) for path in (RUN.encode(), b"/api/webhooks/hello")]

    assert [(one.status, one.code) for one in answers] == [(415, "body.encoding_unknown")] * 2
    assert stored(daemon) == before


def test_what_is_quoted_to_the_caller_stands_in_no_log(daemon: DaemonProcess) -> None:
    """The end of this module looks through the log and the metrics."""
    answers = [
        daemon.http("GET", f"/api/executions/{CANARY}?{CANARY}={CANARY}"),
        daemon.http("GET", f"/api/executions?status={CANARY}"),
        daemon.http("GET", f"/api/events?types={CANARY}"),
        daemon.http("POST", f"/api/workflows/{CANARY}/run", {CANARY: CANARY}),
        daemon.http("POST", "/api/workflows", f"id: {CANARY}\n{CANARY}: 1\n".encode()),
        daemon.deliver(CANARY, {}),
        daemon.http("GET", f"/{CANARY}"),
        daemon.http("GET", "/api/queue", Authorization=f"Bearer {CANARY}"),
        daemon.http("GET", "/api/queue", Authorization=f"Basic {CANARY}"),
    ]

    assert {answer.status for answer in answers} <= {401, 404, 422}
    assert not any(CANARY in answer.text for answer in answers[-2:])


# -- the command line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["workflows", "run", "nobody", "--input", f'{{"password": "{CANARY}"}}'], "no workflow 'nobody'"),
        (["workflows", "run", "hello", "--input", f'{{"password": "{CANARY}'], "--input: not valid JSON at line 1, column 14"),
        (["workflows", "run", "hello", "--input", f'{{"p": "{CANARY}", "p": 1}}'], "(line 1, column 41)"),
        (["workflows", "run", "hello", "--input", "[" * 600 + "]" * 600], "deeper than 500"),
        (["workflows", "show", "x" * 5000], "no workflow 'xxx"),
        (["workflows", "rollback", "hello", "--to", "99999999999999999999999"], ""),
        (["executions", "show", "nobody"], "no execution 'nobody'"),
        (["executions", "cancel", "nobody"], "no execution 'nobody'"),
        (["executions", "resolve", "nobody", "--skip"], "no execution 'nobody'"),
        (["executions", "list", "--limit", "0"], ""),
        (["token", "create", "a", "--scope", "raed"], "read"),
        (["token", "revoke", "nobody"], "no token 'nobody'"),
        (["wrokflows", "list"], ""),
    ],
    ids=lambda words: " ".join(words)[:40] if isinstance(words, list) else "",
)  # fmt: skip
def test_a_command_that_is_given_what_cannot_be_exits_2_and_echoes_no_value(
    daemon: DaemonProcess, stackd: Command, words: list[str], told: str
) -> None:
    before = stored(daemon)

    ran = stackd(*words)

    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err
    assert CANARY not in ran.err
    assert len(ran.err) < 1000
    assert stored(daemon) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("STACKD_TOKEN_SECRET", CANARY), ("PORT", CANARY), ("ENCRYPTION_MASTER_KEY", CANARY), ("STACKD_DATABASE_URL", f"mysql://u:{CANARY}@h/d")],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named_and_a_secret_in_it_is_not_told(
    command: Command, tmp_path: Path, name: str, value: str
) -> None:
    ran = command(
        "config", "check", "--mode", "start", STACKD_STATE_DIR=str(tmp_path), **{name: value}
    )

    assert ran.code != 0
    assert name in ran.out + ran.err
    if name != "PORT":  # a number is no secret: a bad one is quoted
        assert CANARY not in ran.out + ran.err


# -- values at run time


def workflow(name: str, *nodes: dict[str, Any]) -> str:
    """Its nodes, one after another."""
    all_nodes = [{"id": "start", "type": "trigger.time.manual"}, *nodes]
    names = [node["id"] for node in all_nodes]
    edges = [{"from": a, "to": b} for a, b in pairwise(names)]
    return json.dumps({"id": name, "nodes": all_nodes, "edges": edges})


def loop(*inside: dict[str, Any], name: str = "n", **params: Any) -> dict[str, Any]:
    nodes = list(inside) or [a_set("{{ item }}", "inside")]
    given = {"items": "{{ start.items }}"} | params
    return {"id": name, "type": "logic.foreach", "params": given, "nodes": nodes, "edges": []}


def a_set(value: Any, name: str = "n") -> dict[str, Any]:
    return {"id": name, "type": "transform.data.set", "params": {"values": {"v": value}}}


def of_type(kind: str, **params: Any) -> dict[str, Any]:
    return {"id": "n", "type": kind, "params": params}


def a_call(**params: Any) -> dict[str, Any]:
    return of_type("action.workflow.run", **params)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LIST = "{{ start.items }}"
NO_WHOLE = "n.params.concurrency must be a whole number from 1 to 100"
NO_LIST = "n.params.items must be a list"
# name: node, input, code, words of the message
VALUES: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    **{f"items {v!r}": (loop(), {"items": v}, "params.invalid", NO_LIST) for v in (None, CANARY, 5, {"a": 1}, True)},
    "items of a list node": (of_type("transform.list.sort", items=LIST), {"items": CANARY}, "params.invalid", NO_LIST),
    **{
        f"concurrency {v!r}": (loop(concurrency="{{ start.c }}"), {"items": [1], "c": v}, "params.invalid", NO_WHOLE)
        for v in (0, -1, "x", 1e9, 10**9, 2.5, True, None, [1])
    },
    **{
        f"workflowId {v!r}": (a_call(workflowId="{{ start.w }}"), {"w": v}, "params.invalid", "n.params.workflowId must be text")
        for v in (7, None, [], True)
    },
    "workflowId of nobody": (a_call(workflowId="{{ start.w }}"), {"w": "nobody"}, "workflow.not_found", "no workflow 'nobody'"),
    "workflowId of 100,000 letters": (a_call(workflowId="{{ start.w }}"), {"w": "x" * 100_000}, "workflow.not_found", "xxx…'"),
    "workflowId with a zero": (a_call(workflowId="{{ start.w }}"), {"w": "\0"}, "workflow.not_found", r"'\x00'"),
    "input of a call over 1 MiB": (a_call(workflowId="hello", input="{{ start.t }}"), {"t": ["x" * MIB] * 2}, "expression.limit", "n.params.input: the result is over 1,048,576 bytes"),
    "collect that fails": (loop(collect="{{ item // 0 }}"), {"items": [1, 2]}, "expression.invalid", 'item 0: n.params.collect: "//": division by zero'),
    "collect of too much": (loop(collect="{{ start.t }}"), {"items": [1] * 300, "t": "x" * 5000}, "node.too_large", "set collect to what is needed of each item, or to false"),
    "items over the limit": (loop(items="{{ [start.t, start.t] }}"), {"t": "x" * 600_000}, "expression.limit", "n.params.items: the result is over 1,048,576 bytes"),
    "a regex that is none": (a_set("{{ start.t | match(start.p) }}"), {"t": CANARY, "p": "("}, "expression.invalid", "pattern cannot be read"),
    "a regex that repeats repeats": (a_set("{{ start.t | match(start.p) }}"), {"t": "a", "p": "((a{1,100}){1,100}){1,100}"}, "expression.invalid", "pattern cannot be read"),
    "a regex over much text": (a_set("{{ start.t | match('(a+)+$') }}"), {"t": "a" * 500_000 + "b"}, "expression.limit", "too much work"),
    "a value that gets too deep": (a_set({"a": {"b": {"c": "{{ start.d }}"}}}), {"d": nested(498)}, "node.bad_output", "nested deeper than 500 levels"),
    "text that is deep JSON": (of_type("transform.json.extract", value="{{ start.t }}", path="a"), {"t": "[" * 400_000}, "extract.invalid_json", "nested deeper than 500"),
    "text with half a character": (a_set("{{ start.t | fromjson }}"), {"t": r'"\ud800"'}, "expression.invalid", "half a character"),
    "a number without end": (a_set("{{ start.x * start.x * start.x }}"), {"x": 10**4000}, "expression.limit", "too large a number"),
    "a delay that is no number": (of_type("action.time.delay", delayMs="{{ start.d }}"), {"d": CANARY}, "params.invalid", "n.params.delayMs must be a number"),
    "a delay of 1e300": (of_type("action.time.delay", delayMs="{{ start.d }}"), {"d": 1e300}, "params.invalid", "n.params.delayMs must be a number"),
    "an instant that is none": (of_type("action.time.delay", until="{{ start.d }}"), {"d": "9999-99-99"}, "params.invalid", "n.params.until"),
    "a count of 30 digits": (of_type("transform.list.limit", items=[1], count="{{ start.c }}"), {"c": 10**29}, "params.invalid", "n.params.count must be a whole number"),
    "a mode that is none": (of_type("logic.merge", mode="{{ start.m }}"), {"m": CANARY}, "params.invalid", "n.params.mode must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_a_node_cannot_use_fails_it_by_code_and_names_the_parameter(
    daemon: DaemonProcess, name: str
) -> None:
    node, given, code, words = VALUES[name]
    daemon.load(workflow("values", node))

    ended = ask_to_run(daemon, "values", given)

    assert ended["status"] == "failed"
    assert (ended["error"]["code"], ended["error"]["nodeId"]) == (code, "n")
    assert words in ended["error"]["message"]
    assert len(ended["error"]["message"]) < 200
    assert CANARY not in ended["error"]["message"]
    assert daemon.http("GET", "/readyz").status == 200


def ask_to_run(daemon: DaemonProcess, workflow_id: str, given: Any) -> Any:
    """The execution at its end, without what it was given and gave: that may be large."""
    started = daemon.http("POST", f"/api/workflows/{workflow_id}/run", {"input": given})
    return at_its_end(daemon, started.json["executionId"])


def at_its_end(daemon: DaemonProcess, execution_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        with daemon.file() as raw:
            query = "SELECT status, error, output FROM executions WHERE id = ?"
            status, error, output = raw.execute(query, (execution_id,)).fetchone()
        if status not in ("completed", "failed"):
            return None
        return {"status": status, "error": error and json.loads(error), "output": output}

    return dict(eventually("it has ended", look, within=50))


# -- much at once

MANY = 500_000  # items
STEPS = "too much work: over 100,000 steps"


@pytest.mark.parametrize(
    ("node", "words"),
    [
        pytest.param(of_type("transform.list.map", items=LIST, to="{{ item }}"), STEPS, id="map"),
        pytest.param(of_type("transform.list.filter", items=LIST, where="item > 0"), STEPS, id="filter"),
        pytest.param(of_type("transform.list.sort", items=LIST, order="desc"), STEPS, id="sort"),
        pytest.param(of_type("transform.list.group", items=LIST, by="item"), STEPS, id="group"),
        pytest.param(of_type("transform.json.extract", value="{{ start }}", path="items[*]"), STEPS, id="extract"),
        pytest.param(a_set("{{ start.items | sort | unique | join(',') }}"), STEPS, id="filters"),
        pytest.param(loop(), STEPS, id="loop"),
    ],
)  # fmt: skip
def test_half_a_million_items_fail_the_node_and_hold_nobody_up(
    daemon: DaemonProcess, node: dict[str, Any], words: str
) -> None:
    daemon.load(workflow("many", node))
    before = daemon.memory()

    with asked_for_health(daemon) as longest:
        ended = ask_to_run(daemon, "many", {"items": list(range(MANY))})

    assert ended["error"] == {
        "code": "expression.limit",
        "message": ended["error"]["message"],
        "nodeId": "n",
    }
    assert words in ended["error"]["message"]
    assert longest() < 1.0  # on a busy machine; on a quiet one 0.05
    assert daemon.memory() - before < 100 * MIB


def test_loops_in_loops_end_at_the_first_output_that_gets_too_large(daemon: DaemonProcess) -> None:
    """A hundred times a hundred times a hundred: the one in the middle says so before it is through once."""
    inner = loop(a_set("{{ item }}", "inside"), name="inner")
    daemon.load(workflow("cubed", loop(loop(inner, name="middle"))))

    with asked_for_health(daemon) as longest:
        ended = ask_to_run(daemon, "cubed", {"items": ["x" * 100] * 100})

    assert (ended["error"]["code"], ended["error"]["nodeId"]) == ("node.too_large", "n")
    assert ended["error"]["message"].startswith("item 0: middle: item 9")
    assert "set collect to what is needed of each item, or to false" in ended["error"]["message"]
    assert longest() < 1.0


def test_loops_deeper_in_each_other_are_refused_at_import(daemon: DaemonProcess) -> None:
    inside = a_set(1, "inside")
    for depth in range(5):
        inside = loop(inside, name=f"l{depth}")

    refused = daemon.http("POST", "/api/workflows", workflow("deep", inside).encode())

    assert (refused.status, refused.code) == (422, "document.invalid")
    assert refused.json["findings"][0]["code"] == "loop.too_deep"
