"""Whether a credential works: the cheap read that its connector names for that, asked for with what is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import uuid4

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import InputError, NodeError, StackdError
from stackd.core.json import Json
from stackd.core.redact import LIVE, Redactor
from stackd.http.exchange import Answer, Blobs, Http
from stackd.http.values import scalar
from stackd.integrations.account import NOBODY, Account
from stackd.integrations.definition import ConnectionTest, Operation
from stackd.integrations.expressions import Reader
from stackd.integrations.generic import Caller, Tokens
from stackd.integrations.manager import IntegrationManager, Trace
from stackd.integrations.plan import Plan
from stackd.runtime.connectors import Accounts
from stackd.runtime.context import NodeContext
from stackd.runtime.faults import kept
from stackd.store.database import Database
from stackd.vault import credentials
from stackd.vault.records import TestResult, Vault
from stackd.workflows.nodetypes import Effect

T = TypeVar("T")

WITHIN = 10.0  # seconds that a person waits for it
MAX_BYTES = 1024 * 1024  # of the answer
LONGEST_LABEL = 200  # characters


class CredentialTests:
    """Tests the credentials of a store, whether or not workflows may use generic HTTP."""

    def __init__(
        self,
        *,
        store: Database,
        vault: Vault,
        manager: IntegrationManager,
        accounts: Accounts,
        tokens: Tokens,
        http: Http,
        blobs: Blobs,
        clock: Clock,
    ) -> None:
        self._store = store
        self._vault = vault
        self._manager = manager
        self._accounts = accounts
        self._tokens = tokens
        self._http = http
        self._blobs = blobs
        self._clock = clock

    async def test(self, credential_id: str, *, by: str) -> TestResult:
        """What its app says to it, within `WITHIN` seconds; that stands with the credential from then on.

        A connector that names nothing to test with is an error of the result, which is kept nowhere.

        Raises:
            NotFoundError: there is no such credential.
            InputError: the definition of its connector cannot be used.
        """
        row = await self._store.read(lambda tx: credentials.get(tx, self._vault, credential_id))
        found = self._manager.registry.catalogue.find(row.connector)
        app = found.definition.app if found is not None and found.packed else None
        test = None if app is None else app.test_connection or app.connection.test
        if app is None or test is None:
            what = "is not known here" if app is None else "names no request to test one with"
            message = f"it cannot be tested: connector {row.connector!r} {what} (testConnection)"
            return TestResult(self._clock.time(), None, ("credential.untestable", message))
        result = await self._tested(Plan(app, _operation(test)), test, credential_id)
        await self._store.write(
            lambda tx: credentials.record_test(tx, credential_id, result, by=by)
        )
        return result

    async def try_operation(
        self, credential_id: str, operation: str, *, writes: bool
    ) -> TestResult:
        """What comes of one action of its connector that needs no parameter; kept nowhere.

        Args:
            writes: whether it may do anything but read.

        Raises:
            NotFoundError: there is no such credential.
            InputError: there is no such action, or it would do more than read.
        """
        row = await self._store.read(lambda tx: credentials.get(tx, self._vault, credential_id))
        try:
            target = self._manager.registry.target(row.connector, operation)
        except NodeError as error:
            raise InputError(error.message, code=error.code) from None
        words, effect = f"{target.connector.id}.{target.plan.operation.id}", target.plan.effect
        if effect is not Effect.READ and not writes:
            raise InputError(
                f"{words} does more than read ({effect}); nothing was sent",
                code="credential.writes",
                hint="if that is meant: --yes",
            )
        trace = Trace(target.connector.id, target.plan.operation.id)

        async def run(account: Account) -> str:
            context = self._context(effect)
            params = await self._manager.fitted(target, {}, context.idempotency_key)
            await self._manager.execute(target, params, account, context, trace)
            return f"{words}, by {trace.executor}"

        found = await self._outcome(target.plan.app.id, credential_id, run)
        return (
            found if isinstance(found, TestResult) else TestResult(self._clock.time(), label=found)
        )

    async def _outcome(
        self, app: str, credential_id: str, ask: Callable[[Account], Awaitable[T]]
    ) -> T | TestResult:
        """What `ask` gives, else the failure."""
        now, account = self._clock.time(), NOBODY
        try:
            with anyio.fail_after(WITHIN):
                account = await self._accounts.account(credential_id)
                before = LIVE.set(Redactor(account.secret_values))
                try:
                    return await ask(account)
                finally:
                    LIVE.reset(before)
        except StackdError as error:  # a handler may raise any of them
            message = Redactor(account.secret_values).text(error.message)
            status = error.http_status if isinstance(error, NodeError) else None
            return TestResult(now, status, (error.code, kept(message)))
        except TimeoutError:
            message = f"{app} gave no answer within {WITHIN:g} s"
            return TestResult(now, None, ("credential.no_answer", message))

    async def _tested(self, plan: Plan, test: ConnectionTest, credential_id: str) -> TestResult:
        found = await self._outcome(
            plan.app.id, credential_id, lambda account: self._asked(plan, account)
        )
        if isinstance(found, TestResult):
            return found
        (reader, account), now = found, self._clock.time()
        if test.expected_response is not None and not _holds(test.expected_response, reader.body):
            message = f"{plan.app.id} has answered, but not what its definition expects"
            return TestResult(now, reader.status, ("credential.unexpected_answer", message))
        return TestResult(now, reader.status, None, _label(reader.value(test.label), account))

    def _context(self, effect: Effect) -> NodeContext:
        return NodeContext(
            clock=self._clock,
            http=self._http,
            blobs=self._blobs,
            unsafe=effect is Effect.UNSAFE,
            idempotency_key=str(uuid4()) if effect is Effect.KEYED else None,
            timeout=WITHIN,
            max_bytes=MAX_BYTES,
            tell_sent=lambda: None,
            tell_answered=lambda: None,
        )

    async def _asked(self, plan: Plan, account: Account) -> tuple[Reader, Account]:
        caller = Caller(plan, account, self._context(Effect.READ), self._tokens)
        answer: Answer = await caller.ask(plan.parts({}, account, caller.base_url))
        return caller.read(answer, {}), account


def _operation(test: ConnectionTest) -> Operation:
    """The test as one operation of its app."""
    send: dict[str, Json] = {"query": test.query, "body": test.body}
    written = {"id": "testConnection", "endpoint": test.endpoint, "method": test.method}
    return Operation.model_validate({**written, "send": send, "effect": "read"})


def _holds(expected: Json, found: Json) -> bool:
    """Whether `found` is as expected; a map may hold more."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and _holds(value, found[name]) for name, value in expected.items()
        )
    return bool(expected == found)


def _label(value: Json, account: Account) -> str | None:
    if value is None or isinstance(value, dict | list):
        return None
    return Redactor(account.secret_values).text(scalar(value))[:LONGEST_LABEL]
