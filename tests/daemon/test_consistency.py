"""A file that was damaged, in the hands of the real daemon; `queue check` and `queue repair` at the command line."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from support.cli import Command
from support.daemon import DaemonProcess, eventually

Daemons = Callable[..., DaemonProcess]

QUICK = """
id: quick
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: end, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: start, to: end}]
"""
NAP = """
id: nap
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: nap, type: action.time.delay, params: {delaySeconds: 2}}
edges: [{from: start, to: nap}]
"""
LONG_NAP = NAP.replace("id: nap\nnodes", "id: long-nap\nnodes").replace("2}", "3600}")


def damage(daemon: DaemonProcess, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(daemon.state / "stackd.db", timeout=10)) as raw, raw:
        assert raw.execute(statement, values).rowcount > 0


def of(table: str, column: str) -> str:
    return f"{table} WHERE {column} = (SELECT seq FROM executions WHERE id = ?)"


@pytest.fixture
def quiet(daemons: Daemons) -> DaemonProcess:
    """A stack that has just looked through its store: for the next minute it does not do so by itself."""
    daemon = daemons()
    daemon.start()
    for text in (QUICK, NAP, LONG_NAP):
        daemon.load(text)
    return daemon


def test_what_was_damaged_while_no_daemon_ran_is_mended_when_one_starts(
    quiet: DaemonProcess,
) -> None:
    napping, late = quiet.begin("nap"), quiet.begin("long-nap")
    quiet.until(napping, "waiting")
    quiet.until(late, "waiting")
    quiet.api.post("/api/queue/pause")
    queued = quiet.begin("quick")
    quiet.kill()
    damage(quiet, f"DELETE FROM {of('jobs', 'subject')}", queued)
    damage(quiet, f"DELETE FROM {of('timers', 'execution')}", napping)
    damage(quiet, "UPDATE executions SET cancel_requested = 1 WHERE id = ?", late)

    quiet.start()
    quiet.api.post("/api/queue/resume")

    quiet.until(queued, "completed")
    quiet.until(napping, "completed")
    quiet.until(late, "cancelled")
    mended = {line["code"]: line["ids"] for line in quiet.logged("consistency repaired")}
    assert mended == {
        "queue.without_job": [queued],
        "queue.wait_endless": [f"{napping}:nap"],
        "queue.cancel_unheard": [late],
    }
    assert quiet.terminate() == 0


def test_what_nobody_can_mend_is_logged_and_keeps_it_from_being_called_ready(
    quiet: DaemonProcess,
) -> None:
    quiet.api.post("/api/queue/pause")
    queued = quiet.begin("quick")
    quiet.kill()
    damage(quiet, f"UPDATE jobs SET rescues = 99 WHERE id IN (SELECT id FROM {of('jobs', 'subject')})", queued)  # fmt: skip

    quiet.spawn()

    (told,) = eventually("it is told", lambda: quiet.logged("does not fit together"))
    assert (told["code"], told["count"], told["level"]) == ("queue.odd_counts", 1, "warning")
    eventually("it listens", lambda: len(quiet.logged("ready")) == 2)  # in its second life
    ready = quiet.http("GET", "/readyz?verbose", authorized=False)
    assert ready.status == 503
    failing = [name for name, check in ready.json["checks"].items() if check["status"] == "fail"]
    assert failing == ["queue.consistency"]
    assert "queue.odd_counts (1)" in ready.json["checks"]["queue.consistency"]["reason"]
    assert quiet.http("GET", "/livez", authorized=False).status == 200
    assert quiet.terminate() == 0


def test_a_sound_store_is_told_in_a_line(quiet: DaemonProcess, command: Command) -> None:
    ran = command("queue", "check", STACKD_STATE_DIR=str(quiet.state))
    as_json = command("queue", "repair", "--json", STACKD_STATE_DIR=str(quiet.state))

    assert (ran.code, ran.out, ran.err) == (0, "all fits together\n", "")
    view = as_json.json
    assert as_json.code == 0
    assert (view["sound"], view["findings"], view["repaired"], view["dryRun"]) == (True, [], [], False)  # fmt: skip


def test_check_tells_what_is_wrong_and_repair_mends_it(
    quiet: DaemonProcess, command: Command
) -> None:
    def stackd(*words: str):
        return command(*words, STACKD_STATE_DIR=str(quiet.state))

    quiet.api.post("/api/queue/pause")
    ids = [quiet.begin("quick") for _ in range(5)]
    for one in ids:
        damage(quiet, f"DELETE FROM {of('jobs', 'subject')}", one)

    told, as_json = stackd("queue", "check"), stackd("queue", "check", "--json")
    tried = stackd("queue", "repair", "--dry-run")
    after = stackd("queue", "check", "--json")
    mended, sound = stackd("queue", "repair"), stackd("queue", "check")

    assert (told.code, as_json.code, tried.code, after.code) == (1, 1, 1, 1)
    about = "an execution is queued or running, and no job will run it"
    shown = f"{ids[0]}, {ids[1]}, {ids[2]} and 2 more"
    lines = f"queue.without_job: {about}\n  5, mended by itself: {shown}\n"
    assert told.out == tried.out == lines
    assert "README, Queue consistency" in told.err
    (found,) = as_json.json["findings"]
    assert found == {
        "code": "queue.without_job", "about": about, "count": 5, "ids": ids, "repair": "itself",
    }  # fmt: skip
    assert after.json["findings"] == as_json.json["findings"]
    assert (mended.code, mended.out) == (0, "mended queue.without_job: 5\nall fits together\n")
    assert sound.code == 0
    quiet.api.post("/api/queue/resume")
    for one in ids:
        quiet.until(one, "completed")
    assert quiet.terminate() == 0


def test_a_repair_says_whether_it_shall_only_look(quiet: DaemonProcess) -> None:
    answers = [
        quiet.http("POST", "/api/queue/repair", body)
        for body in ({"dryRun": "yes"}, {"dryrun": True}, {"dryRun": True}, None)
    ]

    assert [answer.status for answer in answers] == [422, 422, 200, 200]
    assert answers[0].json["code"] == "input.dry_run"
    assert [answer.json["dryRun"] for answer in answers[2:]] == [True, False]


def test_processes_that_resolved_something_else_are_both_named(
    quiet: DaemonProcess, daemons: Daemons
) -> None:
    worker = daemons(quiet.state, EXECUTION_LOCK_DURATION_MS="30000")
    worker.spawn("worker")

    def told() -> list[str]:
        found = quiet.api.get("/api/queue/check")["findings"]
        return [text for one in found if one["code"] == "queue.roles_differ" for text in one["ids"]]

    assert eventually("it is told", told) == [
        f"EXECUTION_LOCK_DURATION_MS: stack (pid {quiet.pid}) has 60000, "
        f"worker (pid {worker.pid}) has 30000"
    ]
    worker.terminate()
    assert not told()
    assert quiet.terminate() == 0


def test_another_path_to_the_same_directory_is_no_difference(
    quiet: DaemonProcess, daemons: Daemons
) -> None:
    link = quiet.state.with_name("link")
    link.symlink_to(quiet.state.name)
    worker = daemons(link)
    worker.spawn("worker")

    eventually("it is there", lambda: len(quiet.api.get("/api/queue")["processes"]) == 2)
    assert quiet.api.get("/api/queue/check")["findings"] == []
    assert worker.terminate() == 0


def test_after_a_kill_the_file_is_looked_through_and_after_a_clean_end_it_is_not(
    quiet: DaemonProcess,
) -> None:
    assert quiet.terminate() == 0
    quiet.start()
    assert not quiet.logged("the store is whole")
    quiet.kill()

    quiet.start()

    eventually("it is told", lambda: quiet.logged("the store is whole"))
    found = quiet.api.get("/readyz", verbose="1")["checks"]["store.integrity"]
    assert (found["status"], found["reason"]) == ("pass", None)
    assert found["ageSeconds"] > 0
    for _ in range(2):
        assert quiet.terminate() == 0
        quiet.start()
    assert quiet.terminate() == 0
    assert len(quiet.logged("the store is whole")) == 1


def test_a_damaged_page_that_nothing_has_read_yet_keeps_it_from_being_called_ready(
    quiet: DaemonProcess, command: Command
) -> None:
    assert quiet.terminate() == 0  # all of it is in the file then, nothing in its log
    with closing(sqlite3.connect(quiet.state / "stackd.db")) as raw:
        find = "SELECT rootpage FROM sqlite_schema WHERE name = 'tokens'"
        (page,) = raw.execute(find).fetchone()
    with (quiet.state / "stackd.db").open("r+b") as broken:
        broken.seek((page - 1) * 4096)
        broken.write(b"\xa5" * 4096)
    quiet.start()
    quiet.kill()

    quiet.spawn()

    (told,) = eventually("it is told", lambda: quiet.logged("the store is damaged"))
    assert told["level"] == "error"
    assert told["hint"].startswith("restore a backup")
    eventually("it listens", lambda: len(quiet.logged("ready")) == 3)  # in its third life
    ready = quiet.http("GET", "/readyz?verbose", authorized=False)
    reason = ready.json["checks"]["store.integrity"]["reason"]
    assert ready.status == 503
    assert reason.startswith("SQLite finds the file damaged: ")
    assert quiet.http("GET", "/livez", authorized=False).status == 200
    checked = command("queue", "check", STACKD_STATE_DIR=str(quiet.state))
    assert checked.code == 1
    assert checked.out.startswith("store.damaged: SQLite finds the file damaged: restore a backup")
    assert told["problems"][0] in checked.out
    assert quiet.terminate() == 0
