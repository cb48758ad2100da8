"""The aiohttp application: every route, and one middleware that authorises and turns errors into problems."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from stackd.access.tokens import Scope
from stackd.core.errors import StackdError
from stackd.web import (
    auth,
    blobs,
    config,
    events,
    executions,
    openapi,
    problem,
    tokens,
    workflows,
)
from stackd.web.connections import connection_of
from stackd.web.context import CONTEXT, Context
from stackd.web.health import Health
from stackd.web.route import Route
from stackd.web.webhooks import Webhooks

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(context: Context) -> web.Application:
    """The application over `context`."""
    app = web.Application(middlewares=[_answer_problems])
    app[CONTEXT] = context
    webhooks = Webhooks()
    webhooks.follow(app, context)
    routes = all_routes(webhooks)
    needs: dict[tuple[str, str], Scope | None] = {}
    for route in routes:
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        for method in methods:
            added = app.router.add_route(method, route.path, route.handler)
            if added.resource is not None:
                needs[method, added.resource.canonical] = route.needs
    app[auth.NEEDS] = needs
    app[openapi.ROUTES_OF] = routes

    async def release_waiters(_: web.Application) -> None:
        context.waiting.release()
        context.stream.release()

    app.on_shutdown.append(release_waiters)
    return app


def all_routes(webhooks: Webhooks) -> tuple[Route, ...]:
    """Every route there is."""
    return (
        *Health().routes,
        *webhooks.routes,
        *workflows.ROUTES,
        *executions.ROUTES,
        *blobs.ROUTES,
        *events.ROUTES,
        *tokens.ROUTES,
        *config.ROUTES,
        *openapi.ROUTES,
    )


@web.middleware
async def _answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    refused = _no_place(request)
    if refused is not None:
        return refused
    try:
        await auth.authorize(request)
        return await handler(request)
    except StackdError as error:
        if error.status >= 500:
            _log.warning("request failed", path=request.path, code=error.code, reason=error.message)
        return problem.of_error(error)
    except web.RequestPayloadError:
        return problem.problem(
            400, "body.malformed", "the body breaks off, or is not in its Content-Encoding"
        )
    except web.HTTPException as error:
        answer = problem.problem(error.status, _code(error), error.reason)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001  # whatever else goes wrong is ours, and its text is not for the caller
        _log.exception("request failed", path=request.path)
        return problem.problem(500, "internal", "an internal error; the log has its cause")


def _no_place(request: web.Request) -> web.StreamResponse | None:
    """What others than probes are told over a connection that is one too many; None if it is not."""
    if request.path in auth.PROBES or not connection_of(request).is_spare:
        return None
    answer = problem.problem(503, "overloaded", "too many connections are open", retry_after=5.0)
    answer.force_close()
    return answer


def _code(error: web.HTTPException) -> str:
    return {404: "path.not_found", 405: "method.not_allowed"}.get(error.status, "http.error")
