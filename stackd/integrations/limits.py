"""The limits that connectors declare, kept over all processes of a store: who comes too early is told how long to wait.

Each limit is a token bucket, kept as one moment, when all that was granted is made up for (the generic cell rate
algorithm, ITU-T I.371). A process takes up to a second's worth at a time from the store and spends that in memory, so
a limit of many requests a second costs one small write a second. Who has to wait is put in a row, one
behind the other, so that a thousand of them do not all come back at the same moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
from cachetools import LRUCache
from yarl import URL

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.json import Json, dumps
from stackd.integrations import statements as sql
from stackd.integrations.account import Account
from stackd.integrations.definition import RateLimit
from stackd.integrations.plan import Plan
from stackd.store.connection import Tx
from stackd.store.database import Database

WORTH: Final = 1.0  # seconds of a limit that a process takes at once, and has that long to spend
KNOWN: Final = 1_000  # groups of limits of which something is in hand
DROPPED: Final = 4  # rows that say nothing any more, removed with each that is written
LATE: Final = 1.0  # seconds that whoever has a turn may come late for it
BUSY: Final = 0.5  # seconds to wait where the store cannot be asked now


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit, of one credential, host or app.

    Attributes:
        id: a digest: what is limited may be the number of a person's chat.
        interval: seconds in which one request is made up for.
        burst: how many may go at once.
        words: as people are told of it.
    """

    id: bytes
    interval: float
    burst: float
    words: str


@dataclass(frozen=True, slots=True)
class Level:
    """How far a bucket is drawn on; the moments are of the wall clock."""

    free_at: float
    queue_until: float
    seen_at: float

    def at(self, now: float) -> Level:
        """The same, where the clock was set back since."""
        back = max(self.seen_at - now, 0.0)
        return Level(self.free_at - back, self.queue_until - back, now)

    @property
    def idle_at(self) -> float:
        return max(self.free_at, self.queue_until)


def granted(level: Level, bucket: Bucket, *, waited: bool) -> int:
    """How many requests may go at `level.seen_at`. Who has waited goes before who just comes."""
    now = level.seen_at
    # A turn that nobody has come for was of one who waits no more: the others need not wait for it.
    is_awaited = now < level.free_at + bucket.interval + LATE
    if not waited and level.queue_until > now and is_awaited:
        return 0
    depth = bucket.interval * (bucket.burst - 1)
    early = max(level.free_at, now) - depth - now
    return 0 if early > 0 else 1 + int(-early / bucket.interval + 1e-9)


def taken(level: Level, bucket: Bucket, count: int) -> Level:
    """After `count` requests were granted."""
    free_at = max(level.free_at, level.seen_at) + count * bucket.interval
    return Level(free_at, level.queue_until, level.seen_at)


def put_off(level: Level, bucket: Bucket, *, waited: bool) -> tuple[Level, float]:
    """After one has been told to wait, and the moment it may come again."""
    now = level.seen_at
    earliest = max(level.free_at - bucket.interval * (bucket.burst - 1), now)
    if waited:  # it was its turn, another was quicker
        return level, max(earliest, now + bucket.interval / 2)
    turn = max(earliest, level.queue_until)
    return Level(level.free_at, turn + bucket.interval, now), turn


class RateLimiter:
    """The declared limits of one process's operations."""

    def __init__(self, store: Database, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._in_hand: LRUCache[tuple[bytes, ...], tuple[int, float]] = LRUCache(KNOWN)
        self._locks: LRUCache[tuple[bytes, ...], anyio.Lock] = LRUCache(KNOWN)

    async def wait(self, buckets: Sequence[Bucket], *, waited: bool = False) -> float:
        """0 if a request may go now, and then it is counted; else the seconds after which to ask again.

        `waited`: whether it has been told to wait before.
        """
        if not buckets:
            return 0.0
        key = tuple(one.id for one in buckets)
        async with self._locks.setdefault(key, anyio.Lock()):
            count, until = self._in_hand.get(key, (0, 0.0))
            if count and self._clock.monotonic() < until:
                self._in_hand[key] = count - 1, until
                return 0.0
            now = self._clock.time()
            try:
                count, wait = await self._store.write(
                    lambda tx: _draw(tx, buckets, now=now, waited=waited), durable=False
                )
            except (StoreBusyError, StoreFullError):
                return BUSY
            if count:
                self._in_hand[key] = count - 1, self._clock.monotonic() + WORTH
            return wait

    def declined(self, buckets: Sequence[Bucket], seconds: float) -> Callable[[Tx], None]:
        """What writes down that the far side wants no request for `seconds`: others need not be told that by it."""
        self._in_hand.pop(tuple(one.id for one in buckets), None)
        now = self._clock.time()

        def change(tx: Tx) -> None:
            for bucket in buckets:
                level = _level(tx, bucket, now)
                free_at = now + seconds + bucket.interval * (bucket.burst - 1)
                _put(tx, bucket, Level(max(level.free_at, free_at), level.queue_until, now))

        return change


def _draw(tx: Tx, buckets: Sequence[Bucket], *, now: float, waited: bool) -> tuple[int, float]:
    """How many requests were taken of all of `buckets`; if none, the seconds to wait."""
    levels = [_level(tx, one, now) for one in buckets]
    tx.execute(sql.DROP_IDLE_RATE_LIMITS, (now, DROPPED))
    pairs = list(zip(levels, buckets, strict=True))
    count = min(
        min(granted(level, one, waited=waited), max(1, int(WORTH / one.interval)))
        for level, one in pairs
    )
    if count:
        for level, one in pairs:
            _put(tx, one, taken(level, one, count))
        return count, 0.0
    turn = now
    for level, one in pairs:
        if not granted(level, one, waited=waited):
            after, own = put_off(level, one, waited=waited)
            _put(tx, one, after)
            turn = max(turn, own)
    return 0, max(turn - now, 0.001)


def _level(tx: Tx, bucket: Bucket, now: float) -> Level:
    row = tx.one(sql.GET_RATE_LIMIT, (bucket.id,))
    return Level(now, now, now) if row is None else Level(*row).at(now)


def _put(tx: Tx, bucket: Bucket, level: Level) -> None:
    tx.execute(
        sql.PUT_RATE_LIMIT,
        (bucket.id, level.free_at, level.queue_until, level.seen_at, level.idle_at),
    )


def buckets_of(plan: Plan, params: Mapping[str, Json], account: Account) -> tuple[Bucket, ...]:
    """The limits that count each request of the operation.

    Raises:
        NodeError: one is of the host, and nobody says which that is.
    """
    own = f"{plan.app.id}.{plan.operation.id}"
    return tuple(
        _bucket(plan, f"{place}:{number}", limit, params, account)
        for place, limits in (
            (plan.app.id, plan.shared_limits),
            (own, tuple(enumerate(plan.operation.rate_limits))),
        )
        for number, limit in limits
    )


def _bucket(
    plan: Plan, place: str, limit: RateLimit, params: Mapping[str, Json], account: Account
) -> Bucket:
    of = ""
    if limit.scope == "host":
        of = URL(plan.base_url(account)).authority
    elif limit.scope == "connection":
        of = account.id or ""
    key = None if limit.key is None else plan.filled(limit.key, params)
    digest = hashlib.blake2b(dumps([place, limit.scope, of, key]), digest_size=16).digest()
    burst = max(limit.limit if limit.burst is None else limit.burst, 1.0)
    words = f"at most {limit.limit:g} in {limit.per:g} s"
    return Bucket(digest, limit.per / limit.limit, burst, words)
