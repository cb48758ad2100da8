"""`/api/sandbox/quarantine`: code that runs no more for what it did, and letting it run again."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import QuarantinedView, QuarantineList, ReleaseBody, ReleaseView
from stackd.core.clock import rfc3339
from stackd.core.errors import InputError
from stackd.core.json import Json, dumps, loads
from stackd.sandbox import quarantine
from stackd.store.connection import Tx
from stackd.web.context import of
from stackd.web.route import Route
from stackd.web.workflows import members_of
from stackd.workflows import catalogue


async def list_quarantined(request: web.Request) -> web.Response:
    """The code nodes that run no more, and why."""
    found = await of(request).store.read(quarantine.quarantined)
    items = [
        QuarantinedView(
            workflow_id=one.workflow_id,
            version=one.version,
            node=one.node,
            violations=one.violations,
            quarantined_at=rfc3339(one.quarantined_at) or "",
            reason=one.reason,
        )
        for one in found
    ]
    return _json(QuarantineList(items=items))


async def release(request: web.Request) -> web.Response:
    """Let the code of a workflow run again, or of one of its nodes."""
    context = of(request)
    workflow_id = request.match_info["id"]
    with context.bodies.of(request) as body:
        given = await members_of(body, "node")
    node: Json = loads(given["node"]) if "node" in given else None
    if node is not None and not isinstance(node, str):
        raise InputError("node must be a text", code="node.invalid")

    def change(tx: Tx) -> int:
        catalogue.get(tx, workflow_id)  # or there is none
        return quarantine.release(tx, workflow_id, node)

    return _json(ReleaseView(released=await context.store.write(change)))


def _json(view: QuarantineList | ReleaseView) -> web.Response:
    return web.Response(body=dumps(view.model_dump(by_alias=True)), content_type="application/json")


ROUTES: Final = (
    Route(
        "GET", "/api/sandbox/quarantine", list_quarantined, Scope.READ,
        "Code nodes that run no more for what they did", {200: QuarantineList},
    ),
    Route(
        "POST", "/api/workflows/{id}/release", release, Scope.WRITE,
        "Let quarantined code of a workflow run again", {200: ReleaseView},
        takes=ReleaseBody, takes_nothing=True,
    ),
)  # fmt: skip
