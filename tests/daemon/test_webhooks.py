"""Deliveries to a running stack: what becomes of each kind of body, which repeat another, which are refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.daemon import Answer, DaemonProcess, FarSide, eventually, running

MAX_BODY = 256 * 1024

ECHO = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {params}}}
  - {{id: out, type: transform.data.set, params: {{values: {{hook: "{{{{ hook }}}}"}}}}}}
edges: [{{from: hook, to: out}}]
"""
CALLING = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: {id}, respond: last}}}}
  - {{id: call, type: action.http.request, params: {{method: POST, url: "{url}"}}}}
edges: [{{from: hook, to: call}}]
"""
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("webhooks")
    with running(folder, STACKD_MAX_BODY_BYTES=str(MAX_BODY)) as started:
        started.load(echo("echo", path="echo", methods=["POST", "GET", "PUT"], respond="last"))
        yield started


def echo(workflow_id: str, **params: Any) -> str:
    """A workflow whose output is what its webhook got."""
    return ECHO.format(id=workflow_id, params=json.dumps(params))


def got(answer: Answer) -> Any:
    """The webhook output that an echo workflow answered with."""
    assert answer.status == 200, answer
    return answer.json["hook"]


# -- what a delivery becomes


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        pytest.param("application/json", b'{"a": [1, null]}', {"a": [1, None]}, id="json"),
        pytest.param("application/cloudevents+json", b'{"a": 1}', {"a": 1}, id="plus-json"),
        pytest.param("application/json; charset=utf-8", b'"\xc3\xa9"', "é", id="json-charset"),
        pytest.param(FORM, b"a=1&b=x+y%21&a=2", {"a": ["1", "2"], "b": "x y!"}, id="form"),
        pytest.param("text/plain", "caf\xe9 ☕".encode(), "café ☕", id="text"),
        pytest.param("text/plain; charset=latin-1", b"caf\xe9", "café", id="latin-1"),
        pytest.param("application/xml", b"<a>1</a>", "<a>1</a>", id="xml"),
        pytest.param("application/json", b"", None, id="empty-json"),
        pytest.param("text/plain", b"", None, id="empty-text"),
        pytest.param("application/octet-stream", b"", None, id="empty-binary"),
    ],
)
def test_a_body_is_read_by_its_content_type(
    daemon: DaemonProcess, content_type: str, body: bytes, expected: Any
) -> None:
    answer = daemon.deliver("echo", body, Content_Type=content_type)

    assert got(answer)["body"] == expected


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("application/octet-stream", b"\x00\xff\x01", id="binary"),
        pytest.param("image/png", b"\x89PNG", id="image"),
        pytest.param("text/plain", b"caf\xe9", id="text-in-no-known-charset"),
        pytest.param("text/plain; charset=nope", b"abc", id="unknown-charset"),
        pytest.param("text/plain; charset=undefined", b"abc", id="undefined-charset"),
        pytest.param("text/plain; charset=punycode", b"a-" + b"b" * 200_000, id="punycode"),
    ],
)
def test_a_body_that_is_no_text_is_kept_as_a_blob(
    daemon: DaemonProcess, content_type: str, body: bytes
) -> None:
    answer = daemon.deliver("echo", body, Content_Type=content_type)

    digest = hashlib.sha256(body).hexdigest()
    plain_type = content_type.split(";")[0]
    assert got(answer)["body"] == {
        "$blob": digest,
        "bytes": len(body),
        "contentType": plain_type,
    }
    assert (daemon.state / "blobs" / digest[:2] / digest).read_bytes() == body


def test_a_multipart_form_keeps_its_files_as_blobs(daemon: DaemonProcess) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nagain\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        b"Content-Type: application/pdf\r\n\r\n\x00\x01\r\n--x--\r\n"
    )

    answer = daemon.deliver("echo", body, Content_Type=MULTIPART)

    digest = hashlib.sha256(b"\x00\x01").hexdigest()
    assert got(answer)["body"] == {
        "note": ["hello", "again"],
        "file": {
            "$blob": digest,
            "bytes": 2,
            "filename": "a.bin",
            "contentType": "application/pdf",
        },
    }


def test_headers_are_lower_case_and_repeated_query_keys_are_lists(daemon: DaemonProcess) -> None:
    answer = daemon.deliver("echo?a=1&b=x%20y&a=2&c", method="GET", X_Shop_ID="7", ACCEPT="*/*")

    output = got(answer)
    assert output["query"] == {"a": ["1", "2"], "b": "x y", "c": ""}
    assert output["headers"]["x-shop-id"] == "7"
    assert output["headers"]["accept"] == "*/*"
    assert all(name == name.lower() for name in output["headers"])
    assert (output["method"], output["path"], output["body"]) == ("GET", "echo", None)


def test_a_repeated_header_is_joined_and_bytes_that_are_no_text_are_shown(
    daemon: DaemonProcess,
) -> None:
    raw = (
        b"POST /api/webhooks/echo HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n"
        b"X-Tag: one\r\nx-tag: two\r\nX-Odd: caf\xe9\r\nConnection: close\r\n\r\n"
    )

    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as connection:
        connection.sendall(raw)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    headers = json.loads(body)["hook"]["headers"]
    assert (headers["x-tag"], headers["x-odd"]) == ("one, two", "caf\\xe9")


def test_integers_stay_exact_however_long(daemon: DaemonProcess) -> None:
    numbers = [2**63 - 1, 2**63, 2**64, 12345678901234567890, -(10**30), 10**400]

    answer = daemon.deliver("echo", {"numbers": numbers})

    assert got(answer)["body"]["numbers"] == numbers


@pytest.mark.parametrize("depth", [100, 300, 490])
def test_nesting_is_kept_as_deep_as_it_can_be_read(daemon: DaemonProcess, depth: int) -> None:
    body = b"[" * depth + b"]" * depth

    answer = daemon.deliver("echo", body, Content_Type="application/json")

    assert got(answer)["body"] == json.loads(body)


def test_a_gzipped_body_is_read_as_what_it_holds(daemon: DaemonProcess) -> None:
    answer = daemon.deliver(
        "echo",
        gzip.compress(b'{"a": 1}'),
        Content_Type="application/json",
        Content_Encoding="gzip",
    )

    assert got(answer)["body"] == {"a": 1}


def test_a_large_body_is_read_like_a_small_one(daemon: DaemonProcess) -> None:
    text = "x" * (MAX_BODY // 2)

    answer = daemon.deliver("echo", {"text": text, "n": 2**70})

    assert got(answer)["body"] == {"text": text, "n": 2**70}


# -- what is refused


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        pytest.param({}, b'{"a": }', 422, "json.malformed", id="malformed"),
        pytest.param({}, b'{"a": 1, "a": 2}', 422, "json.duplicate_key", id="duplicate-key"),
        pytest.param({}, b'{"a": NaN}', 422, "json.constant", id="nan"),
        pytest.param({}, b'{"a": "\xff"}', 422, "json.encoding", id="not-utf8"),
        pytest.param({}, b"[" * 900 + b"12345678901234567890" + b"]" * 900, 422, "json.depth", id="deep with long digits"),
        pytest.param({}, b"[" * 100_000 + b"]" * 100_000, 422, "json.depth", id="deep"),
        pytest.param({}, b"9" * 5000, 422, "json.number", id="endless-number"),
        pytest.param({}, b"[1e400]", 422, "json.number", id="number-beyond-a-float"),
        pytest.param({}, b'"\\ud800"', 422, "json.text", id="half-a-pair"),
        pytest.param({}, b'{"a": 1, "a": "' + b"x" * 70_000 + b'"}', 422, "json.duplicate_key",
                     id="large-duplicate-key"),
        pytest.param({}, b"1" * (MAX_BODY + 1), 413, "body.too_large", id="too-large"),
        pytest.param({"Content-Encoding": "gzip"}, b"no gzip", 400, "body.malformed",
                     id="bad-gzip"),
        pytest.param({"Content-Encoding": "gzip"}, gzip.compress(b" " * MAX_BODY * 4), 413,
                     "body.too_large", id="gzip-bomb"),
        pytest.param({"Content-Type": FORM}, b"a=\xff", 400, "form.malformed", id="form-not-utf8"),
        pytest.param({"Content-Type": f"{FORM}; charset=nope"}, b"a=1", 400, "form.malformed",
                     id="form-charset"),
        pytest.param({"Content-Type": MULTIPART}, b"garbage", 400, "form.malformed",
                     id="multipart-garbage"),
        pytest.param({"Content-Type": "multipart/form-data"}, b"x", 400, "form.malformed",
                     id="multipart-no-boundary"),
        pytest.param({"Content-Type": MULTIPART},
                     b'--x\r\nContent-Disposition: form-data; name="a"\r\n'
                     b"Content-Transfer-Encoding: odd\r\n\r\nb\r\n--x--\r\n",
                     400, "form.malformed", id="multipart-encoding"),
        pytest.param({"Content-Type": MULTIPART},
                     b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nbreaks off',
                     400, "form.malformed", id="multipart-truncated"),
        pytest.param({"Content-Type": MULTIPART},
                     b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
                     + b"y" * MAX_BODY + b"\r\n--x--\r\n",
                     413, "body.too_large", id="multipart-too-large"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_a_problem_and_starts_nothing(
    daemon: DaemonProcess, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    before = newest(daemon)

    refused = daemon.deliver("echo", body, **({"Content-Type": "application/json"} | headers))

    assert (refused.status, refused.code) == (status, code)
    assert newest(daemon) == before


def newest(daemon: DaemonProcess) -> list[str]:
    page = daemon.api.get("/api/executions", limit=1)
    return [item["id"] for item in page["items"]]


def test_a_path_nobody_answers_on_is_404(daemon: DaemonProcess) -> None:
    for path in ("nobody", "echo/", "echo/more", "ECHO"):
        answer = daemon.deliver(path)
        assert (answer.status, answer.code) == (404, "webhook.not_found"), path


def test_an_inactive_workflow_answers_404_and_says_so(daemon: DaemonProcess) -> None:
    daemon.load(echo("asleep", path="asleep"))
    accepted = daemon.deliver("asleep")
    daemon.api.post("/api/workflows/asleep/deactivate")

    refused = daemon.deliver("asleep")
    daemon.api.post("/api/workflows/asleep/activate")
    again = daemon.deliver("asleep")

    assert (accepted.status, again.status) == (202, 202)
    assert (refused.status, refused.code) == (404, "workflow.inactive")
    assert "stackd workflows activate asleep" in refused.json["hint"]


def test_only_its_methods_are_taken_post_unless_said(daemon: DaemonProcess) -> None:
    daemon.load(echo("plain-method", path="plain-method"))
    daemon.load(echo("own-methods", path="own-methods", methods=["PUT", "GET"]))

    answers = {
        (path, method): daemon.deliver(path, method=method)
        for path in ("plain-method", "own-methods")
        for method in ("POST", "PUT", "GET", "DELETE")
    }

    assert {key: answer.status for key, answer in answers.items()} == {
        ("plain-method", "POST"): 202,
        ("plain-method", "PUT"): 405,
        ("plain-method", "GET"): 405,
        ("plain-method", "DELETE"): 405,
        ("own-methods", "POST"): 405,
        ("own-methods", "PUT"): 202,
        ("own-methods", "GET"): 202,
        ("own-methods", "DELETE"): 405,
    }
    assert answers["plain-method", "GET"].headers["allow"] == "POST"
    assert answers["plain-method", "GET"].code == "method.not_allowed"


def test_a_full_queue_answers_429_with_retry_after_and_takes_no_more(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("full")
    with running(folder, STACKD_MAX_JOBS="3") as daemon:
        daemon.load(echo("small", path="small"))
        daemon.api.post("/api/queue/pause")

        taken = [daemon.deliver("small", Idempotency_Key=f"k{n}") for n in range(3)]
        refused = daemon.deliver("small", Idempotency_Key="k3")
        by_hand = daemon.http("POST", "/api/workflows/small/run", {})
        repeated = daemon.deliver("small", Idempotency_Key="k0")
        daemon.api.post("/api/queue/resume")
        late = eventually(
            "there is room again",
            lambda: (a := daemon.deliver("small", Idempotency_Key="k3")).status == 202 and a,
        )

        assert [answer.status for answer in taken] == [202, 202, 202]
        assert (refused.status, refused.code) == (429, "queue.full")
        assert int(refused.headers["retry-after"]) >= 1
        assert (by_hand.status, by_hand.code) == (429, "queue.full")
        assert (repeated.status, repeated.json["executionId"]) == (
            200,
            taken[0].json["executionId"],
        )
        daemon.until(late.json["executionId"], "completed")


# -- where a webhook answers


def test_a_path_may_hold_slashes(daemon: DaemonProcess) -> None:
    imported = daemon.load(echo("deep", path="shop/v1/orders.new", respond="last"))

    answer = daemon.deliver("shop/v1/orders.new")

    url = f"http://127.0.0.1:{daemon.port}/api/webhooks/shop/v1/orders.new"
    assert imported["webhooks"] == [{"node": "hook", "url": url}]
    assert got(answer)["path"] == "shop/v1/orders.new"
    assert daemon.deliver("shop/v1").code == "webhook.not_found"


def test_a_generated_path_is_16_hex_digits_and_stays_over_imports(daemon: DaemonProcess) -> None:
    text = echo("generated", respond="last")

    first = daemon.load(text)
    changed = daemon.load(text.replace("id: out", "id: other").replace("to: out", "to: other"))
    with_path = daemon.load(echo("generated", path="now-named"))
    back = daemon.load(text)
    another = daemon.load(echo("generated-too"))

    (webhook,) = first["webhooks"]
    path = webhook["url"].rpartition("/")[2]
    assert re.fullmatch(r"[0-9a-f]{16}", path)
    assert (changed["version"], changed["webhooks"]) == (2, [webhook])
    assert with_path["webhooks"][0]["url"].endswith("/now-named")
    assert back["webhooks"] == [webhook]
    assert another["webhooks"][0]["url"].rpartition("/")[2] != path
    assert got(daemon.deliver(path))["path"] == path
    assert daemon.deliver("now-named").code == "webhook.not_found"


def test_a_webhook_moves_to_another_path_and_two_may_swap_theirs(daemon: DaemonProcess) -> None:
    daemon.load(echo("mover", path="before", respond="last"))
    daemon.load(echo("mover", path="after", respond="last"))

    assert daemon.deliver("before").code == "webhook.not_found"
    assert got(daemon.deliver("after"))["path"] == "after"

    two = """
id: swap
nodes:
  - {{id: a, type: trigger.webhook.inbound, params: {{path: {0}}}}}
  - {{id: b, type: trigger.webhook.inbound, params: {{path: {1}}}}}
"""
    daemon.load(two.format("left", "right"))
    swapped = daemon.load(two.format("right", "left"))

    ends = {hook["node"]: hook["url"].rpartition("/")[2] for hook in swapped["webhooks"]}
    assert ends == {"a": "right", "b": "left"}


def test_a_path_of_another_workflow_is_a_conflict_that_changes_nothing(
    daemon: DaemonProcess,
) -> None:
    daemon.load(echo("first-comer", path="taken"))

    refused = daemon.http("POST", "/api/workflows", echo("late-comer", path="taken").encode())

    assert (refused.status, refused.code) == (409, "webhook.path_taken")
    assert "first-comer" in refused.json["detail"]
    assert daemon.http("GET", "/api/workflows/late-comer").status == 404
    assert daemon.deliver("taken").json["workflowId"] == "first-comer"


def test_a_generated_path_cannot_be_claimed_by_name(daemon: DaemonProcess) -> None:
    (webhook,) = daemon.load(echo("owner"))["webhooks"]
    path = webhook["url"].rpartition("/")[2]

    refused = daemon.http("POST", "/api/workflows", echo("thief", path=path).encode())

    assert (refused.status, refused.code) == (409, "webhook.path_taken")


# -- which deliveries are the same


def delivered(daemon: DaemonProcess, path: str, body: Any = None, **headers: str) -> str:
    """The execution a delivery led to; it must have been taken."""
    answer = daemon.deliver(path, body, **headers)
    assert answer.status in (200, 202), answer
    assert answer.json.get("duplicate", False) is (answer.status == 200)
    return str(answer.json["executionId"])


@pytest.mark.parametrize("header", ["Idempotency-Key", "webhook-id", "X-GitHub-Delivery"])
def test_a_repeated_delivery_answers_200_with_the_first_execution(
    daemon: DaemonProcess, header: str
) -> None:
    path = f"same-{header.lower()}"
    daemon.load(echo(path, path=path))

    first = daemon.deliver(path, {"n": 1}, **{header: "k1"})
    again = daemon.deliver(path, {"n": 2}, **{header.upper(): "k1"})
    other = daemon.deliver(path, {"n": 3}, **{header: "k2"})

    execution_id = first.json["executionId"]
    expected = {"success": True, "executionId": execution_id, "workflowId": path}
    assert (first.status, first.json) == (202, expected)
    assert (again.status, again.json) == (200, {**expected, "duplicate": True})
    assert (other.status, other.json["executionId"] != execution_id) == (202, True)
    assert daemon.until(execution_id)["input"]["body"] == {"n": 1}


def test_other_headers_and_other_paths_make_no_duplicates(daemon: DaemonProcess) -> None:
    daemon.load(echo("unkeyed", path="unkeyed"))
    daemon.load(echo("unkeyed-too", path="unkeyed-too"))

    executions = [
        delivered(daemon, "unkeyed"),
        delivered(daemon, "unkeyed"),
        delivered(daemon, "unkeyed", X_Request_Id="k", X_Event_Id="k"),
        delivered(daemon, "unkeyed", X_Request_Id="k", X_Event_Id="k"),
        delivered(daemon, "unkeyed", Idempotency_Key=""),
        delivered(daemon, "unkeyed", Idempotency_Key=""),
        delivered(daemon, "unkeyed", Idempotency_Key="k"),
        delivered(daemon, "unkeyed-too", Idempotency_Key="k"),
    ]

    assert len(set(executions)) == len(executions)


def test_a_trigger_may_name_its_own_header(daemon: DaemonProcess) -> None:
    daemon.load(echo("own-header", path="own-header", dedupe={"header": "X-Order"}))

    first = delivered(daemon, "own-header", X_Order="7", Idempotency_Key="a")

    assert delivered(daemon, "own-header", x_order="7", Idempotency_Key="b") == first
    assert delivered(daemon, "own-header", X_Order="8", Idempotency_Key="a") != first
    assert delivered(daemon, "own-header", Idempotency_Key="a") != first


def test_a_trigger_may_compute_its_key(daemon: DaemonProcess) -> None:
    expression = "hook.body.order ~ '/' ~ hook.query.shop | default('main')"
    daemon.load(echo("computed", path="computed", dedupe={"expression": expression}))

    first = delivered(daemon, "computed", {"order": 7, "try": 1})

    assert delivered(daemon, "computed", {"order": 7, "try": 2}) == first
    assert delivered(daemon, "computed", {"order": 8}) != first
    assert delivered(daemon, "computed?shop=b", {"order": 7}) != first


def test_a_key_that_cannot_be_computed_is_a_problem(daemon: DaemonProcess) -> None:
    daemon.load(echo("missing", path="missing", dedupe={"expression": "hook.body.order"}))

    refused = daemon.deliver("missing", {"other": 1})

    assert refused.status == 422
    assert refused.code.startswith("expression.")
    assert "order" in refused.json["detail"]


def test_a_key_lasts_for_its_window(daemon: DaemonProcess) -> None:
    daemon.load(echo("brief", path="brief", dedupe={"windowMs": 1}))
    daemon.load(echo("daily", path="daily"))
    daemon.load(echo("weekly", path="weekly", dedupe={"windowMs": 7 * 86_400_000}))

    first = delivered(daemon, "brief", Idempotency_Key="k")
    eventually(
        "the same key starts another",
        lambda: delivered(daemon, "brief", Idempotency_Key="k") != first,
    )
    for path in ("daily", "weekly"):
        delivered(daemon, path, Idempotency_Key="k")

    assert round(window(daemon, "daily")) == 86_400
    assert round(window(daemon, "weekly")) == 7 * 86_400


def test_a_key_belongs_to_the_trigger_it_came_in_by(daemon: DaemonProcess) -> None:
    """The path may move to another workflow: what that one gets is its own."""
    daemon.load(echo("first-owner", path="handed-on"))
    by_first = delivered(daemon, "handed-on", Idempotency_Key="k")
    daemon.load(echo("first-owner"))
    daemon.load(echo("second-owner", path="handed-on"))

    by_second = delivered(daemon, "handed-on", Idempotency_Key="k")
    again = delivered(daemon, "handed-on", Idempotency_Key="k")
    daemon.load(echo("second-owner"))
    daemon.load(echo("first-owner", path="handed-on"))
    back = delivered(daemon, "handed-on", Idempotency_Key="k")

    assert by_second != by_first
    assert daemon.execution(by_second)["workflowId"] == "second-owner"
    assert (again, back) == (by_second, by_first)


def test_two_triggers_and_a_run_by_hand_share_no_key(daemon: DaemonProcess) -> None:
    hook = "{{id: {0}, type: trigger.webhook.inbound, params: {{path: two-{0}}}}}"
    nodes = ", ".join(hook.format(name) for name in ("a", "b"))
    daemon.load(f"id: two-hooks\nnodes: [{nodes}]\n")

    executions = {
        delivered(daemon, "two-a", Idempotency_Key="k"),
        delivered(daemon, "two-b", Idempotency_Key="k"),
        *(
            daemon.http("POST", "/api/workflows/two-hooks/run", Idempotency_Key="k").json[
                "executionId"
            ]
            for _ in range(2)
        ),
    }

    assert len(executions) == 3


def test_a_key_that_is_left_out_dedupes_nothing(daemon: DaemonProcess) -> None:
    daemon.load(echo("no-key", path="no-key", dedupe={"expression": "hook.body.id | omit"}))

    executions = [delivered(daemon, "no-key", {"id": number}) for number in (None, None, 1, 1)]

    assert len(set(executions)) == 3


def window(daemon: DaemonProcess, path: str) -> float:
    """Seconds from the start of the execution to the end of the key it came with, as stored."""
    with daemon.file() as raw:
        row = raw.execute(
            "SELECT k.expires_at - e.created_at FROM dedupe_keys k JOIN executions e "
            "ON e.id = k.execution_id WHERE k.workflow_id = ?",
            (path,),
        ).fetchone()
    return float(row[0])


@pytest.mark.parametrize(
    ("key", "status"), [("k" * 255, 202), ("k" * 256, 422)], ids=["longest", "too-long"]
)
def test_a_key_has_at_most_255_characters(daemon: DaemonProcess, key: str, status: int) -> None:
    daemon.load(echo("long-key", path="long-key"))

    answer = daemon.deliver("long-key", Idempotency_Key=key)

    assert answer.status == status
    if status == 422:
        assert answer.code == "dedupe.key_too_long"


def test_keys_that_are_no_text_tell_deliveries_apart(daemon: DaemonProcess) -> None:
    daemon.load(echo("odd-key", path="odd-key"))

    first = delivered(daemon, "odd-key", Idempotency_Key="\xe8")

    assert delivered(daemon, "odd-key", Idempotency_Key="\xe8") == first
    assert delivered(daemon, "odd-key", Idempotency_Key="\xe9") != first


def test_the_same_delivery_many_times_at_once_starts_exactly_one_execution(
    daemon: DaemonProcess,
) -> None:
    daemon.load(echo("crowd", path="crowd"))
    senders = 16
    at_once = threading.Barrier(senders)

    def send(_: int) -> Answer:
        at_once.wait(10)
        return daemon.deliver("crowd", {"n": 1}, Idempotency_Key="one")

    with ThreadPoolExecutor(senders) as pool:
        answers = list(pool.map(send, range(senders)))

    assert sorted(answer.status for answer in answers) == [200] * (senders - 1) + [202]
    assert len({answer.json["executionId"] for answer in answers}) == 1
    assert len(daemon.api.get("/api/executions", workflowId="crowd")["items"]) == 1


# -- replies


def test_respond_last_answers_with_the_output_and_a_repetition_with_the_first_id(
    daemon: DaemonProcess, far_side: FarSide
) -> None:
    daemon.load(CALLING.format(id="replying", url=f"{far_side.url}/fine"))

    answer = daemon.deliver("replying", Idempotency_Key="once")
    again = daemon.deliver("replying", Idempotency_Key="once")

    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (answer.json["status"], answer.json["body"]) == (200, {"path": "/fine"})
    assert (again.status, again.json["duplicate"]) == (200, True)
    assert daemon.execution(again.json["executionId"])["output"] == answer.json
    assert far_side.hits["/fine", ""] == 1


@pytest.mark.parametrize(
    ("workflow_id", "path", "status"),
    [("failing", "/status/400", "failed"), ("doubtful", "/drop", "uncertain")],
)
def test_respond_last_answers_502_when_it_did_not_complete(
    daemon: DaemonProcess, far_side: FarSide, workflow_id: str, path: str, status: str
) -> None:
    daemon.load(CALLING.format(id=workflow_id, url=far_side.url + path))

    answer = daemon.deliver(workflow_id)

    execution = daemon.execution(answer.json["executionId"])
    assert execution["status"] == status
    assert (answer.status, answer.code) == (502, execution["error"]["code"])
    assert execution["error"]["message"] in answer.json["detail"]


def test_deliveries_are_counted_by_what_became_of_them(daemon: DaemonProcess) -> None:
    def counts() -> dict[str, float]:
        text = daemon.http("GET", "/metrics").text
        found = re.findall(r'webhook_requests_total\{outcome="(\w+)"\} ([0-9.]+)', text)
        return {outcome: float(value) for outcome, value in found}

    daemon.load(echo("tallied", path="tallied"))
    before = counts()
    daemon.deliver("tallied", Idempotency_Key="k")
    daemon.deliver("tallied", Idempotency_Key="k")
    daemon.deliver("tallied", method="GET")

    after = counts()
    grown = {outcome: after[outcome] - before.get(outcome, 0.0) for outcome in after}
    assert grown == {"accepted": 1, "duplicate": 1, "refused": 1}


# -- what is told of those that started nothing


def test_why_tells_of_deliveries_that_started_nothing(daemon: DaemonProcess) -> None:
    daemon.load(echo("why", path="why"))
    first = daemon.deliver("why", {}, Idempotency_Key="k").json["executionId"]
    for _ in range(3):
        daemon.deliver("why", {}, Idempotency_Key="k")
    daemon.deliver("why", {}, method="PUT")
    daemon.api.post("/api/workflows/why/deactivate")
    daemon.deliver("why", {})

    def notes(subject: str) -> dict[str, int]:
        view = daemon.api.get(f"/api/why/{subject}")
        return {note["code"]: note["count"] for note in view["notes"]}

    refused = {"method.not_allowed": 1, "workflow.inactive": 1}
    eventually("the refusals are told", lambda: notes("why") == refused)
    eventually("the duplicates are told", lambda: notes(first) == {"delivery.duplicate": 3})
    (reason,) = daemon.api.get("/api/why/why")["reasons"]
    assert reason["hint"] == "stackd workflows activate why"
