"""Actions: nodes with an effect, from the first try to done, failed, waiting or unknown.

Before the first byte of an action leaves, its intent is on disk, with its idempotency key and what its input
was; and its result is before anything builds on it. So after a crash a read or a keyed action may be tried
again, with the same key and input, and an unsafe one that was in flight is uncertain.
"""

from __future__ import annotations

import hashlib
import random

import anyio

from stackd.core.aside import aside_if
from stackd.core.clock import rfc3339
from stackd.core.errors import NodeError, StackdError
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.integrations.account import NOBODY
from stackd.integrations.manager import INTEGRATION, TOLD, Attempt, Trace
from stackd.runtime.code import CodeRun, patience_of
from stackd.runtime.connectors import Call, telling
from stackd.runtime.context import NodeContext
from stackd.runtime.events import NodeAnswered, NodeRetried, NodeSent, NodeStarted
from stackd.runtime.faults import foreseen, kept, stored
from stackd.runtime.frame import Frame
from stackd.runtime.journal import Journal
from stackd.runtime.node_runs import NodeRuns
from stackd.runtime.nodes import HANDLERS
from stackd.runtime.outcome import Again, GiveUp, NodeRetry, Unknown, default_retry, judge
from stackd.runtime.tools import INLINE_WAIT, Tools
from stackd.runtime.values import Values
from stackd.sandbox.sandbox import Sandbox
from stackd.workflows.executions import NodeRow, NodeStatus
from stackd.workflows.graph import GraphNode
from stackd.workflows.nodetypes import Effect

ATTEMPTS_KEPT = 20
TURN = "waitsForTurnUntil"  # in the metadata of a node run that waits for its turn
NODE_TIMEOUT = 30.0  # seconds, the origin's default


class Actions:
    """The actions of one claim."""

    def __init__(
        self,
        tools: Tools,
        execution_id: str,
        journal: Journal,
        values: Values,
        node_runs: NodeRuns,
    ) -> None:
        self._tools = tools
        self._execution_id = execution_id
        self._journal = journal
        self._values = values
        self._node_runs = node_runs

    async def run(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Try a node with an effect until it is done, has failed, waits, or nobody knows."""
        try:
            params, size = self._values.render(frame, node, row)
            text = await aside_if(size > LARGE, dumps, params)
            row = self._with_identity(frame, node, row, text)
        except Exception as error:  # noqa: BLE001  # fails its node
            row = row._replace(attempt=row.attempt + 1)
            self._node_runs.fail(frame, node, row, error)
            return
        if row.status is NodeStatus.UNCERTAIN:
            why = "its input differs from the one sent before the restart"
            self._node_runs.leave_uncertain(row, why)
            return
        retry = _retry(node)
        while True:
            tried = row._replace(attempt=row.attempt + 1, status=NodeStatus.RUNNING)
            context = self._context(frame, node, tried, params, is_large=size > LARGE)
            call, failure = None, None
            try:
                call = await self._prepared(node, params, context)
                if call is not None and (wait := await self._turn(call, row, context)):
                    row = _waiting(row, until=self._tools.clock.time() + wait)
                    if not await self._wait_for_turn(frame, node, row, call, wait):
                        return
                    continue
            except NodeError as error:
                failure = error
            row = tried
            if failure is None:
                failure = await self._try_once(frame, node, row, params, context, call)
            if failure is None:
                return
            row = _described(row, context)
            unsafe = node.effect is Effect.UNSAFE
            verdict = judge(
                failure,
                unsafe=unsafe,
                attempt=row.attempt,
                retry=retry,
                roll=random.random(),  # noqa: S311
            )
            match verdict:
                case Unknown():
                    self._node_runs.leave_uncertain(row, failure.message)
                    await self._journal.flush()
                    return
                case GiveUp():
                    self._node_runs.fail(frame, node, row, failure)
                    await self._journal.flush()
                    return
                case Again(wait):
                    self._tools.events.emit(
                        NodeRetried(self._execution_id, row.key, row.attempt, failure.code, wait)
                    )
                    words = f"{row.key}: try {row.attempt} failed ({failure.message}); again in {wait:.1f} s"
                    self._journal.note("node.retried", kept(words))
                    row = row._replace(status=NodeStatus.PENDING, error=stored(failure))
                    if wait > INLINE_WAIT:  # a timer offers the node again
                        self._node_runs.let_wait(frame, node, row)
                        due_at = self._tools.clock.time() + wait
                        self._journal.set_timer(row.key, due_at, None)
                        return
                    self._journal.record(row)
                    await self._tools.clock.sleep(wait)

    # -- who it is to the far side

    def _with_identity(self, frame: Frame, node: GraphNode, row: NodeRow, params: bytes) -> NodeRow:
        """The row with its idempotency key and input hash; uncertain if a keyed input changed since it was sent."""
        digest = hashlib.sha256(params).digest()
        key: str | None = None
        if node.effect is Effect.KEYED:
            key = row.idempotency_key or self._idempotency_key(frame, node, row)
            was_sent = row.status is NodeStatus.RUNNING or row.attempt > 0
            if was_sent and row.input_hash is not None and row.input_hash != digest:
                return row._replace(status=NodeStatus.UNCERTAIN)
        return row._replace(idempotency_key=key, input_hash=digest)

    def _idempotency_key(self, frame: Frame, node: GraphNode, row: NodeRow) -> str:
        if node.idempotency_key is None:
            return _default_key(self._execution_id, frame, node)
        key = node.idempotency_key.render(self._values.scope(frame, row, f"{row.key}:key"))
        if not isinstance(key, str | int) or key == "":
            raise NodeError(
                f"idempotencyKey of {node.id} is no text", kind="invalid", code="node.bad_key"
            )
        return str(key)

    # -- its turn

    async def _prepared(
        self, node: GraphNode, params: dict[str, Json], context: NodeContext
    ) -> Call | None:
        """What the node asks for, if that is an operation of a connector."""
        if node.operation is None:
            return None
        try:
            call = await self._tools.connectors.prepare(node, params, context)
        except StackdError as error:
            raise _as_node_error(error, context) from error
        except Exception as error:
            raise _fault(error, node, context) from error
        self._journal.secrets.learn(call.account.secret_values)
        return call

    async def _turn(self, call: Call, row: NodeRow, context: NodeContext) -> float:
        waited = row.metadata is not None and TURN in loads(row.metadata)
        return await self._tools.connectors.wait(call, timeout=context.timeout, waited=waited)

    async def _wait_for_turn(
        self, frame: Frame, node: GraphNode, row: NodeRow, call: Call, wait: float
    ) -> bool:
        """Wait here, or by a timer that holds no place of the worker; whether it was here. It is no try."""
        if wait <= INLINE_WAIT:
            await self._tools.clock.sleep(wait)
            return True
        words = ", ".join(one.words for one in call.buckets)
        connector, operation, _ = call.circuit
        self._journal.note(
            "node.waits_for_turn",
            f"{row.key}: waits {wait:.1f} s for its turn at {connector}.{operation} ({words})",
        )
        self._node_runs.let_wait(frame, node, row)
        self._journal.set_timer(row.key, self._tools.clock.time() + wait, None)
        return False

    # -- one try

    async def _try_once(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        context: NodeContext,
        call: Call | None,
    ) -> NodeError | None:
        """One try. None if it completed; what failed otherwise."""
        began_at = self._tools.clock.monotonic()
        try:
            if node.effect is not Effect.READ:  # the intent is on disk before the first byte
                self._journal.record(row)
                await self._journal.flush()
                context.send_before = began_at + self._tools.send_within
            self._tools.events.emit(NodeStarted(self._execution_id, row.key, row.attempt))
            output = await self._handle(frame, node, row, params, context, call)
        except NodeError as error:
            if context.has_acted and (error.declined or not error.sent):
                # The last request did nothing, those before it did: that is known, and not to be done again.
                error.declined, error.sent, error.answered = False, True, True
            self._note_end(call, row, context, error)
            return error
        except anyio.get_cancelled_exc_class():
            self._note_interruption(node, _described(row, context), sent=context.sent)
            raise
        self._note_end(call, row, context, None)
        row = _described(row, context)
        await self._node_runs.complete_aside_if(context.is_large, frame, node, row, output)
        if node.effect is not Effect.READ:
            await self._journal.flush()
        return None

    def _context(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        *,
        is_large: bool,
    ) -> NodeContext:
        events, execution_id = self._tools.events, self._execution_id
        return NodeContext(
            clock=self._tools.clock,
            http=self._tools.http,
            blobs=self._tools.blobs,
            unsafe=node.effect is Effect.UNSAFE,
            idempotency_key=row.idempotency_key,
            timeout=_timeout(frame, node, params, self._tools.sandbox),
            max_bytes=self._tools.limits.output,
            tell_sent=lambda: events.emit(NodeSent(execution_id, row.key, row.attempt)),
            tell_answered=lambda: events.emit(NodeAnswered(execution_id, row.key, row.attempt)),
            is_large=is_large,
            secrets=lambda: self._journal.secrets.known,
        )

    def _note_end(
        self, call: Call | None, row: NodeRow, context: NodeContext, error: NodeError | None
    ) -> None:
        """Let what is known of the operation be written with the node run."""
        if call is None:
            return
        self._journal.secrets.learn(call.account.fetched)
        if call.fell_back:
            told = context.metadata or {}  # without the secrets that a reason may quote
            words = f"{row.key}: by generic HTTP, for {told.get('integrationFallbackReason')}"
            self._journal.note("node.fallback", kept(words))
        now = self._tools.clock.time()
        for change in self._tools.connectors.ended(call, error, rests=context.rests, now=now):
            self._journal.add(change)

    async def _handle(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        context: NodeContext,
        call: Call | None,
    ) -> Json:
        with anyio.move_on_after(context.timeout) as within:
            context.deadline = within
            try:
                if call is not None:
                    return await self._tools.connectors.run(node, call, context)
                if node.runtime is not None:
                    code = CodeRun(self._tools, self._execution_id, self._journal)
                    return await code.run(frame, node, row, params, context)
                return await _traced(node, params, context)
            except StackdError as error:
                raise _as_node_error(error, context) from error
            except Exception as error:  # fails its node
                raise _fault(error, node, context) from error
        raise NodeError(
            f"no answer within {context.timeout:g} s",
            kind="timeout",
            code="node.timeout",
            sent=context.sent,
        )

    def _note_interruption(self, node: GraphNode, row: NodeRow, *, sent: bool) -> None:
        """A try was cut off: an unsafe one that was sent is uncertain, any other may be offered again.

        One that was sent counts as a try: a keyed one then goes out again only with the same input.
        """
        if node.effect is Effect.UNSAFE and sent:
            self._node_runs.leave_uncertain(row, "cut off while in flight")
        else:
            tried = row.attempt if sent else row.attempt - 1
            self._journal.record(row._replace(status=NodeStatus.PENDING, attempt=tried))


def _as_node_error(error: StackdError, context: NodeContext) -> NodeError:
    """What an error of ours, foreseen at its place, means for the node."""
    if isinstance(error, NodeError):
        return error
    return NodeError(
        error.message, kind="invalid", code=error.code, sent=context.sent, answered=True
    )


def _fault(error: Exception, node: GraphNode, context: NodeContext) -> NodeError:
    """What an error nobody foresaw means for the node."""
    ours = foreseen(error, node.id)
    return NodeError(
        ours.message,
        kind="internal",
        code=ours.code,
        sent=context.sent,
        answered=context.answered,
    )


def _waiting(row: NodeRow, *, until: float) -> NodeRow:
    """`row` while it waits for its turn."""
    told = loads(row.metadata) if row.metadata else {}
    return row._replace(metadata=dumps({**told, TURN: rfc3339(until)}))


async def _traced(node: GraphNode, params: dict[str, Json], context: NodeContext) -> Json:
    """The output of a built-in action; what ran it is told as of a connector's."""
    _, app, function = node.type.split(".", 2)
    trace = Trace(app, function, INTEGRATION)
    with telling(context, trace, lambda: NOBODY), Attempt(trace, INTEGRATION, context):
        return await HANDLERS[node.type](params, context)


def _described(row: NodeRow, context: NodeContext) -> NodeRow:
    """`row` with what ran it last.

    The attempts of earlier tries stay, the last ATTEMPTS_KEPT of them, and what is told of the node run besides:
    that a person has decided, say.
    """
    if context.metadata is None:
        return row
    before = loads(row.metadata) if row.metadata else {}
    kept_of_it = {k: v for k, v in before.items() if k not in TOLD and k != TURN}
    told = kept_of_it | context.metadata
    if attempts := [*before.get("attempts", []), *told.get("attempts", [])][-ATTEMPTS_KEPT:]:
        told["attempts"] = attempts
    return row._replace(metadata=dumps(told))


def _timeout(
    frame: Frame, node: GraphNode, params: dict[str, Json], sandbox: Sandbox | None
) -> float:
    """Seconds: the smaller of what the node and its parameters name, else the default."""
    if node.runtime is not None:  # its parameters are the code's; it is bounded from when it begins
        return node.timeout or patience_of(sandbox, frame, node, node.runtime)
    own = params.get("timeoutMs")
    named = [] if node.timeout is None else [node.timeout]
    if isinstance(own, int | float) and not isinstance(own, bool):
        named.append(own / 1000)
    return min(named, default=NODE_TIMEOUT)


def _retry(node: GraphNode) -> NodeRetry:
    own = node.retry
    if own is None:
        return default_retry(node.type)
    return NodeRetry(own.max_attempts, own.initial_ms / 1000, own.max_ms / 1000)


def _default_key(execution_id: str, frame: Frame, node: GraphNode) -> str:
    """`<execution>:<node>`, and in loops the numbers of the iterations, the outermost first."""
    numbers: list[str] = []
    inside: Frame | None = frame
    while inside is not None and inside.loop is not None:
        numbers.append(str(inside.index))
        inside = inside.loop.frame
    return ":".join([execution_id, node.id, *reversed(numbers)])
