"""Lets a request wait until an execution rests, whichever process runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import anyio

from stackd.core.clock import Clock
from stackd.core.events import Event, EventBus
from stackd.store.database import Database
from stackd.workflows import executions
from stackd.workflows.executions import FINAL, ExecutionFinished, ExecutionParked, ExecutionStatus

POLL = 0.5  # seconds until the first look for what another process finished
LONGEST_POLL = 4.0  # it grows to this: many may wait, and most of them for this process

RESTED = FINAL | {ExecutionStatus.UNCERTAIN}


class Client(Protocol):
    """Who waits."""

    def telling(self, told: anyio.Event) -> AbstractContextManager[None]:
        """Set `told` when the client may be gone, during the block or before it."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def may_be_gone(self) -> bool: ...


class Waiting:
    """Wakes waiters by the events of this process, and looks into the store for the others."""

    def __init__(self, store: Database, clock: Clock, events: EventBus) -> None:
        self._store = store
        self._clock = clock
        self._waiters: dict[str, set[anyio.Event]] = {}
        self._releases = 0
        events.subscribe(self._hear, ExecutionFinished, ExecutionParked)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ExecutionFinished | ExecutionParked):
            for waiter in self._waiters.get(event.execution_id, ()):
                waiter.set()

    def release(self) -> None:
        """Let go all who wait now: nobody is left to answer them later."""
        self._releases += 1
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()

    async def until_rested(self, execution_id: str, *, timeout: float, client: Client) -> bool:
        """Whether the execution is final or uncertain: once it is so, or nobody may wait any longer.

        That is after `timeout` seconds, once released, or when the client may have left.

        Raises:
            ConnectionAbortedError: the client has gone.
        """
        deadline = self._clock.monotonic() + timeout
        poll, releases = POLL, self._releases
        while True:
            with self._hearing(execution_id) as moved, client.telling(moved):
                status = await self._store.read(lambda tx: executions.status(tx, execution_id))
                if status in RESTED:
                    return True
                left = deadline - self._clock.monotonic()
                if left <= 0 or client.may_be_gone or self._releases != releases:
                    return False
                await self._clock.wait(moved, min(left, poll))
            if client.is_gone:
                raise ConnectionAbortedError("the client left before the execution rested")
            poll = min(2 * poll, LONGEST_POLL)

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
