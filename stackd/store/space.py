"""Gives the disk back what the store needs no more, a little at a time."""

from __future__ import annotations

from collections.abc import Callable

from stackd.store.connection import Tx
from stackd.store.database import Database

KEPT_SHARE = 0.1  # of the file may be free pages: what grows again soon would be moved in vain
KEPT_PAGES = 1024  # free pages, 4 MiB, that any file may have
STEP_PAGES = 256  # given back in one transaction: some milliseconds
STEPS = 40  # at a time, 40 MiB
CHECKPOINT = (
    4  # steps after which the log is brought into the file, so that no commit of others has to
)


async def shrink(store: Database, *, beat: Callable[[], None] = lambda: None) -> int:
    """Give back what the store needs no more, as far as it goes in a second or two; how many pages.

    Others have their turn between two steps. When it returns, the file is shorter, unless somebody reads on in what
    was there before: then it becomes so later.

    Raises:
        StoreError: or a subclass; what was given back until then is.
    """
    pages = 0
    for step in range(1, STEPS + 1):
        given = await store.write(lambda tx: give_back(tx, limit=STEP_PAGES), durable=False)
        beat()
        pages += given
        if given and (given < STEP_PAGES or step % CHECKPOINT == 0):
            await store.checkpoint()
        if given < STEP_PAGES:
            break
    return pages


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
