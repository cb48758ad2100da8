"""Deleting a workflow with its history, a bounded part in each transaction.

It starts nothing by itself from the first part on. Killed in the middle, it is an inactive workflow with less of a
history, and the next call goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.errors import ConflictError
from stackd.core.events import Event
from stackd.store.connection import Tx
from stackd.workflows import catalogue, history
from stackd.workflows import statements as sql

CANDIDATES = 500  # executions, and dedupe keys, that one transaction looks at
VERSIONS = 16  # per transaction; each is a document
NAMED = 5  # open executions that a refusal names


@dataclass(frozen=True, slots=True)
class WorkflowDeleted(Event):
    """A workflow is gone, with its versions, webhooks, dedupe keys and executions."""

    workflow_id: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one transaction removed: that many executions, and, if `is_done`, the workflow itself."""

    executions: int
    is_done: bool


def refuse_open(tx: Tx, workflow_id: str) -> None:
    """Return if nothing of the workflow is open.

    Raises:
        NotFoundError: there is no such workflow.
        ConflictError: executions of it have not ended; names some.
    """
    catalogue.get(tx, workflow_id)
    found = tx.rows(sql.OPEN_OF_WORKFLOW, (workflow_id, NAMED + 1))
    if found:
        named = ", ".join(f"{row[0]} ({row[1]})" for row in found[:NAMED])
        raise ConflictError(
            f"executions of {workflow_id!r} have not ended: {named}{' …' if len(found) > NAMED else ''}",
            code="workflow.in_use",
            hint="wait for them, or end them with `stackd executions cancel`; then delete it again",
        )


def delete_part(tx: Tx, workflow_id: str, *, now: float) -> Deleted:
    """Remove a part of the workflow, or what is left of it.

    Raises:
        NotFoundError, ConflictError: as `refuse_open`.
    """
    row = catalogue.set_active(tx, workflow_id, active=False, now=now)
    last, has_any = 0, False
    while seqs := [
        found[0] for found in tx.rows(sql.EXECUTIONS_OF_WORKFLOW, (workflow_id, last, CANDIDATES))
    ]:
        taken = history.take(tx, seqs)
        if taken.executions or taken.has_more:
            return Deleted(taken.executions, is_done=False)
        last, has_any = seqs[-1], True  # all of these are open
    if has_any:
        refuse_open(tx, workflow_id)
    if tx.execute(sql.DROP_KEYS_OF_WORKFLOW, (workflow_id, CANDIDATES)):
        return Deleted(0, is_done=False)
    newest = tx.one(sql.NEWEST_VERSION, (workflow_id, workflow_id))
    tx.execute(sql.KEEP_NEWEST_VERSION, (workflow_id, newest[0] if newest else row.version))
    if tx.execute(sql.DROP_OTHER_VERSIONS, (workflow_id, workflow_id, row.version, VERSIONS)):
        return Deleted(0, is_done=False)
    tx.execute(sql.DROP_WORKFLOW, (workflow_id,))
    tx.emit(catalogue.WorkflowChanged(workflow_id))
    tx.emit(WorkflowDeleted(workflow_id))
    return Deleted(0, is_done=True)
