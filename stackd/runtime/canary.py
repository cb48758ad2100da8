"""A job that does nothing, through the real claim, run and settle: that it ends shows that work is done at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stackd.queue import verbs
from stackd.queue.job import Job, NewJob
from stackd.store.connection import Tx

KIND: Final = "stackd.canary"
PRIORITY: Final = (
    100  # before all others: it asks whether anything is done, not whether there is much to do
)


@dataclass(frozen=True, slots=True)
class CanaryClaim:
    """A claimed canary."""

    job: Job


def send(tx: Tx, *, now: float) -> None:
    """Queue one, unless one is on its way."""
    verbs.enqueue(tx, [NewJob(KIND, subject=KIND, priority=PRIORITY)], now=now)
