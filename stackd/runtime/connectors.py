"""Operations of connectors as nodes: run by the manager, and once more by generic HTTP where that doubles nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from stackd.core.errors import NodeError, StackdError
from stackd.core.json import Json
from stackd.core.redact import LIVE, Redactor
from stackd.http.message import Response
from stackd.integrations import evidence
from stackd.integrations.account import NOBODY, Account, way_in
from stackd.integrations.circuits import Circuits, Key
from stackd.integrations.definition import Operation
from stackd.integrations.evidence import OperationEnded
from stackd.integrations.limits import Bucket, RateLimiter, buckets_of
from stackd.integrations.manager import GENERIC, IntegrationManager, Trace
from stackd.integrations.plan import Parts, Plan
from stackd.integrations.registry import Fallback, Options, Registry, Target
from stackd.runtime.context import NodeContext
from stackd.runtime.faults import kept
from stackd.runtime.secrets import redactor_of
from stackd.store.connection import Tx
from stackd.workflows.graph import GraphNode, InlineCredentials
from stackd.workflows.model import Node
from stackd.workflows.nodetypes import Effect, connector_of, effect_of

# Answers that are about the moment, not the request: another try may be answered otherwise.
OF_THE_MOMENT: Final = frozenset({408, 409, 425, 429})


class Accounts(Protocol):
    """The credentials there are."""

    async def account(self, connection_id: str) -> Account:
        """The credential of that name, opened.

        Raises:
            NodeError: there is none, or it cannot be opened.
        """

    async def inline(self, owner: InlineCredentials) -> Account:
        """Those that stood in a node, opened; as of `account`."""


@dataclass(slots=True)
class Call:
    """An operation that a node is about to ask for: all that is known of it before a byte is sent."""

    target: Target
    params: dict[str, Json]
    account: Account
    trace: Trace
    buckets: tuple[Bucket, ...]

    @property
    def circuit(self) -> Key:
        return (
            self.target.connector.id,
            self.target.capability.normal_id,
            self.account.id or "",
        )

    @property
    def fell_back(self) -> bool:
        """Whether generic HTTP was asked in place of a handler: not where there is none to be asked."""
        meant = self.target.handler is not None or self.target.connector.handlers.problem
        return bool(meant) and self.trace.fallback_reason is not None


class Connectors:
    """Runs the nodes that are operations of connectors."""

    def __init__(
        self,
        manager: IntegrationManager,
        accounts: Accounts,
        limiter: RateLimiter,
        circuits: Circuits,
    ) -> None:
        self._manager = manager
        self._accounts = accounts
        self._limiter = limiter
        self._circuits = circuits

    @property
    def registry(self) -> Registry:
        return self._manager.registry

    async def prepare(self, node: GraphNode, params: dict[str, Json], context: NodeContext) -> Call:
        """What the node is about to ask for; nothing is sent.

        Raises:
            NodeError: it cannot be asked for; `context.metadata` says what it was.
        """
        assert node.operation is not None  # noqa: S101  # as its type was judged
        trace, account = Trace(*node.operation), NOBODY
        with telling(context, trace, lambda: account):
            target = self._manager.registry.target(*node.operation)
            trace.connector, trace.function = target.connector.id, target.capability.id
            account = await self._account(node, target)
            fitted = await self._manager.fitted(target, params, context.idempotency_key)
            call = Call(target, fitted, account, trace, buckets_of(target.plan, fitted, account))
        context.turn_of = lambda: self._limiter.wait(call.buckets, waited=True)
        return call

    async def wait(self, call: Call, *, timeout: float, waited: bool) -> float:
        """0 if it may be asked for now, and then that is counted; else the seconds after which to come again.

        Args:
            waited: whether it has come before.

        Raises:
            NodeError: it rests, for its far side is down.
        """
        await self._circuits.refuse(call.circuit)
        if wait := self._circuits.probed(call.circuit):
            return wait
        wait = await self._limiter.wait(call.buckets, waited=waited)
        return wait or await self._circuits.wait(call.circuit, timeout=timeout)

    async def run(self, node: GraphNode, call: Call, context: NodeContext) -> Json:
        """The output of an operation; `context.metadata` says what ran it, also where it failed.

        Raises:
            NodeError: it failed; the message holds no secret of the account.
        """
        with telling(context, call.trace, lambda: call.account):
            return await self._with_fallback(
                node, call.target, call.params, call.account, context, call.trace
            )

    def ended(
        self, call: Call, error: NodeError | None, *, rests: float, now: float
    ) -> Iterator[Callable[[Tx], None]]:
        """What writes down how a try ended, with the node run: evidence, its circuit and its limits.

        Args:
            rests: seconds for which the far side has nothing left of its limit.
        """
        trace = call.trace
        connector, operation, _ = call.circuit
        event = OperationEnded(
            connector,
            operation,
            trace.executor or "none",
            ok=error is None,
            fell_back=call.fell_back,
        )
        yield lambda tx: evidence.record(tx, event, error, now=now)
        if (change := self._circuits.ended(call.circuit, error)) is not None:
            yield change
        if error is not None and error.kind == "rate_limit":
            rests = max(rests, error.retry_after or 0.0)
        if rests and call.buckets:
            yield self._limiter.declined(call.buckets, rests)

    async def send_as(
        self, credential: str, parts: Parts, context: NodeContext, *, timeout: float
    ) -> Response:
        """The answer to a request of code, signed with a credential: to the hosts of its connector, and no other.

        Raises:
            NodeError: no answer, or the credential may not go there; the message holds no secret of it.
        """
        account = await self._accounts.account(credential)
        found = self.registry.catalogue.find(account.connector or "")
        if found is None:
            raise NodeError(
                f"credential {credential!r} is of no connector that is known here, so it is sent nowhere",
                kind="invalid",
                code="credential.no_connector",
            )
        written = {"id": "fetch", "endpoint": "/", "method": parts.method, "encode": "raw"}
        statuses = {"allowStatus": ["4xx", "5xx"], "response": "text", "timeout": timeout}
        operation = Operation.model_validate({**written, **statuses})
        caller = self._manager.caller(Plan(found.definition.app, operation), account, context)
        try:
            answer = await caller.ask(parts, is_last=False)
        except StackdError as error:
            error.message = redactor_of(frozenset(account.secret_values)).text(error.message)
            raise
        return answer.response

    async def _account(self, node: GraphNode, target: Target) -> Account:
        if node.credentials is not None:
            return await self._accounts.inline(node.credentials)
        if node.connection is not None:
            account = await self._accounts.account(node.connection)
            made_for = account.connector
            if (
                made_for is not None
                and self.registry.catalogue.find(made_for) is not target.connector
            ):
                raise NodeError(
                    f"credential {node.connection!r} is for {made_for}, not for {target.connector.id}; "
                    "nothing was sent",
                    kind="invalid",
                    code="credential.other_connector",
                )
            return account
        plan = target.plan
        if way_in(plan.app, plan.operation.auth, NOBODY).type != "none":
            raise NodeError(
                f'No connection configured for node "{node.id}"; '
                f"{target.connector.id} needs a credential: connection: <name>",
                kind="invalid",
                code="credential.missing",
            )
        return NOBODY

    async def _with_fallback(
        self,
        node: GraphNode,
        target: Target,
        params: dict[str, Json],
        account: Account,
        context: NodeContext,
        trace: Trace,
    ) -> Json:
        manager = self._manager
        try:
            return await manager.execute(target, params, account, context, trace)
        except StackdError as error:
            if trace.executor == GENERIC:
                raise
            cause = _as_node_error(error, context)
            trace.suppressed = suppressed(
                cause,
                effect=node.effect,
                options=manager.registry.options,
                has_http=target.plan.operation.has_http,
                own_transport=target.speaks_itself,
            )
            if trace.suppressed is not None:
                raise cause from error
            trace.fallback_reason = cause.message
        try:
            return await manager.execute_generic(target.plan, params, account, context, trace)
        except NodeError as error:
            error.sent = error.sent or context.sent
            raise


@contextmanager
def telling(context: NodeContext, trace: Trace, account: Callable[[], Account]) -> Iterator[None]:
    """Let what comes of the block say what ran it, and no secret of account or execution; nor does the log."""

    def redactor() -> Redactor:  # more of them may be known by now
        return redactor_of(context.secrets().union(account().secret_values))

    began = context.clock.monotonic()
    before = LIVE.set(redactor())
    try:
        yield
    except StackdError as error:
        error.message = kept(redactor().text(error.message))
        error.args = (error.message,)
        raise
    finally:
        LIVE.reset(before)
        told = _metadata(trace, account(), context.clock.monotonic() - began)
        context.metadata = redactor().json(told)


def suppressed(
    error: NodeError, *, effect: Effect, options: Options, has_http: bool, own_transport: bool
) -> str | None:
    """Why generic HTTP may not do once more what a handler has failed at; None if it may."""
    if not options.generic:
        return "generic HTTP is off (GENERIC_EXECUTOR_ENABLED)"
    if not has_http:
        return "the definition names no endpoint and method"
    if options.fallback is Fallback.NEVER:
        return "GENERIC_EXECUTOR_FALLBACK is never"
    if error.code.startswith("credential."):
        return "the credential is the reason"
    if options.fallback is Fallback.ALWAYS:
        return None
    status = error.http_status
    if error.answered and (status is None or (status < 500 and status not in OF_THE_MOMENT)):
        return (
            f"the far side has answered{'' if status is None else f' {status}'}: that is the answer"
        )
    if effect is Effect.UNSAFE and (error.sent or own_transport):
        what = (
            "its own transport cannot be proven to have sent nothing"
            if own_transport
            else "something was sent"
        )
        return f"it is unsafe to do twice, and {what}"
    return None


def effect_in(registry: Registry, node: Node) -> Effect:
    """The effect class of a node: as its document says, else as the definition of its operation does."""
    operation = connector_of(node.type)
    if operation is None or node.effect is not None:
        return effect_of(node) if node.effect is None or operation is None else Effect(node.effect)
    effect = registry.effect(*operation)
    if effect is Effect.UNSAFE and node.idempotency_key is not None:
        return Effect.KEYED
    return effect


def _as_node_error(error: StackdError, context: NodeContext) -> NodeError:
    if isinstance(error, NodeError):
        error.sent = error.sent or context.sent
        return error
    return NodeError(error.message, kind="invalid", code=error.code, sent=context.sent)


def _metadata(trace: Trace, account: Account, seconds: float) -> dict[str, Json]:
    """What ran a node, by the origin's names."""
    reason = trace.fallback_reason
    found: dict[str, Json] = {
        "connectorId": trace.connector,
        "appId": trace.connector,
        "functionId": trace.function,
        "executor": trace.executor,
        "credentialSource": account.source,
        "connectionId": account.id,
        "executionTimeMs": round(seconds * 1000, 3),
        "integrationFallbackReason": None if reason is None else kept(reason),
        "fallbackSuppressedReason": trace.suppressed,
        "attempts": trace.attempts,
    }
    if account is NOBODY:
        del found["credentialSource"]
    return {name: value for name, value in found.items() if value is not None}
