"""Fires timers: ends the waits that are due and wakes their executions, one transaction per batch."""

from __future__ import annotations

import anyio
import structlog
from anyio.abc import TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.events import Event, EventBus
from stackd.store.database import Database
from stackd.supervisor.service import Pulse
from stackd.workflows import executions
from stackd.workflows.executions import TimerSet

STORE_RETRY = 0.5  # seconds to wait when the store is locked or full


class Timers:
    """Fires each timer when it is due; looks every `interval` seconds for those other processes set."""

    name = "timers"

    def __init__(
        self,
        *,
        store: Database,
        events: EventBus,
        clock: Clock,
        interval: float,
        batch: int,
        pulse: Pulse,
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._interval = interval
        self._batch = batch
        self._pulse = pulse
        self._waits_for = float(
            "inf"
        )  # epoch seconds; infinite while it looks: any timer may matter then
        self._sooner = anyio.Event()
        self._working = anyio.CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        unsubscribe = self._events.subscribe(self._hear, TimerSet)
        try:
            with self._working:
                task_status.started()
                while True:
                    await self._round_or_warn()
        finally:
            unsubscribe()

    def drain(self) -> None:
        self._working.cancel()

    def _hear(self, event: Event) -> None:
        if isinstance(event, TimerSet) and event.due_at < self._waits_for:
            self._sooner.set()

    async def _round_or_warn(self) -> None:
        """Fire what is due, then wait for what is due next."""
        self._waits_for = float("inf")
        self._sooner = anyio.Event()
        try:
            while await self.fire_due() == self._batch:
                self._pulse.beat()
            due = await self._next_due()
            self._pulse.beat()
        except (StoreBusyError, StoreFullError) as error:
            self._pulse.waits(error.message)
            structlog.get_logger(__name__).warning("timers wait", reason=error.message)
            due = self._clock.time() + STORE_RETRY
        self._waits_for = due
        left = due - self._clock.time()
        await self._clock.wait(self._sooner, min(max(left, 0.001), self._interval))

    async def fire_due(self) -> int:
        """Fire up to a batch of what is due; how many fired."""
        now = self._clock.time()
        if await self._next_due() > now:
            return 0
        with anyio.CancelScope(shield=True):
            fired = await self._store.write(
                lambda tx: executions.fire_timers(tx, now=now, limit=self._batch)
            )
        return fired  # noqa: RET504  # a cancel scope could swallow a return inside it

    async def _next_due(self) -> float:
        """When the next timer is due, in epoch seconds; infinite if there is none."""
        due = await self._store.read(executions.next_timer)
        return float("inf") if due is None else due
