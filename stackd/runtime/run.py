"""One claimed execution, from its journal to its next resting state.

The journal is the node runs in the store. A node that is not finished there is offered again after a crash,
by the rules of its effect class: an intent row is on disk before the first byte leaves, a result is on disk
before anything with an effect builds on it. Every write is fenced: once a newer claim owns the job, the
first write says so and the run ends without another effect.

Here is the life of the run: what it reads at first, whose turn it is, and how it rests. What becomes of its nodes
is in `node_runs`; what runs those that take their time is in `loops`, `calls`, `waits` and `actions`.
"""

from __future__ import annotations

from functools import cached_property

import anyio
from anyio.abc import TaskGroup

from stackd.core.budget import Share
from stackd.core.errors import StackdError
from stackd.core.json import Json, dumps, loads
from stackd.queue import verbs
from stackd.queue.job import Complete, Job, Snooze
from stackd.runtime.actions import Actions
from stackd.runtime.calls import Calls
from stackd.runtime.frame import Frame, joined
from stackd.runtime.journal import Journal
from stackd.runtime.loops import Loops
from stackd.runtime.node_runs import LOOP_SHARE, NodeRuns, NodeWork, Work
from stackd.runtime.tools import Tools
from stackd.runtime.values import Values
from stackd.runtime.versions import Versions
from stackd.runtime.waits import Waits
from stackd.store.connection import Tx
from stackd.workflows import executions, why
from stackd.workflows.executions import ExecutionRow, ExecutionStatus, NodeRow, NodeStatus
from stackd.workflows.graph import Graph, GraphNode


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
        self._values = Values(tools, graph, row, self._journal.secrets)
        self._node_runs = NodeRuns(tools, row, self._journal, self._values, work_of=self._work_of)
        self._is_fresh = job.fence == 1 and row.wakes == 0  # nothing can stand in the journal yet
        self._top: Frame | None = None
        self._in_flight = 0
        self._changed: anyio.Event | None = None
        self._is_woken = False
        self._scope: anyio.CancelScope | None = None
        self._cancelled = row.cancel_requested
        self._interrupted = False
        self._is_late = False
        self._fatal: StackdError | None = None
        self._deadline = _deadline(graph, row)

    # Made when they are needed: most executions have no loop, and many have nothing but pure nodes.

    @cached_property
    def _loops(self) -> Loops:
        return Loops(self._tools, self.seq, self._journal, self._values, self._node_runs)

    @cached_property
    def _calls(self) -> Calls:
        return Calls(
            self._tools, self._versions, self._row, self._journal, self._values, self._node_runs
        )

    @cached_property
    def _actions(self) -> Actions:
        return Actions(self._tools, self._row.id, self._journal, self._values, self._node_runs)

    @cached_property
    def _waits(self) -> Waits:
        return Waits(self._tools, self._journal, self._values, self._node_runs)

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
        return self._changed is not None and bool(self._node_runs.waits)

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
        self._values.share = share
        try:
            while True:
                await self._read_journal()
                if not (self._cancelled or self._interrupted):
                    with anyio.CancelScope() as self._scope:
                        await self._advance(await self._values.read(self._journal.rows.values()))
                    # Cut off from outside during a shielded write, `_advance` returns as if all were done.
                    await anyio.lowlevel.checkpoint_if_cancelled()
                if self._fatal is not None:
                    raise self._fatal
                if await self._settle():
                    return
                await self._reread()
        finally:
            if self._top is not None:
                self._top.roots.clear()
            await self._values.free()

    async def _read_journal(self) -> None:
        """Read the node runs of the graph itself; those inside of a loop are read when it goes on."""
        if self._is_fresh:
            return
        seq, keys = self.seq, self._graph.order

        def read(tx: Tx) -> tuple[list[NodeRow], int]:
            nodes = executions.node_rows_of(tx, seq, keys)
            size = executions.all_outputs_bytes(tx, seq, nodes)
            return self._journal.secrets.opened_rows(tx, nodes), size

        nodes, size = await self._tools.store.read(read)
        self._journal.rows = {node.key: node for node in nodes}
        self._values.total_bytes = self._row.input_bytes + size
        self._check_size()

    def _check_size(self) -> None:
        """Fail if what called executions gave, which nobody weighed before, makes it too large."""
        limit = self._tools.limits.execution
        size = self._values.total_bytes
        if size > limit:
            message = f"its outputs are {size} bytes, over the limit of {limit}"
            failure: dict[str, Json] = {"code": "execution.too_large", "message": message}
            self._node_runs.failure = self._node_runs.failure or failure

    # -- moving through the graph

    async def _advance(self, roots: dict[str, Json]) -> None:
        if self._is_over_time():
            return
        members = self._graph.reachable(self._row.trigger_node)
        self._top = Frame(self._graph, members, roots)
        self._node_runs.begin(self._top)
        await self._take_up_ready()
        if not (self._node_runs.to_start or self._node_runs.has_ready):
            return  # nothing but pure nodes: no task to wait for
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                if self._is_woken:
                    await self._look_at_waits()
                await self._take_up_ready()
                self._start_tasks(tasks)
                if self._node_runs.has_ready:
                    if self._is_over_time():
                        self._stop()
                    await anyio.lowlevel.checkpoint()
                elif self._in_flight == 0:
                    return
                else:
                    await self._wait_for_change(self._changed)

    def _start_tasks(self, tasks: TaskGroup) -> None:
        for frame, work in self._node_runs.to_start:
            if frame.is_stopped:
                continue
            self._in_flight += 1
            for loop in frame.loops:
                loop.in_flight += 1
            tasks.start_soon(self._run_task, frame, work)
        self._node_runs.to_start.clear()

    def _is_over_time(self) -> bool:
        if self._deadline is not None and self._tools.clock.time() >= self._deadline:
            self._is_late = True
        return self._is_late

    async def _look_at_waits(self) -> None:
        """Take up the nodes whose wait has ended beside this run: a timer fired, a called execution ended."""
        self._is_woken = False
        try:
            await self._journal.flush()
            keys = list(self._node_runs.waits)
            async with (
                self._journal.writing
            ):  # what is read is then not older than what is known here
                row, nodes = await self._tools.store.read(
                    lambda tx: (
                        executions.get(tx, self._row.id),
                        self._journal.secrets.opened_rows(
                            tx, executions.node_rows_of(tx, self.seq, keys)
                        ),
                    )
                )
        except StackdError as error:
            self._end_at_once(error)
            return
        self._row = row
        await self._values.read_large(nodes)
        waits = self._node_runs.waits
        for node in nodes:
            if node.key not in waits or self._journal.is_unwritten(node.key):
                continue
            if node.status not in (NodeStatus.WAITING, NodeStatus.RUNNING):
                self._journal.rows[node.key] = node
                self._values.weigh(len(node.output or b""))
                self._node_runs.ready.append(waits.pop(node.key))
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
        clock, node_runs = self._tools.clock, self._node_runs
        until = clock.monotonic() + LOOP_SHARE
        while node_runs.has_ready and clock.monotonic() <= until:
            frame, node = node_runs.ready.popleft()
            if not frame.is_stopped:
                node_runs.offer(frame, node)
            if self._journal.is_heavy:
                await self._flush_or_end()

    def _work_of(self, node: GraphNode) -> NodeWork:
        """What runs a node that takes its time."""
        match node.type:
            case "action.time.delay":
                return self._waits.delay
            case "action.wait.webhook":
                return self._waits.for_call
            case "action.workflow.run":
                return self._calls.run
            case "logic.foreach":
                return self._loops.run
            case _:
                return self._node_runs.run_per_item if node.is_per_item else self._actions.run

    async def _run_task(self, frame: Frame, work: Work) -> None:
        try:
            await work()
        except StackdError as error:
            self._end_at_once(error)
        finally:
            self._in_flight -= 1
            for loop in frame.loops:
                loop.in_flight -= 1
                self._loops.close_if_failed(loop)
            self._note_change()

    def _end_at_once(self, error: StackdError) -> None:
        """The lease or the store is gone: no further effect, no further write."""
        self._fatal = self._fatal or error
        self._stop()

    # -- coming to rest

    async def _settle(self) -> bool:
        """Write the resting state and end the claim; False if something happened that must be looked at first."""
        if self._interrupted and not (self._cancelled or self._is_late):
            await self._journal.write(self._give_back)
            return True
        if self._is_late:
            self._node_runs.failure = self._late()
        has_failed = self._node_runs.failure is not None
        if has_failed and not (self._is_fresh or self._cancelled):
            await self._loops.recall_open(None)
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
        if self._node_runs.failure is not None:
            return ExecutionStatus.FAILED
        if NodeStatus.WAITING in states:
            return ExecutionStatus.WAITING
        if self._top is None or self._top.open:
            raise AssertionError("a node is neither ended nor waiting, and nothing runs it")
        return ExecutionStatus.COMPLETED

    def _give_back(self, tx: Tx) -> None:
        now = self._tools.clock.time()
        self._end_job(tx, Snooze(0.0))
        words = (
            "the process that ran it was stopped before it was over; another goes on where it was"
        )
        why.note(tx, "job.interrupted", self._row.id, words, now=now)
        executions.cancel_if_asked(tx, self.seq, now=now)

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
                error = dumps(self._node_runs.failure)
            case ExecutionStatus.CANCELLED:
                error = dumps({"code": "execution.cancelled", "message": "cancelled by request"})
            case _:
                error = self._uncertainty()
        secrets = self._journal.secrets
        output = None if output is None else secrets.sealed(tx, output)
        error = None if error is None else secrets.redacted(error)
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
        texts = self._top.ends(self._journal.rows)
        if self._row.trigger_node in texts:
            texts[self._row.trigger_node] = executions.input_of(tx, self._row)
        return joined(texts)

    async def _reread(self) -> None:
        """Look again at the store: a wait ended, or a person decided, while this run was about to rest."""
        self._row = await self._tools.store.read(lambda tx: executions.get(tx, self._row.id))
        self._is_fresh = False
        self._node_runs.failure = None
        self._cancelled = self._row.cancel_requested


def _deadline(graph: Graph, row: ExecutionRow) -> float | None:
    """When the execution is to be over, in epoch seconds; None: it may take its time."""
    limit = graph.workflow.timeout_ms
    return None if limit is None or row.started_at is None else row.started_at + limit / 1000
