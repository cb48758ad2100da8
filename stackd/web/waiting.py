"""Lets a request wait until an execution rests, whichever process runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        self._waiters: dict[str, set[anyio.Event]] = {}
        events.subscribe(self._hear, ExecutionFinished, ExecutionParked)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ExecutionFinished | ExecutionParked):
            for waiter in self._waiters.get(event.execution_id, ()):
                waiter.set()

    async def until_rested(self, execution_id: str, *, timeout: float) -> ExecutionRow | None:
        """The execution once it is final or uncertain; None if it is not within `timeout` seconds."""
        deadline = self._clock.monotonic() + timeout
        while True:
            with self._hearing(execution_id) as moved:
                row = await self._store.read(lambda tx: executions.get(tx, execution_id))
                if row.status in FINAL or row.status is ExecutionStatus.UNCERTAIN:
                    return row
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return None
                await self._clock.wait(moved, min(left, POLL))

    @contextmanager
    def _hearing(self, execution_id: str) -> Iterator[anyio.Event]:
        """An event that is set when the execution next comes to rest in this process."""
        moved = anyio.Event()
        waiters = self._waiters.setdefault(execution_id, set())
        waiters.add(moved)
        try:
            yield moved
        finally:
            waiters.discard(moved)
            if not waiters:
                self._waiters.pop(execution_id, None)
