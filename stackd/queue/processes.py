"""The processes that work on this store: who may hold a claim, and when each was last heard of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from stackd import __version__
from stackd.core.clock import Clock
from stackd.core.json import dumps, loads
from stackd.core.process import ProcessIdentity, is_gone, pid_namespace
from stackd.queue import statements as sql
from stackd.store.connection import Tx
from stackd.store.migrations import schema_version

SILENT_LEASES = 3  # a process whose heartbeat stands still for this many leases is taken for dead
FORGET_AFTER = 24 * 3600.0  # seconds a silent process without claims stays listed


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a process found where all on one store must agree.

    Attributes:
        store, state: device and inode of the file, and of the state directory, by whatever path; locks and blobs
            are in the latter.
        store_path, state_path: those paths; they may differ.
        schema: of the file when the process had opened it, which is the one that its code knows.
        version: of stackd.
        lease: seconds.
        works: whether it runs a worker; in this they may differ.
    """

    store: str
    store_path: str
    state: str
    state_path: str
    lease: float
    version: str = __version__
    schema: int = 0
    works: bool = True


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process. `started_at`, `heartbeat_at`: epoch seconds. `resolved`: None if it has not said."""

    identity: ProcessIdentity
    role: str
    started_at: float
    heartbeat_at: float
    resolved: Resolved | None

    @property
    def works(self) -> bool:
        """Whether it runs a worker, as far as it has said."""
        return self.role in ("stack", "worker") if self.resolved is None else self.resolved.works

    @property
    def name(self) -> str:
        return f"{self.role} (pid {self.identity.pid})"


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
    resolved: Resolved | None = None,
) -> bool:
    """Make `identity` known, so that it may own claims; forget who is gone and was silent for long.

    Returns whether somebody known has ended without giving back what it had.

    Args:
        excluded: roles that nobody else can run now, because this process holds a lock which they need.
            A process of another pid namespace that is known under one of them has ended: so a container
            that starts again takes back at once what its predecessor held.
        resolved: what it found, but for the schema.
    """
    if resolved is not None:
        resolved = replace(resolved, schema=schema_version(tx))
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
            None if resolved is None else dumps(asdict(resolved)).decode(),
        ),
    )
    has_died = False
    for row in listed(tx):
        is_elsewhere = row.identity.namespace != identity.namespace
        if row.role in excluded and is_elsewhere:
            has_died = True
            tx.execute(sql.FORGET_PROCESS, (row.identity.id,))
        has_died |= is_gone(row.identity)
    forget_gone(tx, silent_since=now - FORGET_AFTER)
    return has_died


def forget_gone(tx: Tx, *, silent_since: float) -> None:
    """Remove those that are gone, hold no claim, and were not heard of since then."""
    for process, boot, namespace, pid, ticks in tx.rows(sql.SILENT_PROCESSES, (silent_since,)):
        if is_gone(ProcessIdentity(boot, namespace, pid, ticks)):
            tx.execute(sql.FORGET_PROCESS, (process,))


def beat(tx: Tx, identity: ProcessIdentity, *, now: float) -> None:
    tx.execute(sql.BEAT, (now, identity.id))


def forget(tx: Tx, identity: ProcessIdentity) -> None:
    """Remove a process that has given back all its claims."""
    tx.execute(sql.FORGET_PROCESS, (identity.id,))


def listed(tx: Tx) -> list[ProcessRow]:
    return [
        ProcessRow(
            ProcessIdentity(boot, namespace, pid, ticks),
            role,
            started_at,
            heartbeat_at,
            _read(resolved),
        )
        for role, boot, namespace, pid, ticks, started_at, heartbeat_at, resolved in tx.rows(
            sql.LIST_PROCESSES
        )
    ]


def _read(resolved: str | None) -> Resolved | None:
    """What a process wrote down; None also where another version of stackd wrote what this one cannot read."""
    try:
        return None if resolved is None else Resolved(**loads(resolved))
    except (TypeError, ValueError):
        return None


def resolve(store: Path, state: Path, *, lease: float, works: bool) -> Resolved:
    """What this process finds. Looks at files: nothing for the event loop."""
    return Resolved(_place(store), str(store), _place(state), str(state), lease, works=works)


def _place(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"


def differences(rows: Sequence[ProcessRow], *, now: float) -> Iterator[str]:
    """Where processes that live do not agree: both named, with what each found."""
    living = [row for row in rows if row.resolved is not None and may_live(row, now=now)]
    for one, other in pairwise(living):
        for what, found in _found(one).items():
            if found[0] != (others := _found(other)[what])[0]:
                yield f"{what}: {one.name} has {found[1]}, {other.name} has {others[1]}"


def _found(row: ProcessRow) -> dict[str, tuple[object, str]]:
    """What is compared, and how it is told, by its name."""
    found = row.resolved
    assert found is not None  # noqa: S101  # others are left out
    return {
        "store": (found.store, f"{found.store_path} ({found.store})"),
        "state directory": (found.state, f"{found.state_path} ({found.state})"),
        "schema": (found.schema, str(found.schema)),
        "version": (found.version, found.version),
        "EXECUTION_LOCK_DURATION_MS": (found.lease, f"{found.lease * 1000:g}"),
    }


def may_live(row: ProcessRow, *, now: float) -> bool:
    """Whether the process lives; of one in another pid namespace only its heartbeat tells."""
    if is_gone(row.identity):
        return False
    lease = row.resolved.lease if row.resolved is not None else 0.0
    is_here = row.identity.namespace == pid_namespace()
    return is_here or now - row.heartbeat_at < SILENT_LEASES * lease
