"""What becomes of work in hand, streams, uploads and probes when the daemon is asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import DaemonProcess, FarSide, eventually

from stackd.core.errors import StackdError

Daemons = Callable[..., DaemonProcess]

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
HELD_UP = Path(__file__).parents[1] / "support" / "held_up.py"
LEASE = 1.0  # seconds, the shortest there is
CALLING = """
id: {name}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - id: call
    type: action.http.request
    effect: {effect}
    params: {{method: {method}, url: "{url}/{name}", headers: {{x-execution: "{{{{ execution.id }}}}"}}}}
edges: [{{from: start, to: call}}]
"""
DELIVERY = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
"""


@pytest.fixture
def endless() -> Iterator[FarSide]:
    """A far side that answers nothing until the test opens it."""
    with FarSide().listening() as listening:
        listening.is_open.clear()
        yield listening


@pytest.fixture
def slow(endless: FarSide) -> Iterator[FarSide]:
    """Another one."""
    with FarSide().listening() as listening:
        listening.is_open.clear()
        yield listening


def begin(
    daemon: DaemonProcess, far_side: FarSide, name: str, method: str = "GET", effect: str = "read"
) -> str:
    """An execution whose request has arrived at `far_side`."""
    daemon.load(CALLING.format(name=name, url=far_side.url, method=method, effect=effect))
    execution_id = daemon.begin(name)
    far_side.arrived(f"/{name}")
    return execution_id


def ask_to_stop(daemon: DaemonProcess) -> None:
    """Send SIGTERM and wait until it drains."""
    os.kill(daemon.pid, signal.SIGTERM)
    eventually("it drains", lambda: daemon.logged("draining"))


def stored(daemon: DaemonProcess, query: str, *values: object) -> list[tuple[Any, ...]]:
    with daemon.file() as raw:
        return raw.execute(query, values).fetchall()


def status(daemon: DaemonProcess, execution_id: str) -> str:
    ((found,),) = stored(daemon, "SELECT status FROM executions WHERE id = ?", execution_id)
    return str(found)


def moves(record: Path, event: str) -> list[dict[str, Any]]:
    """What was recorded of that event of the jobs of executions."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [facts for name, facts in lines if name == event and facts["kind"] == "execution.run"]


class Prober:
    """Asks for both probes, again and again, until nobody answers."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._thread = threading.Thread(target=self._ask)
        self.answers: list[tuple[int, int]] = []  # of /livez and of /readyz
        self.last_at = 0.0

    def _ask(self) -> None:
        with contextlib.suppress(OSError, StackdError):
            while True:
                asked = [
                    self._daemon.http("GET", path, authorized=False)
                    for path in ("/livez", "/readyz")
                ]
                self.answers.append((asked[0].status, asked[1].status))
                self.last_at = time.monotonic()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        self._thread.start()
        yield
        self._thread.join()


def test_what_ends_in_time_ends_and_the_rest_is_given_back_once_by_its_effect(
    daemons: Daemons, tmp_path: Path, far_side: FarSide, slow: FarSide, endless: FarSide
) -> None:
    daemon = daemons(STACKD_DRAIN_SECONDS="2", RECORD=str(tmp_path / "events"))
    daemon.start()
    far_side.is_open.clear()
    short, longer = begin(daemon, far_side, "short"), begin(daemon, slow, "longer")
    reading = begin(daemon, endless, "reading")
    keyed = begin(daemon, endless, "keyed", "POST", "keyed")
    unsafe = begin(daemon, endless, "unsafe", "POST", "unsafe")

    ask_to_stop(daemon)
    prober = Prober(daemon)
    with prober.asking():
        far_side.is_open.set()
        eventually("the short one ends", lambda: status(daemon, short) == "completed")
        slow.is_open.set()
        code = daemon.wait()
        ended_at = time.monotonic()

    assert code == 0
    assert status(daemon, longer) == "completed"
    assert set(prober.answers) == {(200, 503)}
    assert ended_at - prober.last_at < 2  # a second of them the API closes
    (line,) = daemon.logged("drain deadline passed")
    assert line["running"] == 3
    settled = moves(tmp_path / "events", "JobSettled")
    assert sorted(one["state"] for one in settled) == ["available"] * 3 + ["completed"] * 2
    assert len({one["job_id"] for one in settled}) == 5

    left = "SELECT e.id, n.status FROM node_runs n JOIN executions e ON e.seq = n.execution"
    assert dict(stored(daemon, f"{left} WHERE n.key = 'call' AND n.status <> 'completed'")) == {
        reading: "pending", keyed: "pending", unsafe: "uncertain",
    }  # fmt: skip

    endless.is_open.set()
    daemon.start()
    assert daemon.until(reading)["status"] == "completed"
    assert daemon.until(keyed)["status"] == "completed"
    assert daemon.until(unsafe)["status"] == "uncertain"
    assert endless.hits == {("/reading", reading): 2, ("/keyed", keyed): 2, ("/unsafe", unsafe): 1}
    assert len(endless.keys[keyed]) == 1
    for one, notes in ((longer, []), (reading, ["job.interrupted"]), (keyed, ["job.interrupted"])):
        assert [note["code"] for note in daemon.api.get(f"/api/why/{one}")["notes"]] == notes


def test_leases_shorter_than_the_drain_beat_to_its_end_and_nobody_takes_what_runs(
    daemons: Daemons, tmp_path: Path, endless: FarSide
) -> None:
    brief = {"EXECUTION_LOCK_DURATION_MS": str(int(LEASE * 1000))}
    stack = daemons(**brief, RECORD=str(tmp_path / "stack"))
    other = daemons(**brief, RECORD=str(tmp_path / "other"))
    stack.start()
    execution_id = begin(stack, endless, "held")
    other.spawn("worker")
    eventually(
        "the other is there",
        lambda: other.pid in [line["pid"] for line in other.logged("ready")],  # they share a log
    )

    def leased_until() -> float:
        ((until,),) = stored(stack, "SELECT leased_until FROM jobs WHERE state = 'running'")
        return float(until)

    ask_to_stop(stack)
    asked_at = leased_until()
    eventually("the lease beats on", lambda: leased_until() > asked_at + 3 * LEASE)
    endless.is_open.set()

    assert stack.wait() == 0
    assert status(stack, execution_id) == "completed"
    assert other.terminate() == 0
    assert stored(stack, "SELECT max(fence), max(rescues) FROM jobs") == [(1, 0)]
    both = [tmp_path / "stack", tmp_path / "other"]
    assert [one["state"] for file in both for one in moves(file, "JobSettled")] == ["completed"]
    assert [one for file in both for one in moves(file, "JobRescued")] == []
    assert endless.hits == {("/held", execution_id): 1}


def test_streams_end_with_word_when_to_come_back_and_half_an_upload_holds_up_nothing(
    daemons: Daemons,
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(DELIVERY)
    listen = f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.token}\r\n\r\n"
    upload = b"POST /api/webhooks/hooked HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        streams = [connect(daemon, stack, listen.encode()) for _ in range(20)]
        for stream in streams:
            until(stream, b": stackd\n\n")
        sender = connect(daemon, stack, upload)
        assert daemon.http("GET", "/livez").status == 200  # so the one before was taken up too

        began = time.monotonic()
        os.kill(daemon.pid, signal.SIGTERM)
        ends = [until(stream, b"0\r\n\r\n") for stream in streams]
        with contextlib.suppress(ConnectionResetError):
            assert b" 202 " not in sender.recv(65536)
        code = daemon.wait()

    assert code == 0
    assert time.monotonic() - began < 5
    for end in ends:
        assert end.endswith(b"retry: 1000\n\n\r\n0\r\n\r\n")
    assert not daemon.unforeseen()


def connect(daemon: DaemonProcess, stack: contextlib.ExitStack, sent: bytes) -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
    client.sendall(sent)
    return client


def until(client: socket.socket, end: bytes) -> bytes:
    """What comes, up to `end`."""
    got = b""
    while end not in got:
        more = client.recv(65536)
        assert more, f"closed after {got!r}"
        got += more
    return got


@pytest.mark.parametrize("how", ["sleeps", "matches"])
def test_a_loop_that_is_held_up_in_a_drain_ends_the_process_and_the_next_start_goes_on(
    daemons: Daemons, endless: FarSide, how: str
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY, PLATFORM_NETWORK_ALLOWLIST_IP_RANGES="127.0.0.0/8")
    daemon.entry = (str(HELD_UP), how, "draining", "END_AFTER=1")
    daemon.start()
    execution_id = begin(daemon, endless, "held")

    os.kill(daemon.pid, signal.SIGTERM)
    code = daemon.wait()

    assert code == 1
    said = daemon.log.read_text()
    assert "Timeout (0:00:01)!" in said
    assert f"in {how}\n" in said
    endless.is_open.set()
    daemon.start()
    assert daemon.until(execution_id)["status"] == "completed"
    assert daemon.terminate() == 0
