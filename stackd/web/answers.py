"""Answers that several routes give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from stackd.core.aside import aside_if
from stackd.core.budget import Share
from stackd.core.json import LARGE, dumps
from stackd.store.connection import Tx
from stackd.web.context import of
from stackd.web.views import execution_parts
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow, NodeRow

SLICE = 256 * 1024  # bytes given to the socket at a time
ROOM_PATIENCE = 10.0  # seconds a large answer waits for room


def started(execution_id: str, workflow_id: str) -> dict[str, Any]:
    return {"success": True, "executionId": execution_id, "workflowId": workflow_id}


def accepted(body: dict[str, Any]) -> web.Response:
    return web.Response(status=202, body=dumps(body), content_type="application/json")


async def rested(request: web.Request, execution_id: str) -> web.StreamResponse:
    """An execution in full."""
    store, bodies = of(request).store, of(request).bodies
    size = await store.read(lambda tx: executions.text_bytes(tx, execution_id))
    held = 2 * size if size > LARGE else 0  # the texts, and what is shown of them
    with Share(bodies.budget) as share:
        await share.obtain(held, patience=ROOM_PATIENCE)
        read = await store.read(lambda tx: _in_full(tx, execution_id))
        parts = await aside_if(size > LARGE, execution_parts, *read)
        return await in_parts(request, parts)


def _in_full(tx: Tx, execution_id: str) -> tuple[ExecutionRow, bytes, list[NodeRow]]:
    row = executions.get(tx, execution_id)
    return row, executions.input_of(tx, row), executions.node_rows(tx, row.seq)


async def in_parts(request: web.Request, parts: Sequence[bytes]) -> web.StreamResponse:
    """`parts`, one after another, as one JSON answer: slice by slice if it is large.

    Raises:
        ConnectionError: the client is gone, or takes none of it any more.
    """
    size = sum(map(len, parts))
    if size <= LARGE:
        return web.Response(body=b"".join(parts), content_type="application/json")
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    answer.content_length = size
    await answer.prepare(request)
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(part), SLICE):
            await answer.write(view[start : start + SLICE])
    await answer.write_eof()
    return answer
