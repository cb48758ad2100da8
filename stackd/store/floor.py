"""What plain sqlite3 does with the queue's work on the same disk: the floor that benchmarks stand on."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stackd.core.clock import Clock

BATCH = 50  # jobs claimed, and ended, per transaction
INSERTS = 500  # jobs put in per transaction
COMMITS = 100

CLAIM = """
UPDATE jobs SET state = 'running', owner = 'me'
WHERE id IN (SELECT id FROM jobs WHERE state = 'available' ORDER BY id LIMIT ?) RETURNING id"""


@dataclass(frozen=True, slots=True)
class Floor:
    """What sqlite3 does with transactions synced to disk: jobs per second put in, and claimed and ended."""

    enqueued: float
    drained: float


@contextmanager
def _raw(path: Path) -> Iterator[sqlite3.Connection]:
    raw = sqlite3.connect(path, isolation_level=None)
    try:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, owner TEXT)")
        raw.execute("CREATE INDEX jobs_state ON jobs (state, id)")
        yield raw
    finally:
        raw.close()


def commit_floor(path: Path, clock: Clock) -> float:
    """Seconds that one row, committed and synced, takes sqlite3; the median."""
    took = []
    with _raw(path) as raw:
        for number in range(COMMITS):
            began = clock.monotonic()
            raw.execute("INSERT INTO jobs VALUES (?, 'available', NULL)", (number,))
            took.append(clock.monotonic() - began)
    return statistics.median(took)


def queue_floor(path: Path, jobs: int, clock: Clock) -> Floor:
    """`jobs` put in, `INSERTS` per transaction, then claimed and ended, `BATCH` of each per transaction."""
    with _raw(path) as raw:
        began = clock.monotonic()
        for first in range(0, jobs, INSERTS):
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(
                "INSERT INTO jobs VALUES (?, 'available', NULL)",
                ((number,) for number in range(first, min(first + INSERTS, jobs))),
            )
            raw.execute("COMMIT")
        enqueued = jobs / (clock.monotonic() - began)
        began = clock.monotonic()
        claimed: list[tuple[int]] = []
        for _ in range(0, jobs + BATCH, BATCH):
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany("UPDATE jobs SET state = 'completed' WHERE id = ?", claimed)
            claimed = raw.execute(CLAIM, (BATCH,)).fetchall()
            raw.execute("COMMIT")
        return Floor(enqueued, jobs / (clock.monotonic() - began))
