"""The queue alone: no-op jobs through the real worker, beside plain sqlite3."""

from __future__ import annotations

import statistics
from pathlib import Path

import anyio

from stackd.cli.bench.figures import Figure, clock
from stackd.core.events import EventBus
from stackd.core.process import current_process
from stackd.queue import processes, verbs
from stackd.queue.job import Complete, Job, JobSettled, NewJob, RetryPolicy
from stackd.queue.processes import Watch
from stackd.services.worker import Worker
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.floor import Floor, queue_floor
from stackd.supervisor.service import Pulse

ROUNDS = 5


async def measure_queue(folder: Path, scale: float) -> list[Figure]:
    """No-op jobs, enqueued in batches and drained by a real worker, beside plain sqlite3; medians of rounds."""
    jobs = int(20_000 * scale)
    floors: list[Floor] = []
    enqueued, drained = [], []
    for number in range(ROUNDS):  # in turn: the machine's speed changes while we measure
        place = folder / str(number)
        place.mkdir()
        floors.append(await anyio.to_thread.run_sync(queue_floor, place / "raw.db", jobs, clock))
        async with open_database(place / "stackd.db", clock=clock, events=EventBus()) as store:
            enqueued.append(await _enqueue(store, jobs))
            drained.append(await _drain(store, jobs))
    middle = statistics.median
    ratio = middle(ours / raw.drained for ours, raw in zip(drained, floors, strict=True))
    put, ended = middle(f.enqueued for f in floors), middle(f.drained for f in floors)
    return [
        Figure("queue.enqueue", middle(enqueued), "jobs/s", 20_000, higher=True, floor=put),
        Figure("queue.drain", middle(drained), "jobs/s", 10_000, higher=True, floor=ended),
        Figure("queue.drain_ratio", ratio, "of floor", 0.2, higher=True),
    ]


async def _enqueue(store: Database, jobs: int) -> float:
    batch = [NewJob("bench.noop", priority=0) for _ in range(500)]
    began = clock.monotonic()
    for _ in range(0, jobs, len(batch)):
        await store.write(lambda tx: verbs.enqueue(tx, batch, now=clock.time()))
    return jobs / (clock.monotonic() - began)


class _NoOps:
    """Claims jobs of the queue and ends each at once, in a write of its own, as a run would."""

    running = 0

    def __init__(self, store: Database) -> None:
        self._store = store

    def claim(self, tx: Tx, *, owner: str, limit: int, lease: float, now: float) -> list[Job]:
        return verbs.claim(tx, owner=owner, limit=limit, lease=lease, now=now)

    async def execute(self, job: Job) -> None:
        now, policy = clock.time(), RetryPolicy()
        await self._store.write(
            lambda tx: verbs.settle(tx, job, Complete(), now=now, policy=policy, roll=0.0)
        )

    def rescue(self, tx: Tx, *, me: str, watch: Watch, now: float, anew: bool = False) -> int:
        owners = verbs.dead_owners(tx, me=me, watch=watch) + [me] * anew
        return len(verbs.rescue(tx, owners=owners, now=now))

    def cancel(self, seq: int) -> None:
        pass

    def wake(self, seq: int) -> None:
        pass

    def waiting(self) -> dict[int, int]:
        return {}


async def _drain(store: Database, jobs: int) -> float:
    """Jobs per second through the worker as the daemon runs it."""
    identity = current_process()
    await store.write(lambda tx: processes.register(tx, identity, role="bench", now=clock.time()))
    settled = 0
    all_settled = anyio.Event()

    def count(_: object) -> None:
        nonlocal settled
        settled += 1
        if settled >= jobs:
            all_settled.set()

    store.events.subscribe(count, JobSettled)
    worker = Worker(
        store=store,
        runtime=_NoOps(store),
        events=store.events,
        clock=clock,
        owner=identity.id,
        slots=64,
        lease=60.0,
        lease_renew=15.0,
        pulse=Pulse(clock),
    )
    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await all_settled.wait()
        took = clock.monotonic() - began
        worker.drain()
    return jobs / took
