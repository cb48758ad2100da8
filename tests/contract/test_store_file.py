"""What is not ours is refused by name, and its bytes, mode and neighbours stay as they were."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from support.daemon import ENVIRON

from stackd.core.clock import SystemClock
from stackd.core.errors import StoreCorruptError, StoreError
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.store.file import PATH_BYTES

# The first start of its own process, which dies before its first COMMIT, or before what comes after that.
START = """
import os, signal, sys, threading
from pathlib import Path
import anyio
from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database

left = int(sys.argv[2])

def watch(frame, event, called):
    global left
    if event == "c_call" and called.__name__ == "execute":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

async def start():
    async with open_database(Path(sys.argv[1]), clock=SystemClock(), events=EventBus()):
        pass

threading.setprofile(watch)
anyio.run(start)
"""
AROUND_THE_FIRST_COMMIT = range(6, 12)  # statements of a connection, from the first BEGIN on


def start(path: Path) -> None:
    """Open the store as a daemon does, and close it."""

    async def run() -> None:
        async with open_database(path, clock=SystemClock(), events=EventBus()):
            pass

    anyio.run(run)


def refusal(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        start(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def make_database(path: Path, *statements: str) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        raw.execute(statement)
    raw.close()


def left_open(path: Path) -> None:
    """A database in WAL mode whose last changes are in its log only, as a kill leaves it."""
    make_database(path.with_name("made"), "PRAGMA journal_mode=WAL", "CREATE TABLE theirs (x)")
    raw = sqlite3.connect(path.with_name("made"), isolation_level=None)
    raw.execute("INSERT INTO theirs VALUES (42)")
    for suffix in ("", "-wal"):
        path.with_name(path.name + suffix).write_bytes(path.with_name(f"made{suffix}").read_bytes())
    raw.close()


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other-program": (
        lambda path: make_database(path, "CREATE TABLE theirs (x)"),
        "is a database of another program",
    ),
    "other-program-in-wal-mode": (left_open, "is a database of another program"),
    "other-program-without-tables-yet": (
        lambda path: make_database(path, "PRAGMA user_version=3"),
        "is a database of another program",
    ),
    "other-application-id": (
        lambda path: make_database(path, "PRAGMA application_id=42", "CREATE TABLE theirs (x)"),
        "is a database of another program",
    ),
    "text": (lambda path: path.write_text("mine\n") and None, "is not an SQLite database"),
    "one-byte": (lambda path: path.write_bytes(b"S") and None, "is not an SQLite database"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)) and None, "is not a sound SQLite"),
    "cut-to-nothing": (
        lambda path: (path.touch(), path.with_name(f"{path.name}-wal").write_bytes(b"x"))[0],
        "is empty, but its log x.db-wal is not",
    ),
    "only-its-log": (
        lambda path: path.with_name(f"{path.name}-wal").write_bytes(b"x") and None,
        "is missing, but its log x.db-wal is not",
    ),
}


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        found.name: (found.lstat().st_mode, found.read_bytes())
        for found in folder.iterdir()
        if found.is_file()
    }


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_not_ours_is_refused_and_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.db"
    make, reason = OTHERS[kind]
    make(path)
    for found in tmp_path.iterdir():
        found.chmod(0o644)
    before = everything_in(tmp_path)

    error = refusal(path)

    assert isinstance(error, StoreCorruptError)
    assert reason in error.message
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(Path.mkdir, "is a directory", id="directory"),
        pytest.param(os.mkfifo, "is no regular file", id="fifo"),
        pytest.param(lambda path: path.symlink_to("target"), "is a symbolic link", id="dangling"),
        pytest.param(lambda path: path.symlink_to("real"), "is a symbolic link", id="symlink"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path, real = tmp_path / "x.db", tmp_path / "real"
    start(real)
    real.chmod(0o640)
    make(path)
    before = (everything_in(tmp_path), stat.S_IFMT(path.lstat().st_mode))

    error = refusal(path)

    assert isinstance(error, StoreCorruptError)
    assert error.message == f"{path} {reason}"
    assert (everything_in(tmp_path), stat.S_IFMT(path.lstat().st_mode)) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_another_user_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    start(path)
    path.chmod(0o640)
    os.chown(path, 12345, -1)
    before = everything_in(tmp_path)

    error = refusal(path)

    assert (error.code, error.message) == (
        "store.read_only",
        f"{path} belongs to another user (uid 12345)",
    )
    assert everything_in(tmp_path) == before
    assert path.stat().st_uid == 12345


@pytest.mark.parametrize("name", ["x" * 300, "file/x.db"], ids=["name-too-long", "below-a-file"])
def test_a_path_that_cannot_be_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    assert refusal(tmp_path / name).code == "store.read_only"


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False)], ids=["longest", "longer"])
def test_a_path_too_long_for_sqlite_is_refused_by_name(
    tmp_path: Path, more: int, is_taken: bool
) -> None:
    folder = tmp_path.joinpath(*["d" * 50] * 5)
    folder.mkdir(parents=True)
    path = folder / ("x" * (PATH_BYTES + more - len(str(folder)) - 1))

    if is_taken:
        start(path)
    else:
        assert f"more than {PATH_BYTES} bytes" in refusal(path).message


def test_an_empty_file_becomes_a_store_of_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch(mode=0o644)

    start(path)

    start(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("count", AROUND_THE_FIRST_COMMIT)
def test_a_kill_in_the_first_start_leaves_what_the_next_one_takes(
    tmp_path: Path, count: int
) -> None:
    path = tmp_path / "x.db"
    killed = [sys.executable, "-c", START, str(path), str(count)]

    assert subprocess.run(killed, env=ENVIRON, check=False).returncode == -signal.SIGKILL

    start(path)
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    raw.close()
