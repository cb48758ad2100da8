"""Waits: nodes that let time pass, or wait for a call to their link. While they wait, no worker holds them."""

from __future__ import annotations

from stackd.core.clock import rfc3339
from stackd.core.errors import NodeError
from stackd.core.json import dumps
from stackd.runtime.frame import Frame
from stackd.runtime.journal import Journal
from stackd.runtime.node_runs import NodeRuns
from stackd.runtime.nodes import delay_until
from stackd.runtime.tools import INLINE_WAIT, Tools
from stackd.runtime.values import Values
from stackd.workflows.executions import NodeRow
from stackd.workflows.graph import GraphNode
from stackd.workflows.resume import EXPIRES, has_expired

CALL_WITHIN_MS = 7 * 86_400_000  # the origin's


class Waits:
    """The waits of one claim."""

    def __init__(self, tools: Tools, journal: Journal, values: Values, node_runs: NodeRuns) -> None:
        self._tools = tools
        self._journal = journal
        self._values = values
        self._node_runs = node_runs

    async def delay(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Let time pass: here if it is short, else by a timer."""
        started_at = row.started_at or self._tools.clock.time()
        row = row._replace(attempt=1, started_at=started_at)
        try:
            params, _ = self._values.render(frame, node, row)
            due_at, output = delay_until(params, now=started_at)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._node_runs.fail(frame, node, row, error)
            return
        left = due_at - self._tools.clock.time()
        if left > INLINE_WAIT:
            self._node_runs.let_wait(frame, node, row)
            self._journal.set_timer(row.key, due_at, dumps(output))
            return
        await self._tools.clock.sleep(max(left, 0.0))
        self._node_runs.complete(frame, node, row, output)

    async def for_call(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Wait for a call to the link of the node run; offered again, once the time for it is over, it fails."""
        now = self._tools.clock.time()
        row = row._replace(attempt=1)
        if has_expired(row, now=now):
            late = NodeError("nobody called its link in time", kind="timeout", code="wait.expired")
            self._node_runs.fail(frame, node, row, late)
            return
        try:
            params, _ = self._values.render(frame, node, row)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._node_runs.fail(frame, node, row, error)
            return
        expires_at = now + params.get("expiresMs", CALL_WITHIN_MS) / 1000
        row = row._replace(metadata=dumps({EXPIRES: rfc3339(expires_at)}))
        self._node_runs.let_wait(frame, node, row)
        self._journal.await_call(row.key, expires_at)
