"""Token pairs of stored credentials, against an app that rotates refresh tokens and ends a grant when one comes twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support.grants import CLIENT, Grants, granting
from support.outbound import client
from support.runs import MemoryBlobs

from stackd.core.clock import SystemClock, rfc3339
from stackd.core.errors import NodeError
from stackd.core.events import EventBus
from stackd.core.process import ProcessIdentity, current_process
from stackd.http.client import HttpClient
from stackd.integrations.definition import App, Operation
from stackd.integrations.generic import GenericExecutor
from stackd.integrations.pairs import TokenPairs
from stackd.integrations.plan import Plan
from stackd.integrations.tokens import MemoryTokens
from stackd.runtime.accounts import StoredAccounts
from stackd.runtime.context import NodeContext
from stackd.store.database import Database, open_database
from stackd.vault import credentials, keyring
from stackd.vault.fields import NoSchemas
from stackd.vault.keyring import Keyring
from stackd.vault.records import Change, CredentialDisconnected, CredentialRow, NewCredential, Vault

VAULT = Vault(Keyring("0123456789abcdefghijklmnopqrstuvwxyzABCD"), NoSchemas())
ME = current_process()
PAST, LATER = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


class Process:
    """What one process asks the app with."""

    def __init__(self, store: Database, http: HttpClient, grants: Grants, **auth: Any) -> None:
        self.store = store
        clock = SystemClock()
        self.accounts = StoredAccounts(store, VAULT, clock, ME)
        self._tokens = MemoryTokens(clock, TokenPairs(self.accounts, clock))
        self.http = http
        definition = grants.definition(**auth)
        look = Operation.model_validate(definition.pop("actions")[0])
        self._plan = Plan(App.model_validate(definition), look)

    async def look(self) -> Any:
        """Ask the app as a try of a node does."""
        context = NodeContext(
            clock=SystemClock(), http=self.http, blobs=MemoryBlobs(), unsafe=False, idempotency_key=None,
            timeout=10.0, max_bytes=1024, tell_sent=lambda: None, tell_answered=lambda: None,
        )  # fmt: skip
        account = await self.accounts.account("main")
        return await GenericExecutor(self._tokens).execute(self._plan, {}, account, context)

    async def fails(self) -> NodeError:
        with pytest.raises(NodeError) as caught:
            await self.look()
        return caught.value

    async def make(self, **fields: str) -> None:
        new = NewCredential("main", "granted", None, {**CLIENT, **fields})
        await self.store.write(lambda tx: credentials.create(tx, VAULT, new, by="test", now=1.0))

    async def change(self, **fields: str) -> None:
        await self.store.write(
            lambda tx: credentials.replace(tx, VAULT, "main", Change(fields), by="test", now=2.0)
        )

    async def row(self) -> CredentialRow:
        return await self.store.read(lambda tx: credentials.get(tx, VAULT, "main"))

    async def fields(self) -> dict[str, str]:
        opened = await self.store.read(lambda tx: credentials.opened(tx, VAULT, "main"))
        return dict(opened.fields)


@pytest.fixture
async def grants() -> AsyncIterator[Grants]:
    async with granting() as made:
        yield made


@pytest.fixture
async def process(database: Database, grants: Grants) -> AsyncIterator[Process]:
    await database.write(lambda tx: keyring.ensure(tx, VAULT.keyring, place=database.path, now=1.0))
    async with client() as http:
        yield Process(database, http, grants)


@asynccontextmanager
async def another(process: Process, grants: Grants) -> AsyncIterator[Process]:
    """A second process on the same store."""
    path = process.store.path
    async with (
        open_database(path, clock=SystemClock(), events=EventBus(), busy_timeout=2.0) as store,
        client() as http,
    ):
        yield Process(store, http, grants)


async def test_a_pair_is_renewed_before_its_end_and_stored(
    process: Process, grants: Grants
) -> None:
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    await process.look()
    await process.look()

    fields = await process.fields()
    assert (fields["accessToken"], fields["refreshToken"]) == (grants.access, grants.refresh)
    assert grants.asked == ["refresh-token-0001"]
    assert grants.calls() == ["access-token-0002"] * 2


async def test_a_pair_is_renewed_once_where_the_app_says_that_it_is_over(
    process: Process, grants: Grants
) -> None:
    await process.make(access_token="revoked-token", refresh_token=grants.refresh)

    await process.look()

    fields = await process.fields()
    assert grants.calls() == ["revoked-token", "access-token-0002"]
    assert (fields["access_token"], fields["refresh_token"]) == (grants.access, grants.refresh)
    assert "expires_at" in fields


async def test_a_short_lived_token_is_used_for_half_of_its_time(
    process: Process, grants: Grants
) -> None:
    grants.lasts = 60.0  # far less than the lead of renewals
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    for _ in range(3):
        await process.look()

    assert len(grants.asked) == 1


async def test_many_nodes_of_many_processes_renew_it_once(process: Process, grants: Grants) -> None:
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    async with another(process, grants) as other, anyio.create_task_group() as nodes:
        for one in (process, other) * 5:
            nodes.start_soon(one.look)

    assert grants.asked == ["refresh-token-0001"]
    assert grants.calls() == ["access-token-0002"] * 10


async def test_a_node_that_is_cut_off_while_it_renews_leaves_the_new_pair(
    process: Process, grants: Grants
) -> None:
    grants.gate = anyio.Event()
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    async with anyio.create_task_group() as nodes:
        nodes.start_soon(process.look)
        assert grants.far is not None
        await grants.far.until(requests=1)
        nodes.cancel_scope.cancel()
        grants.gate.set()

    assert (await process.fields())["refreshToken"] == grants.refresh == "refresh-token-0002"
    assert grants.calls() == []


async def test_what_a_person_changes_meanwhile_is_kept_with_the_new_pair(
    process: Process, grants: Grants
) -> None:
    grants.gate = anyio.Event()
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    async with anyio.create_task_group() as nodes:
        nodes.start_soon(process.look)
        assert grants.far is not None
        await grants.far.until(requests=1)
        await process.change(note="of a person")
        grants.gate.set()

    fields = await process.fields()
    assert (fields["note"], fields["refreshToken"]) == ("of a person", grants.refresh)


async def test_a_pair_that_a_person_has_replaced_meanwhile_stays(
    process: Process, grants: Grants
) -> None:
    grants.gate = anyio.Event()
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    async with anyio.create_task_group() as nodes:
        nodes.start_soon(process.look)
        assert grants.far is not None
        await grants.far.until(requests=1)
        await process.change(
            accessToken="access-token-0002", refreshToken="of-another-grant", expiresAt=LATER
        )
        grants.gate.set()

    assert (await process.fields())["refreshToken"] == "of-another-grant"


async def test_a_grant_that_is_over_is_not_asked_for_again_until_it_is_replaced(
    process: Process, grants: Grants
) -> None:
    heard: list[CredentialDisconnected] = []
    process.store.events.subscribe(heard.append, CredentialDisconnected)  # type: ignore[arg-type]
    await process.make(accessToken="over-long-ago", refreshToken="used-before", expiresAt=PAST)

    first = await process.fails()
    async with another(process, grants) as other:
        second = await other.fails()

    assert first.code == second.code == "credential.reconnect"
    assert "stackd credentials set main" in second.message
    assert "used-before" not in first.message
    assert (first.kind, first.sent) == ("invalid", False)
    assert (grants.asked, grants.calls()) == (["used-before"], [])
    assert "invalid_grant" in str((await process.row()).reconnect)
    assert [one.credential_id for one in heard] == ["main"]

    grants.is_over = False
    await process.change(refreshToken=grants.refresh)
    await process.look()
    assert (await process.row()).reconnect is None


async def test_nodes_that_wait_for_a_grant_that_is_over_all_learn_it_from_one_request(
    process: Process, grants: Grants
) -> None:
    await process.make(accessToken="over-long-ago", refreshToken="used-before", expiresAt=PAST)
    failed: list[str] = []

    async def look() -> None:
        failed.append((await process.fails()).code)

    async with anyio.create_task_group() as nodes:
        for _ in range(8):
            nodes.start_soon(look)

    assert (failed, grants.asked) == (["credential.reconnect"] * 8, ["used-before"])


async def test_a_token_endpoint_that_breaks_off_is_asked_again_later_and_the_app_sees_nothing(
    process: Process, grants: Grants
) -> None:
    grants.breaks = True
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)

    error = await process.fails()

    assert (error.kind, error.code) == ("network", "credential.token_endpoint")
    assert (error.sent, error.answered, grants.calls()) == (False, False, [])
    grants.breaks = False
    await process.look()
    assert grants.calls() == ["access-token-0002"]


async def test_a_token_that_has_some_time_left_is_used_while_its_endpoint_is_down(
    process: Process, grants: Grants
) -> None:
    grants.breaks = True
    soon = rfc3339(SystemClock().time() + 120.0) or ""  # within the lead of renewals
    await process.make(accessToken=grants.access, refreshToken=grants.refresh, expiresAt=soon)

    with capture_logs() as logs:
        await process.look()
        await process.look()

    assert grants.calls() == ["access-token-0001"] * 2
    assert grants.asked == [
        "refresh-token-0001"
    ]  # not by each node: an endpoint that is down takes its time
    warnings = [one for one in logs if one["log_level"] == "warning"]
    assert [one["credential"] for one in warnings] == ["main"]


async def test_a_grant_that_is_over_is_told_at_once_though_its_token_has_some_time_left(
    process: Process, grants: Grants
) -> None:
    soon = rfc3339(SystemClock().time() + 120.0) or ""
    await process.make(accessToken=grants.access, refreshToken="used-before", expiresAt=soon)

    assert (await process.fails()).code == "credential.reconnect"
    assert grants.calls() == []


async def test_what_a_definition_captures_of_a_token_answer_is_kept_at_each_renewal(
    process: Process, grants: Grants
) -> None:
    grants.also = {"team": {"id": "T-2"}, "shard": 7, "odd": {"a": 1}, "accessToken": "not-this"}
    capture = {
        "teamId": "team.id", "shard": "shard", "odd": "odd", "none": "no.such", "refreshToken": "accessToken",
    }  # fmt: skip
    one = Process(process.store, process.http, grants, capture=capture)
    await one.make(
        accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST, teamId="T-1"
    )

    await one.look()

    fields = await one.fields()
    assert (fields["teamId"], fields["shard"]) == ("T-2", "7")
    assert fields["refreshToken"] == grants.refresh
    assert not {"odd", "none"} & fields.keys()


async def test_a_client_that_is_refused_leaves_the_grant_as_it_is(
    process: Process, grants: Grants
) -> None:
    await process.make(
        accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST,
        clientSecret="wrong-secret-of-a-client",
    )  # fmt: skip

    error = await process.fails()

    assert (error.kind, error.code) == ("rejected", "credential.sign_in")
    assert "invalid_client" in error.message
    assert (await process.row()).reconnect is None


async def test_a_claim_of_a_process_that_died_is_over_in_time(
    process: Process, grants: Grants
) -> None:
    await process.make(accessToken="over-long-ago", refreshToken=grants.refresh, expiresAt=PAST)
    now = 1_000.0

    async def claim(at: float, by: ProcessIdentity = ME) -> bool:
        return await process.store.write(
            lambda tx: credentials.claim_renewal(tx, "main", 1, by=by, until=at + 40.0, now=at)
        )

    assert await claim(now)
    assert not await claim(now + 1.0)
    assert not await claim(now - 1.0)  # asked for before, and later to get there
    assert await claim(now + 41.0)
    assert await claim(now - 90.0)  # where the clock was set back
    assert await claim(now + 90.0, by=replace(ME, start_ticks=0))
    assert await claim(now + 91.0)  # at once, of a process that is proven to have ended
