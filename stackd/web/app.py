"""The aiohttp application: every route, and one middleware that authorises and turns errors into problems."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from stackd.access.tokens import Scope
from stackd.core.errors import BusyError, InputError, StackdError, StoreFullError
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.web import (
    activation,
    auth,
    blobs,
    config,
    consistency,
    credentials,
    events,
    evidence,
    executions,
    history,
    openapi,
    problem,
    quarantine,
    registry,
    resume,
    tokens,
    why,
    workflows,
)
from stackd.web.connections import connection_of
from stackd.web.context import CONTEXT, Context, of
from stackd.web.health import Health
from stackd.web.route import Route
from stackd.web.webhooks import Webhooks
from stackd.workflows.why import QUEUE

_log = structlog.get_logger(__name__)

# The query parameters of each route that is not open, by method and path.
_KNOWN: Final[web.AppKey[dict[tuple[str, str], tuple[str, ...]]]] = web.AppKey("known", dict)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(context: Context) -> web.Application:
    """The application over `context`."""
    webhooks = Webhooks()
    app = _app(context, all_routes(webhooks))
    webhooks.follow(app, context)

    async def release_waiters(_: web.Application) -> None:
        context.waiting.release()
        context.stream.release()
        context.notes.flush()

    app.on_shutdown.append(release_waiters)
    return app


def make_probes(context: Context) -> web.Application:
    """What a process answers that serves no API: how it is."""
    return _app(context, Health().routes)


def _app(context: Context, routes: tuple[Route, ...]) -> web.Application:
    app = web.Application(middlewares=[_answer_problems])
    app[CONTEXT] = context
    needs: dict[tuple[str, str], Scope | None] = {}
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    for route in routes:
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        for method in methods:
            added = app.router.add_route(method, route.path, route.handler)
            if added.resource is not None:
                needs[method, added.resource.canonical] = route.needs
                if route.needs is not None:  # a webhook takes what its sender likes
                    known[method, added.resource.canonical] = tuple(q.name for q in route.query)
    app[auth.NEEDS] = needs
    app[_KNOWN] = known
    app[openapi.ROUTES_OF] = routes
    return app


def all_routes(webhooks: Webhooks) -> tuple[Route, ...]:
    """Every route there is."""
    return (
        *Health().routes,
        *webhooks.routes,
        *workflows.ROUTES,
        *activation.ROUTES,
        *executions.ROUTES,
        *history.ROUTES,
        *consistency.ROUTES,
        *resume.ROUTES,
        *blobs.ROUTES,
        *events.ROUTES,
        *tokens.ROUTES,
        *credentials.ROUTES,
        *config.ROUTES,
        *registry.ROUTES,
        *evidence.ROUTES,
        *quarantine.ROUTES,
        *why.ROUTES,
        *openapi.ROUTES,
    )


@web.middleware
async def _answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    refused = _no_place(request)
    if refused is not None:
        return refused
    try:
        await auth.authorize(request)
        _refuse_odd_query(request)
        return await handler(request)
    except StackdError as error:
        if isinstance(error, BusyError | StoreFullError):  # refused for what is so of all
            of(request).notes.add(
                error.code, QUEUE, f"{request.method} was refused: {error.message}"
            )
        elif error.status >= 500:
            _log.warning("request failed", path=request.path, code=error.code, reason=error.message)
        return problem.of_error(error)
    except web.RequestPayloadError:
        return problem.problem(
            400, "body.malformed", "the body breaks off, or is not in its Content-Encoding"
        )
    except web.HTTPException as error:
        answer = _problem_of(request, error)
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


def _refuse_odd_query(request: web.Request) -> None:
    """Refuse what the route does not know, or is given twice: whoever sent it means something by it."""
    route = request.match_info.route
    path = "" if route.resource is None else route.resource.canonical
    known = request.app[_KNOWN].get((route.method, path))
    if known is None:
        return
    for name in request.query:
        if name not in known:
            meant = nearest(name, known)
            there_are = f"known here: {', '.join(known)}" if known else "this route takes none"
            raise InputError(
                f"there is no query parameter {shown(name)!r} here",
                code="query.unknown",
                hint=there_are if meant is None else f"did you mean {meant!r}?",
            )
        if len(request.query.getall(name)) > 1:
            raise InputError(
                f"the query parameter {name!r} is given more than once",
                code="query.repeated",
                hint="give it once",
            )


def _problem_of(request: web.Request, error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            detail = f"{request.method} is not allowed at {shown(request.path)}"
            hint = f"use {', '.join(sorted(error.allowed_methods))}"
            return problem.problem(405, "method.not_allowed", detail, hint=hint)
        case web.HTTPNotFound():
            detail = f"there is nothing at {shown(request.path)}"
            hint = "/api/openapi.json lists all there is"
            return problem.problem(404, "path.not_found", detail, hint=hint)
        case _:
            return problem.problem(error.status, "http.error", error.reason)
