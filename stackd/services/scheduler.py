"""Keeps the queue whole: takes back the claims of dead processes and forgets what has expired.

Schedules and polled triggers will be started from here.
"""

from __future__ import annotations

import anyio
import structlog
from anyio.abc import TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.process import ProcessIdentity
from stackd.queue import processes
from stackd.runtime.workflow_runtime import rescue
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import executions

PRUNE_BATCH = 500  # dedupe keys per round: small steps never hold up the writer

_log = structlog.get_logger(__name__)


class Scheduler:
    """One round every `interval` seconds, the first at once."""

    name = "scheduler"

    def __init__(
        self,
        *,
        store: Database,
        clock: Clock,
        identity: ProcessIdentity,
        lease: float,
        interval: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._identity = identity
        self._lease = lease
        self._interval = interval
        self._working = anyio.CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        has_begun = False
        with self._working:
            await self._round_or_warn()
            task_status.started()
            has_begun = True
            while True:
                await self._clock.sleep(self._interval)
                await self._round_or_warn()
        if not has_begun:  # drained during the first round
            task_status.started()

    def drain(self) -> None:
        self._working.cancel()

    async def _round_or_warn(self) -> None:
        try:
            await self.round()
        except (StoreBusyError, StoreFullError) as error:
            _log.warning("upkeep waits", reason=error.message)

    async def round(self) -> tuple[int, int]:
        """One round; (jobs taken back, keys forgotten)."""
        now = self._clock.time()

        def change(tx: Tx) -> tuple[int, int]:
            processes.beat(tx, self._identity, now=now)
            return (
                rescue(tx, me=self._identity.id, lease=self._lease, now=now),
                executions.prune_keys(tx, now=now, limit=PRUNE_BATCH),
            )

        done = await self._store.write(change, durable=False)
        if done[0]:
            _log.info("took back jobs of dead processes", jobs=done[0])
        return done
