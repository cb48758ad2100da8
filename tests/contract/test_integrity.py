"""Looking through the file of a store, beside whoever uses it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.connection import ThreadConnection
from stackd.store.database import Database, open_database
from stackd.store.integrity import FRESH, PROBLEMS, Integrity, told
from stackd.testing import FakeClock

PAGE = 4096
MOMENTS = 40  # turns of the loop in which a look begins, is under way or ends


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def integrity(database: Database) -> Integrity:
    return Integrity(database.path, FakeClock())


async def test_a_whole_file_has_no_problems_also_while_it_is_written_to(
    database: Database, integrity: Integrity
) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(database.write, lambda tx, n=n: tx.execute(f"CREATE TABLE t{n} (a)"))
        looked = await integrity.look()

    assert looked.problems == ()
    assert integrity.last is looked


async def test_a_damaged_page_is_a_problem(tmp_path: Path, bus: EventBus) -> None:
    path, clock = tmp_path / "damaged.db", FakeClock()
    async with open_database(path, clock=clock, events=bus) as database:
        await database.write(lambda tx: tx.execute("CREATE TABLE t (a)"))
        root = "SELECT rootpage FROM sqlite_schema WHERE name = 't'"
        ((page,),) = await database.read(lambda tx: tx.rows(root))
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)

    assert (await Integrity(path, clock).look()).problems


async def test_a_row_whose_owner_is_not_there_is_a_problem(
    database: Database, integrity: Integrity
) -> None:
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute(
            "INSERT INTO node_runs (execution, key, type, status, attempt, effect) "
            "VALUES (99, 'a', 'x', 'completed', 1, 'read')"
        )

    looked = await integrity.look()

    assert looked.problems == ("a row of node_runs belongs to one of executions that is not there",)


def test_each_problem_is_a_line_and_the_first_ten_are_told() -> None:
    pages = ("*** in database main ***\nPage 26: bad\nPage 22: worse",)

    assert told([pages, ("NULL value in jobs.id",)]) == [
        "Page 26: bad", "Page 22: worse", "NULL value in jobs.id",
    ]  # fmt: skip
    assert len(told([("\n".join(map(str, range(50))),)])) == PROBLEMS
    assert told([("ok",)]) == []


async def test_what_was_just_found_is_good_for_a_while(database: Database, bus: EventBus) -> None:
    clock = FakeClock()
    integrity = Integrity(database.path, clock)
    first = await integrity.look()
    clock.advance(FRESH)
    again = await integrity.look()
    clock.advance(1)

    assert again is first
    assert await integrity.look() is not first


async def test_who_comes_while_one_looks_waits_for_that(integrity: Integrity) -> None:
    found = []

    async def look() -> None:
        found.append(await integrity.look())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(look)

    assert found[0] is found[1] is found[2]


async def test_cancelled_at_any_moment_it_leaves_nothing_and_the_next_look_works(
    integrity: Integrity,
) -> None:
    await (
        integrity.look()
    )  # SQLite keeps the descriptor of a file that others have open, for who comes next
    integrity.last = None
    before = descriptors()
    for moment in range(MOMENTS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(integrity.look)
            for _ in range(moment):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert not integrity.is_looking
        assert descriptors() <= before

    assert (await integrity.look()).problems == ()


async def test_a_look_that_is_cancelled_before_its_first_statement_ends_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Event(), threading.Event()
    ends: list[str] = []

    def read_for_long(connection: ThreadConnection) -> list[str]:
        begun.set()
        assert cancelled.wait(30)
        try:
            connection.raw.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000000)"
                "SELECT count(*) FROM n"
            ).fetchone()
        except sqlite3.OperationalError as error:
            ends.append(str(error))
        return []

    monkeypatch.setattr("stackd.store.integrity._look_through", read_for_long)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Integrity(database.path, SystemClock()).look)
        await anyio.to_thread.run_sync(begun.wait)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(MOMENTS):  # the look is given up meanwhile, its first interrupt lost
                await anyio.lowlevel.checkpoint()
        cancelled.set()

    assert ends == ["interrupted"]
