"""Tokens in a real store: how many there may be, how long their end is remembered, what their use costs."""

from __future__ import annotations

import pytest

from stackd.access import tokens
from stackd.access.tokens import ENDED_KEPT, MAX_TOKENS, USE_NOTED_EVERY, new_token
from stackd.core.errors import ConflictError
from stackd.core.events import EventBus
from stackd.store.connection import Tx
from stackd.store.database import Database

NOW = 1_700_000_000.0


def add(tx: Tx, *, now: float = NOW, lasts: float | None = None) -> str:
    new = new_token("t", ["read"], expires_at=None if lasts is None else now + lasts, now=now)
    tokens.add(tx, new, by="test", now=now)
    return new.row.id


async def test_there_are_a_thousand_tokens_at_most_that_can_be_used(database: Database) -> None:
    def fill(tx: Tx) -> str:
        expired = [add(tx, lasts=1.0) for _ in range(2)]
        first, *_ = [add(tx) for _ in range(MAX_TOKENS - len(expired))]
        return first

    first = await database.write(fill)

    with pytest.raises(ConflictError) as caught:
        await database.write(add)
    assert caught.value.code == "token.too_many"
    await database.write(lambda tx: tokens.revoke(tx, first, by="test", now=NOW))
    await database.write(add)
    await database.write(lambda tx: add(tx, now=NOW + 1.0))  # two have expired


async def test_tokens_that_ended_long_ago_are_forgotten_when_one_is_made(
    database: Database,
) -> None:
    def fill(tx: Tx) -> list[str]:
        made = [add(tx), add(tx), add(tx, lasts=10.0), add(tx, lasts=9e9)]
        tokens.revoke(tx, made[1], by="test", now=NOW)
        tokens.revoke(tx, made[3], by="test", now=NOW + 10.0)
        return made

    lasting, revoked, expired, both = await database.write(fill)
    seen: list[set[str]] = []
    for now in (NOW + ENDED_KEPT - 1, NOW + ENDED_KEPT, NOW + ENDED_KEPT + 10):
        new = await database.write(lambda tx, now=now: add(tx, now=now))
        rows = await database.read(lambda tx: tokens.listed(tx, before=None, limit=100))
        seen.append({row.id for row in rows} - {new})

    assert seen[0] == {lasting, revoked, expired, both}
    assert {revoked} == seen[0] - seen[1]
    assert {lasting, revoked, expired, both} & seen[2] == {lasting}


async def test_its_use_is_noted_once_a_minute(database: Database) -> None:
    token_id = await database.write(add)

    noted = []
    for later in (0.0, USE_NOTED_EVERY - 1, USE_NOTED_EVERY):
        database.write_soon(
            lambda tx, at=NOW + later: tokens.note_use(tx, token_id, now=at)  # type: ignore[misc]
        )
        await database.write(lambda _: None)  # the changes before it have committed with it
        (row,) = await database.read(lambda tx: tokens.listed(tx, before=None, limit=1))
        noted.append(row.last_used_at)

    assert noted == [NOW, NOW, NOW + USE_NOTED_EVERY]


async def test_a_change_that_nobody_waits_for_fails_in_silence_and_takes_no_other_with_it(
    database: Database, bus: EventBus
) -> None:
    def bad(_: Tx) -> None:
        raise ValueError("not this one")

    database.write_soon(bad)
    token_id = await database.write(add)

    (row,) = await database.read(lambda tx: tokens.listed(tx, before=None, limit=10))
    assert row.id == token_id
    await database.aclose()
    database.write_soon(add)  # too late, and no error
