"""The processes that work on this store: who may hold a claim, and when each was last heard of."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.clock import Clock
from stackd.core.process import ProcessIdentity, is_alive
from stackd.queue import statements as sql
from stackd.store.connection import Tx

SILENT_LEASES = 3  # a process whose heartbeat stands still for this many leases is taken for dead
FORGET_AFTER = 24 * 3600.0  # seconds a silent process without claims stays listed


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process. `started_at`, `heartbeat_at`: epoch seconds."""

    identity: ProcessIdentity
    role: str
    started_at: float
    heartbeat_at: float


class Watch:
    """Who is silent for too long: seen with one's own eyes, by a clock that does not jump as wall clocks do."""

    def __init__(self, clock: Clock, *, patience: float) -> None:
        self._clock = clock
        self._patience = patience  # seconds
        self._heard: dict[
            str, tuple[float | None, float]
        ] = {}  # process -> (heartbeat, first seen at)

    def is_silent(self, process: str, heartbeat_at: float | None) -> bool:
        """Whether the heartbeat of `process` has stood still for as long as this watch has patience."""
        now = self._clock.monotonic()
        heard = self._heard.get(process)
        if heard is None or heard[0] != heartbeat_at:
            heard = self._heard[process] = (heartbeat_at, now)
        return now - heard[1] >= self._patience


def register(tx: Tx, identity: ProcessIdentity, *, role: str, now: float) -> None:
    """Make `identity` known, so that it may own claims; forget who is gone and was silent for long."""
    tx.execute(
        sql.REGISTER_PROCESS,
        (identity.id, role, identity.boot_id, identity.pid, identity.start_ticks, now, now),
    )
    for process, boot_id, pid, start_ticks in tx.rows(sql.SILENT_PROCESSES, (now - FORGET_AFTER,)):
        if not is_alive(ProcessIdentity(boot_id, pid, start_ticks)):
            tx.execute(sql.FORGET_PROCESS, (process,))


def beat(tx: Tx, identity: ProcessIdentity, *, now: float) -> None:
    tx.execute(sql.BEAT, (now, identity.id))


def forget(tx: Tx, identity: ProcessIdentity) -> None:
    """Remove a process that has given back all its claims."""
    tx.execute(sql.FORGET_PROCESS, (identity.id,))


def listed(tx: Tx) -> list[ProcessRow]:
    return [
        ProcessRow(ProcessIdentity(boot, pid, ticks), role, started_at, heartbeat_at)
        for _, role, boot, pid, ticks, started_at, heartbeat_at in tx.rows(sql.LIST_PROCESSES)
    ]
