"""`/api/webhooks/{path}`: a delivery becomes a durable execution before it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from stackd.client.models import StartedExecution
from stackd.core.aside import aside_if
from stackd.core.errors import (
    NotFoundError,
    OverloadedError,
)
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.core.large_json import load
from stackd.core.text import shown
from stackd.store.connection import Tx
from stackd.web.answers import accepted, output, started
from stackd.web.connections import connection_of
from stackd.web.context import Context, header_text, of, usable_key
from stackd.web.deliveries import Delivery, delivery_of, head_of
from stackd.web.problem import problem
from stackd.web.route import JSON, Content, Route
from stackd.workflows import catalogue, executions
from stackd.workflows.catalogue import WebhookRoute, WorkflowChanged
from stackd.workflows.executions import ExecutionRow, NewExecution, as_json
from stackd.workflows.expressions import OMIT, Expression, Scope, evaluate
from stackd.workflows.graph import GraphNode

REPLY_WITHIN = 30.0  # seconds `respond: last` waits before it answers 202
KEY_HEADERS = ("Idempotency-Key", "webhook-id", "X-GitHub-Delivery")
ROUTES_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class _Taken:
    """What became of a delivery. `is_duplicate`: the execution was there before."""

    execution_id: str
    is_duplicate: bool
    workflow_id: str
    waits_for_reply: bool


class Webhooks:
    """Accepts deliveries. Routes are remembered, and checked again inside the accepting transaction."""

    def __init__(self) -> None:
        self._routes: dict[str, WebhookRoute] = {}

    @property
    def routes(self) -> tuple[Route, ...]:
        any_json = Content((JSON,))
        return (
            Route(
                "*", "/api/webhooks/{path:.+}", self._receive, None,
                "A delivery to a webhook trigger; 200: a duplicate's first execution, or its reply",
                {202: StartedExecution, 200: any_json}, takes=Content(("*/*",)), takes_nothing=True,
            ),
        )  # fmt: skip

    def follow(self, app: web.Application, context: Context) -> None:
        """Forget what is remembered when a workflow changes, while `app` runs."""

        async def follow_changes(_: web.Application) -> AsyncIterator[None]:
            unsubscribe = context.events.subscribe(lambda _: self._routes.clear(), WorkflowChanged)
            yield
            unsubscribe()

        app.cleanup_ctx.append(follow_changes)

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        context = of(request)
        outcome = "refused"
        try:
            route, node = await self._route(context, request)
            taken = await self._take(context, request, route, node)
            outcome = "duplicate" if taken.is_duplicate else "accepted"
        finally:
            context.metrics.count_webhook(outcome)
        body = started(taken.execution_id, taken.workflow_id)
        if taken.is_duplicate:
            words = "a delivery with the same key came again, and started nothing"
            context.notes.add("delivery.duplicate", taken.execution_id, words)
            body["duplicate"] = True
            return web.Response(body=dumps(body), content_type="application/json")
        if taken.waits_for_reply:
            reply = await _reply(context, request, taken.execution_id)
            if reply is not None:
                return reply
        return accepted(body)

    async def _route(
        self, context: Context, request: web.Request
    ) -> tuple[WebhookRoute, GraphNode]:
        path = request.match_info["path"]
        route = self._routes.get(path)
        if route is None:
            route = await context.store.read(lambda tx: catalogue.resolve_webhook(tx, path))
            if route is None:
                raise NotFoundError(f"no webhook at {shown(path)!r}", code="webhook.not_found")
            if len(self._routes) >= ROUTES_KEPT:
                self._routes.clear()
            self._routes[path] = route
        if not route.active:
            self._routes.pop(path, None)
            words = f"a delivery to {path} started nothing: it is not active"
            context.notes.add("workflow.inactive", route.workflow_id, words)
            raise NotFoundError(
                f"workflow {route.workflow_id!r} is not active",
                code="workflow.inactive",
                hint=f"stackd workflows activate {route.workflow_id}",
            )
        graph = await context.versions.graph(route.workflow_id, route.version)
        node = graph.nodes[route.node_id]
        methods = [str(m).upper() for m in node.settings.get("methods") or ["POST"]]
        if request.method not in methods:
            words = f"a {request.method} to {path} started nothing: it takes {', '.join(methods)}"
            context.notes.add("method.not_allowed", route.workflow_id, words)
            raise web.HTTPMethodNotAllowed(request.method, methods)
        return route, node

    async def _take(
        self, context: Context, request: web.Request, route: WebhookRoute, node: GraphNode
    ) -> _Taken:
        around = head_of(request) | {"path": request.match_info["path"]}
        async with delivery_of(request, around) as delivery:
            taken = await self._accept(context, request, route, node, delivery)
            delivery.is_kept = not taken.is_duplicate
        return taken

    async def _accept(
        self,
        context: Context,
        request: web.Request,
        route: WebhookRoute,
        node: GraphNode,
        delivery: Delivery,
    ) -> _Taken:
        """Commit the execution.

        The route may be one that was remembered. Where another version, or another workflow, answers by now,
        it is looked up anew; that one holds, whatever is imported at the same time.
        """
        taken = await self._commit(context, request, route, node, delivery, may_be_old=True)
        if taken is None:
            self._routes.pop(request.match_info["path"], None)
            route, node = await self._route(context, request)
            taken = await self._commit(context, request, route, node, delivery, may_be_old=False)
            assert taken is not None  # noqa: S101  # for the type checker
        return taken

    async def _commit(
        self,
        context: Context,
        request: web.Request,
        route: WebhookRoute,
        node: GraphNode,
        delivery: Delivery,
        *,
        may_be_old: bool,
    ) -> _Taken | None:
        key = await _dedupe_key(request, node, delivery)
        graph = await context.versions.graph(route.workflow_id, route.version)
        new = NewExecution(
            workflow_id=route.workflow_id,
            version=route.version,
            trigger_type="trigger.webhook.inbound",
            trigger_node=route.node_id,
            input=delivery.text,
            concurrency=graph.workflow.concurrency,
        )
        now = context.clock.time()
        path = request.match_info["path"]
        taken = partial(
            _Taken,
            workflow_id=route.workflow_id,
            waits_for_reply=node.settings.get("respond") == "last",
        )

        def change(tx: Tx) -> _Taken | None:
            if may_be_old and catalogue.resolve_webhook(tx, path) != route:
                return None
            if key is not None:
                known = executions.find_duplicate(tx, new, key=key[0], now=now)
                if known is not None:
                    return taken(known, is_duplicate=True)
            context.admission.admit(tx, now=now)
            execution_id = executions.start(tx, new, now=now)
            if key is not None:
                executions.remember_key(
                    tx, new, key=key[0], execution_id=execution_id, now=now, window=key[1]
                )
            return taken(execution_id, is_duplicate=False)

        delivery.is_offered = True
        return await context.store.write(change, size_bytes=len(new.input))


async def _dedupe_key(
    request: web.Request, node: GraphNode, delivery: Delivery
) -> tuple[str, float] | None:
    """(key, window in seconds) that makes this delivery the same as another; None: it is its own."""
    own: dict[str, Any] = node.settings.get("dedupe") or {}
    window = float(own.get("windowMs") or 0) / 1000 or of(request).settings.webhook_dedupe_window
    key: str | None = None
    if own.get("header"):
        key = header_text(request.headers.get(str(own["header"]), ""))
    elif node.dedupe is not None:
        is_large = len(delivery.text) > LARGE
        key = await aside_if(is_large, _key_by_expression, node.dedupe, node.id, delivery.text)
    else:
        given = (request.headers.get(name) for name in KEY_HEADERS)
        key = header_text(next(filter(None, given), ""))
    return (usable_key(key), window) if key else None


def _key_by_expression(expression: Expression, node_id: str, text: bytes) -> str | None:
    if len(text) <= LARGE:
        return _key_of(evaluate(expression, Scope({node_id: loads(text)}, now=0.0, seed="")))
    loaded = load(text)
    try:
        return _key_of(evaluate(expression, Scope({node_id: loaded.value}, now=0.0, seed="")))
    finally:
        loaded.take_apart()


def _key_of(value: Json) -> str | None:
    if value is None or value is OMIT:
        return None
    return value if isinstance(value, str) else dumps(value).decode()


async def _reply(
    context: Context, request: web.Request, execution_id: str
) -> web.StreamResponse | None:
    """What the caller of a `respond: last` webhook gets; None if it takes too long, or there is no room for it."""
    if not await context.waiting.until_rested(
        execution_id, timeout=REPLY_WITHIN, client=connection_of(request)
    ):
        return None
    try:
        answer = await output(request, execution_id)
    except OverloadedError:
        return None
    return _problem(answer) if isinstance(answer, ExecutionRow) else answer


def _problem(row: ExecutionRow) -> web.Response:
    error = as_json(row.error) or {}
    return problem(
        502,
        str(error.get("code", f"execution.{row.status.value}")),
        f"execution {row.id} {row.status.value}: {error.get('message', '')}".rstrip(": "),
        extra={"executionId": row.id},
    )
