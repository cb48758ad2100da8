"""Tokens of sessions belong to the credential they were fetched with."""

from __future__ import annotations

from typing import Any

import pytest

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

    async def request(self, request: Any, **_: Any) -> Any:
        self.asked += 1
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


@pytest.mark.parametrize(("changed_at", "token"), [(1.0, 1), (2.0, 2)], ids=["same", "made_anew"])
async def test_a_credential_made_anew_by_the_name_of_a_removed_one_begins_its_own_session(
    changed_at: float, token: int
) -> None:
    clock = FakeClock()
    tokens, situation = MemoryTokens(clock), Counting(clock)
    app = App.model_validate({"id": "desk", "name": "Desk", "baseUrl": "http://desk.example"})
    plan = Plan(app, Operation.model_validate({"id": "o", "method": "GET", "endpoint": "/o"}))

    async def current(account: Account) -> str | None:
        caller = Caller(plan, account, situation, tokens)  # type: ignore[arg-type]  # what it uses
        return await tokens.current(AUTH, account, caller)

    await current(stored(1.0))

    assert await current(stored(changed_at)) == f"token-number-{token}"
