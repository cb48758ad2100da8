"""A history made to order: executions with parts of any size, that ended at given times, and who called whom."""

from __future__ import annotations

from stackd.core.ids import sortable_id
from stackd.store.connection import Tx

ENDED = ("completed", "failed", "cancelled")


def add_workflow(tx: Tx, workflow_id: str = "w") -> None:
    tx.execute("INSERT INTO workflows VALUES (?, ?, 1, 1, NULL, 0, 0)", (workflow_id, workflow_id))
    tx.execute("INSERT INTO workflow_versions VALUES (?, 1, 'x', x'7b7d', 0)", (workflow_id,))


def add(
    tx: Tx,
    ended_at: float | None,
    *,
    status: str | None = None,
    workflow_id: str = "w",
    nodes: int = 1,
    node_bytes: int = 2,
    parent: int | None = None,
    waits: bool = True,
) -> int:
    """An execution that ended then, or is open; its number. `waits`: its parent waits, or has waited, for it."""
    status = status or ("waiting" if ended_at is None else "completed")
    seq = tx.insert(
        "INSERT INTO executions (id, workflow_id, version, status, trigger_type, trigger_node, input,"
        " created_at, finished_at, parent, parent_key) VALUES (?, ?, 1, ?, '', '', x'7b7d', ?, ?, ?, ?)",
        (
            sortable_id(ended_at or 1.0),
            workflow_id,
            status,
            0,
            ended_at,
            parent,
            "call" if parent is not None and waits else None,
        ),
    )
    tx.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO node_runs (execution, key, type, status, attempt, effect, output)"
        " SELECT ?, printf('n%06d', i), '', 'completed', 1, 'read', zeroblob(?) FROM n",
        (nodes, seq, node_bytes),
    )
    return seq


def seqs(tx: Tx) -> set[int]:
    """The executions that are there."""
    return {row[0] for row in tx.rows("SELECT seq FROM executions")}
