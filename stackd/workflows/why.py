"""Why an execution, a workflow or the queue is as it is: what holds it now, and the notes of what has befallen it.

Whoever skips, delays, refuses, sends back or gives up something notes it here, in the transaction that does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stackd.core.clock import rfc3339
from stackd.core.errors import NotFoundError
from stackd.core.json import loads
from stackd.core.text import shown
from stackd.queue import processes, verbs
from stackd.queue.job import PROBATION, JobState
from stackd.store.connection import Tx
from stackd.workflows import catalogue, executions
from stackd.workflows import statements as sql
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NodeRow, NodeStatus
from stackd.workflows.model import WAIT

QUEUE = "queue"  # the subject of what concerns all
LONGEST = 500  # characters of a message
TOGETHER = 60.0  # seconds within which the same note is counted, not written again
NOTES_SHOWN = 100
KEPT = 30 * 86_400.0  # seconds
MOST = 100_000  # notes
AHEAD_COUNTED = 1000  # jobs; more are not counted


@dataclass(frozen=True, slots=True)
class Note:
    """Something that has befallen the subject. `count`: how often, from the first time to the last (epoch seconds)."""

    code: str
    message: str
    first_at: float
    last_at: float
    count: int


@dataclass(frozen=True, slots=True)
class Reason:
    """What holds the subject now. `hint`: what a person may do about it."""

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Why:
    """The answer for one subject: the reasons of now, and the last notes, the newest first."""

    subject: str
    kind: str
    state: str
    reasons: list[Reason]
    notes: list[Note]


def note(tx: Tx, code: str, subject: str, message: str, *, now: float, count: int = 1) -> None:
    """Note why something happened to `subject`, `count` times; the same again within a minute is counted."""
    text = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
    text = text.encode(errors="backslashreplace").decode()  # whatever it quotes
    if not tx.execute(sql.COUNT_WHY, (count, now, subject, code, text, now - TOGETHER)):
        tx.insert(sql.INSERT_WHY, (code, subject, text, now, now, count))


def prune(tx: Tx, *, now: float, limit: int) -> int:
    """Forget up to `limit` notes that are old, and those beyond the number that is kept; how many."""
    return tx.execute(sql.PRUNE_WHY, (now - KEPT, limit)) + tx.execute(
        sql.PRUNE_WHY_BEYOND, (MOST,)
    )


def answer(
    tx: Tx, subject: str, *, now: float, is_gone: Callable[[processes.ProcessRow], bool]
) -> Why:
    """Why `subject` is as it is.

    Args:
        subject: the id of an execution or a workflow, or `queue`.
        is_gone: whether a process that is known has ended.

    Raises:
        NotFoundError: there is nothing of that name.
    """
    view = _View(tx, now, is_gone)
    if subject == QUEUE:
        return _answer(tx, subject, QUEUE, *view.queue())
    try:
        row = executions.get(tx, subject)
    except NotFoundError:
        pass
    else:
        return _answer(tx, subject, "execution", row.status.value, list(view.execution(row)))
    try:
        workflow = catalogue.get(tx, subject)
    except NotFoundError:
        raise NotFoundError(
            f"{shown(subject)!r} is no execution, no workflow and not {QUEUE!r}",
            code="why.unknown",
            hint="see `stackd executions list` and `stackd workflows list`",
        ) from None
    state = "active" if workflow.active else "inactive"
    return _answer(tx, subject, "workflow", state, list(view.workflow(workflow)))


def _answer(tx: Tx, subject: str, kind: str, state: str, reasons: list[Reason]) -> Why:
    notes = [Note(*row) for row in tx.rows(sql.WHY_OF, (subject, NOTES_SHOWN))]
    return Why(subject, kind, state, reasons, notes)


class _View:
    """Looks at the store as it is in one transaction."""

    def __init__(self, tx: Tx, now: float, is_gone: Callable[[processes.ProcessRow], bool]) -> None:
        self._tx = tx
        self._now = now
        self._is_gone = is_gone

    def queue(self) -> tuple[str, list[Reason]]:
        status = verbs.status(self._tx, now=self._now)
        reasons = list(self._nothing_is_claimed())
        waiting = status.counts[JobState.AVAILABLE.value]
        if waiting:
            words = f"{waiting} jobs wait, the oldest for {status.oldest_wait:.0f} s"
            reasons.append(Reason("queue.backlog", words))
        return "paused" if status.paused else "working", reasons

    def workflow(self, row: catalogue.WorkflowRow) -> Iterator[Reason]:
        if not row.active:
            yield Reason(
                "workflow.inactive",
                "its triggers start nothing: it is not active",
                f"stackd workflows activate {row.id}",
            )

    def execution(self, row: ExecutionRow) -> Iterator[Reason]:
        match row.status:
            case ExecutionStatus.QUEUED:
                yield from self._queued(row)
            case ExecutionStatus.RUNNING:
                yield from self._running(row)
            case ExecutionStatus.WAITING:
                yield from self._waiting(row)
            case ExecutionStatus.UNCERTAIN:
                yield from self._uncertain(row)
            case ExecutionStatus.FAILED | ExecutionStatus.CANCELLED:
                yield from self._ended(row)
            case _:
                pass

    def _queued(self, row: ExecutionRow) -> Iterator[Reason]:
        yield from self._nothing_is_claimed()
        job = self._tx.one(sql.JOB_OF_EXECUTION, (row.seq,))
        if job is None:
            yield Reason("queue.no_job", "no job will run it", "stackd queue check")
            return
        state, due_at, blocked, limit, key, rescues, error = job
        if state in (JobState.SCHEDULED, JobState.RETRYABLE) and due_at > self._now:
            cause = f" after {error}" if error else ""
            yield Reason("queue.later", f"it is due at {rfc3339(due_at)}{cause}")
        if blocked:
            yield Reason(
                "workflow.concurrency",
                f"{limit} executions of {key} may run at once, and as many do",
                "raise `concurrency` in the document, or wait",
            )
        if rescues >= PROBATION:
            yield Reason(
                "queue.probation",
                f"{rescues} processes have died over it: it runs when no other of its kind does",
            )
        ahead = self._tx.one(sql.JOBS_AHEAD, (due_at, AHEAD_COUNTED))
        if ahead and ahead[0]:
            count = (
                f"{ahead[0]} jobs" if ahead[0] < AHEAD_COUNTED else f"{AHEAD_COUNTED} jobs or more"
            )
            yield Reason("queue.backlog", f"{count} are before it")

    def _nothing_is_claimed(self) -> Iterator[Reason]:
        if verbs.is_paused(self._tx):
            yield Reason("queue.paused", "the queue is paused", "stackd queue resume")
        alive = [one for one in processes.listed(self._tx) if not self._is_gone(one)]
        if not any(one.works for one in alive):
            yield Reason(
                "queue.no_worker",
                "no process runs a worker",
                "stackd start, or stackd start worker",
            )

    def _running(self, row: ExecutionRow) -> Iterator[Reason]:
        owner = self._tx.one(sql.OWNER_OF_EXECUTION, (row.seq,))
        if owner is not None:
            role, pid, heartbeat_at, rescues = owner
            words = (
                f"process {pid} ({role}) runs it, last heard {self._now - heartbeat_at:.0f} s ago"
            )
            yield Reason("execution.runs", words)
            if rescues:
                yield Reason("job.rescued", f"{rescues} processes have died over it")
        for node in executions.open_node_rows(self._tx, row.seq, loop=None):
            if node.status is NodeStatus.RUNNING:
                words = f"{node.key} runs since {rfc3339(node.started_at)}"
                yield Reason("node.runs", words)
        yield from self._waiting(row)

    def _waiting(self, row: ExecutionRow) -> Iterator[Reason]:
        for node in executions.open_node_rows(self._tx, row.seq, loop=None):
            if node.status is NodeStatus.WAITING:
                yield self._wait_of(row, node)

    def _wait_of(self, row: ExecutionRow, node: NodeRow) -> Reason:
        due = self._tx.one(sql.TIMER_OF, (row.seq, node.key))
        until = "" if due is None else f" until {rfc3339(due[0])}"
        if node.type == executions.CALL:
            called = (loads(node.metadata) if node.metadata else {}).get("executionId")
            if called is not None:
                words = f"{node.key} waits for the end of execution {called}"
                return Reason("node.waits_for_execution", words, f"stackd why {called}")
        if node.type == WAIT:
            return Reason(
                "node.waits_for_call",
                f"{node.key} waits for a call to its link{until}",
                f"stackd executions resume {row.id} --node {node.key}",
            )
        if node.error is not None:
            reason = loads(node.error).get("message")
            return Reason("node.waits_to_retry", f"{node.key} is tried again{until}: {reason}")
        return Reason("node.waits_for_time", f"{node.key} waits{until}")

    def _uncertain(self, row: ExecutionRow) -> Iterator[Reason]:
        for node in executions.uncertain_node_rows(self._tx, row.seq):
            error = loads(node.error) if node.error else {}
            yield Reason(
                "node.uncertain",
                f"nobody knows whether {node.key} happened: {error.get('message', 'cut off')}",
                f"look at the far side, then: stackd executions resolve {row.id} --node {node.key} "
                "--retry | --skip | --fail",
            )

    def _ended(self, row: ExecutionRow) -> Iterator[Reason]:
        error = loads(row.error) if row.error else {}
        where = f"{error['nodeId']}: " if error.get("nodeId") else ""
        hint = f"stackd executions retry {row.id}"
        yield Reason(
            str(error.get("code", f"execution.{row.status.value}")),
            f"{where}{error.get('message', row.status.value)}",
            hint if row.status is ExecutionStatus.FAILED else None,
        )
