"""IntegrationManager: one operation from its name to what became of it, by its handler or by generic HTTP.

It goes to generic HTTP by itself where there is no handler to ask. After a handler that failed, whoever runs the
workflow decides (`fall_back`), for that could do a thing twice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import structlog

from stackd.core.aside import aside
from stackd.core.errors import InputError, NodeError, StackdError
from stackd.core.json import Json
from stackd.core.redact import cut
from stackd.http.message import Response
from stackd.http.values import listed, scalar
from stackd.integrations.account import Account
from stackd.integrations.generic import Caller, GenericExecutor, Tokens, Try, mark
from stackd.integrations.plan import Parts, Plan
from stackd.integrations.registry import Registry, Target

INTEGRATION: Final = "integration"
GENERIC: Final = "generic"
NOT_HANDLED: Final = "Function "
# What the metadata of a node run tell of what ran it.
TOLD: Final = (
    "connectorId", "appId", "functionId", "executor", "credentialSource", "connectionId",
    "executionTimeMs", "integrationFallbackReason", "fallbackSuppressedReason", "attempts",
)  # fmt: skip

_log = structlog.get_logger(__name__)


class FunctionNotHandled(StackdError):  # noqa: N818  # its name is part of what handlers rely on
    """A handler does not do that operation after all: nothing was done, generic HTTP may."""

    code = "operation.not_handled"

    def __init__(self, app: str, operation: str) -> None:
        super().__init__(f"{NOT_HANDLED}{operation} not implemented for {app}")


@dataclass(slots=True)
class Trace:
    """What ran one operation, written by the path that did.

    Attributes:
        executor: what gave the output or the last failure.
        fallback_reason: why generic HTTP was asked after, or instead of, a handler.
        suppressed: why it was not, though a handler had failed.
        attempts: each that was asked, in order.
    """

    connector: str
    function: str
    executor: str | None = None
    fallback_reason: str | None = None
    suppressed: str | None = None
    attempts: list[dict[str, Json]] = field(default_factory=list)


class HandlerHttp:
    """What handlers ask their app with: signed, to its hosts only, and counted."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._writes = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Json = None,
        form: Mapping[str, Json] | None = None,
    ) -> HandlerResponse:
        """The answer to a request to `path`, which may be a whole URL of one of the app's hosts.

        Of a keyed operation, the first POST or PATCH carries its key, later ones that with their number, unless
        the handler sends one itself: the same at each try, if it asks in the same order.

        Raises:
            NodeError: no answer, or one that means a failure by the definition's rules.
        """
        absolute = path.startswith(("http://", "https://"))
        url = path if absolute else f"{self._caller.base_url}/{path.lstrip('/')}"
        parts = Parts(method.upper(), url, headers=self._with_own(headers or {}))
        parts.query = [
            (name, scalar(one)) for name, item in (query or {}).items() for one in listed(item)
        ]
        body = form if form is not None else json
        parts.body, parts.has_body = body, body is not None
        key = self._caller.situation.idempotency_key
        if parts.method in ("POST", "PATCH") and key is not None:
            self._writes += 1
            mark(self._caller.plan, parts, key if self._writes == 1 else f"{key}:{self._writes}")
        answer = await self._caller.asking_as("form" if form is not None else "json").ask(
            parts, is_last=False
        )
        return HandlerResponse(answer.response, answer.body)

    def _with_own(self, headers: Mapping[str, str]) -> dict[str, str]:
        """`headers`, and those of the definition that are not among them."""
        given = {name.lower() for name in headers}
        own = self._caller.plan.headers(self._caller.account)
        return {**{k: v for k, v in own.items() if k.lower() not in given}, **headers}

    async def get(self, path: str, **more: Any) -> HandlerResponse:
        return await self.request("GET", path, **more)

    async def post(self, path: str, **more: Any) -> HandlerResponse:
        return await self.request("POST", path, **more)

    async def put(self, path: str, **more: Any) -> HandlerResponse:
        return await self.request("PUT", path, **more)

    async def patch(self, path: str, **more: Any) -> HandlerResponse:
        return await self.request("PATCH", path, **more)

    async def delete(self, path: str, **more: Any) -> HandlerResponse:
        return await self.request("DELETE", path, **more)


@dataclass(frozen=True, slots=True)
class HandlerResponse:
    """An answer. `body`: JSON, or a text."""

    response: Response
    body: Json

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """What a handler is given besides the parameters.

    Attributes:
        http: the app, as its definition signs in to it.
        connection: the fields of the credential, secrets too, and what is left out by its default.
        log: with app and operation bound; secrets do not belong there.
        idempotency_key: the same over retries and restarts; None unless the effect is keyed.
        timeout: seconds this try may take.
    """

    http: HandlerHttp
    connection: Mapping[str, Json]
    log: Any
    idempotency_key: str | None
    timeout: float
    app: str
    operation: str

    def not_handled(self) -> FunctionNotHandled:
        """To be raised where the handler does not do this after all."""
        return FunctionNotHandled(self.app, self.operation)


class IntegrationManager:
    """Runs operations of connectors."""

    def __init__(self, registry: Registry, tokens: Tokens) -> None:
        self.registry = registry
        self._tokens = tokens
        self._generic = GenericExecutor(tokens)

    async def fitted(
        self, target: Target, params: Mapping[str, Json], key: str | None = None
    ) -> dict[str, Json]:
        """`params` as the operation takes them, with the idempotency `key` where it is one of them.

        Raises:
            NodeError: they are not what it takes; nothing was sent.
        """
        plan = target.plan
        own = plan.idempotency
        name = None if own is None else own.param
        if key is not None and name is not None and params.get(name) is None:
            params = {**params, name: key}  # null is no key of the user's own
        try:
            if not plan.schema.is_ready:
                return await aside(plan.schema.fitted, params)  # the first time takes a library
            return plan.schema.fitted(params)
        except InputError as error:
            raise NodeError(
                f"Invalid parameters for {plan.app.id}.{plan.operation.id}: {error.message}",
                kind="invalid",
                code="validation_error" if error.code == "params.invalid" else error.code,
            ) from None

    async def execute(
        self,
        target: Target,
        params: Mapping[str, Json],
        account: Account,
        situation: Try,
        trace: Trace,
    ) -> Json:
        """The output of an operation whose `params` were found to fit.

        Raises:
            NodeError: it failed; `trace` says by what.
            FunctionNotHandled: the handler does not do it, and generic HTTP may not.
        """
        if target.handler is None:
            trace.fallback_reason = _no_handler(target)
            return await self.execute_generic(target.plan, params, account, situation, trace)
        try:
            return await self._handle(target, params, account, situation, trace)
        except StackdError as error:
            if not _is_not_handled(error) or (situation.sent and not target.speaks_itself):
                raise
            if not (self.registry.options.generic and target.plan.operation.has_http):
                raise
            trace.fallback_reason = error.message
        return await self.execute_generic(target.plan, params, account, situation, trace)

    def caller(self, plan: Plan, account: Account, situation: Try) -> Caller:
        """Who makes requests for one operation and one account."""
        return Caller(plan, account, situation, self._tokens)

    async def execute_generic(
        self, plan: Plan, params: Mapping[str, Json], account: Account, situation: Try, trace: Trace
    ) -> Json:
        """As `execute`, by generic HTTP."""
        trace.executor = GENERIC
        with Attempt(trace, GENERIC, situation):
            return await self._generic.execute(plan, params, account, situation)

    async def _handle(
        self,
        target: Target,
        params: Mapping[str, Json],
        account: Account,
        situation: Try,
        trace: Trace,
    ) -> Json:
        assert target.handler is not None  # noqa: S101  # as it was judged
        plan = target.plan
        trace.executor = INTEGRATION
        caller = self.caller(plan, account, situation)
        context = HandlerContext(
            http=HandlerHttp(caller),
            connection=dict(caller.account.fields),
            log=_log.bind(app=plan.app.id, operation=plan.operation.id),
            idempotency_key=situation.idempotency_key,
            timeout=situation.timeout,
            app=plan.app.id,
            operation=plan.operation.id,
        )
        with Attempt(trace, INTEGRATION, situation):
            if target.speaks_itself:
                situation.on_sent()  # nobody but the handler knows whether it has
            try:
                return await target.handler(dict(params), context)
            except StackdError:
                raise
            except (Exception, SystemExit) as error:  # fails its node, and nothing else
                raise _failed(plan, error, situation) from error
            except anyio.get_cancelled_exc_class() as error:
                if _is_cancelled():
                    raise
                raise _failed(plan, error, situation) from error  # it raised that of its own accord


def _is_cancelled() -> bool:
    """Whether somebody has asked this task to end."""
    task = asyncio.current_task()
    return anyio.current_effective_deadline() == -math.inf or bool(task and task.cancelling())


def _failed(plan: Plan, error: BaseException, situation: Try) -> NodeError:
    """What a fault of a handler means for its node. Its text is not told: it may quote a secret."""
    where = error.__traceback__
    while (
        where is not None
        and where.tb_next is not None
        and "stackd_connectors" not in str(where.tb_frame.f_globals.get("__name__"))
    ):
        where = where.tb_next
    line = f" (line {where.tb_lineno})" if where is not None else ""
    _log.warning("a handler failed", app=plan.app.id, operation=plan.operation.id, exc_info=error)
    return NodeError(
        f"the handler of {plan.app.id}.{plan.operation.id} failed: {type(error).__name__}{line}",
        kind="internal",
        code="handler.failed",
        sent=situation.sent,
    )


class Attempt:
    """Writes down what was asked, how long it took and how it ended."""

    def __init__(self, trace: Trace, executor: str, situation: Try) -> None:
        self._trace = trace
        self._executor = executor
        self._situation = situation
        self._began = situation.clock.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, stack: object) -> None:
        took = self._situation.clock.monotonic() - self._began
        one: dict[str, Json] = {"executor": self._executor, "durationMs": round(took * 1000, 3)}
        if error is not None:
            message = error.message if isinstance(error, StackdError) else type(error).__name__
            one["error"] = {
                "code": getattr(error, "code", "internal"),
                "message": cut(message, 500).encode(errors="backslashreplace").decode(),
            }
        self._trace.attempts.append(one)


def _no_handler(target: Target) -> str:
    handlers = target.connector.handlers
    if handlers.problem:
        return handlers.problem
    if not handlers.by_name:
        return f"{target.connector.id} has no handlers"
    return f"{NOT_HANDLED}{target.plan.operation.id} not implemented for {target.connector.id}"


def _is_not_handled(error: StackdError) -> bool:
    return isinstance(error, FunctionNotHandled) or error.message.startswith(NOT_HANDLED)
