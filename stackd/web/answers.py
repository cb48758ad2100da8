"""Answers that several routes give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.core.aside import aside_if
from stackd.core.budget import Share
from stackd.core.json import LARGE, dumps
from stackd.store.connection import Tx
from stackd.vault import texts
from stackd.vault.records import Vault
from stackd.web.auth import caller_of
from stackd.web.context import of
from stackd.web.views import ExecutionInFull, LinkOf, execution_parts, node_list_parts
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NodeRow

SLICE = 256 * 1024  # bytes given to the socket at a time
NODES_SHOWN = 1000  # node runs that an execution is shown with; a loop may have any number
MANY_NODES = 100  # more take longer to be written down than others should wait
ROOM_PATIENCE = 3.0  # seconds a large answer waits for room; it may be asked for again


def started(execution_id: str, workflow_id: str) -> dict[str, Any]:
    return {"success": True, "executionId": execution_id, "workflowId": workflow_id}


def accepted(body: dict[str, Any]) -> web.Response:
    return web.Response(status=202, body=dumps(body), content_type="application/json")


async def rested(request: web.Request, execution_id: str) -> web.StreamResponse:
    """An execution in full.

    Raises:
        OverloadedError: it is large, and there was no room for it in time.
    """
    async with _room_for(request, execution_id) as is_large:
        link = _link(request, execution_id)
        context = of(request)
        found = await context.store.read(lambda tx: _in_full(tx, context.vault, execution_id, link))
        is_large = is_large or len(found.nodes) > MANY_NODES
        return await in_parts(request, await aside_if(is_large, execution_parts, found))


def _in_full(tx: Tx, vault: Vault, execution_id: str, link: LinkOf | None) -> ExecutionInFull:
    row = executions.get(tx, execution_id)
    nodes = _shown(tx, vault, executions.telling_node_rows(tx, row.seq, limit=NODES_SHOWN + 1))
    return ExecutionInFull(
        replace(row, output=_shown_text(tx, vault, row.output)),
        None if row.parent is None else executions.id_of(tx, row.parent),
        texts.shown(tx, vault, executions.input_of(tx, row)),
        sorted(nodes[:NODES_SHOWN], key=lambda node: (node.started_at or 0.0, node.key)),
        len(nodes) > NODES_SHOWN,
        link,
    )


def _shown(tx: Tx, vault: Vault, rows: list[NodeRow]) -> list[NodeRow]:
    """Node runs without the secrets that their outputs hold."""
    return [row._replace(output=_shown_text(tx, vault, row.output)) for row in rows]


def _shown_text(tx: Tx, vault: Vault, text: bytes | None) -> bytes | None:
    return None if text is None else texts.shown(tx, vault, text)


def _link(request: web.Request, execution_id: str) -> LinkOf | None:
    """What gives the link of a node run; None to callers who may not let an execution go on."""
    if not Scope.RUN.is_within(caller_of(request).scopes):
        return None
    return partial(of(request).links.url, execution_id)


async def node_runs(
    request: web.Request, execution_id: str, *, after: str, limit: int
) -> web.StreamResponse:
    """A page of the node runs of an execution, by key.

    Raises:
        OverloadedError: as `rested`.
    """
    async with _room_for(request, execution_id) as is_large:
        vault = of(request).vault

        def query(tx: Tx) -> list[NodeRow]:
            seq = executions.get(tx, execution_id).seq
            rows = executions.node_rows_after(tx, seq, after, limit=limit + 1)
            return _shown(tx, vault, rows)

        rows = await of(request).store.read(query)
        cursor = rows[limit - 1].key if len(rows) > limit else None
        is_large = is_large or limit > MANY_NODES
        parts = await aside_if(
            is_large, node_list_parts, rows[:limit], cursor, _link(request, execution_id)
        )
        return await in_parts(request, parts)


async def output(request: web.Request, execution_id: str) -> web.StreamResponse | ExecutionRow:
    """The output of a completed execution as the answer; the row of one that ended otherwise.

    Raises:
        OverloadedError: as `rested`.
    """
    async with _room_for(request, execution_id):
        vault = of(request).vault

        def query(tx: Tx) -> ExecutionRow:
            row = executions.get(tx, execution_id)
            return replace(row, output=_shown_text(tx, vault, row.output))

        row = await of(request).store.read(query)
        if row.status is not ExecutionStatus.COMPLETED:
            return row
        return await in_parts(request, [row.output or b"null"])


@asynccontextmanager
async def _room_for(request: web.Request, execution_id: str) -> AsyncIterator[bool]:
    """Room for the texts of an execution and for what is shown of them; whether they are large."""
    context = of(request)
    size = await context.store.read(lambda tx: executions.text_bytes(tx, execution_id))
    with Share(context.answers) as share:
        if size > LARGE:
            await share.obtain(2 * size, patience=ROOM_PATIENCE)
        yield size > LARGE


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
