"""The node runs of one claimed execution: what is known of them, and what of that is not on disk yet.

What is recorded is on disk after the next write, which carries all of it in one transaction. Every write is
fenced: once a newer claim owns the job, the first one says so and nothing more is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import anyio
import structlog

from stackd.core.errors import LeaseLostError, StoreBusyError, StoreFullError
from stackd.queue import verbs
from stackd.queue.job import Job
from stackd.runtime.frame import Loop
from stackd.runtime.secrets import LiveSecrets
from stackd.runtime.tools import STORE_RETRY, Tools
from stackd.store.connection import Tx
from stackd.workflows import executions, resume, why
from stackd.workflows.executions import ExecutionRow, NodeFinished, NodeRow, NodeStatus

T = TypeVar("T")

# Node runs and bytes that wait to be written: more hold up the writer, and others with it.
MANY_ROWS = 500
MANY_BYTES = 1024 * 1024
ITEMS_DROPPED = 2_000  # of a loop that has ended, per write: some milliseconds

ENDED = frozenset(
    {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.UNCERTAIN}
)

_log = structlog.get_logger(__name__)


class _Pending:
    """What was recorded since the last write.

    Attributes:
        rows: node runs, by key.
        loops: those in which iterations have ended, by key.
        others: what else is to be written, in order.
        since: when the first of it was recorded, by the monotonic clock.
        size: bytes of outputs.
    """

    __slots__ = ("loops", "others", "rows", "since", "size")

    def __init__(self) -> None:
        self.rows: dict[str, NodeRow] = {}
        self.loops: dict[str, Loop] = {}
        self.others: list[Callable[[Tx], None]] = []
        self.since: float | None = None
        self.size = 0

    def note_progress(self) -> None:
        """Let the node run of each loop that goes on say how far it has come."""
        for key, loop in self.loops.items():
            if key not in self.rows or self.rows[key].status not in ENDED:
                self.rows[key] = loop.standing

    def put_before(self, later: _Pending) -> None:
        """Take up again what could not be written, with what was recorded since."""
        self.rows |= later.rows
        self.loops |= later.loops
        self.others += later.others
        self.size += later.size
        if self.since is None:
            self.since = later.since


class Journal:
    """The journal of one claim. `told`: called when something waits to be written where nothing did."""

    def __init__(
        self, tools: Tools, job: Job, row: ExecutionRow, *, told: Callable[[], None]
    ) -> None:
        self._tools = tools
        self._job = job
        self._row = row
        self._told = told
        self._pending = _Pending()
        self._writing: anyio.Lock | None = None
        self.secrets = LiveSecrets(tools.vault)
        self.rows: dict[str, NodeRow] = {}  # those of finished iterations are forgotten

    def record(self, row: NodeRow) -> None:
        self.rows[row.key] = row
        self._pending.rows[row.key] = row
        self._pending.size += len(row.output or b"")
        if self._pending.since is None:
            self._pending.since = self._tools.clock.monotonic()
            self._told()

    def set_timer(self, key: str, due_at: float, output: bytes | None) -> None:
        """Let the waiting node run `key` end with `output` at `due_at`; None offers it again instead."""
        row = self._row
        self._pending.others.append(
            lambda tx: executions.add_timer(tx, row, key, due_at=due_at, output=output)
        )

    def await_call(self, key: str, expires_at: float) -> None:
        """Let the waiting node run `key` end with a call to its link, perhaps one that came before it waited."""
        row = self._row
        self._pending.others.append(
            lambda tx: resume.await_call(
                tx, row, key, expires_at=expires_at, now=self._tools.clock.time()
            )
        )

    def note(self, code: str, message: str) -> None:
        """Note, with what is written next, why something took another way."""
        subject, now = self._row.id, self._tools.clock.time()
        message = self.secrets.words(message)
        self._pending.others.append(lambda tx: why.note(tx, code, subject, message, now=now))

    def add(self, change: Callable[[Tx], None]) -> None:
        """Let `change` be made with what is written next."""
        self._pending.others.append(change)

    def finish_item(self, loop: Loop, index: int, output: bytes | None) -> None:
        """An iteration has ended: how far the loop has come is written with what it gave."""
        seq, key, secrets = self._row.seq, loop.key, self.secrets

        def put(tx: Tx) -> None:
            stored = None if output is None else secrets.sealed(tx, output)
            executions.put_loop_item(tx, seq, key, index, stored)

        self._pending.others.append(put)
        self._pending.loops[key] = loop
        self._pending.size += len(output or b"")

    def forget(self, keys: Iterable[str]) -> None:
        """Know nothing more of node runs that nobody will ask for; what is recorded of them is still written."""
        for key in keys:
            self.rows.pop(key, None)

    def end_loop(self, loop: str) -> None:
        """The loop has ended, and its node run is recorded so: what its iterations gave is needed no more.

        Not before: a process that dies between the two would begin all of them again.
        """
        seq = self._row.seq
        self._pending.others.append(lambda tx: executions.drop_loop_items(tx, seq, loop))

    async def end_large_loop(self, loop: str, count: int) -> None:
        """As `end_loop`, for one of `count` items, step by step: others write in between.

        What a process that dies leaves of them is in nobody's way.
        """
        await self.flush()  # its end first
        for below in range(ITEMS_DROPPED, count + ITEMS_DROPPED, ITEMS_DROPPED):
            await self._tools.store.write(
                partial(executions.drop_loop_items, seq=self._row.seq, key=loop, below=below),
                durable=False,
            )

    def give_up_wait(self, key: str) -> None:
        """Skip the node run `key`, unless what it waits for has happened meanwhile: then it has ended so."""
        seq, now = self._row.seq, self._tools.clock.time()
        self._pending.others.append(lambda tx: executions.give_up_wait(tx, seq, key, now=now))

    def give_up_call(self, key: str) -> None:
        """Nobody waits any more for the execution that the node run `key` started: it is cancelled."""
        seq, now = self._row.seq, self._tools.clock.time()
        self._pending.others.append(lambda tx: executions.cancel_called(tx, seq, key, now=now))

    def is_unwritten(self, key: str) -> bool:
        return key in self._pending.rows

    @property
    def is_heavy(self) -> bool:
        """Whether what waits to be written is so much that more should not wait with it."""
        return len(self._pending.rows) >= MANY_ROWS or self._pending.size >= MANY_BYTES

    @property
    def flush_at(self) -> float | None:
        """When it should be written, by the monotonic clock; None: nothing waits for it."""
        since = self._pending.since
        return None if since is None else since + self._tools.flush_after

    @property
    def writing(self) -> anyio.Lock:
        """Held during a write: what is read meanwhile would be older than what is known here."""
        if self._writing is None:
            self._writing = anyio.Lock()
        return self._writing

    async def flush(self) -> None:
        """Commit everything recorded so far. One flush at a time: branches may wait for each other's."""
        async with self.writing:
            pending = self._pending
            if pending.rows or pending.others:  # else another branch has just committed it
                await self._write(self.check_claim)

    def check_claim(self, tx: Tx) -> None:
        """Raises LeaseLostError if a newer claim owns the execution."""
        if not verbs.holds(tx, self._job):
            raise self.lease_lost()

    def lease_lost(self) -> LeaseLostError:
        return LeaseLostError(f"job {self._job.id} belongs to a newer claim")

    async def write(self, change: Callable[[Tx], T]) -> T:
        """Commit what is recorded together with `change`, which must refuse a lost claim.

        Waits while the store is full or locked; cut off there, what was recorded stays recorded.
        """
        async with self.writing:
            return await self._write(change)

    async def _write(self, change: Callable[[Tx], T]) -> T:
        pending, self._pending = self._pending, _Pending()
        pending.note_progress()

        def write(tx: Tx) -> T:
            self._put(tx, pending)
            return change(tx)

        try:
            return await self._written(write, pending.size)
        except BaseException:
            pending.put_before(self._pending)
            self._pending = pending
            raise

    def _put(self, tx: Tx, pending: _Pending) -> None:
        seq = self._row.seq
        rows = list(pending.rows.values())
        executions.put_nodes(tx, seq, [self._stored(tx, row) for row in rows])
        for row in rows:
            if row.status in ENDED:
                tx.emit(self.finished(row))
        for write in pending.others:
            write(tx)

    def _stored(self, tx: Tx, row: NodeRow) -> NodeRow:
        """`row` as it is stored: no secret of the execution stands in it in clear."""
        secrets = self.secrets
        return row._replace(
            output=None if row.output is None else secrets.sealed(tx, row.output),
            error=None if row.error is None else secrets.redacted(row.error),
            metadata=None if row.metadata is None else secrets.redacted(row.metadata),
        )

    async def _written(self, change: Callable[[Tx], T], size_bytes: int) -> T:
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    return await self._tools.store.write(change, size_bytes=size_bytes)
            except (StoreBusyError, StoreFullError) as error:
                _log.warning("waiting for the store", reason=error.message)
            await self._tools.clock.sleep(STORE_RETRY)

    def finished(self, row: NodeRow) -> NodeFinished:
        seconds = (
            None
            if row.started_at is None or row.finished_at is None
            else row.finished_at - row.started_at
        )
        return NodeFinished(
            execution_id=self._row.id,
            workflow_id=self._row.workflow_id,
            job_id=self._job.id,
            key=row.key,
            type=row.type,
            status=row.status.value,
            seconds=seconds,
        )
