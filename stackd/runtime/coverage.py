"""What is told when active workflows have operations that nothing can run any more."""

from __future__ import annotations

from functools import partial
from typing import Final

import anyio
import structlog

from stackd.core.errors import StackdError
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import catalogue
from stackd.workflows.coverage import CoverageOf, findings_of
from stackd.workflows.document import load_stored
from stackd.workflows.findings import Finding

PAGE: Final = 100  # workflows read at a time
SHOWN: Final = 5  # operations of one workflow that are logged

_log = structlog.get_logger(__name__)


async def tell_uncovered(store: Database, coverage: CoverageOf) -> None:
    """Log each active workflow in which something cannot run; it stays active, and these nodes fail.

    Raises:
        StoreError: it cannot be read.
    """
    after: str | None = ""
    while after is not None:
        after, documents = await store.read(partial(_active, after=after))
        found = await anyio.to_thread.run_sync(_uncovered, documents, coverage)
        for workflow_id, findings in found.items():
            _log.warning(
                "an active workflow has nodes that nothing can run", workflow=workflow_id,
                nodes=[one.message for one in findings[:SHOWN]], count=len(findings),
            )  # fmt: skip


def _active(tx: Tx, after: str) -> tuple[str | None, dict[str, bytes]]:
    """The next page: the last id of it, None if there is no other, and the documents of what is active in it."""
    rows = catalogue.listed(tx, after=after, limit=PAGE)
    documents = {one.id: catalogue.document(tx, one.id, one.version) for one in rows if one.active}
    return (rows[-1].id if len(rows) == PAGE else None), documents


def _uncovered(documents: dict[str, bytes], coverage: CoverageOf) -> dict[str, list[Finding]]:
    found = {}
    for workflow_id, text in documents.items():
        try:
            nodes = load_stored(text).nodes
        except (ValueError, StackdError):
            continue  # of another version, say; told where it is to run
        findings = [one for one in findings_of(nodes, coverage) if one.bars]
        if findings:
            found[workflow_id] = findings
    return found
