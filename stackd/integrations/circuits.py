"""Circuit breakers: an operation whose far side is down rests, and one try at a time finds out whether it is back.

Three failures in a row open one for a minute; then one try goes through, and its success closes it. They stand in the
store, so a restart asks no sooner, and every process of a store rests with the others (within two seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import anyio

from stackd.core.clock import Clock, rfc3339
from stackd.core.errors import NodeError, StoreBusyError, StoreFullError
from stackd.core.events import Event
from stackd.core.json import Json, dumps, loads
from stackd.integrations import statements as sql
from stackd.store.connection import Tx
from stackd.store.database import Database

FAILURES: Final = 3  # in a row
COOLDOWN: Final = 60.0  # seconds; both as the origin's
FRESH: Final = 1.0  # seconds for which what was read is believed
OWN: Final = 2.0  # seconds for which what this process knows may not be in the store yet
LOOK_AGAIN: Final = 1.0  # seconds after which who waits for a probe, or for the store, asks again
FORGOTTEN: Final = 24 * 3600.0  # seconds after which failures say nothing any more

# Failures of the far side, or of the way there; others say nothing of the next request.
COUNTED: Final = frozenset({"timeout", "network", "service_unavailable", "server_error"})


State = Literal["closed", "open", "half_open"]


class Circuit(NamedTuple):
    """A circuit that has not just succeeded. `credential`: '' without one."""

    connector: str
    operation: str
    credential: str
    failures: int
    open_until: float | None
    probe_until: float | None
    failure: bytes
    failed_at: float

    def state(self, now: float) -> State:
        """`closed`, `open`, or `half_open`: one may try."""
        if self.open_until is None:
            return "closed"
        return "open" if self.open_until > now else "half_open"

    @property
    def last_failure(self) -> dict[str, Json]:
        found: dict[str, Json] = loads(self.failure)
        return found


Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class CircuitsClosed(Event):
    """A person lets operations be asked for again. `operation`: none: all of the connector."""

    connector: str
    operation: str | None
    closed: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What this process knows of one; `circuit` None: it is closed."""

    circuit: Circuit | None
    since: float  # by the monotonic clock


class Circuits:
    """The circuits of a store, as one process sees them."""

    def __init__(self, store: Database, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[Key, _Known] = {}
        self._reading = anyio.Lock()
        self._read_at: float | None = None
        store.events.subscribe(self._hear, CircuitsClosed)

    def _hear(self, event: Event) -> None:
        if isinstance(event, CircuitsClosed):
            for key in list(self._known):
                if key[0] == event.connector and event.operation in (None, key[1]):
                    del self._known[key]

    async def refuse(self, key: Key) -> None:
        """Return if the operation may be asked for, perhaps as a probe.

        Raises:
            NodeError: it rests; nothing was sent.
        """
        await self._look()
        circuit = self._open(key)
        if circuit is not None:
            left = (circuit.open_until or 0.0) - self._clock.time()
            if 0.0 < left <= COOLDOWN:  # a clock that was set back does not let it rest for longer
                raise self._resting(circuit, left)

    async def wait(self, key: Key, *, timeout: float) -> float:
        """0 if the operation may be asked for now; else the seconds after which another's probe has told more.

        Args:
            timeout: seconds that a try takes at most; a probe that nobody has heard of since then, or for a minute, is
                over.
        """
        circuit = self._open(key)
        if circuit is None:
            return 0.0
        now = self._clock.time()
        until = now + min(timeout, COOLDOWN)
        try:
            probes = await self._store.write(lambda tx: _probes(tx, key, until=until, now=now))
        except (StoreBusyError, StoreFullError):
            return LOOK_AGAIN
        if probes:
            self._know(key, circuit._replace(open_until=now, probe_until=until))
            return 0.0
        self._read_at = None  # another was quicker, or it is closed
        return LOOK_AGAIN

    def probed(self, key: Key) -> float:
        """The seconds after which to ask again while another tries whether it is well; 0: nobody does."""
        circuit, now = self._open(key), self._clock.time()
        until = 0.0 if circuit is None else circuit.probe_until or 0.0
        return LOOK_AGAIN if now < until <= now + COOLDOWN else 0.0

    def _open(self, key: Key) -> Circuit | None:
        known = self._known.get(key)
        circuit = None if known is None else known.circuit
        return None if circuit is None or circuit.open_until is None else circuit

    def ended(self, key: Key, error: NodeError | None) -> Callable[[Tx], None] | None:
        """Take note of how a try ended; what writes it down, if there is something to write."""
        known = self._known.get(key)
        circuit = None if known is None else known.circuit
        if error is None or error.kind not in COUNTED:
            if circuit is None:
                return None
            if error is None or error.answered:  # whatever it said, it is there
                self._know(key, None)
                return lambda tx: _do(tx, sql.CLOSE_CIRCUIT, key)
            if circuit.open_until is None:
                return None
            self._know(key, circuit._replace(probe_until=None))
            return lambda tx: _do(tx, sql.END_PROBE, key)
        now = self._clock.time()
        failure = dumps({"code": error.code, "message": error.message[:300]})
        count = 1 if circuit is None else circuit.failures + 1
        until = now + COOLDOWN if count >= FAILURES else None
        self._know(key, Circuit(*key, count, until, None, failure, now))
        return lambda tx: _do(tx, sql.PUT_CIRCUIT, (*key, failure, now, FAILURES, COOLDOWN))

    def _know(self, key: Key, circuit: Circuit | None) -> None:
        self._known[key] = _Known(circuit, self._clock.monotonic())

    async def _look(self) -> None:
        """See what other processes, and people, have done to them."""
        if self._is_fresh():
            return
        async with self._reading:
            if self._is_fresh():
                return  # another has just looked
            began = self._clock.monotonic()
            with suppress(StoreBusyError):  # then it goes on with what is known
                found = await self._store.read(all_of)
                ours = {key: one for key, one in self._known.items() if one.since > began - OWN}
                self._known = {_key(one): _Known(one, began - OWN) for one in found} | ours
            self._read_at = began

    def _is_fresh(self) -> bool:
        return self._read_at is not None and self._clock.monotonic() - self._read_at < FRESH

    def _resting(self, circuit: Circuit, seconds: float) -> NodeError:
        return NodeError(
            f"{circuit.connector}.{circuit.operation} rests until {rfc3339(circuit.open_until)}: "
            f"its last {circuit.failures} tries failed ({circuit.last_failure['message']}); "
            f"`stackd connectors reset {circuit.connector}` asks at once",
            kind="service_unavailable",
            code="circuit.open",
            retry_after=seconds,
        )


def all_of(tx: Tx) -> list[Circuit]:
    """All circuits that are not simply closed."""
    return [Circuit(*row) for row in tx.rows(sql.LIST_CIRCUITS)]


def close(tx: Tx, connector: str, operation: str | None = None) -> int:
    """Close those of a connector, or of one of its operations, for all credentials; how many.

    Other processes of the store see it within `OWN` seconds.
    """
    if operation is None:
        count = tx.execute(sql.CLOSE_CIRCUITS_OF, (connector,))
    else:
        count = tx.execute(sql.CLOSE_CIRCUITS_OF_OPERATION, (connector, operation))
    tx.emit(CircuitsClosed(connector, operation, count))
    return count


def prune(tx: Tx, *, now: float, limit: int) -> int:
    """Forget up to `limit` failures that say nothing any more; how many."""
    return tx.execute(sql.FORGET_OLD_CIRCUITS, (now - FORGOTTEN, limit))


def _probes(tx: Tx, key: Key, *, until: float, now: float) -> bool:
    return bool(tx.execute(sql.PROBE_CIRCUIT, (until, *key, now, now + COOLDOWN, now, until)))


def _do(tx: Tx, statement: str, parameters: tuple[object, ...]) -> None:
    tx.execute(statement, parameters)


def _key(circuit: Circuit) -> Key:
    return circuit.connector, circuit.operation, circuit.credential
