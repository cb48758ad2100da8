"""The processes that work on this store: who may hold a claim, and when each was last heard of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stackd.core.clock import Clock
from stackd.core.process import ProcessIdentity, is_gone
from stackd.queue import statements as sql
from stackd.store.connection import Tx

WORKING_ROLES = frozenset({"stack", "worker", "api"})  # of processes that may run a worker
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
    """Who is silent for too long: seen with one's own eyes, by a clock that does not jump as wall clocks do.

    A time in which this process did not look says nothing: it may have been stopped together with the others.
    """

    def __init__(self, clock: Clock, *, patience: float) -> None:
        self._clock = clock
        self._patience = patience  # seconds
        self._heard: dict[str, _Heard] = {}  # by process

    def is_silent(self, process: str, heartbeat_at: float | None) -> bool:
        """Whether the heartbeat of `process` has stood still for as long as this watch has patience."""
        now = self._clock.monotonic()
        heard = self._heard.get(process)
        if (
            heard is None
            or heard.heartbeat_at != heartbeat_at
            or now - heard.looked_at > self._patience / 2
        ):
            heard = self._heard[process] = _Heard(heartbeat_at, since=now, looked_at=now)
        heard.looked_at = now
        return now - heard.since >= self._patience


@dataclass(slots=True)
class _Heard:
    """A heartbeat, when it was first seen and when last. By the monotonic clock."""

    heartbeat_at: float | None
    since: float
    looked_at: float


def register(
    tx: Tx,
    identity: ProcessIdentity,
    *,
    role: str,
    now: float,
    excluded: Collection[str] = (),
) -> None:
    """Make `identity` known, so that it may own claims; forget who is gone and was silent for long.

    Args:
        excluded: roles that nobody else can run now, because this process holds a lock which they need.
            A process of another pid namespace that is known under one of them has ended: so a container
            that starts again takes back at once what its predecessor held.
    """
    tx.execute(
        sql.REGISTER_PROCESS,
        (
            identity.id,
            role,
            identity.boot_id,
            identity.namespace,
            identity.pid,
            identity.start_ticks,
            now,
            now,
        ),
    )
    for row in listed(tx):
        is_elsewhere = row.identity.namespace != identity.namespace
        if row.role in excluded and is_elsewhere:
            tx.execute(sql.FORGET_PROCESS, (row.identity.id,))
    for process, boot, namespace, pid, ticks in tx.rows(
        sql.SILENT_PROCESSES, (now - FORGET_AFTER,)
    ):
        if is_gone(ProcessIdentity(boot, namespace, pid, ticks)):
            tx.execute(sql.FORGET_PROCESS, (process,))


def beat(tx: Tx, identity: ProcessIdentity, *, now: float) -> None:
    tx.execute(sql.BEAT, (now, identity.id))


def forget(tx: Tx, identity: ProcessIdentity) -> None:
    """Remove a process that has given back all its claims."""
    tx.execute(sql.FORGET_PROCESS, (identity.id,))


def listed(tx: Tx) -> list[ProcessRow]:
    return [
        ProcessRow(ProcessIdentity(boot, namespace, pid, ticks), role, started_at, heartbeat_at)
        for _, role, boot, namespace, pid, ticks, started_at, heartbeat_at in tx.rows(
            sql.LIST_PROCESSES
        )
    ]
