"""Keeps the history within its bounds: what ended goes by age, by number and by what the store takes, the oldest first.

Each step is a transaction of its own, and others have their turn between two. Killed anywhere, the next round goes on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from stackd.core.clock import Clock
from stackd.store import space
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import history
from stackd.workflows.history import HistoryPruned, Taken

SHARE = 2.0  # seconds that one round may take; the rest follows in the next
CHECKPOINT = (
    8  # steps after which the log is brought into the file, so that no commit of others has to
)
CANDIDATES = 500  # executions that one step looks at

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept of the executions that have ended. Infinite: no bound.

    Attributes:
        age: seconds since the end.
        count: executions.
        bytes: that the store may take in use, whatever else is in it.
    """

    age: float = math.inf
    count: float = math.inf
    bytes: float = math.inf


class Bound(StrEnum):
    """What an execution was removed by."""

    AGE = "by_age"
    COUNT = "by_count"
    BYTES = "by_bytes"


class Retention:
    """Removes what is over the bounds."""

    def __init__(self, store: Database, clock: Clock, bounds: Bounds) -> None:
        self._store = store
        self._clock = clock
        self._bounds = bounds
        self._share = 0.0  # the first round does one step: a start waits for it

    async def round(self, *, beat: Callable[[], None] = lambda: None) -> int:
        """Remove what is over the bounds, for as long as a round may take; how many executions are gone.

        Args:
            beat: called after each step.

        Raises:
            StoreError: or a subclass; what was removed until then is.
        """
        began, now = self._clock.monotonic(), self._clock.time()
        share, self._share = self._share, SHARE
        gone: Counter[str] = Counter()
        steps = 0
        try:
            while await self._store.read(lambda tx: self._due(tx, now=now)) is not None:
                bound, taken = await self._store.write(
                    lambda tx: self._step(tx, now=now), durable=False
                )
                gone[bound] += taken.executions
                beat()
                steps += 1
                if steps % history.CHECKPOINT == 0:
                    await self._store.checkpoint()
                is_stuck = taken == Taken(0, has_more=False)  # all that is left is open
                if is_stuck or self._clock.monotonic() - began >= share:
                    break
        finally:
            if gone.total():
                self._store.events.emit(HistoryPruned(**gone))
        return gone.total()

    def _due(self, tx: Tx, *, now: float) -> Bound | None:
        """The bound that the history is over."""
        bounds = self._bounds
        if history.going(tx, limit=1) or history.oldest(tx, before=now - bounds.age, limit=1):
            return Bound.AGE
        if history.count(tx) > bounds.count:
            return Bound.COUNT
        return Bound.BYTES if space.used_bytes(tx) > bounds.bytes else None

    def _step(self, tx: Tx, *, now: float) -> tuple[Bound, Taken]:
        bound = self._due(tx, now=now)
        if bound is None:
            return Bound.AGE, Taken(0, has_more=False)
        rest = history.going(tx, limit=CANDIDATES)
        if rest:
            return bound, history.take(tx, rest)
        limit, before = CANDIDATES, math.inf
        if bound is Bound.AGE:
            before = now - self._bounds.age
        elif bound is Bound.COUNT:
            limit = min(limit, history.count(tx) - int(self._bounds.count))
        return bound, history.take(tx, history.oldest(tx, before=before, limit=limit))
