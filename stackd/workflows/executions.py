"""Executions: starting one, what may happen to one from outside, and reading it back.

A run (see `runtime/`) owns an execution while it holds the fenced job; everything else here only adds facts
(a wake, a cancel request, a finished wait) and makes sure that a live job exists which will look at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from stackd.core.errors import ConflictError, InputError, NotFoundError
from stackd.core.events import Event
from stackd.core.ids import sortable_id
from stackd.core.json import Json, dumps, loads
from stackd.core.text import shown
from stackd.queue import verbs
from stackd.queue.job import NewJob
from stackd.store.connection import Tx
from stackd.workflows import blobs
from stackd.workflows import statements as sql
from stackd.workflows.model import LOOP

JOB_KIND = "execution.run"
CALL = "action.workflow.run"  # also the trigger type of what it starts
DEEPEST = 10  # executions that called each other, the first one included
DEADLINE = ""  # the key of the timer that ends a waiting execution as a whole

# What a map, a list and a member of one take beside their text, in CPython on 64 bits.
MAP_BYTES = 256
LIST_BYTES = 96
MEMBER_BYTES = 48
OUTPUT_WEIGHT = 12  # bytes of values per byte of text whose members nobody has counted


class ExecutionStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNCERTAIN = "uncertain"


FINAL = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED})


class NodeStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class ExecutionQueued(Event):
    """An execution became durable, or was woken, and waits for a worker."""

    execution_id: str
    workflow_id: str


@dataclass(frozen=True, slots=True)
class ExecutionStarted(Event):
    """A worker began, or went on with, an execution."""

    execution_id: str
    workflow_id: str


@dataclass(frozen=True, slots=True)
class ExecutionParked(Event):
    """No run holds the execution: it waits for a timer or, `uncertain`, for a person."""

    execution_id: str
    workflow_id: str
    status: str


@dataclass(frozen=True, slots=True)
class ExecutionFinished(Event):
    """An execution reached a final state: completed, failed or cancelled."""

    execution_id: str
    workflow_id: str
    status: str


@dataclass(frozen=True, slots=True)
class CancelRequested(Event):
    """A running execution shall be cancelled by whoever runs it."""

    execution_id: str
    execution: int


@dataclass(frozen=True, slots=True)
class TimerSet(Event):
    """A waiting node run will end, or be offered again, at `due_at` (epoch seconds)."""

    execution_id: str
    execution: int
    key: str
    due_at: float


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """A waiting node run was completed, or offered again, by its timer; without a key, its time is over."""

    execution_id: str
    execution: int
    key: str


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """The execution that a waiting node run had started has ended, and the node run with it."""

    execution_id: str
    execution: int
    key: str


@dataclass(frozen=True, slots=True)
class NodeFinished(Event):
    """The node run's result is on disk: completed, failed, skipped or uncertain. `job_id`: of the run that ended it."""

    execution_id: str
    workflow_id: str  # this and the job: told after the commit, where no ids are bound to log lines
    job_id: int | None
    key: str
    type: str
    status: str
    seconds: float | None


class NodeRow(NamedTuple):
    """A node run as stored. Instants are epoch seconds; `output`, `error`, `metadata` are JSON texts."""

    key: str
    type: str
    status: NodeStatus
    attempt: int
    effect: str
    idempotency_key: str | None
    input_hash: bytes | None
    started_at: float | None
    finished_at: float | None
    output: bytes | None
    error: bytes | None
    metadata: bytes | None


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """An execution as stored. `seq` is its number in the store, `id` its public name.

    `input` is None where it is large: `input_of` reads it. `parent`: the execution (seq) that started it;
    `parent_key`: its node run that waits for the end.
    """

    seq: int
    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    trigger_type: str
    trigger_node: str
    input: bytes | None
    input_bytes: int
    output: bytes | None
    error: bytes | None
    wakes: int
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    parent: int | None
    parent_key: str | None
    depth: int


@dataclass(frozen=True, slots=True)
class ExecutionSummary:
    """What a list shows of an execution."""

    seq: int
    id: str
    workflow_id: str
    version: int
    status: str
    trigger_type: str
    trigger_node: str
    error: bytes | None
    created_at: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class NewExecution:
    """An execution to start. `input`: the trigger's output as JSON text; `parent` and on: as in ExecutionRow."""

    workflow_id: str
    version: int
    trigger_type: str
    trigger_node: str
    input: bytes
    concurrency: int | None
    parent: int | None = None
    parent_key: str | None = None
    depth: int = 0


def start(tx: Tx, new: NewExecution, *, now: float, execution_id: str | None = None) -> str:
    """Make an execution and its job durable; the execution's id."""
    execution_id = execution_id or sortable_id(now)
    seq = tx.insert(
        sql.INSERT_EXECUTION,
        (
            execution_id,
            new.workflow_id,
            new.version,
            new.trigger_type,
            new.trigger_node,
            new.input,
            now,
            new.parent,
            new.parent_key,
            new.depth,
        ),
    )
    blobs.refer(tx, seq, (new.input,))
    verbs.enqueue(tx, [_job(seq, new.workflow_id, new.concurrency)], now=now)
    tx.emit(ExecutionQueued(execution_id, new.workflow_id))
    return execution_id


def _job(seq: int, workflow_id: str, concurrency: int | None) -> NewJob:
    return NewJob(
        JOB_KIND,
        subject=seq,
        concurrency_key=None if concurrency is None else workflow_id,
        concurrency_limit=concurrency,
    )


def change_concurrency(tx: Tx, workflow_id: str, limit: int | None, *, had_one: bool) -> None:
    """Let no more than `limit` executions of the workflow run at once, those that are queued included."""
    if limit is not None and not had_one:
        seqs = [row[0] for row in tx.rows(sql.LIVE_EXECUTIONS_OF, (workflow_id,))]
        verbs.give_key(tx, workflow_id, kind=JOB_KIND, subjects=seqs)
    verbs.change_concurrency(tx, workflow_id, limit)


def find_duplicate(tx: Tx, new: NewExecution, *, key: str, now: float) -> str | None:
    """The execution that `key` started by the same trigger of the same workflow within its window, if any."""
    row = tx.one(sql.FIND_DEDUPE, (*_key_of(new, key), now))
    return None if row is None else str(row[0])


def refuse_other_input(tx: Tx, execution_id: str, given: bytes) -> None:
    """Refuse a key that comes again with another input: whoever sends it would take the answer for its own.

    Raises:
        InputError: the execution was started with another one.
    """
    found = tx.one(sql.HAS_INPUT, (given, execution_id))
    if found is not None and not found[0]:
        raise InputError(
            f"this Idempotency-Key has started execution {execution_id} with another input",
            code="idempotency.mismatch",
            hint="send a key of its own with each request that is meant to start one",
        )


def remember_key(
    tx: Tx, new: NewExecution, *, key: str, execution_id: str, now: float, window: float
) -> None:
    """Let `find_duplicate` answer `execution_id`, which `new` became, for `key` during `window` seconds."""
    tx.execute(sql.PUT_DEDUPE, (*_key_of(new, key), execution_id, now + window))


def _key_of(new: NewExecution, key: str) -> tuple[str, str, str, str]:
    return new.workflow_id, new.trigger_node, new.trigger_type, key


def prune_keys(tx: Tx, *, now: float, limit: int) -> int:
    """Forget up to `limit` dedupe keys whose window has passed; how many."""
    return tx.execute(sql.PRUNE_DEDUPE, (now, limit))


def begin(tx: Tx, seqs: Sequence[int], *, now: float) -> dict[int, ExecutionRow]:
    """Mark executions running for the claims in this transaction; those that are already over are left out."""
    rows = [_execution(row) for row in tx.rows(sql.BEGIN_EXECUTIONS, (now, dumps(seqs)))]
    for row in rows:
        tx.emit(ExecutionStarted(row.id, row.workflow_id))
    return {row.seq: row for row in rows}


def get(tx: Tx, execution_id: str) -> ExecutionRow:
    """The execution, or NotFoundError."""
    row = tx.one(sql.GET_EXECUTION, (execution_id,))
    if row is None:
        raise NotFoundError(f"no execution {shown(execution_id)!r}", code="execution.not_found")
    return _execution(row)


def status(tx: Tx, execution_id: str) -> ExecutionStatus:
    """Its state alone, or NotFoundError."""
    row = tx.one(sql.GET_STATUS, (execution_id,))
    if row is None:
        raise NotFoundError(f"no execution {shown(execution_id)!r}", code="execution.not_found")
    return ExecutionStatus(row[0])


def find(tx: Tx, seq: int) -> ExecutionRow | None:
    """The execution with this number, if it is there."""
    row = tx.one(sql.GET_EXECUTION_BY_SEQ, (seq,))
    return None if row is None else _execution(row)


def input_of(tx: Tx, row: ExecutionRow) -> bytes:
    """What the trigger gave, as JSON text, however large."""
    if row.input is not None:
        return row.input
    found = tx.one(sql.GET_INPUT, (row.seq,))
    assert found is not None  # noqa: S101  # the row was read from there
    return bytes(found[0])


def input_weight(tx: Tx, seq: int) -> int:
    """About how many bytes of memory what the trigger gave takes as values.

    Reckoned from the text, rather too high: Python takes up to fifty times the bytes of a JSON text for it.
    """
    found = tx.one(sql.WEIGH_INPUT, (seq,))
    if found is None:
        return 0
    size, maps, lists, members = found
    return int(2 * size + MAP_BYTES * maps + LIST_BYTES * lists + MEMBER_BYTES * members)


def outputs_bytes(tx: Tx, seq: int, keys: Sequence[str]) -> int:
    """How long the outputs of its node runs `keys` are, all together, as JSON texts."""
    found = tx.one(sql.COUNT_OUTPUTS_OF, (seq, dumps(keys)))
    return 0 if found is None else int(found[0])


def all_outputs_bytes(tx: Tx, seq: int, nodes: Sequence[NodeRow]) -> int:
    """How long the outputs of all its node runs are. `nodes`: those that are inside of no loop, as stored."""
    loops = [node.key for node in nodes if node.type == LOOP]
    found = tx.one(sql.COUNT_OUTPUTS_INSIDE, (seq, dumps(loops))) if loops else None
    return sum(len(node.output or b"") for node in nodes) + (int(found[0]) if found else 0)


def text_bytes(tx: Tx, execution_id: str) -> int:
    """How long the stored texts of an execution are, all together; 0 if there is none."""
    row = tx.one(sql.COUNT_TEXT, (execution_id,))
    return 0 if row is None else int(row[0])


def node_rows(tx: Tx, seq: int) -> list[NodeRow]:
    """The node runs of an execution, in the order they started."""
    return _nodes(tx.rows(sql.NODE_RUNS, (seq,)))


def telling_node_rows(tx: Tx, seq: int, *, limit: int) -> list[NodeRow]:
    """Up to `limit` of its node runs: all outside of loops, then what did not simply complete, then the rest."""
    return _nodes(tx.rows(sql.MOST_TELLING_NODE_RUNS, (seq, limit)))


def node_rows_of(tx: Tx, seq: int, keys: Sequence[str]) -> list[NodeRow]:
    """Those of its node runs `keys` that there are."""
    return _nodes(tx.rows(sql.NODE_RUNS_OF, (seq, dumps(keys)))) if keys else []


def node_rows_after(tx: Tx, seq: int, key: str, *, limit: int) -> list[NodeRow]:
    """Up to `limit` of its node runs with keys after `key`, by key."""
    return _nodes(tx.rows(sql.NODE_RUNS_AFTER, (seq, key, limit)))


def uncertain_node_rows(tx: Tx, seq: int) -> list[NodeRow]:
    """Those of its node runs that nobody knows the outcome of."""
    return _nodes(tx.rows(sql.UNCERTAIN_NODE_RUNS, (seq,)))


def open_node_rows(tx: Tx, seq: int, *, loop: str | None) -> list[NodeRow]:
    """Those of its node runs that have not ended, or nobody knows how; with `loop`, only inside of that one."""
    between = ("", "\x7f") if loop is None else (f"{loop}[", f"{loop}\\")  # "\\" comes after "["
    return _nodes(tx.rows(sql.OPEN_NODE_RUNS_BETWEEN, (seq, *between)))


def _nodes(rows: list[tuple[Any, ...]]) -> list[NodeRow]:
    return [NodeRow(r[0], r[1], NodeStatus(r[2]), *r[3:]) for r in rows]


def loop_items(tx: Tx, seq: int, key: str) -> dict[int, bytes | None]:
    """What the finished iterations of a running loop gave, by their number."""
    return dict(tx.rows(sql.LOOP_ITEMS, (seq, key)))


def loop_item_bytes(tx: Tx, seq: int, key: str) -> dict[int, int]:
    """How long that is which the finished iterations of a loop gave, by their number."""
    return dict(tx.rows(sql.LOOP_ITEM_BYTES, (seq, key)))


def put_loop_item(tx: Tx, seq: int, key: str, item: int, output: bytes | None) -> None:
    """Note that iteration `item` of the loop `key` has finished, and what it gave."""
    tx.execute(sql.PUT_LOOP_ITEM, (seq, key, item, output))


def drop_loop_items(tx: Tx, seq: int, key: str, *, below: int | None = None) -> None:
    """Forget what finished iterations of a loop gave; only of those with numbers `below`, if that is said."""
    if below is None:
        tx.execute(sql.DROP_LOOP_ITEMS, (seq, key))
    else:
        tx.execute(sql.DROP_FIRST_LOOP_ITEMS, (seq, key, below))


def put_nodes(tx: Tx, seq: int, nodes: Sequence[NodeRow]) -> None:
    """Write node runs, replacing what is stored of each."""
    for start in range(0, len(nodes), sql.NODE_RUNS_PER_PUT):
        some = nodes[start : start + sql.NODE_RUNS_PER_PUT]
        values: list[object] = []
        for node in some:
            values.append(seq)
            values += node
        tx.execute(sql.put_node_runs(len(some)), values)
        blobs.refer(tx, seq, [node.output for node in some])
    _count_inside(tx, seq, nodes)


def _count_inside(tx: Tx, seq: int, nodes: Sequence[NodeRow]) -> None:
    """Count the outputs of those of the node runs that are inside of a loop; each has its output once."""
    sizes: Counter[str] = Counter()
    for node in nodes:
        if node.output is not None and "[" in node.key:
            sizes[_outermost(node.key)] += len(node.output)
    for loop, size in sizes.items():
        tx.execute(sql.ADD_BYTES_INSIDE, (size, seq, loop))


def _outermost(key: str) -> str:
    """The loop that the node run `key` is in, and that is in none itself: `each` of `each[3].inner[0].price`."""
    return key.partition("[")[0]


def listed(
    tx: Tx, *, workflow_id: str | None, status: str | None, before: int, limit: int
) -> list[ExecutionSummary]:
    """Up to `limit` executions with `seq` below `before`, newest first."""
    match workflow_id, status:
        case None, None:
            rows = tx.rows(sql.LIST_EXECUTIONS, (before, limit))
        case None, ExecutionStatus.COMPLETED:
            rows = tx.rows(sql.LIST_COMPLETED, (before, limit))
        case None, _:
            rows = tx.rows(sql.LIST_EXECUTIONS_BY_STATUS, (status, before, limit))
        case _, None:
            rows = tx.rows(sql.LIST_EXECUTIONS_OF_WORKFLOW, (workflow_id, before, limit))
        case _, ExecutionStatus.COMPLETED:
            rows = tx.rows(sql.LIST_COMPLETED_OF_WORKFLOW, (workflow_id, before, limit))
        case _ if status in sql.NOTICED:
            rows = tx.rows(sql.LIST_NOTICED_OF_WORKFLOW, (workflow_id, status, before, limit))
        case _:
            rows = tx.rows(
                sql.LIST_EXECUTIONS_OF_WORKFLOW_BY_STATUS, (workflow_id, status, before, limit)
            )
    return [ExecutionSummary(*row) for row in rows]


def look(tx: Tx, seq: int) -> tuple[int, bool]:
    """(wakes, cancel requested) as they are now."""
    row = tx.one(sql.LOOK_AT_EXECUTION, (seq,))
    return (0, False) if row is None else (row[0], bool(row[1]))


def park(tx: Tx, row: ExecutionRow) -> None:
    """Leave the execution waiting. Its owner has seen in this transaction that nothing woke it since."""
    tx.execute(sql.PARK_EXECUTION, (row.seq, row.wakes))
    tx.emit(ExecutionParked(row.id, row.workflow_id, ExecutionStatus.WAITING.value))


def end(
    tx: Tx,
    row: ExecutionRow,
    status: ExecutionStatus,
    *,
    output: bytes | None,
    error: bytes | None,
    now: float,
    limit: int | None = None,
) -> None:
    """Write the state an execution reached: a final one, or `uncertain`.

    Node runs that a failed or cancelled one leaves open end with it: `unsafe` ones that were sent as
    uncertain, others as skipped; executions that they wait for are cancelled. The node run that waits for
    this one ends as it did.

    Args:
        limit: bytes that such a node run may take of its output.
    """
    is_final = status in FINAL
    tx.execute(sql.END_EXECUTION, (status.value, output, error, now if is_final else None, row.seq))
    if is_final:
        # What has completed without being woken has never set its deadline.
        if status is not ExecutionStatus.COMPLETED or row.wakes:
            tx.execute(sql.CANCEL_TIMERS, (row.seq,))
        if status is not ExecutionStatus.COMPLETED:  # what has completed left nothing open
            tx.execute(sql.END_OPEN_NODES, (now, row.seq))
            for (called,) in tx.rows(sql.ALL_CALLED, (row.seq,)):
                cancel(tx, called, now=now)
        tx.emit(ExecutionFinished(row.id, row.workflow_id, status.value))
        if row.parent_key is not None:
            end_call(tx, row, status, output or b"null", error, now=now, limit=limit)
    else:
        tx.emit(ExecutionParked(row.id, row.workflow_id, status.value))


def end_call(
    tx: Tx,
    row: ExecutionRow,
    status: ExecutionStatus,
    output: bytes,
    error: bytes | None,
    *,
    now: float,
    limit: int | None,
) -> None:
    """End the node run that waits for the execution: with its output, or as failed. Arguments as of `end`."""
    seq, key = row.parent, row.parent_key
    if seq is None or key is None:
        return
    how, text = NodeStatus.FAILED, output
    if status is ExecutionStatus.CANCELLED:
        text = _call_error("workflow.cancelled", row, "was cancelled")
    elif status is not ExecutionStatus.COMPLETED:
        reason = loads(error)["message"] if error else status.value
        text = _call_error("workflow.failed", row, f"failed: {reason}")
    elif limit is not None and len(output) > limit:
        words = f"gave {len(output)} bytes, over the limit of {limit} for an output"
        text = _call_error("node.too_large", row, words)
    else:
        how = NodeStatus.COMPLETED
    if end_wait(tx, seq, key, how, text, now=now):
        if how is NodeStatus.COMPLETED:
            blobs.refer(tx, seq, (output,))
        wake(tx, seq, now=now)
        tx.emit(CallEnded(names(tx, seq)[0], seq, key))


def _call_error(code: str, row: ExecutionRow, words: str) -> bytes:
    return dumps({"code": code, "message": f"execution {row.id} of {row.workflow_id} {words}"})


def cancel_called(tx: Tx, seq: int, key: str, *, now: float) -> None:
    """Cancel the execution that the node run `key` has waited for."""
    for (called,) in tx.rows(sql.CALLED, (seq, key)):
        cancel(tx, called, now=now)


def cancel_timer(tx: Tx, seq: int, key: str) -> None:
    """Let nothing happen to the node run `key` at the time it has waited for."""
    tx.execute(sql.CANCEL_TIMER, (seq, key))


def id_of(tx: Tx, seq: int) -> str | None:
    """The public name of an execution; None if it is not there any more."""
    return names(tx, seq)[0] or None


def fail_abandoned(tx: Tx, seq: int, *, code: str, message: str, now: float) -> None:
    """Fail an execution whose job will not run again."""
    row = find(tx, seq)
    if row is None or row.status in FINAL:
        return
    error = dumps({"code": code, "message": message})
    end(tx, row, ExecutionStatus.FAILED, output=None, error=error, now=now)


def wake(tx: Tx, row_or_seq: ExecutionRow | int, *, now: float) -> None:
    """Make sure a run will look at the execution: a live job exists, and one that runs sees `wakes` change."""
    seq = row_or_seq if isinstance(row_or_seq, int) else row_or_seq.seq
    tx.execute(sql.WAKE_EXECUTION, (seq,))
    found = tx.one(sql.CONCURRENCY_OF, (seq,))
    if found is not None and verbs.enqueue(tx, [_job(seq, *found)], now=now) != [None]:
        tx.execute(sql.REQUEUE_EXECUTION, (seq,))


def add_timer(tx: Tx, row: ExecutionRow, key: str, *, due_at: float, output: bytes | None) -> None:
    """Let the waiting node run `key` end with `output` at `due_at`; None offers the node again instead."""
    tx.execute(sql.INSERT_TIMER, (row.seq, key, due_at, output or b""))
    tx.emit(TimerSet(row.id, row.seq, key, due_at))


def fire_timers(tx: Tx, *, now: float, limit: int) -> int:
    """Fire up to `limit` due timers: finish each waiting node run and wake its execution; how many fired."""
    due = tx.rows(sql.DUE_TIMERS, (now, limit))
    for timer_id, seq, key, output in due:
        tx.execute(sql.FIRE_TIMER, (now, timer_id))
        if key == DEADLINE:
            has_changed = tx.one(sql.IS_WAITING, (seq,)) is not None
        elif output:
            has_changed = end_wait(tx, seq, key, NodeStatus.COMPLETED, output, now=now)
        else:
            has_changed = tx.execute(sql.REOPEN_WAITING_NODE, (seq, key)) > 0
        if has_changed:
            wake(tx, seq, now=now)
            tx.emit(TimerFired(names(tx, seq)[0], seq, key))
    return len(due)


def end_wait(tx: Tx, seq: int, key: str, status: NodeStatus, text: bytes, *, now: float) -> bool:
    """End a node run that waits, as completed with an output or as failed with an error; False if none waits."""
    has_failed = status is NodeStatus.FAILED
    statement = sql.FAIL_WAITING_NODE if has_failed else sql.FINISH_WAITING_NODE
    ended = tx.one(statement, (text, now, seq, key))
    if ended is None:
        return False
    if not has_failed and "[" in key:
        tx.execute(sql.ADD_BYTES_INSIDE, (len(text), seq, _outermost(key)))
    _tell_end(tx, seq, key, status, *ended, now=now)
    return True


def give_up_wait(tx: Tx, seq: int, key: str, *, now: float) -> None:
    """Skip a node run that waits, or is to be offered again; not one that has ended."""
    ended = tx.one(sql.SKIP_WAITING_NODE, (now, seq, key))
    if ended is not None:
        cancel_timer(tx, seq, key)
        _tell_end(tx, seq, key, NodeStatus.SKIPPED, *ended, now=now)


def _tell_end(
    tx: Tx,
    seq: int,
    key: str,
    status: NodeStatus,
    kind: str,
    started_at: float | None,
    *,
    now: float,
) -> None:
    execution_id, workflow_id = names(tx, seq)
    seconds = None if started_at is None else now - started_at
    tx.emit(NodeFinished(execution_id, workflow_id, None, key, kind, status.value, seconds))


def names(tx: Tx, seq: int) -> tuple[str, str]:
    """The public names of an execution and its workflow."""
    found = tx.one(sql.NAMES_OF_EXECUTION, (seq,))
    return ("", "") if found is None else (str(found[0]), str(found[1]))


def next_timer(tx: Tx) -> float | None:
    row = tx.one(sql.NEXT_TIMER)
    return None if row is None else row[0]


def oldest_due(tx: Tx, *, now: float) -> float:
    """Seconds since the longest due timer should have fired; 0 if none is."""
    due = next_timer(tx)
    return 0.0 if due is None else max(now - due, 0.0)


def cancel(tx: Tx, execution_id: str, *, now: float) -> ExecutionStatus:
    """Ask for the end of an execution; its status afterwards.

    One that no run holds is cancelled here; a running one is cancelled by its run, or after a rescue. One
    that is over stays as it is.
    """
    row = get(tx, execution_id)
    if row.status in FINAL:
        return row.status
    tx.execute(sql.REQUEST_CANCEL, (row.seq,))
    is_idle = verbs.cancel_pending(tx, kind=JOB_KIND, subject=row.seq, now=now) or row.status in (
        ExecutionStatus.WAITING,
        ExecutionStatus.UNCERTAIN,
    )
    if not is_idle:
        tx.emit(CancelRequested(row.id, row.seq))
        return row.status
    _end_cancelled(tx, row, now=now)
    return ExecutionStatus.CANCELLED


def cancel_if_asked(tx: Tx, seq: int, *, now: float) -> None:
    """End the execution if its cancel was asked for and no run holds it any more."""
    row = find(tx, seq)
    if row is not None and row.cancel_requested and row.status not in FINAL:
        verbs.cancel_pending(tx, kind=JOB_KIND, subject=seq, now=now)
        _end_cancelled(tx, row, now=now)


def _end_cancelled(tx: Tx, row: ExecutionRow, *, now: float) -> None:
    end(
        tx,
        row,
        ExecutionStatus.CANCELLED,
        output=None,
        error=dumps({"code": "execution.cancelled", "message": "cancelled by request"}),
        now=now,
    )


def cancel_requests(tx: Tx) -> list[int]:
    """The running executions whose cancel was asked for, by any process."""
    return [row[0] for row in tx.rows(sql.CANCEL_REQUESTS)]


def woken(tx: Tx, seen: Mapping[int, int]) -> list[int]:
    """Those of the executions whose wakes are no longer the ones `seen`."""
    rows = tx.rows(sql.WAKES_OF, (dumps(list(seen)),))
    return [seq for seq, wakes in rows if wakes != seen[seq]]


Decision = Literal["retry", "skip", "fail"]


def resolve(
    tx: Tx, execution_id: str, decision: Decision, *, node: str | None, now: float
) -> ExecutionStatus:
    """Say what shall become of an uncertain node run: send again, go on without it, or let it fail.

    Args:
        decision: retry sends it again; skip goes on along its success edges with no output; fail fails it.
        node: its key; may be None if the execution has exactly one uncertain node run.

    Raises:
        ConflictError: the execution is not uncertain, or the node is ambiguous or not uncertain.
    """
    row = get(tx, execution_id)
    if row.status is not ExecutionStatus.UNCERTAIN:
        raise ConflictError(
            f"execution {execution_id} is {row.status.value}, not uncertain",
            code="execution.not_uncertain",
        )
    uncertain = uncertain_node_rows(tx, row.seq)
    chosen = [n for n in uncertain if node in (None, n.key)]
    if len(chosen) != 1:
        keys = ", ".join(n.key for n in uncertain)
        raise ConflictError(
            f"name one of the uncertain nodes: {keys}", code="execution.ambiguous_node"
        )
    _settle_uncertain(tx, row.seq, chosen[0], decision, now=now)
    wake(tx, row, now=now)
    tx.emit(ExecutionQueued(row.id, row.workflow_id))
    return ExecutionStatus.QUEUED


def _settle_uncertain(tx: Tx, seq: int, node: NodeRow, decision: Decision, *, now: float) -> None:
    metadata: dict[str, Json] = loads(node.metadata) if node.metadata else {}
    metadata["resolved"] = decision
    status, error = {
        "retry": (NodeStatus.PENDING, None),
        "skip": (NodeStatus.SKIPPED, None),
        "fail": (NodeStatus.FAILED, node.error),
    }[decision]
    tx.execute(
        sql.MOVE_NODE_RUN,
        (
            status.value,
            None,
            error,
            now,
            dumps(metadata),
            seq,
            node.key,
            NodeStatus.UNCERTAIN.value,
        ),
    )


def _execution(row: tuple[object, ...]) -> ExecutionRow:
    values = list(row)
    values[4] = ExecutionStatus(str(values[4]))
    values[12] = bool(values[12])
    return ExecutionRow(*values)  # type: ignore[arg-type]  # as selected, column by column


def as_json(stored: bytes | None) -> Json:
    """A stored JSON text as a value; absent is null."""
    return None if stored is None else loads(stored)
