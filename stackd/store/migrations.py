"""Brings a database file to the schema this code knows: numbered SQL files, each in one transaction.

Killed in the middle, the file has the schema before or after a migration, never between.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stackd.core.errors import SchemaError, StoreCorruptError
from stackd.store.connection import APPLICATION_ID, begin

FOLDER = Path(__file__).parent / "migrations"

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at REAL NOT NULL
)"""
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
    """Apply what is missing; the versions applied. Runs on the connection's thread.

    Before the first migration of an upgrade a copy of the file is kept as `<file>.before-v<version>`.

    Raises:
        SchemaError: the file is newer than this code, or an applied migration was changed since.
        StoreCorruptError: the file is some other program's database.
    """
    wanted = known_migrations() if migrations is None else migrations
    _refuse_foreign_file(raw, path)
    pending = _pending(raw, path, wanted)
    if not pending:
        return []
    if pending[0].version > 1:
        _keep_copy(raw, path, pending[0].version)
    applied = []
    for migration in pending:
        begin(raw)
        try:
            raw.execute(_CREATE_TABLE)
            if any(m.version == migration.version for m in _pending(raw, path, wanted)):
                for statement in _statements(migration.sql):
                    raw.execute(statement)
                raw.execute(
                    "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
                    (migration.version, migration.name, migration.checksum, now),
                )
                applied.append(migration.version)
            raw.execute("COMMIT")
        except BaseException:
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            raise
    return applied


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
                f"migration {migration.version} ({migration.name}) differs from the one {path} was made with"
            )
    return [m for m in wanted if m.version not in applied]


def _refuse_foreign_file(raw: sqlite3.Connection, path: Path) -> None:
    (application_id,) = raw.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreCorruptError(
            f"{path} is a database of another program", hint="name another file"
        )


def _keep_copy(raw: sqlite3.Connection, path: Path, version: int) -> None:
    target = path.with_name(f"{path.name}.before-v{version}")
    if target.exists():
        return  # an earlier try of the same upgrade kept it
    # Processes that upgrade at the same time each make a copy; which of them keeps its name is all one.
    handle, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        copy = sqlite3.connect(partial)
        try:
            raw.backup(copy)
        finally:
            copy.close()
        for synced in (partial, None):
            descriptor = os.open(synced or path.parent, os.O_RDONLY)
            try:
                if synced is None:
                    partial.rename(target)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        partial.unlink(missing_ok=True)


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
