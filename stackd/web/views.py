"""Stored rows as what the API shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stackd.client.models import (
    ErrorView,
    ExecutionSummaryView,
    ExecutionView,
    FindingView,
    Model,
    MoveView,
    NodeRunList,
    NodeRunView,
    ParentView,
    ServiceView,
    TriggerView,
    VersionView,
    WebhookAddress,
    WorkflowView,
)
from stackd.core.clock import rfc3339
from stackd.core.json import dumps
from stackd.supervisor.supervisor import Report
from stackd.web.redaction import without_secrets
from stackd.workflows.catalogue import VersionRow, WorkflowRow
from stackd.workflows.executions import ExecutionRow, ExecutionSummary, NodeRow, NodeStatus, as_json
from stackd.workflows.findings import Finding
from stackd.workflows.model import WAIT


def workflow_view(
    row: WorkflowRow,
    webhooks: list[WebhookAddress],
    document: dict[str, Any] | None = None,
    warnings: Iterable[Finding] | None = None,
) -> WorkflowView:
    return WorkflowView(
        id=row.id,
        name=row.name,
        version=row.version,
        active=row.active,
        content_hash=row.content_hash,
        created_at=rfc3339(row.created_at) or "",
        updated_at=rfc3339(row.updated_at) or "",
        webhooks=webhooks,
        warnings=None if warnings is None else [finding_view(one) for one in warnings],
        document=document,
    )


def version_view(row: VersionRow, document: dict[str, Any] | None = None) -> VersionView:
    return VersionView(
        version=row.version,
        created_at=rfc3339(row.created_at) or "",
        content_hash=row.content_hash,
        current=row.is_current,
        document=document,
    )


def finding_view(finding: Finding) -> FindingView:
    return FindingView(
        severity=finding.severity,
        code=finding.code,
        message=finding.message,
        line=finding.line,
        column=finding.column,
        hint=finding.hint,
    )


def _error(text: bytes | None) -> ErrorView | None:
    value = as_json(text)
    return None if value is None else ErrorView.model_validate(value)


def service_view(report: Report) -> ServiceView:
    return ServiceView(
        name=report.name,
        state=report.state.value,
        reason=report.reason,
        since=rfc3339(report.since) or "",
        silent_seconds=None if report.silent_for is None else round(report.silent_for, 3),
        restarts=report.restarts,
        moves=[
            MoveView(at=rfc3339(move.at) or "", was=move.was, state=move.state, reason=move.reason)
            for move in report.moves
        ],
    )


def summary_view(row: ExecutionSummary) -> ExecutionSummaryView:
    return ExecutionSummaryView(
        id=row.id,
        workflow_id=row.workflow_id,
        version=row.version,
        status=row.status,
        trigger=TriggerView(type=row.trigger_type, node_id=row.trigger_node),
        error=_error(row.error),
        created_at=rfc3339(row.created_at) or "",
        started_at=rfc3339(row.started_at),
        finished_at=rfc3339(row.finished_at),
    )


LinkOf = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class ExecutionInFull:
    """All that is shown of an execution.

    `given`: its input; `more`: it has more node runs than `nodes`; `link`: of a node run that waits for a call, if
    who asks may call it.
    """

    row: ExecutionRow
    parent_id: str | None
    given: bytes
    nodes: list[NodeRow]
    more: bool
    link: LinkOf | None


def execution_parts(found: ExecutionInFull) -> list[bytes]:
    """The parts of an `ExecutionView` as JSON. Stored texts go in as they are, but for secrets."""
    row, shown = found.row, without_secrets(found.given)
    texts = {
        "input": shown,
        "output": without_secrets(row.output or b"null"),
        "nodes": _node_parts(found.nodes, {row.trigger_node: shown}, found.link),
    }
    return _filled(_execution_view(found), texts)


def node_list_parts(
    nodes: list[NodeRow], next_cursor: str | None, link: LinkOf | None
) -> list[bytes]:
    """The parts of a `NodeRunList` as JSON, but that triggers are without their output. `link`: as of an execution."""
    page = NodeRunList(items=[], next_cursor=next_cursor)
    return _filled(page, {"items": _node_parts(nodes, {}, link)})


def _node_parts(
    nodes: list[NodeRow], shown: dict[str, list[bytes]], link: LinkOf | None
) -> list[bytes]:
    """Node runs as a JSON list. `shown`: outputs that are at hand already, by key."""
    parts: list[bytes] = []
    for node in nodes:
        output = shown.get(node.key) or without_secrets(node.output or b"null")
        parts += [b"," if parts else b"[", *_filled(_node_view(node, link), {"output": output})]
    return [*(parts or [b"["]), b"]"]


def _filled(view: Model, texts: dict[str, list[bytes]]) -> list[bytes]:
    """The parts of `view` as a JSON object, with `texts` in place of the members they name."""
    parts: list[bytes] = []
    for name, value in view.as_json().items():
        parts += [b"," if parts else b"{", dumps(name), b":", *texts.get(name, [dumps(value)])]
    return [*parts, b"}"]


def _execution_view(found: ExecutionInFull) -> ExecutionView:
    """The execution without what is stored as text: input, output and node runs."""
    row = found.row
    parent = (
        None
        if found.parent_id is None
        else ParentView(execution_id=found.parent_id, node=row.parent_key)
    )
    return ExecutionView(
        parent=parent,
        more_nodes=found.more,
        id=row.id,
        workflow_id=row.workflow_id,
        version=row.version,
        status=row.status.value,
        trigger=TriggerView(type=row.trigger_type, node_id=row.trigger_node),
        input=None,
        output=None,
        error=_error(row.error),
        created_at=rfc3339(row.created_at) or "",
        started_at=rfc3339(row.started_at),
        finished_at=rfc3339(row.finished_at),
        nodes=[],
    )


def _node_view(node: NodeRow, link: LinkOf | None) -> NodeRunView:
    """The node run without its output."""
    took = (
        None
        if node.started_at is None or node.finished_at is None
        else round((node.finished_at - node.started_at) * 1000, 3)
    )
    metadata = as_json(node.metadata) or {}
    if node.idempotency_key is not None:
        metadata = {**metadata, "idempotencyKey": node.idempotency_key}
    if link is not None and node.type == WAIT and node.status is NodeStatus.WAITING:
        metadata = {**metadata, "resumeUrl": link(node.key)}
    return NodeRunView(
        id=node.key,
        type=node.type,
        status=node.status.value,
        attempt=node.attempt,
        started_at=rfc3339(node.started_at),
        duration_ms=took,
        output=None,
        error=_error(node.error),
        logs=[],
        metadata=metadata,
    )
