"""Credentials: what an app wants to be shown before it does something, under the name that workflows refer to it by.

Each has fields, name and text: the public ones stand in the store as they are, each secret one is sealed apart. All of
these are functions of a transaction, and seal and open on its thread.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from stackd.core.errors import ConflictError, InputError, NotFoundError
from stackd.core.json import dumps, loads
from stackd.core.process import ProcessIdentity, is_gone
from stackd.core.text import shown
from stackd.store.connection import Row, Tx
from stackd.vault import envelope, keyring
from stackd.vault import statements as sql
from stackd.vault.envelope import Owner
from stackd.vault.fields import is_secret, refuse_unfit_fields, refuse_unfit_whole, refuse_unknown
from stackd.vault.keyring import KeyRow
from stackd.vault.records import (
    Change,
    CredentialChanged,
    CredentialCreated,
    CredentialDisconnected,
    CredentialRemoved,
    CredentialRow,
    CredentialTested,
    NewCredential,
    OpenCredential,
    TestResult,
    Vault,
)

MAX_CREDENTIALS: Final = 10_000  # more are a mistake of a script

ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as workflows have them
CONNECTOR: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
AUTH: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def create(tx: Tx, vault: Vault, new: NewCredential, *, by: str, now: float) -> CredentialRow:
    """Store `new`, its secrets sealed under a key of its own.

    Raises:
        InputError: or TooLargeError: it cannot be.
        ConflictError: there is one of that name, or there are MAX_CREDENTIALS.
    """
    _refuse_unfit(new.id, new.connector, new.auth)
    specs = vault.schemas.fields_of(new.connector)
    refuse_unfit_fields(specs, new.fields, new.public, connector=new.connector)
    refuse_unfit_whole(specs, new.fields, connector=new.connector)
    count = tx.one(sql.COUNT_CREDENTIALS)
    if count is not None and count[0] >= MAX_CREDENTIALS:
        raise ConflictError(
            f"there are {MAX_CREDENTIALS:,} credentials already",
            code="credential.too_many",
            hint="remove those that nothing uses: `stackd credentials list`",
        )
    key, data_key = keyring.active(tx), envelope.new_data_key()
    public = {name: text for name, text in new.fields.items() if not is_secret(specs, name)}
    owner = Owner(new.id, new.connector, new.auth, dumps(public))
    sealed = _sealed_data_key(vault, key, data_key, owner)
    values = (new.id, new.connector, new.auth, owner.public, sealed, key.version, now, now)
    if not tx.execute(sql.INSERT_CREDENTIAL, values):
        raise ConflictError(
            f"there is a credential {new.id!r} already",
            code="credential.exists",
            hint=f"change it: `stackd credentials set {new.id}`",
        )
    secret = {name: text for name, text in new.fields.items() if name not in public}
    _seal(tx, new.id, data_key, secret)
    tx.emit(CredentialCreated(new.id, new.connector, by))
    return get(tx, vault, new.id)


def replace(
    tx: Tx,
    vault: Vault,
    credential_id: str,
    change: Change,
    *,
    by: str,
    now: float,
    expected_version: int | None = None,
) -> CredentialRow:
    """The credential as it is after `change`.

    Args:
        expected_version: the one that the change was made from: whoever else has changed it meanwhile is not undone.

    Raises:
        NotFoundError: there is none.
        ConflictError: it has another version.
        InputError: or TooLargeError: it cannot be so.
        SealError: its data key does not open.
    """
    before, stored_public = _stored(tx, vault, credential_id)
    if expected_version not in (None, before.version):
        raise ConflictError(
            f"credential {credential_id!r} has version {before.version} by now, not {expected_version}",
            code="credential.changed",
            hint="look at it, and change what it is now",
        )
    specs = vault.schemas.fields_of(before.connector)
    auth = change.auth if change.sets_auth else before.auth
    _refuse_unfit(before.id, before.connector, auth)
    given = {name: text for name, text in change.fields.items() if text is not None}
    refuse_unfit_fields(specs, given, change.public, connector=before.connector)
    there = stored_public.keys() | set(before.secret)
    refuse_unknown(change.fields.keys() - given.keys(), there, before.id)
    kept = there - change.fields.keys()
    refuse_unfit_whole(specs, kept | given.keys(), connector=before.connector)
    clear = {name: text for name, text in stored_public.items() if name in kept} | given
    tx.execute(sql.RECORD_TEST, (None, None, before.id))
    return _rewritten(tx, vault, before, auth, clear, change.fields, by=by, now=now)


def record_test(tx: Tx, credential_id: str, result: TestResult, *, by: str) -> None:
    """What came of a test stands with the credential, if that is still there."""
    told = {"status": result.status, "error": result.error, "label": result.label}
    if tx.execute(sql.RECORD_TEST, (result.tested_at, dumps(told), credential_id)):
        tx.emit(CredentialTested(credential_id, result.ok, by))


def remove(tx: Tx, credential_id: str, *, by: str) -> None:
    """The credential is gone, and with it what its secrets were sealed under.

    Raises:
        NotFoundError: there is none.
    """
    tx.execute(sql.DELETE_ALL_SEALED, (credential_id,))
    if not tx.execute(sql.DELETE_CREDENTIAL, (credential_id,)):
        raise _not_found(credential_id)
    tx.emit(CredentialRemoved(credential_id, by))


def get(tx: Tx, vault: Vault, credential_id: str) -> CredentialRow:
    """The credential without its secrets. Raises NotFoundError."""
    return _stored(tx, vault, credential_id)[0]


def listed(tx: Tx, vault: Vault, *, after: str, limit: int) -> list[CredentialRow]:
    """Up to `limit` credentials by id, the first after `after`, without their secrets."""
    rows = tx.rows(sql.LIST_CREDENTIALS, (after, limit))
    if not rows:
        return []
    sealed: dict[str, list[str]] = {}
    for owner, name in tx.rows(sql.NAME_SEALED, (rows[0][0], rows[-1][0])):
        sealed.setdefault(owner, []).append(name)
    return [_row(vault, row, sealed.get(row[0], [])) for row in rows]


def connectors_of_all(tx: Tx) -> dict[str, float | None]:
    """The connectors that there are credentials for, each with when one of its was last tested."""
    found: dict[str, float | None] = {}
    for connector, tested_at in tx.rows(sql.LIST_CONNECTORS):
        known = found.get(connector)
        found[connector] = max(filter(None, (known, tested_at)), default=None)
    return found


def opened(tx: Tx, vault: Vault, credential_id: str) -> OpenCredential:
    """The credential in clear.

    Raises:
        NotFoundError: there is none.
        SealError: something in it is not what was sealed there.
    """
    row, public = _stored(tx, vault, credential_id)
    data_key = _data_key(tx, vault, row)
    secret = {
        name: envelope.open_field(data_key, sealed, credential=row.id, name=name)
        for name, sealed in tx.rows(sql.GET_SEALED, (row.id,))
    }
    return OpenCredential(row, {**public, **secret})


# -- the tokens of one, which are renewed while it is in use


def claim_renewal(
    tx: Tx, credential_id: str, version: int, *, by: ProcessIdentity, until: float, now: float
) -> bool:
    """Whether the caller, a process, alone renews the tokens of that version until then, in all of this store."""
    held = tx.one(sql.GET_RENEWAL, (credential_id,))
    if held is not None and is_gone(ProcessIdentity.of(held[1])):
        tx.execute(sql.RELEASE_RENEWAL, (credential_id, held[0]))
    # Another's claim that began later than this one was asked for still counts; one far beyond that is of a clock
    # that was set back since.
    within = (now, until + (until - now))
    return tx.execute(sql.CLAIM_RENEWAL, (until, by.id, credential_id, version, *within)) > 0


def release_renewal(tx: Tx, credential_id: str, *, until: float) -> None:
    """The claim until then is over, if it still is the caller's."""
    tx.execute(sql.RELEASE_RENEWAL, (credential_id, until))


def renew(
    tx: Tx, vault: Vault, row: CredentialRow, fields: Mapping[str, str], *, by: str, now: float
) -> None:
    """The credential of that version has these `fields`; all others, and the definition's judgement, stay out of it.

    What was renewed is not there a second time: it is kept, whatever the definition has come to say meanwhile.
    """
    before, stored_public = _stored(tx, vault, row.id)
    clear = {name: text for name, text in stored_public.items() if name not in fields}
    _rewritten(tx, vault, before, before.auth, clear | dict(fields), fields, by=by, now=now)


def disconnect(tx: Tx, credential_id: str, version: int, reason: str) -> None:
    """The far side takes the credential of that version no more, unless somebody has changed it meanwhile."""
    if tx.execute(sql.DISCONNECT, (reason, credential_id, version)):
        tx.emit(CredentialDisconnected(credential_id, reason))


# -- what is stored


def _rewritten(
    tx: Tx,
    vault: Vault,
    before: CredentialRow,
    auth: str | None,
    clear: Mapping[str, str],
    changed: Collection[str],
    *,
    by: str,
    now: float,
) -> CredentialRow:
    """The credential with the fields `clear`, and those sealed ones that are not among the `changed`."""
    specs = vault.schemas.fields_of(before.connector)
    public = {name: text for name, text in clear.items() if not is_secret(specs, name)}
    secret = {name: text for name, text in clear.items() if name not in public}
    data_key = _data_key(tx, vault, before)
    for name in set(changed) - secret.keys():
        tx.execute(sql.DELETE_SEALED, (before.id, name))
    _seal(tx, before.id, data_key, secret)
    key, owner = keyring.active(tx), Owner(before.id, before.connector, auth, dumps(public))
    sealed = _sealed_data_key(vault, key, data_key, owner)
    tx.execute(sql.CHANGE_DATA_KEY, (sealed, key.version, before.id))
    tx.execute(sql.CHANGE_CREDENTIAL, (auth, owner.public, now, before.id, before.version))
    after = get(tx, vault, before.id)
    tx.emit(CredentialChanged(after.id, after.version, by))
    return after


def _stored(tx: Tx, vault: Vault, credential_id: str) -> tuple[CredentialRow, dict[str, str]]:
    """A credential, and those of its fields that stand in the store as they are."""
    row = tx.one(sql.GET_CREDENTIAL, (credential_id,))
    if row is None:
        raise _not_found(credential_id)
    names = [name for _, name in tx.rows(sql.NAME_SEALED, (credential_id, credential_id))]
    return _row(vault, row, names), loads(row[3])


def _row(vault: Vault, row: Row, sealed: list[str]) -> CredentialRow:
    """What may be shown of it: a field that was called public once, and no more is, is secret now."""
    credential_id, connector, auth, public, version, created_at, updated_at, *state = row
    reconnect, tested_at, test = state
    specs = vault.schemas.fields_of(connector)
    clear: dict[str, str] = loads(public)
    shown_now = {name: text for name, text in clear.items() if not is_secret(specs, name)}
    secret = tuple(sorted({*sealed, *clear} - shown_now.keys()))
    return CredentialRow(
        credential_id,
        connector,
        auth,
        shown_now,
        secret,
        created_at,
        updated_at,
        version,
        reconnect,
        None if test is None else _test(tested_at, loads(test)),
    )


def _test(tested_at: float, told: dict[str, Any]) -> TestResult:
    error = told["error"]
    return TestResult(
        tested_at, told["status"], None if error is None else tuple(error), told["label"]
    )


def _data_key(tx: Tx, vault: Vault, row: CredentialRow) -> bytes:
    """Its data key, if what is public of it is what was stored with that."""
    found = tx.one(sql.GET_DATA_KEY, (row.id,))
    assert found is not None  # noqa: S101  # its row was read in the same transaction
    sealed, version, public = found
    key = vault.keyring.key(keyring.with_version(tx, version))
    stored = public if isinstance(public, bytes) else str(public).encode()  # whoever put it there
    owner = Owner(row.id, row.connector, row.auth, stored)
    return envelope.open_data_key(key, sealed, owner=owner, key_version=version)


def _sealed_data_key(vault: Vault, key: KeyRow, data_key: bytes, owner: Owner) -> bytes:
    return envelope.seal_data_key(
        vault.keyring.key(key), data_key, owner=owner, key_version=key.version
    )


def _seal(tx: Tx, credential_id: str, data_key: bytes, secret: Mapping[str, str]) -> None:
    for name, text in secret.items():
        sealed = envelope.seal_field(data_key, text, credential=credential_id, name=name)
        tx.execute(sql.PUT_SEALED, (credential_id, name, sealed))


# -- what cannot be


def _refuse_unfit(credential_id: str, connector: str, auth: str | None) -> None:
    for pattern, text, what, code in (
        (ID, credential_id, "the id of a credential", "credential.id"),
        (CONNECTOR, connector, "the id of a connector", "credential.connector"),
        (AUTH, auth, "the name of a kind of auth", "credential.auth"),
    ):
        if text is not None and not pattern.fullmatch(text):
            raise InputError(
                f"{shown(text)!r} is not {what}", code=code, hint=f"it matches {pattern.pattern}"
            )


def _not_found(credential_id: str) -> NotFoundError:
    return NotFoundError(f"no credential {shown(credential_id)!r}", code="credential.not_found")
