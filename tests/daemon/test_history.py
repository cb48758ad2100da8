"""`executions prune`, `workflows delete` and the bounds of the history, with a real daemon, also one that is killed."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import past
from support.cli import Command
from support.daemon import DaemonProcess, eventually

from stackd.core.errors import ApiError, NoAnswerError, UnreachableError
from stackd.store.connection import Tx

Daemons = Callable[..., DaemonProcess]
DAY = 86_400.0
MANY = 30_000
QUICK = """
id: quick
nodes:
  - {id: start, type: trigger.time.manual}
"""
WAITING = """
id: waiting
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: nap, type: action.time.delay, params: {delayHours: 9}}
edges: [{from: start, to: nap}]
"""


def fill(daemon: DaemonProcess, make: Callable[[Tx], Any]) -> Any:
    """Write into the store of a daemon that does not run."""
    raw = sqlite3.connect(daemon.state / "stackd.db", isolation_level=None)
    raw.execute("BEGIN")
    made = make(Tx(raw))
    raw.execute("COMMIT")
    raw.close()
    return made


@pytest.fixture
def unbounded(daemons: Daemons) -> Iterator[DaemonProcess]:
    """A daemon with the two workflows, that removes nothing by itself."""
    daemon = daemons(STACKD_KEEP_DAYS="0", STACKD_KEEP_EXECUTIONS="0", STACKD_KEEP_BYTES="0")
    daemon.start()
    daemon.load(QUICK)
    daemon.load(WAITING)
    yield daemon
    assert not daemon.unforeseen()


@pytest.fixture
def stackd(command: Command, unbounded: DaemonProcess) -> Command:
    return lambda *words: command(*words, STACKD_STATE_DIR=str(unbounded.state))


def count(daemon: DaemonProcess, where: str = "1") -> int:
    with daemon.file() as raw:
        return int(raw.execute(f"SELECT count(*) FROM executions WHERE {where}").fetchone()[0])


def sound(daemon: DaemonProcess) -> None:
    with daemon.file() as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        ended = raw.execute("SELECT count(*) FROM executions WHERE finished_at IS NOT NULL")
        assert raw.execute("SELECT executions FROM history").fetchall() == ended.fetchall()


def logged(daemon: DaemonProcess, bound: str) -> int:
    """How many executions went by this bound, as its log has it: a line comes a moment after the answer."""
    return sum(line[bound] for line in daemon.logged("history pruned"))


def refilled(daemon: DaemonProcess, make: Callable[[Tx], Any]) -> Any:
    assert daemon.terminate() == 0
    made = fill(daemon, make)
    daemon.start()
    return made


def test_prune_removes_what_was_chosen_and_says_before_how_much_that_is(
    unbounded: DaemonProcess, stackd: Command
) -> None:
    def make(tx: Tx) -> None:
        now = time.time()
        for n in reversed(range(40)):
            status = past.ENDED[n % 3]
            root = past.add(tx, now - n * DAY, status=status, workflow_id="quick")
            past.add(tx, now - n * DAY, parent=root, workflow_id="quick")
        past.add(tx, now - 90 * DAY, status="failed", workflow_id="waiting")

    refilled(unbounded, make)
    unbounded.until(unbounded.begin("waiting"), "waiting")
    choice = ("--workflow", "quick", "--status", "failed", "--older-than", "20d", "--keep", "9")

    told = stackd("executions", "prune", *choice, "--dry-run", "--json").json
    assert told == {
        "executions": 8,
        "dryRun": True,
    }  # of 13 failed ones, 9 are kept, 4 go with their calls
    assert count(unbounded) == 82
    assert stackd("executions", "prune", *choice, "--yes").out == "8 executions are removed\n"
    assert count(unbounded) == 74
    assert stackd("executions", "prune", *choice, "--yes", "--json").json == {
        "executions": 0, "dryRun": False,
    }  # fmt: skip
    assert stackd("executions", "prune", "--older-than", "60d", "--yes").code == 0
    assert count(unbounded, "workflow_id = 'waiting'") == 1
    assert stackd("executions", "prune", "--keep", "0", "--yes").code == 0
    assert count(unbounded) == count(unbounded, "status = 'waiting'") == 1
    sound(unbounded)
    eventually("each is logged", lambda: logged(unbounded, "by_request") == 81)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--yes",), 2, "say which executions shall go"),
        (("--older-than", "7"), 2, "is no time that we know"),
        (("--status", "running", "--yes"), 2, "others have not ended"),
        (("--status", "failed"), 2, "nobody is there to be asked"),
        (("--keep", "-1"), 2, ""),
    ],
)
def test_what_prune_cannot_do_is_told(
    stackd: Command, words: tuple[str, ...], code: int, reason: str
) -> None:
    ran = stackd("executions", "prune", *words)

    assert ran.code == code
    assert reason in ran.err


@pytest.mark.parametrize(
    "body",
    [
        {"keep": True}, {"keep": 1.5}, {"keep": -1}, {"olderThanSeconds": "7d"}, {"olderThanSeconds": -1},
        {"status": ["failed"]}, {"workflowId": 7}, {"keep": 1, "dryRun": "yes"}, {"keep": 1, "cursor": "x"},
        {"keep": 1, "cursor": 7}, {"keep": 1, "cursor": "1:"}, {"keeep": 1}, {},
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_request_to_prune_is_refused(daemon: DaemonProcess, body: Any) -> None:
    answer = daemon.http("POST", "/api/executions/prune", body)

    assert answer.status == 422, answer.text


def test_delete_is_refused_while_something_is_open_and_then_leaves_nothing(
    unbounded: DaemonProcess, stackd: Command
) -> None:
    execution_id = stackd("workflows", "run", "waiting", "--json").json["executionId"]

    refused = stackd("workflows", "delete", "waiting", "--yes")
    assert refused.code == 2
    assert execution_id in refused.err
    assert stackd("executions", "cancel", execution_id).code == 0
    unbounded.until(execution_id)

    assert stackd("workflows", "delete", "waiting", "--yes").out == (
        "waiting is deleted, with 1 executions\n"
    )
    assert stackd("workflows", "show", "waiting").code == 2
    assert stackd("workflows", "delete", "waiting", "--yes").code == 2
    assert count(unbounded, "workflow_id = 'waiting'") == 0
    unbounded.load(WAITING)
    assert stackd("workflows", "show", "waiting").out.startswith("waiting  waiting  version 2")


def test_a_webhook_of_a_deleted_workflow_is_not_there_and_one_that_comes_back_works(
    unbounded: DaemonProcess, stackd: Command
) -> None:
    text = (
        "id: hooked\nnodes: [{id: hook, type: trigger.webhook.inbound, params: {path: hooked}}]\n"
    )
    unbounded.load(text)
    assert unbounded.deliver("hooked", {}).status == 202
    eventually("it ended", lambda: count(unbounded, "status = 'completed'"))

    assert stackd("workflows", "delete", "hooked", "--yes").code == 0
    assert unbounded.deliver("hooked", {}).status == 404
    unbounded.load(text)
    assert unbounded.deliver("hooked", {}).status == 202


def test_the_history_is_kept_within_its_bounds_by_itself(daemons: Daemons) -> None:
    daemon = daemons(STACKD_KEEP_EXECUTIONS="5", TRIGGER_SCHEDULER_INTERVAL_MS="1000")
    daemon.start()
    daemon.load(QUICK)
    for _ in range(20):
        daemon.api.post("/api/workflows/quick/run", {})

    eventually("5 are left", lambda: count(daemon) == 5)
    # The last of them is gone before the round that took it is over and says so.
    removed = 'stackd_executions_removed_total{bound="count"} 15.0'
    eventually("each is counted", lambda: removed in daemon.http("GET", "/metrics").text)
    assert "stackd_history_executions 5.0" in daemon.http("GET", "/metrics").text
    eventually("each is logged", lambda: logged(daemon, "by_count") == 15)
    assert daemon.terminate() == 0


@pytest.mark.crash
@pytest.mark.parametrize("how", ["prune", "delete"])
def test_a_kill_in_the_middle_leaves_a_sound_store_and_the_next_call_goes_on(
    unbounded: DaemonProcess, stackd: Command, how: str
) -> None:
    def make(tx: Tx) -> None:
        for n in range(MANY):
            past.add(tx, 1000.0 + n, workflow_id="quick", nodes=2)

    refilled(unbounded, make)
    words = ("executions", "prune", "--keep", "0", "--yes")
    if how == "delete":
        words = ("workflows", "delete", "quick", "--yes")

    def ask() -> None:
        path = "/api/executions/prune" if how == "prune" else "/api/workflows/quick"
        method, body = ("POST", {"keep": 0}) if how == "prune" else ("DELETE", None)
        try:
            while True:
                unbounded.api.request(method, path, body=body)
        except (ApiError, NoAnswerError, UnreachableError):
            pass

    asking = threading.Thread(target=ask)
    asking.start()
    eventually("some are gone", lambda: count(unbounded) < MANY * 0.9)
    unbounded.kill()
    asking.join()

    assert 0 < count(unbounded) < MANY
    sound(unbounded)
    unbounded.start()
    sound(unbounded)
    assert stackd(*words).code == 0
    assert count(unbounded) == 0
    sound(unbounded)
