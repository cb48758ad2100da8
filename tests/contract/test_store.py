"""What the store promises: group commit, isolation of members, deadlines, honest failure."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from stackd.core.clock import SystemClock
from stackd.core.errors import (
    SchemaError,
    StackdError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
)
from stackd.core.events import Event, EventBus
from stackd.store.connection import Tx, connect
from stackd.store.database import Database, open_database
from stackd.store.migrations import Migration, known_migrations

SHIPPED = known_migrations()  # read here: a test may not block its loop


@dataclass(frozen=True, slots=True)
class Noted(Event):
    value: str


def put(tx: Tx, name: str) -> str:
    tx.execute("INSERT INTO queue_control VALUES (?, 'x')", (name,))
    tx.emit(Noted(name))
    return name


async def names(database: Database) -> list[str]:
    return [
        row[0]
        for row in await database.read(
            lambda tx: tx.rows("SELECT name FROM queue_control ORDER BY name")
        )
    ]


async def test_write_returns_what_the_change_returned_once_committed(database: Database) -> None:
    assert await database.write(lambda tx: put(tx, "a")) == "a"
    assert await names(database) == ["a"]


async def test_changes_that_arrive_together_share_a_commit(
    database: Database, bus: EventBus
) -> None:
    seen: list[Event] = []
    bus.subscribe(seen.append)

    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(database.write, lambda tx, n=n: put(tx, f"{n:02}"))

    assert seen == [Noted(f"{n:02}") for n in range(50)]
    assert len(await names(database)) == 50


async def test_a_failing_change_undoes_only_itself(database: Database, bus: EventBus) -> None:
    seen: list[Event] = []
    bus.subscribe(seen.append)
    failures: list[Exception] = []

    def bad(tx: Tx) -> None:
        put(tx, "bad")
        raise ValueError("no")

    async def write_bad() -> None:
        try:
            await database.write(bad)
        except ValueError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, lambda tx: put(tx, "a"))
        tasks.start_soon(write_bad)
        tasks.start_soon(database.write, lambda tx: put(tx, "b"))

    assert await names(database) == ["a", "b"]
    assert seen == [Noted("a"), Noted("b")]
    assert len(failures) == 1


async def test_a_change_that_fails_with_stop_iteration_is_told_and_the_writer_goes_on(
    database: Database,
) -> None:
    with pytest.raises(RuntimeError):
        await database.write(lambda tx: next(iter([])))

    await database.write(lambda tx: put(tx, "a"))
    assert await names(database) == ["a"]


async def test_only_a_commit_that_wrote_counts_as_one(database: Database) -> None:
    await database.write(lambda tx: put(tx, "a"))
    synced_at = database.synced_at

    await database.write(lambda tx: tx.rows("SELECT 1"))
    assert database.synced_at == synced_at
    await database.write(lambda tx: put(tx, "b"))
    assert database.synced_at > synced_at


async def test_constraint_failure_is_told_in_our_words(database: Database) -> None:
    await database.write(lambda tx: put(tx, "a"))

    with pytest.raises(StackdError) as caught:
        await database.write(lambda tx: put(tx, "a"))

    assert caught.value.code == "store.constraint"


async def test_a_cancelled_writer_that_had_begun_still_commits_and_its_events_are_delivered(
    database: Database, bus: EventBus
) -> None:
    committed = anyio.Event()
    bus.subscribe(lambda event: committed.set())

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def write() -> None:
            with scope:
                await database.write(lambda tx: (anyio.from_thread, put(tx, "a"))[1])

        tasks.start_soon(write)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        scope.cancel()

    if await names(database) == ["a"]:
        await committed.wait()


async def test_a_change_that_waits_past_its_deadline_is_dropped(
    database: Database, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "stackd.db", isolation_level=None, check_same_thread=False)
    await anyio.to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")
    try:
        async with anyio.create_task_group() as tasks:
            first_failed = anyio.Event()

            async def blocked() -> None:
                with pytest.raises(StoreBusyError):
                    await database.write(lambda tx: put(tx, "first"))
                first_failed.set()

            tasks.start_soon(blocked)
            with anyio.fail_after(5):
                await anyio.lowlevel.checkpoint()
                with pytest.raises(StoreBusyError):
                    await database.write(lambda tx: put(tx, "second"), deadline=0.05)
            await first_failed.wait()
    finally:
        await anyio.to_thread.run_sync(other.execute, "ROLLBACK")
        other.close()

    assert await names(database) == []
    assert await database.write(lambda tx: put(tx, "third")) == "third"


async def test_full_file_fails_the_whole_group_and_keeps_nothing(database: Database) -> None:
    await database._writer.run(lambda: database._writer.raw.execute("PRAGMA max_page_count=60"))

    def big(tx: Tx) -> None:
        tx.execute("INSERT INTO queue_control VALUES ('big', ?)", ("x" * 2_000_000,))

    errors: list[BaseException] = []

    async def attempt(change: object) -> None:
        try:
            await database.write(change)  # type: ignore[arg-type]
        except StoreError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, lambda tx: put(tx, "small"))
        tasks.start_soon(attempt, big)

    assert [type(e) for e in errors] == [StoreFullError, StoreFullError]
    assert await names(database) == []
    assert database.failure is None
    assert await database.write(lambda tx: put(tx, "after")) == "after"


async def test_reads_see_one_snapshot_and_cannot_write(database: Database) -> None:
    with pytest.raises(StoreError):
        await database.read(lambda tx: put(tx, "a"))


async def test_closing_commits_what_waits(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    async with (
        open_database(path, clock=SystemClock(), events=bus) as first,
        anyio.create_task_group() as tasks,
    ):
        for n in range(20):
            tasks.start_soon(first.write, lambda tx, n=n: put(tx, str(n)))
    async with open_database(path, clock=SystemClock(), events=bus) as second:
        assert len(await names(second)) == 20
        with pytest.raises(StoreError):
            await first.write(lambda tx: put(tx, "late"))


async def test_file_is_private_to_its_owner(database: Database) -> None:
    assert database.path.stat().st_mode & 0o777 == 0o600


async def test_newer_schema_is_refused(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    newer = [*SHIPPED, Migration(len(SHIPPED) + 1, "later", "SELECT 1;")]
    async with open_database(path, clock=SystemClock(), events=bus, migrations=newer):
        pass

    with pytest.raises(SchemaError, match="this stackd knows"):
        async with open_database(path, clock=SystemClock(), events=bus):
            pass


async def test_changed_migration_is_refused(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    async with open_database(path, clock=SystemClock(), events=bus):
        pass
    changed = [Migration(m.version, m.name, m.sql + "\n-- x\n") for m in SHIPPED]

    with pytest.raises(SchemaError, match="differs"):
        async with open_database(path, clock=SystemClock(), events=bus, migrations=changed):
            pass


async def test_upgrade_keeps_a_copy_of_the_file_first(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    async with open_database(path, clock=SystemClock(), events=bus) as old:
        await old.write(lambda tx: put(tx, "kept"))
    number = len(SHIPPED) + 1
    upgraded = [*SHIPPED, Migration(number, "more", "CREATE TABLE more (x);")]

    async with open_database(path, clock=SystemClock(), events=bus, migrations=upgraded):
        pass

    copy = tmp_path / f"x.db.before-v{number}"
    async with open_database(copy, clock=SystemClock(), events=bus) as kept:
        assert await names(kept) == ["kept"]


async def test_failing_migration_leaves_the_file_as_it_was(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    async with open_database(path, clock=SystemClock(), events=bus):
        pass
    broken = [
        *SHIPPED,
        Migration(len(SHIPPED) + 1, "bad", "CREATE TABLE y (x);\nCREATE TABLE y (x);"),
    ]

    with pytest.raises(StoreError):
        async with open_database(path, clock=SystemClock(), events=bus, migrations=broken):
            pass

    async with open_database(path, clock=SystemClock(), events=bus) as again:
        assert (
            await again.read(lambda tx: tx.rows("SELECT 1 FROM sqlite_schema WHERE name = 'y'"))
            == []
        )


async def test_file_that_is_no_database_is_named_corrupt(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is not a database" * 100)

    with pytest.raises(StoreCorruptError, match=r"x\.db"):
        async with open_database(path, clock=SystemClock(), events=bus):
            pass


async def test_other_programs_database_is_refused_untouched(tmp_path: Path, bus: EventBus) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()

    with pytest.raises(StoreCorruptError, match="another program"):
        async with open_database(path, clock=SystemClock(), events=bus):
            pass


async def test_missing_folder_is_named(tmp_path: Path, bus: EventBus) -> None:
    with pytest.raises(StoreError) as caught:
        async with open_database(tmp_path / "no" / "x.db", clock=SystemClock(), events=bus):
            pass

    assert caught.value.code == "store.read_only"


async def test_thread_connection_runs_a_whole_function_in_order(tmp_path: Path) -> None:
    connection = await connect(tmp_path / "x.db", busy_timeout=1.0, writable=True)
    try:
        order: list[int] = []
        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(connection.run, order.append, n)
        assert order == [0, 1, 2, 3, 4]
    finally:
        await connection.close()
