"""What a service manager hears of a real daemon: when it is ready, how it is, that it lives, and of its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon import DaemonProcess, FarSide, locked
from support.manager import Manager, listening

Daemons = Callable[..., DaemonProcess]

HELD = """
id: held
nodes:
  - {id: start, type: trigger.time.manual, params: {}}
  - {id: get, type: action.http.request, params: {url: "URL/held"}}
edges: [{from: start, to: get}]
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening(tmp_path / "notify") as heard:
        yield heard


def test_ready_is_told_once_the_daemon_is_and_at_its_end_that_it_stops(
    daemons: Daemons, manager: Manager
) -> None:
    daemon = daemons(NOTIFY_SOCKET=manager.address)
    daemon.spawn()

    manager.until("READY")
    assert daemon.api.get("/readyz", verbose="1")["status"] == "pass"
    manager.until("STATUS", value="ready: 5 services; queue 0")
    assert daemon.terminate() == 0

    assert manager.told("READY") == ["1"]
    assert manager.told("STOPPING") == ["1"]
    assert manager.told("STATUS")[-1] == "draining: 0 running"
    assert not daemon.unforeseen()


def test_while_the_store_opens_it_lives_is_not_ready_and_asks_for_time(
    daemons: Daemons, manager: Manager
) -> None:
    daemon = daemons(NOTIFY_SOCKET=manager.address, STACKD_STORE_BUSY_SECONDS="30")
    daemon.start()
    daemon.kill()
    with locked(daemon.state / "stackd.db"):
        daemon.spawn()
        manager.until("STATUS", value="starting: the store is being opened")
        manager.until("EXTEND_TIMEOUT_USEC")

        live = daemon.http("GET", "/livez", authorized=False)
        ready = daemon.http("GET", "/readyz?verbose", authorized=False)
        taken = daemon.http("POST", "/api/webhooks/hooked", {}, authorized=False)

    assert live.status == 200
    assert (ready.status, ready.json["checks"]["store.open"]["status"]) == (503, "fail")
    assert (taken.status, taken.code) == (503, "starting")
    assert int(taken.headers["retry-after"]) >= 1
    manager.until("READY", count=2)
    daemon.until_ready()
    assert not daemon.unforeseen()


def test_what_keeps_it_from_starting_is_told_before_it_ends(
    daemons: Daemons, manager: Manager
) -> None:
    daemons().start()
    second = daemons(NOTIFY_SOCKET=manager.address)
    second.spawn()

    assert second.wait() == 78
    assert manager.told("STATUS")[-1].startswith("cannot go on: role api already runs")
    assert manager.told("READY") == []


def test_the_watchdog_hears_the_loop_while_it_turns(daemons: Daemons, manager: Manager) -> None:
    daemon = daemons(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
    daemon.spawn()
    manager.until("READY")

    manager.until("WATCHDOG", count=len(manager.told("WATCHDOG")) + 3)
    os.kill(daemon.pid, signal.SIGSTOP)
    manager.hear()
    heard = len(manager.told("WATCHDOG"))
    os.kill(daemon.pid, signal.SIGCONT)
    manager.until("WATCHDOG", count=heard + 1)

    assert set(manager.told("WATCHDOG")) == {"1"}


def test_a_watchdog_that_is_meant_for_another_process_hears_nothing(
    daemons: Daemons, manager: Manager
) -> None:
    daemon = daemons(
        NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000", WATCHDOG_PID=str(os.getpid())
    )
    daemon.spawn()
    manager.until("READY")

    assert daemon.terminate() == 0
    assert manager.told("WATCHDOG") == []


def test_a_drain_tells_what_runs_and_asks_for_the_time_that_it_may_take(
    daemons: Daemons, manager: Manager, far_side: FarSide
) -> None:
    daemon = daemons(NOTIFY_SOCKET=manager.address)
    daemon.start()
    daemon.load(HELD.replace("URL", far_side.url))
    far_side.is_open.clear()
    try:
        daemon.begin("held")
        far_side.arrived("/held")
        os.kill(daemon.pid, signal.SIGTERM)

        manager.until("STOPPING")
        manager.until("STATUS", value="draining: 1 running")
        manager.until("EXTEND_TIMEOUT_USEC", count=2)
    finally:
        far_side.is_open.set()
    assert daemon.wait() == 0
