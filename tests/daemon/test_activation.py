"""A daemon on sockets that were opened for it: whoever connects while it restarts waits, and is answered."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import activated
from support.daemon import DaemonProcess, eventually

Daemons = Callable[..., DaemonProcess]

HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
"""


def hand(daemon: DaemonProcess, *sockets: socket.socket, names: str = "") -> None:
    """Let `daemon` get `sockets` when it starts."""
    daemon.files = tuple(sock.fileno() for sock in sockets)
    listed = ",".join(map(str, daemon.files))
    daemon.within = (sys.executable, str(activated.__file__), listed, names)


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A socket that listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield listening


@pytest.fixture
def daemon(daemons: Daemons, door: socket.socket) -> DaemonProcess:
    """Not started yet; it will get `door`."""
    made = daemons()
    hand(made, door)
    made.port = door.getsockname()[1]
    return made


def moved(daemon: DaemonProcess) -> set[str]:
    """The service that last moved, and to where."""
    *_, line = daemon.logged("service moved")
    return {line["service"], line["state"]}


class Senders:
    """Deliveries one after the other, each on a connection of its own."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._is_over = threading.Event()
        self.accepted: list[str] = []
        self.trouble: list[str] = []

    def _send(self) -> None:
        while not self._is_over.is_set():
            try:
                answer = self._daemon.deliver("hooked", {"n": 1})
            except (OSError, http.client.HTTPException) as error:
                self.trouble.append(repr(error))
                continue
            if answer.status == 202:
                self.accepted.append(answer.json["executionId"])
            else:
                self.trouble.append(f"{answer.status} {answer.text}")

    @contextmanager
    def sending(self, count: int = 4) -> Iterator[None]:
        threads = [threading.Thread(target=self._send) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def more(self, count: int = 20) -> None:
        """Return once so many more were accepted."""
        wanted = len(self.accepted) + count
        eventually(f"{count} more deliveries", lambda: len(self.accepted) >= wanted)


def test_a_handed_socket_is_served_and_its_address_told(
    daemon: DaemonProcess, door: socket.socket
) -> None:
    port = daemon.port
    daemon.port = 1  # PORT, which the socket wins over
    daemon.start()

    for event, facts in (
        ("the handed socket wins over HOST and PORT", {"host": "127.0.0.1", "port": port}),
        ("listening", {"port": port, "handed": 1}),
        ("ready", {"url": f"http://127.0.0.1:{port}"}),
    ):
        (line,) = eventually(f"it says: {event}", lambda event=event: daemon.logged(event))
        assert facts.items() <= line.items()
    daemon.port = port
    assert daemon.http("GET", "/livez").status == 200


def test_no_child_of_the_daemon_gets_the_socket(daemon: DaemonProcess) -> None:
    daemon.start()

    info = Path(f"/proc/{daemon.pid}/fdinfo/3").read_text().split()
    assert int(info[info.index("flags:") + 1], 8) & os.O_CLOEXEC


def test_a_restart_under_steady_deliveries_refuses_none_and_loses_none(
    daemon: DaemonProcess,
) -> None:
    daemon.start()
    daemon.load(HOOKED)
    senders = Senders(daemon)

    with senders.sending():
        for _ in range(2):
            senders.more()
            assert daemon.terminate() == 0
            daemon.start()
        senders.more()

    assert senders.trouble == []
    assert len(set(senders.accepted)) == len(senders.accepted)
    for execution in senders.accepted[:: max(1, len(senders.accepted) // 20)]:
        assert daemon.until(execution)["status"] == "completed"
    assert not daemon.unforeseen()


def test_who_connects_after_a_kill_is_answered_by_the_next_process(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.load(HOOKED)
    daemon.kill()

    waiting = [socket.create_connection(("127.0.0.1", daemon.port), timeout=30) for _ in range(20)]
    for client in waiting:
        client.sendall(DELIVERY)
    daemon.start()

    for client in waiting:
        assert client.recv(65536).startswith(b"HTTP/1.1 202 ")
        client.close()


LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
DELIVERY = b"POST /api/webhooks/hooked HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("request_", "sent_before", "status"),
    [(LIVE, 0, b"200"), (LIVE, 10, b"200"), (DELIVERY, 0, b"202"), (DELIVERY, -2, b"202")],
    ids=["nothing sent", "half a head", "no delivery", "a delivery but for its body"],
)
def test_who_has_connected_when_the_daemon_ends_may_still_send_its_request(
    daemon: DaemonProcess, request_: bytes, sent_before: int, status: bytes
) -> None:
    daemon.start()
    daemon.load(HOOKED)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as client:
        client.sendall(request_[:sent_before])
        assert daemon.http("GET", "/livez").status == 200  # so the one before was accepted too
        os.kill(daemon.pid, signal.SIGTERM)
        eventually("its API drains", lambda: {"api", "draining"} <= moved(daemon))
        client.sendall(request_[sent_before:])

        assert client.recv(65536).startswith(b"HTTP/1.1 " + status)
    assert daemon.wait() == 0


def test_a_handed_unix_socket_is_served_beside_a_port_of_its_own(
    daemons: Daemons, tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.state.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(daemon.state / "stackd.sock"))
        door.listen()
        hand(daemon, door)
        daemon.start()

        assert daemon.api.get("/api/queue")["paused"] is False
        assert daemon.http("GET", "/livez").status == 200
        assert daemon.terminate() == 0
        assert (daemon.state / "stackd.sock").exists()  # it is the manager's


def test_a_socket_that_cannot_be_served_on_is_refused_by_name(daemons: Daemons) -> None:
    daemon = daemons()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        hand(daemon, door, names="udp.socket")
        daemon.spawn()
        assert daemon.wait() == 78

    (line,) = daemon.logged("cannot go on")
    assert line["code"] == "settings.invalid"
    assert line["reason"].startswith("the socket 'udp.socket' that the service manager handed")


def test_a_role_without_an_api_refuses_a_socket(
    daemons: Daemons, daemon: DaemonProcess, door: socket.socket
) -> None:
    daemon.spawn("worker")

    assert daemon.wait() == 78
    (line,) = daemon.logged("cannot go on")
    assert line["reason"] == "role worker serves no API, but sockets were handed over for one"
