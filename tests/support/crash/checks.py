"""What must hold after a crash run, whatever the moment of death.

Nothing acknowledged is lost, and no finished step was sent again. Each keyed action counts once. An unsafe
one was sent no more often than people asked for, and is `uncertain` if a death cut it off. What was cancelled
is cancelled. No more executions ran at once than the workflow allows. Every one has come to an end, and the
file is sound.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping

from support import invariants
from support.crash.record import Ledger
from support.crash.stories import ENDS_AFTER, LIMIT, NODE_AT, STORIES, UNSAFE

UNSAFE_AT = next(path for path, node in NODE_AT.items() if node == UNSAFE)


def file_is_sound(raw: sqlite3.Connection) -> None:
    """Of the file that a process has left, dead or not."""
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    invariants.check(raw)
    assert raw.execute(invariants.TOO_MANY_AT_ONCE).fetchall() == []


def what_was_cut_off_is_uncertain(ledger: Ledger, statuses: Mapping[str, str]) -> None:
    """The last process has taken over, and nobody has decided anything about what the deaths cut off."""
    for execution in ledger.cut_off() - set(ledger.asked):
        expected = "cancelled" if execution in ledger.cancels else "uncertain"
        assert statuses[execution] == expected, f"{execution} was cut off: {statuses[execution]}"


def everything(ledger: Ledger) -> None:
    nothing_is_lost(ledger)
    every_execution_ends_as_its_story_says(ledger)
    cut_off_is_uncertain_until_decided(ledger)
    unsafe_is_sent_as_often_as_asked_for(ledger)
    keys_count_once(ledger)
    finished_is_not_run_again(ledger)
    an_intent_is_on_disk_before_its_first_byte(ledger)
    fences_grow_and_places_are_kept(ledger)


def nothing_is_lost(ledger: Ledger) -> None:
    executions = ledger.last.executions
    assert set(ledger.acknowledged) == set(ledger.numbers), (
        "a delivery to the last process was refused"
    )
    lost = set(ledger.acknowledged.values()) - set(executions)
    assert not lost, f"acknowledged but lost: {lost}"
    assert len(executions) == len(ledger.numbers), f"{len(executions)} of {len(ledger.numbers)}"


def every_execution_ends_as_its_story_says(ledger: Ledger) -> None:
    executions = ledger.last.executions
    for number, execution in ledger.acknowledged.items():
        status, story = executions[execution], STORIES[number]
        decision = ledger.decided.get(execution)
        ends = story.ends if decision is None else {ENDS_AFTER[decision]}
        answered = ledger.cancels.get(execution)
        if answered in ("cancelled", "completed"):
            ends = {answered}
        assert status in ends, f"delivery {number} ({execution}) is {status}, not {ends}"


def cut_off_is_uncertain_until_decided(ledger: Ledger) -> None:
    nodes = ledger.last.nodes
    for execution in ledger.cut_off():
        node = nodes[execution, UNSAFE]
        assert node.status == "uncertain" or "resolved" in node.metadata, (execution, node)


def unsafe_is_sent_as_often_as_asked_for(ledger: Ledger) -> None:
    """Counted by the far side, and by the daemon at each first byte; they differ only where it was cut off."""
    told = Counter(
        sent["execution_id"]
        for life in ledger.lives
        for sent in life.of("NodeSent")
        if sent["key"] == UNSAFE
    )
    witness, cut_off = ledger.witness, ledger.cut_off() | set(ledger.cancels)
    for execution in ledger.acknowledged.values():
        at = (UNSAFE_AT, execution)
        seen, retries = witness.seen[at], ledger.asked[execution].count("retry")
        assert seen - witness.declined[at] <= 1 + retries, f"unsafe sent {seen} times: {execution}"
        assert seen <= told[execution], f"{execution}: sent {seen} times, told {told[execution]}"
        if execution not in cut_off:
            assert seen == told[execution], f"{execution}: {seen} of {told[execution]} arrived"


def keys_count_once(ledger: Ledger) -> None:
    executions = ledger.last.executions
    for execution, status in executions.items():
        keys = ledger.witness.keys.get(execution, set())
        assert keys <= {f"{execution}:book"}, keys
        assert keys or status != "completed", f"completed without its keyed step: {execution}"


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
    fences: Counter[int] = Counter()
    for life in ledger.lives:
        for name, facts in life.events:
            job = facts.get("job_id")
            if name == "JobClaimed" and facts["kind"] == "execution.run":
                assert facts["fence"] > fences[job], f"fence {facts['fence']} after {fences[job]}"
                fences[job] = running[job] = facts["fence"]
                assert len(running) <= LIMIT, f"{len(running)} run at once, {LIMIT} may"
            elif name in ("JobSettled", "JobRescued"):
                running.pop(job, None)
        running = dict(life.remains.running)
        fences |= Counter(running)
    most = ledger.witness.most_at_once
    assert most <= LIMIT, f"the far side saw {most} executions at once, {LIMIT} may"
