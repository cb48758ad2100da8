"""The values of one claimed execution: what expressions see, and what it takes in memory.

They are read from the store at first and live in memory; what survives a crash is in the journal, from which
the next claim reads them again. Large ones are read, and taken apart in the end, aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import anyio

from stackd.core.aside import aside
from stackd.core.budget import Share
from stackd.core.clock import rfc3339
from stackd.core.errors import ExpressionError
from stackd.core.json import LARGE, Json, loads
from stackd.core.large_json import Loaded, load
from stackd.runtime.frame import Frame
from stackd.runtime.secrets import LiveSecrets
from stackd.runtime.tools import Tools
from stackd.runtime.transforms import evaluated
from stackd.vault.texts import MARK
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow, NodeRow
from stackd.workflows.expressions import Scope
from stackd.workflows.graph import Graph, GraphNode


class Values:
    """What is stored of one execution, as values.

    Attributes:
        total_bytes: of the input and all outputs, as JSON texts.
        share: of memory; grows with large outputs.
    """

    __slots__ = ("_graph", "_large", "_links", "_row", "_secrets", "_store", "share", "total_bytes")

    def __init__(self, tools: Tools, graph: Graph, row: ExecutionRow, secrets: LiveSecrets) -> None:
        self._store = tools.store
        self._secrets = secrets
        self._links = tools.links
        self._graph = graph
        self._row = row
        self._large: dict[str, Loaded] = {}  # the large ones of the stored values, by node
        self.total_bytes = row.input_bytes
        self.share: Share | None = None

    async def read(self, nodes: Iterable[NodeRow]) -> dict[str, Json]:
        """What expressions see at first: what the trigger gave. Large outputs of `nodes` are read too."""
        row, given = self._row, self._row.trigger_node
        await self.read_large(nodes)
        if row.input is not None and MARK not in row.input:
            return self._fixed_roots(loads(row.input))
        if given not in self._large:
            text = await self._store.read(
                lambda tx: self._secrets.opened(tx, executions.input_of(tx, row))
            )
            self._large[given] = await aside(load, text)
        return self._fixed_roots(self._large[given].value)

    async def read_large(self, nodes: Iterable[NodeRow]) -> None:
        for node in nodes:
            if node.output is not None and len(node.output) > LARGE and node.key not in self._large:
                self._large[node.key] = await aside(load, node.output)

    async def free(self) -> None:
        """Let go of what is large; nobody may see it any more."""
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

    def scope(self, frame: Frame, row: NodeRow, place: str) -> Scope:
        """What the expressions of a node run see. `place`: which of its own, for what is drawn by lot."""
        now = row.started_at or self._row.created_at
        seed = f"{self._row.id}:{place}"
        return Scope(frame.roots, now=now, seed=seed, link=partial(self._link, frame))

    def _link(self, frame: Frame, node_id: str) -> str:
        """The link of a node that stands in `frame`, or around it."""
        inside: Frame | None = frame
        while inside is not None:
            if node_id in inside.graph.nodes:
                return self._links.url(self._row.id, inside.prefix + node_id)
            inside = None if inside.loop is None else inside.loop.frame
        raise ExpressionError(f"resumeUrl: there is no node {node_id} here")

    def render(self, frame: Frame, node: GraphNode, row: NodeRow) -> tuple[dict[str, Json], int]:
        """The node's parameters, and about how many bytes of JSON were filled in."""
        scope = self.scope(frame, row, row.key)
        params = node.render(scope)
        if node.type.startswith("logic."):
            params = evaluated(node, scope, params, frame)
        return params, scope.budget.charged

    def output_of(self, row: NodeRow) -> Json:
        """What a completed node run gave."""
        if row.key in self._large:
            return self._large[row.key].value
        return loads(row.output) if row.output is not None else None

    def weigh(self, output_bytes: int) -> None:
        """Count one more output."""
        self.total_bytes += output_bytes
        if output_bytes > LARGE and self.share is not None:
            self.share.grow(executions.OUTPUT_WEIGHT * output_bytes)
