"""`/api/events`: what happens in this process, told as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope, TokenCreated, TokenRevoked
from stackd.core.errors import AuthError, InputError, ScopeError
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.web import auth
from stackd.web.connections import connection_of
from stackd.web.context import of
from stackd.web.event_stream import ASK_AGAIN, Wanted, known_types
from stackd.web.route import Content, Query, Route

ADMIN_ONLY: Final = (TokenCreated, TokenRevoked)
COME_BACK: Final = b"retry: 1000\n\n"  # ms; the daemon ends, and a restart takes about as long


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Answer with events until the client leaves or the process ends."""
    stream, wanted, clock = of(request).stream, _wanted(request), of(request).clock
    reader = stream.open(request.headers.get("Last-Event-ID"))
    try:
        answer = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would hold them back
            }
        )
        await answer.prepare(request)
        if request.method == "HEAD":  # whose answer ends here
            return answer
        await answer.write(b": stackd\n\n")
        connection, asked_at, last = connection_of(request), clock.monotonic(), COME_BACK
        while (text := await reader.next(wanted, connection)) is not None:
            if text:
                await answer.write(text)
            if clock.monotonic() - asked_at >= ASK_AGAIN:
                if not await _still_may(request):
                    last = b""
                    break
                asked_at = clock.monotonic()
        if not connection.is_gone:
            await answer.write_eof(last)
        return answer
    finally:
        reader.close()


async def _still_may(request: web.Request) -> bool:
    """Whether who listens may still do so: a token may be revoked, or expire, while its stream is open."""
    try:
        await auth.authorize(request)
    except (AuthError, ScopeError):
        return False
    return True


def _wanted(request: web.Request) -> Wanted:
    names: Sequence[str] = [name for name in request.query.get("types", "").split(",") if name]
    known = known_types()
    for name in names:
        if name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"
            raise InputError(f"there is no event {shown(name)!r}", code="query.types", hint=hint)
    query = request.query
    is_admin = Scope.ADMIN.is_within(auth.caller_of(request).scopes)
    hidden = () if is_admin else ADMIN_ONLY
    return Wanted(frozenset(names), query.get("executionId"), query.get("workflowId"), hidden)


ROUTES: Final = (
    Route(
        "GET", "/api/events", stream_events, Scope.READ,
        "What happens in this process, as server-sent events",
        {200: Content(("text/event-stream",), {"type": "string"})},
        query=(
            Query("executionId", {"type": "string"}, "only of this execution"),
            Query("workflowId", {"type": "string"}, "only of this workflow"),
            Query("types", {"type": "string"}, "only these, by name, with commas between"),
        ),
        headers=(Query("Last-Event-ID", {"type": "string"}, "go on after this one"),),
    ),
)  # fmt: skip
