"""Calls: a node that starts another workflow, and waits for its end if that is wanted.

The execution it starts and the node run that says so are written in one transaction: after a crash there are
both or neither. The end of the called execution ends the waiting node run, in the store.
"""

from __future__ import annotations

from dataclasses import replace

from stackd.core.errors import BusyError, NodeError
from stackd.core.ids import sortable_id
from stackd.core.json import Json, dumps
from stackd.runtime.frame import Frame
from stackd.runtime.journal import Journal
from stackd.runtime.node_runs import NodeRuns
from stackd.runtime.tools import Tools
from stackd.runtime.values import Values
from stackd.runtime.versions import Versions
from stackd.store.connection import Tx
from stackd.workflows import catalogue, executions
from stackd.workflows.executions import ExecutionRow, NewExecution, NodeRow, NodeStatus
from stackd.workflows.graph import GraphNode


class Calls:
    """The calls of one claim."""

    def __init__(
        self,
        tools: Tools,
        versions: Versions,
        row: ExecutionRow,
        journal: Journal,
        values: Values,
        node_runs: NodeRuns,
    ) -> None:
        self._tools = tools
        self._versions = versions
        self._row = row
        self._journal = journal
        self._values = values
        self._node_runs = node_runs

    async def run(self, frame: Frame, node: GraphNode, row: NodeRow) -> None:
        """Start another workflow, in the transaction that says so, and wait for its end if that is wanted."""
        row = row._replace(attempt=1)
        now = self._tools.clock.time()
        called = sortable_id(now)
        try:
            params, _ = self._values.render(frame, node, row)
            waits = params.get("wait", True)
            new = await self._called(row, params, waits=waits)
        except Exception as error:  # noqa: BLE001  # fails its node
            self._node_runs.fail(frame, node, row, error)
            return
        output: Json = {"executionId": called, "workflowId": new.workflow_id}
        row = row._replace(status=NodeStatus.WAITING, metadata=dumps({"executionId": called}))
        if waits:
            self._node_runs.waits[row.key] = frame, node  # before it is told: it may end at once
        else:
            row = row._replace(
                status=NodeStatus.COMPLETED, output=dumps(output), error=None, finished_at=now
            )

        def change(tx: Tx) -> None:
            self._journal.check_claim(tx)
            self._tools.admission.admit(tx, now=now)
            if not waits:
                tx.emit(self._journal.finished(row))
            given = self._journal.secrets.sealed(tx, new.input)
            executions.start(tx, replace(new, input=given), now=now, execution_id=called)
            executions.put_nodes(tx, self._row.seq, [row])

        self._journal.rows[row.key] = row
        try:
            await self._journal.write(change)
        except (
            BusyError
        ) as error:  # the queue is full: nothing was started, and no worker waits for a place
            self._node_runs.let_wait(
                frame, node, row._replace(output=None, metadata=None, finished_at=None)
            )
            self._journal.note(error.code, f"{row.key} waits to be started: {error.message}")
            self._journal.set_timer(row.key, now + error.retry_after, None)
            return
        if not waits:
            self._values.weigh(len(row.output or b""))
            frame.roots[node.id] = output
            self._node_runs.pass_on(frame, node, NodeStatus.COMPLETED, takes_success=True)

    async def _called(self, row: NodeRow, params: dict[str, Json], *, waits: bool) -> NewExecution:
        if self._row.depth + 1 >= executions.DEEPEST:
            raise NodeError(
                f"over {executions.DEEPEST} workflows in each other: does one call itself?",
                kind="limit",
                code="workflow.too_deep",
            )
        workflow_id = params["workflowId"]
        current = await self._tools.store.read(lambda tx: catalogue.get(tx, workflow_id))
        graph = await self._versions.graph(workflow_id, current.version)
        return NewExecution(
            workflow_id=workflow_id,
            version=current.version,
            trigger_type=executions.CALL,
            trigger_node=graph.trigger_by_hand,
            input=dumps(params.get("input")),
            concurrency=graph.workflow.concurrency,
            parent=self._row.seq,
            parent_key=row.key if waits else None,
            depth=self._row.depth + 1,
        )
