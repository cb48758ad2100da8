"""The reserve on a real small disk: held, freed when the store is full, and made again once there is room."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from support.disk import fill, mounted

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.store.reserve import RESERVE_BYTES, ROOM_BYTES, Reserve

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the reserve and some more."""
    folder = tmp_path / "disk"
    with mounted(folder, f"size={ROOM_BYTES + MIB}"):
        yield folder


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def take(folder: Path, leaving: int) -> Path:
    """Another program's file, which leaves so many bytes of the disk."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - leaving)
    return ballast


def test_it_holds_the_space_in_a_private_file_and_is_made_once(disk: Path) -> None:
    reserve = Reserve(disk / "x.db")
    before = free_bytes(disk)

    assert reserve.make() is True
    assert reserve.make() is True

    assert free_bytes(disk) == before - RESERVE_BYTES
    assert names(disk) == ["x.db.reserve"]
    assert reserve.path.stat().st_mode & 0o777 == 0o600
    assert reserve.is_spent is False


def test_it_is_not_made_where_it_would_leave_less_than_itself(disk: Path) -> None:
    reserve = Reserve(disk / "x.db")
    ballast = take(disk, leaving=ROOM_BYTES - 4096)

    assert reserve.make() is False
    assert reserve.is_spent is False  # nothing is kept from anyone who never had one
    assert reserve.free() is False
    assert names(disk) == ["ballast"]
    ballast.unlink()
    assert reserve.make() is True


def test_freed_it_gives_the_space_at_once_and_is_spent_until_it_is_made_again(disk: Path) -> None:
    reserve = Reserve(disk / "x.db")
    reserve.make()
    ballast = take(disk, leaving=0)
    assert free_bytes(disk) == 0

    assert reserve.free() is True
    assert free_bytes(disk) == RESERVE_BYTES
    assert reserve.free() is False  # it can be had once
    assert reserve.make() is False
    assert reserve.is_spent is True

    ballast.unlink()
    assert reserve.make() is True
    assert reserve.is_spent is False


def test_a_restart_and_another_process_know_that_it_is_spent(disk: Path) -> None:
    here, there = Reserve(disk / "x.db"), Reserve(disk / "x.db")
    here.make()
    assert there.look() is False

    here.free()

    assert there.is_spent is False  # until it looks
    assert there.look() is True
    assert Reserve(disk / "x.db").look() is True
    assert there.make() is True
    assert here.look() is False


def test_what_a_kill_left_half_made_takes_no_room_from_the_next_try(disk: Path) -> None:
    reserve = Reserve(disk / "x.db")
    partial = disk / "x.db.reserve.partial"
    with partial.open("wb") as half:
        os.posix_fallocate(half.fileno(), 0, RESERVE_BYTES // 4)
    assert reserve.look() is False

    reserve.make()

    assert names(disk) == ["x.db.reserve"]
    assert reserve.path.stat().st_blocks * 512 == RESERVE_BYTES


def test_space_that_cannot_be_had_after_all_leaves_nothing(disk: Path) -> None:
    reserve = Reserve(disk / "x.db")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (RESERVE_BYTES // 2, before[1]))
    try:
        assert reserve.make() is False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert (names(disk), reserve.is_spent) == ([], False)
    assert reserve.make() is True


def test_a_store_that_meets_a_full_disk_frees_the_reserve_and_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, f"size={ROOM_BYTES + 16 * MIB}"):
        fill_and_make_room(disk)


def fill_and_make_room(disk: Path) -> None:
    path = disk / "x.db"
    reserve = Reserve(path)

    async def run() -> None:
        async with open_database(path, clock=SystemClock(), events=EventBus()) as store:
            await store.write(
                lambda tx: [
                    tx.execute("INSERT INTO queue_control VALUES (?, ?)", (n, "x" * 3_000))
                    for n in range(500)
                ]
            )
            assert await anyio.to_thread.run_sync(reserve.make)
            await anyio.to_thread.run_sync(fill, disk / "ballast")

            assert await store.write(lambda tx: tx.execute("DELETE FROM queue_control")) == 500

            assert store.reserve.is_spent
            assert store.synced_at > 0

    anyio.run(run)
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM queue_control").fetchone() == (0,)
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()
