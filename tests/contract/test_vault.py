"""Keys and credentials in a real store: who changes what, what is told of it, and what another master key may do."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from stackd.core.clock import SystemClock
from stackd.core.errors import (
    ConflictError,
    MasterKeyError,
    NotFoundError,
    SealError,
    StackdError,
)
from stackd.core.events import Event, EventBus
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.migrations import known_migrations
from stackd.vault import credentials, keyring
from stackd.vault.fields import FieldSpec
from stackd.vault.keyring import Keyring
from stackd.vault.records import (
    Change,
    CredentialChanged,
    CredentialCreated,
    CredentialRemoved,
    CredentialRow,
    NewCredential,
    Vault,
)

NOW = 1_700_000_000.0
MASTER = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OTHER = "ABCD0123456789abcdefghijklmnopqrstuvwxyz"
SECRET = "s3cret-value-of-a-token"
BEFORE_KEYS = known_migrations()[:10]


class Schemas:
    """Knows one connector; a test may let it say something else of that."""

    def __init__(self) -> None:
        self.github: dict[str, FieldSpec] = {
            "token": FieldSpec(required=True),
            "host": FieldSpec(is_secret=False),
        }

    def fields_of(self, connector: str) -> Mapping[str, FieldSpec] | None:
        return self.github if connector == "github" else None


class World:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.schemas = Schemas()
        self.vault = Vault(Keyring(MASTER), self.schemas)
        self.path = database.path

    async def create(
        self,
        credential_id: str = "main",
        connector: str = "github",
        auth: str | None = None,
        public: tuple[str, ...] = (),
        **fields: str,
    ) -> CredentialRow:
        new = NewCredential(
            credential_id, connector, auth, fields or {"token": SECRET, "host": "h.example"}, public
        )
        return await self.database.write(
            lambda tx: credentials.create(tx, self.vault, new, by="test", now=NOW)
        )

    async def change(
        self, expected: int | None = None, credential_id: str = "main", **fields: str | None
    ) -> CredentialRow:
        return await self.replace(Change(fields), expected, credential_id)

    async def replace(
        self, change: Change, expected: int | None = None, credential_id: str = "main"
    ) -> CredentialRow:
        return await self.database.write(
            lambda tx: credentials.replace(
                tx, self.vault, credential_id, change,
                by="test", now=NOW + 1.0, expected_version=expected,
            )
        )  # fmt: skip

    async def opened(self, credential_id: str = "main") -> dict[str, str]:
        found = await self.database.read(
            lambda tx: credentials.opened(tx, self.vault, credential_id)
        )
        return dict(found.fields)

    async def get(self, credential_id: str = "main") -> CredentialRow:
        return await self.database.read(lambda tx: credentials.get(tx, self.vault, credential_id))

    async def sql(self, text: str, *parameters: Any) -> None:
        await self.database.write(lambda tx: tx.execute(text, parameters))


@pytest.fixture
async def world(database: Database) -> World:
    made = World(database)
    await ensure(database)
    return made


async def ensure(database: Database, master: str = MASTER) -> None:
    ring = Keyring(master)
    await database.write(lambda tx: keyring.ensure(tx, ring, place=database.path, now=NOW))


async def refused(code: str, attempt: Any) -> StackdError:
    with pytest.raises(StackdError) as caught:
        await attempt
    assert caught.value.code == code
    assert SECRET not in f"{caught.value!r} {caught.value.hint}"
    return caught.value


# -- a credential's life


async def test_what_was_kept_opens_and_shows_its_public_fields_alone(world: World) -> None:
    made = await world.create(auth="pat")

    assert made == await world.get()
    assert (made.connector, made.auth, made.version) == ("github", "pat", 1)
    assert (made.public, made.secret) == ({"host": "h.example"}, ("token",))
    assert await world.opened() == {"token": SECRET, "host": "h.example"}
    assert SECRET not in repr(made)


async def test_of_a_connector_that_nobody_knows_each_field_is_secret(world: World) -> None:
    made = await world.create(connector="unknown", host="h.example", other=SECRET)

    assert (made.public, made.secret) == ({}, ("host", "other"))
    assert await world.opened() == {"host": "h.example", "other": SECRET}


async def test_a_change_sets_what_it_names_removes_what_is_none_and_keeps_the_rest(
    world: World,
) -> None:
    await world.create(connector="unknown", a="1", b="2", c="3")

    changed = await world.change(a="one", b=None, d="4")

    assert await world.opened() == {"a": "one", "c": "3", "d": "4"}
    assert (changed.version, changed.created_at, changed.updated_at) == (2, NOW, NOW + 1.0)
    assert (await world.change(a=None)).version == 3


async def test_a_change_may_name_another_kind_of_auth_or_none(world: World) -> None:
    await world.create(auth="pat")

    kept = (await world.change(host="other")).auth
    changed = (await world.replace(Change({}, auth="app", sets_auth=True))).auth
    none = (await world.replace(Change({}, sets_auth=True))).auth

    assert (kept, changed, none) == ("pat", "app", None)


async def test_one_that_is_removed_is_gone_and_another_may_have_its_name(world: World) -> None:
    await world.create()

    await world.database.write(lambda tx: credentials.remove(tx, "main", by="test"))

    await refused("credential.not_found", world.get())
    await refused("credential.not_found", world.opened())
    await refused("credential.not_found", world.change(token="x"))
    with pytest.raises(NotFoundError):
        await world.database.write(lambda tx: credentials.remove(tx, "main", by="test"))
    assert (await world.create(token="anew")).version == 1
    assert await world.opened() == {"token": "anew"}


async def test_each_is_told_once_it_is_so_and_no_event_holds_a_value(
    world: World, bus: EventBus
) -> None:
    seen: list[Event] = []
    bus.subscribe(seen.append, Event)

    await world.create()
    await world.change(token=SECRET + "2")
    await refused("credential.changed", world.change(expected=1, token="x"))
    await world.database.write(lambda tx: credentials.remove(tx, "main", by="test"))

    assert seen == [
        CredentialCreated("main", "github", "test"),
        CredentialChanged("main", 2, "test"),
        CredentialRemoved("main", "test"),
    ]


async def test_they_are_listed_by_id_page_by_page(world: World) -> None:
    for name in ("b", "a", "c"):
        await world.create(name, token=SECRET, host=name)

    pages = [
        await world.database.read(
            lambda tx, after=after: credentials.listed(tx, world.vault, after=after, limit=2)
        )
        for after in ("", "b", "c")
    ]

    assert [[row.id for row in page] for page in pages] == [["a", "b"], ["c"], []]
    assert [row.public["host"] for row in pages[0]] == ["a", "b"]
    assert [row.secret for row in pages[0]] == [("token",), ("token",)]


# -- two writers


async def test_of_two_who_change_the_same_version_one_is_refused_and_undoes_nothing(
    world: World,
) -> None:
    await world.create(connector="unknown", access="old", refresh="old")
    ends: list[str] = []

    async def refresh(name: str) -> None:
        try:
            await world.change(expected=1, access=name, refresh=name)
            ends.append(name)
        except ConflictError as error:
            assert error.code == "credential.changed"

    async with anyio.create_task_group() as both:
        both.start_soon(refresh, "first")
        both.start_soon(refresh, "second")

    (winner,) = ends
    assert await world.opened() == {"access": winner, "refresh": winner}
    assert (await world.get()).version == 2


async def test_a_version_that_is_not_there_yet_is_refused_too(world: World) -> None:
    await world.create()

    await refused("credential.changed", world.change(expected=2, token="x"))
    assert (await world.change(expected=1, token="x")).version == 2


async def test_a_change_that_is_refused_changes_nothing(world: World) -> None:
    before = await world.create()

    await refused("credential.missing_field", world.change(host="new", token=None))

    assert await world.get() == before
    assert await world.opened() == {"token": SECRET, "host": "h.example"}


# -- what cannot be


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"credential_id": "a b", "token": SECRET}, "credential.id"),
        ({"credential_id": "", "token": SECRET}, "credential.id"),
        ({"connector": "GitHub", "token": SECRET}, "credential.connector"),
        ({"connector": "1x", "token": SECRET}, "credential.connector"),
        ({"auth": "no kind", "token": SECRET}, "credential.auth"),
        ({"tokn": SECRET}, "credential.unknown_field"),
        ({"host": "h.example"}, "credential.missing_field"),
        ({"token": ""}, "credential.field_value"),
        ({"token": SECRET, "public": ("token",)}, "credential.field_secret"),
        ({"connector": "unknown", "host": "h", "public": ("host",)}, "credential.field_secret"),
        ({"token": SECRET * 4_000}, "credential.value_too_large"),
    ],
)
async def test_one_that_cannot_be_is_refused_by_name(
    world: World, given: dict[str, Any], code: str
) -> None:
    await refused(code, world.create(**given))

    assert await world.database.read(lambda tx: tx.rows("SELECT id FROM credentials")) == []


async def test_what_is_rightly_called_public_is_taken(world: World) -> None:
    made = await world.create(token=SECRET, host="h.example", public=("host",))

    assert made.public == {"host": "h.example"}


async def test_a_name_that_is_taken_is_refused(world: World) -> None:
    await world.create()

    await refused("credential.exists", world.create(token="other"))
    assert (await world.opened())["token"] == SECRET


async def test_a_field_that_is_not_there_cannot_be_removed_and_the_nearest_is_named(
    world: World,
) -> None:
    await world.create()

    error = await refused("credential.unknown_field", world.change(tokn=None))

    assert error.hint == "did you mean 'token'?"


async def test_there_are_so_many_credentials_at_most(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MAX_CREDENTIALS", 1)
    await world.create()

    await refused("credential.too_many", world.create("second"))


# -- what a connector says may change


async def test_a_field_called_secret_from_now_on_is_shown_no_more_and_sealed_at_the_next_change(
    world: World,
) -> None:
    await world.create(token=SECRET, host="was-public-once")
    world.schemas.github["host"] = FieldSpec(is_secret=True)

    hidden = await world.get()
    await world.change(token=SECRET)

    assert (hidden.public, hidden.secret) == ({}, ("host", "token"))
    assert (await world.opened())["host"] == "was-public-once"
    stored = await world.database.read(lambda tx: tx.rows("SELECT public FROM credentials"))
    assert stored == [(b"{}",)]


async def test_a_secret_that_is_called_public_from_now_on_stays_sealed_until_it_is_set(
    world: World,
) -> None:
    await world.create()
    world.schemas.github["token"] = FieldSpec(is_secret=False)

    before = await world.get()
    after = await world.change(token="shown now")

    assert before.secret == ("token",)
    assert (after.secret, after.public["token"]) == ((), "shown now")
    assert await world.opened() == {"token": "shown now", "host": "h.example"}
    assert await world.database.read(lambda tx: tx.rows("SELECT name FROM sealed_fields")) == []


async def test_a_field_that_its_connector_knows_no_more_can_be_removed(world: World) -> None:
    await world.create()
    del world.schemas.github["host"]

    assert (await world.change(host=None)).public == {}


# -- what is stored


async def test_what_is_put_in_anothers_place_in_the_file_does_not_open(world: World) -> None:
    await world.create("one", "unknown", a="1", b="2")
    await world.create("two", "unknown", a="3", b="4")
    swaps = {
        "fields": "UPDATE sealed_fields SET sealed = (SELECT sealed FROM sealed_fields s"
        " WHERE s.credential = 'one' AND s.name = 'b') WHERE credential = 'one' AND name = 'a'",
        "credentials": "UPDATE sealed_fields SET sealed = (SELECT sealed FROM sealed_fields s"
        " WHERE s.credential = 'two' AND s.name = 'a') WHERE credential = 'one' AND name = 'a'",
        "data keys": "UPDATE credentials SET data_key = (SELECT data_key FROM credentials c"
        " WHERE c.id = 'two') WHERE id = 'one'",
        "names": "UPDATE sealed_fields SET name = 'c' WHERE credential = 'one' AND name = 'a'",
        "connector": "UPDATE credentials SET connector = 'another' WHERE id = 'one'",
        "public fields": "UPDATE credentials SET public = '{\"host\": \"evil.example\"}' WHERE id = 'one'",
        "the kind of auth": "UPDATE credentials SET auth = 'another' WHERE id = 'one'",
        "salt": "UPDATE vault_keys SET salt = zeroblob(32)",
    }

    def try_out(swap: str) -> None:
        with closing(sqlite3.connect(":memory:")) as copy:
            with closing(sqlite3.connect(f"file:{world.path}?mode=ro", uri=True)) as whole:
                whole.backup(copy)
            assert credentials.opened(Tx(copy), world.vault, "one").fields == {"a": "1", "b": "2"}
            copy.execute(swap)
            with pytest.raises(SealError):
                credentials.opened(Tx(copy), world.vault, "one")

    for swap in swaps.values():
        await anyio.to_thread.run_sync(try_out, swap)


async def test_a_data_key_is_good_under_its_version_of_the_key_alone(world: World) -> None:
    await world.create()
    second = world.vault.keyring.new(2)
    await world.sql(
        "INSERT INTO vault_keys VALUES (2, 'rotating', ?, ?, 0)", second.salt, second.proof
    )

    await world.sql("UPDATE credentials SET key_version = 2")

    await refused("vault.seal", world.opened())


async def test_a_change_seals_the_data_key_under_the_key_that_is_active_and_no_secret_anew(
    world: World,
) -> None:
    await world.create(connector="unknown", a="1", b="2")
    second = world.vault.keyring.new(2)
    await world.sql("UPDATE vault_keys SET state = 'rotating'")
    await world.sql(
        "INSERT INTO vault_keys VALUES (2, 'active', ?, ?, 0)", second.salt, second.proof
    )
    kept = "SELECT sealed FROM sealed_fields WHERE name = 'a'"
    before = await world.database.read(lambda tx: tx.one(kept))

    await world.change(b="two")

    assert await world.opened() == {"a": "1", "b": "two"}
    assert await world.database.read(lambda tx: tx.one(kept)) == before
    assert await world.database.read(lambda tx: tx.one("SELECT key_version FROM credentials")) == (
        2,
    )


async def test_two_credentials_with_the_same_secret_share_nothing_in_the_file(
    world: World,
) -> None:
    await world.create("one")
    await world.create("two")

    rows = await world.database.read(
        lambda tx: tx.rows(
            "SELECT sealed FROM sealed_fields UNION ALL SELECT data_key FROM credentials"
        )
    )

    assert len({row[0] for row in rows}) == 4
    assert not any(SECRET.encode() in row[0] for row in rows)


# -- the master key


async def test_the_first_start_makes_a_key_and_the_next_ones_know_it(database: Database) -> None:
    listed = "SELECT version, state, salt, proof, created_at FROM vault_keys"

    await ensure(database)
    first = await database.read(lambda tx: tx.rows(listed))
    await ensure(database)

    ((version, state, salt, proof, created_at),) = first
    assert (version, state, len(salt), len(proof), created_at) == (1, "active", 32, 32, NOW)
    assert await database.read(lambda tx: tx.rows(listed)) == first


async def test_another_master_key_is_refused_and_overwrites_nothing(world: World) -> None:
    await world.create()
    dump = "SELECT * FROM vault_keys"
    before = await world.database.read(lambda tx: tx.rows(dump))

    with pytest.raises(MasterKeyError) as caught:
        await ensure(world.database, OTHER)

    assert "ENCRYPTION_MASTER_KEY" in caught.value.message
    assert str(world.path) in caught.value.message
    told = f"{caught.value.message} {caught.value.hint} {caught.value!r}"
    assert OTHER not in told
    assert MASTER not in told
    assert await world.database.read(lambda tx: tx.rows(dump)) == before


@pytest.mark.parametrize(
    ("state", "refuses"), [("active", True), ("rotating", True), ("retired", False)]
)
async def test_each_key_in_use_must_be_of_the_master_key(
    world: World, state: str, refuses: bool
) -> None:
    foreign = Keyring(OTHER).new(2)
    if state == "active":
        await world.sql("UPDATE vault_keys SET state = 'rotating'")
    await world.sql(
        "INSERT INTO vault_keys VALUES (2, ?, ?, ?, 0)", state, foreign.salt, foreign.proof
    )

    if refuses:
        await refused("vault.master_key", ensure(world.database))
    else:
        await ensure(world.database)


async def test_a_master_key_is_looked_at_before_a_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "stackd.db"

    def look(master: str) -> None:
        keyring.refuse_other_at(path, Keyring(master))

    await anyio.to_thread.run_sync(look, MASTER)
    assert not path.exists()
    async with open_database(path, clock=SystemClock(), events=EventBus(), migrations=BEFORE_KEYS):
        await anyio.to_thread.run_sync(look, OTHER)  # it has no keys yet
    async with open_database(path, clock=SystemClock(), events=EventBus()) as database:
        await anyio.to_thread.run_sync(look, OTHER)
        await ensure(database)
        await anyio.to_thread.run_sync(look, MASTER)
        with pytest.raises(MasterKeyError):
            await anyio.to_thread.run_sync(look, OTHER)
    with pytest.raises(MasterKeyError):
        await anyio.to_thread.run_sync(look, OTHER)


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + b"x" * 200])
def test_what_is_no_store_is_left_to_who_opens_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stackd.db"
    path.write_bytes(content)

    keyring.refuse_other_at(path, Keyring(MASTER))

    assert path.read_bytes() == content


async def test_without_an_active_key_nothing_is_sealed(world: World) -> None:
    await world.sql("UPDATE vault_keys SET state = 'retired'")

    await refused("vault.seal", world.create())
