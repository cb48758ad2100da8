"""A store and a clock that tell what is asked of them, and when nothing is going on any more."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio

from stackd.core.errors import StackdError
from stackd.core.events import EventBus
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.store.reserve import Reserve
from stackd.testing import FakeClock

T = TypeVar("T")
CALM = 20  # turns of the loop without a call to the store: more than any chain of wake-ups takes


class WatchedClock(FakeClock):
    """Notes how long each sleep and each wait was asked to be."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        super().__init__(now)
        self.asked: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await super().sleep(seconds)

    async def wait(self, event: anyio.Event, timeout: float) -> bool:
        self.asked.append(timeout)
        return await super().wait(event, timeout)


class Hold:
    """Where writes wait; `met` is set once one does."""

    def __init__(self) -> None:
        self.met = anyio.Event()
        self._released = anyio.Event()

    async def wait(self) -> None:
        self.met.set()
        await self._released.wait()

    def release(self) -> None:
        self._released.set()


class WatchedStore:
    """The real store, counting; the next reads or writes fail with what the test puts in `failing_…`."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.reads = self.writes = 0
        self.steps = 0  # of SQLite's machine, in tens: what they cost, whatever else the box does
        self.failing_reads: deque[StackdError | None] = deque()
        self.failing_writes: deque[StackdError | None] = deque()
        self._hold: Hold | None = None
        self.after_read: Callable[[], Awaitable[None]] | None = None  # before its caller goes on
        self._in_hand = 0
        self._returned = anyio.Event()

    @property
    def events(self) -> EventBus:
        return self._store.events

    @property
    def reserve(self) -> Reserve:
        return self._store.reserve

    @property
    def failure(self) -> StackdError | None:
        return self._store.failure

    async def write(self, change: Callable[[Tx], T], **how: Any) -> T:
        self.writes += 1
        async with self._call(self.failing_writes):
            if self._hold is not None:
                await self._hold.wait()
            return await self._store.write(partial(self._counted, change), **how)

    def hold_writes(self) -> Hold:
        """Let every further write wait until the returned hold is released."""
        self._hold = Hold()
        return self._hold

    async def read(self, query: Callable[[Tx], T]) -> T:
        self.reads += 1
        async with self._call(self.failing_reads):
            found = await self._store.read(partial(self._counted, query))
            if self.after_read is not None:
                await self.after_read()
            return found

    def _counted(self, function: Callable[[Tx], T], tx: Tx) -> T:
        tx._connection.set_progress_handler(self._step, 10)
        try:
            return function(tx)
        finally:
            tx._connection.set_progress_handler(None, 0)

    def _step(self) -> None:
        self.steps += 1

    async def keep_reserve(self) -> None:
        async with self._call(deque()):
            await self._store.keep_reserve()

    async def checkpoint(self) -> None:
        async with self._call(deque()):
            await self._store.checkpoint()

    @asynccontextmanager
    async def _call(self, failing: deque[StackdError | None]) -> AsyncIterator[None]:
        error = failing.popleft() if failing else None
        if error is not None:
            raise error
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
            self._returned.set()

    async def quiet(self) -> None:
        """Wait until every task that works on this store waits for time or for an event."""
        calm = 0
        while calm < CALM:
            if self._in_hand:
                self._returned = anyio.Event()
                await self._returned.wait()
                calm = 0
            else:
                await anyio.lowlevel.checkpoint()
                calm += 1
