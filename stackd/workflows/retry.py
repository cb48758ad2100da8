"""Letting an execution that has ended go on, as the same execution: what is done stays done.

Node runs that are tried again keep their idempotency keys: what did happen at the far side, though nobody here
knows of it, does not happen twice.
"""

from __future__ import annotations

from stackd.core.errors import ConflictError, GoneError, InputError
from stackd.core.json import dumps
from stackd.core.names import nearest
from stackd.store.connection import Tx
from stackd.workflows import executions, history
from stackd.workflows import statements as sql
from stackd.workflows.executions import FINAL, ExecutionQueued, ExecutionStatus
from stackd.workflows.graph import Graph, reach


def retry(
    tx: Tx, execution_id: str, graph: Graph, *, start: str | None, now: float
) -> ExecutionStatus:
    """Queue an execution that has ended once more; its state afterwards.

    It goes on at the node runs that failed it. What is uncertain stays so, and asks for a decision.

    Args:
        graph: of its version.
        start: a node that is run anew, with all that follows it, even if they had completed.

    Raises:
        ConflictError: it has not ended, or has completed and no `start` is named.
        GoneError: it is being removed.
        InputError: there is no such node.
    """
    row = executions.get(tx, execution_id)
    if row.status not in FINAL:
        hint = "see `stackd executions resolve`" if row.status == "uncertain" else None
        raise ConflictError(
            f"execution {execution_id} is {row.status.value}, and has not ended",
            code="execution.not_ended",
            hint=hint,
        )
    if row.status is ExecutionStatus.COMPLETED and start is None:
        raise ConflictError(
            f"execution {execution_id} has completed: there is nothing to try again",
            code="execution.completed",
            hint="name a node to run again from: `stackd executions retry ID --from NODE`",
        )
    if history.is_going(tx, row.seq):
        raise GoneError(f"execution {execution_id} is being removed", code="execution.going")
    again = [] if start is None else _behind(graph, start)
    for key in again:
        _forget_inside(tx, row.seq, key)
    tx.execute(sql.DROP_EARLY_CALLS, (row.seq, dumps(again)))
    failed = [key for (key,) in tx.rows(sql.FAILED_KEYS, (row.seq,)) if _has_failed_all(graph, key)]
    tx.execute(sql.REOPEN_NODES, (row.seq, dumps([*again, *failed])))
    tx.execute(sql.REOPEN_CUT_OFF_NODES, (row.seq,))
    tx.execute(sql.DROP_SKIPPED_NODES, (row.seq,))
    tx.execute(sql.REOPEN_EXECUTION, (row.seq,))
    executions.wake(tx, row, now=now)
    tx.emit(ExecutionQueued(row.id, row.workflow_id))
    return ExecutionStatus.QUEUED


def _behind(graph: Graph, start: str) -> list[str]:
    """The node and all that edges lead to from it."""
    node = graph.nodes.get(start)
    if node is None or node.is_trigger:
        known = [key for key, one in graph.nodes.items() if not one.is_trigger]
        meant = nearest(start, known)
        hint = f"known: {', '.join(known)[:500]}" if known else "it has triggers only"
        raise InputError(
            f"{start[:80]!r} is no node of this workflow that could be run again",
            code="execution.unknown_node",
            hint=f"did you mean {meant!r}?" if meant else hint,
        )
    return sorted(reach([start], {key: one.out_edges for key, one in graph.nodes.items()}))


def _forget_inside(tx: Tx, seq: int, key: str) -> None:
    """Forget what a loop has done: `each[3].price` and its like. Of any other node there is nothing."""
    between = (seq, f"{key}[", f"{key}\\")  # \ is the character behind [
    tx.execute(sql.DROP_NODES_BETWEEN, between)
    tx.execute(sql.DROP_LOOP_ITEMS_BETWEEN, between)
    tx.execute(sql.DROP_EARLY_CALLS_BETWEEN, between)
    tx.execute(sql.DROP_LOOP_ITEMS, (seq, key))
    tx.execute(sql.NO_BYTES_INSIDE, (seq, key))


def _has_failed_all(graph: Graph, key: str) -> bool:
    """Whether a failed node run has failed what it stands in; one that may fail has been followed by others."""
    return all(node.on_error == "fail" for node in graph.way_to(key))
