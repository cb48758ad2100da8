"""What is answered while the store opens, where that takes long: the migration of a large one may."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.client.models import CheckView
from stackd.web import health, problem
from stackd.web.auth import PROBES
from stackd.web.readiness import Status

REASON: Final = "the store is being opened"
AGAIN_AFTER: Final = 5.0  # seconds


def make_starting() -> web.Application:
    """Says that it lives and is not ready; takes nothing else."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _answer)
    return app


async def _answer(request: web.Request) -> web.Response:
    if request.path == "/livez":
        answer = health.answer(request, {"loop": CheckView(status=Status.PASS)})
    elif request.path in PROBES or request.path.startswith("/readyz/"):
        failing = CheckView(status=Status.FAIL, reason=REASON)
        answer = health.answer(request, {"store.open": failing})
    else:
        answer = problem.problem(503, "starting", REASON, retry_after=AGAIN_AFTER)
    answer.force_close()  # whoever asks again on this connection would hold up the one who follows
    return answer
