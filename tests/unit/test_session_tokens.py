"""Tokens of sessions belong to the credential they were fetched with."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from stackd.core.errors import NodeError
from stackd.integrations.account import Account
from stackd.integrations.definition import App, Auth, Operation
from stackd.integrations.generic import Caller
from stackd.integrations.plan import Plan
from stackd.integrations.tokens import MemoryTokens
from stackd.testing import FakeClock, ok


class Counting:
    """A situation whose far side gives another token each time."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.timeout, self.http, self.asked = clock, 5.0, self, 0
        self.takes, self.is_down = 0.0, False
        self.timeouts: list[float] = []

    async def request(self, request: Any, **_: Any) -> Any:
        self.asked += 1
        self.timeouts.append(request.timeout)
        await self.clock.sleep(self.takes)
        if self.is_down:
            return ok(b"{}", 503)
        return ok(b'{"token": "token-number-%d"}' % self.asked)


AUTH = Auth.model_validate(
    {
        "type": "session",
        "login": {"method": "POST", "endpoint": "/login", "body": {"p": "{{ conn.password }}"}},
        "token": "body.token",
    }
)


def stored(changed_at: float) -> Account:
    return Account("connection", "main", {"password": "p"}, version=1, changed_at=changed_at)


def caller_of(tokens: MemoryTokens, situation: Counting, url: str, account: Account) -> Caller:
    app = App.model_validate({"id": "desk", "name": "Desk", "baseUrl": url})
    plan = Plan(app, Operation.model_validate({"id": "o", "method": "GET", "endpoint": "/o"}))
    return Caller(plan, account, situation, tokens)  # type: ignore[arg-type]  # what it uses


@pytest.mark.parametrize(
    ("changed_at", "url", "token"),
    [(1.0, "http://desk.example", 1), (2.0, "http://desk.example", 2), (1.0, "http://other.example", 2)],
    ids=["same", "made_anew", "elsewhere"],
)  # fmt: skip
async def test_a_session_is_of_one_credential_at_one_address(
    changed_at: float, url: str, token: int
) -> None:
    clock = FakeClock()
    tokens, situation = MemoryTokens(clock), Counting(clock)

    async def current(account: Account, at: str) -> str | None:
        return await tokens.current(AUTH, account, caller_of(tokens, situation, at, account))

    await current(stored(1.0), "http://desk.example")

    assert await current(stored(changed_at), url) == f"token-number-{token}"


async def test_who_waits_for_a_sign_in_that_fails_does_not_sign_in_once_more_each() -> None:
    clock = FakeClock()
    tokens, situation = MemoryTokens(clock), Counting(clock)
    situation.takes, situation.is_down = 0.2, True
    failures: list[NodeError] = []

    async def come() -> None:
        account = stored(1.0)
        caller = caller_of(tokens, situation, "http://desk.example", account)
        with pytest.raises(NodeError) as caught:
            await tokens.current(AUTH, account, caller)
        failures.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(come)
        await anyio.wait_all_tasks_blocked()
        clock.advance(0.2)
    asked_together = situation.asked
    situation.takes = 0.0
    await come()

    assert (asked_together, situation.asked) == (1, 2)
    assert {one.code for one in failures} == {"credential.sign_in"}
    assert len({id(one) for one in failures}) == 21


async def test_a_token_endpoint_has_half_of_the_time_of_a_try() -> None:
    clock = FakeClock()
    tokens, situation = MemoryTokens(clock), Counting(clock)
    auth = Auth.model_validate(
        {
            "type": "oauth2", "grant": "client_credentials", "tokenUrl": "https://desk.example/token",
            "paths": {"access": "token"},
        }
    )  # fmt: skip
    account = Account("connection", "main", {"clientId": "me", "clientSecret": "s"})

    await tokens.current(
        auth, account, caller_of(tokens, situation, "https://desk.example", account)
    )

    assert situation.timeouts == [situation.timeout / 2]
