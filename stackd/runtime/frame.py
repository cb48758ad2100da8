"""Where a walk through a graph stands: the execution's own, or one iteration of a loop in it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stackd.core.errors import StackdError
from stackd.core.json import Json, dumps, loads
from stackd.workflows.executions import NodeRow, NodeStatus
from stackd.workflows.graph import Graph, GraphNode


@dataclass(slots=True)
class _Progress:
    """How far the in-edges of a node are decided. `taken`: the nodes that those come from which are taken."""

    open_edges: int
    taken: tuple[str, ...] = ()


class Frame:
    """One walk. A node is ready once every edge into it is decided and one is taken; with none taken it is skipped.

    Attributes:
        prefix: begins the keys of its node runs; `loop[3].` in an iteration.
        members: the nodes it may reach.
        roots: what expressions see here; a node that has ended is among them.
        open: members that have not ended.
        led_on: nodes with a taken out-edge.
    """

    __slots__ = (
        "graph",
        "index",
        "led_on",
        "loop",
        "members",
        "open",
        "prefix",
        "progress",
        "roots",
    )

    def __init__(
        self,
        graph: Graph,
        members: frozenset[str],
        roots: dict[str, Json],
        *,
        prefix: str = "",
        loop: Loop | None = None,
        index: int = 0,
    ) -> None:
        self.graph = graph
        self.members = members
        self.roots = roots
        self.prefix = prefix
        self.loop = loop
        self.index = index
        self.open = len(members)
        self.led_on: set[str] = set()
        self.progress = {
            key: _Progress(sum(edge.source in members for edge in graph.nodes[key].in_edges))
            for key in members
        }

    def key(self, node: GraphNode) -> str:
        """The key of the node run of `node` here."""
        return self.prefix + node.id

    @property
    def keys(self) -> list[str]:
        return [self.prefix + key for key in self.members]

    @property
    def loops(self) -> Iterator[Loop]:
        """The loops it stands in, from the inside out."""
        loop = self.loop
        while loop is not None:
            yield loop
            loop = loop.frame.loop

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more may begin here: a loop around it has failed."""
        return any(loop.failure is not None for loop in self.loops)

    def inputs(self, node: GraphNode) -> dict[str, Json]:
        """What the nodes gave from which taken edges lead to `node`, in the order of its edges."""
        taken = self.progress[node.id].taken
        return {
            edge.source: self.roots.get(edge.source)
            for edge in node.in_edges
            if edge.source in taken
        }

    def end(
        self, node: GraphNode, taken: Sequence[bool]
    ) -> tuple[list[GraphNode], list[GraphNode]]:
        """Note that `node` has ended; the nodes that are ready now, and those that are skipped.

        Args:
            taken: whether each of its out-edges is.
        """
        self.open -= 1
        ready: list[GraphNode] = []
        skipped: list[GraphNode] = []
        for edge, is_taken in zip(node.out_edges, taken, strict=True):
            progress = self.progress[edge.target]
            progress.open_edges -= 1
            if is_taken:
                self.led_on.add(node.id)
                progress.taken += (node.id,)
            if progress.open_edges == 0:
                target = self.graph.nodes[edge.target]
                if progress.taken:
                    ready.append(target)
                else:
                    self._skip(target, ready, skipped)
        return ready, skipped

    def _skip(self, node: GraphNode, ready: list[GraphNode], skipped: list[GraphNode]) -> None:
        """Skip a node that no edge into it is taken to, with all that hangs on it alone."""
        to_skip = [node]
        while to_skip:
            one = to_skip.pop()
            self.open -= 1
            skipped.append(one)
            for edge in one.out_edges:
                progress = self.progress[edge.target]
                progress.open_edges -= 1
                if progress.open_edges == 0:
                    behind = ready if progress.taken else to_skip
                    behind.append(self.graph.nodes[edge.target])

    def ends(self, rows: Mapping[str, NodeRow]) -> dict[str, bytes]:
        """The outputs of the completed nodes without a taken out-edge, by node id, as JSON texts.

        Args:
            rows: its node runs, by key.
        """
        return {
            key: row.output or b"null"
            for key in self.graph.order
            if key in self.members
            and key not in self.led_on
            and (row := rows[self.prefix + key]).status is NodeStatus.COMPLETED
        }


def joined(ends: Mapping[str, bytes]) -> bytes:
    """The output of the single end, else a map by node id; JSON."""
    if len(ends) == 1:
        return next(iter(ends.values()))
    return b"{" + b",".join(dumps(key) + b":" + text for key, text in ends.items()) + b"}"


class LoopDriver(Protocol):
    """What goes on with a loop."""

    def end_iteration(self, frame: Frame, loop: Loop) -> None:
        """Every node of the iteration has ended."""

    def fail(self, loop: Loop, index: int, error: StackdError) -> None:
        """Iteration `index` has failed, and the loop with it."""


@dataclass(slots=True, eq=False)
class Loop:
    """A loop that runs: its iterations begin in order, at most `at_once` of them at a time.

    Attributes:
        driver: is told how its iterations end.
        frame: the walk it is a node of.
        row: its node run.
        collects: whether it gives a list of what its iterations gave.
        outputs: what each iteration gave that has ended in this claim, as JSON text.
        begun: iterations, from the first on.
        open: those of them that have not ended.
        again: those that an earlier claim left open and that have not begun in this one, in order.
        in_flight: tasks that run in its iterations.
        failure: what ends it: (code, message). Then no iteration begins, and none goes on.
        was_begun: by an earlier claim, which may have left node runs in it that this one does not know.
    """

    driver: LoopDriver
    frame: Frame
    node: GraphNode
    row: NodeRow
    items: list[Json]
    at_once: int
    collects: bool
    outputs: dict[int, bytes | None] = field(default_factory=dict)
    begun: int = 0
    open: set[int] = field(default_factory=set)
    again: deque[int] = field(default_factory=deque)
    in_flight: int = 0
    output_bytes: int = 2
    failure: tuple[str, str] | None = None
    is_closing: bool = False
    was_begun: bool = False

    @property
    def key(self) -> str:
        return self.row.key

    def begin_next(self) -> Frame | None:
        """The frame of the next iteration that has not ended; None if all have begun."""
        if self.again:
            index = self.again.popleft()
        elif self.begun < len(self.items):
            index = self.begun
            self.begun += 1
            self.open.add(index)
        else:
            return None
        body = self.node.body
        assert body is not None  # noqa: S101  # of a loop
        return Frame(
            body,
            frozenset(body.nodes),
            {**self.frame.roots, "item": self.items[index], "index": index},
            prefix=f"{self.key}[{index}].",
            loop=self,
            index=index,
        )

    def finish(self, index: int, output: bytes | None) -> None:
        self.open.discard(index)
        self.outputs[index] = output
        self.output_bytes += len(output or b"") + 1

    @property
    def is_over(self) -> bool:
        return self.begun == len(self.items) and not self.open

    @property
    def standing(self) -> NodeRow:
        """Its node run, which says how far it has come: as much after many iterations as after few."""
        done = self.begun - len(self.open)
        progress: Json = {"done": done, "open": sorted(self.open), "bytes": self.output_bytes}
        return self.row._replace(metadata=dumps(progress))

    def go_on_from(self, progress: bytes) -> None:
        """Stand where an earlier claim has left it, as its node run says."""
        known = loads(progress)
        self._stand_at(known["done"], known["open"], known["bytes"])

    def go_on_behind(self, done: Mapping[int, int]) -> None:
        """As `go_on_from`, of a loop of which only is known what is done: the lengths of its outputs, by index."""
        begun = max(done, default=-1) + 1
        still_open = [index for index in range(begun) if index not in done]
        self._stand_at(len(done), still_open, self.output_bytes + sum(done.values()) + len(done))

    def _stand_at(self, done: int, still_open: list[int], output_bytes: int) -> None:
        self.begun = done + len(still_open)
        self.open.update(still_open)
        self.again.extend(still_open)
        self.output_bytes = output_bytes

    def output(self, earlier: Mapping[int, bytes | None]) -> bytes:
        """What it gives once it is over: a list in the order of its items; without `collects` their number.

        Args:
            earlier: what those iterations gave that earlier claims have ended.
        """
        if not self.collects:
            return b'{"count":%d}' % len(self.items)
        outputs = {**earlier, **self.outputs}
        texts = [outputs[index] or b"null" for index in range(len(self.items))]
        return b"[" + b",".join(texts) + b"]"
