"""Asks for made-up operations by generic HTTP, through a real client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from stackd.core.apps import normal_operation
from stackd.core.clock import SystemClock
from stackd.http.client import HttpClient
from stackd.integrations.account import NOBODY, Account
from stackd.integrations.catalogue import read_connector
from stackd.integrations.definition import App, Operation
from stackd.integrations.generic import GenericExecutor
from stackd.integrations.plan import Plan
from stackd.integrations.tokens import MemoryTokens
from stackd.runtime.context import NodeContext
from support.runs import MemoryBlobs
from support.servers import Seen, answers, far_side, json_answer

CONNECTORS = Path(__file__).parents[2] / "connectors"
SECRET = "canary-secret-0123456789"
DONE = json_answer(b'{"ok": true}')


def account(**fields: str) -> Account:
    return Account("connection", "main", fields, frozenset(fields))


async def shipped(connector: str, operation: str, *, at: str | None = None) -> Plan:
    """An action of a connector of this project; `at`: where the app is, whatever its definition says."""

    def read() -> Plan:
        found = read_connector(CONNECTORS / connector).definition
        action = found.operation("action", normal_operation(operation))
        assert action is not None
        app = found.app if at is None else found.app.model_copy(update={"base_url": at})
        return Plan(app, action)

    return await anyio.to_thread.run_sync(read)


class Desk:
    """One app at some address, asked through a real client."""

    def __init__(self, http: HttpClient) -> None:
        self.http = http
        self.executor = GenericExecutor(MemoryTokens(SystemClock()))
        self.blobs = MemoryBlobs()
        self.sent = 0
        self.max_bytes = 1024 * 1024

    def plan(self, operation: dict[str, Any], **app: Any) -> Plan:
        return Plan(App.model_validate({"id": "desk", **app}), Operation.model_validate(operation))

    async def ask(
        self,
        url: str,
        operation: dict[str, Any],
        params: dict[str, Any] | None = None,
        *,
        as_: Account = NOBODY,
        key: str | None = None,
        **app: Any,
    ) -> Any:
        return await self.run(self.plan(operation, baseUrl=url, **app), params or {}, as_, key=key)

    async def run(
        self, plan: Plan, params: dict[str, Any], as_: Account = NOBODY, *, key: str | None = None
    ) -> Any:
        return await self.executor.execute(plan, params, as_, self.context(plan, key=key))

    def context(self, plan: Plan, *, key: str | None = None) -> NodeContext:
        def told() -> None:
            self.sent += 1

        return NodeContext(
            clock=SystemClock(),
            http=self.http,
            blobs=self.blobs,
            unsafe=plan.effect == "unsafe",
            idempotency_key=key,
            timeout=10.0,
            max_bytes=self.max_bytes,
            tell_sent=told,
            tell_answered=lambda: None,
        )

    async def sends(self, operation: dict[str, Any], params: dict[str, Any], **more: Any) -> Seen:
        """What the far side gets."""
        async with far_side(answers(DONE)) as far:
            await self.ask(far.url("/api"), operation, params, **more)
            return far.request
