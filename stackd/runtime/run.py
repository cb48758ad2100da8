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
from functools import partial
from itertools import islice

import anyio
import structlog
from anyio.abc import TaskGroup

from stackd.core.aside import aside, aside_if
from stackd.core.budget import Share
from stackd.core.clock import rfc3339
from stackd.core.errors import BusyError, NodeError, StackdError
from stackd.core.ids import sortable_id
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.core.large_json import Loaded, load
from stackd.queue import verbs
from stackd.queue.job import Complete, Job, Snooze
from stackd.runtime.context import NodeContext
from stackd.runtime.events import NodeAnswered, NodeRetried, NodeSent, NodeStarted
from stackd.runtime.frame import Frame, Loop
from stackd.runtime.journal import ENDED, ITEMS_DROPPED, Journal
from stackd.runtime.nodes import HANDLERS, delay_until
from stackd.runtime.outcome import Again, GiveUp, NodeRetry, Unknown, default_retry, judge
from stackd.runtime.tools import Tools
from stackd.runtime.transforms import PURE_HANDLERS, Evaluation, evaluated
from stackd.runtime.versions import Versions
from stackd.store.connection import Tx
from stackd.workflows import catalogue, executions
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NodeRow, NodeStatus
from stackd.workflows.expressions import Scope, evaluate
from stackd.workflows.graph import Graph, GraphEdge, GraphNode
from stackd.workflows.nodetypes import Effect

INLINE_WAIT = 1.0  # seconds; a longer delay or retry wait is a timer and holds no worker slot
LOOP_SHARE = 0.01  # seconds of pure nodes at a stretch; then others have their turn
NODE_TIMEOUT = 30.0  # seconds, the origin's default
CUT_OFF = "the process ended while this was in flight"
LONGEST_MESSAGE = 2_000  # characters of an error that are kept

_log = structlog.get_logger(__name__)


class Run:
    """Runs one execution for the length of one claim. Used once.

    What is large of it is read and written aside.
    """

    def __init__(
        self, tools: Tools, versions: Versions, graph: Graph, job: Job, row: ExecutionRow
    ) -> None:
        self._tools = tools
        self._versions = versions
        self._graph = graph
        self._job = job
        self._row = row
        self._journal = Journal(tools, job, row, told=self._note_change)
        self._is_fresh = job.fence == 1 and row.wakes == 0  # nothing can stand in the journal yet
        self._top: Frame | None = None
        self._ready: deque[tuple[Frame, GraphNode]] = deque()
        self._waits: dict[str, tuple[Frame, GraphNode]] = {}  # node runs that wait, by key
        self._to_start: list[tuple[Frame, Callable[[], Awaitable[None]]]] = []
        self._in_flight = 0
        self._changed: anyio.Event | None = None
        self._is_woken = False
        self._bytes = row.input_bytes  # with all outputs
        self._share: Share | None = None
        self._large: dict[str, Loaded] = {}  # the large ones of the stored values, by node
        self._failure: dict[str, Json] | None = None
        self._scope: anyio.CancelScope | None = None
        self._cancelled = row.cancel_requested
        self._interrupted = False
        self._is_late = False
        self._fatal: StackdError | None = None
        self._deadline = _deadline(graph, row)

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
        return self._changed is not None and bool(self._waits)

    def wake(self) -> None:
        """Something happened to the execution: look for waits that have ended."""
        self._is_woken = True
        self._note_change()

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

    def _note_change(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def execute(self, share: Share) -> None:
        """Run until the execution rests: final, waiting, uncertain, or given back.

        Args:
            share: of memory; grows with large outputs.

        Raises:
            LeaseLostError: a newer claim owns it; nothing more was written.
            StoreFailedError: the store has stopped.
        """
        self._share = share
        try:
            while True:
                await self._read_journal()
                if not (self._cancelled or self._interrupted):
                    with anyio.CancelScope() as self._scope:
                        await self._advance(await self._read_values())
                    # Cut off from outside during a shielded write, `_advance` returns as if all were done.
                    await anyio.lowlevel.checkpoint_if_cancelled()
                if self._fatal is not None:
                    raise self._fatal
                if await self._settle():
                    return
                await self._reread()
        finally:
            await self._free_values()

    async def _read_journal(self) -> None:
        """Read the node runs of the graph itself; those inside of a loop are read when it goes on."""
        if self._is_fresh:
            return
        seq, keys = self.seq, self._graph.order
        nodes, size = await self._tools.store.read(
            lambda tx: (
                executions.node_rows_of(tx, seq, keys),
                executions.outputs_bytes(tx, seq),
            )
        )
        self._journal.rows = {node.key: node for node in nodes}
        self._bytes = self._row.input_bytes + size
        self._check_size()

    def _check_size(self) -> None:
        """Fail if what called executions gave, which nobody weighed before, makes it too large."""
        limit = self._tools.limits.execution
        if self._bytes > limit:
            message = f"its outputs are {self._bytes} bytes, over the limit of {limit}"
            self._failure = self._failure or {"code": "execution.too_large", "message": message}

    # -- moving through the graph

    async def _advance(self, roots: dict[str, Json]) -> None:
        if self._is_over_time():
            return
        self._begin_graph(roots)
        await self._take_up_ready()
        if not (self._to_start or self._has_ready):  # nothing but pure nodes: no task to wait for
            return
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                if self._is_woken:
                    await self._look_at_waits()
                await self._take_up_ready()
                self._start_tasks(tasks)
                if self._has_ready:
                    if self._is_over_time():
                        self._stop()
                    await anyio.lowlevel.checkpoint()
                elif self._in_flight == 0:
                    return
                else:
                    await self._wait_for_change(self._changed)

    def _start_tasks(self, tasks: TaskGroup) -> None:
        for frame, work in self._to_start:
            if frame.is_stopped:
                continue
            self._in_flight += 1
            for loop in frame.loops:
                loop.in_flight += 1
            tasks.start_soon(self._run_task, frame, work)
        self._to_start.clear()

    def _is_over_time(self) -> bool:
        if self._deadline is not None and self._tools.clock.time() >= self._deadline:
            self._is_late = True
        return self._is_late

    async def _look_at_waits(self) -> None:
        """Take up the nodes whose wait has ended beside this run: a timer fired, a called execution ended."""
        self._is_woken = False
        try:
            await self._journal.flush()
            keys = list(self._waits)
            async with (
                self._journal.writing
            ):  # what is read is then not older than what is known here
                row, nodes = await self._tools.store.read(
                    lambda tx: (
                        executions.get(tx, self._row.id),
                        executions.node_rows_of(tx, self.seq, keys),
                    )
                )
        except StackdError as error:
            self._end_at_once(error)
            return
        self._row = row
        await self._read_large(nodes)
        for node in nodes:
            if node.key not in self._waits or self._journal.is_unwritten(node.key):
                continue
            if node.status not in (NodeStatus.WAITING, NodeStatus.RUNNING):
                self._journal.rows[node.key] = node
                self._weigh(len(node.output or b""))
                self._ready.append(self._waits.pop(node.key))
        self._check_size()

    async def _wait_for_change(self, changed: anyio.Event) -> None:
        """Return when something happened; meanwhile write what must not wait, and mind the deadline."""
        clock, flush_at = self._tools.clock, self._journal.flush_at
        until_flush = float("inf") if flush_at is None else flush_at - clock.monotonic()
        until_late = float("inf") if self._deadline is None else self._deadline - clock.time()
        wait = min(until_flush, until_late)
        if wait == float("inf"):
            await changed.wait()
        elif not await clock.wait(changed, max(wait, 0.0)):
            if until_late <= until_flush:
                self._is_late = True
                self._stop()
            else:
                await self._flush_or_end()

    async def _flush_or_end(self) -> None:
        try:
            await self._journal.flush()
        except StackdError as error:
            self._end_at_once(error)

    async def _take_up_ready(self) -> None:
        """Run pure nodes that are ready, for a share of time, and put the others down to be started."""
        clock = self._tools.clock
        until = clock.monotonic() + LOOP_SHARE
        while self._has_ready and clock.monotonic() <= until:
            frame, node = self._ready.popleft()
            if not frame.is_stopped:
                self._offer(frame, node)
            if self._journal.is_heavy:
                await self._flush_or_end()

    @property
    def _has_ready(self) -> bool:
        return bool(self._ready) and self._failure is None

    def _begin_graph(self, roots: dict[str, Json]) -> None:
        self._ready.clear()
        self._waits.clear()
        members = self._graph.reachable(self._row.trigger_node)
        frame = self._top = Frame(self._graph, members, roots)
        trigger = self._graph.nodes[self._row.trigger_node]
        if trigger.id not in self._journal.rows:
            at = self._row.created_at
            row = _row(trigger, trigger.id, NodeStatus.COMPLETED, 1, started_at=at, finished_at=at)
            self._journal.record(row)
        self._pass_on(frame, trigger, NodeStatus.COMPLETED, takes_success=True)

    def _offer(self, frame: Frame, node: GraphNode) -> None:
        """Take up a node whose in-edges are decided: from the journal if it is there, else by running it."""
        row = self._journal.rows.get(frame.key(node))
        match row.status if row is not None else None:
            case NodeStatus.COMPLETED:
                assert row is not None  # noqa: S101  # for the type checker
                frame.roots[node.id] = self._stored_output(row)
                self._pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)
            case NodeStatus.FAILED:
                assert row is not None  # noqa: S101  # for the type checker
                self._after_failure(frame, node, row)
            case NodeStatus.SKIPPED:
                frame.roots[node.id] = None
                self._pass_on(frame, node, NodeStatus.SKIPPED, takes_success=True)
            case NodeStatus.WAITING:
                self._waits[frame.key(node)] = frame, node
            case NodeStatus.UNCERTAIN:
                pass
            case NodeStatus.RUNNING if row is not None and row.effect == Effect.UNSAFE.value:
                self._leave_uncertain(row, CUT_OFF)
            case _:
                self._start(frame, node, row)

    def _start(self, frame: Frame, node: GraphNode, row: NodeRow | None) -> None:
        now = self._tools.clock.time()
        row = row or _row(node, frame.key(node), NodeStatus.PENDING, 0, started_at=now)
        if node.disabled:
            frame.roots[node.id] = None
            self._journal.record(
                row._replace(
                    status=NodeStatus.SKIPPED, finished_at=now, metadata=b'{"disabled":true}'
                )
            )
            self._pass_on(frame, node, NodeStatus.SKIPPED, takes_success=True)
        elif node.is_pinned:
            row = row._replace(attempt=1, metadata=b'{"pinned":true}')
            self._complete(frame, node, row, node.pinned)
        elif node.type in PURE_HANDLERS and not node.is_per_item:
            self._run_pure(frame, node, row)
        else:
            self._to_start.append((frame, partial(self._work_of(node), frame, node, row)))

    def _work_of(self, node: GraphNode) -> Callable[[Frame, GraphNode, NodeRow], Awaitable[None]]:
        """What runs a node that takes its time."""
        match node.type:
            case "action.time.delay":
                return self._delay
            case "action.workflow.run":
                return self._call
            case "logic.foreach":
                return self._run_loop
            case _:
                return self._run_per_item if node.is_per_item else self._act

    def _run_pure(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        row = row._replace(attempt=1)
        try:
            params, size = self._render(frame, node, row)
            if size > LARGE:
                work = partial(self._compute_aside, frame, node, row, params)
                self._to_start.append((frame, work))
                return
            output = PURE_HANDLERS[node.type](params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        self._complete(frame, node, row, output)

    async def _compute_aside(
        self, frame: Frame, node: GraphNode, row: NodeRow, params: dict[str, Json]
    ) -> None:
        """Compute a pure node whose parameters are large, where that holds up nobody."""
        try:
            output = await aside(PURE_HANDLERS[node.type], params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        await self._complete_aside(frame, node, row, output)

    async def _run_per_item(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Run a node that evaluates an expression for each item of a list, letting others have their turn."""
        row = row._replace(attempt=1)
        try:
            params, size = self._render(frame, node, row)
            evaluation = Evaluation(node, self._scope_of(frame, row), params["items"])
            while not evaluation.proceed(for_seconds=LOOP_SHARE, clock=self._tools.clock):
                await anyio.lowlevel.checkpoint()
            params |= evaluation.params
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        if size + evaluation.size > LARGE:
            await self._compute_aside(frame, node, row, params)
            return
        try:
            output = PURE_HANDLERS[node.type](params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        self._complete(frame, node, row, output)

    async def _run_task(self, frame: Frame, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StackdError as error:
            self._end_at_once(error)
        finally:
            self._in_flight -= 1
            for loop in frame.loops:
                loop.in_flight -= 1
                self._close_if_failed(loop)
            self._note_change()

    def _end_at_once(self, error: StackdError) -> None:
        """The lease or the store is gone: no further effect, no further write."""
        self._fatal = self._fatal or error
        self._stop()

    async def _delay(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        started_at = row.started_at or self._tools.clock.time()
        row = row._replace(attempt=1, started_at=started_at)
        try:
            params, _ = self._render(frame, node, row)
            due_at, output = delay_until(params, now=started_at)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        left = due_at - self._tools.clock.time()
        if left > INLINE_WAIT:
            self._let_wait(frame, node, row)
            self._journal.set_timer(row.key, due_at, dumps(output))
            return
        await self._tools.clock.sleep(max(left, 0.0))
        self._complete(frame, node, row, output)

    def _let_wait(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        self._journal.record(row._replace(status=NodeStatus.WAITING))
        self._waits[row.key] = frame, node

    # -- loops

    async def _run_loop(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Begin a loop or go on with it: its iterations then follow each other by themselves."""
        was_begun = row.attempt > 0
        row = row._replace(status=NodeStatus.RUNNING, attempt=1)
        try:
            params, _ = self._render(frame, node, row)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        self._journal.record(row)
        collects = node.settings.get("collect") is not False
        at_once = params.get("concurrency", 1)
        loop = Loop(frame, node, row, params["items"], at_once, collects, was_begun=was_begun)
        if was_begun:
            done = await self._tools.store.read(
                lambda tx: executions.loop_items(tx, self.seq, row.key)
            )
            for index, output in done.items():
                loop.finish(index, output)
        iterations = list(islice(iter(loop.begin_next, None), at_once))
        if was_begun:
            await self._read_iterations(iterations)
        if loop.failure is None:
            for iteration in iterations:
                self._begin_iteration(iteration)
        if loop.is_over:
            self._end_loop(loop)

    async def _read_iterations(self, frames: list[Frame]) -> None:
        """Read the iterations that have begun before: they begin in order, so it can only be the first ones.

        One that has failed ends the loop before any other goes on.
        """
        keys = [key for frame in frames for key in frame.keys]
        nodes = await self._tools.store.read(lambda tx: executions.node_rows_of(tx, self.seq, keys))
        await self._read_large(nodes)
        rows = self._journal.rows
        rows |= {node.key: node for node in nodes}
        for frame in frames:
            for node in map(frame.graph.nodes.__getitem__, frame.members):
                row = rows.get(frame.key(node))
                if row and row.status is NodeStatus.FAILED and node.on_error == "fail":
                    self._after_failure(frame, node, row)

    def _begin_iteration(self, frame: Frame) -> None:
        self._ready.extend((frame, frame.graph.nodes[key]) for key in frame.graph.starts)

    def _end_iteration(self, frame: Frame, loop: Loop) -> None:
        if loop.failure is not None:
            return
        try:
            output = self._collected(loop, frame)
        except Exception as error:  # noqa: BLE001  # fails the loop
            self._fail_loop(loop, frame.index, _foreseen(error, loop.key))
            return
        loop.finish(frame.index, output)
        self._journal.finish_item(loop.key, frame.index, output, frame.keys)
        if loop.output_bytes > self._tools.limits.output:
            whole = _too_large(loop.key, "output", loop.output_bytes, self._tools.limits.output)
            whole.message += "; set collect to what is needed of each item, or to false"
            self._fail_loop(loop, frame.index, whole)
        elif loop.is_over:
            self._end_loop(loop)
        elif (following := loop.begin_next()) is not None:
            self._begin_iteration(following)

    def _collected(self, loop: Loop, frame: Frame) -> bytes | None:
        """What an iteration gives, as JSON text."""
        if not loop.collects:
            return None
        wanted = loop.node.per_item.get("collect")
        if wanted is None:
            return _joined(self._ends(frame))
        seed = f"{self._row.id}:{loop.key}[{frame.index}]"
        return dumps(wanted.render(Scope(frame.roots, now=self._started_at(loop.row), seed=seed)))

    def _end_loop(self, loop: Loop) -> None:
        self._to_start.append((loop.frame, partial(self._complete_loop, loop)))

    async def _complete_loop(self, loop: Loop) -> None:
        text = loop.output()
        value = await aside_if(len(text) > LARGE, loads, text)
        self._note_output(loop.frame, loop.node, loop.row, value, text)
        if len(loop.items) <= ITEMS_DROPPED:
            self._journal.end_loop(loop.key)
        else:
            await self._journal.end_large_loop(loop.key, len(loop.items))

    def _fail_loop(self, loop: Loop, index: int, error: StackdError) -> None:
        loop.failure = loop.failure or (error.code, f"item {index}: {error.message}")
        self._close_if_failed(loop)

    def _close_if_failed(self, loop: Loop) -> None:
        """End a failed loop once nothing of it is in flight."""
        if loop.failure is None or loop.is_closing or loop.in_flight:
            return
        loop.is_closing = True
        self._to_start.append((loop.frame, partial(self._close_loop, loop)))

    async def _close_loop(self, loop: Loop) -> None:
        """End a failed loop with all that is open in it, unless a person has to decide about a part of it."""
        assert loop.failure is not None  # noqa: S101  # it has failed
        if loop.was_begun:
            await self._recall_open(loop.key)
        rows = self._journal.rows
        inside = [row for key, row in rows.items() if key.startswith(f"{loop.key}[")]
        if any(row.status is NodeStatus.UNCERTAIN for row in inside):
            return
        now = self._tools.clock.time()
        for row in inside:
            if row.status in ENDED:
                continue
            self._journal.record(row._replace(status=NodeStatus.SKIPPED, finished_at=now))
            self._waits.pop(row.key, None)
            if row.type == executions.CALL and row.status is NodeStatus.WAITING:
                self._journal.give_up_call(row.key)
        self._journal.forget(row.key for row in inside)
        if loop.node.on_error != "fail":  # else a person may let the execution go on from here
            self._journal.end_loop(loop.key)
        code, message = loop.failure
        error = NodeError(message, kind="loop", code=code, answered=True)
        self._fail(loop.frame, loop.node, loop.row, error)

    async def _recall_open(self, loop: str | None) -> None:
        """Learn what an earlier claim left open where this one has not come to, in a loop or anywhere.

        Nothing of it is in flight now: what is unsafe and was, is uncertain.
        """
        await self._journal.flush()
        nodes = await self._tools.store.read(
            lambda tx: executions.open_node_rows(tx, self.seq, loop=loop)
        )
        for node in nodes:
            row = self._journal.rows.setdefault(node.key, node)
            if row.status is NodeStatus.RUNNING and row.effect == Effect.UNSAFE.value:
                self._leave_uncertain(row, CUT_OFF)

    # -- other workflows

    async def _call(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Start another workflow, in the transaction that says so, and wait for its end if that is wanted."""
        row = row._replace(attempt=1)
        now = self._tools.clock.time()
        called = sortable_id(now)
        try:
            params, _ = self._render(frame, node, row)
            waits = params.get("wait", True)
            new = await self._called(row, params, waits=waits)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        output: Json = {"executionId": called, "workflowId": new.workflow_id}
        row = row._replace(status=NodeStatus.WAITING, metadata=dumps({"executionId": called}))
        if waits:
            self._waits[row.key] = frame, node  # before it is told: it may end at once
        else:
            row = row._replace(
                status=NodeStatus.COMPLETED, output=dumps(output), error=None, finished_at=now
            )

        def change(tx: Tx) -> None:
            self._journal.check_claim(tx)
            self._tools.admission.admit(tx, now=now)
            if not waits:
                tx.emit(self._journal.finished(row))
            executions.start(tx, new, now=now, execution_id=called)
            executions.put_nodes(tx, self.seq, [row])

        self._journal.rows[row.key] = row
        try:
            await self._journal.write(change)
        except (
            BusyError
        ) as error:  # the queue is full: nothing was started, and no worker waits for a place
            self._let_wait(frame, node, row._replace(output=None, metadata=None, finished_at=None))
            self._journal.set_timer(row.key, now + error.retry_after, None)
            return
        if not waits:
            self._weigh(len(row.output or b""))
            frame.roots[node.id] = output
            self._pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)

    async def _called(
        self, row: NodeRow, params: dict[str, Json], *, waits: bool
    ) -> executions.NewExecution:
        if self._row.depth + 1 >= executions.DEEPEST:
            raise NodeError(
                f"over {executions.DEEPEST} workflows in each other: does one call itself?",
                kind="limit",
                code="workflow.too_deep",
            )
        workflow_id = params["workflowId"]
        current = await self._tools.store.read(lambda tx: catalogue.get(tx, workflow_id))
        graph = await self._versions.graph(workflow_id, current.version)
        return executions.NewExecution(
            workflow_id=workflow_id,
            version=current.version,
            trigger_type=executions.CALL,
            trigger_node=graph.trigger_by_hand,
            input=dumps(params.get("input")),
            concurrency=graph.workflow.concurrency,
            parent=self.seq,
            parent_key=row.key if waits else None,
            depth=self._row.depth + 1,
        )

    # -- actions

    async def _act(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Try a node with an effect until it is done, has failed, waits, or nobody knows."""
        try:
            params, size = self._render(frame, node, row)
            text = await aside_if(size > LARGE, dumps, params)
            row = self._with_identity(frame, node, row, text)
        except Exception as error:  # noqa: BLE001  # fails its node
            row = row._replace(attempt=row.attempt + 1)
            self._fail(frame, node, row, _foreseen(error, row.key))
            return
        if row.status is NodeStatus.UNCERTAIN:
            self._leave_uncertain(row, "its input differs from the one sent before the restart")
            return
        retry = _retry(node)
        while True:
            row = row._replace(attempt=row.attempt + 1, status=NodeStatus.RUNNING)
            failure = await self._try_once(frame, node, row, params, is_large=size > LARGE)
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
                    await self._journal.flush()
                    return
                case GiveUp():
                    self._fail(frame, node, row, failure)
                    await self._journal.flush()
                    return
                case Again(wait):
                    self._tools.events.emit(
                        NodeRetried(self._row.id, row.key, row.attempt, failure.code, wait)
                    )
                    row = row._replace(status=NodeStatus.PENDING, error=_error(failure))
                    if wait > INLINE_WAIT:  # a timer offers the node again
                        self._let_wait(frame, node, row)
                        due_at = self._tools.clock.time() + wait
                        self._journal.set_timer(row.key, due_at, None)
                        return
                    self._journal.record(row)
                    await self._tools.clock.sleep(wait)

    async def _try_once(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        *,
        is_large: bool,
    ) -> NodeError | None:
        """One try. None if it completed; what failed otherwise."""
        events, execution_id = self._tools.events, self._row.id
        context = NodeContext(
            clock=self._tools.clock,
            http=self._tools.http,
            blobs=self._tools.blobs,
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
                self._journal.record(row)
                await self._journal.flush()
                context.send_before = began_at + self._tools.send_within
            events.emit(NodeStarted(execution_id, row.key, row.attempt))
            output = await self._handle(node, params, context)
        except NodeError as error:
            return error
        except anyio.get_cancelled_exc_class():
            self._note_interruption(node, row, sent=context.sent)
            raise
        if context.is_large:
            await self._complete_aside(frame, node, row, output)
        else:
            self._complete(frame, node, row, output)
        if node.effect is not Effect.READ:
            await self._journal.flush()
        return None

    async def _handle(self, node: GraphNode, params: dict[str, Json], context: NodeContext) -> Json:
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
            self._journal.record(row._replace(status=NodeStatus.PENDING, attempt=tried))

    def _timeout(self, node: GraphNode, params: dict[str, Json]) -> float:
        """Seconds: the smaller of what the node and its parameters name, else the default."""
        own = params.get("timeoutMs")
        named = [] if node.timeout is None else [node.timeout]
        if isinstance(own, int | float) and not isinstance(own, bool):
            named.append(own / 1000)
        return min(named, default=NODE_TIMEOUT)

    # -- what a node run became

    def _complete(self, frame: Frame, node: GraphNode, row: NodeRow, output: Json) -> None:
        self._note_output(frame, node, row, output, _text_of(output))

    async def _complete_aside(
        self, frame: Frame, node: GraphNode, row: NodeRow, output: Json
    ) -> None:
        """As `_complete`, for an output that may be large. It is here: no cancel may lose it any more."""
        with anyio.CancelScope(shield=True):
            text = await aside(_text_of, output)
        self._note_output(frame, node, row, output, text)

    def _weigh(self, output_bytes: int) -> None:
        """Count one more output."""
        self._bytes += output_bytes
        if output_bytes > LARGE and self._share is not None:
            self._share.grow(executions.OUTPUT_WEIGHT * output_bytes)

    def _note_output(
        self, frame: Frame, node: GraphNode, row: NodeRow, output: Json, text: bytes | TypeError
    ) -> None:
        if isinstance(text, TypeError):
            self._fail(frame, node, row, _unusable(row.key, text))
            return
        limits = self._tools.limits
        if len(text) > limits.output:
            error = _too_large(row.key, "output", len(text), limits.output)
            self._fail(frame, node, row, error)
            return
        whole = self._bytes + len(text)
        if whole > limits.execution:
            error = _too_large(row.key, "execution", whole, limits.execution)
            self._fail(frame, node, row, error)
            return
        self._weigh(len(text))
        now = self._tools.clock.time()
        frame.roots[node.id] = output
        self._journal.record(
            row._replace(status=NodeStatus.COMPLETED, output=text, error=None, finished_at=now)
        )
        self._pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)

    def _fail(self, frame: Frame, node: GraphNode, row: NodeRow, error: StackdError) -> None:
        now = self._tools.clock.time()
        row = row._replace(
            status=NodeStatus.FAILED, error=_error(error), output=None, finished_at=now
        )
        self._journal.record(row)
        self._after_failure(frame, node, row)

    def _after_failure(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        error: dict[str, Json] = loads(row.error) if row.error else {}
        if node.on_error != "fail":
            frame.roots[node.id] = {"error": error}
            takes_success = node.on_error == "continue"
            self._pass_on(frame, node, NodeStatus.FAILED, takes_success=takes_success)
        elif frame.loop is None:
            self._failure = self._failure or {**error, "nodeId": row.key}
        else:
            cause = StackdError(f"{node.id}: {error.get('message')}", code=error.get("code"))
            self._fail_loop(frame.loop, frame.index, cause)

    def _leave_uncertain(self, row: NodeRow, why: str) -> None:
        self._journal.record(
            row._replace(
                status=NodeStatus.UNCERTAIN,
                error=dumps({"code": "node.uncertain", "message": _kept(why)}),
            )
        )

    def _pass_on(
        self, frame: Frame, node: GraphNode, status: NodeStatus, *, takes_success: bool
    ) -> None:
        """Decide the out-edges of a node that ended, and whatever that decides further on."""
        is_success = takes_success or status is not NodeStatus.FAILED
        taken = [
            is_success if edge.is_plain else self._is_taken(frame, edge, is_success=is_success)
            for edge in node.out_edges
        ]
        ready, skipped = frame.end(node, taken)
        for one in ready:
            self._ready.append((frame, one))
        for one in skipped:
            key = frame.key(one)
            if key not in self._journal.rows:
                now = self._tools.clock.time()
                row = _row(one, key, NodeStatus.SKIPPED, 0, started_at=now, finished_at=now)
                self._journal.record(row)
        if frame.open == 0 and frame.loop is not None:
            self._end_iteration(frame, frame.loop)

    def _is_taken(self, frame: Frame, edge: GraphEdge, *, is_success: bool) -> bool:
        if edge.never or not self._is_meant(frame, edge, is_success=is_success):
            return False
        if edge.when is None:
            return True
        seed = f"{self._row.id}:{frame.prefix}{edge.source}->{edge.target}"
        scope = Scope(frame.roots, now=self._row.created_at, seed=seed)
        try:
            return bool(evaluate(edge.when, scope))
        except Exception as error:  # noqa: BLE001  # fails the node it leads from
            name = f"edge {edge.source} → {edge.target}"
            ours = _foreseen(error, name)
            message = f"{name}: {ours.message}"
            if frame.loop is not None:
                self._fail_loop(frame.loop, frame.index, StackdError(message, code=ours.code))
                return False
            self._failure = self._failure or {
                "code": ours.code,
                "message": _kept(message),
                "nodeId": edge.source,
            }
            return False

    def _is_meant(self, frame: Frame, edge: GraphEdge, *, is_success: bool) -> bool:
        """Whether `on` of the edge is how its source ended."""
        match edge.on:
            case "error":
                return not is_success
            case "success":
                return is_success
            case case:
                output = frame.roots.get(edge.source)
                return isinstance(output, dict) and output.get("case") == case

    # -- values

    async def _read_values(self) -> dict[str, Json]:
        """What expressions see at first: what the trigger gave. Large outputs in the journal are read too."""
        row, given = self._row, self._row.trigger_node
        await self._read_large(self._journal.rows.values())
        if row.input is not None:
            return self._fixed_roots(loads(row.input))
        if given not in self._large:
            text = await self._tools.store.read(lambda tx: executions.input_of(tx, row))
            self._large[given] = await aside(load, text)
        return self._fixed_roots(self._large[given].value)

    async def _read_large(self, nodes: Iterable[NodeRow]) -> None:
        for node in nodes:
            if node.output is not None and len(node.output) > LARGE and node.key not in self._large:
                self._large[node.key] = await aside(load, node.output)

    async def _free_values(self) -> None:
        if self._top is not None:
            self._top.roots.clear()
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
            "workflow": {
                "id": row.workflow_id,
                "name": workflow.name or row.workflow_id,
                "version": row.version,
            },
            "vars": dict(workflow.vars),
        }

    def _scope_of(self, frame: Frame, row: NodeRow) -> Scope:
        return Scope(frame.roots, now=self._started_at(row), seed=f"{self._row.id}:{row.key}")

    def _started_at(self, row: NodeRow) -> float:
        return row.started_at or self._row.created_at

    def _render(self, frame: Frame, node: GraphNode, row: NodeRow) -> tuple[dict[str, Json], int]:
        """The node's parameters, and about how many bytes of JSON were filled in."""
        scope = self._scope_of(frame, row)
        params = node.render(scope)
        if node.type.startswith("logic."):
            params = evaluated(node, scope, params, frame)
        return params, scope.budget.charged

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
            return _default_key(self._row.id, frame, node)
        seed = f"{self._row.id}:{row.key}:key"
        key = node.idempotency_key.render(Scope(frame.roots, now=row.started_at or 0.0, seed=seed))
        if not isinstance(key, str | int) or key == "":
            raise NodeError(
                f"idempotencyKey of {node.id} is no text", kind="invalid", code="node.bad_key"
            )
        return str(key)

    def _stored_output(self, row: NodeRow) -> Json:
        if row.key in self._large:
            return self._large[row.key].value
        return loads(row.output) if row.output is not None else None

    # -- coming to rest

    async def _settle(self) -> bool:
        """Write the resting state and end the claim; False if something happened that must be looked at first."""
        if self._interrupted and not (self._cancelled or self._is_late):
            await self._journal.write(self._give_back)
            return True
        if self._is_late:
            self._failure = self._late()
        if self._failure is not None and not (self._is_fresh or self._cancelled):
            await self._recall_open(None)
        status = self._resting_status()
        return await self._journal.write(lambda tx: self._rest(tx, status))

    def _late(self) -> dict[str, Json]:
        limit = self._graph.workflow.timeout_ms or 0
        return {"code": "execution.timeout", "message": f"not over within {limit / 1000:g} s"}

    def _resting_status(self) -> ExecutionStatus:
        states = {node.status for node in self._journal.rows.values()}
        if self._cancelled:
            return ExecutionStatus.CANCELLED
        if NodeStatus.UNCERTAIN in states:
            return ExecutionStatus.UNCERTAIN
        if self._failure is not None:
            return ExecutionStatus.FAILED
        if NodeStatus.WAITING in states:
            return ExecutionStatus.WAITING
        if self._top is None or self._top.open:
            raise AssertionError("a node is neither ended nor waiting, and nothing runs it")
        return ExecutionStatus.COMPLETED

    def _give_back(self, tx: Tx) -> None:
        self._end_job(tx, Snooze(0.0))
        executions.cancel_if_asked(tx, self.seq, now=self._tools.clock.time())

    def _end_job(self, tx: Tx, outcome: Complete | Snooze) -> None:
        now = self._tools.clock.time()
        policy = self._tools.job_retry
        if verbs.settle(tx, self._job, outcome, now=now, policy=policy, roll=0.0) is None:
            raise self._journal.lease_lost()

    def _rest(self, tx: Tx, status: ExecutionStatus) -> bool:
        if status in (ExecutionStatus.WAITING, ExecutionStatus.UNCERTAIN):
            wakes, cancel_requested = executions.look(tx, self.seq)
            if cancel_requested:
                status = ExecutionStatus.CANCELLED
            elif wakes != self._row.wakes:
                self._journal.check_claim(tx)
                return False
        self._end_job(tx, Complete())
        if status is ExecutionStatus.WAITING:
            if self._deadline is not None:
                key, due_at = executions.DEADLINE, self._deadline
                executions.add_timer(tx, self._row, key, due_at=due_at, output=None)
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
        limit = self._tools.limits.output
        executions.end(tx, self._row, status, output=output, error=error, now=now, limit=limit)

    def _uncertainty(self) -> bytes:
        nodes = self._journal.rows.values()
        node = next(n for n in nodes if n.status is NodeStatus.UNCERTAIN)
        error: dict[str, Json] = loads(node.error) if node.error else {"code": "node.uncertain"}
        return dumps({**error, "nodeId": node.key})

    def _output(self, tx: Tx) -> bytes:
        """Of the single completed node without a taken out-edge, else a map by node id; JSON."""
        assert self._top is not None  # noqa: S101  # it has completed
        texts = self._ends(self._top)
        if self._row.trigger_node in texts:
            texts[self._row.trigger_node] = executions.input_of(tx, self._row)
        return _joined(texts)

    def _ends(self, frame: Frame) -> dict[str, bytes]:
        """The outputs of the completed nodes without a taken out-edge, by node id, as JSON texts."""
        rows = self._journal.rows
        return {
            key: row.output or b"null"
            for key in frame.graph.order
            if key in frame.members
            and key not in frame.led_on
            and (row := rows[frame.prefix + key]).status is NodeStatus.COMPLETED
        }

    async def _reread(self) -> None:
        """Look again at the store: a wait ended, or a person decided, while this run was about to rest."""
        self._row = await self._tools.store.read(lambda tx: executions.get(tx, self._row.id))
        self._is_fresh = False
        self._failure = None
        self._cancelled = self._row.cancel_requested


def _deadline(graph: Graph, row: ExecutionRow) -> float | None:
    """When the execution is to be over, in epoch seconds; None: it may take its time."""
    limit = graph.workflow.timeout_ms
    return None if limit is None or row.started_at is None else row.started_at + limit / 1000


def _default_key(execution_id: str, frame: Frame, node: GraphNode) -> str:
    """`<execution>:<node>`, and in loops the numbers of the iterations, the outermost first."""
    numbers: list[str] = []
    inside: Frame | None = frame
    while inside is not None and inside.loop is not None:
        numbers.append(str(inside.index))
        inside = inside.loop.frame
    return ":".join([execution_id, node.id, *reversed(numbers)])


def _joined(ends: dict[str, bytes]) -> bytes:
    """The output of the single end, else a map by node id; JSON."""
    if len(ends) == 1:
        return next(iter(ends.values()))
    return b"{" + b",".join(dumps(key) + b":" + text for key, text in ends.items()) + b"}"


def _row(
    node: GraphNode,
    key: str,
    status: NodeStatus,
    attempt: int,
    *,
    started_at: float,
    finished_at: float | None = None,
) -> NodeRow:
    return NodeRow(
        key, node.type, status, attempt, node.effect.value,
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
