"""Free pages go back to the disk in small steps, down to a share that is kept, and nothing is lost by it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.held import held

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.space import KEPT_PAGES, KEPT_SHARE, STEP_PAGES, STEPS, give_back, shrink

LIMIT = 500
ROWS = 8_000  # of a page each


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    async with held(
        open_database(tmp_path / "x.db", clock=SystemClock(), events=EventBus())
    ) as opened:
        await opened.write(fill)
        yield opened


def fill(tx: Tx) -> None:
    for number in range(ROWS):
        tx.execute("INSERT INTO queue_control VALUES (?, ?)", (f"{number:05}", "x" * 3_500))


def forget(tx: Tx, *, every: int) -> int:
    return tx.execute("DELETE FROM queue_control WHERE name % ? = 0", (every,))


async def pages(store: Database) -> tuple[int, int]:
    """(free, all)"""

    def look(tx: Tx) -> tuple[int, int]:
        ((free,),), ((count,),) = (
            tx.rows("PRAGMA freelist_count"),
            tx.rows("PRAGMA page_count"),
        )
        return free, count

    return await store.read(look)


async def steps(store: Database) -> list[int]:
    """What each step gave back, until one gave less than it may."""
    given: list[int] = []
    while not given or given[-1] == LIMIT:
        given.append(await store.write(lambda tx: give_back(tx, limit=LIMIT), durable=False))
    return given


async def test_free_pages_go_back_in_bounded_steps_until_a_share_is_left(
    store: Database,
) -> None:
    await store.write(lambda tx: forget(tx, every=1))
    free, count = await pages(store)

    given = await steps(store)

    assert len(given) > 2
    assert set(given[:-1]) == {LIMIT}
    free_after, count_after = await pages(store)
    assert free_after == free - sum(given) == KEPT_PAGES
    assert count_after <= count - sum(given)


async def test_the_file_becomes_shorter_and_what_is_in_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with open_database(path, clock=SystemClock(), events=EventBus()) as store:
        await store.write(fill)
        await store.write(lambda tx: tx.execute("DELETE FROM queue_control WHERE name % 10 > 0"))
        await steps(store)
        _, count = await pages(store)

    assert path.stat().st_size == count * 4096 < ROWS * 4096 / 3
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = raw.execute("SELECT name, length(value) FROM queue_control ORDER BY name").fetchall()
    raw.close()
    assert found == [(f"{number:05}", 3_500) for number in range(0, ROWS, 10)]


async def test_a_share_of_free_pages_is_left_alone(store: Database) -> None:
    await store.write(lambda tx: forget(tx, every=20))
    free, count = await pages(store)
    assert 0 < free < max(KEPT_PAGES, KEPT_SHARE * count)

    assert await steps(store) == [0]
    assert await pages(store) == (free, count)


async def test_shrinking_goes_in_steps_and_makes_the_file_of_an_open_store_shorter(
    store: Database,
) -> None:
    await store.write(lambda tx: forget(tx, every=1))
    await store.checkpoint()
    before = store.path.stat().st_size
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    given = await shrink(store, beat=beat)

    assert ROWS - KEPT_PAGES <= given <= STEPS * STEP_PAGES
    assert beats >= given // STEP_PAGES
    assert store.path.stat().st_size <= before - given * 4096
    assert await shrink(store) == 0


async def test_shrinking_stops_after_its_share_and_goes_on_the_next_time(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stackd.store.space.STEPS", 3)
    await store.write(lambda tx: forget(tx, every=1))

    assert await shrink(store) == 3 * STEP_PAGES
    assert await shrink(store) == 3 * STEP_PAGES


async def test_a_checkpoint_beside_a_reader_and_a_writer_fails_neither(store: Database) -> None:
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM queue_control").fetchone() == (ROWS,)
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM queue_control")

    await store.checkpoint()

    writer.execute("COMMIT")
    await store.checkpoint()
    assert reader.execute("SELECT count(*) FROM queue_control").fetchone() == (ROWS,)
    reader.close()
    writer.close()
    assert await store.read(lambda tx: tx.rows("SELECT count(*) FROM queue_control")) == [(0,)]
