"""`/api/why/{id}`: what holds an execution, a workflow or the queue now, and what has befallen it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import NoteView, ReasonView, WhyView
from stackd.core.clock import rfc3339
from stackd.core.json import dumps
from stackd.queue import processes
from stackd.web.activation import uncovered
from stackd.web.context import of
from stackd.web.route import Route
from stackd.workflows import catalogue, why


async def tell_why(request: web.Request) -> web.Response:
    context, subject = of(request), request.match_info["id"]
    await context.notes.written()
    now = context.clock.time()
    found = await context.store.read(
        lambda tx: why.answer(
            tx, subject, now=now, is_gone=lambda row: not processes.may_live(row, now=now)
        )
    )
    reasons = [ReasonView(code=r.code, message=r.message, hint=r.hint) for r in found.reasons]
    if found.kind == "workflow":
        row = await context.store.read(lambda tx: catalogue.get(tx, subject))
        told = await uncovered(context, row)
        reasons += [ReasonView(code=one.code, message=one.message, hint=one.hint) for one in told]
    view = WhyView(
        subject=found.subject,
        kind=found.kind,
        state=found.state,
        reasons=reasons,
        notes=[
            NoteView(
                code=n.code,
                message=n.message,
                first_at=rfc3339(n.first_at) or "",
                last_at=rfc3339(n.last_at) or "",
                count=n.count,
            )
            for n in found.notes
        ],
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


ROUTES: Final = (
    Route(
        "GET", "/api/why/{id}", tell_why, Scope.READ,
        "Why an execution, a workflow or `queue` is as it is", {200: WhyView},
    ),
)  # fmt: skip
