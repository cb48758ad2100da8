"""The processes that work on this store: who may hold a claim, and when each was last heard of."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.process import ProcessIdentity
from stackd.queue import statements as sql
from stackd.store.connection import Tx

FORGET_AFTER = 24 * 3600.0  # seconds a silent process without claims stays listed


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process. `started_at`, `heartbeat_at`: epoch seconds."""

    identity: ProcessIdentity
    role: str
    started_at: float
    heartbeat_at: float


def register(tx: Tx, identity: ProcessIdentity, *, role: str, now: float) -> None:
    """Make `identity` known, so that it may own claims."""
    tx.execute(sql.FORGET_OLD_PROCESSES, (now - FORGET_AFTER,))
    tx.execute(
        sql.REGISTER_PROCESS,
        (identity.id, role, identity.boot_id, identity.pid, identity.start_ticks, now, now),
    )


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
