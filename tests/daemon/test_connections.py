"""Clients that are slow, idle, many or send garbage: they get an end and an answer, and others theirs."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon import DaemonProcess, FarSide, eventually, running

PATIENCE = 0.5  # seconds
LIMIT = 20
ECHO = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: {id}, respond: last}}}}
"""
HELD = """
id: held
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: held, respond: last}}}}
  - {{id: call, type: action.http.request, params: {{url: "{url}/held"}}}}
edges: [{{from: hook, to: call}}]
"""
HEAD = b"POST /api/webhooks/echo HTTP/1.1\r\nHost: here\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One whose clients have little time."""
    with running(tmp_path_factory.mktemp("slow"), STACKD_CLIENT_SECONDS=str(PATIENCE)) as started:
        started.load(ECHO.format(id="echo"))
        yield started


@pytest.fixture
def crowded(tmp_path: Path, far_side: FarSide) -> Iterator[DaemonProcess]:
    """One that takes few connections."""
    with running(tmp_path, STACKD_MAX_CONNECTIONS=str(LIMIT)) as started:
        started.load(ECHO.format(id="echo"))
        started.load(HELD.format(url=far_side.url))
        yield started


@pytest.fixture
def clients() -> Iterator[contextlib.ExitStack]:
    """Closes what is pushed onto it."""
    with contextlib.ExitStack() as stack:
        yield stack


def connect(
    daemon: DaemonProcess, clients: contextlib.ExitStack, sent: bytes = b""
) -> socket.socket:
    client = clients.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
    client.sendall(sent)
    return client


def answer(client: socket.socket) -> bytes:
    """One answer, or nothing if the connection ends before it."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in got and (some := client.recv(65536)):
            got += some
        head, _, body = got.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        while length is not None and len(body) < int(length[1]) and (some := client.recv(65536)):
            body, got = body + some, got + some
    return got


def rest(client: socket.socket) -> bytes:
    """What still comes until the other end closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while some := client.recv(65536):
            got += some
    return got


# -- deadlines


UNFINISHED = {"nothing": b"", "letter": b"P", "headers": HEAD, "header": HEAD + b"X-Part: "}


@pytest.fixture(scope="module")
def told(daemon: DaemonProcess) -> dict[str, bytes]:
    """What those are told who send one of UNFINISHED and no more. They wait side by side."""
    with contextlib.ExitStack() as clients:
        waiting = {name: connect(daemon, clients, sent) for name, sent in UNFINISHED.items()}
        return {name: rest(client) for name, client in waiting.items()}


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_request_that_does_not_come_in_time_is_ended_with_408(
    told: dict[str, bytes], name: str
) -> None:
    got = told[name]

    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"Content-Type: application/problem+json\r\n" in got
    assert b'"code":"client.too_slow"' in got


def test_headers_that_drip_are_ended_in_time_too(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    client = connect(daemon, clients, HEAD)
    client.settimeout(0.05)
    began = time.monotonic()

    def is_closed() -> bool:
        with contextlib.suppress(TimeoutError):
            client.sendall(b"X-Drip: 1\r\n")
            return b"408" in client.recv(4096)
        return False

    eventually("it is told to go", is_closed)

    assert time.monotonic() - began < PATIENCE + 5


@pytest.mark.parametrize("size", [1000, 1_000_000], ids=["small", "large"])
def test_a_body_that_does_not_come_in_time_is_answered_with_408(
    daemon: DaemonProcess, clients: contextlib.ExitStack, size: int
) -> None:
    head = HEAD + b"Content-Length: %d\r\n\r\n" % size

    got = answer(connect(daemon, clients, head + b"x" * 10))

    assert got.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"client.too_slow"' in got


def test_a_body_that_comes_slowly_but_fast_enough_is_taken(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    size = 200_000
    client = connect(daemon, clients, HEAD + b"Content-Length: %d\r\n\r\n" % size)
    began = time.monotonic()
    for _ in range(19):  # twice as long as the time of grace
        client.sendall(b"x" * (size // 20))
        nothing_comes(client, 2 * PATIENCE / 20)
    client.sendall(b"x" * (size // 20))

    got = answer(client)

    assert time.monotonic() - began > PATIENCE
    assert got.startswith(b"HTTP/1.1 200 ")


def nothing_comes(client: socket.socket, seconds: float) -> None:
    client.settimeout(seconds)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)


def test_a_connection_kept_alive_may_be_idle_for_longer(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    idle = connect(daemon, clients, WHOLE)
    first = answer(idle)
    rest(connect(daemon, clients))  # one that was opened later is ended

    idle.sendall(WHOLE)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert answer(idle).startswith(b"HTTP/1.1 200 ")


def test_the_time_for_headers_begins_anew_with_each_request(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    client = connect(daemon, clients, WHOLE)
    first = answer(client)
    rest(connect(daemon, clients))  # which takes as long as the client has for its headers
    client.sendall(b"POST ")

    got = rest(client)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert got.startswith(b"HTTP/1.1 408 ")


# -- garbage


@pytest.mark.parametrize(
    ("sent", "status", "problem"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 400, "method", id="tls"),
        pytest.param(b"BREW\x00/ HTTP/1.1\r\n\r\n", 400, "method", id="request-line"),
        pytest.param(b"GET / HTTP/1.1\r\nAuthorization : s3cret-token\r\n\r\n", 400, "malformed",
                     id="header"),
        pytest.param(b"GET / HTTP/1.1\r\nX: s3cret-token\x00\r\n\r\n", 400, "malformed", id="zero"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"s3cret-token" * 1000 + b"\r\n\r\n", 400,
                     "too long", id="long-header"),
        pytest.param(b"GET /" + b"s3cret-token" * 1000 + b" HTTP/1.1\r\n\r\n", 400, "too long",
                     id="long-target"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", 400, "malformed", id="length"),
        pytest.param(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "malformed",
                     id="lengths"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\ns3cret-token\r\n", 400, "malformed",
                     id="chunk"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_answered_with_a_problem_and_logged_in_one_line_without_what_it_held(
    daemon: DaemonProcess, clients: contextlib.ExitStack, sent: bytes, status: int, problem: str
) -> None:
    def logged() -> list[str]:
        return [line for line in daemon.log.read_text().splitlines() if '"problem"' in line]

    before = len(logged())

    got = answer(connect(daemon, clients, sent))

    lines = eventually("it has been logged", lambda: logged()[before:])
    assert re.match(rb"HTTP/1\.[01] %d " % status, got), got
    assert b"Content-Type: application/problem+json" in got
    assert problem in json.loads(got.partition(b"\r\n\r\n")[2])["detail"]
    assert len(lines) == 1
    assert (problem in lines[0], len(lines[0]) < 300) == (True, True)
    assert b"s3cret" not in got
    assert "s3cret" not in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_an_expectation_that_is_none_is_a_problem_too(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    got = answer(connect(daemon, clients, HEAD + b"Expect: wonders\r\n\r\n"))

    assert got.startswith(b"HTTP/1.1 417 ")
    assert b"Content-Type: application/problem+json" in got


# -- the limit


def test_at_the_limit_who_has_been_idle_for_longest_makes_room(
    crowded: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    idle = [connect(crowded, clients) for _ in range(LIMIT)]
    for client in idle:
        client.sendall(WHOLE)
        assert answer(client).startswith(b"HTTP/1.1 200 ")

    newcomer = connect(crowded, clients, WHOLE)

    assert answer(newcomer).startswith(b"HTTP/1.1 200 ")
    assert rest(idle[0]) == b""
    idle[1].sendall(WHOLE)
    assert answer(idle[1]).startswith(b"HTTP/1.1 200 ")


def test_where_all_are_served_others_are_refused_and_probes_and_the_socket_are_not(
    crowded: DaemonProcess, clients: contextlib.ExitStack, far_side: FarSide
) -> None:
    far_side.hits.clear()
    far_side.is_open.clear()
    waits = [connect(crowded, clients, WHOLE.replace(b"/echo", b"/held")) for _ in range(LIMIT)]
    far_side.arrived("/held", LIMIT)

    refused = crowded.deliver("echo", {})
    probes = [crowded.http("GET", path).status for path in ("/livez", "/readyz", "/startupz")]
    socket_view = crowded.api.get("/api/executions", limit=LIMIT + 1)
    far_side.is_open.set()
    answers = [answer(client) for client in waits]
    later = eventually("there is room", lambda: crowded.deliver("echo", {}).status == 200)

    assert (refused.status, refused.code) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"
    assert probes == [200, 200, 200]
    assert len(socket_view["items"]) == LIMIT
    assert all(got.startswith(b"HTTP/1.1 200 ") for got in answers)
    assert later


# -- one side only


def test_who_closes_its_side_after_some_requests_is_answered_to_all_of_them(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    daemon.load(ECHO.format(id="plain").replace(", respond: last", ""))
    client = connect(daemon, clients, WHOLE.replace(b"/echo", b"/plain") * 3)
    client.shutdown(socket.SHUT_WR)

    got = rest(client)

    assert len(re.findall(rb"HTTP/1.1 202 ", got)) == 3
    assert len(set(re.findall(rb'"executionId":"(\w+)"', got))) == 3


def test_who_closes_its_side_while_it_waits_for_a_reply_is_told_that_it_was_taken(
    crowded: DaemonProcess, clients: contextlib.ExitStack, far_side: FarSide
) -> None:
    far_side.is_open.clear()
    client = connect(crowded, clients, WHOLE.replace(b"/echo", b"/held"))
    far_side.arrived("/held")

    client.shutdown(socket.SHUT_WR)
    got = rest(client)
    far_side.is_open.set()

    assert got.startswith(b"HTTP/1.1 202 ")
    (execution_id,) = re.findall(rb'"executionId":"(\w+)"', got)
    assert crowded.until(execution_id.decode())["status"] == "completed"


def test_who_closes_its_side_in_the_middle_of_a_request_is_not_waited_for(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    client = connect(daemon, clients, WHOLE[:-1])
    client.shutdown(socket.SHUT_WR)

    assert rest(client) == b""


# -- large answers

LARGE_ANSWER = 10_000_000  # bytes; more than the kernel keeps of it


def test_who_does_not_take_a_large_answer_is_cut_off(
    daemon: DaemonProcess, clients: contextlib.ExitStack
) -> None:
    body = b'"%b"' % (b"x" * (LARGE_ANSWER - 10))
    head = HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    client = connect(daemon, clients)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(head + body)
    assert client.recv(12) == b"HTTP/1.1 200"

    def is_cut_off() -> bool:
        open_now = psutil.Process(daemon.pid).net_connections("tcp")
        return client.getsockname() not in {one.raddr for one in open_now}

    eventually("it is cut off", is_cut_off)
