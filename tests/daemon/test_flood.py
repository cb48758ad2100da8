"""Uploads without end and thousands of slow clients: refused early or served within limits, and nobody else is harmed."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.beside import asked
from support.crowd import coming
from support.daemon import DaemonProcess, eventually, running

MIB = 1024 * 1024
GIB = 1024 * MIB
IN_FLIGHT = 16 * MIB  # what the kernel keeps on both sides, and then some
LIMIT = 10 * MIB
ECHO = """
id: echo
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: echo, respond: last}}
"""
HEAD = b"POST /api/webhooks/echo HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("flood")) as started:
        started.load(ECHO)
        yield started


# -- uploads


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What became of an upload: bytes sent, the status that was answered, and whether it was cut off."""

    sent: int
    status: int
    is_cut_off: bool


def upload(
    port: int, path: str, *, chunked: bool, listens: bool, token: str | None = None
) -> Uploaded:
    """Send a gibibyte, or as much as is taken; who `listens` stops at the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    head += "Transfer-Encoding: chunked" if chunked else f"Content-Length: {GIB}"
    piece = memoryview(b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536)
    sent, got, is_cut_off = 0, b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(f"{head}\r\n\r\n".encode())
        client.setblocking(False)
        while sent < GIB and not (got and listens):
            comes, goes, _ = select.select([client], [client], [], 20)
            try:
                if comes:
                    some = client.recv(65536)
                    got += some
                    if not some:
                        is_cut_off = True
                        break
                if goes:
                    sent += client.send(piece[sent % len(piece) :])
            except BlockingIOError:
                pass
            except ConnectionError:
                is_cut_off = True
                break
    return Uploaded(sent, int(got.split(None, 2)[1]), is_cut_off)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/api/webhooks/echo", False, 413),
        ("/api/webhooks/nobody", False, 404),
        ("/api/workflows", True, 413),
        ("/api/workflows", False, 401),
        ("/api/workflows/echo/run", True, 413),
        ("/livez", False, 405),
    ],
)
def test_an_upload_of_a_gibibyte_is_answered_early_and_cut_off_if_it_goes_on(
    daemon: DaemonProcess, path: str, token: bool, status: int, chunked: bool
) -> None:
    before = daemon.memory()
    read = LIMIT if chunked and status == 413 else 0  # how much of it has to be read to know

    with asked(lambda: daemon.deliver("echo", {"n": 1})):
        heard, deaf = (
            upload(
                daemon.port,
                path,
                chunked=chunked,
                listens=listens,
                token=daemon.token if token else None,
            )
            for listens in (True, False)
        )

    assert (heard.status, deaf.status) == (status, status)
    assert heard.sent < read + IN_FLIGHT
    assert deaf.is_cut_off
    assert deaf.sent < read + 32 * MIB + IN_FLIGHT
    assert daemon.memory() - before < 40 * MIB


def test_who_sends_all_of_a_refused_body_before_it_reads_finds_the_answer(
    daemon: DaemonProcess,
) -> None:
    answer = daemon.deliver("echo", b"x" * (LIMIT + 4 * MIB))

    assert (answer.status, answer.code) == (413, "body.too_large")


# -- thousands

CROWD = 10_000
NEWCOMERS = 5000  # a second
SLOW = [  # what each sends at first, and what it adds each second
    (b"", b""),
    (HEAD + b"X-Slow: ", b"x"),
    (HEAD + b"Content-Length: 60000\r\n\r\n{", b"x"),
    (b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n", b""),
]


@pytest.fixture
def large(daemon: DaemonProcess) -> bytes:
    """A request for an answer that is large."""
    body = b'"%b"' % (b"x" * 900_000)
    assert daemon.deliver("echo", body, Content_Type="application/json").status == 200
    (newest,) = daemon.api.get("/api/executions", limit=1)["items"]
    head = f"GET /api/executions/{newest['id']} HTTP/1.1\r\nHost: h\r\n"
    return f"{head}Authorization: Bearer {daemon.token}\r\n\r\n".encode()


@pytest.mark.timeout(120)
def test_ten_thousand_slow_clients_leave_room_for_who_is_not(
    daemon: DaemonProcess, large: bytes
) -> None:
    """Some say nothing, some dribble their headers, some their bodies, and some do not take what they asked for."""
    before = daemon.memory()

    with coming(daemon.port, [*SLOW * 5, (large, b"")], CROWD, newcomers=NEWCOMERS) as told:
        answers = [daemon.deliver("echo", {"n": n}) for n in range(100)]
        probes = [daemon.http("GET", "/readyz", authorized=False) for _ in range(20)]
        daemon.api.get("/api/queue")  # over the Unix socket
        grown = daemon.memory() - before

    assert told["clients"] > 3000  # as many as the machine lets one process have
    assert told["lost"] > 0
    assert [one.status for one in answers] == [200] * 100
    assert [one.status for one in probes] == [200] * 20
    assert grown < 60 * MIB
    eventually("it is told that some had to go", lambda: daemon.logged("too many connections"))
