"""`/api/executions` and `/api/queue`: start, list, show, cancel, retry, resolve; queue status, pause, resume."""

from __future__ import annotations

from typing import Final, cast

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    DecisionRequest,
    ExecutionList,
    ExecutionView,
    MovedExecution,
    NewExecutionRequest,
    NodeRunList,
    ProcessView,
    QueueView,
    RetryRequest,
    StartedExecution,
)
from stackd.core.clock import rfc3339
from stackd.core.errors import InputError
from stackd.core.json import dumps, loads
from stackd.core.process import is_gone
from stackd.core.text import shown
from stackd.queue import processes, verbs
from stackd.store.connection import Tx
from stackd.web.answers import node_runs, rested
from stackd.web.context import is_number, limit_of, of
from stackd.web.route import CURSOR, IDEMPOTENCY_KEY, LIMIT, Query, Route
from stackd.web.views import summary_view
from stackd.web.workflows import WAIT, members_of, start_by_hand, started_by_hand, wait_of
from stackd.workflows import executions
from stackd.workflows.executions import Decision, ExecutionStatus
from stackd.workflows.retry import retry

_NEWEST = 2**62
_DECISIONS = ("retry", "skip", "fail")


async def start_execution(request: web.Request) -> web.StreamResponse:
    wait = wait_of(request)
    with of(request).bodies.of(request) as body:
        given = await members_of(body, "workflowId", "input")
        workflow_id = loads(given.get("workflowId", b"null"))
        if not isinstance(workflow_id, str):
            what = "is missing" if workflow_id is None else "must be text"
            raise InputError(f"workflowId {what}", code="input.workflow_id")
        execution_id = await start_by_hand(request, workflow_id, given.pop("input", b"null"))
    return await started_by_hand(request, workflow_id, execution_id, wait)


async def list_executions(request: web.Request) -> web.Response:
    limit = limit_of(request)
    status = request.query.get("status")
    if status is not None and status not in set(ExecutionStatus):
        known = ", ".join(ExecutionStatus)
        raise InputError(f"status {shown(status)!r} is none of {known}", code="query.status")
    cursor = request.query.get("cursor", str(_NEWEST))
    if not is_number(cursor, most=_NEWEST):
        raise InputError(
            f"cursor {shown(cursor)!r} is none of ours",
            code="query.cursor",
            hint="give the nextCursor of the page before, or none",
        )
    rows = await of(request).store.read(
        lambda tx: executions.listed(
            tx,
            workflow_id=request.query.get("workflowId"),
            status=status,
            before=int(cursor),
            limit=limit + 1,
        )
    )
    page = ExecutionList(
        items=[summary_view(row) for row in rows[:limit]],
        next_cursor=str(rows[limit - 1].seq) if len(rows) > limit else None,
    )
    return web.Response(body=dumps(page.as_json()), content_type="application/json")


async def show_execution(request: web.Request) -> web.StreamResponse:
    return await rested(request, request.match_info["id"])


async def list_nodes(request: web.Request) -> web.StreamResponse:
    after, limit = request.query.get("cursor", ""), limit_of(request)
    return await node_runs(request, request.match_info["id"], after=after, limit=limit)


async def cancel_execution(request: web.Request) -> web.Response:
    context, execution_id = of(request), request.match_info["id"]
    now = context.clock.time()
    status = await context.store.write(lambda tx: executions.cancel(tx, execution_id, now=now))
    return web.Response(
        status=200 if status in executions.FINAL else 202,
        body=dumps({"success": True, "executionId": execution_id, "status": status.value}),
        content_type="application/json",
    )


async def retry_execution(request: web.Request) -> web.Response:
    context, execution_id = of(request), request.match_info["id"]
    with context.bodies.of(request) as body:
        given = await members_of(body, "from")
    start = loads(given.get("from", b"null"))
    if start is not None and not isinstance(start, str):
        raise InputError("from must be the id of a node", code="input.from")
    row = await context.store.read(lambda tx: executions.get(tx, execution_id))
    graph = await context.versions.graph(row.workflow_id, row.version)
    now = context.clock.time()

    def change(tx: Tx) -> ExecutionStatus:
        context.admission.admit(tx, now=now)
        return retry(tx, execution_id, graph, start=start, now=now)

    status = await context.store.write(change)
    return web.Response(
        status=202,
        body=dumps({"success": True, "executionId": execution_id, "status": status.value}),
        content_type="application/json",
    )


async def resolve_execution(request: web.Request) -> web.Response:
    context, execution_id = of(request), request.match_info["id"]
    with context.bodies.of(request) as body:
        given = await members_of(body, "decision", "node")
    decision, node = (loads(given.get(name, b"null")) for name in ("decision", "node"))
    if decision not in _DECISIONS:
        raise InputError(f"decision must be one of {', '.join(_DECISIONS)}", code="input.decision")
    if node is not None and not isinstance(node, str):
        raise InputError("node must be the id of a node run", code="input.node")
    now = context.clock.time()
    status = await context.store.write(
        lambda tx: executions.resolve(
            tx, execution_id, cast("Decision", decision), node=node, now=now
        )
    )
    return web.Response(
        body=dumps({"success": True, "executionId": execution_id, "status": status.value}),
        content_type="application/json",
    )


async def queue_status(request: web.Request) -> web.Response:
    context = of(request)
    now = context.clock.time()

    def query(tx: Tx) -> QueueView:
        status = verbs.status(tx, now=now)
        return QueueView(
            counts=status.counts,
            paused=status.paused,
            oldest_wait_seconds=round(status.oldest_wait, 3),
            processes=[
                ProcessView(
                    pid=row.identity.pid,
                    role=row.role,
                    started_at=rfc3339(row.started_at) or "",
                    heartbeat_at=rfc3339(row.heartbeat_at) or "",
                    alive=not is_gone(row.identity),
                )
                for row in processes.listed(tx)
            ],
        )

    view = await context.store.read(query)
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


async def pause_queue(request: web.Request) -> web.Response:
    await of(request).store.write(verbs.pause)
    return await queue_status(request)


async def resume_queue(request: web.Request) -> web.Response:
    await of(request).store.write(verbs.resume)
    return await queue_status(request)


ROUTES: Final = (
    Route(
        "POST", "/api/executions", start_execution, Scope.RUN,
        "Start an execution by hand; with `wait`, 200 and the execution if it rests in time",
        {202: StartedExecution, 200: ExecutionView},
        takes=NewExecutionRequest, query=(WAIT,), headers=(IDEMPOTENCY_KEY,),
    ),
    Route(
        "GET", "/api/executions", list_executions, Scope.READ, "Executions, the newest first",
        {200: ExecutionList},
        query=(
            Query("workflowId", {"type": "string"}, "only of this workflow"),
            Query("status", {"enum": [status.value for status in ExecutionStatus]}, "only in this state"),
            LIMIT,
            CURSOR,
        ),
    ),
    Route(
        "GET", "/api/executions/{id}", show_execution, Scope.READ, "An execution with its node runs",
        {200: ExecutionView},
    ),
    Route(
        "GET", "/api/executions/{id}/nodes", list_nodes, Scope.READ,
        "All node runs of an execution, by key", {200: NodeRunList}, query=(LIMIT, CURSOR),
    ),
    Route(
        "POST", "/api/executions/{id}/cancel", cancel_execution, Scope.RUN,
        "End an execution; 202: its run will", {200: MovedExecution, 202: MovedExecution},
    ),
    Route(
        "POST", "/api/executions/{id}/retry", retry_execution, Scope.RUN,
        "Let an execution that has ended go on: at what failed, or from a node on",
        {202: MovedExecution}, takes=RetryRequest, takes_nothing=True,
    ),
    Route(
        "POST", "/api/executions/{id}/resolve", resolve_execution, Scope.RUN,
        "Decide about an uncertain node run", {200: MovedExecution}, takes=DecisionRequest,
    ),
    Route("GET", "/api/queue", queue_status, Scope.READ, "Jobs by state, and processes", {200: QueueView}),
    Route(
        "POST", "/api/queue/pause", pause_queue, Scope.ADMIN, "Begin no more executions",
        {200: QueueView},
    ),
    Route("POST", "/api/queue/resume", resume_queue, Scope.ADMIN, "Begin them again", {200: QueueView}),
)  # fmt: skip
