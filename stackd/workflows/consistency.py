"""What does not fit together in the store, and how each of it is mended.

No transaction of ours leaves any of it behind, whatever befalls the processes: a fault of stackd does, a disk, or
somebody who edits the file. A finding holds in one snapshot. A repair looks again in its own transaction and mends
only what is still so. What it cannot know it leaves to a run, which goes by the journal: nothing that ended is run
again, and an unsafe action that was in flight is uncertain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from stackd.core.clock import epoch
from stackd.core.events import Event
from stackd.core.json import Json, dumps, loads
from stackd.core.process import ProcessIdentity, is_gone
from stackd.queue import processes, verbs
from stackd.queue import statements as of_jobs
from stackd.store.connection import Tx
from stackd.workflows import executions, why
from stackd.workflows import statements as sql
from stackd.workflows.executions import CallEnded, NodeStatus
from stackd.workflows.resume import EXPIRES

ROWS = 1000  # rows that one look gives; further ones are only counted
IDS = 50  # of a finding
EACH = 50  # things mended of one execution at a time
OVERDUE = 60.0  # seconds a timer may be late: with thousands due at once, some are, for a moment

Row = tuple[Any, ...]  # the number of an execution, its name for people, and what the repair needs
_ALL: Final = (-(2**63), 2**63 - 1)


class Mended(StrEnum):
    """Who mends it.

    itself: the reconciliation of every minute, what makes up for dead processes, or its own end.
    repair: only who asks for it, since something is given up. none: nobody but a person.
    """

    ITSELF = "itself"
    REPAIR = "repair"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ConsistencyRepaired(Event):
    """Something in the store did not fit together, and was mended. `ids`: of what; `count`: how many in all."""

    code: str
    ids: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit together.

    Attributes:
        code: stable.
        about: what is wrong, for people.
        ids: of what: executions, `execution:node`, jobs, or words; no more than `IDS`.
        count: how many in all.
    """

    code: str
    about: str
    ids: tuple[str, ...]
    count: int
    mended: Mended


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One thing that must hold.

    Attributes:
        about: what is wrong; `mending`: what is done about it. For people.
        find: rows for what does not, at a moment.
        repair: mends some of these rows, as far as it still is so; how many. None: there is nothing to do here.
        is_timed: it may be so for a moment; only what is found twice, some time apart, is a finding.
    """

    code: str
    about: str
    mending: str
    mended: Mended
    find: Callable[[Tx, float], Found]
    repair: Callable[[Tx, Sequence[Row], float], int] | None = None
    is_timed: bool = False

    def finding(self, rows: Sequence[Row], count: int) -> Finding:
        ids = tuple(str(row[1]) for row in rows[:IDS])
        return Finding(self.code, self.about, ids, count, self.mended)


@dataclass(frozen=True, slots=True)
class Found:
    """The first rows of what a check finds, and how many there are."""

    rows: tuple[Row, ...] = ()
    count: int = 0


def look(tx: Tx, *, check: Check, now: float) -> Found:
    """What `check` finds in this snapshot."""
    return check.find(tx, now)


def repair(tx: Tx, *, check: Check, rows: Sequence[Row], now: float) -> int:
    """Mend what was found as `rows`, as far as it still is so; how many."""
    count = 0 if check.repair is None else check.repair(tx, rows, now)
    if count:
        why.note(tx, check.code, why.QUEUE, f"{check.about}: {check.mending}", now=now, count=count)
        tx.emit(ConsistencyRepaired(check.code, tuple(str(row[1]) for row in rows[:IDS]), count))
    return count


def findings(tx: Tx, *, now: float) -> list[Finding]:
    """All that is wrong in this snapshot and never may be, not even for a moment."""
    lasting = (check for check in CHECKS if not check.is_timed)
    found = ((check, look(tx, check=check, now=now)) for check in lasting)
    return [check.finding(one.rows, one.count) for check, one in found if one.count]


# -- how it is found


def _by(*statements: str) -> Callable[[Tx, float], Found]:
    """Finds what statements find that look between two numbers."""

    def find(tx: Tx, _: float) -> Found:
        rows: list[Row] = []
        count = 0
        for statement in statements:
            some = tx.rows(sql.first(statement, ROWS + 1), _ALL)
            if len(some) > ROWS:
                whole = tx.one(sql.counted(statement), _ALL)
                count += int(whole[0]) if whole else 0
            else:
                count += len(some)
            rows += some[:ROWS]
        return Found(tuple(rows[:ROWS]), count)

    return find


def _lost_claims(tx: Tx, now: float) -> Found:
    rows: list[Row] = []
    for owner, boot, namespace, pid, ticks, _ in tx.rows(of_jobs.RUNNING_OWNERS):
        if pid is None or is_gone(ProcessIdentity(boot, namespace, pid, ticks)):
            rows += tx.rows(sql.CLAIMS_OF, (owner, now))
    return Found(tuple(rows[:ROWS]), len(rows))


def _overdue_timers(tx: Tx, now: float) -> Found:
    rows = tx.rows(sql.FIND_TIMERS_OVERDUE, (now - OVERDUE, ROWS))
    return Found(tuple(rows), len(rows))


def _keys_with_places(tx: Tx, _: float) -> Found:
    keys = verbs.keys_with_free_places(tx)
    return Found(tuple((0, key) for key in keys), len(keys))


def _roles_apart(tx: Tx, now: float) -> Found:
    told = tuple((0, text) for text in processes.differences(processes.listed(tx), now=now))
    return Found(told, len(told))


# -- how it is mended


def _again(
    act: Callable[[Tx, Row, float], None], *statements: str
) -> Callable[[Tx, Sequence[Row], float], int]:
    """Mends what `statements` still find of the same executions, a few of each."""
    again = [sql.first(statement, EACH) for statement in statements]

    def repair(tx: Tx, rows: Sequence[Row], now: float) -> int:
        count = 0
        for number in dict.fromkeys(row[0] for row in rows):
            still = [row for text in again for row in tx.rows(text, (number, number))]
            for row in still:
                act(tx, row, now)
            count += len(still)
        return count

    return repair


def _wake(tx: Tx, row: Row, now: float) -> None:
    executions.wake(tx, row[0], now=now)


def _discard(tx: Tx, row: Row, now: float) -> None:
    verbs.discard(tx, row[2], error="queue.inconsistent", now=now)


def _offer_again(tx: Tx, row: Row, _: float) -> None:
    verbs.offer_again(tx, row[2])


def _take_up(tx: Tx, row: Row, _: float) -> None:
    """Let the execution be what its job says, and whoever runs it look at the journal."""
    tx.execute(sql.TAKE_UP, (row[2], row[0]))


def _cancel(tx: Tx, row: Row, now: float) -> None:
    executions.cancel_if_asked(tx, row[0], now=now)


def _drop_timer(tx: Tx, row: Row, _: float) -> None:
    tx.execute(sql.DROP_TIMER, (row[2],))


def _end_open(tx: Tx, row: Row, now: float) -> None:
    tx.execute(sql.END_OPEN_NODES, (now, row[0]))


def _end_wait(tx: Tx, row: Row, now: float) -> None:
    """Offer the node run again; one that waits for a call waits on, for as long as it was to."""
    seq, _, key, _, metadata = row
    expires_at = _expiry(metadata)
    execution = executions.find(tx, seq)
    if expires_at is not None and execution is not None:
        executions.add_timer(tx, execution, key, due_at=expires_at, output=None)
    elif tx.execute(sql.REOPEN_WAITING_NODE, (seq, key)):
        executions.wake(tx, seq, now=now)


def _expiry(metadata: bytes | None) -> float | None:
    try:
        given: Json = loads(metadata or b"{}")
        return epoch(str(given[EXPIRES])) if isinstance(given, dict) and EXPIRES in given else None
    except ValueError:
        return None


def _hear_call(tx: Tx, row: Row, now: float) -> None:
    called = executions.find(tx, row[2])
    if called is not None:
        output = called.output or b"null"
        executions.end_call(tx, called, called.status, output, called.error, now=now, limit=None)


def _give_up_call(tx: Tx, row: Row, now: float) -> None:
    seq, _, key = row
    error = dumps(
        {"code": "workflow.lost", "message": "the execution that it started is not there"}
    )
    if executions.end_wait(tx, seq, key, NodeStatus.FAILED, error, now=now):
        executions.wake(tx, seq, now=now)
        tx.emit(CallEnded(executions.names(tx, seq)[0], seq, key))


def _fire(tx: Tx, rows: Sequence[Row], now: float) -> int:
    return executions.fire_timers(tx, now=now, limit=len(rows))


def _fill(tx: Tx, rows: Sequence[Row], _: float) -> int:
    still = set(verbs.keys_with_free_places(tx)).intersection(key for _, key in rows)
    for key in still:
        verbs.fill_places(tx, key)
    return len(still)


def _check(
    code: str,
    about: str,
    mending: str,
    act: Callable[[Tx, Row, float], None],
    *statements: str,
    mended: Mended = Mended.ITSELF,
) -> Check:
    """A check that looks and mends by execution."""
    return Check(code, about, mending, mended, _by(*statements), _again(act, *statements))


# In the order in which they are mended: what one mends, a later one may find and finish.
CHECKS: Final = (
    _check("queue.job_state", "a job that has ended and counts as live",
           "it counts as ended", _discard, sql.FIND_ENDED_AND_LIVE),
    _check("queue.claim_by_nobody", "a job runs, and no process holds it",
           "it is offered again", _offer_again, sql.FIND_CLAIM_BY_NOBODY),
    _check("queue.job_alone", "a live job of an execution that is not there",
           "it is discarded", _discard, sql.FIND_JOB_ALONE),
    _check("queue.job_of_ended", "an execution is over, and has a live job",
           "that is discarded", _discard, sql.FIND_JOB_OF_ENDED),
    _check("queue.cancel_unheard", "the cancel of an execution was asked for, and nobody is there to do it",
           "it is cancelled", _cancel, sql.FIND_CANCEL_UNHEARD),
    _check("queue.states_differ", "an execution has a live job, and rests; or a claimed one, and is queued",
           "it is what its job says", _take_up, sql.FIND_JOB_OF_RESTING, sql.FIND_CLAIM_OF_QUEUED),
    _check("queue.without_job", "an execution is queued or running, and no job will run it",
           "it gets one", _wake, sql.FIND_WITHOUT_JOB),
    _check("queue.call_unheard", "a node waits for an execution that is over",
           "it ends as that did", _hear_call, sql.FIND_CALL_UNHEARD),
    _check("queue.call_lost", "a node waits for an execution that is not there",
           "it fails (`workflow.lost`)", _give_up_call, sql.FIND_CALL_LOST, mended=Mended.REPAIR),
    _check("queue.wait_endless", "a node waits, and nothing will end that",
           "it is offered again; one that waits for a call waits on until its link expires",
           _end_wait, sql.FIND_WAIT_ENDLESS),
    _check("queue.node_left", "an execution waits, and a node of it could go on",
           "a run looks at it", _wake, sql.FIND_NODE_LEFT),
    _check("queue.nothing_awaited", "an execution waits, and no node of it does",
           "a run looks at it", _wake, sql.FIND_NOTHING_AWAITED),
    _check("queue.nothing_uncertain", "an execution asks for a decision, and no node of it does",
           "a run looks at it", _wake, sql.FIND_NOTHING_UNCERTAIN),
    _check("queue.open_after_end", "an execution is over, and a node of it is not",
           "the node is skipped, or uncertain if it was unsafe and in flight",
           _end_open, sql.FIND_OPEN_AFTER_END),
    _check("queue.timer_alone", "a timer for which nothing waits",
           "it is cancelled", _drop_timer, sql.FIND_TIMER_ALONE),
    Check("queue.timer_overdue", f"a timer is over {OVERDUE:g} s late",
          "it fires", Mended.ITSELF, _overdue_timers, _fire, is_timed=True),
    Check("queue.place_free", "a job of this workflow is set aside beside a free place",
          "it is offered", Mended.ITSELF, _keys_with_places, _fill),
    Check("queue.claim_lost", "a process that is gone holds a job, past its lease",
          "a worker or scheduler takes it back", Mended.ITSELF, _lost_claims, is_timed=True),
    Check("queue.odd_counts", "a live job was rescued or tried a number of times that cannot be",
          "cancel its execution, or let it run", Mended.NONE, _by(sql.FIND_ODD_COUNTS)),
    Check("queue.roles_differ", "processes on this store do not agree",
          "give all the same settings, state directory and version", Mended.NONE, _roles_apart),
)  # fmt: skip
