"""The workflows in the store: importing a document, its immutable versions, activation, webhook addresses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from stackd.core.errors import ConflictError, NotFoundError
from stackd.core.events import Event
from stackd.core.text import shown
from stackd.store.connection import Tx
from stackd.workflows import executions
from stackd.workflows import statements as sql
from stackd.workflows.coverage import refuse_uncovered
from stackd.workflows.findings import Finding

WEBHOOK_ID_BYTES = 8  # 16 hex digits, as the origin's


@dataclass(frozen=True, slots=True)
class WorkflowChanged(Event):
    """A workflow got a new current version, or was activated or deactivated."""

    workflow_id: str


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow and its current version. Instants: epoch seconds."""

    id: str
    name: str
    version: int
    active: bool
    created_at: float
    updated_at: float
    content_hash: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a workflow, which never changes."""

    version: int
    created_at: float
    content_hash: str
    is_current: bool


@dataclass(frozen=True, slots=True)
class WebhookNode:
    """A webhook trigger of a document; `path` None asks for a generated one."""

    node_id: str
    path: str | None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. `created`: this content was not there before."""

    row: WorkflowRow
    created: bool
    webhooks: tuple[tuple[str, str], ...]  # (node id, path)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A validated document, ready to store."""

    workflow_id: str
    name: str
    content_hash: str
    document: bytes
    concurrency: int | None
    webhooks: Sequence[WebhookNode]


def import_version(
    tx: Tx,
    new: NewVersion,
    *,
    activate: bool,
    now: float,
    findings: Sequence[Finding] = (),
    name: str | None = None,
) -> Imported:
    """Store a document as the current version of its workflow; the same content keeps its version.

    `findings`: of the document; if any of them bars that, neither is it activated nor does it become the version of
    an active workflow, and nothing is stored. `name`: what an error calls the document.

    Raises:
        ConflictError: another workflow answers on one of its webhook paths.
        UncoveredError: it would be active, and something bars that.
    """
    current = tx.one(sql.CURRENT_VERSION, (new.workflow_id,))
    known = tx.one(sql.FIND_VERSION, (new.workflow_id, new.content_hash))
    newest = tx.one(sql.NEWEST_VERSION, (new.workflow_id, new.workflow_id))
    version = known[0] if known is not None else (newest[0] if newest else 0) + 1
    active_version = current[0] if current is not None and current[1] else None
    if (activate or active_version is not None) and active_version != version:
        refuse_uncovered(new.workflow_id, findings, name=name)
    if current is None:
        tx.execute(
            sql.INSERT_WORKFLOW,
            (new.workflow_id, new.name, version, int(activate), new.concurrency, now, now),
        )
    elif current[0] != version:
        tx.execute(sql.MOVE_WORKFLOW, (new.name, version, new.concurrency, now, new.workflow_id))
    if known is None:
        tx.execute(
            sql.INSERT_VERSION, (new.workflow_id, version, new.content_hash, new.document, now)
        )
    _bind_webhooks(tx, new)
    executions.change_concurrency(
        tx,
        new.workflow_id,
        new.concurrency,
        had_one=current is not None and current[2] is not None,
    )
    if activate and current is not None:
        set_active(tx, new.workflow_id, active=True, now=now)
    tx.emit(WorkflowChanged(new.workflow_id))
    return Imported(get(tx, new.workflow_id), known is None, tuple(webhooks(tx, new.workflow_id)))


def _bind_webhooks(tx: Tx, new: NewVersion) -> None:
    tx.execute(sql.UNBIND_WEBHOOKS, (new.workflow_id,))
    tx.execute(sql.DROP_UNBOUND_PATHS, (new.workflow_id,))  # first: a node may take another path
    for node in new.webhooks:
        path = node.path
        if path is None:
            kept = tx.one(sql.GENERATED_WEBHOOK, (new.workflow_id, node.node_id))
            path = kept[0] if kept is not None else secrets.token_hex(WEBHOOK_ID_BYTES)
        else:
            _refuse_taken_path(tx, path, new.workflow_id)
        tx.execute(sql.BIND_WEBHOOK, (path, new.workflow_id, node.node_id, int(node.path is None)))


def _refuse_taken_path(tx: Tx, path: str, workflow_id: str) -> None:
    owner = tx.one(sql.WEBHOOK_OWNER, (path,))
    if owner is not None and (owner[0] != workflow_id or owner[2]):
        raise ConflictError(
            f"webhook path {path!r} belongs to workflow {owner[0]!r} (node {owner[1]!r})",
            code="webhook.path_taken",
            hint="choose another params.path",
        )


def get(tx: Tx, workflow_id: str) -> WorkflowRow:
    """The workflow, or NotFoundError."""
    row = tx.one(sql.GET_WORKFLOW, (workflow_id,))
    if row is None:
        raise NotFoundError(f"no workflow {shown(workflow_id)!r}", code="workflow.not_found")
    return _workflow(row)


def listed(tx: Tx, *, after: str, limit: int) -> list[WorkflowRow]:
    """Up to `limit` workflows with ids after `after`, by id."""
    return [_workflow(row) for row in tx.rows(sql.LIST_WORKFLOWS, (after, limit))]


def _workflow(row: tuple[object, ...]) -> WorkflowRow:
    values = list(row)
    values[3] = bool(values[3])
    return WorkflowRow(*values)  # type: ignore[arg-type]  # as selected, column by column


def set_active(tx: Tx, workflow_id: str, *, active: bool, now: float) -> WorkflowRow:
    """Let the workflow's triggers start executions, or not; the workflow afterwards."""
    get(tx, workflow_id)
    if tx.execute(sql.SET_ACTIVE, (int(active), now, workflow_id, int(active))):
        tx.emit(WorkflowChanged(workflow_id))
    return get(tx, workflow_id)


def webhooks(tx: Tx, workflow_id: str) -> list[tuple[str, str]]:
    """(node id, path) of every webhook the current version answers on."""
    return [(row[0], row[1]) for row in tx.rows(sql.LIST_WEBHOOKS, (workflow_id,))]


def webhooks_between(tx: Tx, first: str, last: str) -> dict[str, list[tuple[str, str]]]:
    """As `webhooks`, of each workflow that has one and whose id is from `first` to `last`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for workflow_id, node_id, path in tx.rows(sql.LIST_WEBHOOKS_BETWEEN, (first, last)):
        found.setdefault(workflow_id, []).append((node_id, path))
    return found


@dataclass(frozen=True, slots=True)
class WebhookRoute:
    """Where a webhook path leads at this moment."""

    workflow_id: str
    node_id: str
    version: int
    active: bool


def resolve_webhook(tx: Tx, path: str) -> WebhookRoute | None:
    row = tx.one(sql.RESOLVE_WEBHOOK, (path,))
    return None if row is None else WebhookRoute(row[0], row[1], row[2], bool(row[3]))


def is_current(tx: Tx, workflow_id: str, version: int) -> bool:
    """Whether the workflow is active and `version` is still its current one."""
    row = tx.one(sql.CURRENT_VERSION, (workflow_id,))
    return row is not None and row[0] == version and bool(row[1])


def document(tx: Tx, workflow_id: str, version: int) -> bytes:
    """The stored JSON of one version."""
    row = tx.one(sql.GET_DOCUMENT, (workflow_id, version))
    if row is None:
        raise _no_version(workflow_id, version)
    return bytes(row[0])


def versions(tx: Tx, workflow_id: str, *, before: int, limit: int) -> list[VersionRow]:
    """Up to `limit` versions below `before`, newest first."""
    current = get(tx, workflow_id).version
    rows = tx.rows(sql.LIST_VERSIONS, (workflow_id, before, limit))
    return [VersionRow(row[0], row[1], row[2], row[0] == current) for row in rows]


def version(tx: Tx, workflow_id: str, number: int) -> VersionRow:
    """One version, or NotFoundError."""
    current = get(tx, workflow_id).version
    row = tx.one(sql.GET_VERSION, (workflow_id, number))
    if row is None:
        raise _no_version(workflow_id, number)
    return VersionRow(row[0], row[1], row[2], number == current)


def version_before(tx: Tx, workflow_id: str) -> int:
    """The newest version below the current one.

    Raises:
        ConflictError: there is none.
    """
    current = get(tx, workflow_id).version
    earlier = versions(tx, workflow_id, before=current, limit=1)
    if not earlier:
        raise ConflictError(
            f"workflow {workflow_id!r} has no version before its current one, {current}",
            code="workflow.no_earlier_version",
            hint=f"see `stackd workflows versions {workflow_id}`",
        )
    return earlier[0].version


def _no_version(workflow_id: str, number: int) -> NotFoundError:
    return NotFoundError(
        f"workflow {workflow_id!r} has no version {number}",
        code="workflow.no_version",
        hint=f"see `stackd workflows versions {workflow_id}`",
    )
