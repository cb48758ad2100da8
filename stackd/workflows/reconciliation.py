"""Looks through the store for what does not fit together, and mends it, in steps that hold up nobody.

Each check reads in a snapshot of its own; each step of a repair is a transaction of its own. Killed between, what
is mended is mended, and the next look finds the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from stackd.core.clock import Clock
from stackd.store.database import Database
from stackd.workflows import consistency
from stackd.workflows.consistency import Check, Finding, Found, Mended, Row

EVERY = 60.0  # seconds between two looks of the scheduler
LOOK_AGAIN = 3.0  # seconds until somebody who asks is told what may be so for a moment
REPAIRS = 50  # rows per transaction: some milliseconds
PASSES = (
    20  # times that `consistency.ROWS` are mended of one kind; the rest follows in the next round
)

BY_ITSELF: Final = frozenset({Mended.ITSELF})
BY_REPAIR: Final = frozenset({Mended.ITSELF, Mended.REPAIR})

Suspects = Set[tuple[str, Row]]  # codes, and rows that may be so for a moment

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of looking through a store.

    Attributes:
        at: when it began, in epoch seconds; seconds: how long it took.
        left: what does not fit together, and was not mended.
        repaired: how many of each code were.
        suspects: what is to be told if the next look finds it too.
    """

    at: float
    seconds: float
    left: tuple[Finding, ...]
    repaired: Mapping[str, int]
    suspects: Suspects

    @property
    def is_sound(self) -> bool:
        return not self.left


async def reconcile(
    store: Database,
    clock: Clock,
    *,
    mends: Collection[Mended] = BY_ITSELF,
    suspects: Suspects = frozenset(),
    beat: Callable[[], None] = lambda: None,
) -> Result:
    """Look through the store once, and mend what `mends` says.

    Args:
        beat: called after each step: it may take many seconds where very much is to be mended.
        suspects: of a look some seconds ago; without them nothing is told that may be so for a moment.

    Raises:
        StoreError: or a subclass; what was mended until then is.
    """
    began, now = clock.monotonic(), clock.time()
    left: list[Finding] = []
    repaired: Counter[str] = Counter()
    seen: set[tuple[str, Row]] = set()

    async def look(check: Check) -> Found:
        found = await store.read(partial(consistency.look, check=check, now=now))
        beat()
        if not check.is_timed:
            return found
        seen.update((check.code, row) for row in found.rows)
        rows = tuple(row for row in found.rows if (check.code, row) in suspects)
        return Found(rows, len(rows))

    for check in consistency.CHECKS:
        found = await look(check)
        if check.repair is not None and check.mended in mends:
            for _ in range(PASSES):
                done = await _repair(store, check, found.rows, now=now, beat=beat)
                if not done:
                    break
                repaired[check.code] += done
                found = await look(check)
        if found.count:
            left.append(check.finding(found.rows, found.count))
    return Result(now, clock.monotonic() - began, tuple(left), repaired, seen)


async def _repair(
    store: Database,
    check: Check,
    rows: tuple[Row, ...],
    *,
    now: float,
    beat: Callable[[], None],
) -> int:
    done = 0
    for start in range(0, len(rows), REPAIRS):
        some = rows[start : start + REPAIRS]
        done += await store.write(partial(consistency.repair, check=check, rows=some, now=now))
        beat()
    return done


async def look_twice(store: Database, clock: Clock, *, mends: Collection[Mended]) -> Result:
    """Look through all of it; once more after some seconds, if something is there that may be so for a moment."""
    first = await reconcile(store, clock, mends=mends)
    if not first.suspects:
        return first
    await clock.sleep(LOOK_AGAIN)
    second = await reconcile(store, clock, mends=mends, suspects=first.suspects)
    repaired = Counter(first.repaired)
    repaired.update(second.repaired)
    return replace(second, repaired=repaired)


class Reconciliation:
    """Reconciles a store once a minute. `last`: what came of it; None before the first time."""

    def __init__(self, store: Database, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._began_at = float("-inf")  # by the monotonic clock
        self.last: Result | None = None

    async def round(self, *, beat: Callable[[], None] = lambda: None) -> None:
        """Reconcile, unless that was done within the last minute; log what is left, if it is not what was left then."""
        now = self._clock.monotonic()
        if now - self._began_at < EVERY:
            return
        before = self.last
        suspects = frozenset() if before is None else before.suspects
        result = await reconcile(self._store, self._clock, suspects=suspects, beat=beat)
        self.last, self._began_at = result, now
        told = () if before is None else before.left
        for finding in result.left:
            if finding not in told:
                _log.warning(
                    "does not fit together", code=finding.code, problem=finding.about,
                    count=finding.count, ids=finding.ids, mended=finding.mended.value,
                )  # fmt: skip
