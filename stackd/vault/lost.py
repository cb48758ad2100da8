"""What is left where a master key is lost: all that it sealed goes, the rest stays."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.store.connection import Tx
from stackd.vault import credentials, keyring
from stackd.vault import statements as sql
from stackd.vault.keyring import Keyring, KeyRow, KeyState


@dataclass(frozen=True, slots=True)
class Lost:
    """What does not open any more.

    Attributes:
        keys: their versions.
        credentials: by id.
        workflows: those with credentials in their nodes, by id.
    """

    keys: tuple[int, ...]
    credentials: tuple[str, ...]
    workflows: tuple[str, ...]


def lost_with(tx: Tx, ring: Keyring) -> Lost:
    """What in the store was sealed under another master key than that of `ring`."""
    keys = [row for row in keyring.listed(tx) if _is_lost(row, ring)]
    names: list[str] = []
    workflows: set[str] = set()
    for row in keys:
        names += [name for (name,) in tx.rows(sql.SEALED_UNDER, (row.version,))]
        workflows |= {name for (name,) in tx.rows(sql.INLINE_UNDER, (row.version,))}
    versions = tuple(row.version for row in keys)
    return Lost(versions, tuple(sorted(names)), tuple(sorted(workflows)))


def drop(tx: Tx, ring: Keyring, *, by: str, now: float) -> Lost:
    """What `lost_with` tells is gone, and the master key of `ring` is the store's from now on."""
    lost = lost_with(tx, ring)
    for name in lost.credentials:
        credentials.remove(tx, name, by=by)
    for version in lost.keys:
        tx.execute(sql.DELETE_INLINE_UNDER, (version,))
        tx.execute(sql.RETIRE_KEY, (version,))
    keyring.ensure_active(tx, ring, now=now)
    return lost


def _is_lost(row: KeyRow, ring: Keyring) -> bool:
    return row.state is not KeyState.RETIRED and not ring.knows(row)
