"""Refuses new work once too many jobs are live, or the disk is full."""

from __future__ import annotations

from stackd.core.errors import BusyError, StoreFullError
from stackd.queue import verbs
from stackd.store.connection import Tx
from stackd.store.reserve import Reserve

RECOUNT_FULL_AFTER = (
    0.05  # seconds; sooner once it seems full, so that a place is not refused for long
)
RECOUNT_AFTER = 1.0  # seconds; a count over 100,000 index entries takes milliseconds


class Admission:
    """Holds the queue to `max_jobs` live jobs, to within what one second enqueues elsewhere."""

    def __init__(self, max_jobs: int, reserve: Reserve) -> None:
        self._max = max_jobs
        self._reserve = reserve
        self._count = 0
        self._counted_at = float("-inf")

    def admit(self, tx: Tx, *, now: float) -> None:
        """Count one more job in.

        Raises:
            BusyError: the queue is full.
            StoreFullError: the disk's reserve is in use: what room there is belongs to work already taken.
        """
        if self._reserve.is_spent and self._reserve.look():
            raise StoreFullError(
                "the disk is full; nothing new is taken in", hint="free disk space"
            )
        after = RECOUNT_FULL_AFTER if self._count >= self._max else RECOUNT_AFTER
        if not self._counted_at <= now < self._counted_at + after:
            self._count = verbs.live_count(tx, at_most=self._max)
            self._counted_at = now
        if self._count >= self._max:
            raise BusyError(
                f"the queue holds {self._max} live jobs", code="queue.full", retry_after=5.0
            )
        self._count += 1
