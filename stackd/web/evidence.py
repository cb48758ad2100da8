"""`/api/registry/evidence`: how operations of connectors have gone, and the circuits of those that fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    CircuitView,
    ErrorView,
    EvidenceList,
    EvidenceView,
    OperationEvidenceView,
    ResetBody,
    ResetView,
)
from stackd.core.apps import normal_operation
from stackd.core.clock import rfc3339
from stackd.core.errors import InputError, NotFoundError
from stackd.core.json import Json, dumps, loads
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.integrations import circuits, evidence
from stackd.integrations.catalogue import Connector
from stackd.integrations.circuits import Circuit
from stackd.integrations.evidence import Evidence
from stackd.store.connection import Tx
from stackd.vault import credentials
from stackd.web.context import limit_of, of
from stackd.web.route import CURSOR, LIMIT, Query, Route
from stackd.web.workflows import members_of

ALL: Final = 100_000  # more operations than any catalogue has
_WORST: Final = {"closed": 0, "half_open": 1, "open": 2}


class Known:
    """What the store knows of operations, at one moment."""

    def __init__(self, tx: Tx, rows: list[Evidence], *, now: float) -> None:
        self._now = now
        self.rows = {(row.connector, row.operation): row for row in rows}
        self._credentials = credentials.connectors_of_all(tx)
        self._circuits: dict[tuple[str, str], list[Circuit]] = {}
        for one in circuits.all_of(tx):
            self._circuits.setdefault((one.connector, one.operation), []).append(one)

    def view(self, connector: str, operation: str) -> EvidenceView:
        key = connector, operation
        row = self.rows.get(key) or Evidence(*key, 0, 0, 0, None, None, None)
        found = [self._circuit(one) for one in self._circuits.get(key, [])]
        return EvidenceView(
            calls=row.calls,
            failures=row.failures,
            fallbacks=row.fallbacks,
            last_success_at=rfc3339(row.last_success_at),
            last_failure_at=rfc3339(row.last_failure_at),
            last_failure=None
            if row.last_failure is None
            else ErrorView.model_validate(row.last_failure),
            circuit=max((one.state for one in found), key=_WORST.__getitem__, default="closed"),
            circuits=found,
            credential_present=connector in self._credentials,
            tested_at=rfc3339(self._credentials.get(connector)),
        )

    def _circuit(self, one: Circuit) -> CircuitView:
        return CircuitView(
            credential=one.credential or None,
            state=one.state(self._now),
            failures=one.failures,
            open_until=rfc3339(one.open_until),
            failed_at=rfc3339(one.failed_at) or "",
            failure=ErrorView.model_validate(one.last_failure),
        )


async def list_evidence(request: web.Request) -> web.Response:
    """The operations that were ever asked for, by app and id."""
    context = of(request)
    limit, now = limit_of(request), context.clock.time()
    connector, _, operation = request.query.get("cursor", "").rpartition(".")
    app = request.query.get("app")
    of_app = None if app is None else context.registry.connector(app).id

    def read(tx: Tx) -> tuple[list[Evidence], Known]:
        rows = evidence.page(tx, after=(connector, operation), limit=limit + 1, connector=of_app)
        return rows, Known(tx, rows, now=now)

    rows, known = await context.store.read(read)
    items = [
        OperationEvidenceView(
            app=row.connector,
            id=row.operation,
            kind="action",
            **known.view(row.connector, row.operation).model_dump(),
        )
        for row in rows[:limit]
    ]
    more = len(rows) > limit
    cursor = f"{items[-1].app}.{items[-1].id}" if more else None
    return _json(EvidenceList(items=items, next_cursor=cursor))


async def with_evidence(request: web.Request, payload: bytes) -> web.Response:
    """The capabilities in `payload`, each action with how it has gone."""
    context = of(request)
    now = context.clock.time()
    known = await context.store.read(
        lambda tx: Known(tx, evidence.page(tx, after=("", ""), limit=ALL, connector=None), now=now)
    )
    whole: dict[str, Any] = loads(payload)
    for entry in whole["capabilities"]:
        details: Mapping[str, dict[str, Json]] = entry["actionDetails"]
        for normal_id, detail in details.items():
            detail["evidence"] = known.view(entry["app"], normal_id).model_dump(by_alias=True)
    return web.Response(
        body=dumps(whole), content_type="application/json", headers={"Cache-Control": "no-store"}
    )


async def reset(request: web.Request) -> web.Response:
    """Close the circuits of a connector: its operations are asked for again at once."""
    context = of(request)
    connector = context.registry.connector(request.match_info["id"])
    with context.bodies.of(request) as body:
        given = await members_of(body, "operation")
    operation = loads(given["operation"]) if "operation" in given else None
    if operation is not None:
        operation = _action(connector, operation)
    closed = await context.store.write(lambda tx: circuits.close(tx, connector.id, operation))
    return _json(ResetView(closed=closed))


def _action(connector: Connector, given: Json) -> str:
    """The normal id of the action `given`."""
    if not isinstance(given, str):
        raise InputError("operation must be a text", code="operation.invalid")
    name = normal_operation(given)
    if name not in connector.actions:
        meant = nearest(name, connector.actions)
        raise NotFoundError(
            f"{connector.id} has no action {shown(given)!r}",
            code="operation.not_found",
            hint=f"did you mean {meant!r}?"
            if meant
            else f"see `stackd connectors show {connector.id}`",
        )
    return name


def _json(view: EvidenceList | ResetView) -> web.Response:
    return web.Response(body=dumps(view.model_dump(by_alias=True)), content_type="application/json")


ROUTES: Final = (
    Route(
        "GET", "/api/registry/evidence", list_evidence, Scope.READ,
        "How the operations of connectors have gone", {200: EvidenceList},
        query=(Query("app", {"type": "string"}, "only of this connector"), LIMIT, CURSOR),
    ),
    Route(
        "POST", "/api/registry/connectors/{id}/reset", reset, Scope.WRITE,
        "Ask for what rests after failures at once", {200: ResetView},
        takes=ResetBody, takes_nothing=True,
    ),
)  # fmt: skip
