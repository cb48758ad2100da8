"""Backups with real files: what is in one, what is refused, and what a restore leaves in every case."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import past
from support.daemon import ENVIRON
from support.disk import mounted

from stackd.core.clock import SystemClock
from stackd.core.errors import (
    BackupError,
    ConflictError,
    InputError,
    LockedError,
    NotFoundError,
    SchemaError,
    StackdError,
    StoreError,
    StoreFullError,
)
from stackd.core.events import EventBus
from stackd.core.locks import role_locks
from stackd.core.process import current_process
from stackd.queue import processes
from stackd.runtime import archive, backup
from stackd.runtime.backup import Place
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.workflows import blobs

NOW = 1_700_000_000.0
MIB = 1024 * 1024
CONTENTS = [b"first", b"second" * 1000, os.urandom(300_000)]
OF_CHILD = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from stackd.runtime import backup
from stackd.runtime.backup import Place

what, state, file, left = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
place = Place(state, state / "stackd.db")
SEEN = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "sqlite3.connect",
        "fcntl.flock", "os.truncate"}

def watch(event, _):
    global left
    if event in SEEN:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

@contextmanager
def shows(doing, *, total):
    yield lambda _: None

sys.addaudithook(watch)
if what == "backup":
    backup.back_up(place, file, force=True, now=1.0, shows=shows)
else:
    backup.restore(file, place, force=True, stamp="now", shows=shows)
"""


@contextmanager
def shows(doing: str, *, total: int) -> Iterator[Callable[[int], None]]:
    seen = 0

    def advance(more: int) -> None:
        nonlocal seen
        seen += more

    yield advance
    assert seen in (0, total)


make = partial(backup.back_up, force=False, now=NOW, shows=shows)
restore = partial(backup.restore, force=False, stamp="now", shows=shows)
verify = partial(archive.verify, shows=shows)


def within(place: Place, act: Callable[[Database, BlobFolder], Any]) -> Any:
    """What `act` gives with the store opened, as a daemon would have it."""

    async def run() -> Any:
        clock = SystemClock()
        place.state_dir.mkdir(exist_ok=True)
        async with open_database(place.database, clock=clock, events=EventBus()) as store:
            folder = BlobFolder(place.blobs, store, clock=clock, limits=BlobLimits(MIB, 100 * MIB))
            return await act(store, folder)

    return anyio.run(run)


def fill(place: Place, *, contents: list[bytes], note: str) -> list[str]:
    async def act(store: Database, folder: BlobFolder) -> list[str]:
        ids = [await folder.put(content) for content in contents]

        def write(tx: Tx) -> None:
            if not tx.rows("SELECT 1 FROM workflows"):
                past.add_workflow(tx)
            tx.execute("INSERT OR REPLACE INTO queue_control VALUES ('note', ?)", (note,))
            for blob_id in ids:
                seq = past.add(tx, NOW)
                blobs.refer(tx, seq, [b'{"$blob":"%s"}' % blob_id.encode()])

        await store.write(write)
        return ids

    ids: list[str] = within(place, act)
    return ids


def note(database: Path) -> str | None:
    raw = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        row = raw.execute("SELECT value FROM queue_control WHERE name = 'note'").fetchone()
        return None if row is None else str(row[0])
    finally:
        raw.close()


def blob_files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert all(hashlib.sha256(text).hexdigest() == name for name, text in found.items())
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "state", tmp_path / "state" / "stackd.db")
    fill(found, contents=CONTENTS, note="one")
    return found


@pytest.fixture
def saved(place: Place, tmp_path: Path) -> Path:
    """A backup of `place`, which has gone on since."""
    make(place, tmp_path / "saved.tar")
    fill(place, contents=[b"later"], note="two")
    return tmp_path / "saved.tar"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Place:
    return Place(tmp_path / "elsewhere", tmp_path / "elsewhere" / "stackd.db")


# -- making one


def test_a_backup_holds_the_store_and_the_blobs_it_refers_to_for_its_owner_alone(
    place: Place, tmp_path: Path
) -> None:
    before = names(place.state_dir)
    within(place, lambda _, folder: folder.put(b"of nobody"))
    target = tmp_path / "saved.tar"

    made = make(place, target)

    assert target.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"state", "saved.tar"}
    assert names(place.state_dir) - {"stackd.db-wal", "stackd.db-shm"} == before
    assert {made.blobs[one] for one in made.blobs} == {len(text) for text in CONTENTS}
    with tarfile.open(target) as tar:
        assert [one.name.split("/")[0] for one in tar] == [
            "manifest.json",
            "stackd.db",
            *["blobs"] * 3,
        ]
    assert verify(target) == made


def test_the_log_of_a_store_left_by_a_kill_is_part_of_it(place: Place, tmp_path: Path) -> None:
    raw = sqlite3.connect(place.database, isolation_level=None)
    raw.execute("UPDATE queue_control SET value = 'in the log'")
    copied = tmp_path / "killed"
    shutil.copytree(place.state_dir, copied)  # with its log
    raw.close()
    killed = Place(copied, copied / "stackd.db")

    make(killed, tmp_path / "saved.tar")

    there = Place(tmp_path / "new", tmp_path / "new" / "stackd.db")
    restore(tmp_path / "saved.tar", there)
    assert note(there.database) == "in the log"


def test_a_file_that_is_there_is_replaced_only_by_force(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "saved.tar"
    target.write_text("mine")

    with pytest.raises(ConflictError) as caught:
        make(place, target)
    assert caught.value.code == "backup.exists"
    assert target.read_text() == "mine"
    make(place, target, force=True)
    verify(target)


def test_where_there_is_no_store_there_is_no_backup(elsewhere: Place, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        make(elsewhere, tmp_path / "saved.tar")
    assert names(tmp_path) == set()


def test_a_target_that_cannot_be_written_is_named(place: Place, tmp_path: Path) -> None:
    for target in (tmp_path / "nowhere" / "saved.tar", tmp_path / "state" / "stackd.db" / "x"):
        with pytest.raises(StoreError) as caught:
            make(place, target)
        assert str(target) in caught.value.message
    with pytest.raises(ConflictError):
        make(place, tmp_path / "state")


def test_a_blob_that_has_lost_its_file_is_told_and_the_rest_is_saved(
    place: Place, tmp_path: Path, elsewhere: Place
) -> None:
    lost = next(path for path in place.blobs.rglob("*") if path.is_file())
    lost.unlink()

    made = make(place, tmp_path / "saved.tar")

    assert made.missing == [lost.name]
    assert len(made.blobs) == 2
    restore(tmp_path / "saved.tar", elsewhere)
    assert blob_files(elsewhere.blobs) == blob_files(place.blobs)


def test_blobs_that_go_while_it_is_made_are_in_it(place: Place, tmp_path: Path) -> None:
    kept = blob_files(place.blobs)

    @contextmanager
    def and_remove(doing: str, *, total: int) -> Iterator[Callable[[int], None]]:
        if place.blobs.exists():
            shutil.rmtree(place.blobs)
        yield lambda _: None

    backup.back_up(place, tmp_path / "saved.tar", force=False, now=NOW, shows=and_remove)

    there = Place(tmp_path / "new", tmp_path / "new" / "stackd.db")
    restore(tmp_path / "saved.tar", there)
    assert blob_files(there.blobs) == kept


def test_only_one_backup_of_a_store_is_made_at_a_time(place: Place, tmp_path: Path) -> None:
    @contextmanager
    def and_another(doing: str, *, total: int) -> Iterator[Callable[[int], None]]:
        for target in ("saved.tar", "other.tar"):
            with pytest.raises(ConflictError) as caught:
                make(place, tmp_path / target)
            assert caught.value.code == "backup.busy"
        yield lambda _: None

    backup.back_up(place, tmp_path / "saved.tar", force=False, now=NOW, shows=and_another)

    verify(tmp_path / "saved.tar")
    assert names(tmp_path) == {"state", "saved.tar"}


@pytest.mark.parametrize("room", [1, 40, 66, 71])
def test_a_full_disk_leaves_nothing_of_a_backup(
    place: Place, tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    within(
        place,
        lambda store, _: store.write(
            lambda tx: [past.add(tx, NOW, node_bytes=MIB) for _ in range(4)]
        ),
    )
    if room < 64:  # the check before it would refuse
        monkeypatch.setattr(archive, "SPARE_BYTES", -1000 * MIB)
        room = {1: 1, 40: 6}[room]
    disk = tmp_path / "disk"
    with mounted(disk, f"size={room * MIB}"):
        with pytest.raises(StoreFullError):
            make(place, disk / "saved.tar")
        assert names(disk) == set()


# -- judging one


def rewritten(saved: Path, change: Callable[[str, bytes], Any]) -> Path:
    """The backup with members as `change` gives them: content, (TarInfo, content), or None for none."""
    target = saved.with_name("changed.tar")
    with tarfile.open(saved) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            found = change(member.name, content.read())
            if found is None:
                continue
            info, text = (
                found if isinstance(found, tuple) else (tarfile.TarInfo(member.name), found)
            )
            info.size = len(text)
            new.addfile(info, io.BytesIO(text))
    return target


def info(name: str, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(made, key, value)
    return made


def manifest(**changes: Any) -> Callable[[str, bytes], Any]:
    def change(name: str, text: bytes) -> bytes:
        return text if name != "manifest.json" else json.dumps(json.loads(text) | changes).encode()

    return change


def only(name: str, then: Callable[[bytes], Any]) -> Callable[[str, bytes], Any]:
    return lambda found, text: then(text) if found.startswith(name) else text


HARMS: dict[str, Callable[[str, bytes], Any]] = {
    "a name that leads out": only("blobs", lambda text: (info("../../evil"), text)),
    "an absolute name": only("blobs", lambda text: (info("/tmp/evil"), text)),
    "a link": only("blobs", lambda _: (info("blobs/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "a hard link": only(
        "stackd.db", lambda _: (info("stackd.db", type=tarfile.LNKTYPE, linkname="manifest.json"), b"")
    ),
    "a pipe": only("stackd.db", lambda _: (info("stackd.db", type=tarfile.FIFOTYPE), b"")),
    "a device": only("stackd.db", lambda _: (info("stackd.db", type=tarfile.CHRTYPE), b"")),
    "a folder": only("stackd.db", lambda _: (info("stackd.db", type=tarfile.DIRTYPE), b"")),
    "a missing store": only("stackd.db", lambda _: None),
    "a missing blob": only("blobs", lambda _: None),
    "a missing manifest": only("manifest", lambda _: None),
    "a store with a changed byte": only("stackd.db", lambda text: text[:5000] + b"X" + text[5001:]),
    "a blob with a changed byte": only("blobs", lambda text: b"X" + text[1:]),
    "a longer blob": only("blobs", lambda text: text + b"X"),
    "a manifest of text": only("manifest", lambda _: b"hello"),
    "a manifest of a list": only("manifest", lambda _: b"[]"),
    "a manifest that is broken": only("manifest", lambda text: text[:-1]),
    "another format": manifest(format=2),
    "more members": manifest(more=1),
    "a blob of another name": manifest(blobs={"../../evil": 1}),
    "blobs in a list": manifest(blobs=[]),
    "a size that is none": manifest(bytes="many"),
    "a size below nothing": manifest(bytes=-1),
    "a schema that is none": manifest(schema=True),
    "a schema that is not the store's": manifest(schema=1),
    "a sum that is none": manifest(sha256="x"),
    "a blob too many": manifest(missing=["ab" * 32]),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_backup_that_was_tampered_with_is_refused_and_changes_nothing(
    saved: Path, elsewhere: Place, harm: str
) -> None:
    changed = rewritten(saved, HARMS[harm])

    with pytest.raises(BackupError) as caught:
        verify(changed)
    assert str(changed) in caught.value.message
    with pytest.raises(BackupError):
        restore(changed, elsewhere)
    assert all(name.endswith(".lock") for name in names(elsewhere.state_dir))
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.7, 0.97])
def test_a_backup_that_was_cut_off_is_refused(saved: Path, elsewhere: Place, part: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * part)])

    with pytest.raises(BackupError):
        verify(saved)
    with pytest.raises(BackupError):
        restore(saved, elsewhere)


@pytest.mark.parametrize("kind", ["text", "zeros", "noise", "database", "zip"])
def test_what_is_no_backup_is_refused(place: Place, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "thing"
    file.write_bytes(
        {
            "text": b"hello\n" * 1000, "zeros": bytes(100_000), "noise": os.urandom(100_000),
            "database": place.database.read_bytes(), "zip": b"PK\x03\x04" + bytes(1000),
        }[kind]
    )  # fmt: skip
    with pytest.raises(BackupError):
        verify(file)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "pipe"):
        with pytest.raises(InputError) as caught:
            verify(path)
        assert str(path) in caught.value.message


def with_store(saved: Path, *statements: str) -> Path:
    """The backup with statements run on its store, and sums that fit."""
    with tarfile.open(saved) as tar:
        content = tar.extractfile("stackd.db")
        assert content is not None
        file = saved.with_name("edited.db")
        file.write_bytes(content.read())
    raw = sqlite3.connect(file, isolation_level=None)
    raw.execute("PRAGMA journal_mode=DELETE")
    for statement in statements:
        raw.execute(statement)
    raw.close()
    text = file.read_bytes()
    file.unlink()
    said = manifest(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    return rewritten(saved, lambda name, old: text if name == "stackd.db" else said(name, old))


def test_a_backup_of_a_newer_schema_is_refused_by_name(saved: Path, elsewhere: Place) -> None:
    newer = with_store(saved, "INSERT INTO schema_migrations VALUES (9999, 'x', 'x', 0)")

    for act in (verify, partial(restore, place=elsewhere)):
        with pytest.raises(SchemaError) as caught:
            act(newer)
        assert str(newer) in caught.value.message
        assert "newer" in str(caught.value.hint)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA application_id=7",
        "DELETE FROM workflow_versions",
        "DROP TABLE schema_migrations",
        "UPDATE schema_migrations SET checksum = 'x' WHERE version = 1",
        "INSERT INTO blobs (id, bytes, refs, created_at) VALUES ('x', 1, 1, 0)",
        "DELETE FROM blob_refs",
    ],
)
def test_a_store_that_is_not_sound_is_refused(saved: Path, statement: str) -> None:
    with pytest.raises(StackdError) as caught:
        verify(with_store(saved, statement))
    assert isinstance(caught.value, BackupError | SchemaError)


def test_verifying_leaves_nothing_behind_and_needs_room_for_the_store(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, f"size={MIB}"):
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with pytest.raises(StoreFullError):
            verify(saved)
        monkeypatch.setattr(archive, "SPARE_BYTES", -1000 * MIB)
        verify(saved)
        assert names(disk) == set()


# -- going back to one


def test_a_restore_into_nothing_is_the_store_as_it_was(
    saved: Path, place: Place, elsewhere: Place
) -> None:
    restore(saved, elsewhere)

    assert note(elsewhere.database) == "one"
    assert sorted(blob_files(elsewhere.blobs).values()) == sorted(CONTENTS)
    for path in (elsewhere.database, *elsewhere.blobs.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0
    assert note(place.database) == "two"
    fill(elsewhere, contents=[b"more"], note="three")  # a daemon takes it
    assert note(elsewhere.database) == "three"


def test_a_store_that_is_there_is_kept_aside_by_force_and_refused_without(
    saved: Path, place: Place
) -> None:
    with pytest.raises(ConflictError) as caught:
        restore(saved, place)
    assert caught.value.code == "backup.store_exists"
    assert note(place.database) == "two"
    blobs_before = blob_files(place.blobs)

    _, aside = restore(saved, place, force=True)

    assert aside == place.state_dir / "stackd.db.before-restore-now"
    assert note(place.database) == "one"
    assert note(aside) == "two"
    assert blob_files(place.state_dir / "blobs.before-restore-now") == blobs_before
    # The way back: both are put in their places again.
    shutil.rmtree(place.blobs)
    (place.state_dir / "blobs.before-restore-now").rename(place.blobs)
    aside.rename(place.database)
    assert fill(place, contents=[], note="back") == []
    assert note(place.database) == "back"


def test_a_store_that_cannot_be_read_is_kept_aside_too(saved: Path, place: Place) -> None:
    log = place.database.with_name("stackd.db-wal")
    place.database.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    log.write_bytes(b"log")

    _, aside = restore(saved, place, force=True)

    assert aside is not None
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"log"
    assert not log.exists()
    assert note(place.database) == "one"


def test_what_runs_on_a_store_is_named_and_the_store_stays(saved: Path, place: Place) -> None:
    for role in ("api", "scheduler", "timers", "rotation"):
        with role_locks(place.state_dir, [role]), pytest.raises(LockedError) as caught:
            restore(saved, place, force=True)
        assert f"role {role} already runs" in caught.value.message
        assert str(os.getpid()) in caught.value.message

    within(  # a worker, which holds no lock
        place,
        lambda store, _: store.write(
            lambda tx: processes.register(tx, current_process(), role="worker", now=NOW)
        ),
    )
    with pytest.raises(LockedError) as caught:
        restore(saved, place, force=True)
    assert f"worker (pid {os.getpid()})" in caught.value.message
    assert note(place.database) == "two"


def test_a_full_disk_leaves_the_store_that_is_there(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SPARE_BYTES", -1000 * MIB)
    disk = tmp_path / "disk"
    with mounted(disk, f"size={2 * MIB}"):
        there = Place(disk, disk / "stackd.db")
        fill(there, contents=[b"mine"], note="mine")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(free - 200_000))
        before = names(disk)

        with pytest.raises(StoreFullError):
            restore(saved, there, force=True)

        left = {name for name in names(disk) - before if not name.endswith(".lock")}
        assert left <= {"stackd.db-wal", "stackd.db-shm"}  # it was looked at
        assert note(there.database) == "mine"


def killed(what: str, state: Path, file: Path, count: int) -> bool:
    """Whether the process was killed at its `count`-th step, or had ended before."""
    command = [sys.executable, "-c", OF_CHILD, what, str(state), str(file), str(count)]
    ended = subprocess.run(command, env=ENVIRON, check=False, capture_output=True, text=True)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


@pytest.mark.crash
@pytest.mark.timeout(120)
def test_a_restore_killed_anywhere_is_done_or_is_not(
    saved: Path, place: Place, tmp_path: Path
) -> None:
    state = tmp_path / "killed"
    seen: list[str | None] = []
    count = 1
    while True:
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(place.state_dir, state)
        there = Place(state, state / "stackd.db")
        before = blob_files(there.blobs)
        if not killed("restore", state, saved, count):
            break
        found = note(there.database)
        seen.append(found)
        assert found in ("one", "two")
        assert blob_files(there.blobs).items() >= ({} if found == "one" else before).items()
        if found == "one":
            assert note(state / "stackd.db.before-restore-now") == "two"
            assert set(blob_files(there.blobs).values()) >= set(CONTENTS)
        fill(there, contents=[], note="goes on")  # a daemon takes it
        restore(saved, there, force=True, stamp="later")
        assert note(there.database) == "one"
        assert not list(state.glob("*.restore"))
        count += 1 if count < 40 or seen[-1] != seen[0] else 7
    assert seen == sorted(seen, reverse=True)  # two, two, …, one
    assert {"one", "two"} == set(seen)


@pytest.mark.crash
@pytest.mark.timeout(120)
def test_a_backup_killed_anywhere_is_whole_or_not_there(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    target = folder / "saved.tar"
    count = 1
    while killed("backup", place.state_dir, target, count):
        assert not target.exists() or verify(target)
        assert names(folder) <= {"saved.tar", "saved.tar.partial", "saved.tar.partial.db"}
        target.unlink(missing_ok=True)
        count += 1

    assert count > 10
    assert names(folder) == {"saved.tar"}
    assert not (place.state_dir / "blobs.backup").exists()
    assert verify(target).missing == []
