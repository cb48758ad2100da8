"""One claimed execution, from its journal to its next resting state.

The journal is the node runs in the store. A node that is not finished there is offered again after a crash,
by the rules of its effect class: an intent row is on disk before the first byte leaves, a result is on disk
before anything with an effect builds on it. Every write is fenced: once a newer claim owns the job, the
first write says so and the run ends without another effect.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio
import structlog

from stackd.core.aside import aside, aside_if
from stackd.core.budget import Share
from stackd.core.clock import Clock, rfc3339
from stackd.core.errors import (
    LeaseLostError,
    NodeError,
    StackdError,
    StoreBusyError,
    StoreFullError,
)
from stackd.core.events import EventBus
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.core.large_json import Loaded, load
from stackd.queue import verbs
from stackd.queue.job import Complete, Job, RetryPolicy, Snooze
from stackd.runtime.context import Blobs, Http, NodeContext
from stackd.runtime.events import (
    NodeAnswered,
    NodeFinished,
    NodeRetried,
    NodeSent,
    NodeStarted,
)
from stackd.runtime.nodes import HANDLERS, PURE_HANDLERS, delay_until
from stackd.runtime.outcome import Again, GiveUp, NodeRetry, Unknown, default_retry, judge
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NodeRow, NodeStatus
from stackd.workflows.expressions import Scope, evaluate
from stackd.workflows.graph import Graph, GraphEdge, GraphNode
from stackd.workflows.nodetypes import Effect

T = TypeVar("T")

FLUSH_AFTER = 0.2  # seconds a pure result may stay in memory only
INLINE_WAIT = 1.0  # seconds; a longer delay or retry wait is a timer and holds no worker slot
LOOP_SHARE = 0.01  # seconds of pure nodes at a stretch; then others have their turn
STORE_RETRY = 0.5  # seconds between tries while the store is full or locked
NODE_TIMEOUT = 30.0  # seconds, the origin's default
LONGEST_MESSAGE = 2_000  # characters of an error that are kept

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes."""

    output: int
    execution: int


@dataclass(frozen=True, slots=True)
class Tools:
    """What every run of a process shares."""

    store: Database
    http: Http
    blobs: Blobs
    clock: Clock
    events: EventBus
    limits: Limits
    job_retry: RetryPolicy
    send_within: float  # seconds after its intent was written; later, another may own the execution
    flush_after: float = FLUSH_AFTER


@dataclass(slots=True)
class _Progress:
    """How far the in-edges of a node are decided."""

    open_edges: int
    is_taken: bool = False


class Run:
    """Runs one execution for the length of one claim. Used once.

    What is large of it is read and written aside.
    """

    def __init__(self, tools: Tools, graph: Graph, job: Job, row: ExecutionRow) -> None:
        self._tools = tools
        self._graph = graph
        self._job = job
        self._row = row
        self._journal: dict[str, NodeRow] = {}
        self._dirty: dict[str, NodeRow] = {}
        self._timers: list[tuple[str, float, bytes | None]] = []
        self._dirty_since: float | None = None
        self._ready: deque[GraphNode] = deque()
        self._progress: dict[str, _Progress] = {}
        self._led_on: set[str] = set()  # nodes with a taken out-edge
        self._to_start: list[Callable[[], Awaitable[None]]] = []
        self._in_flight = 0
        self._changed: anyio.Event | None = None
        self._is_woken = False
        self._writing: anyio.Lock | None = None
        self._bytes = row.input_bytes  # with all outputs
        self._share: Share | None = None
        self._large: dict[str, Loaded] = {}  # the large ones of the stored values, by node
        self._failure: dict[str, Json] | None = None
        self._scope: anyio.CancelScope | None = None
        self._cancelled = row.cancel_requested
        self._interrupted = False
        self._fatal: StackdError | None = None
        self._members = graph.reachable(row.trigger_node)
        self._roots: dict[str, Json] = {}

    @property
    def seq(self) -> int:
        return self._row.seq

    @property
    def wakes(self) -> int:
        """How often the execution had been woken when this run last looked at it."""
        return self._row.wakes

    @property
    def is_waiting(self) -> bool:
        """Whether a node of it waits while others run."""
        return self._changed is not None and any(
            node.status is NodeStatus.WAITING for node in self._journal.values()
        )

    def wake(self) -> None:
        """Something happened to the execution: look for waits that have ended."""
        self._is_woken = True
        if self._changed is not None:
            self._changed.set()

    def cancel(self) -> None:
        """End the execution as cancelled; what is in flight is given up."""
        self._cancelled = True
        self._stop()

    def interrupt(self) -> None:
        """Give the execution back, to be continued by another claim."""
        self._interrupted = True
        self._stop()

    def _stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def execute(self, nodes: list[NodeRow], share: Share) -> None:
        """Run until the execution rests: final, waiting, uncertain, or given back.

        Args:
            nodes: its journal.
            share: of memory; grows with large outputs.

        Raises:
            LeaseLostError: a newer claim owns it; nothing more was written.
            StoreFailedError: the store has stopped.
        """
        self._journal = {node.key: node for node in nodes}
        self._bytes += sum(len(node.output or b"") for node in nodes)
        self._share = share
        try:
            while True:
                if not (self._cancelled or self._interrupted):
                    with anyio.CancelScope() as self._scope:
                        await self._read_values()
                        await self._advance()
                    # Cut off from outside during a shielded write, `_advance` returns as if all were done.
                    await anyio.lowlevel.checkpoint_if_cancelled()
                if self._fatal is not None:
                    raise self._fatal
                if await self._settle():
                    return
                await self._reread()
        finally:
            await self._free_values()

    # -- moving through the graph

    async def _advance(self) -> None:
        self._begin_graph()
        await self._take_up_ready()
        if not self._to_start:  # nothing but pure nodes: no task to wait for
            return
        self._writing = anyio.Lock()
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                if self._is_woken:
                    await self._look_at_waits()
                await self._take_up_ready()
                for work in self._to_start:
                    self._in_flight += 1
                    tasks.start_soon(self._run_task, work)
                self._to_start.clear()
                if self._in_flight == 0:
                    return
                await self._wait_for_change(self._changed)

    async def _look_at_waits(self) -> None:
        """Take up the nodes whose wait has ended beside this run: a timer fired."""
        assert self._writing is not None  # noqa: S101  # only `_advance` looks
        self._is_woken = False
        try:
            await self._flush()
            async with self._writing:  # what is read is then not older than what is known here
                row, nodes = await self._tools.store.read(
                    lambda tx: (
                        executions.get(tx, self._row.id),
                        executions.node_rows(tx, self.seq),
                    )
                )
        except StackdError as error:
            self._end_at_once(error)
            return
        self._row = row
        await self._read_large(nodes)
        for node in nodes:
            mine = self._journal.get(node.key)
            if mine is None or mine.status is not NodeStatus.WAITING or node.key in self._dirty:
                continue
            if node.status in (NodeStatus.COMPLETED, NodeStatus.PENDING):
                self._journal[node.key] = node
                self._weigh(len(node.output or b""))
                self._ready.append(self._graph.nodes[node.key])

    async def _wait_for_change(self, changed: anyio.Event) -> None:
        if self._dirty_since is None:
            await changed.wait()
            return
        clock = self._tools.clock
        left = self._dirty_since + self._tools.flush_after - clock.monotonic()
        if await clock.wait(changed, max(left, 0.0)):
            return
        try:
            await self._flush()
        except StackdError as error:
            self._end_at_once(error)

    async def _take_up_ready(self) -> None:
        """Run the pure nodes that are ready, and put the others down to be started."""
        clock = self._tools.clock
        since = clock.monotonic()
        while self._ready and self._failure is None:
            self._offer(self._ready.popleft())
            if clock.monotonic() - since > LOOP_SHARE:
                await anyio.lowlevel.checkpoint()
                since = clock.monotonic()

    def _begin_graph(self) -> None:
        self._ready.clear()
        self._led_on.clear()
        self._progress = {
            key: _Progress(sum(e.source in self._members for e in self._graph.nodes[key].in_edges))
            for key in self._members
        }
        trigger = self._graph.nodes[self._row.trigger_node]
        if trigger.id not in self._journal:
            at = self._row.created_at
            self._record(_row(trigger, NodeStatus.COMPLETED, 1, started_at=at, finished_at=at))
        self._pass_on(trigger, NodeStatus.COMPLETED, takes_success=True)

    def _offer(self, node: GraphNode) -> None:
        """Take up a node whose in-edges are decided: from the journal if it is there, else by running it."""
        row = self._journal.get(node.id)
        match row.status if row is not None else None:
            case NodeStatus.COMPLETED:
                assert row is not None  # noqa: S101  # for the type checker
                self._roots[node.id] = self._stored_output(row)
                self._pass_on(node, NodeStatus.COMPLETED, takes_success=True)
            case NodeStatus.FAILED:
                assert row is not None  # noqa: S101  # for the type checker
                self._after_failure(node, row)
            case NodeStatus.SKIPPED:
                self._roots[node.id] = None
                self._pass_on(node, NodeStatus.SKIPPED, takes_success=True)
            case NodeStatus.WAITING | NodeStatus.UNCERTAIN:
                pass
            case NodeStatus.RUNNING if row is not None and row.effect == Effect.UNSAFE.value:
                self._leave_uncertain(row, "the process ended while this was in flight")
            case _:
                self._start(node, row)

    def _start(self, node: GraphNode, row: NodeRow | None) -> None:
        now = self._tools.clock.time()
        row = row or _row(node, NodeStatus.PENDING, 0, started_at=now)
        if node.disabled:
            self._roots[node.id] = None
            self._record(
                row._replace(
                    status=NodeStatus.SKIPPED, finished_at=now, metadata=b'{"disabled":true}'
                )
            )
            self._pass_on(node, NodeStatus.SKIPPED, takes_success=True)
        elif node.is_pinned:
            self._complete(node, row._replace(attempt=1, metadata=b'{"pinned":true}'), node.pinned)
        elif node.type in PURE_HANDLERS:
            self._run_pure(node, row)
        elif node.type == "action.time.delay":
            self._to_start.append(partial(self._delay, node, row))
        else:
            self._to_start.append(partial(self._act, node, row))

    def _run_pure(self, node: GraphNode, row: NodeRow) -> None:
        row = row._replace(attempt=1)
        try:
            params, size = self._render(node, row)
            output = PURE_HANDLERS[node.type](params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(node, row, _foreseen(error, node.id))
            return
        if size > LARGE:
            self._to_start.append(partial(self._complete_aside, node, row, output))
        else:
            self._complete(node, row, output)

    async def _run_task(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StackdError as error:
            self._end_at_once(error)
        finally:
            self._in_flight -= 1
            if self._changed is not None:
                self._changed.set()

    def _end_at_once(self, error: StackdError) -> None:
        """The lease or the store is gone: no further effect, no further write."""
        self._fatal = self._fatal or error
        self._stop()

    async def _delay(self, node: GraphNode, row: NodeRow) -> None:
        started_at = row.started_at or self._tools.clock.time()
        row = row._replace(attempt=1, started_at=started_at)
        try:
            params, _ = self._render(node, row)
            due_at, output = delay_until(params, now=started_at)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(node, row, _foreseen(error, node.id))
            return
        left = due_at - self._tools.clock.time()
        if left > INLINE_WAIT:
            self._record(row._replace(status=NodeStatus.WAITING))
            self._timers.append((node.id, due_at, dumps(output)))
            return
        await self._tools.clock.sleep(max(left, 0.0))
        self._complete(node, row, output)

    async def _act(self, node: GraphNode, row: NodeRow) -> None:
        """Try a node with an effect until it is done, has failed, waits, or nobody knows."""
        try:
            params, size = self._render(node, row)
            text = await aside_if(size > LARGE, dumps, params)
            row = self._with_identity(node, row, text)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(node, row._replace(attempt=row.attempt + 1), _foreseen(error, node.id))
            return
        if row.status is NodeStatus.UNCERTAIN:
            self._leave_uncertain(row, "its input differs from the one sent before the restart")
            return
        retry = _retry(node)
        while True:
            row = row._replace(attempt=row.attempt + 1, status=NodeStatus.RUNNING)
            failure = await self._try_once(node, row, params, is_large=size > LARGE)
            if failure is None:
                return
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
                    self._leave_uncertain(row, failure.message)
                    await self._flush()
                    return
                case GiveUp():
                    self._fail(node, row, failure)
                    await self._flush()
                    return
                case Again(wait):
                    self._tools.events.emit(
                        NodeRetried(self._row.id, row.key, row.attempt, failure.code, wait)
                    )
                    row = row._replace(status=NodeStatus.PENDING, error=_error(failure))
                    if await self._wait_to_retry(row, wait):
                        return

    async def _wait_to_retry(self, row: NodeRow, wait: float) -> bool:
        """Wait in place if short (False), else leave a timer that offers the node again (True)."""
        if wait > INLINE_WAIT:
            self._record(row._replace(status=NodeStatus.WAITING))
            self._timers.append((row.key, self._tools.clock.time() + wait, None))
            return True
        self._record(row)
        await self._tools.clock.sleep(wait)
        return False

    async def _try_once(
        self, node: GraphNode, row: NodeRow, params: dict[str, Json], *, is_large: bool
    ) -> NodeError | None:
        """One try. None if it completed; what failed otherwise."""
        events, execution_id = self._tools.events, self._row.id
        context = NodeContext(
            clock=self._tools.clock,
            http=self._tools.http,
            blobs=_PatientBlobs(self._tools.blobs, self._tools.clock),
            unsafe=node.effect is Effect.UNSAFE,
            idempotency_key=row.idempotency_key,
            timeout=self._timeout(node, params),
            max_bytes=self._tools.limits.output,
            tell_sent=lambda: events.emit(NodeSent(execution_id, row.key, row.attempt)),
            tell_answered=lambda: events.emit(NodeAnswered(execution_id, row.key, row.attempt)),
            is_large=is_large,
        )
        began_at = self._tools.clock.monotonic()
        try:
            if node.effect is not Effect.READ:  # the intent is on disk before the first byte
                self._record(row)
                await self._flush()
                context.send_before = began_at + self._tools.send_within
            events.emit(NodeStarted(execution_id, row.key, row.attempt))
            output = await self._call(node, params, context)
        except NodeError as error:
            return error
        except anyio.get_cancelled_exc_class():
            self._note_interruption(node, row, sent=context.sent)
            raise
        if context.is_large:
            await self._complete_aside(node, row, output)
        else:
            self._complete(node, row, output)
        if node.effect is not Effect.READ:
            await self._flush()
        return None

    async def _call(self, node: GraphNode, params: dict[str, Json], context: NodeContext) -> Json:
        with anyio.move_on_after(context.timeout) as within:
            context.deadline = within
            try:
                return await HANDLERS[node.type](params, context)
            except NodeError:
                raise
            except StackdError as error:
                raise NodeError(
                    error.message, kind="invalid", code=error.code, sent=context.sent, answered=True
                ) from error
            except Exception as error:  # fails its node
                ours = _foreseen(error, node.id)
                raise NodeError(
                    ours.message,
                    kind="internal",
                    code=ours.code,
                    sent=context.sent,
                    answered=context.answered,
                ) from error
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
            self._leave_uncertain(row, "cut off while in flight")
        else:
            tried = row.attempt if sent else row.attempt - 1
            self._record(row._replace(status=NodeStatus.PENDING, attempt=tried))

    def _timeout(self, node: GraphNode, params: dict[str, Json]) -> float:
        """Seconds: the smaller of what the node and its parameters name, else the default."""
        own = params.get("timeoutMs")
        named = [] if node.timeout is None else [node.timeout]
        if isinstance(own, int | float) and not isinstance(own, bool):
            named.append(own / 1000)
        return min(named, default=NODE_TIMEOUT)

    # -- what a node run became

    def _complete(self, node: GraphNode, row: NodeRow, output: Json) -> None:
        self._note_output(node, row, output, _text_of(output))

    async def _complete_aside(self, node: GraphNode, row: NodeRow, output: Json) -> None:
        """As `_complete`, for an output that may be large. It is here: no cancel may lose it any more."""
        with anyio.CancelScope(shield=True):
            text = await aside(_text_of, output)
        self._note_output(node, row, output, text)

    def _weigh(self, output_bytes: int) -> None:
        """Count one more output."""
        self._bytes += output_bytes
        if output_bytes > LARGE and self._share is not None:
            self._share.grow(executions.OUTPUT_WEIGHT * output_bytes)

    def _note_output(
        self, node: GraphNode, row: NodeRow, output: Json, text: bytes | TypeError
    ) -> None:
        if isinstance(text, TypeError):
            self._fail(node, row, _unusable(node.id, text))
            return
        limits = self._tools.limits
        if len(text) > limits.output:
            self._fail(node, row, _too_large(node.id, "output", len(text), limits.output))
            return
        whole = self._bytes + len(text)
        if whole > limits.execution:
            self._fail(node, row, _too_large(node.id, "execution", whole, limits.execution))
            return
        self._weigh(len(text))
        now = self._tools.clock.time()
        self._roots[node.id] = output
        self._record(
            row._replace(status=NodeStatus.COMPLETED, output=text, error=None, finished_at=now)
        )
        self._pass_on(node, NodeStatus.COMPLETED, takes_success=True)

    def _fail(self, node: GraphNode, row: NodeRow, error: StackdError) -> None:
        now = self._tools.clock.time()
        row = row._replace(
            status=NodeStatus.FAILED, error=_error(error), output=None, finished_at=now
        )
        self._record(row)
        self._after_failure(node, row)

    def _after_failure(self, node: GraphNode, row: NodeRow) -> None:
        error: dict[str, Json] = loads(row.error) if row.error else {}
        if node.on_error == "fail":
            self._failure = self._failure or {**error, "nodeId": node.id}
            return
        self._roots[node.id] = {"error": error}
        self._pass_on(node, NodeStatus.FAILED, takes_success=node.on_error == "continue")

    def _leave_uncertain(self, row: NodeRow, why: str) -> None:
        self._record(
            row._replace(
                status=NodeStatus.UNCERTAIN,
                error=dumps({"code": "node.uncertain", "message": _kept(why)}),
            )
        )

    def _pass_on(self, node: GraphNode, status: NodeStatus, *, takes_success: bool) -> None:
        """Decide the out-edges of a node that ended, and whatever that decides further on."""
        for edge in node.out_edges:
            if edge.target in self._members:
                is_taken = self._is_taken(edge, status, takes_success=takes_success)
                if is_taken:
                    self._led_on.add(node.id)
                self._decide(edge, is_taken)

    def _is_taken(self, edge: GraphEdge, status: NodeStatus, *, takes_success: bool) -> bool:
        wanted_error = edge.on == "error"
        if edge.never or wanted_error != (status is NodeStatus.FAILED and not takes_success):
            return False
        if edge.when is None:
            return True
        seed = f"{self._row.id}:{edge.source}->{edge.target}"
        scope = Scope(self._roots, now=self._row.created_at, seed=seed)
        try:
            return bool(evaluate(edge.when, scope))
        except Exception as error:  # noqa: BLE001  # fails the node it leads from
            name = f"edge {edge.source} → {edge.target}"
            ours = _foreseen(error, name)
            self._failure = self._failure or {
                "code": ours.code,
                "message": _kept(f"{name}: {ours.message}"),
                "nodeId": edge.source,
            }
            return False

    def _decide(self, edge: GraphEdge, taken: bool) -> None:  # noqa: FBT001  # the decision itself
        """Decide an edge; a node that no edge into it is taken to is skipped, with all that hangs on it alone."""
        self._progress[edge.target].is_taken |= taken
        now = self._tools.clock.time()
        decided = [edge]
        while decided:
            target = self._graph.nodes[decided.pop().target]
            progress = self._progress[target.id]
            progress.open_edges -= 1
            if progress.open_edges:
                continue
            if progress.is_taken:
                self._ready.append(target)
                continue
            if target.id not in self._journal:
                self._record(_row(target, NodeStatus.SKIPPED, 0, started_at=now, finished_at=now))
            decided += [e for e in reversed(target.out_edges) if e.target in self._members]

    # -- values

    async def _read_values(self) -> None:
        """Read what the trigger gave, and what large outputs stand in the journal."""
        row, given = self._row, self._row.trigger_node
        if row.input is not None:
            self._roots = self._fixed_roots(loads(row.input))
        else:
            if given not in self._large:
                text = await self._tools.store.read(lambda tx: executions.input_of(tx, row))
                self._large[given] = await aside(load, text)
            self._roots = self._fixed_roots(self._large[given].value)
        await self._read_large(self._journal.values())

    async def _read_large(self, nodes: Iterable[NodeRow]) -> None:
        for node in nodes:
            if node.output is not None and len(node.output) > LARGE and node.key not in self._large:
                self._large[node.key] = await aside(load, node.output)

    async def _free_values(self) -> None:
        self._roots.clear()
        while self._large:
            _, loaded = self._large.popitem()
            with anyio.CancelScope(shield=True):
                await aside(loaded.take_apart)

    def _fixed_roots(self, given: Json) -> dict[str, Json]:
        row, workflow = self._row, self._graph.workflow
        return {
            row.trigger_node: given,
            "trigger": {"type": row.trigger_type, "nodeId": row.trigger_node},
            "execution": {
                "id": row.id,
                "workflowId": row.workflow_id,
                "version": row.version,
                "createdAt": rfc3339(row.created_at),
            },
            "workflow": {"id": row.workflow_id, "name": workflow.name, "version": row.version},
            "vars": dict(workflow.vars),
        }

    def _render(self, node: GraphNode, row: NodeRow) -> tuple[dict[str, Json], int]:
        """The node's parameters, and about how many bytes of JSON were filled in."""
        seed = f"{self._row.id}:{row.key}"
        scope = Scope(self._roots, now=row.started_at or self._row.created_at, seed=seed)
        return node.render(scope), scope.budget.charged

    def _with_identity(self, node: GraphNode, row: NodeRow, params: bytes) -> NodeRow:
        """The row with its idempotency key and input hash; uncertain if a keyed input changed since it was sent."""
        digest = hashlib.sha256(params).digest()
        key: str | None = None
        if node.effect is Effect.KEYED:
            key = row.idempotency_key or self._idempotency_key(node, row)
            was_sent = row.status is NodeStatus.RUNNING or row.attempt > 0
            if was_sent and row.input_hash is not None and row.input_hash != digest:
                return row._replace(status=NodeStatus.UNCERTAIN)
        return row._replace(idempotency_key=key, input_hash=digest)

    def _idempotency_key(self, node: GraphNode, row: NodeRow) -> str:
        if node.idempotency_key is None:
            return f"{self._row.id}:{row.key}"
        scope = Scope(self._roots, now=row.started_at or 0.0, seed=f"{self._row.id}:{row.key}:key")
        key = node.idempotency_key.render(scope)
        if not isinstance(key, str | int) or key == "":
            raise NodeError(
                f"idempotencyKey of {node.id} is no text", kind="invalid", code="node.bad_key"
            )
        return str(key)

    def _stored_output(self, row: NodeRow) -> Json:
        if row.key in self._large:
            return self._large[row.key].value
        return loads(row.output) if row.output is not None else None

    # -- the journal

    def _record(self, row: NodeRow) -> None:
        self._journal[row.key] = row
        self._dirty[row.key] = row
        if self._dirty_since is None:
            self._dirty_since = self._tools.clock.monotonic()
            if self._changed is not None:
                self._changed.set()  # from now on there is a time to write it

    async def _flush(self) -> None:
        """Commit everything recorded so far. One flush at a time: branches may wait for each other's."""
        assert self._writing is not None  # noqa: S101  # only tasks of `_advance` flush
        async with self._writing:
            if self._dirty or self._timers:  # else another branch has just committed it
                await self._write(self._check_claim)

    def _check_claim(self, tx: Tx) -> None:
        if not verbs.holds(tx, self._job):
            raise self._lease_lost()

    def _lease_lost(self) -> LeaseLostError:
        return LeaseLostError(f"job {self._job.id} belongs to a newer claim")

    async def _write(self, change: Callable[[Tx], T]) -> T:
        """Commit what is recorded together with `change`, which must refuse a lost claim.

        Waits while the store is full or locked; cut off there, what was recorded stays recorded.
        """
        dirty, since, timers = self._dirty, self._dirty_since, self._timers
        self._dirty, self._dirty_since, self._timers = {}, None, []
        rows = list(dirty.values())

        def write(tx: Tx) -> T:
            executions.put_nodes(tx, self.seq, rows)
            for row in rows:
                if row.status in _ENDED:
                    tx.emit(self._finished(row))
            for key, due_at, output in timers:
                executions.add_timer(tx, self.seq, key, due_at=due_at, output=output)
            return change(tx)

        try:
            return await self._written(write, sum(len(row.output or b"") for row in rows))
        except BaseException:
            self._dirty, self._dirty_since = dirty | self._dirty, since
            self._timers = timers + self._timers
            raise

    async def _written(self, change: Callable[[Tx], T], size_bytes: int) -> T:
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    return await self._tools.store.write(change, size_bytes=size_bytes)
            except (StoreBusyError, StoreFullError) as error:
                _log.warning("waiting for the store", reason=error.message)
            await self._tools.clock.sleep(STORE_RETRY)

    def _finished(self, row: NodeRow) -> NodeFinished:
        seconds = (
            None
            if row.started_at is None or row.finished_at is None
            else row.finished_at - row.started_at
        )
        return NodeFinished(
            execution_id=self._row.id,
            workflow_id=self._row.workflow_id,
            job_id=self._job.id,
            key=row.key,
            type=row.type,
            status=row.status.value,
            seconds=seconds,
        )

    # -- coming to rest

    async def _settle(self) -> bool:
        """Write the resting state and end the claim; False if something happened that must be looked at first."""
        if self._interrupted and not self._cancelled:
            await self._write(self._give_back)
            return True
        status = self._resting_status()
        return await self._write(lambda tx: self._rest(tx, status))

    def _resting_status(self) -> ExecutionStatus:
        states = {node.status for key, node in self._journal.items() if key in self._members}
        if self._cancelled:
            return ExecutionStatus.CANCELLED
        if NodeStatus.UNCERTAIN in states:
            return ExecutionStatus.UNCERTAIN
        if self._failure is not None:
            return ExecutionStatus.FAILED
        if NodeStatus.WAITING in states:
            return ExecutionStatus.WAITING
        if not (states <= _ENDED and self._members <= self._journal.keys()):
            raise AssertionError("a node is neither ended nor waiting, and nothing runs it")
        return ExecutionStatus.COMPLETED

    def _give_back(self, tx: Tx) -> None:
        self._end_job(tx, Snooze(0.0))
        executions.cancel_if_asked(tx, self.seq, now=self._tools.clock.time())

    def _end_job(self, tx: Tx, outcome: Complete | Snooze) -> None:
        now = self._tools.clock.time()
        policy = self._tools.job_retry
        if verbs.settle(tx, self._job, outcome, now=now, policy=policy, roll=0.0) is None:
            raise self._lease_lost()

    def _rest(self, tx: Tx, status: ExecutionStatus) -> bool:
        if status in (ExecutionStatus.WAITING, ExecutionStatus.UNCERTAIN):
            wakes, cancel_requested = executions.look(tx, self.seq)
            if cancel_requested:
                status = ExecutionStatus.CANCELLED
            elif wakes != self._row.wakes:
                self._check_claim(tx)
                return False
        self._end_job(tx, Complete())
        if status is ExecutionStatus.WAITING:
            executions.park(tx, self._row)
        else:
            self._end(tx, status)
        return True

    def _end(self, tx: Tx, status: ExecutionStatus) -> None:
        output: bytes | None = None
        error: bytes | None = None
        match status:
            case ExecutionStatus.COMPLETED:
                output = self._output(tx)
            case ExecutionStatus.FAILED:
                error = dumps(self._failure)
            case ExecutionStatus.CANCELLED:
                error = dumps({"code": "execution.cancelled", "message": "cancelled by request"})
            case _:
                error = self._uncertainty()
        now = self._tools.clock.time()
        executions.end(tx, self._row, status, output=output, error=error, now=now)

    def _uncertainty(self) -> bytes:
        node = next(n for n in self._journal.values() if n.status is NodeStatus.UNCERTAIN)
        error: dict[str, Json] = loads(node.error) if node.error else {"code": "node.uncertain"}
        return dumps({**error, "nodeId": node.key})

    def _output(self, tx: Tx) -> bytes:
        """Of the single completed node without a taken out-edge, else a map by node id; JSON."""
        ends = [
            key
            for key in self._graph.order
            if key in self._members
            and key not in self._led_on
            and self._journal[key].status is NodeStatus.COMPLETED
        ]
        texts = {key: self._journal[key].output or b"null" for key in ends}
        if self._row.trigger_node in ends:
            texts[self._row.trigger_node] = executions.input_of(tx, self._row)
        if len(ends) == 1:
            return texts[ends[0]]
        return b"{" + b",".join(dumps(key) + b":" + text for key, text in texts.items()) + b"}"

    async def _reread(self) -> None:
        """Look again at the store: a wait ended, or a person decided, while this run was about to rest."""
        row, nodes = await self._tools.store.read(
            lambda tx: (executions.get(tx, self._row.id), executions.node_rows(tx, self.seq))
        )
        self._row = row
        self._journal = {node.key: node for node in nodes}
        self._failure = None
        self._cancelled = row.cancel_requested


_ENDED = frozenset(
    {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.UNCERTAIN}
)


class _PatientBlobs:
    """Keeps a body as soon as there is space for it: the action is done, and its answer shall not be lost."""

    def __init__(self, blobs: Blobs, clock: Clock) -> None:
        self._blobs = blobs
        self._clock = clock

    async def put(self, content: bytes) -> str:
        while True:
            try:
                return await self._blobs.put(content)
            except StoreFullError as error:
                _log.warning("waiting for space", reason=error.message)
            await self._clock.sleep(STORE_RETRY)

    async def get(self, blob_id: str) -> bytes:
        return await self._blobs.get(blob_id)


def _row(
    node: GraphNode,
    status: NodeStatus,
    attempt: int,
    *,
    started_at: float,
    finished_at: float | None = None,
) -> NodeRow:
    return NodeRow(
        node.id, node.type, status, attempt, node.effect.value,
        None, None, started_at, finished_at, None, None, None,
    )  # fmt: skip


def _retry(node: GraphNode) -> NodeRetry:
    own = node.retry
    if own is None:
        return default_retry(node.type)
    return NodeRetry(own.max_attempts, own.initial_ms / 1000, own.max_ms / 1000)


def _foreseen(error: Exception, where: str) -> StackdError:
    """`error` if it is one of ours; else a fault of ours, which the log has in full under the id that is named."""
    if isinstance(error, StackdError):
        return error
    fault = secrets.token_hex(4)
    _log.error("a fault of stackd", fault=fault, where=where, exc_info=error)
    return NodeError(
        f"a fault of stackd ({type(error).__name__}); the log has it as {fault}",
        kind="internal",
        code="node.internal",
    )


def _error(error: StackdError) -> bytes:
    return dumps({"code": error.code, "message": _kept(error.message)})


def _kept(message: str) -> str:
    """`message` as it can be stored, whatever text it quotes."""
    short = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"
    return short.encode(errors="backslashreplace").decode()


def _text_of(output: Json) -> bytes | TypeError:
    """`output` as JSON text, or why it cannot be."""
    try:
        return dumps(output)
    except TypeError as error:
        return error


def _unusable(node_id: str, error: TypeError) -> NodeError:
    return NodeError(
        f"the output of {node_id} cannot be kept as JSON: {error}",
        kind="invalid",
        code="node.bad_output",
        answered=True,
    )


def _too_large(node_id: str, what: str, size: int, limit: int) -> NodeError:
    return NodeError(
        f"{what} of {node_id} is {size} bytes, over the limit of {limit}",
        kind="limit",
        code=f"{'node' if what == 'output' else 'execution'}.too_large",
        answered=True,
    )


__all__ = ["Limits", "Run", "Tools"]
