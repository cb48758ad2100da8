"""Bearer tokens: made once, shown once, looked up by id, revoked for good.

A token reads `stkd_<id>_<secret>`. The secret is 256 random bits, so that its plain SHA-256 is all that is kept:
nobody can try so many, and a slow hash would only slow every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from stackd.access import statements as sql
from stackd.core.errors import ConflictError, InputError, NotFoundError
from stackd.core.events import Event
from stackd.core.ids import sortable_id
from stackd.core.names import nearest
from stackd.core.text import plain, shown
from stackd.store.connection import Tx

SECRET_BYTES: Final = 32
LONGEST_NAME: Final = 100  # characters
MAX_TOKENS: Final = 1_000  # that can be used; more are a mistake of a script
USE_NOTED_EVERY: Final = 60.0  # seconds; more often would be a write per request
ENDED_KEPT: Final = 30 * 86_400.0  # seconds a token is still listed after its end

_TEXT: Final = re.compile(r"stkd_([0-9a-z]{26})_([A-Za-z0-9_-]{43})")
_LAST_ID: Final = "~"  # sorts after every id


class Scope(StrEnum):
    """What a caller may do. Each includes those before it."""

    READ = "read"
    RUN = "run"
    WRITE = "write"
    ADMIN = "admin"

    def is_within(self, held: Collection[Scope]) -> bool:
        """Whether one who holds `held` may do what needs this one."""
        order = list(Scope)
        return any(order.index(one) >= order.index(self) for one in held)


@dataclass(frozen=True, slots=True)
class TokenCreated(Event):
    """A token was made. `by`: who asked for it."""

    token_id: str
    name: str
    scopes: str
    by: str


@dataclass(frozen=True, slots=True)
class TokenRevoked(Event):
    """A token can be used no more. `by`: who asked for it."""

    token_id: str
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token without its secret. Instants: epoch seconds."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: float
    last_used_at: float | None
    expires_at: float | None
    revoked_at: float | None

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token about to be stored. `text` is what its holder sends; it is kept nowhere."""

    row: TokenRow
    text: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"NewToken({self.row.id})"


def new_token(
    name: str, scopes: Collection[str], *, expires_at: float | None, now: float
) -> NewToken:
    """A token that nobody has seen.

    Raises:
        InputError: the name, a scope or the expiry cannot be used.
    """
    usable = name.strip()
    if not 1 <= len(usable) <= LONGEST_NAME or plain(usable) != usable:
        raise InputError(
            f"the name of a token has 1 to {LONGEST_NAME} characters, all of which show",
            code="token.name",
        )
    if expires_at is not None and expires_at <= now:
        raise InputError("the token would have expired already", code="token.expiry")
    token_id, secret = sortable_id(now), secrets.token_urlsafe(SECRET_BYTES)
    row = TokenRow(token_id, usable, _usable_scopes(scopes), now, None, expires_at, None)
    return NewToken(row, f"stkd_{token_id}_{secret}", _hash(secret))


def _usable_scopes(names: Collection[str]) -> tuple[Scope, ...]:
    known = [scope.value for scope in Scope]
    for name in names:
        if name not in known:
            meant = nearest(name, known)
            hint = f"known: {', '.join(known)}" if meant is None else f"did you mean {meant!r}?"
            raise InputError(f"there is no scope {shown(name)!r}", code="token.scope", hint=hint)
    if not names:
        raise InputError(
            "a token needs a scope", code="token.scope", hint=f"known: {', '.join(known)}"
        )
    return tuple(scope for scope in Scope if scope in names)


def add(tx: Tx, new: NewToken, *, by: str, now: float) -> None:
    """Store `new`; tokens that ended long ago are forgotten.

    Raises:
        ConflictError: there are MAX_TOKENS already.
    """
    row = new.row
    tx.execute(sql.DROP_ENDED_TOKENS, (now - ENDED_KEPT,))
    usable = tx.one(sql.COUNT_USABLE_TOKENS, (now,))
    if usable is not None and usable[0] >= MAX_TOKENS:
        raise ConflictError(
            f"there are {MAX_TOKENS:,} tokens already",
            code="token.too_many",
            hint="revoke those that nobody uses: `stackd token list`",
        )
    scopes = " ".join(row.scopes)
    tx.execute(
        sql.INSERT_TOKEN,
        (row.id, row.name, scopes, new.secret_hash, row.created_at, row.expires_at),
    )
    tx.emit(TokenCreated(row.id, row.name, scopes, by))


def revoke(tx: Tx, token_id: str, *, by: str, now: float) -> TokenRow:
    """The token, which can be used no more; once revoked it stays as it is.

    Raises:
        NotFoundError: there is none.
    """
    if tx.execute(sql.REVOKE_TOKEN, (now, token_id)):
        tx.emit(TokenRevoked(token_id, _get(tx, token_id).name, by))
    return _get(tx, token_id)


def _get(tx: Tx, token_id: str) -> TokenRow:
    row = tx.one(sql.GET_TOKEN, (token_id,))
    if row is None:
        raise NotFoundError(f"no token {shown(token_id)!r}", code="token.not_found")
    return _token(row)


def listed(tx: Tx, *, before: str | None, limit: int) -> list[TokenRow]:
    """Up to `limit` tokens, newest first, made before the one with the id `before`."""
    return [_token(row) for row in tx.rows(sql.LIST_TOKENS, (before or _LAST_ID, limit))]


def id_in(text: str) -> str | None:
    """The id in what looks like the text of a token; None if it does not."""
    found = _TEXT.fullmatch(text)
    return None if found is None else found[1]


def holder(tx: Tx, text: str) -> TokenRow | None:
    """The token that reads `text`, whether or not it can still be used; None if that is none of ours."""
    found = _TEXT.fullmatch(text)
    row = None if found is None else tx.one(sql.GET_TOKEN_WITH_HASH, (found[1],))
    if found is None or row is None or not hmac.compare_digest(_hash(found[2]), row[0]):
        return None
    return _token(row[1:])


def note_use(tx: Tx, token_id: str, *, now: float) -> None:
    """Remember that the token was used, to the minute."""
    tx.execute(sql.NOTE_USE, (now, token_id, now - USE_NOTED_EVERY))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _token(row: tuple[object, ...]) -> TokenRow:
    token_id, name, scopes, *instants = row
    return TokenRow(token_id, name, tuple(map(Scope, str(scopes).split())), *instants)  # type: ignore[arg-type]  # as selected
