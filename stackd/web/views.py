"""Stored rows as what the API shows."""

from __future__ import annotations

from typing import Any

from stackd.client.models import (
    ErrorView,
    ExecutionSummaryView,
    ExecutionView,
    Model,
    NodeRunView,
    TriggerView,
    WebhookAddress,
    WorkflowView,
)
from stackd.core.clock import rfc3339
from stackd.core.json import dumps
from stackd.web.redaction import without_secrets
from stackd.workflows.catalogue import WorkflowRow
from stackd.workflows.executions import ExecutionRow, ExecutionSummary, NodeRow, as_json


def workflow_view(
    row: WorkflowRow, webhooks: list[WebhookAddress], document: dict[str, Any] | None = None
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
        document=document,
    )


def _error(text: bytes | None) -> ErrorView | None:
    value = as_json(text)
    return None if value is None else ErrorView.model_validate(value)


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


def execution_parts(row: ExecutionRow, given: bytes, nodes: list[NodeRow]) -> list[bytes]:
    """The parts of an `ExecutionView` as JSON. Stored texts go in as they are, but for secrets."""
    shown = without_secrets(given)
    inside: list[bytes] = []
    for node in nodes:
        output = shown if node.key == row.trigger_node else without_secrets(node.output or b"null")
        inside += [b"," if inside else b"[", *_filled(_node_view(node), {"output": output})]
    texts = {
        "input": shown,
        "output": without_secrets(row.output or b"null"),
        "nodes": [*(inside or [b"["]), b"]"],
    }
    return _filled(_execution_view(row), texts)


def _filled(view: Model, texts: dict[str, list[bytes]]) -> list[bytes]:
    """The parts of `view` as a JSON object, with `texts` in place of the members they name."""
    parts: list[bytes] = []
    for name, value in view.as_json().items():
        parts += [b"," if parts else b"{", dumps(name), b":", *texts.get(name, [dumps(value)])]
    return [*parts, b"}"]


def _execution_view(row: ExecutionRow) -> ExecutionView:
    """The execution without what is stored as text: input, output and node runs."""
    return ExecutionView(
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


def _node_view(node: NodeRow) -> NodeRunView:
    """The node run without its output."""
    took = (
        None
        if node.started_at is None or node.finished_at is None
        else round((node.finished_at - node.started_at) * 1000, 3)
    )
    metadata = as_json(node.metadata) or {}
    if node.idempotency_key is not None:
        metadata = {**metadata, "idempotencyKey": node.idempotency_key}
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
