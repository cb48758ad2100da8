"""`/api/webhooks/{path}`: a delivery becomes a durable execution before it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from stackd.core.errors import ConflictError, InputError, NotFoundError
from stackd.core.json import Json, dumps
from stackd.core.text import codec
from stackd.store.connection import Tx
from stackd.web.answers import accepted, started
from stackd.web.context import Context, header_text, of, read_json, storable, usable_key
from stackd.web.problem import problem
from stackd.workflows import catalogue, executions
from stackd.workflows.catalogue import WebhookRoute, WorkflowChanged
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NewExecution, as_json
from stackd.workflows.expressions import OMIT, Expression, Scope, evaluate
from stackd.workflows.graph import GraphNode

REPLY_WITHIN = 30.0  # seconds `respond: last` waits before it answers 202
KEY_HEADERS = ("Idempotency-Key", "webhook-id", "X-GitHub-Delivery")
ROUTES_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A webhook request, read in full. `text`: the trigger's output as JSON."""

    text: bytes
    output: dict[str, Json]


class Webhooks:
    """Accepts deliveries. Routes are remembered, and checked again inside the accepting transaction."""

    def __init__(self) -> None:
        self._routes: dict[str, WebhookRoute] = {}

    def add_to(self, app: web.Application, context: Context) -> None:
        app.router.add_route("*", "/api/webhooks/{path:.+}", self._receive)

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
            delivery = await _read_delivery(context, request)
            key = _dedupe_key(request, node, delivery)
            execution_id, duplicate = await self._accept(context, request, route, delivery, key)
            outcome = "duplicate" if duplicate else "accepted"
        finally:
            context.metrics.count_webhook(outcome)
        body = started(execution_id, route.workflow_id)
        if duplicate:
            body["duplicate"] = True
            return web.Response(body=dumps(body), content_type="application/json")
        if node.settings.get("respond") == "last":
            row = await context.waiting.until_rested(execution_id, timeout=REPLY_WITHIN)
            if row is not None:
                return _reply(row)
        return accepted(body)

    async def _route(
        self, context: Context, request: web.Request
    ) -> tuple[WebhookRoute, GraphNode]:
        path = request.match_info["path"]
        route = self._routes.get(path)
        if route is None:
            route = await context.store.read(lambda tx: catalogue.resolve_webhook(tx, path))
            if route is None:
                raise NotFoundError(f"no webhook at {path!r}", code="webhook.not_found")
            if len(self._routes) >= ROUTES_KEPT:
                self._routes.clear()
            self._routes[path] = route
        if not route.active:
            self._routes.pop(path, None)
            raise NotFoundError(
                f"workflow {route.workflow_id!r} is not active",
                code="workflow.inactive",
                hint=f"stackd workflows activate {route.workflow_id}",
            )
        graph = await context.versions.graph(route.workflow_id, route.version)
        node = graph.nodes[route.node_id]
        methods = [str(m).upper() for m in node.settings.get("methods") or ["POST"]]
        if request.method not in methods:
            raise web.HTTPMethodNotAllowed(request.method, methods)
        return route, node

    async def _accept(
        self,
        context: Context,
        request: web.Request,
        route: WebhookRoute,
        delivery: _Delivery,
        key: tuple[str, float] | None,
    ) -> tuple[str, bool]:
        """Commit the execution; (its id, whether it was there before)."""
        path = request.match_info["path"]
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

        def change(tx: Tx) -> tuple[str, bool]:
            if not catalogue.is_current(tx, route.workflow_id, route.version):
                raise ConflictError("the workflow has just changed", code="workflow.changed")
            if key is not None:
                known = executions.find_duplicate(tx, new, key=key[0], now=now)
                if known is not None:
                    return known, True
            context.admission.admit(tx, now=now)
            execution_id = executions.start(tx, new, now=now)
            if key is not None:
                executions.remember_key(
                    tx, new, key=key[0], execution_id=execution_id, now=now, window=key[1]
                )
            return execution_id, False

        try:
            return await context.store.write(change, size_bytes=len(new.input))
        except ConflictError:  # another process imported or deactivated: look again
            self._routes.pop(path, None)
            fresh, node = await self._route(context, request)
            if fresh == route:
                raise
            key = _dedupe_key(request, node, delivery)
            return await self._accept(context, request, fresh, delivery, key)


async def _read_delivery(context: Context, request: web.Request) -> _Delivery:
    output: dict[str, Json] = {
        "body": await _read_body(context, request),
        "headers": {
            name.lower(): header_text(", ".join(request.headers.getall(name)))
            for name in request.headers
        },
        "query": _multi(request.query),
        "method": request.method,
        "path": request.match_info["path"],
    }
    return _Delivery(storable(output), output)


def _multi(pairs: MultiMapping[str]) -> dict[str, Json]:
    """Names with one value as text, repeated names as a list."""
    result: dict[str, Json] = {}
    for name in dict.fromkeys(pairs):
        values = pairs.getall(name)
        result[name] = values[0] if len(values) == 1 else list(values)
    return result


async def _read_body(context: Context, request: web.Request) -> Json:
    if request.content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await _read_form(context, request)
    raw = await request.read()
    if not raw:
        return None
    content_type = request.content_type
    if content_type == "application/json" or content_type.endswith("+json"):
        return await read_json(raw)
    if content_type.startswith("text/") or content_type.endswith("xml"):
        try:
            name = codec(request.charset)
            if name is not None:
                return raw.decode(name)
        except (UnicodeError, LookupError):
            pass
    return {"$blob": await context.blobs.put(raw), "bytes": len(raw), "contentType": content_type}


async def _read_form(context: Context, request: web.Request) -> Json:
    if codec(request.charset) is None:
        raise InputError(f"there is no charset {request.charset!r}", code="form.malformed")
    try:
        form = await request.post()
    except (ValueError, LookupError, RuntimeError) as error:  # bytes, charset, transfer encoding
        raise InputError(f"the form cannot be read: {error}", code="form.malformed") from None
    result: dict[str, Json] = {}
    for name in dict.fromkeys(form):
        values: list[Json] = []
        for value in form.getall(name):
            if isinstance(value, web.FileField):
                content = value.file.read()
                values.append(
                    {
                        "$blob": await context.blobs.put(content),
                        "bytes": len(content),
                        "filename": value.filename,
                        "contentType": value.content_type,
                    }
                )
            else:
                values.append(
                    value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
                )
        result[name] = values[0] if len(values) == 1 else values
    return result


def _dedupe_key(
    request: web.Request, node: GraphNode, delivery: _Delivery
) -> tuple[str, float] | None:
    """(key, window in seconds) that makes this delivery the same as another; None: it is its own."""
    own: dict[str, Any] = node.settings.get("dedupe") or {}
    window = float(own.get("windowMs") or 0) / 1000 or of(request).settings.webhook_dedupe_window
    key: str | None = None
    if own.get("header"):
        key = header_text(request.headers.get(str(own["header"]), ""))
    elif node.dedupe is not None:
        key = _key_by_expression(node.dedupe, node, delivery)
    else:
        given = (request.headers.get(name) for name in KEY_HEADERS)
        key = header_text(next(filter(None, given), ""))
    return (usable_key(key), window) if key else None


def _key_by_expression(expression: Expression, node: GraphNode, delivery: _Delivery) -> str | None:
    value = evaluate(expression, Scope({node.id: delivery.output}, now=0.0, seed=""))
    if value is None or value is OMIT:
        return None
    return value if isinstance(value, str) else dumps(value).decode()


def _reply(row: ExecutionRow) -> web.Response:
    """What the caller of a `respond: last` webhook gets."""
    if row.status is ExecutionStatus.COMPLETED:
        return web.Response(
            body=row.output if row.output is not None else b"null", content_type="application/json"
        )
    error = as_json(row.error) or {}
    return problem(
        502,
        str(error.get("code", f"execution.{row.status.value}")),
        f"execution {row.id} {row.status.value}: {error.get('message', '')}".rstrip(": "),
        extra={"executionId": row.id},
    )
