"""What is answered while the API cannot yet, or not again: while the store opens, and after a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from stackd.client.models import CheckView
from stackd.web import health, problem
from stackd.web.auth import PROBES
from stackd.web.readiness import Status

AGAIN_AFTER: Final = 5.0  # seconds


def make_starting(check: str, reason: Callable[[], str]) -> web.Application:
    """Says that it lives and is not ready, `reason` being why `check` fails by now; takes nothing else."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/livez":
            given = health.answer(request, {"loop": CheckView(status=Status.PASS)})
        elif request.path in PROBES or request.path.startswith("/readyz/"):
            failing = CheckView(status=Status.FAIL, reason=reason())
            given = health.answer(request, {check: failing})
        else:
            given = problem.problem(503, "starting", reason(), retry_after=AGAIN_AFTER)
        given.force_close()  # whoever asks again on this connection would hold up the one who follows
        return given

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app
