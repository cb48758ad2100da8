"""What plain sqlite3 does with the queue's work on the same disk: the floor that benchmarks stand on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from stackd.core.clock import Clock

BATCH = 50  # jobs claimed, and ended, per transaction

CLAIM = """
UPDATE jobs SET state = 'running', owner = 'me'
WHERE id IN (SELECT id FROM jobs WHERE state = 'available' ORDER BY id LIMIT ?) RETURNING id"""


def raw_floor(path: Path, jobs: int, clock: Clock) -> float:
    """Jobs per second that sqlite3 claims and ends, `BATCH` each in one transaction synced to disk."""
    raw = sqlite3.connect(path, isolation_level=None)
    try:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, owner TEXT)")
        raw.execute("CREATE INDEX jobs_state ON jobs (state, id)")
        raw.execute("BEGIN")
        raw.executemany(
            "INSERT INTO jobs VALUES (?, 'available', NULL)", ((i,) for i in range(jobs))
        )
        raw.execute("COMMIT")
        began = clock.monotonic()
        claimed: list[tuple[int]] = []
        for _ in range(0, jobs + BATCH, BATCH):
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany("UPDATE jobs SET state = 'completed' WHERE id = ?", claimed)
            claimed = raw.execute(CLAIM, (BATCH,)).fetchall()
            raw.execute("COMMIT")
        return jobs / (clock.monotonic() - began)
    finally:
        raw.close()
