"""Operations of connectors as nodes: run by the manager, and once more by generic HTTP where that doubles nothing."""

from __future__ import annotations

from typing import Final, Protocol

from stackd.core.errors import NodeError, StackdError
from stackd.core.json import Json
from stackd.core.redact import Redactor
from stackd.integrations.account import NOBODY, Account, way_in
from stackd.integrations.manager import GENERIC, IntegrationManager, Trace
from stackd.integrations.registry import Fallback, Options, Registry, Target
from stackd.runtime.context import NodeContext
from stackd.workflows.graph import GraphNode
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


class Connectors:
    """Runs the nodes that are operations of connectors."""

    def __init__(self, manager: IntegrationManager, accounts: Accounts) -> None:
        self._manager = manager
        self._accounts = accounts

    @property
    def registry(self) -> Registry:
        return self._manager.registry

    async def run(self, node: GraphNode, params: dict[str, Json], context: NodeContext) -> Json:
        """The output of an operation; `context.metadata` says what ran it, also where it failed.

        Raises:
            NodeError: it failed; the message holds no secret of the account.
        """
        assert node.operation is not None  # noqa: S101  # as its type was judged
        app, operation = node.operation
        trace = Trace(app, operation)
        account = NOBODY
        began = context.clock.monotonic()
        redactor = Redactor(())
        try:
            target = self._manager.registry.target(app, operation)
            trace = Trace(target.connector.id, target.capability.id)
            account = await self._account(node, target)
            redactor = Redactor(account.secret_values)
            fitted = await self._manager.fitted(target, params, context.idempotency_key)
            return await self._with_fallback(node, target, fitted, account, context, trace)
        except StackdError as error:
            error.message = redactor.text(error.message)
            error.args = (error.message,)
            raise
        finally:
            seconds = context.clock.monotonic() - began
            context.metadata = redactor.json(_metadata(trace, account, seconds))

    async def _account(self, node: GraphNode, target: Target) -> Account:
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
    return NodeError(
        error.message, kind="invalid", code=error.code, sent=context.sent, answered=not context.sent
    )


def _metadata(trace: Trace, account: Account, seconds: float) -> dict[str, Json]:
    """What ran a node, by the origin's names."""
    found: dict[str, Json] = {
        "connectorId": trace.connector,
        "appId": trace.connector,
        "functionId": trace.function,
        "executor": trace.executor,
        "credentialSource": account.source,
        "connectionId": account.id,
        "executionTimeMs": round(seconds * 1000, 3),
        "integrationFallbackReason": trace.fallback_reason,
        "fallbackSuppressedReason": trace.suppressed,
        "attempts": trace.attempts,
    }
    if account is NOBODY:
        del found["credentialSource"]
    return {name: value for name, value in found.items() if value is not None}
