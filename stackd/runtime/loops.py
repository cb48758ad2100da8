"""Loops: their iterations follow each other, until the last has ended or one has failed.

What an iteration gave is on disk with its end, and so is how far the loop has come; its node runs are forgotten
then. After a crash or a wait the iterations that had ended are not run again, nor is anything of them read before
the loop is over; those that had begun go on from their node runs, which are read here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TypeVar

from stackd.core.aside import aside_if
from stackd.core.errors import NodeError, StackdError
from stackd.core.json import LARGE, dumps, loads
from stackd.runtime.faults import CUT_OFF, foreseen, too_large
from stackd.runtime.frame import Frame, Loop, joined
from stackd.runtime.journal import ENDED, ITEMS_DROPPED, Journal
from stackd.runtime.node_runs import NodeRuns
from stackd.runtime.tools import Tools
from stackd.runtime.values import Values
from stackd.store.connection import Tx
from stackd.workflows import executions
from stackd.workflows.executions import NodeRow, NodeStatus
from stackd.workflows.graph import GraphNode
from stackd.workflows.nodetypes import Effect

T = TypeVar("T")


class Loops:
    """The loops of one claim."""

    def __init__(
        self, tools: Tools, seq: int, journal: Journal, values: Values, node_runs: NodeRuns
    ) -> None:
        self._tools = tools
        self._seq = seq
        self._journal = journal
        self._values = values
        self._node_runs = node_runs

    async def run(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Begin a loop or go on with it: its iterations then follow each other by themselves."""
        was_begun = row.attempt > 0
        row = row._replace(status=NodeStatus.RUNNING, attempt=1)
        try:
            params, _ = self._values.render(frame, node, row)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._node_runs.fail(frame, node, row, error)
            return
        self._journal.record(row)
        collects = node.settings.get("collect") is not False
        at_once = params.get("concurrency", 1)
        now = row._replace(metadata=None)  # what it says of its progress ends with it
        loop = Loop(self, frame, node, now, params["items"], at_once, collects, was_begun=was_begun)
        if row.metadata is not None:
            loop.go_on_from(row.metadata)
        elif was_begun:  # no iteration has ended, or a retry or an upgrade came between
            loop.go_on_behind(await self._read(executions.loop_item_bytes, row.key))
        iterations = list(islice(iter(loop.begin_next, None), at_once))
        if was_begun:
            await self._read_iterations(iterations)
        if loop.failure is None:
            for iteration in iterations:
                self._begin_iteration(iteration)
        if loop.is_over:
            self._end(loop)

    async def _read(self, query: Callable[[Tx, int, str], T], loop: str) -> T:
        return await self._tools.store.read(lambda tx: query(tx, self._seq, loop))

    async def _read_iterations(self, frames: list[Frame]) -> None:
        """Read the iterations that have begun before: they begin in order, so it can only be the first ones.

        One that has failed ends the loop before any other goes on.
        """
        keys = [key for frame in frames for key in frame.keys]
        nodes = await self._tools.store.read(
            lambda tx: self._journal.secrets.opened_rows(
                tx, executions.node_rows_of(tx, self._seq, keys)
            )
        )
        await self._values.read_large(nodes)
        rows = self._journal.rows
        rows |= {node.key: node for node in nodes}
        for frame in frames:
            for node in map(frame.graph.nodes.__getitem__, frame.members):
                row = rows.get(frame.key(node))
                if row and row.status is NodeStatus.FAILED and node.on_error == "fail":
                    self._node_runs.after_failure(frame, node, row)

    def _begin_iteration(self, frame: Frame) -> None:
        nodes = frame.graph.nodes
        self._node_runs.ready.extend((frame, nodes[key]) for key in frame.graph.starts)

    # -- how an iteration ends

    def end_iteration(self, frame: Frame, loop: Loop) -> None:
        """Keep what it gave, and begin the next; unless the loop has failed, or it was the last."""
        if loop.failure is not None:
            return
        try:
            output = self._collected(loop, frame)
        except Exception as error:  # noqa: BLE001  # fails the loop
            self.fail(loop, frame.index, foreseen(error, loop.key))
            return
        loop.finish(frame.index, output)
        self._journal.finish_item(loop, frame.index, output)
        self._journal.forget(frame.keys)
        if loop.output_bytes > self._tools.limits.output:
            whole = too_large(loop.key, "output", loop.output_bytes, self._tools.limits.output)
            whole.message += "; set collect to what is needed of each item, or to false"
            self.fail(loop, frame.index, whole)
        elif loop.is_over:
            self._end(loop)
        elif (following := loop.begin_next()) is not None:
            self._begin_iteration(following)

    def _collected(self, loop: Loop, frame: Frame) -> bytes | None:
        """What an iteration gives, as JSON text."""
        if not loop.collects:
            return None
        wanted = loop.node.per_item.get("collect")
        if wanted is None:
            return joined(frame.ends(self._journal.rows))
        scope = self._values.scope(frame, loop.row, f"{loop.key}[{frame.index}]")
        return dumps(wanted.render(scope))

    def fail(self, loop: Loop, index: int, error: StackdError) -> None:
        """Iteration `index` has failed: no other begins or goes on."""
        loop.failure = loop.failure or (error.code, f"item {index}: {error.message}")
        self.close_if_failed(loop)

    # -- how a loop ends

    def _end(self, loop: Loop) -> None:
        self._node_runs.to_start.append((loop.frame, partial(self._complete, loop)))

    async def _complete(self, loop: Loop) -> None:
        earlier: dict[int, bytes | None] = {}
        if loop.was_begun and loop.collects:
            earlier = await self._read(self._items, loop.key)
        text = loop.output(earlier)
        value = await aside_if(len(text) > LARGE, loads, text)
        self._node_runs.complete_as(loop.frame, loop.node, loop.row, value, text)
        if len(loop.items) <= ITEMS_DROPPED:
            self._journal.end_loop(loop.key)
        else:
            await self._journal.end_large_loop(loop.key, len(loop.items))

    def _items(self, tx: Tx, seq: int, loop: str) -> dict[int, bytes | None]:
        """What its iterations gave, as they gave it."""
        return {
            index: None if text is None else self._journal.secrets.opened(tx, text)
            for index, text in executions.loop_items(tx, seq, loop).items()
        }

    def close_if_failed(self, loop: Loop) -> None:
        """End a failed loop once nothing of it is in flight."""
        if loop.failure is None or loop.is_closing or loop.in_flight:
            return
        loop.is_closing = True
        self._node_runs.to_start.append((loop.frame, partial(self._close, loop)))

    async def _close(self, loop: Loop) -> None:
        """End a failed loop with all that is open in it, unless a person has to decide about a part of it."""
        assert loop.failure is not None  # noqa: S101  # it has failed
        if loop.was_begun:
            await self.recall_open(loop.key)
        rows = self._journal.rows
        inside = [row for key, row in rows.items() if key.startswith(f"{loop.key}[")]
        if any(row.status is NodeStatus.UNCERTAIN for row in inside):
            return
        now = self._tools.clock.time()
        for row in inside:
            if row.status in ENDED:
                continue
            self._node_runs.waits.pop(row.key, None)
            if row.status is not NodeStatus.WAITING:
                self._journal.record(row._replace(status=NodeStatus.SKIPPED, finished_at=now))
                continue
            self._journal.give_up_wait(row.key)
            if row.type == executions.CALL:
                self._journal.give_up_call(row.key)
        self._journal.forget(row.key for row in inside)
        if loop.node.on_error != "fail":  # else a person may let the execution go on from here
            self._journal.end_loop(loop.key)
        code, message = loop.failure
        error = NodeError(message, kind="loop", code=code, answered=True)
        self._node_runs.fail(loop.frame, loop.node, loop.row, error)

    async def recall_open(self, loop: str | None) -> None:
        """Learn what an earlier claim left open where this one has not come to, in a loop or anywhere.

        Nothing of it is in flight now: what is unsafe and was, is uncertain.
        """
        await self._journal.flush()
        nodes = await self._tools.store.read(
            lambda tx: executions.open_node_rows(tx, self._seq, loop=loop)
        )
        for node in nodes:
            row = self._journal.rows.setdefault(node.key, node)
            if row.status is NodeStatus.RUNNING and row.effect == Effect.UNSAFE.value:
                self._node_runs.leave_uncertain(row, CUT_OFF)
