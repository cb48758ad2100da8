"""Gives the disk back what the store needs no more, a little at a time."""

from __future__ import annotations

from stackd.store.connection import Tx

KEPT_SHARE = 0.1  # of the file may be free pages: what grows again soon would be moved in vain
KEPT_PAGES = 1024  # free pages, 4 MiB, that any file may have


def give_back(tx: Tx, *, limit: int) -> int:
    """Take up to `limit` free pages out of the file; how many were. When it returns less, no more are worth it.

    The file itself becomes shorter at the next checkpoint.
    """
    before = _number(tx, "PRAGMA freelist_count")
    kept = max(KEPT_PAGES, int(KEPT_SHARE * _number(tx, "PRAGMA page_count")))
    for _ in range(min(limit, before - kept)):
        tx.execute("PRAGMA incremental_vacuum(1)")  # of a larger number, sqlite3 would do one too
    return before - _number(tx, "PRAGMA freelist_count")


def used_bytes(tx: Tx) -> int:
    """What the store takes of its file; free pages are not counted."""
    pages = _number(tx, "PRAGMA page_count") - _number(tx, "PRAGMA freelist_count")
    return pages * _number(tx, "PRAGMA page_size")


def free_bytes(tx: Tx) -> int:
    """What of the file holds nothing."""
    return _number(tx, "PRAGMA freelist_count") * _number(tx, "PRAGMA page_size")


def _number(tx: Tx, pragma: str) -> int:
    ((value,),) = tx.rows(pragma)
    return int(value)
