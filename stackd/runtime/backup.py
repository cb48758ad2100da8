"""Backups: one file with the store as it was at a moment and the blobs it refers to, and the way back.

The file is written under another name, synced and renamed: killed anywhere, there is no half a backup under its name.
A restore unpacks and judges all of it beside the store first; what takes its place is one rename. Killed anywhere, the
store is the one before or the one restored. All of this waits for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stackd import __version__
from stackd.core.clock import rfc3339
from stackd.core.errors import ConflictError, LockedError, NotFoundError, StackdError, StoreError
from stackd.core.files import sync_folder
from stackd.core.locks import LOCKED_ROLES, role_locks
from stackd.core.process import is_gone
from stackd.queue import processes
from stackd.runtime.archive import (
    BLOBS,
    FORMAT,
    Manifest,
    Shows,
    blob_in,
    disk_errors,
    pack,
    refuse_full,
    unpack,
)
from stackd.store import copies
from stackd.store.copies import Snapshot
from stackd.store.file import refuse_unfit

SNAPSHOTS = 5  # times that another one is taken because a blob went meanwhile


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is: its file, its blobs, and where its locks are."""

    state_dir: Path
    database: Path

    @property
    def blobs(self) -> Path:
        return self.state_dir / "blobs"


# -- making one


def back_up(place: Place, target: Path, *, force: bool, now: float, shows: Shows) -> Manifest:
    """Write a backup of the store to `target`, whoever uses the store meanwhile; what it holds.

    Raises:
        NotFoundError: there is no store.
        ConflictError: `target` is there and `force` is not said, or another backup writes it.
        StoreFullError: there is no room; nothing is left behind.
        StoreError: or a subclass: the store cannot be read.
    """
    if not place.database.exists():
        raise NotFoundError(f"there is no store at {place.database}", code="backup.no_store")
    refuse_unfit(place.database)
    if target.is_dir() or (target.exists() and not force):
        raise ConflictError(
            f"{target} is there already",
            code="backup.exists",
            hint="name another file, or say --force",
        )
    with _partial(target) as partial, _kept_folder(place) as kept:
        copy = partial.with_name(f"{partial.name}.db")
        try:
            with _snapshot_with_blobs(place, kept) as (snapshot, blobs, missing):
                refuse_full(partial, 2 * snapshot.size + sum(blobs.values()))
                schema = snapshot.schema
                copy.unlink(missing_ok=True)  # what a kill has left
                os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                with shows("copying the store", total=snapshot.size) as advance:
                    snapshot.copy_to(copy, advance=advance)
            manifest = Manifest(
                FORMAT, __version__, schema, rfc3339(now) or "",
                copy.stat().st_size, _digest(copy), blobs, missing,
            )  # fmt: skip
            with shows("writing the backup", total=manifest.total) as advance:
                pack(
                    partial,
                    manifest,
                    copy,
                    lambda one: _first(kept / one, blob_in(place.blobs, one)),
                    advance,
                )
        finally:
            copy.unlink(missing_ok=True)
        partial.rename(target)
        sync_folder(target.parent)
    return manifest


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """The name under which `target` is written, by this process alone; afterwards nothing is there."""
    partial = target.with_name(f"{target.name}.partial")
    busy = f"a backup to {target} is being written"
    hint = "name a file in a folder that you may write to, on a disk with room for it"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    with disk_errors(target, hint=hint), os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        _lock(file.fileno(), busy)
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
            raise ConflictError(busy, code="backup.busy")  # it has just got its own name
        file.truncate()  # of what a kill has left
        try:
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _kept_folder(place: Place) -> Iterator[Path]:
    """A folder on the disk of the blobs, for links to them; only one backup of a store runs at a time."""
    folder = place.blobs.with_name(f"{BLOBS}.backup")
    with disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, f"another backup of {place.database} is being written")
            _empty(folder)  # of what a kill has left
            try:
                yield folder
            finally:
                _empty(folder)
                folder.rmdir()
        finally:
            os.close(descriptor)


@contextmanager
def _snapshot_with_blobs(
    place: Place, kept: Path
) -> Iterator[tuple[Snapshot, dict[str, int], list[str]]]:
    """A snapshot, and the blobs it refers to, linked into `kept`: they may go from their places from now on."""
    for attempt in range(1, SNAPSHOTS + 1):
        with copies.snapshot(place.database) as snapshot:
            blobs = snapshot.blobs()
            missing = [one for one in blobs if not _keep(blob_in(place.blobs, one), kept / one)]
            if not missing or attempt == SNAPSHOTS:  # else they went before they were linked
                for one in missing:
                    del blobs[one]
                yield snapshot, blobs, missing
                return


def _keep(blob: Path, link: Path) -> bool:
    """Give the blob another name; False: it is not there."""
    try:
        os.link(blob, link)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return blob.exists()  # a file system without links: it is read in its place
    return True


# -- going back to one


def restore(
    archive: Path, place: Place, *, force: bool, stamp: str, shows: Shows
) -> tuple[Manifest, Path | None]:
    """Let the store be the one in the backup; what that holds, and where the one before is kept.

    Args:
        force: the one that is there may be moved aside.
        stamp: part of its name then.

    Raises:
        LockedError: a process uses the store; names it.
        ConflictError: a store is there and `force` is not said.
        BackupError, SchemaError: as `verify`; nothing is changed.
        StoreFullError: there is no room; nothing is changed.
    """
    with role_locks(place.state_dir, sorted(LOCKED_ROLES)), disk_errors(place.state_dir):
        _refuse_foreign(place.state_dir)
        refuse_living(place.database)
        is_there = place.database.exists() or _has_log(place.database)
        if is_there and not force:
            raise ConflictError(
                f"there is a store already: {place.database}",
                code="backup.store_exists",
                hint="say --force to move it aside, or name another folder with --state",
            )
        database = place.database.with_name(f"{place.database.name}.restore")
        blobs = place.blobs.with_name(f"{BLOBS}.restore")
        _remove(database, blobs)  # what a kill has left
        try:
            manifest = unpack(archive, database, blobs, shows=shows)
            copies.disown(database)
            aside = _set_aside(place, f"before-restore-{stamp}") if is_there else None
            _put_in_place(place, database, blobs, manifest)
        finally:
            _remove(database, blobs)
    return manifest, aside


def _remove(database: Path, blobs: Path) -> None:
    """Remove what was unpacked."""
    for end in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
    if blobs.exists():
        shutil.rmtree(blobs)


def _has_log(database: Path) -> bool:
    log = database.with_name(f"{database.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _refuse_foreign(state_dir: Path) -> None:
    """What is written here must belong to who runs stackd here."""
    owner = state_dir.stat().st_uid
    if owner != os.geteuid():
        raise StoreError(
            f"{state_dir} belongs to another user (uid {owner})",
            code="store.read_only",
            hint="run this as the user that stackd runs as",
        )


def refuse_living(database: Path) -> None:
    """Workers hold no lock: the store itself tells of them. One that cannot be read has none that work."""
    if not database.exists():
        return
    living: list[str] = []
    with contextlib.suppress(StackdError), copies.snapshot(database) as snapshot:
        living = [row.name for row in processes.listed(snapshot.tx) if not is_gone(row.identity)]
    if living:
        raise LockedError(
            f"{database} is in use: {', '.join(living)}", hint="stop these processes first"
        )


def _set_aside(place: Place, suffix: str) -> Path:
    """Give the store that is there, and its blobs, a second name each; it stays in its place. The new name."""
    database = place.database
    if copies.is_readable(database):  # else all of it is kept as it is
        copies.fold_log(database)
    aside = database.with_name(f"{database.name}.{suffix}")
    for end in ("", "-wal"):
        found = database.with_name(database.name + end)
        if found.exists():
            os.link(found, aside.with_name(aside.name + end))
    for folder in sorted(place.blobs.glob("[0-9a-f][0-9a-f]")):
        kept = place.blobs.with_name(f"{BLOBS}.{suffix}") / folder.name
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        for blob in folder.iterdir():
            os.link(blob, kept / blob.name)
        sync_folder(kept)
    sync_folder(database.parent)
    sync_folder(place.state_dir)
    return aside


def _put_in_place(place: Place, database: Path, blobs: Path, manifest: Manifest) -> None:
    """Blobs first: the store of before does not mind them. The store itself is one rename."""
    for blob_id in manifest.blobs:
        target = blob_in(place.blobs, blob_id)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        blob_in(blobs, blob_id).rename(target)
    for folder in {blob_in(place.blobs, blob_id).parent for blob_id in manifest.blobs}:
        sync_folder(folder)
    if manifest.blobs:
        sync_folder(place.blobs)
        sync_folder(place.state_dir)
    for end in ("-wal", "-shm"):  # only of a store that could not be read: it is kept aside
        place.database.with_name(place.database.name + end).unlink(missing_ok=True)
    database.rename(place.database)
    sync_folder(place.database.parent)


# -- the disk


def _first(*paths: Path) -> Path:
    """The first of them that is there, or the last."""
    return next((path for path in paths if path.exists()), paths[-1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(descriptor: int, busy: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(busy, code="backup.busy") from None


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()
