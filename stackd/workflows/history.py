"""Removing executions that have ended, a bounded part in each transaction.

With an execution goes what it waited for: the executions that it called. What it only started stays, as one that
nobody started. What is open, or uncertain, is never removed.

An execution too large for one transaction goes part by part, its own row last. From the first of these on it does
not go on any more (`is_going`), or it would do again what it has forgotten to be done; whoever removes next takes
those first. So a kill leaves nothing behind that stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stackd.core.events import Event
from stackd.core.json import dumps
from stackd.store.connection import Tx
from stackd.workflows import executions
from stackd.workflows import statements as sql

# What one transaction removes: some five milliseconds for the writer, more where the file is not in memory.
ROWS = 500
BYTES = 1024 * 1024
CHECKPOINT = (
    8  # such transactions, after which the log is brought into the file: no commit of others has to
)


@dataclass(frozen=True, slots=True)
class HistoryPruned(Event):
    """Executions that had ended were removed, by the bound that they were over, or because somebody asked."""

    by_age: int = 0
    by_count: int = 0
    by_bytes: int = 0
    by_request: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What one transaction removed.

    Attributes:
        executions: that are gone, those that others had waited for included.
        has_more: it has stopped because it had done its share.
    """

    executions: int
    has_more: bool


def count(tx: Tx) -> int:
    """How many executions have ended and are kept."""
    row = tx.one(sql.COUNT_HISTORY)
    assert row is not None  # noqa: S101  # the migration made it
    return int(row[0])


def oldest(tx: Tx, *, before: float, limit: int) -> list[int]:
    """Up to `limit` executions that ended before that instant and go by themselves, in the order of their ends."""
    return [row[0] for row in tx.rows(sql.OLDEST_ENDED, (before, limit))]


def is_going(tx: Tx, seq: int) -> bool:
    """Whether a part of the execution is gone, and the rest is to follow."""
    return tx.one(sql.IS_GOING, (seq,)) is not None


def going(tx: Tx, *, limit: int) -> list[int]:
    """Up to `limit` executions of which a part is gone."""
    return [row[0] for row in tx.rows(sql.GOING, (limit,))]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the executions that have ended somebody means. None: all of them."""

    workflow_id: str | None
    status: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Executions that a choice means, the newest first.

    Attributes:
        ended: the number of each, and when it ended.
        last: below which number the next page begins; None: there is none.
    """

    ended: list[tuple[int, float]]
    last: int | None


def chosen(tx: Tx, choice: Choice, *, below: int, limit: int) -> Page:
    """What is meant of the next `limit` executions whose numbers are below that one."""
    rows = executions.listed(
        tx, workflow_id=choice.workflow_id, status=choice.status, before=below, limit=limit
    )
    seqs = dumps([row.seq for row in rows])
    ended = [(row[0], row[1]) for row in tx.rows(sql.BY_THEMSELVES, (seqs,))]
    return Page(ended, rows[-1].seq if len(rows) == limit else None)


def count_with_called(tx: Tx, seqs: Sequence[int]) -> int:
    """How many executions go if these do: they, and what they have called."""
    row = tx.one(sql.COUNT_WITH_CALLED, (dumps(seqs),))
    return 0 if row is None else int(row[0])


def take(tx: Tx, seqs: Iterable[int]) -> Taken:
    """Remove those of the executions that have ended, in this order, as many as fit into one transaction."""
    share = _Share(tx)
    has_more = not all(share.take(seq) for seq in seqs)
    return Taken(share.finish(), has_more)


class _Share:
    """What one transaction removes."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._rows = ROWS
        self._bytes = BYTES
        self._is_fresh = True  # nothing was removed yet: what comes now has all the room there is
        self._whole: list[int] = []  # executions to be removed with all of their rows

    def take(self, seq: int) -> bool:
        """Remove the execution, or what of it fits; False: it has not fitted, and that is all for now."""
        found = self._tx.one(sql.WEIGH_EXECUTION, (seq,))
        if found is None:  # gone, or goes on
            return True
        if not self._take_called(seq):
            self._tx.execute(sql.BEGIN_GOING, (seq,))
            return False
        most = ROWS + 1
        sizes = [row[0] for row in self._tx.rows(sql.WEIGH_PARTS, (seq, most) * len(sql.PARTS))]
        rows, size = 1 + len(sizes), sum(sizes) + found[0]
        if rows <= self._rows and size <= self._bytes:
            self._spend(rows, size)
            self._whole.append(seq)
            return True
        if not self._is_fresh:
            return False
        self._is_fresh = False
        if not sizes:  # its own row is not divided
            self._whole.append(seq)
        else:
            self._tx.execute(sql.BEGIN_GOING, (seq,))
            self._take_parts(seq)
        return False

    def finish(self) -> int:
        """Remove what was found to fit; how many executions."""
        self._tx.execute(sql.DROP_EXECUTIONS, (dumps(self._whole),))
        return len(self._whole)

    def _take_called(self, seq: int) -> bool:
        """Remove what the execution waited for, let go of what else it started; False: not all was looked at."""
        last = 0
        while started := self._tx.rows(sql.STARTED_BY, (seq, last, self._rows + 1)):
            for last, goes_along in started:  # where to go on
                if self._rows <= 0:
                    return False
                if not goes_along:
                    self._tx.execute(sql.LET_GO, (last,))
                    self._spend(1, 0)
                elif not self.take(last):
                    return False
        return True

    def _take_parts(self, seq: int) -> None:
        """Remove as many rows of one kind as fit, and at least one."""
        for listed, drop in sql.PARTS:
            rows = self._tx.rows(listed, (seq, self._rows))
            if rows:
                last = rows[0]
                for row in rows:
                    self._bytes -= row[-1]
                    if self._bytes < 0 and row is not rows[0]:
                        break
                    last = row
                self._tx.execute(drop, (seq, *last[:-1]))
                return

    def _spend(self, rows: int, size: int) -> None:
        self._rows -= rows
        self._bytes -= size
        self._is_fresh = False
