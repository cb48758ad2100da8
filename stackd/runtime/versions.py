"""Compiled workflow versions, kept in memory. A version never changes, so nothing here goes stale."""

from __future__ import annotations

import anyio
from cachetools import LRUCache

from stackd.store.database import Database
from stackd.workflows import catalogue
from stackd.workflows.document import load_stored
from stackd.workflows.graph import Graph, compile_graph

KEPT = 256  # versions; a compiled one of ordinary size is some tens of KiB


class Versions:
    """Graphs by (workflow, version), read from the store at first use."""

    def __init__(self, store: Database) -> None:
        self._store = store
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

    async def _load(self, key: tuple[str, int]) -> Graph:
        async with self._loading:  # of many that ask at once, one does the work
            graph = self._graphs.get(key)
            if graph is None:
                text = await self._store.read(lambda tx: catalogue.document(tx, *key))
                # On a thread: the parser is loaded at first use, and a large document takes its time.
                graph = self._graphs[key] = await anyio.to_thread.run_sync(_compiled, text)
            return graph


def _compiled(text: bytes) -> Graph:
    return compile_graph(load_stored(text))
