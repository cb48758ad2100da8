"""Calls to the link of a node run: the first ends its wait, be the node there already or not; no other does anything."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.clock import epoch
from stackd.core.errors import GoneError, NotFoundError
from stackd.core.events import Event
from stackd.core.json import loads
from stackd.store.connection import Tx
from stackd.workflows import blobs, executions
from stackd.workflows import statements as sql
from stackd.workflows.executions import FINAL, ExecutionRow, NodeRow, NodeStatus

EXPIRES = "expiresAt"  # in the metadata of a node run that waits for a call: an RFC 3339 instant


@dataclass(frozen=True, slots=True)
class NodeResumed(Event):
    """A call to the link of a node run has ended its wait."""

    execution_id: str
    execution: int
    key: str


def callable_execution(tx: Tx, execution_id: str, key: str, *, now: float) -> ExecutionRow:
    """The execution, whose node run `key` waits for a call or will do so.

    Raises:
        GoneError: it was called, its time is over, or the execution is.
    """
    try:
        row = executions.get(tx, execution_id)
    except NotFoundError:  # who has a good link once had an execution
        raise GoneError(f"execution {execution_id} is no longer kept", code="link.over") from None
    nodes = executions.node_rows_of(tx, row.seq, [key])
    node = nodes[0] if nodes else None
    if tx.one(sql.EARLY_CALL, (row.seq, key)) or (node and node.status is NodeStatus.COMPLETED):
        raise GoneError(f"{key} was called already", code="link.used")
    if node and has_expired(node, now=now):
        raise GoneError(f"the time to call {key} is over", code="link.expired")
    if row.status in FINAL or row.cancel_requested:
        raise GoneError(f"execution {execution_id} is over", code="link.over")
    if node and node.status in (NodeStatus.FAILED, NodeStatus.SKIPPED):
        raise GoneError(f"{key} waits no more: it is {node.status.value}", code="link.over")
    return row


def has_expired(node: NodeRow, *, now: float) -> bool:
    """Whether the node run has waited for a call, for as long as it may."""
    at = None if node.metadata is None else loads(node.metadata).get(EXPIRES)
    return at is not None and epoch(at) <= now


def resume(tx: Tx, execution_id: str, key: str, output: bytes, *, now: float) -> ExecutionRow:
    """End the wait of the node run `key` with `output`, JSON; one that does not wait yet will end with it at once.

    Raises:
        GoneError: as `callable_execution`; nothing has changed.
    """
    row = callable_execution(tx, execution_id, key, now=now)
    if executions.end_wait(tx, row.seq, key, NodeStatus.COMPLETED, output, now=now):
        executions.cancel_timer(tx, row.seq, key)
        _go_on(tx, row, key, now=now)
    else:
        tx.execute(sql.KEEP_EARLY_CALL, (row.seq, key, output))
    blobs.refer(tx, row.seq, (output,))
    return row


def await_call(tx: Tx, row: ExecutionRow, key: str, *, expires_at: float, now: float) -> None:
    """Let the node run `key`, which waits since this transaction, end with a call or be offered at `expires_at`."""
    early = tx.one(sql.EARLY_CALL, (row.seq, key))
    if early is None:
        executions.add_timer(tx, row, key, due_at=expires_at, output=None)
    elif executions.end_wait(tx, row.seq, key, NodeStatus.COMPLETED, early[0], now=now):
        _go_on(tx, row, key, now=now)


def _go_on(tx: Tx, row: ExecutionRow, key: str, *, now: float) -> None:
    executions.wake(tx, row, now=now)
    tx.emit(NodeResumed(row.id, row.seq, key))
