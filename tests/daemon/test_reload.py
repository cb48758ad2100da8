"""Settings that change while a daemon runs: what applies at once, what waits for a restart, what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cli import Command, Ran
from support.daemon import DaemonProcess, FarSide, eventually
from support.manager import Manager, listening

Daemons = Callable[..., DaemonProcess]

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OPEN = 'PLATFORM_NETWORK_ALLOWLIST_IP_RANGES = ["127.0.0.0/8"]\n'
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: call, type: action.http.request, params: {url: "URL/called"}}
edges: [{from: start, to: call}]
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening(tmp_path / "notify") as heard:
        yield heard


@pytest.fixture
def daemon(daemons: Daemons, manager: Manager) -> DaemonProcess:
    """In production, with a config file that opens loopback, and heard by `manager`."""
    made = daemons(ENCRYPTION_MASTER_KEY=KEY, NOTIFY_SOCKET=manager.address)
    made.entry = ("-m", "stackd", "start")
    made.state.mkdir(mode=0o700)
    write(made, OPEN)
    made.start()
    return made


@pytest.fixture
def reload(daemon: DaemonProcess, command: Command) -> Callable[..., Ran]:
    return lambda *words: command("config", "reload", *words, STACKD_STATE_DIR=str(daemon.state))


def write(daemon: DaemonProcess, text: str) -> None:
    (daemon.state / "stackd.toml").write_text(text)


def outcome(daemon: DaemonProcess) -> str:
    """How an execution that calls the far side ends: `completed`, or the code of its error."""
    view = daemon.until(daemon.begin("calling"))
    return str(view["error"]["code"] if view["error"] else view["status"])


def setting(daemon: DaemonProcess, name: str) -> tuple[object, str]:
    rows = daemon.api.get("/api/config")["settings"]
    return next((row["value"], row["source"]) for row in rows if row["name"] == name)


def test_a_host_that_a_reload_denies_is_refused_from_the_next_request_on_and_back(
    daemon: DaemonProcess, reload: Callable[..., Ran], far_side: FarSide
) -> None:
    daemon.load(CALLING.replace("URL", far_side.url))
    assert outcome(daemon) == "completed"

    write(daemon, OPEN + 'PLATFORM_NETWORK_DENYLIST_DOMAINS = ["127.0.0.1"]\n')
    ran = reload()
    assert (ran.code, ran.out) == (0, "PLATFORM_NETWORK_DENYLIST_DOMAINS: (nothing) → 127.0.0.1\n")
    assert outcome(daemon) == "egress.denied"

    write(daemon, OPEN)
    assert reload().code == 0
    assert outcome(daemon) == "completed"
    write(daemon, "")
    assert reload().code == 0
    assert outcome(daemon) == "egress.denied"


def test_the_log_level_changes_at_once_and_is_told_with_its_source(
    daemon: DaemonProcess, reload: Callable[..., Ran], far_side: FarSide
) -> None:
    daemon.load(CALLING.replace("URL", far_side.url))
    outcome(daemon)
    assert not daemon.logged("job enqueued")

    write(daemon, OPEN + 'STACKD_LOG_LEVEL = "debug"\n')
    assert reload().out == "STACKD_LOG_LEVEL: info → debug\n"
    assert setting(daemon, "STACKD_LOG_LEVEL") == ("debug", str(daemon.state / "stackd.toml"))
    outcome(daemon)
    eventually("events are logged", lambda: daemon.logged("job enqueued"))

    write(daemon, OPEN)
    assert reload().out == "STACKD_LOG_LEVEL: debug → info\n"
    assert setting(daemon, "STACKD_LOG_LEVEL") == ("info", "default")
    outcome(daemon)
    since = daemon.log.read_text().rpartition('"settings reloaded"')[2]
    assert '"job enqueued"' not in since
    assert reload().out == "nothing has changed\n"


def test_what_takes_a_restart_and_what_the_environment_pins_is_told_and_does_not_change(
    daemon: DaemonProcess, reload: Callable[..., Ran], manager: Manager
) -> None:
    write(daemon, OPEN + 'PORT = 1\nSTACKD_DRAIN_SECONDS = 60\nSTACKD_LOG_LEVEL = "error"\n')
    ran = reload("--json")

    assert ran.json == {
        "changed": [{"name": "STACKD_LOG_LEVEL", "before": "info", "after": "error"}],
        "needsRestart": [{"name": "STACKD_DRAIN_SECONDS", "before": 30, "after": 60}],
        "overruled": [{"name": "PORT", "source": "environment"}],
        "warnings": [],
    }
    assert setting(daemon, "STACKD_DRAIN_SECONDS")[0] == 30
    said = reload().out.splitlines()
    assert "STACKD_DRAIN_SECONDS: restart the daemon to apply 30 → 60" in said
    assert "PORT: what the config file says has no effect: environment wins" in said
    assert manager.told("STATUS")[-1].endswith("; restart to apply STACKD_DRAIN_SECONDS")


BAD = 'STACKD_LOG_LEVEL = "loud"\nSTACKD_DRAIN_SECOND = 5\nPLATFORM_NETWORK_DENYLIST_DOMAINS = ["a b"]\n'


def test_a_file_that_cannot_be_used_changes_nothing_and_all_that_is_wrong_is_told(
    daemon: DaemonProcess, reload: Callable[..., Ran], manager: Manager, far_side: FarSide
) -> None:
    daemon.load(CALLING.replace("URL", far_side.url))
    before = daemon.api.get("/api/config")
    write(daemon, BAD)

    ran = reload()

    assert (ran.code, ran.out) == (2, "")
    told = ran.err.splitlines()
    assert told[0] == "error: the settings cannot be used; those from before stay"
    assert len(told) == 4
    for name in ("STACKD_LOG_LEVEL", "STACKD_DRAIN_SECOND ", "PLATFORM_NETWORK_DENYLIST_DOMAINS"):
        assert any(line.startswith(f"problem: {name}") for line in told), told
    assert daemon.api.get("/api/config") == before
    assert outcome(daemon) == "completed"  # loopback is still open
    said = "; settings not reloaded, they cannot be used"
    assert manager.told("STATUS")[-1].endswith(said)
    write(daemon, OPEN)
    assert reload().code == 0
    assert said not in manager.told("STATUS")[-1]


def test_a_file_that_cannot_be_read_to_its_end_changes_nothing_and_holds_up_no_later_reload_and_no_end(
    daemon: DaemonProcess, reload: Callable[..., Ran], manager: Manager
) -> None:
    manager.until("READY")
    file = daemon.state / "stackd.toml"
    file.unlink()
    os.mkfifo(file)  # which nobody writes to

    answer = daemon.api.request("POST", "/api/config/reload", allow=frozenset({422}))

    assert answer.status == 422
    assert answer.body["problems"] == ["the settings could not be read within 5 s"]
    said = "; settings not reloaded, they cannot be used"
    manager.until("READY", count=2)
    assert manager.told("STATUS")[-1].endswith(said)
    assert manager.told("RELOADING") == ["1"]
    file.unlink()
    write(daemon, OPEN)
    assert reload().code == 0
    assert daemon.terminate() == 0


@pytest.mark.parametrize("text", [OPEN, BAD], ids=["good", "bad"])
@pytest.mark.parametrize("way", ["SIGHUP", "command"])
def test_the_service_manager_hears_that_each_reload_is_over_whatever_came_of_it(
    daemon: DaemonProcess, reload: Callable[..., Ran], manager: Manager, way: str, text: str
) -> None:
    manager.until("READY")
    manager.hear().clear()
    write(daemon, text)

    for count in (1, 2, 3):
        if way == "SIGHUP":
            os.kill(daemon.pid, signal.SIGHUP)
        else:
            reload()
        manager.until("READY", count=count)

    words = [next(iter(m)) for m in manager.hear() if {"READY", "RELOADING"} & m.keys()]
    assert words == ["RELOADING", "READY"] * 3
    said = "settings reloaded" if text is OPEN else "settings not reloaded"
    eventually("the log has each", lambda: len(daemon.logged(said)) == 3)
    assert daemon.is_running


def test_only_an_admin_may_reload(daemon: DaemonProcess) -> None:
    token = daemon.api.post("/api/tokens", {"name": "writer", "scopes": ["write"]})["token"]

    refused = daemon.http("POST", "/api/config/reload", Authorization=f"Bearer {token}")

    assert (refused.status, refused.code) == (403, "auth.scope")
    assert not daemon.logged("settings reloaded")
