"""What becomes of the node runs of one claim, and what that leads on to.

A node whose in-edges are decided is taken up: from the journal if it is there, at once if it is pure, else by a
task. However it ends, that is recorded here and decides its out-edges. What is recorded survives a crash once
the journal is written; where the walk stands does not, and the next claim walks again from the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from stackd.core.aside import aside_if
from stackd.core.errors import StackdError
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.runtime.faults import CUT_OFF, foreseen, kept, stored, too_large, unusable
from stackd.runtime.frame import Frame
from stackd.runtime.journal import Journal
from stackd.runtime.tools import Tools
from stackd.runtime.transforms import PURE_HANDLERS, Evaluation
from stackd.runtime.values import Values
from stackd.workflows.executions import ExecutionRow, NodeRow, NodeStatus
from stackd.workflows.expressions import Scope, evaluate
from stackd.workflows.graph import GraphEdge, GraphNode
from stackd.workflows.nodetypes import Effect

LOOP_SHARE = 0.01  # seconds of pure nodes at a stretch; then others have their turn

Work = Callable[[], Awaitable[None]]
NodeWork = Callable[[Frame, GraphNode, NodeRow], Awaitable[None]]


class NodeRuns:
    """The node runs of one claim. Those that run a node say here what became of it.

    Attributes:
        ready: nodes to be offered.
        waits: node runs that wait for something beside this run, by key.
        to_start: what runs in tasks of their own, each with where it stands.
        failure: what ends the execution; then nothing more is taken up.
    """

    __slots__ = (
        "_journal",
        "_row",
        "_tools",
        "_values",
        "_work_of",
        "failure",
        "ready",
        "to_start",
        "waits",
    )

    def __init__(
        self,
        tools: Tools,
        row: ExecutionRow,
        journal: Journal,
        values: Values,
        *,
        work_of: Callable[[GraphNode], NodeWork],
    ) -> None:
        self._tools = tools
        self._row = row
        self._journal = journal
        self._values = values
        self._work_of = work_of
        self.ready: deque[tuple[Frame, GraphNode]] = deque()
        self.waits: dict[str, tuple[Frame, GraphNode]] = {}
        self.to_start: list[tuple[Frame, Work]] = []
        self.failure: dict[str, Json] | None = None

    @property
    def has_ready(self) -> bool:
        return bool(self.ready) and self.failure is None

    # -- taking up

    def begin(self, frame: Frame) -> None:
        """Walk through the graph from its trigger on."""
        self.ready.clear()
        self.waits.clear()
        trigger = frame.graph.nodes[self._row.trigger_node]
        if trigger.id not in self._journal.rows:
            at = self._row.created_at
            row = _row(trigger, trigger.id, NodeStatus.COMPLETED, 1, started_at=at, finished_at=at)
            self._journal.record(row)
        self.pass_on(frame, trigger, NodeStatus.COMPLETED, takes_success=True)

    def offer(self, frame: Frame, node: GraphNode) -> None:
        """Take up a node whose in-edges are decided: from the journal if it is there, else by running it."""
        row = self._journal.rows.get(frame.key(node))
        match row.status if row is not None else None:
            case NodeStatus.COMPLETED:
                assert row is not None  # noqa: S101  # for the type checker
                frame.roots[node.id] = self._values.output_of(row)
                self.pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)
            case NodeStatus.FAILED:
                assert row is not None  # noqa: S101  # for the type checker
                self.after_failure(frame, node, row)
            case NodeStatus.SKIPPED:
                frame.roots[node.id] = None
                self.pass_on(frame, node, NodeStatus.SKIPPED, takes_success=True)
            case NodeStatus.WAITING:
                self.waits[frame.key(node)] = frame, node
            case NodeStatus.UNCERTAIN:
                pass
            case NodeStatus.RUNNING if row is not None and row.effect == Effect.UNSAFE.value:
                self.leave_uncertain(row, CUT_OFF)
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
            self.pass_on(frame, node, NodeStatus.SKIPPED, takes_success=True)
        elif node.is_pinned:
            row = row._replace(attempt=1, metadata=b'{"pinned":true}')
            self.complete(frame, node, row, node.pinned)
        elif node.type in PURE_HANDLERS and not node.is_per_item:
            self._run_pure(frame, node, row)
        else:
            self.to_start.append((frame, partial(self._work_of(node), frame, node, row)))

    # -- pure nodes

    def _run_pure(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        row = row._replace(attempt=1)
        try:
            params, size = self._values.render(frame, node, row)
            if size > LARGE:
                work = partial(self._compute, frame, node, row, params, is_large=True)
                self.to_start.append((frame, work))
                return
            output = PURE_HANDLERS[node.type](params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self.fail(frame, node, row, error)
            return
        self.complete(frame, node, row, output)

    async def _compute(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        *,
        is_large: bool,
    ) -> None:
        """Compute a pure node; one whose parameters are large where that holds up nobody."""
        try:
            output = await aside_if(is_large, PURE_HANDLERS[node.type], params)
        except Exception as error:  # noqa: BLE001  # fails its node
            self.fail(frame, node, row, error)
            return
        await self.complete_aside_if(is_large, frame, node, row, output)

    async def run_per_item(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Run a node that evaluates an expression for each item of a list, letting others have their turn."""
        row = row._replace(attempt=1)
        try:
            params, size = self._values.render(frame, node, row)
            scope = self._values.scope(frame, row, row.key)
            evaluation = Evaluation(node, scope, params["items"])
            while not evaluation.proceed(for_seconds=LOOP_SHARE, clock=self._tools.clock):
                await anyio.lowlevel.checkpoint()
            params |= evaluation.params
        except Exception as error:  # noqa: BLE001  # fails its node
            self.fail(frame, node, row, error)
            return
        await self._compute(frame, node, row, params, is_large=size + evaluation.size > LARGE)

    # -- what a node run became

    def complete(self, frame: Frame, node: GraphNode, row: NodeRow, output: Json) -> None:
        self.complete_as(frame, node, row, output, _text_of(output))

    async def complete_aside_if(
        self,
        is_large: bool,  # noqa: FBT001  # as of `aside_if`
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        output: Json,
    ) -> None:
        """As `complete`, for an output that may be large. It is here: no cancel may lose it any more."""
        with anyio.CancelScope(shield=True):
            text = await aside_if(is_large, _text_of, output)
        self.complete_as(frame, node, row, output, text)

    def complete_as(
        self, frame: Frame, node: GraphNode, row: NodeRow, output: Json, text: bytes | TypeError
    ) -> None:
        """As `complete`, for an output whose JSON text is known, or why it has none."""
        if isinstance(text, TypeError):
            self.fail(frame, node, row, unusable(row.key, text))
            return
        limits = self._tools.limits
        if len(text) > limits.output:
            self.fail(frame, node, row, too_large(row.key, "output", len(text), limits.output))
            return
        whole = self._values.total_bytes + len(text)
        if whole > limits.execution:
            self.fail(frame, node, row, too_large(row.key, "execution", whole, limits.execution))
            return
        self._values.weigh(len(text))
        now = self._tools.clock.time()
        frame.roots[node.id] = output
        self._journal.record(
            row._replace(status=NodeStatus.COMPLETED, output=text, error=None, finished_at=now)
        )
        self.pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)

    def let_wait(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        self._journal.record(row._replace(status=NodeStatus.WAITING))
        self.waits[row.key] = frame, node

    def leave_uncertain(self, row: NodeRow, why: str) -> None:
        """Leave it to a person to say whether it happened."""
        self._journal.record(
            row._replace(
                status=NodeStatus.UNCERTAIN,
                error=dumps({"code": "node.uncertain", "message": kept(why)}),
            )
        )

    def fail(self, frame: Frame, node: GraphNode, row: NodeRow, error: Exception) -> None:
        """The node failed of `error`, be it foreseen or a fault of ours."""
        cause = foreseen(error, row.key)
        now = self._tools.clock.time()
        row = row._replace(
            status=NodeStatus.FAILED, error=stored(cause), output=None, finished_at=now
        )
        self._journal.record(row)
        self.after_failure(frame, node, row)

    def after_failure(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Go on from a node run that the journal has as failed, or end what it stands in."""
        error: dict[str, Json] = loads(row.error) if row.error else {}
        if node.on_error != "fail":
            frame.roots[node.id] = {"error": error}
            takes_success = node.on_error == "continue"
            self.pass_on(frame, node, NodeStatus.FAILED, takes_success=takes_success)
        elif frame.loop is None:
            self.failure = self.failure or {**error, "nodeId": row.key}
        else:
            cause = StackdError(f"{node.id}: {error.get('message')}", code=error.get("code"))
            frame.loop.driver.fail(frame.loop, frame.index, cause)

    # -- leading on

    def pass_on(
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
            self.ready.append((frame, one))
        for one in skipped:
            key = frame.key(one)
            if key not in self._journal.rows:
                now = self._tools.clock.time()
                row = _row(one, key, NodeStatus.SKIPPED, 0, started_at=now, finished_at=now)
                self._journal.record(row)
        if frame.open == 0 and frame.loop is not None:
            frame.loop.driver.end_iteration(frame, frame.loop)

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
            ours = foreseen(error, name)
            message = f"{name}: {ours.message}"
            if frame.loop is not None:
                cause = StackdError(message, code=ours.code)
                frame.loop.driver.fail(frame.loop, frame.index, cause)
                return False
            self.failure = self.failure or {
                "code": ours.code,
                "message": kept(message),
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


def _text_of(output: Json) -> bytes | TypeError:
    """`output` as JSON text, or why it cannot be."""
    try:
        return dumps(output)
    except TypeError as error:
        return error
