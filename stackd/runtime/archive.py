"""The file of a backup: a tar of `manifest.json` with a SHA-256 of the store, `stackd.db`, and `blobs/xx/<SHA-256>`.

Whatever stands under that name is read as if somebody meant harm: names in it are compared, never followed, and
nothing counts that has not the size and the sum that was said.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Protocol

from stackd.core.errors import (
    BackupError,
    InputError,
    SchemaError,
    StoreCorruptError,
    StoreFullError,
)
from stackd.core.json import dumps, loads
from stackd.store import copies
from stackd.store.file import unusable

FORMAT = 1
STEP = 1024 * 1024  # bytes read at a time
SYNCED_BYTES = 4 * 1024 * 1024  # written at a time
SPARE_BYTES = (
    64 * 1024 * 1024
)  # left free beside what is written: the store may be on the same disk
MANIFEST_BYTES = 256 * 1024 * 1024  # two million blobs
MANIFEST, DATABASE, BLOBS = "manifest.json", "stackd.db", "blobs"

Advance = Callable[[int], None]
Member = tuple[IO[bytes], int]  # its content and its size


class Shows(Protocol):
    """Shows how far something of so many bytes is."""

    def __call__(self, doing: str, *, total: int) -> AbstractContextManager[Advance]: ...


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says it holds.

    Attributes:
        blobs: bytes by id. missing: ids of those that the store refers to and had no file of.
    """

    format: int
    stackd: str
    schema: int
    created_at: str
    bytes: int
    sha256: str
    blobs: dict[str, int]
    missing: list[str]

    @property
    def total(self) -> int:
        return self.bytes + sum(self.blobs.values())


def pack(
    archive: Path, manifest: Manifest, database: Path, blob: Callable[[str], Path], advance: Advance
) -> None:
    """Write the archive, and sync it. `blob`: where the content of one is."""
    with _Steady(io.FileIO(archive, "wb")) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            text = dumps(asdict(manifest))
            tar.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
            with database.open("rb") as content:
                tar.addfile(_member(DATABASE, manifest.bytes), _Counted(content, advance))
            for blob_id, size in manifest.blobs.items():
                with blob(blob_id).open("rb") as content:
                    tar.addfile(
                        _member(f"{BLOBS}/{blob_id[:2]}/{blob_id}", size),
                        _Counted(content, advance),
                    )
        file.sync()


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


class _Steady(io.BufferedWriter):
    """A file that reaches the disk as it is written: commits of others would wait for all that does not."""

    _waiting = 0

    def write(self, content: Any) -> int:
        written = super().write(content)
        self._waiting += written
        if self._waiting >= SYNCED_BYTES:
            self.sync()
        return written

    def sync(self) -> None:
        self.flush()
        os.fdatasync(self.fileno())
        self._waiting = 0


class _Counted(io.RawIOBase):
    """Tells how much of a file was read."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._advance(len(content))
        return content


def verify(archive: Path, *, shows: Shows) -> Manifest:
    """Return what a backup holds if it is whole and sound; nothing is changed, but TMPDIR must have room for the store.

    Raises:
        BackupError: it is not.
        SchemaError: it was made by a newer stackd.
        StoreFullError: there is no room to unpack the store.
    """
    hint = "set TMPDIR to a folder with room for the store"
    with (
        disk_errors(Path(tempfile.gettempdir()), hint=hint),
        tempfile.TemporaryDirectory(prefix="stackd-verify-") as folder,
    ):
        return unpack(archive, Path(folder) / DATABASE, None, shows=shows)


def unpack(archive: Path, database: Path, blobs: Path | None, *, shows: Shows) -> Manifest:
    """Write the store in a backup to `database`, its blobs into the folder `blobs`, all synced, and judge it.

    Args:
        blobs: None: they are only read.
    """
    try:
        with _opened(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            manifest = _manifest(_next(tar, MANIFEST))
            refuse_full(database, manifest.bytes if blobs is None else manifest.total)
            with shows("reading the backup", total=manifest.total) as advance:
                _write(
                    _next(tar, DATABASE),
                    database,
                    manifest.bytes,
                    manifest.sha256,
                    advance,
                )
                for blob_id, size in manifest.blobs.items():
                    content = _next(tar, f"{BLOBS}/{blob_id[:2]}/{blob_id}")
                    target = None if blobs is None else blob_in(blobs, blob_id)
                    _write(content, target, size, blob_id, advance)
            _refuse_more(tar)
        with shows("checking the store", total=0):
            _judge(database, manifest)
    except (BackupError, StoreCorruptError) as error:
        raise BackupError(f"{archive} is no whole backup: {error.message}") from error
    except SchemaError as error:
        raise SchemaError(
            f"{archive} cannot be used by this stackd: {error.message}",
            hint="use the stackd that has made it, or a newer one",
        ) from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BackupError(f"{archive} is no whole backup of stackd: {error}") from error
    return manifest


@contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    try:
        if not archive.is_file():
            raise InputError(f"{archive} is no file", code="backup.no_file")
        file = archive.open("rb")
    except OSError as error:
        raise InputError(
            f"{archive} cannot be read: {error.strerror}", code="backup.no_file"
        ) from None
    with file:
        yield file


def _next(tar: tarfile.TarFile, name: str) -> Member:
    """The content of the next member, which is a plain file of that name, and its size."""
    member = tar.next()
    if member is None:
        raise BackupError(f"it ends before {name}")
    if member.name != name or member.type != tarfile.REGTYPE or member.issparse():
        raise BackupError(f"{name} is not where it should be")
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101  # a plain file has some
    return content, member.size


def _refuse_more(tar: tarfile.TarFile) -> None:
    if tar.next() is not None:
        raise BackupError("it holds more than it says")


def _manifest(found: Member) -> Manifest:
    content, size = found
    if size > MANIFEST_BYTES:
        raise BackupError(f"{MANIFEST} is too large")
    read = loads(content.read())
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise BackupError(f"{MANIFEST} is of another format than {FORMAT}")
    given: dict[str, Any] = read
    if given.keys() != {one.name for one in fields(Manifest)} or not _is_sound(given):
        raise BackupError(f"{MANIFEST} does not say what it should")
    return Manifest(**given)


def _is_sound(given: dict[str, Any]) -> bool:
    blobs, missing = given["blobs"], given["missing"]
    return (
        isinstance(given["stackd"], str)
        and isinstance(given["created_at"], str)
        and _is_hash(given["sha256"])
        and isinstance(blobs, dict)
        and isinstance(missing, list)
        and all(_is_hash(one) for one in (*blobs, *missing))
        and all(_is_size(one) for one in (given["schema"], given["bytes"], *blobs.values()))
    )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _write(found: Member, target: Path | None, size: int, sha256: str, advance: Advance) -> None:
    """Write a member to `target`, or nowhere, and sync it; it has that size and that sum."""
    content, held = found
    if held != size:
        raise BackupError("a part of it is not as large as it says")
    digest = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        file = None
        if target is not None:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            file = opened.enter_context(os.fdopen(os.open(target, flags, 0o600), "wb"))
        while piece := content.read(STEP):
            digest.update(piece)
            if file is not None:
                file.write(piece)
            advance(len(piece))
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        raise BackupError("a part of it is not what it was")


def _judge(database: Path, manifest: Manifest) -> None:
    schema, blobs = copies.judge(database)
    if schema != manifest.schema:
        raise BackupError("its store has another schema than it says")
    if blobs.keys() != manifest.blobs.keys() | set(manifest.missing):
        raise BackupError("it holds other blobs than its store refers to")


# -- the disk


def blob_in(folder: Path, blob_id: str) -> Path:
    return folder / blob_id[:2] / blob_id


def refuse_full(path: Path, size: int) -> None:
    """Return if there is room for so many bytes at `path`, and some more."""
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < size + SPARE_BYTES:
        raise StoreFullError(
            f"{path.parent} has no room for {size:,} bytes and {SPARE_BYTES:,} to spare",
            hint="free disk space, or name a file on another disk",
        )


@contextmanager
def disk_errors(path: Path, *, hint: str | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = unusable(Path(error.filename) if isinstance(error.filename, str) else path, error)
        if hint is not None:
            found.hint = hint
        raise found from error
