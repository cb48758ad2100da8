"""The service as a real systemd runs it: installed by stackd, started, killed, hung, reloaded, restarted, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import held_up
from support.booted import PYTHON, Booted, CannotBootError, booted, hindrance
from support.daemon import eventually

from stackd.client.api import Api
from stackd.core.errors import NoAnswerError, UnreachableError

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.timeout(180),  # the first boots it
    pytest.mark.skipif(hindrance() is not None, reason=str(hindrance())),
]

SERVICE, SOCKET = "stackd.service", "stackd.socket"
LOOPBACK = 'PLATFORM_NETWORK_ALLOWLIST_IP_RANGES = ["127.0.0.0/8"]\n'

# Delivers over a connection each, one after the other, until its input ends; then prints what became of them.
STEADY = """
import http.client, json, sys, threading
told, trouble, over = 0, [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.is_set():
    connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=30)
    try:
        connection.request("POST", "/api/webhooks/hooked", b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 202:
            trouble.append(answer.status)
        told += 1
    except Exception as error:
        trouble.append(repr(error))
    finally:
        connection.close()
print(json.dumps({"told": told, "trouble": trouble}))
"""
# Asks once it is told to, says that it has, and then how it was answered.
KNOCK = """
import http.client
connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=30)
input()
connection.request("GET", "/livez")
print("asked", flush=True)
print(connection.getresponse().status)
"""
# Changes the store, which must have no symbolic link on its way: from outside it would.
CHANGE = """
import sqlite3, sys
raw = sqlite3.connect("/var/lib/stackd/stackd.db", isolation_level=None)
raw.execute(sys.argv[1])
raw.close()
"""
# Answers one request, after some seconds.
SLOW = """
import socket, sys, time
with socket.create_server(("127.0.0.1", 7000)) as door:
    print("listening", flush=True)
    client, _ = door.accept()
    client.recv(65536)
    time.sleep(float(sys.argv[1]))
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    client.close()
"""
HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
"""
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: call, type: action.http.request, params: {url: "http://127.0.0.1:7000/"}}
edges: [{from: start, to: call}]
"""
CODE = """
id: code
nodes:
  - {id: start, type: trigger.time.manual}
  - id: work
    type: action.code.run
    runtime: {code: "import os\\ndef run(params, context):\\n    return os.listdir('/')"}
edges: [{from: start, to: work}]
"""
PLAIN = """
id: plain
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: out, type: transform.data.set, params: {values: {n: 1}}}
edges: [{from: start, to: out}]
"""


class System:
    """A booted system on which stackd was installed."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine

    @property
    def api(self) -> Api:
        return Api(socket_path=self.machine.root / "var/lib/stackd/stackd.sock")

    def ctl(self, *words: str, check: bool = True) -> int:
        return self.machine.run("systemctl", *words, check=check).returncode

    def shown(self, name: str) -> str:
        return self.machine.shown(SERVICE, name)

    @property
    def pid(self) -> int:
        return int(self.shown("MainPID"))

    def signal(self, number: signal.Signals) -> None:
        self.machine.run("kill", f"-{number.name.removeprefix('SIG')}", str(self.pid))

    def again(self, pid: int) -> None:
        """Wait until another process than `pid` is active."""

        def look() -> bool:
            # One question: between two of them the old one may end, and the new one begin and not be ready yet.
            now = self.machine.at_once(SERVICE, "ActiveState", "MainPID")
            return now["ActiveState"] == "active" and int(now["MainPID"]) not in (0, pid)

        eventually("it is active again", look, within=30)

    def settings(self, text: str) -> None:
        folder = self.machine.root / "etc/stackd"
        folder.mkdir(exist_ok=True)
        (folder / "stackd.toml").write_text(text)

    @contextmanager
    def edited(self, text: str) -> Iterator[None]:
        """With what `systemctl edit` would have made of `text`, from the next start on."""
        dropin = self.machine.root / f"etc/systemd/system/{SERVICE}.d/test.conf"
        dropin.parent.mkdir(exist_ok=True)
        dropin.write_text(f"[Service]\n{text}\n")
        self.ctl("daemon-reload")
        try:
            yield
        finally:
            dropin.unlink()
            self.ctl("daemon-reload")

    @contextmanager
    def held_up(self, *words: str, edit: str) -> Iterator[None]:
        """With a daemon that runs, and is held up once as `held_up.py` has it; the unit edited beside that."""
        command = " ".join((PYTHON, "/opt/source/tests/support/held_up.py", *words, "stack"))
        (self.machine.root / "var/lib/stackd/held-up").unlink(missing_ok=True)
        libraries = "Environment=LD_LIBRARY_PATH=/opt/python/lib"
        with self.edited(f"{libraries}\nExecStart=\nExecStart={command}\n{edit}"):
            self.ctl("restart", SERVICE)
            yield

    def said(self, pid: int) -> list[tuple[float, str]]:
        """What the process `pid` has printed, each line with its second."""
        words = ("journalctl", "--no-pager", "--output=json", f"_PID={pid}")
        lines = [json.loads(line) for line in self.machine.run(*words).stdout.splitlines()]
        return [(int(line["__MONOTONIC_TIMESTAMP"]) / 1e6, line["MESSAGE"]) for line in lines]

    @contextmanager
    def script(self, text: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program that runs in it."""
        command = self.machine.command(
            "env", "LD_LIBRARY_PATH=/opt/python/lib", PYTHON, "-c", text, *words
        )
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as running:
            try:
                yield running
            finally:
                running.kill()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = tmp_path_factory.mktemp("systemd") / "place"
    place.mkdir()
    with ExitStack() as stack:
        try:
            machine = stack.enter_context(booted(place))
        except CannotBootError as error:
            pytest.skip(f"systemd cannot be booted here: {error}")
        ran = machine.stackd("systemd", "install", "--now")
        assert ran.stdout.splitlines()[-1] == f"started {SERVICE}"
        yield System(machine)


@pytest.fixture
def system(installed: System) -> System:
    """The service active, whatever the test before has left; restarts are counted anew."""
    installed.settings(LOOPBACK)
    installed.ctl("reset-failed", SERVICE, SOCKET, check=False)
    installed.ctl("start", SOCKET, check=False)
    installed.ctl("restart", SERVICE)
    assert installed.shown("NRestarts") == "0"
    return installed


def test_install_has_started_what_is_ready_and_a_second_one_changes_nothing(
    installed: System,
) -> None:
    assert installed.shown("StatusText").startswith("ready: 5 services")
    assert installed.machine.stackd("health").stdout == "healthy\n"  # commands of root find it
    status = (installed.machine.root / f"proc/{installed.pid}/status").read_text()
    owner = (installed.machine.root / "var/lib/stackd").stat().st_uid
    assert owner != 0
    assert f"\nUid:\t{owner}\t" in status
    assert installed.machine.stackd("systemd", "install", "--now").stdout == "nothing has changed\n"


def test_the_key_comes_as_a_credential(installed: System) -> None:
    rows = installed.api.get("/api/config")["settings"]
    (key,) = [row for row in rows if row["name"] == "ENCRYPTION_MASTER_KEY"]

    assert key["value"] == "(set)"
    assert key["source"] == f"/run/credentials/{SERVICE}/encryption_master_key"


def test_start_returns_once_it_is_ready(system: System) -> None:
    system.ctl("stop", SERVICE)
    system.ctl("start", "--no-block", SERVICE)

    seen = [system.shown("ActiveState")]
    while seen[-1] != "active":
        seen.append(system.shown("ActiveState"))

    assert system.api.get("/readyz", verbose="1")["status"] == "pass"
    assert "activating" in seen
    assert set(seen) <= {"inactive", "activating", "active"}  # the first until systemd takes it up


def test_after_a_kill_it_is_active_again_and_answers_who_has_connected_meanwhile(
    system: System,
) -> None:
    before = system.pid
    with system.script(KNOCK) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        system.signal(signal.SIGKILL)
        eventually("it is gone", lambda: system.shown("SubState") == "auto-restart")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "asked\n"
        assert system.shown("SubState") == "auto-restart"

        system.again(before)
        assert client.stdout.readline() == "200\n"
    assert system.shown("NRestarts") == "1"


def test_code_is_isolated_under_the_unit_without_root(system: System) -> None:
    checked: Any = eventually("the sandbox was tried", lambda: _sandbox(system))
    system.api.post("/api/workflows", CODE.encode(), activate="true")
    execution = system.api.post("/api/workflows/code/run", {"input": None})["executionId"]
    eventually("it is over", lambda: view(system, execution)["status"] == "completed")

    assert (checked["status"], checked["details"]["failed"]) == ("pass", {})
    assert checked["details"]["level"] >= 2
    assert not {"etc", "var", "proc", "home"} & set(view(system, execution)["output"])


def _sandbox(system: System) -> Any:
    found = system.api.get("/readyz", verbose="1")["checks"]["sandbox"]
    return found if found["details"]["level"] is not None else None


def test_stop_drains_and_is_a_success(system: System) -> None:
    system.ctl("stop", SERVICE)

    assert system.shown("Result") == "success"
    assert system.shown("ExecMainStatus") == "0"
    assert any(
        '"event": "stopped"' in line for line in system.machine.journal(SERVICE).splitlines()
    )


def test_a_drain_that_goes_on_gets_more_time_than_the_unit_gives(system: System) -> None:
    system.settings(LOOPBACK + "STACKD_DRAIN_SECONDS = 20\n")
    with system.edited("TimeoutStopSec=1s"), system.script(SLOW, "2.5") as far_side:
        assert far_side.stdout is not None
        assert far_side.stdout.readline() == "listening\n"
        system.ctl("restart", SERVICE)
        system.api.post("/api/workflows", CALLING.encode(), activate="true")
        execution = system.api.post("/api/workflows/calling/run", {"input": None})["executionId"]
        eventually("it runs", lambda: view(system, execution)["status"] == "running")

        began = time.monotonic()
        system.ctl("stop", SERVICE)

        assert time.monotonic() - began > 1.25
        assert system.shown("Result") == "success"
    system.ctl("start", SERVICE)
    assert view(system, execution)["status"] == "completed"


def view(system: System, execution: str) -> Any:
    return system.api.get(f"/api/executions/{execution}")


def test_settings_that_cannot_be_used_fail_the_unit_and_it_is_not_tried_again(
    system: System,
) -> None:
    system.settings("STACKD_LOG_LEVEL = 'loud'\n")

    assert system.ctl("restart", SERVICE, check=False) != 0

    assert system.shown("ActiveState") == "failed"
    assert system.shown("ExecMainStatus") == "78"
    assert system.shown("NRestarts") == "0"
    assert "STACKD_LOG_LEVEL='loud'" in system.machine.journal(SERVICE)


def test_a_store_of_a_newer_stackd_fails_the_unit_and_it_is_not_tried_again(
    system: System,
) -> None:
    system.ctl("stop", SERVICE)
    with changed(system, "INSERT INTO schema_migrations VALUES (999, 'later', 'sum', 0)"):
        assert system.ctl("start", SERVICE, check=False) != 0

        assert system.shown("ActiveState") == "failed"
        assert system.shown("ExecMainStatus") == "78"
        assert system.shown("NRestarts") == "0"
        assert "stackd.db has schema 999" in system.machine.journal(SERVICE)


@contextmanager
def changed(system: System, statement: str) -> Iterator[None]:
    """The store after `statement`, for the length of the block; no daemon has it open."""
    file = system.machine.root / "var/lib/stackd/stackd.db"
    kept = file.read_bytes()
    with system.script(CHANGE, statement) as change:
        assert change.wait(20) == 0
    try:
        yield
    finally:
        file.write_bytes(kept)


def test_a_second_one_on_the_same_state_fails_and_leaves_the_first_alone(system: System) -> None:
    units, first = system.machine.root / "etc/systemd/system", system.pid
    (units / "second.service").write_text((units / SERVICE).read_text())
    system.ctl("daemon-reload")

    assert system.ctl("start", "second.service", check=False) != 0

    second = {
        name: system.machine.shown("second.service", name)
        for name in ("ActiveState", "ExecMainStatus", "NRestarts")
    }
    assert second == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    said = f"role api already runs on /var/lib/stackd (pid {first})"
    assert said in system.machine.journal("second.service")
    assert (system.shown("ActiveState"), system.pid) == ("active", first)


def test_reload_applies_what_is_good_and_fails_on_what_is_bad(system: System) -> None:
    before = system.pid
    system.settings(LOOPBACK + 'STACKD_LOG_LEVEL = "debug"\n')
    assert system.ctl("reload", SERVICE) == 0
    assert level(system) == "debug"
    assert system.shown("ActiveState") == "active"

    system.settings("STACKD_LOG_LEVEL = 'loud'\n")
    assert system.ctl("reload", SERVICE, check=False) != 0
    assert level(system) == "debug"
    assert system.shown("ActiveState") == "active"
    assert system.shown("StatusText").endswith("settings not reloaded, they cannot be used")

    system.settings(LOOPBACK)
    assert system.ctl("reload", SERVICE) == 0
    assert (level(system), system.pid) == ("info", before)


def test_a_reload_that_has_to_wait_for_the_file_returns_once_it_is_read(system: System) -> None:
    with slow_settings(system) as file, ThreadPoolExecutor(1) as pool:
        reload = pool.submit(system.ctl, "reload", SERVICE, check=False)
        file.write_text("")  # for the command
        eventually("the daemon reads", lambda: system.shown("StatusText") == "reloading")
        assert system.api.get("/livez", verbose="1")["status"] == "pass"
        assert not reload.done()

        file.write_text(LOOPBACK + 'STACKD_LOG_LEVEL = "debug"\n')

        assert reload.result() == 0
        assert (system.shown("ActiveState"), level(system)) == ("active", "debug")


def test_a_reload_of_a_file_that_cannot_be_read_fails_in_time_and_is_over(system: System) -> None:
    with slow_settings(system) as file, ThreadPoolExecutor(1) as pool:
        reload = pool.submit(system.ctl, "reload", SERVICE, check=False)
        file.write_text("")  # for the command alone

        assert reload.result() != 0
        assert system.shown("ActiveState") == "active"
        assert system.shown("StatusText").endswith("settings not reloaded, they cannot be used")
        assert level(system) == "info"
    assert system.ctl("reload", SERVICE) == 0


@contextmanager
def slow_settings(system: System) -> Iterator[Path]:
    """The config file is a pipe: who reads it waits until somebody writes to it."""
    file = system.machine.root / "etc/stackd/stackd.toml"
    file.unlink()
    os.mkfifo(file, 0o644)
    file.chmod(0o644)
    try:
        yield file
    finally:
        file.unlink()
        system.settings(LOOPBACK)


def level(system: System) -> str:
    rows = system.api.get("/api/config")["settings"]
    return next(str(row["value"]) for row in rows if row["name"] == "STACKD_LOG_LEVEL")


def test_restarts_under_steady_deliveries_refuse_none(system: System) -> None:
    system.api.post("/api/workflows", HOOKED.encode(), activate="true")
    with system.script(STEADY) as steady:
        for _ in range(2):
            delivered(system)
            system.ctl("restart", SERVICE)
        delivered(system)
        told, _ = steady.communicate()

    outcome = json.loads(told)
    assert outcome["trouble"] == []
    assert outcome["told"] > 30


def delivered(system: System, more: int = 20) -> None:
    """Wait until so many more executions have ended."""

    def ended() -> int:
        try:
            text = system.api.request("GET", "/api/queue").body["counts"]
        except (UnreachableError, NoAnswerError):
            return 0
        return int(text["completed"])

    wanted = ended() + more
    eventually(f"{more} more deliveries", lambda: ended() >= wanted)


def test_one_that_hangs_is_killed_by_the_watchdog_and_active_again(system: System) -> None:
    with system.edited("WatchdogSec=1s\nTimeoutAbortSec=1s"):
        system.ctl("restart", SERVICE)
        before = system.pid
        system.signal(signal.SIGSTOP)

        eventually("it is ended", lambda: system.shown("SubState") == "auto-restart")
        assert system.shown("Result") == "watchdog"
        system.again(before)
        assert system.shown("NRestarts") == "1"


def test_a_loop_that_sleeps_is_told_of_twice_then_the_watchdog_ends_it_and_its_work_goes_on(
    system: System,
) -> None:
    quick = ("TELL_AFTER=0.5", "TELL_REGARDLESS_AFTER=2", "REARM_EVERY=0.25")
    with system.held_up("sleeps", "plain", *quick, edit="WatchdogSec=4s\nRestartSec=100ms"):
        before = system.pid
        begin_and_be_held_up(system)

        system.again(before)
        assert system.shown("NRestarts") == "1"
        its_work_is_done(system)

    told = told_while_held_up(system, before)
    (by_thread,) = seconds(told, "the event loop is held up")
    (by_timer,) = seconds(told, "Timeout (0:00:02)!")
    (at_its_end,) = seconds(told, "Fatal Python error: Aborted")
    assert 0.2 < by_thread < by_timer < at_its_end < 5.5
    assert by_timer > 1.4
    guilty = seconds(told, "in sleeps")
    assert guilty == pytest.approx([by_thread, by_timer, at_its_end], abs=0.5)


def test_a_loop_that_keeps_the_interpreter_is_told_of_by_the_timer_then_the_watchdog_ends_it(
    system: System,
) -> None:
    quick = ("TELL_AFTER=0.5", "TELL_REGARDLESS_AFTER=1", "REARM_EVERY=0.25")
    with system.held_up("matches", "plain", *quick, edit="WatchdogSec=2s\nRestartSec=100ms"):
        before = system.pid
        begin_and_be_held_up(system)

        system.again(before)
        assert system.shown("NRestarts") == "1"
        its_work_is_done(system)

    told = told_while_held_up(system, before)
    (by_timer,) = seconds(told, "Timeout (0:00:01)!")
    (at_its_end,) = seconds(told, "Fatal Python error: Aborted")
    assert seconds(told, "the event loop is held up") == []
    assert 0.7 < by_timer < at_its_end < 3
    assert seconds(told, "in matches") == pytest.approx([by_timer, at_its_end], abs=0.5)


def begin_and_be_held_up(system: System) -> None:
    """Let an execution begin at whose start the loop is held up."""
    system.api.post("/api/workflows", PLAIN.encode(), activate="true")
    with suppress(NoAnswerError):  # the answer may come too late to be sent
        system.api.post("/api/workflows/plain/run", {"input": None})


def its_work_is_done(system: System) -> None:
    def statuses() -> set[str]:
        found = system.api.get("/api/executions", workflowId="plain")["items"]
        return {str(one["status"]) for one in found}

    eventually("its work is done", lambda: statuses() == {"completed"})


def told_while_held_up(system: System, pid: int) -> list[tuple[float, str]]:
    """What the process `pid` has printed since its loop was held up, each line with the seconds since."""
    said = system.said(pid)
    (began,) = [at for at, line in said if held_up.HELD_UP in line]
    return [(at - began, line) for at, line in said if at > began]


def seconds(told: list[tuple[float, str]], text: str) -> list[float]:
    """When lines with `text` came."""
    return [at for at, line in told if text in line]


def test_a_loop_that_is_held_up_in_a_drain_is_ended_by_its_own_timer_as_no_watchdog_looks(
    system: System,
) -> None:
    with system.held_up("matches", "draining", "END_AFTER=3", edit="WatchdogSec=2s"):
        before = system.pid
        system.ctl("stop", SERVICE)

        assert system.shown("Result") == "exit-code"
        assert system.shown("ExecMainStatus") == "1"
        told = told_while_held_up(system, before)
        (by_timer,) = seconds(told, "Timeout (0:00:03)!")
        assert 2.5 < by_timer < 5
        assert seconds(told, "in matches") == pytest.approx([by_timer], abs=0.5)
        system.ctl("start", SERVICE)
    assert system.api.get("/readyz", verbose="1")["status"] == "pass"


def test_one_that_dies_again_and_again_is_given_up_after_six_starts_and_can_be_started_again(
    system: System,
) -> None:
    shipped = {"StartLimitBurst": "6", "StartLimitIntervalUSec": "10min", "RestartUSec": "2s"}
    assert {name: system.shown(name) for name in shipped} == shipped
    told = system.machine.root / "run/told"
    alarm = system.machine.root / "etc/systemd/system/alarm.service"
    alarm.write_text("[Service]\nType=oneshot\nExecStart=/bin/touch /run/told\n")
    with system.edited("RestartSec=100ms\n[Unit]\nOnFailure=alarm.service"):
        system.ctl("reset-failed", SERVICE)
        system.ctl("restart", SERVICE)  # the first start
        for _ in range(5):
            before = system.pid
            system.signal(signal.SIGKILL)
            system.again(before)
        assert not told.exists()
        system.signal(signal.SIGKILL)

        eventually("it is given up", lambda: system.shown("ActiveState") == "failed")
        assert "Start request repeated too quickly" in system.machine.journal(SERVICE)
        eventually("somebody is told", told.exists)
        with system.script(KNOCK) as client:  # which takes the socket with it
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
            eventually(
                "nobody listens", lambda: system.machine.shown(SOCKET, "ActiveState") == "failed"
            )
        system.ctl("reset-failed", SERVICE)
        system.ctl("start", SERVICE)
    assert system.api.get("/readyz", verbose="1")["status"] == "pass"
    with system.script(KNOCK) as client:
        assert client.communicate("\n")[0] == "asked\n200\n"


def test_one_that_stops_itself_is_not_started_again_until_somebody_connects(
    system: System,
) -> None:
    system.signal(signal.SIGTERM)
    eventually("it is over", lambda: system.shown("ActiveState") == "inactive")
    assert system.shown("Result") == "success"

    with system.script(STEADY) as steady:
        eventually("it is active again", lambda: system.shown("ActiveState") == "active")
        told, _ = steady.communicate()
    assert json.loads(told)["told"] > 0


def test_uninstall_stops_it_and_leaves_the_state(system: System) -> None:
    ran = system.machine.stackd("systemd", "uninstall")

    assert f"stopped {SERVICE}" in ran.stdout
    assert system.shown("LoadState") == "not-found"
    assert (system.machine.root / "var/lib/stackd/stackd.db").exists()
    again = system.machine.stackd("systemd", "uninstall", "--purge")
    assert again.stdout.splitlines() == [
        "removed /var/lib/stackd",
        "removed /etc/credstore/stackd.encryption_master_key",
    ]
