"""Compiled workflow versions, kept in memory. A version never changes; what its connectors' definitions say of it may."""

from __future__ import annotations

import anyio
from cachetools import LRUCache

from stackd.store.database import Database
from stackd.workflows import catalogue
from stackd.workflows.document import load_stored
from stackd.workflows.graph import EffectOf, Graph, compile_graph
from stackd.workflows.nodetypes import effect_of

KEPT = 256  # versions; a compiled one of ordinary size is some tens of KiB


class Versions:
    """Graphs by (workflow, version), read from the store at first use.

    `effect`: what running a node again would do; where that changes, `forget` what was compiled.
    """

    def __init__(self, store: Database, effect: EffectOf = effect_of) -> None:
        self._store = store
        self._effect = effect
        self._graphs: LRUCache[tuple[str, int], Graph] = LRUCache(KEPT)
        self._loading = anyio.Lock()

    async def graph(self, workflow_id: str, version: int) -> Graph:
        """The compiled version.

        Raises:
            NotFoundError: there is no such version.
        """
        key = (workflow_id, version)
        graph = self._graphs.get(key)
        return graph if graph is not None else await self._load(key)

    def forget(self) -> None:
        """Compile anew what is asked for from now on."""
        self._graphs.clear()

    async def _load(self, key: tuple[str, int]) -> Graph:
        async with self._loading:  # of many that ask at once, one does the work
            graph = self._graphs.get(key)
            if graph is None:
                text = await self._store.read(lambda tx: catalogue.document(tx, *key))
                # On a thread: the parser is loaded at first use, and a large document takes its time.
                graph = self._graphs[key] = await anyio.to_thread.run_sync(
                    _compiled, text, self._effect
                )
            return graph


def _compiled(text: bytes, effect: EffectOf) -> Graph:
    return compile_graph(load_stored(text), effect)
