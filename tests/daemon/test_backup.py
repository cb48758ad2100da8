"""`stackd backup` beside a daemon under load, `stackd restore`, and what a restored store goes on with."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Command
from support.daemon import ENVIRON, DaemonProcess, FarSide, eventually

Daemons = Callable[..., DaemonProcess]
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"  # a restored store starts with no other
HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
  - {id: out, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: hook, to: out}]
"""
FLOWING = """
id: flowing
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: first, type: action.http.request, effect: keyed, params: {method: POST, url: "FAR/first", headers: {x-execution: "{{ execution.id }}"}}}
  - {id: nap, type: action.time.delay, params: {delaySeconds: 2}}
  - {id: last, type: action.http.request, effect: EFFECT, params: {method: POST, url: "FAR/last", headers: {x-execution: "{{ execution.id }}"}}}
edges: [{from: start, to: first}, {from: first, to: nap}, {from: nap, to: last}]
"""


def here(command: Command, daemon: DaemonProcess) -> Command:
    return lambda *words: command(*words, STACKD_STATE_DIR=str(daemon.state))


def ids_in(database: Path) -> set[str]:
    raw = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        return {row[0] for row in raw.execute("SELECT id FROM executions")}
    finally:
        raw.close()


def test_a_backup_under_load_has_all_that_was_acknowledged_before_and_holds_up_nobody(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY)
    daemon.start()
    daemon.load(HOOKED)
    acknowledged: list[str] = []
    over = threading.Event()

    def deliver() -> None:
        while not over.is_set():
            answer = daemon.deliver("hooked", {"n": 1})
            assert answer.status == 202, answer.text
            acknowledged.append(answer.json["executionId"])

    senders = [threading.Thread(target=deliver) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        for number in range(3):
            eventually("some were taken", lambda: len(acknowledged) > 50)
            before = set(acknowledged)
            file = tmp_path / f"saved{number}.tar"
            ran = here(command, daemon)("backup", str(file), "--json")
            assert ran.json["blobs"] == 0
            enough = len(acknowledged) + 50
            eventually("they go on", lambda: len(acknowledged) > enough)  # noqa: B023

            state = tmp_path / f"restored{number}"
            assert command("restore", str(file), "--verify").code == 0
            assert command("restore", str(file), "--state", str(state)).code == 0
            assert ids_in(state / "stackd.db") >= before
    finally:
        over.set()
        for sender in senders:
            sender.join()

    restored = daemons(state, ENCRYPTION_MASTER_KEY=KEY)
    restored.start()
    assert restored.terminate() == 0
    assert not restored.unforeseen()
    assert daemon.terminate() == 0


@pytest.mark.parametrize(("effect", "end"), [("keyed", "completed"), ("unsafe", "uncertain")])
def test_what_was_in_flight_comes_back_by_its_usual_rule(
    daemons: Daemons, command: Command, tmp_path: Path, far_side: FarSide, effect: str, end: str
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY)
    daemon.start()
    daemon.load(FLOWING.replace("FAR", far_side.url).replace("EFFECT", effect))
    napping = daemon.begin("flowing")
    daemon.until(napping, "waiting")
    file = str(tmp_path / "saved.tar")
    assert here(command, daemon)("backup", file).code == 0
    far_side.is_open.clear()
    try:
        eventually("it is sent", lambda: far_side.hits["/last", napping])
        assert here(command, daemon)("backup", file, "--force").code == 0
        daemon.kill()
    finally:
        far_side.is_open.set()

    restored = daemons(tmp_path / "restored", ENCRYPTION_MASTER_KEY=KEY)
    assert command("restore", file, "--state", str(restored.state)).code == 0
    restored.start()

    assert restored.until(napping)["status"] == end
    assert far_side.hits["/first", napping] == 1
    assert far_side.hits["/last", napping] == (2 if effect == "keyed" else 1)
    assert restored.terminate() == 0


def test_a_restore_is_refused_while_a_daemon_runs_and_then_keeps_what_was_there(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons()
    stackd = here(command, daemon)
    daemon.start()
    daemon.load(HOOKED)
    file = str(tmp_path / "saved.tar")
    assert stackd("backup", file).out.startswith(f"{file} holds the store of ")
    assert stackd("backup", file).code == 2
    assert stackd("backup", file, "--force").code == 0
    daemon.deliver("hooked", {})

    refused = stackd("restore", file, "--force")
    assert refused.code == 1
    assert f"pid {daemon.pid}" in refused.err
    daemon.kill()
    assert stackd("restore", file).code == 2
    restored = stackd("restore", file, "--force", "--json")

    assert restored.code == 0
    assert len(ids_in(Path(restored.json["before"]))) == 1
    assert ids_in(daemon.state / "stackd.db") == set()
    daemon.start()
    assert daemon.deliver("hooked", {}).status == 202
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


def test_a_backup_without_a_daemon_is_taken_from_the_file(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HOOKED)
    execution_id = daemon.deliver("hooked", {}).json["executionId"]
    daemon.kill()

    assert here(command, daemon)("backup", str(tmp_path / "saved.tar")).code == 0
    state = tmp_path / "restored"
    assert command("restore", str(tmp_path / "saved.tar"), "--state", str(state)).code == 0
    assert ids_in(state / "stackd.db") == {execution_id}
    daemon.start()
    assert daemon.terminate() == 0


def test_a_daemon_says_where_its_store_is(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    daemon = daemons(STACKD_DATABASE_URL=f"sqlite:///{folder}/other.db")
    daemon.start()
    daemon.load(HOOKED)

    assert here(command, daemon)("backup", str(tmp_path / "saved.tar")).code == 0
    assert not (daemon.state / "stackd.db").exists()
    assert daemon.terminate() == 0


def test_what_cannot_be_is_told(command: Command, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(os.urandom(10_000))
    state = str(tmp_path / "none")

    assert command("restore", str(garbage), "--verify").code == 1
    assert command("restore", str(garbage), "--state", state).code == 1
    assert command("restore", str(tmp_path / "nothing.tar"), "--verify").code == 2
    assert command("backup", str(tmp_path / "x.tar"), STACKD_STATE_DIR=state).code == 2
    remote = command("backup", str(tmp_path / "x.tar"), STACKD_URL="http://127.0.0.1:1")
    assert remote.code == 2
    assert "unset STACKD_URL" in remote.err
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.crash
def test_a_backup_that_is_killed_harms_neither_the_daemon_nor_the_next_one(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HOOKED)
    daemon.terminate()
    raw = sqlite3.connect(daemon.state / "stackd.db", isolation_level=None)
    raw.execute("CREATE TABLE ballast (x)")
    raw.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)"
        " INSERT INTO ballast SELECT randomblob(3000) FROM n"
    )
    raw.close()
    daemon.start()
    target = tmp_path / "backups" / "saved.tar"
    target.parent.mkdir()
    partial = target.with_name("saved.tar.partial")
    words = [sys.executable, "-m", "stackd", "backup", str(target)]
    environ = ENVIRON | {"STACKD_STATE_DIR": str(daemon.state)}
    for size in (1, 50_000_000, 100_000_000):
        with subprocess.Popen(words, env=environ) as process:
            copy = partial.with_name("saved.tar.partial.db")
            eventually("it writes", lambda: copy.exists() and copy.stat().st_size > size)  # noqa: B023
            process.send_signal(signal.SIGKILL)
        assert not target.exists()
        assert daemon.deliver("hooked", {}).status == 202

    assert here(command, daemon)("backup", str(target)).code == 0
    assert {path.name for path in target.parent.iterdir()} == {"saved.tar"}
    assert command("restore", str(target), "--verify").code == 0
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()
