"""`/api/registry`: what can run, and the connectors there are, whatever is wrong with them."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import CapabilitiesView, ConnectorDetail, ConnectorList
from stackd.core.errors import InputError
from stackd.core.json import dumps
from stackd.core.text import shown
from stackd.integrations.registry import Payload, connector_detail, connector_view
from stackd.web.context import limit_of, of
from stackd.web.evidence import with_evidence
from stackd.web.route import CURSOR, LIMIT, Query, Route

INCLUDES: Final = ("unavailable", "evidence")


async def capabilities(request: web.Request) -> web.Response:
    """What can run now; the same answer until the connectors or the settings change, but for evidence."""
    asked = [one.strip() for one in request.query.get("include", "").split(",") if one.strip()]
    for one in asked:
        if one not in INCLUDES:
            raise InputError(
                f"include {shown(one)!r} is not known here",
                code="query.include",
                hint=f"known here: {', '.join(INCLUDES)}",
            )
    payload = of(request).registry.payload(unavailable="unavailable" in asked)
    if "evidence" in asked:
        return await with_evidence(request, payload.body)
    return _conditional(request, payload)


def _conditional(request: web.Request, payload: Payload) -> web.Response:
    """The answer, or that it has not changed (RFC 9110, 13.1.2); packed for who takes that."""
    headers = {"ETag": payload.etag, "Vary": "Accept-Encoding", "Cache-Control": "no-cache"}
    known = [
        one.strip().removeprefix("W/")
        for one in request.headers.get("If-None-Match", "").split(",")
    ]
    if payload.etag in known or "*" in known:
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(
            body=payload.packed,
            headers={**headers, "Content-Encoding": "gzip"},
            content_type="application/json",
        )
    return web.Response(body=payload.body, headers=headers, content_type="application/json")


async def list_connectors(request: web.Request) -> web.Response:
    """All connectors, by id."""
    limit, after = limit_of(request), request.query.get("cursor", "")
    found = [one for one in of(request).registry.catalogue.connectors if one.id > after]
    page = [connector_view(one) for one in found[:limit]]
    view = {"items": page, "nextCursor": page[-1]["id"] if len(found) > limit else None}
    return web.Response(body=dumps(view), content_type="application/json")


async def show_connector(request: web.Request) -> web.Response:
    """One connector, with what can run of it and what its operations take."""
    registry = of(request).registry
    connector = registry.connector(request.match_info["id"])
    return web.Response(
        body=dumps(connector_detail(registry, connector)), content_type="application/json"
    )


ROUTES: Final = (
    Route(
        "GET", "/api/registry/capabilities", capabilities, Scope.READ,
        "Which actions and triggers can run, by what, and why others cannot",
        {200: CapabilitiesView, 304: None},
        query=(Query("include", {"type": "string"}, "`unavailable`: also what cannot run, with the reasons; `evidence`: how each has gone"),),
        headers=(Query("If-None-Match", {"type": "string"}, "ETags of what is at hand"),),
    ),
    Route(
        "GET", "/api/registry/connectors", list_connectors, Scope.READ,
        "All connectors, also those that cannot be used", {200: ConnectorList}, query=(LIMIT, CURSOR),
    ),
    Route(
        "GET", "/api/registry/connectors/{id}", show_connector, Scope.READ,
        "A connector: its operations, what runs them and what they take", {200: ConnectorDetail},
    ),
)  # fmt: skip
