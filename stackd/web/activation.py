"""`/api/workflows/{id}/activate` and `…/deactivate`, and what keeps a workflow from being activated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import WorkflowView
from stackd.core.errors import ConflictError
from stackd.core.json import dumps
from stackd.store.connection import Tx
from stackd.web.addresses import addresses
from stackd.web.context import Context, of, switch_of
from stackd.web.route import Query, Route
from stackd.web.views import workflow_view
from stackd.workflows import catalogue
from stackd.workflows.catalogue import WorkflowRow
from stackd.workflows.coverage import findings_of, refuse_uncovered
from stackd.workflows.findings import Finding

FORCE: Final = Query("force", {"type": "boolean"}, "also if nothing can run some operation of it")


async def uncovered(context: Context, row: WorkflowRow) -> list[Finding]:
    """What there is to tell of what runs the operations of a workflow's current version."""
    graph = await context.versions.graph(row.id, row.version)
    return findings_of(graph.workflow.nodes, context.coverage)


async def activate(request: web.Request) -> web.Response:
    """Let its triggers start it, if all of it can run or this is meant by force."""
    context, workflow_id = of(request), request.match_info["id"]
    by_force = switch_of(request, "force")
    judged = await context.store.read(lambda tx: catalogue.get(tx, workflow_id))
    findings = await uncovered(context, judged)

    def check(row: WorkflowRow) -> None:
        if row.active or by_force:
            return
        if row.version != judged.version:
            raise ConflictError(
                f"workflow {workflow_id!r} got another version at the same moment",
                code="workflow.changed",
                hint="look at it, and activate it again",
            )
        refuse_uncovered(workflow_id, findings)

    return await _set_active(request, active=True, check=check, findings=findings)


async def deactivate(request: web.Request) -> web.Response:
    return await _set_active(request, active=False)


async def _set_active(
    request: web.Request,
    *,
    active: bool,
    check: Callable[[WorkflowRow], None] = lambda _: None,
    findings: Sequence[Finding] | None = None,
) -> web.Response:
    context, workflow_id = of(request), request.match_info["id"]
    now = context.clock.time()

    def change(tx: Tx) -> tuple[WorkflowRow, list[tuple[str, str]]]:
        check(catalogue.get(tx, workflow_id))
        row = catalogue.set_active(tx, workflow_id, active=active, now=now)
        return row, catalogue.webhooks(tx, workflow_id)

    row, webhooks = await context.store.write(change)
    view = workflow_view(row, addresses(request, webhooks), warnings=findings)
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


ROUTES: Final = (
    Route(
        "POST", "/api/workflows/{id}/activate", activate, Scope.WRITE,
        "Let its triggers start executions", {200: WorkflowView}, query=(FORCE,),
    ),
    Route(
        "POST", "/api/workflows/{id}/deactivate", deactivate, Scope.WRITE,
        "Stop its triggers; executions under way go on", {200: WorkflowView},
    ),
)  # fmt: skip
