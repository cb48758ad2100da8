"""What the store promises: group commit, isolation of members, deadlines, honest failure."""

from __future__ import annotations

import math
import sqlite3
import threading
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
    StoreFailedError,
    StoreFullError,
    StoreReplacedError,
)
from stackd.core.events import Event, EventBus
from stackd.store.connection import Tx, connect
from stackd.store.database import (
    GROUP_BYTES,
    WAITING_BYTES,
    Database,
    StoreWritesStopped,
    open_database,
)
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


async def test_a_commit_that_fails_ends_what_an_earlier_one_proved(database: Database) -> None:
    def refuse(_: Tx) -> None:
        raise StackdError("not now")

    await database.write(lambda tx: put(tx, "a"))
    with pytest.raises(StackdError, match="not now"):
        await database.write(refuse)
    assert database.synced_at > 0  # the store could have done it

    other = sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)
    await anyio.to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError) as locked:
        await database.write(lambda tx: put(tx, "b"))
    other.close()

    assert locked.value.hint
    assert database.synced_at == -math.inf


async def test_constraint_failure_is_told_in_our_words(database: Database) -> None:
    await database.write(lambda tx: put(tx, "a"))

    with pytest.raises(StackdError) as caught:
        await database.write(lambda tx: put(tx, "a"))

    assert caught.value.code == "store.constraint"


async def test_a_cancelled_writer_that_had_begun_still_commits_and_its_events_are_delivered(
    database: Database, bus: EventBus
) -> None:
    committed, begun, may_go_on = anyio.Event(), threading.Event(), threading.Event()
    bus.subscribe(lambda _: committed.set(), Noted)

    def change(tx: Tx) -> str:
        begun.set()
        may_go_on.wait(30)
        return put(tx, "a")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, change)
        await anyio.to_thread.run_sync(begun.wait, 30)
        tasks.cancel_scope.cancel()
    may_go_on.set()

    with anyio.fail_after(30):
        await committed.wait()
    assert await names(database) == ["a"]


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
                with pytest.raises(StoreBusyError) as dropped:
                    await database.write(lambda tx: put(tx, "second"), deadline=0.05)
                assert dropped.value.hint
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


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_nothing_is_called_kept_once_a_file_of_the_store_is_not_the_one_in_use(
    database: Database, bus: EventBus, suffix: str, *, replaced: bool
) -> None:
    await database.write(lambda tx: put(tx, "before"))
    stopped: list[Event] = []
    bus.subscribe(stopped.append, StoreWritesStopped, Noted)
    file = database.path.with_name(f"stackd.db{suffix}")

    def interfere() -> None:
        file.unlink()
        if replaced:
            file.write_bytes(b"of another")

    await anyio.to_thread.run_sync(interfere)

    for _ in range(2):
        with pytest.raises(StoreReplacedError, match=f"{file.name} was "):
            await database.write(lambda tx: put(tx, "after"))
    assert [type(event) for event in stopped] == [StoreWritesStopped]
    assert database.failure is not None


async def test_a_writer_that_fails_leaves_nobody_waiting(
    database: Database, bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Event] = []
    bus.subscribe(stopped.append, StoreWritesStopped)

    async def fail(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(database._writer, "run", fail)
    errors: list[StoreError] = []

    async def attempt(n: int) -> None:
        try:
            await database.write(lambda tx: put(tx, f"{n}"), size_bytes=GROUP_BYTES)
        except StoreError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for n in range(WAITING_BYTES // GROUP_BYTES + 5):  # some are refused entry at first
            tasks.start_soon(attempt, n)

    assert {type(error) for error in errors} == {StoreFailedError}
    assert len(errors) == WAITING_BYTES // GROUP_BYTES + 5
    assert len(stopped) == 1


async def test_too_many_changes_wait_outside_and_all_commit_in_the_end(database: Database) -> None:
    crowd = WAITING_BYTES // GROUP_BYTES + 5
    may_go_on = threading.Event()

    async def write(n: int) -> None:
        await database.write(lambda tx: put(tx, f"{n}"), size_bytes=GROUP_BYTES)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, lambda tx: may_go_on.wait(30))
        await anyio.wait_all_tasks_blocked()  # it has begun
        for n in range(crowd):
            tasks.start_soon(write, n)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(StoreBusyError, match="too many changes") as crowded:
            await database.write(lambda tx: put(tx, "late"), deadline=0.01)
        assert crowded.value.hint
        may_go_on.set()

    assert len(await names(database)) == crowd


async def test_a_durable_change_is_synced_and_another_may_follow_later(database: Database) -> None:
    def sync(tx: Tx) -> object:
        row = tx.one("PRAGMA synchronous")
        return row and row[0]

    full, normal = 2, 1  # https://www.sqlite.org/pragma.html#pragma_synchronous
    assert await database.write(sync) == full
    assert await database.write(sync, durable=False) == normal
    assert await database.write(sync) == full


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

    with pytest.raises(SchemaError, match="differs") as caught:
        async with open_database(path, clock=SystemClock(), events=bus, migrations=changed):
            pass

    assert caught.value.hint


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
