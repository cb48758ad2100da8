"""Answers that several routes give."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from stackd.core.json import dumps
from stackd.web.context import Context
from stackd.web.views import execution_text
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow


def started(execution_id: str, workflow_id: str) -> dict[str, Any]:
    return {"success": True, "executionId": execution_id, "workflowId": workflow_id}


def accepted(body: dict[str, Any]) -> web.Response:
    return web.Response(status=202, body=dumps(body), content_type="application/json")


async def rested(context: Context, row: ExecutionRow) -> web.Response:
    """An execution in full."""
    nodes = await context.store.read(lambda tx: executions.node_rows(tx, row.seq))
    return web.Response(body=execution_text(row, nodes), content_type="application/json")
