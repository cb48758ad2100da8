"""Lets a request wait until an execution rests, whichever process runs it."""

from __future__ import annotations

import anyio

from stackd.core.clock import Clock
from stackd.core.events import Event, EventBus
from stackd.store.database import Database
from stackd.workflows import executions
from stackd.workflows.executions import (
    FINAL,
    ExecutionFinished,
    ExecutionParked,
    ExecutionRow,
    ExecutionStatus,
)

POLL = 0.5  # seconds between looks for what another process finished


class Waiting:
    """Wakes waiters by the events of this process, and looks into the store for the others."""

    def __init__(self, store: Database, clock: Clock, events: EventBus) -> None:
        self._store = store
        self._clock = clock
        self._waiters: dict[str, anyio.Event] = {}
        events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ExecutionFinished | ExecutionParked):
            waiter = self._waiters.get(event.execution_id)
            if waiter is not None and event.status != ExecutionStatus.WAITING:
                waiter.set()

    async def until_rested(self, execution_id: str, *, timeout: float) -> ExecutionRow | None:
        """The execution once it is final or uncertain; None if it is not within `timeout` seconds."""
        waiter = self._waiters.setdefault(execution_id, anyio.Event())
        try:
            with anyio.move_on_after(timeout):
                while True:
                    row = await self._store.read(lambda tx: executions.get(tx, execution_id))
                    if row.status in FINAL or row.status is ExecutionStatus.UNCERTAIN:
                        return row
                    with anyio.move_on_after(POLL):
                        await waiter.wait()
        finally:
            self._waiters.pop(execution_id, None)
        return None
