"""Stored rows as what the API shows."""

from __future__ import annotations

from typing import Any

from stackd.client.models import (
    ErrorView,
    ExecutionSummaryView,
    ExecutionView,
    NodeRunView,
    TriggerView,
    WebhookAddress,
    WorkflowView,
)
from stackd.core.clock import rfc3339
from stackd.core.json import Json
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


def execution_view(row: ExecutionRow, nodes: list[NodeRow]) -> ExecutionView:
    trigger_output = as_json(row.input)
    return ExecutionView(
        id=row.id,
        workflow_id=row.workflow_id,
        version=row.version,
        status=row.status.value,
        trigger=TriggerView(type=row.trigger_type, node_id=row.trigger_node),
        input=trigger_output,
        output=as_json(row.output),
        error=_error(row.error),
        created_at=rfc3339(row.created_at) or "",
        started_at=rfc3339(row.started_at),
        finished_at=rfc3339(row.finished_at),
        nodes=[_node_view(row, node, trigger_output) for node in nodes],
    )


def _node_view(row: ExecutionRow, node: NodeRow, trigger_output: Json) -> NodeRunView:
    is_trigger = node.key == row.trigger_node
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
        output=trigger_output if is_trigger else as_json(node.output),
        error=_error(node.error),
        logs=[],
        metadata=metadata,
    )
