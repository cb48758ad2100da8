"""`/api/queue/check` and `/api/queue/repair`: what does not fit together in the store, and mending it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    QueueCheckView,
    QueueFindingView,
    QueueRepairRequest,
    QueueRepairView,
    RepairedView,
)
from stackd.core.clock import rfc3339
from stackd.core.errors import InputError
from stackd.core.json import dumps, loads
from stackd.store.integrity import Looked
from stackd.web.checks import DAMAGED
from stackd.web.context import of
from stackd.web.route import Route
from stackd.web.workflows import members_of
from stackd.workflows.consistency import Finding, Mended
from stackd.workflows.reconciliation import BY_REPAIR, Result, look_twice


async def check_queue(request: web.Request) -> web.Response:
    context = of(request)
    looked = await context.store.integrity.look()
    result = await look_twice(context.store, context.clock, mends=())
    view = _view(result, looked)
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


async def repair_queue(request: web.Request) -> web.Response:
    context = of(request)
    with context.bodies.of(request) as body:
        given = await members_of(body, "dryRun")
    dry_run = loads(given.get("dryRun", b"false"))
    if not isinstance(dry_run, bool):
        raise InputError("dryRun must be true or false", code="input.dry_run")
    mends = () if dry_run else BY_REPAIR
    looked = await context.store.integrity.look()
    result = await look_twice(context.store, context.clock, mends=mends)
    repaired = [RepairedView(code=code, count=count) for code, count in result.repaired.items()]
    view = QueueRepairView(**_view(result, looked).model_dump(), dry_run=dry_run, repaired=repaired)
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


def _view(result: Result, looked: Looked) -> QueueCheckView:
    found = [*_damage(looked), *result.left]
    return QueueCheckView(
        sound=not found,
        checked_at=rfc3339(result.at) or "",
        duration_ms=round((result.seconds + looked.seconds) * 1000, 1),
        findings=[
            QueueFindingView(
                code=finding.code,
                about=finding.about,
                count=finding.count,
                ids=list(finding.ids),
                repair=finding.mended.value,
            )
            for finding in found
        ],
    )


def _damage(looked: Looked) -> Iterator[Finding]:
    if problems := looked.problems:
        about = f"SQLite finds the file damaged: {DAMAGED}"
        yield Finding("store.damaged", about, problems, len(problems), Mended.NONE)


ROUTES: Final = (
    Route(
        "GET", "/api/queue/check", check_queue, Scope.READ,
        "What does not fit together in the store; nothing is changed", {200: QueueCheckView},
    ),
    Route(
        "POST", "/api/queue/repair", repair_queue, Scope.ADMIN,
        "Mend what can be mended, and say what is left", {200: QueueRepairView},
        takes=QueueRepairRequest, takes_nothing=True,
    ),
)  # fmt: skip
