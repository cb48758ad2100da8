"""The keys that data keys are sealed under: versions in the store, each derived from the master key and a salt.

A key itself stands nowhere. Beside its salt there is a proof, made under another key of the same origin, by which a
master key is known again before anything is opened, or sealed, with it. All of this is the standard library's: every
start makes sure of the master key, and none loads more for that.
"""

from __future__ import annotations

import hmac
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from stackd.core.errors import MasterKeyError, SealError, StoreError
from stackd.store.connection import Row, Tx
from stackd.store.copies import snapshot
from stackd.store.file import refuse_unfit
from stackd.vault import statements as sql

SALT_BYTES: Final = 32

_SEALS: Final = "stackd/vault/key/1"
_PROVES: Final = "stackd/vault/proof/1"


class KeyState(StrEnum):
    """What a key is for: to seal and open, only to open what is not sealed anew yet, nothing any more."""

    ACTIVE = "active"
    ROTATING = "rotating"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A version of the key, without the key."""

    version: int
    state: KeyState
    salt: bytes = field(repr=False)
    proof: bytes = field(repr=False)


class Keyring:
    """Derives keys from the master key, which is shown nowhere."""

    def __init__(self, master_key: str) -> None:
        self._master = master_key.encode()

    def __repr__(self) -> str:
        return "Keyring()"

    def key(self, row: KeyRow) -> bytes:
        """The key with the version of `row`."""
        return derived(self._master, row.salt, f"{_SEALS}/{row.version}")

    def knows(self, row: KeyRow) -> bool:
        """Whether that version was made with this master key; takes as long for any."""
        return hmac.compare_digest(self._proof(row.version, row.salt), row.proof)

    def new(self, version: int) -> KeyRow:
        """A key that was never used."""
        salt = secrets.token_bytes(SALT_BYTES)
        return KeyRow(version, KeyState.ACTIVE, salt, self._proof(version, salt))

    def _proof(self, version: int, salt: bytes) -> bytes:
        own = derived(self._master, salt, f"{_PROVES}/{version}")
        return hmac.digest(own, b"this is the master key", "sha256")


def derived(master: bytes, salt: bytes, label: str) -> bytes:
    """256 bits by HKDF with SHA-256 (RFC 5869), whose first block they are; `label` says what for."""
    extracted = hmac.digest(salt, master, "sha256")
    return hmac.digest(extracted, label.encode() + b"\x01", "sha256")


def ensure(tx: Tx, keyring: Keyring, *, place: Path, now: float) -> None:
    """There is an active key, made now if there was none, and the master key is that of all that are in use.

    Raises:
        MasterKeyError: it is another; nothing was changed.
    """
    refuse_other(tx, keyring, place=place)
    ensure_active(tx, keyring, now=now)


def ensure_active(tx: Tx, keyring: Keyring, *, now: float) -> None:
    """There is an active key, made now if there was none. No version is used a second time."""
    rows = listed(tx)
    if all(row.state is not KeyState.ACTIVE for row in rows):
        row = keyring.new(max((one.version for one in rows), default=0) + 1)
        tx.execute(sql.INSERT_KEY, (row.version, row.state, row.salt, row.proof, now))


def listed(tx: Tx) -> list[KeyRow]:
    """All keys there are, or were, by version."""
    return [_row(row) for row in tx.rows(sql.LIST_KEYS)]


def refuse_other(tx: Tx, keyring: Keyring, *, place: Path) -> None:
    """Return if `keyring` has the master key of the store at `place`, or that has none yet.

    Raises:
        MasterKeyError: it has another one.
    """
    if not all(keyring.knows(row) for row in listed(tx) if row.state is not KeyState.RETIRED):
        raise MasterKeyError(
            f"ENCRYPTION_MASTER_KEY is not the key that {place} was made with",
            hint="set it to the one that was in use before (`dev` keeps its own in secrets.env of the state directory); "
            "if that is lost, `stackd credentials reset` drops what it has sealed and keeps the rest; or restore a "
            "backup whose key you have, or take another STACKD_STATE_DIR",
        )


def refuse_other_at(path: Path, keyring: Keyring) -> None:
    """As `refuse_other`, before the store is opened: of one with another key not a byte is changed.

    What cannot be read is left to who opens it. It waits for the disk: call it on a thread.
    """
    with suppress(StoreError):
        refuse_unfit(path)
        if not path.exists():
            return
        with snapshot(path) as seen:
            if seen.tx.one(sql.HAS_KEYS) is not None:
                refuse_other(seen.tx, keyring, place=path)


def active(tx: Tx) -> KeyRow:
    """The key that is sealed under."""
    return _found(tx.one(sql.GET_ACTIVE_KEY), "no key is active")


def with_version(tx: Tx, version: int) -> KeyRow:
    """One of the keys there are, or were."""
    return _found(tx.one(sql.GET_KEY, (version,)), f"key {version} is not there")


def _found(row: Row | None, problem: str) -> KeyRow:
    if row is None:
        raise SealError(f"{problem}: the store is damaged", hint="restore a backup")
    return _row(row)


def _row(row: Row) -> KeyRow:
    version, state, salt, proof = row
    return KeyRow(version, KeyState(state), salt, proof)
