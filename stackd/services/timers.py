"""Fires timers: ends the waits that are due and wakes their executions, one transaction per batch."""

from __future__ import annotations

import anyio
import structlog
from anyio.abc import TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.store.database import Database
from stackd.workflows import executions


class Timers:
    """Looks every `interval` seconds, sooner when a timer is due sooner."""

    name = "timers"

    def __init__(self, *, store: Database, clock: Clock, interval: float, batch: int) -> None:
        self._store = store
        self._clock = clock
        self._interval = interval
        self._batch = batch
        self._working = anyio.CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        with self._working:
            while True:
                try:
                    fired = await self.fire_due()
                except (StoreBusyError, StoreFullError) as error:
                    structlog.get_logger(__name__).warning("timers wait", reason=error.message)
                    fired = 0
                if fired < self._batch:
                    await self._sleep_until_due()

    def drain(self) -> None:
        self._working.cancel()

    async def fire_due(self) -> int:
        """One round: fire what is due; how many fired."""
        now = self._clock.time()
        due = await self._store.read(executions.next_timer)
        if due is None or due > now:
            return 0
        with anyio.CancelScope(shield=True):
            fired = await self._store.write(
                lambda tx: executions.fire_timers(tx, now=now, limit=self._batch)
            )
        return fired  # noqa: RET504  # a cancel scope could swallow a return inside it

    async def _sleep_until_due(self) -> None:
        due = await self._store.read(executions.next_timer)
        left = self._interval if due is None else due - self._clock.time()
        await self._clock.sleep(min(max(left, 0.001), self._interval))
