"""Which blobs there are, and which executions refer to them. Their bytes are files: `runtime/blobs.py`.

An execution refers to a blob from the transaction on that stores a text of it with `{"$blob": id}` in it: its
input or an output of a node run. So what is handed from one workflow to another stays; an id that is not known
refers to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stackd.core.errors import BlobBudgetError
from stackd.core.json import dumps
from stackd.store.connection import Tx
from stackd.workflows import statements as sql

_MARK = b'"$blob"'
_REFERENCE = re.compile(rb'"\$blob"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class Totals:
    count: int
    bytes: int


def note(tx: Tx, blob_id: str, size: int, *, now: float, limit: int) -> None:
    """Make a blob known whose file is about to be in its place; one that is known counts as new again.

    Args:
        limit: bytes that all blobs together may take.

    Raises:
        BlobBudgetError: it would take more.
    """
    if tx.execute(sql.RENEW_BLOB, (now, blob_id)):
        return
    taken = totals(tx).bytes
    if taken + size > limit:
        raise BlobBudgetError(
            f"{size} bytes more than the {taken} that are kept would be over the limit of {limit} for all blobs"
        )
    tx.execute(sql.INSERT_BLOB, (blob_id, size, now))


def refer(tx: Tx, seq: int, texts: Iterable[bytes | None]) -> None:
    """Let the execution refer to each blob that is known and named in one of its JSON `texts`."""
    for text in texts:
        if text is not None and _MARK in text:  # hardly any has it, and this is as good as free
            ids = {found.decode() for found in _REFERENCE.findall(text)}
            tx.execute(sql.REFER_TO_BLOBS, (seq, dumps(sorted(ids))))


def known(tx: Tx, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that are known."""
    return {row[0] for row in tx.rows(sql.KNOWN_BLOBS, (dumps(list(ids)),))}


def unused(tx: Tx, *, before: float, limit: int) -> list[str]:
    """Up to `limit` blobs that nothing refers to and that were last put before `before`, the oldest first."""
    return [row[0] for row in tx.rows(sql.UNUSED_BLOBS, (before, limit))]


def only_put(tx: Tx, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that nothing refers to and that were put but once."""
    return [row[0] for row in tx.rows(sql.BLOBS_PUT_ONCE, (dumps(list(ids)),))]


def forget(tx: Tx, blob_id: str) -> None:
    """A blob that nothing refers to is known no more."""
    tx.execute(sql.DELETE_BLOB, (blob_id,))


def totals(tx: Tx) -> Totals:
    found = tx.one(sql.BLOB_TOTALS)
    assert found is not None  # noqa: S101  # the migration made it
    return Totals(*found)
