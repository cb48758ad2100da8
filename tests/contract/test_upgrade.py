"""An upgrade happens whole or not at all, and leaves one copy of the file as it was, whenever it is killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.daemon import ENVIRON
from support.disk import mounted, remount

from stackd.core.clock import SystemClock
from stackd.core.errors import StoreBusyError, StoreError, StoreFullError
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.store.migrations import Migration, known_migrations

SHIPPED = known_migrations()
NEXT = len(SHIPPED) + 1
COPY = f"x.db.before-v{NEXT}"
ONE_MORE = [Migration(NEXT, "more", "CREATE TABLE more (x);")]
TWO_MORE = [*ONE_MORE, Migration(NEXT + 1, "still more", "CREATE TABLE still_more (x);")]

# A start of its own process, which dies inside the named call on the half-made copy.
START = """
import os, signal, sys
from pathlib import Path
import anyio
from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.store.migrations import Migration, known_migrations

def die(event, arguments):
    if event == sys.argv[2] and "partial" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

async def start():
    async with open_database(Path(sys.argv[1]), clock=SystemClock(), events=EventBus(), migrations=wanted):
        pass

sys.addaudithook(die)
wanted = known_migrations()
wanted.append(Migration(len(wanted) + 1, "more", "CREATE TABLE more (x);"))
anyio.run(start)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of the shipped schema, alone in its folder."""
    path = tmp_path / "store" / "x.db"
    path.parent.mkdir()
    start(path)
    return path


def start(
    path: Path,
    *,
    known: list[Migration] = SHIPPED,
    more: list[Migration] | None = None,
    note: str | None = None,
) -> None:
    """Open the store as a daemon does, with `more` migrations known, write `note`, and close it."""

    async def run() -> None:
        async with open_database(
            path, clock=SystemClock(), events=EventBus(), migrations=[*known, *(more or [])]
        ) as store:
            if note is not None:
                await store.write(
                    lambda tx: tx.execute("INSERT INTO queue_control VALUES (?, '')", (note,))
                )

    anyio.run(run)


def spawn(path: Path, die_in: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", START, str(path), die_in], env=ENVIRON)


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def tables(path: Path) -> set[str]:
    return {name for (name,) in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}


def notes(path: Path) -> list[str]:
    return [name for (name,) in rows(path, "SELECT name FROM queue_control ORDER BY name")]


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    raw = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return raw.execute(sql).fetchall()
    finally:
        raw.close()


def test_an_upgrade_counts_what_is_in_loops_that_have_begun(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    start(path, known=list(takewhile(lambda one: one.name != "bytes_in_loops", SHIPPED)))
    raw = sqlite3.connect(path)
    raw.executescript("""
        INSERT INTO workflows VALUES ('w', 'w', 1, 1, NULL, 0, 0);
        INSERT INTO workflow_versions VALUES ('w', 1, '', x'', 0);
        INSERT INTO executions (seq, id, workflow_id, version, status, trigger_type, trigger_node, input, created_at)
        VALUES (1, '1', 'w', 1, 'waiting', '', '', x'', 0), (2, '2', 'w', 1, 'completed', '', '', x'', 0);
        INSERT INTO node_runs (execution, key, type, status, attempt, effect, output) VALUES
            (1, 'each', 'logic.foreach', 'running', 1, '', NULL), (1, 'each[0].a', '', 'completed', 1, '', x'31'),
            (1, 'each[0].in', 'logic.foreach', 'completed', 1, '', x'3131'),
            (1, 'each[0].in[0].b', '', 'completed', 1, '', x'31313131'), (1, 'each[1].a', '', 'waiting', 1, '', NULL),
            (1, 'each2', '', 'completed', 1, '', x'3131313131313131'), (2, 'each[0].a', '', 'completed', 1, '', x'31'),
            (2, 'each', 'logic.foreach', 'completed', 1, '', x'3131');
    """)
    raw.close()

    start(path)

    counted = rows(
        path, "SELECT execution, key, inside_bytes FROM node_runs WHERE inside_bytes > 0"
    )
    assert counted == [(1, "each", 7), (2, "each", 1)]


@pytest.mark.parametrize("call", ["sqlite3.connect", "os.rename"])
def test_killed_upgrades_leave_at_most_one_half_made_copy_which_the_next_start_removes(
    path: Path, call: str
) -> None:
    for _ in range(3):
        assert spawn(path, call).wait(30) == -signal.SIGKILL
        assert [name for name in names(path.parent) if "before" in name] == [f"{COPY}.partial"]
        assert "more" not in tables(path)

    start(path)  # of the version before, which upgrades nothing
    left_by_that = names(path.parent)
    start(path, more=ONE_MORE)

    assert left_by_that == ["x.db"]
    assert names(path.parent) == ["x.db", COPY]
    assert "more" in tables(path)


def test_what_earlier_versions_left_half_made_is_removed_and_nothing_else(path: Path) -> None:
    for name in (f"{COPY}.k3_x9a2b.partial", f"{COPY}.k3_x9a2b.partial-journal", f"{COPY}.mine"):
        (path.parent / name).touch()

    start(path)

    assert names(path.parent) == ["x.db", f"{COPY}.mine"]


def test_starts_that_upgrade_at_the_same_time_upgrade_once_and_keep_one_copy(path: Path) -> None:
    processes = [spawn(path) for _ in range(4)]

    assert [process.wait(30) for process in processes] == [0, 0, 0, 0]
    assert names(path.parent) == ["x.db", COPY]
    assert "more" not in tables(path.parent / COPY)
    assert rows(path, f"SELECT count(*) FROM schema_migrations WHERE version = {NEXT}") == [(1,)]


def test_the_copy_is_private_and_of_the_file_as_it_was_last_not_at_an_earlier_try(
    path: Path,
) -> None:
    earlier = path.parent / COPY
    earlier.write_bytes(b"of a try long ago")
    start(path, note="new")

    start(path, more=ONE_MORE)

    assert notes(earlier) == ["new"]
    assert earlier.stat().st_mode & 0o777 == 0o600


def test_the_next_upgrade_keeps_its_own_copy_and_drops_the_older(path: Path) -> None:
    start(path, more=ONE_MORE)
    start(path, more=TWO_MORE)

    assert names(path.parent) == ["x.db", f"x.db.before-v{NEXT + 1}"]


def test_an_upgrade_of_two_steps_that_fails_in_the_second_undoes_the_first(path: Path) -> None:
    bad = [*ONE_MORE, Migration(NEXT + 1, "bad", "CREATE TABLE more (x);")]

    with pytest.raises(StoreError, match="already exists"):
        start(path, more=bad)

    assert "more" not in tables(path)
    start(path)  # the version before still knows the file


def test_an_upgrade_without_room_for_its_copy_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=16m"):
        path = disk / "x.db"
        start(path, note="x" * 2_500_000)
        remount(disk, "size=4m")
        before = path.read_bytes()

        with pytest.raises(StoreFullError, match=COPY) as caught:
            start(path, more=ONE_MORE)

        assert caught.value.hint
        assert names(disk) == ["x.db"]
        assert path.read_bytes() == before
        remount(disk, "size=16m")
        start(path, more=ONE_MORE)
        assert names(disk) == ["x.db", COPY]


def test_an_upgrade_counts_the_executions_that_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    start(path, known=list(takewhile(lambda one: one.name != "history", SHIPPED)))
    raw = sqlite3.connect(path)
    raw.executescript("""
        INSERT INTO workflows VALUES ('w', 'w', 1, 1, NULL, 0, 0);
        INSERT INTO workflow_versions VALUES ('w', 1, '', x'', 0);
        INSERT INTO executions (id, workflow_id, version, status, trigger_type, trigger_node, input, created_at, finished_at)
        VALUES ('1', 'w', 1, 'waiting', '', '', x'', 0, NULL), ('2', 'w', 1, 'completed', '', '', x'', 0, 1),
               ('3', 'w', 1, 'failed', '', '', x'', 0, 1), ('4', 'w', 1, 'uncertain', '', '', x'', 0, NULL);
    """)
    raw.close()

    start(path)

    assert rows(path, "SELECT executions FROM history") == [(2,)]


async def test_an_upgrade_waits_as_long_as_it_is_let_for_who_keeps_the_store_locked(
    path: Path,
) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    told: list[StoreBusyError] = []

    async def let_go_the_third_time(error: StoreBusyError) -> None:
        told.append(error)
        if len(told) == 3:
            await anyio.to_thread.run_sync(other.execute, "ROLLBACK")

    how: dict[str, Any] = {"clock": SystemClock(), "events": EventBus(), "busy_timeout": 0.01}
    more = [*SHIPPED, *ONE_MORE]
    with pytest.raises(StoreBusyError):
        async with open_database(path, migrations=more, **how):
            pass
    async with open_database(path, migrations=more, on_busy=let_go_the_third_time, **how):
        pass
    other.close()

    assert len(told) == 3
    assert "is locked by another process" in told[0].message
    assert "more" in tables(path)
