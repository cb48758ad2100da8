"""Large and odd deliveries: memory, the loop and the disk stay whole, and what was sent stays what it was."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.beside import asked_for_health
from support.daemon import Answer, DaemonProcess, eventually, running

MIB = 1024 * 1024
KIND = {"Content_Type": "application/json"}

TAKING = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {params}}}
  - {{id: out, type: transform.data.set, params: {{values: {{method: "{{{{ hook.method }}}}"}}}}}}
edges: [{{from: hook, to: out}}]
"""
BARE = "id: {id}\nnodes: [{{id: hook, type: trigger.webhook.inbound, params: {params}}}]\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("intake")) as started:
        started.load(taking("taking"))
        yield started


def taking(name: str, template: str = TAKING, **params: Any) -> str:
    return template.format(id=name, params=json.dumps({"path": name, **params}))


def records(size: int) -> bytes:
    """A list of small records, with many small numbers."""
    one = b'{"id": 1, "t": {"a": 1, "b": [1,2,3,4], "c": {"d": 0.5, "e": true}}, "n": [7,7,7,7]}'
    return b"[" + b",".join([one] * (size // (len(one) + 1))) + b"]"


def all_at_once(count: int, deliver: Callable[[int], Answer]) -> list[Answer]:
    at_once = threading.Barrier(count)

    def send(number: int) -> Answer:
        at_once.wait(10)
        return deliver(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send, range(count)))


def at_rest(daemon: DaemonProcess) -> None:
    """Wait until nothing is queued or runs."""

    def is_idle() -> bool:
        counts = daemon.api.get("/api/queue")["counts"]
        return not any(counts[state] for state in ("available", "running", "scheduled"))

    eventually("nothing is queued or runs", is_idle, within=120)


# -- memory


@pytest.mark.timeout(120)
def test_many_large_bodies_at_once_are_held_within_the_budgets(tmp_path: Path) -> None:
    budgets = {"STACKD_BODY_MEMORY_BYTES": 8 * MIB, "STACKD_RUN_MEMORY_BYTES": 64 * MIB}
    with running(tmp_path, **{name: str(size) for name, size in budgets.items()}) as daemon:
        daemon.load(taking("taking"))
        body = records(3 * MIB)
        daemon.api.post("/api/queue/pause")
        before = daemon.memory()

        answers = all_at_once(12, lambda _: daemon.deliver("taking", body, **KIND))
        taken = [answer for answer in answers if answer.status == 202]
        daemon.api.post("/api/queue/resume")
        at_rest(daemon)

        assert {answer.status for answer in answers} <= {202, 503}
        assert len(taken) >= 3
        listed = daemon.api.get("/api/executions", limit=100, status="completed")["items"]
        assert len(listed) == len(taken)
        assert peak(daemon) - before < 150 * MIB  # as values, twelve of them take 400


def peak(daemon: DaemonProcess) -> int:
    """The most memory it has ever taken, as the kernel counts it."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) * 1024


def test_an_answer_nobody_takes_holds_up_large_answers_alone(tmp_path: Path) -> None:
    quick = {"QUICK": "stackd.web.answers:ROOM_PATIENCE=1"}
    with running(tmp_path, STACKD_BODY_MEMORY_BYTES=str(8 * MIB), **quick) as daemon:
        daemon.load(BARE.format(id="echo", params=json.dumps({"path": "echo", "respond": "last"})))
        daemon.load(taking("taking"))
        body = b'"%b"' % (b"x" * (9 * MIB))
        stored = daemon.deliver("taking", body, **KIND).json["executionId"]
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            head = f"GET /api/executions/{stored} HTTP/1.1\r\nHost: here\r\n"
            client.sendall(f"{head}Authorization: Bearer {daemon.token}\r\n\r\n".encode())
            client.recv(1)

            with ThreadPoolExecutor(2) as pool:  # both wait for room
                showing = pool.submit(daemon.http, "GET", f"/api/executions/{stored}")
                replying = pool.submit(daemon.deliver, "echo", body, **KIND)
                small = [
                    daemon.http("GET", "/api/executions?limit=1"),
                    daemon.deliver("echo", {"a": 1}),
                ]
                shown, reply = showing.result(), replying.result()

    assert (shown.status, shown.code) == (503, "overloaded")
    assert int(shown.headers["retry-after"]) >= 1
    assert [answer.status for answer in (*small, reply)] == [200, 200, 202]


# -- the loop

SIZE = 4 * MIB
ODD_SHAPES = {
    "numbers": b"[" + b",".join([b"1"] * (SIZE // 2)) + b"]",
    "text": b'"' + b"null" * (SIZE // 4) + b'"',
    "escapes": b'"' + b"\\u00e9" * (SIZE // 6) + b'"',
    "nests": b"[" + b",".join([b"[" * 400 + b"]" * 400] * (SIZE // 801)) + b"]",
    "empties": b"[" + b",".join([b"{}"] * (SIZE // 3)) + b"]",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_an_odd_large_body_holds_nobody_up_from_its_arrival_to_its_end(
    daemon: DaemonProcess, shape: str
) -> None:
    with asked_for_health(daemon) as longest:
        answer = daemon.deliver("taking", ODD_SHAPES[shape], **KIND)
        at_rest(daemon)  # to read all of it here would hold up who asks

    assert answer.status == 202
    assert longest() < 5.0  # on a busy machine; in one piece it takes up to 30


# -- what was sent


@pytest.mark.parametrize("filler", [0, 100_000], ids=["small", "large"])
def test_json_is_kept_as_it_was_sent(daemon: DaemonProcess, filler: int) -> None:
    body = b' {"n": 1.10, "e": 1E2,\n "big": 123456789012345678901234567890, "t": "\\u00e9%b"}' % (
        b"x" * filler
    )
    daemon.load(taking("kept", BARE))

    execution_id = daemon.deliver("kept", body, **KIND).json["executionId"]
    daemon.until(execution_id, "completed")

    shown = daemon.http("GET", f"/api/executions/{execution_id}").body
    assert shown.count(b'"body":' + body + b",") == 3  # input, output, and that of the trigger
    (row,) = stored(daemon, execution_id)
    assert json.loads(row)["body"] == json.loads(body)


def stored(daemon: DaemonProcess, execution_id: str) -> tuple[bytes]:
    with daemon.file() as raw:
        query = "SELECT input FROM executions WHERE id = ?"
        row: tuple[bytes] = raw.execute(query, (execution_id,)).fetchone()
    return row


@pytest.mark.parametrize("filler", [0, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("path", ["/api/workflows/by-hand/run", "/api/executions"])
def test_the_input_of_a_run_by_hand_is_kept_as_it_was_sent(
    daemon: DaemonProcess, path: str, filler: int
) -> None:
    daemon.load("id: by-hand\nnodes: [{id: start, type: trigger.time.manual}]\n")
    given = b'{"n": 1.10, "l": [ {"}": "]"} ], "t": "%b"}' % (b"x" * filler)
    named = b'"workflowId" : "by-hand",' if path == "/api/executions" else b""
    body = b" { " + named + b'"input": ' + given + b" } "

    execution_id = daemon.http("POST", path, body, **KIND).json["executionId"]
    daemon.until(execution_id, "completed")

    assert stored(daemon, execution_id) == (given,)


def test_a_run_by_hand_without_an_input_is_given_null(daemon: DaemonProcess) -> None:
    daemon.load("id: by-hand\nnodes: [{id: start, type: trigger.time.manual}]\n")

    for body in (b"", b"{}", b" { } "):
        answer = daemon.http("POST", "/api/workflows/by-hand/run", body, **KIND)
        assert stored(daemon, answer.json["executionId"]) == (b"null",)
    refused = daemon.http("POST", "/api/workflows/by-hand/run", b"[1]", **KIND)
    assert (refused.status, refused.code) == (422, "json.not_object")


def test_a_key_is_computed_from_a_large_body_too(daemon: DaemonProcess) -> None:
    daemon.load(taking("keyed", dedupe={"expression": "hook.body.order"}))
    body = b'{"order": 7, "rest": "%b"}' % (b"x" * 100_000)

    first, again = (daemon.deliver("keyed", body, **KIND) for _ in range(2))
    other = daemon.deliver("keyed", body.replace(b"7", b"8"), **KIND)

    assert (first.status, again.status, other.status) == (202, 200, 202)
    assert again.json["executionId"] == first.json["executionId"]


def test_a_large_text_and_a_large_form_are_read_like_small_ones(daemon: DaemonProcess) -> None:
    daemon.load(taking("read", BARE, respond="last"))
    text = "é" * 200_000

    as_text = daemon.deliver(
        "read", text.encode("latin-1"), Content_Type="text/plain; charset=latin-1"
    )
    form = f"a=1&b={'%C3%A9' * 20_000}".encode()
    as_form = daemon.deliver("read", form, Content_Type="application/x-www-form-urlencoded")

    assert as_text.json["body"] == text
    assert as_form.json["body"] == {"a": "1", "b": "é" * 20_000}


# -- secrets


def test_secrets_are_not_shown_but_true_for_expressions(daemon: DaemonProcess) -> None:
    document = taking("secretive").replace(
        '"{{ hook.method }}"', "\"{{ hook.headers.authorization | replace('Bearer ', '') }}\""
    )
    daemon.load(document)
    sent = {
        "Authorization": "Bearer t0ken-of-the-sender",
        "Cookie": "id=b1scuit",
        "X_Api_Key": "k3y",
    }

    path = "/api/webhooks/secretive?token=t1cket&page=2"
    execution_id = daemon.http("POST", path, {}, **sent).json["executionId"]

    view = daemon.until(execution_id, "completed")
    headers = view["input"]["headers"]
    assert {headers[name] for name in ("authorization", "cookie", "x-api-key")} == {"(redacted)"}
    assert headers["host"] == f"127.0.0.1:{daemon.port}"
    assert view["input"]["query"] == {"token": "(redacted)", "page": "2"}
    assert view["nodes"][0]["output"] == view["input"]
    assert view["output"] == {"method": "t0ken-of-the-sender"}
    assert "b1scuit" in stored(daemon, execution_id)[0].decode()


# -- what was refused, or was there before


def blobs(daemon: DaemonProcess) -> set[str]:
    return {path.name for path in (daemon.state / "blobs").rglob("*") if path.is_file()}


FILE = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n%b\r\n'
    b'--x\r\nContent-Disposition: form-data; name="g"; filename="b"\r\n\r\n%b!\r\n--x--\r\n'
)


@pytest.mark.parametrize(
    ("content_type", "template"),
    [("application/octet-stream", b"%b"), ("multipart/form-data; boundary=x", FILE)],
    ids=["body", "files"],
)
def test_a_delivery_that_starts_nothing_leaves_no_blob_behind(
    tmp_path: Path, content_type: str, template: bytes
) -> None:
    def deliver(content: bytes, key: str) -> Answer:
        body = template % ((content,) * template.count(b"%b"))
        return daemon.deliver("taking", body, Content_Type=content_type, Idempotency_Key=key)

    with running(tmp_path, STACKD_MAX_JOBS="2") as daemon:
        daemon.load(taking("taking"))
        daemon.api.post("/api/queue/pause")
        taken = deliver(b"\0first", "a")
        kept = blobs(daemon)

        duplicate = deliver(b"\0other", "a")
        same_again = deliver(b"\0first", "b")
        refused = deliver(b"\0third", "c")
        refused_again = deliver(b"\0first", "d")

        answers = [taken, duplicate, same_again, refused, refused_again]
        assert [answer.status for answer in answers] == [202, 200, 202, 429, 429]
        assert kept
        assert blobs(daemon) == kept


# -- while the workflow changes


def test_no_delivery_is_refused_because_the_workflow_changes_under_it(
    daemon: DaemonProcess,
) -> None:
    versions = [taking("changing"), taking("changing", respond="last", methods=["POST", "PUT"])]
    daemon.load(versions[0])
    done = threading.Event()

    def change_over_and_over() -> int:
        imported = 0
        while not done.is_set():
            imported += 1
            daemon.load(versions[imported % 2])
        return imported

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change_over_and_over)
        answers = all_at_once(
            8, lambda _: [daemon.deliver("changing", {"n": n}) for n in range(25)]
        )
        done.set()

    statuses = Counter(answer.status for some in answers for answer in some)
    assert set(statuses) <= {200, 202}
    assert sum(statuses.values()) == 200
    assert changing.result() > 10
