"""Whether a credential works: the cheap read that its connector names for that, asked for with what is stored."""

from __future__ import annotations

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import NodeError, StackdError
from stackd.core.json import Json
from stackd.core.redact import Redactor
from stackd.http.exchange import Answer, Blobs, Http
from stackd.http.values import scalar
from stackd.integrations.account import NOBODY, Account
from stackd.integrations.definition import ConnectionTest, Operation
from stackd.integrations.expressions import Reader
from stackd.integrations.generic import Caller, Tokens
from stackd.integrations.plan import Plan
from stackd.integrations.registry import Registry
from stackd.runtime.connectors import Accounts
from stackd.runtime.context import NodeContext
from stackd.runtime.faults import kept
from stackd.store.database import Database
from stackd.vault import credentials
from stackd.vault.records import TestResult, Vault

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
        registry: Registry,
        accounts: Accounts,
        tokens: Tokens,
        http: Http,
        blobs: Blobs,
        clock: Clock,
    ) -> None:
        self._store = store
        self._vault = vault
        self._registry = registry
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
        found = self._registry.catalogue.find(row.connector)
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

    async def _tested(self, plan: Plan, test: ConnectionTest, credential_id: str) -> TestResult:
        now, account = self._clock.time(), NOBODY
        try:
            with anyio.fail_after(WITHIN):
                account = await self._accounts.account(credential_id)
                reader = await self._asked(plan, account)
        except NodeError as error:
            message = Redactor(account.secret_values).text(error.message)
            return TestResult(now, error.http_status, (error.code, kept(message)))
        except StackdError as error:
            return TestResult(now, None, (error.code, kept(error.message)))
        except TimeoutError:
            message = f"{plan.app.id} gave no answer within {WITHIN:g} s"
            return TestResult(now, None, ("credential.no_answer", message))
        if test.expected_response is not None and not _holds(test.expected_response, reader.body):
            message = f"{plan.app.id} has answered, but not what its definition expects"
            return TestResult(now, reader.status, ("credential.unexpected_answer", message))
        return TestResult(now, reader.status, None, _label(reader.value(test.label), account))

    async def _asked(self, plan: Plan, account: Account) -> Reader:
        context = NodeContext(
            clock=self._clock,
            http=self._http,
            blobs=self._blobs,
            unsafe=False,
            idempotency_key=None,
            timeout=WITHIN,
            max_bytes=MAX_BYTES,
            tell_sent=lambda: None,
            tell_answered=lambda: None,
        )
        caller = Caller(plan, account, context, self._tokens)
        answer: Answer = await caller.ask(plan.parts({}, account, caller.base_url))
        return caller.read(answer, {})


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
