"""Brings a database file to the schema this code knows: numbered SQL files, applied in one transaction.

Killed in the middle, the file has the schema before or after all of them, never between. A copy of the file as
it was before an upgrade is kept beside it; the next upgrade replaces it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from stackd.core.errors import SchemaError
from stackd.core.files import sync_folder
from stackd.store.connection import Tx, begin, translate, uri
from stackd.store.file import unusable

FOLDER = Path(__file__).parent / "migrations"

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at REAL NOT NULL
)"""
_COPY = r"\.before-v\d+"
_HALF_MADE = rf"{_COPY}(\.\w+)?\.partial(-journal)?"  # \w+: a name of earlier versions
_HAS_TABLE = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations(folder: Path = FOLDER) -> list[Migration]:
    """All migrations of `folder` (`0001_name.sql`, …) in order."""
    found = [
        Migration(int(path.name[:4]), path.stem[5:], path.read_text())
        for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    ]
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"migrations in {folder} are not numbered 1 to {len(found)}")
    return found


def migrate(
    raw: sqlite3.Connection, path: Path, *, now: float, migrations: list[Migration] | None = None
) -> list[int]:
    """Apply all that is missing, or nothing of it; the versions applied. Runs on the connection's thread.

    An upgrade leaves a copy of the file as it was, `<file>.before-v<version>`, and no older one.

    Raises:
        SchemaError: the file is newer than this code, or an applied migration was changed since.
        StoreFullError: there is no room for the copy.
        StoreError: or a subclass: the copy cannot be made.
    """
    wanted = known_migrations() if migrations is None else migrations
    try:
        if not _pending(raw, path, wanted) and not _beside(path, _HALF_MADE):
            return []
        return _apply(raw, path, wanted, now)
    except OSError as error:
        raise unusable(path, error) from error


def schema_version(tx: Tx) -> int:
    """The schema that the file has."""
    row = tx.one("SELECT max(version) FROM schema_migrations")
    return 0 if row is None else int(row[0])


def schema_of(raw: sqlite3.Connection, path: Path) -> int:
    """Which schema the file has.

    Raises:
        SchemaError: it has none, one newer than this code, or one made by other migrations.
    """
    wanted = known_migrations()
    missing = len(_pending(raw, path, wanted))
    if missing == len(wanted):
        raise SchemaError(f"{path} has no schema of ours")
    return len(wanted) - missing


def _apply(raw: sqlite3.Connection, path: Path, wanted: list[Migration], now: float) -> list[int]:
    copy = None
    begin(raw)
    try:
        # Only who holds the write lock makes a copy: one found half-made was left by a kill.
        for left in _beside(path, _HALF_MADE):
            left.unlink(missing_ok=True)
        pending = _pending(raw, path, wanted)
        if pending and pending[0].version > 1:
            copy = _keep_copy(path, pending[0].version)
        raw.execute(_CREATE_TABLE)
        for migration in pending:
            for statement in _statements(migration.sql):
                raw.execute(statement)
            raw.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
                (migration.version, migration.name, migration.checksum, now),
            )
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    if copy is not None:
        for older in _beside(path, _COPY):
            if older != copy:
                older.unlink(missing_ok=True)
    return [migration.version for migration in pending]


def _pending(raw: sqlite3.Connection, path: Path, wanted: list[Migration]) -> list[Migration]:
    if raw.execute(_HAS_TABLE).fetchone() is None:
        return wanted
    applied = dict(raw.execute("SELECT version, checksum FROM schema_migrations"))
    newest = max(applied, default=0)
    if newest > len(wanted):
        raise SchemaError(
            f"{path} has schema {newest}, this stackd knows {len(wanted)}",
            hint="start the newer stackd, or restore the copy kept before the upgrade",
        )
    for migration in wanted:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise SchemaError(
                f"migration {migration.version} ({migration.name}) differs from the one {path} was made with",
                hint="start the stackd that made it, or take another STACKD_STATE_DIR",
            )
    return [m for m in wanted if m.version not in applied]


def _keep_copy(path: Path, version: int) -> Path:
    """Where the file as it is now was copied to; on disk when this returns. The caller holds the write lock."""
    target = path.with_name(f"{path.name}.before-v{version}")
    partial = target.with_name(f"{target.name}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _copy(path, partial)
        os.fsync(descriptor)
        partial.rename(target)
        sync_folder(path.parent)
    except sqlite3.OperationalError as error:
        raise translate(error, target) from error
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)
    return target


def _copy(path: Path, target: Path) -> None:
    source = sqlite3.connect(uri(path, "ro"), uri=True)  # SQLite copies from no open transaction
    try:
        copy = sqlite3.connect(uri(target, "rw"), uri=True)
        try:
            copy.execute("PRAGMA journal_mode=OFF")  # a copy that fails is thrown away
            copy.execute("PRAGMA synchronous=OFF")  # synced once, when it is whole
            source.backup(copy)
        finally:
            copy.close()
    finally:
        source.close()


def _beside(path: Path, suffix: str) -> list[Path]:
    """The files named as `path` with `suffix`, a pattern, after it."""
    pattern = re.compile(re.escape(path.name) + suffix)
    return [found for found in path.parent.iterdir() if pattern.fullmatch(found.name)]


def _statements(sql: str) -> list[str]:
    found, current = [], ""
    for line in sql.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    if current.strip():
        raise SchemaError(f"a migration ends inside a statement: {current.strip()[:60]}")
    return found
