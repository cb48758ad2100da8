"""Notes of what the API refused or skipped: gathered for a second, so that a flood of them is a few writes and lines."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from stackd.core.clock import Clock
from stackd.core.errors import StoreError
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import why

GATHERED: Final = 1.0  # seconds
MOST: Final = 100  # different ones at a time; who floods us is not helped by more

_log = structlog.get_logger(__name__)


class Notes:
    """What `stackd why` will tell. One that is gathered when the process is killed is lost."""

    def __init__(self, store: Database, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._gathered: Counter[tuple[str, str, str]] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, code: str, subject: str, message: str) -> None:
        """Note that this happened to `subject`: an execution, a workflow, or the queue."""
        key = code, subject, message
        if key in self._gathered or len(self._gathered) < MOST:
            self._gathered[key] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHERED, self.flush)

    def flush(self) -> None:
        """Hand over what was gathered, to be written with what commits next."""
        if change := self._change():
            self._store.write_soon(change)

    async def written(self) -> None:
        """Write what was gathered; where the store cannot, it is lost."""
        if change := self._change():
            with suppress(StoreError):
                await self._store.write(change, durable=False)

    def _change(self) -> Callable[[Tx], None] | None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, Counter()
        for (code, subject, message), count in gathered.items():
            if subject == why.QUEUE:  # what is so of all: one line a second, however many ask
                _log.warning("refused", code=code, reason=message, count=count)
        now = self._clock.time()

        def change(tx: Tx) -> None:
            for (code, subject, message), count in gathered.items():
                why.note(tx, code, subject, message, now=now, count=count)

        return change if gathered else None
