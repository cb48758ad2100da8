"""Removing what has ended because somebody asks: `/api/executions/prune`, and workflows with their history.

Each request works for a moment, in steps between which others have their turn, and says whether there is more.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import DeletedWorkflow, PrunedExecutions, PruneRequest
from stackd.core.errors import InputError
from stackd.core.json import Json, dumps, loads
from stackd.core.text import shown
from stackd.web.context import Context, is_number, of
from stackd.web.route import JSON, Route
from stackd.web.workflows import members_of
from stackd.workflows import deletion, history
from stackd.workflows.executions import FINAL
from stackd.workflows.history import Choice, HistoryPruned

WORKS_FOR = 1.0  # seconds one request works
LOOKS_AT = 500  # executions at a time
_NEWEST: Final = 2**62
_MOST: Final = 10**12  # seconds, and executions, that anybody can mean


async def prune(request: web.Request) -> web.Response:
    """Remove, or count, executions that have ended: a part of them, and where to go on."""
    context = of(request)
    with context.bodies.of(request) as body:
        given = await members_of(
            body, "olderThanSeconds", "keep", "status", "workflowId", "dryRun", "cursor"
        )
    wanted = {name: loads(text) for name, text in given.items()}
    choice, age, keep = _choice(wanted)
    below, kept = _place(wanted.get("cursor"))
    before = context.clock.time() - age
    walk = _Walk(context, choice, before=before, below=below, keep=max(keep - kept, 0))
    dry_run = _switch(wanted.get("dryRun"))
    await (walk.count() if dry_run else walk.remove())
    cursor = None if walk.below is None else f"{walk.below}:{keep - walk.keep}"
    view = PrunedExecutions(executions=walk.executions, dry_run=dry_run, next_cursor=cursor)
    return web.Response(body=dumps(view.as_json()), content_type=JSON)


def _choice(wanted: dict[str, Json]) -> tuple[Choice, float, int]:
    """Which executions are meant, how old they must be, and how many of the newest of them are kept."""
    age, keep, status, workflow_id = (
        wanted.get(name) for name in ("olderThanSeconds", "keep", "status", "workflowId")
    )
    if age is None and keep is None and status is None and workflow_id is None:
        raise InputError(
            "say which executions shall go",
            code="prune.everything",
            hint="by olderThanSeconds, keep, status or workflowId; keep 0 means all that have ended",
        )
    if age is not None and (type(age) not in (int, float) or not 0 <= age <= _MOST):
        raise InputError("olderThanSeconds must be a number from 0 on", code="input.age")
    if keep is not None and (type(keep) is not int or not 0 <= keep <= _MOST):
        raise InputError("keep must be a whole number from 0 on", code="input.keep")
    if status is not None and not (isinstance(status, str) and status in FINAL):
        raise InputError(
            f"status must be one of {', '.join(sorted(FINAL))}: others have not ended",
            code="input.status",
        )
    if workflow_id is not None and not isinstance(workflow_id, str):
        raise InputError("workflowId must be text", code="input.workflow_id")
    return Choice(workflow_id, status), -math.inf if age is None else float(age), keep or 0


def _place(cursor: Json) -> tuple[int, int]:
    """Where a cursor of ours goes on: below which number, and how many were kept before."""
    if cursor is None:
        return _NEWEST, 0
    below, _, kept = cursor.partition(":") if isinstance(cursor, str) else ("", "", "")
    if not is_number(below, most=_NEWEST) or not is_number(kept, most=_MOST):
        raise InputError(f"cursor {shown(str(cursor))!r} is none of ours", code="input.cursor")
    return int(below), int(kept)


def _switch(value: Json) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InputError("dryRun must be true or false", code="input.dry_run")
    return bool(value)


class _Walk:
    """Goes through the executions that a choice means, the newest first, for as long as a request may work.

    `below`: where to go on, None at the end. `keep`: how many more are kept. `executions`: what is gone, or would be.
    """

    def __init__(
        self, context: Context, choice: Choice, *, before: float, below: int, keep: int
    ) -> None:
        self._context = context
        self._before = before
        self._choice = choice
        self._until = context.clock.monotonic() + WORKS_FOR
        self.below: int | None = below
        self.keep = keep
        self.executions = 0
        self._steps = 0

    async def count(self) -> None:
        """Count what would go."""
        while self._has_time and self.below is not None:
            page = await self._page(self.below)
            self.executions += await self._context.store.read(
                partial(history.count_with_called, seqs=self._doomed(page))
            )
            self._go_on(page)

    async def remove(self) -> None:
        """Remove it; one event says how many are gone, however this ends."""
        try:
            while self._has_time and self.below is not None:
                page = await self._page(self.below)
                if await self._remove(self._doomed(page)):
                    self._go_on(page)
        finally:
            if self.executions:
                self._context.events.emit(HistoryPruned(by_request=self.executions))

    async def _remove(self, doomed: list[int]) -> bool:
        """Whether all of them are gone; else time is over."""
        while self._has_time:
            taken = await self._context.store.write(
                lambda tx: history.take(tx, doomed), durable=False
            )
            self.executions += taken.executions
            self._steps += 1
            if self._steps % history.CHECKPOINT == 0:
                await self._context.store.checkpoint()
            if not taken.has_more:
                return True
        return False

    @property
    def _has_time(self) -> bool:
        return self._context.clock.monotonic() < self._until

    async def _page(self, below: int) -> history.Page:
        return await self._context.store.read(
            lambda tx: history.chosen(tx, self._choice, below=below, limit=LOOKS_AT)
        )

    def _doomed(self, page: history.Page) -> list[int]:
        return [seq for seq, ended_at in page.ended[self.keep :] if ended_at < self._before]

    def _go_on(self, page: history.Page) -> None:
        self.keep -= min(self.keep, len(page.ended))
        self.below = page.last


async def delete_workflow(request: web.Request) -> web.Response:
    """Delete a workflow with all that belongs to it; 202: a part of it is gone, ask again."""
    context, workflow_id = of(request), request.match_info["id"]
    await context.store.read(lambda tx: deletion.refuse_open(tx, workflow_id))
    until = context.clock.monotonic() + WORKS_FOR
    executions, steps, is_done = 0, 0, False
    try:
        while not is_done and context.clock.monotonic() < until:
            now = context.clock.time()
            part = await context.store.write(
                partial(deletion.delete_part, workflow_id=workflow_id, now=now)
            )
            executions, is_done = executions + part.executions, part.is_done
            steps += 1
            if steps % history.CHECKPOINT == 0:
                await context.store.checkpoint()
    finally:
        if executions:
            context.events.emit(HistoryPruned(by_request=executions))
    view = DeletedWorkflow(workflow_id=workflow_id, executions=executions, more=not is_done)
    return web.Response(
        status=200 if is_done else 202, body=dumps(view.as_json()), content_type=JSON
    )


ROUTES: Final = (
    Route(
        "POST", "/api/executions/prune", prune, Scope.ADMIN,
        "Remove executions that have ended, for about a second; `nextCursor` goes on, null at the end",
        {200: PrunedExecutions}, takes=PruneRequest,
    ),
    Route(
        "DELETE", "/api/workflows/{id}", delete_workflow, Scope.WRITE,
        "Delete a workflow with its versions, webhooks and executions; 202: a part is gone, ask again",
        {200: DeletedWorkflow, 202: DeletedWorkflow},
    ),
)  # fmt: skip
