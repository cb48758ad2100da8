"""What must hold after a crash run, whatever the moment of death.

Nothing acknowledged is lost, and no finished step was sent again. Each keyed action counts once. An unsafe
one was sent no more often than people asked for, and is `uncertain` if a death cut it off. What was cancelled
is cancelled. What a loop gives is whole and in order, and a workflow that another one calls was started once. No
more executions ran at once than the workflow allows. Every one has come to an end, and the file is sound.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Mapping

from support import invariants
from support.crash.record import Ledger
from support.crash.stories import (
    CALLS,
    ENDS_AFTER,
    GIVES,
    KEYS,
    LIMIT,
    NODE_AT,
    STORIES,
    UNSAFE,
    UNSAFE_AT,
)


def file_is_sound(raw: sqlite3.Connection) -> None:
    """Of the file that a process has left, dead or not."""
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    invariants.check(raw)
    assert raw.execute(invariants.TOO_MANY_AT_ONCE).fetchall() == []


def what_was_cut_off_is_uncertain(ledger: Ledger, statuses: Mapping[str, str]) -> None:
    """The last process has taken over, and nobody has decided anything about what the deaths cut off."""
    for execution, key in ledger.cut_off() - set(ledger.asked):
        expected = "cancelled" if execution in ledger.cancels else "uncertain"
        status = statuses[execution]
        assert status == expected, f"{key} of {execution} was cut off: {status}"


def everything(ledger: Ledger) -> None:
    nothing_is_lost(ledger)
    every_execution_ends_as_its_story_says(ledger)
    what_it_gives_is_whole(ledger)
    calls_are_made_once(ledger)
    cut_off_is_uncertain_until_decided(ledger)
    unsafe_is_sent_as_often_as_asked_for(ledger)
    keys_count_once(ledger)
    finished_is_not_run_again(ledger)
    an_intent_is_on_disk_before_its_first_byte(ledger)
    fences_grow_and_places_are_kept(ledger)


def nothing_is_lost(ledger: Ledger) -> None:
    delivered = {one for one, state in ledger.last.executions.items() if state.called_by is None}
    assert set(ledger.acknowledged) == set(ledger.numbers), (
        "a delivery to the last process was refused"
    )
    lost = set(ledger.acknowledged.values()) - delivered
    assert not lost, f"acknowledged but lost: {lost}"
    assert len(delivered) == len(ledger.numbers), f"{len(delivered)} of {len(ledger.numbers)}"


def every_execution_ends_as_its_story_says(ledger: Ledger) -> None:
    executions = ledger.last.executions
    for number, execution in ledger.acknowledged.items():
        status, story = executions[execution].status, STORIES[number]
        decisions = {said for step, said in ledger.decided.items() if step[0] == execution}
        ends = {ENDS_AFTER[said] for said in decisions} or story.ends
        if (
            "failed" in ends
        ):  # one that fails in a loop fails it, whatever was said about the others
            ends = {"failed"}
        answered = ledger.cancels.get(execution)
        if answered in ("cancelled", "completed"):
            ends = {answered}
        assert status in ends, f"delivery {number} ({execution}) is {status}, not {ends}"


def what_it_gives_is_whole(ledger: Ledger) -> None:
    for execution, state in ledger.last.executions.items():
        if state.status == "completed" and state.workflow in GIVES:
            assert state.output == GIVES[state.workflow], f"{execution} gave {state.output}"


def calls_are_made_once(ledger: Ledger) -> None:
    executions = ledger.last.executions
    called = Counter(state.called_by for state in executions.values() if state.called_by)
    for step, times in called.items():
        assert times == 1, f"{step} has called {times} times"
    for execution, state in executions.items():
        made = {key for caller, key in called if caller == execution}
        wanted = CALLS.get(state.workflow, set())
        assert made <= wanted, f"{execution} has called by {made}"
        assert made == wanted or state.status != "completed", f"{execution} completed with {made}"
        if state.called_by is not None and state.status != "completed":
            caller = executions[state.called_by[0]]
            assert (state.status, caller.status) == ("cancelled", "cancelled"), (execution, state)


def cut_off_is_uncertain_until_decided(ledger: Ledger) -> None:
    nodes = ledger.last.nodes
    for step in ledger.cut_off():
        node = nodes[step]
        assert node.status == "uncertain" or "resolved" in node.metadata, (step, node)


def unsafe_is_sent_as_often_as_asked_for(ledger: Ledger) -> None:
    """Counted by the far side, and by the daemon at each first byte; they differ only where it was cut off."""
    told = Counter(
        (sent["execution_id"], sent["key"])
        for life in ledger.lives
        for sent in life.of("NodeSent")
        if sent["key"] in UNSAFE
    )
    witness, cut_off = ledger.witness, ledger.cut_off()
    for path, execution in itertools.product(UNSAFE_AT, ledger.acknowledged.values()):
        at, step = (path, execution), (execution, NODE_AT[path])
        seen, retries = witness.seen[at], ledger.asked[step].count("retry")
        assert seen - witness.declined[at] <= 1 + retries, f"unsafe sent {seen} times: {step}"
        assert seen <= told[step], f"{step}: sent {seen} times, told {told[step]}"
        if step not in cut_off and execution not in ledger.cancels:
            assert seen == told[step], f"{step}: {seen} of {told[step]} arrived"


def keys_count_once(ledger: Ledger) -> None:
    came = ledger.witness.keys
    for execution, state in ledger.last.executions.items():
        for path, end in KEYS.get(state.workflow, {}).items():
            keys = came.get((path, execution), set())
            assert keys <= {f"{execution}:{end}"}, keys
            assert keys or state.status != "completed", f"{execution} completed without {path}"
    strange = {at for at in came if at[0] not in KEYS[ledger.last.executions[at[1]].workflow]}
    assert not strange, f"keys where none belongs: {strange}"


def finished_is_not_run_again(ledger: Ledger) -> None:
    for number, life in enumerate(ledger.deaths):
        finished = life.remains.finished
        for later in ledger.lives[number + 1 :]:
            for move in later.of("NodeStarted", "NodeSent"):
                step = (move["execution_id"], move["key"])
                assert step not in finished, f"{step} was finished and ran again"
            for (path, execution), seen in later.seen.items():
                if (execution, NODE_AT[path]) in finished:
                    before = life.seen[path, execution]
                    assert seen == before, f"{path} of {execution} was finished and sent again"


def an_intent_is_on_disk_before_its_first_byte(ledger: Ledger) -> None:
    for life in ledger.lives:
        for sent in life.of("NodeSent"):
            node = life.remains.nodes.get((sent["execution_id"], sent["key"]))
            if node is None or node.effect == "read":
                assert sent["key"] == "look", f"nothing on disk of {sent}"
            else:
                assert node.attempt >= sent["attempt"], f"{sent} left before its intent: {node}"


def fences_grow_and_places_are_kept(ledger: Ledger) -> None:
    """By the events, which come in the order of the commits; what a death kept from being told is on disk."""
    running: dict[int, int] = {}  # job -> fence
    limited = ledger.last.limited
    fences: Counter[int] = Counter()
    for life in ledger.lives:
        for name, facts in life.events:
            job = facts.get("job_id")
            if name == "JobClaimed" and facts["kind"] == "execution.run":
                assert facts["fence"] > fences[job], f"fence {facts['fence']} after {fences[job]}"
                fences[job] = running[job] = facts["fence"]
                places = len(running.keys() & limited)
                assert places <= LIMIT, f"{places} run at once, {LIMIT} may"
            elif name in ("JobSettled", "JobRescued"):
                running.pop(job, None)
        running = dict(life.remains.running)
        fences |= Counter(running)
    most = ledger.witness.most_at_once
    assert most <= LIMIT, f"the far side saw {most} executions at once, {LIMIT} may"
