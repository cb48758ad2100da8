"""`stackd bench`: the budgets measured on this machine, one JSON line per figure.

Every figure of the queue stands beside a floor taken in the same run on the same disk: what plain sqlite3
does with the same number of synced transactions. Machines differ and are noisy; the ratio carries over.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import psutil

from stackd.cli.demo import ChildDaemon, run_until_signalled
from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.core.json import dumps, loads
from stackd.core.process import current_process
from stackd.queue import processes, verbs
from stackd.queue.job import Complete, Job, JobSettled, NewJob, RetryPolicy
from stackd.queue.processes import Watch
from stackd.services.worker import Worker
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.floor import Floor, commit_floor, queue_floor

SENDERS = 16
ROUNDS = 5
THREE_STEPS = {
    "id": "bench",
    "nodes": [
        {"id": "hook", "type": "trigger.webhook.inbound", "params": {"path": "bench"}},
        {
            "id": "first",
            "type": "transform.data.set",
            "params": {"values": {"number": "{{ hook.body.number }}"}},
        },
        {
            "id": "second",
            "type": "transform.data.set",
            "params": {"values": {"text": "order {{ first.number }}"}},
        },
        {
            "id": "third",
            "type": "transform.data.set",
            "params": {"values": {"text": "{{ second.text | upper }}"}},
        },
    ],
    "edges": [
        {"from": "hook", "to": "first"},
        {"from": "first", "to": "second"},
        {"from": "second", "to": "third"},
    ],
}

_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. `budget`: at least this if `higher`, else at most this; None: for information."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    higher: bool = False
    floor: float | None = None

    def as_json(self) -> dict[str, Any]:
        view: dict[str, Any] = {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "budget": self.budget,
            "withinBudget": self.is_within,
        }
        if self.floor is not None:
            view["floor"] = round(self.floor, 3)
            view["ratio"] = round(self.value / self.floor, 3)
        view["cores"] = os.cpu_count()
        view["python"] = ".".join(map(str, sys.version_info[:3]))
        return view

    @property
    def is_within(self) -> bool | None:
        if self.budget is None:
            return None
        return self.value >= self.budget if self.higher else self.value <= self.budget


def run_bench(*, only: str | None, scale: float) -> int:
    """Measure and print; 0 if every budget is held, else 1."""
    held = True
    for name, measure in MEASURES.items():
        if only is not None and only not in name:
            continue
        with _folder() as folder:
            for figure in run_until_signalled(measure, folder, scale, use_uvloop=True):
                held &= figure.is_within is not False
                print(json.dumps(figure.as_json()), flush=True)
    return 0 if held else 1


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stackd-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the queue


async def measure_queue(folder: Path, scale: float) -> list[Figure]:
    """No-op jobs, enqueued in batches and drained by a real worker, beside plain sqlite3; medians of rounds."""
    jobs = int(20_000 * scale)
    floors: list[Floor] = []
    enqueued, drained = [], []
    for number in range(ROUNDS):  # in turn: the machine's speed changes while we measure
        place = folder / str(number)
        place.mkdir()
        floors.append(await anyio.to_thread.run_sync(queue_floor, place / "raw.db", jobs, _clock))
        async with open_database(place / "stackd.db", clock=_clock, events=EventBus()) as store:
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
    began = _clock.monotonic()
    for _ in range(0, jobs, len(batch)):
        await store.write(lambda tx: verbs.enqueue(tx, batch, now=_clock.time()))
    return jobs / (_clock.monotonic() - began)


class _NoOps:
    """Claims jobs of the queue and ends each at once, in a write of its own, as a run would."""

    running = 0

    def __init__(self, store: Database) -> None:
        self._store = store

    def claim(self, tx: Tx, *, owner: str, limit: int, lease: float, now: float) -> list[Job]:
        return verbs.claim(tx, owner=owner, limit=limit, lease=lease, now=now)

    async def execute(self, job: Job) -> None:
        now, policy = _clock.time(), RetryPolicy()
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
    await store.write(lambda tx: processes.register(tx, identity, role="bench", now=_clock.time()))
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
        clock=_clock,
        owner=identity.id,
        slots=64,
        lease=60.0,
        lease_renew=15.0,
    )
    began = _clock.monotonic()
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await all_settled.wait()
        took = _clock.monotonic() - began
        worker.drain()
    return jobs / took


# -- the whole daemon, as a child process


@asynccontextmanager
async def _daemon(folder: Path) -> AsyncIterator[tuple[ChildDaemon, aiohttp.ClientSession, float]]:
    """A ready daemon, a session to it, and the seconds from exec to ready."""
    connector = aiohttp.TCPConnector(limit=0)
    with (folder / "daemon.log").open("wb") as log:
        daemon = ChildDaemon(folder, log)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                began = _clock.monotonic()
                daemon.start()
                await daemon.until_ready(session)
                yield daemon, session, _clock.monotonic() - began
        finally:
            daemon.stop()


def _token(folder: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(folder / 'dev-token').read_text().strip()}"}


async def _import(daemon: ChildDaemon, session: aiohttp.ClientSession, document: Any) -> None:
    async with session.post(
        f"{daemon.url}/api/workflows?activate=true",
        data=dumps(document),
        headers=_token(daemon.state),
    ) as answer:
        answer.raise_for_status()


async def measure_webhooks(folder: Path, scale: float) -> list[Figure]:
    """Webhook to finished three-step execution, all history kept: throughput, then latency at half of it."""
    async with _daemon(folder) as (daemon, session, _):
        await _import(daemon, session, THREE_STEPS)
        await _flood(daemon, session, int(200 * scale))  # caches and pages are warm, as in use
        count = int(4_000 * scale)
        began = _clock.monotonic()
        await _flood(daemon, session, count)
        await _until_idle(daemon, session)
        rate = count / (_clock.monotonic() - began)
        acks = await _paced(daemon, session, rate / 2, seconds=4 * scale)
        await _until_idle(daemon, session)
        runs = await _run_seconds(daemon, session)
    return [
        Figure("webhook.three_steps", rate, "executions/s", 1_000, higher=True),
        Figure("webhook.ack_p50", _share(acks, 0.5) * 1000, "ms", 3),
        Figure("webhook.ack_p99", _share(acks, 0.99) * 1000, "ms", 20),
        Figure("webhook.execution_p50", _share(runs, 0.5) * 1000, "ms"),
        Figure("webhook.execution_p99", _share(runs, 0.99) * 1000, "ms"),
    ]


async def _flood(daemon: ChildDaemon, session: aiohttp.ClientSession, count: int) -> None:
    numbers = iter(range(count))

    async def send() -> None:
        for number in numbers:
            await _post(daemon, session, number)

    async with anyio.create_task_group() as tasks:
        for _ in range(SENDERS * 4):
            tasks.start_soon(send)


async def _post(daemon: ChildDaemon, session: aiohttp.ClientSession, number: int) -> float:
    began = _clock.monotonic()
    async with session.post(
        f"{daemon.url}/api/webhooks/bench",
        data=b'{"number": %d}' % number,
        headers={"Content-Type": "application/json"},
    ) as answer:
        answer.raise_for_status()
        await answer.read()
    return _clock.monotonic() - began


async def _paced(
    daemon: ChildDaemon, session: aiohttp.ClientSession, rate: float, *, seconds: float
) -> list[float]:
    """Acknowledgement times at `rate` deliveries per second, sent when due whatever is still open."""
    acks: list[float] = []

    async def one(number: int) -> None:
        acks.append(await _post(daemon, session, number))

    began = _clock.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(int(rate * seconds)):
            wait = began + number / rate - _clock.monotonic()
            if wait > 0:
                await _clock.sleep(wait)
            tasks.start_soon(one, number)
    return acks


async def _until_idle(daemon: ChildDaemon, session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get(f"{daemon.url}/api/queue", headers=_token(daemon.state)) as answer:
            counts = loads(await answer.read())["counts"]
        if not any(
            counts.get(state) for state in ("available", "running", "scheduled", "retryable")
        ):
            return
        await _clock.sleep(0.01)


async def _run_seconds(daemon: ChildDaemon, session: aiohttp.ClientSession) -> list[float]:
    """From acceptance to end, of the last 500 executions."""
    from stackd.cli.demo import seconds_between

    async with session.get(
        f"{daemon.url}/api/executions?limit=500", headers=_token(daemon.state)
    ) as answer:
        items = loads(await answer.read())["items"]
    return [seconds_between(i["createdAt"], i["finishedAt"]) for i in items if i["finishedAt"]]


async def measure_single(folder: Path, scale: float) -> list[Figure]:
    """One execution of three steps at a time on an idle box, asked for and answered over HTTP.

    Its floor is the one synced commit that none of them can do without.
    """
    floor = await anyio.to_thread.run_sync(commit_floor, folder / "raw.db", _clock)
    document = {
        **THREE_STEPS,
        "nodes": [{"id": "hook", "type": "trigger.time.manual"}, *THREE_STEPS["nodes"][1:]],
    }
    async with _daemon(folder) as (daemon, session, _):
        await _import(daemon, session, document)
        headers = _token(folder)
        times = []
        for number in range(int(200 * scale)):
            began = _clock.monotonic()
            async with session.post(
                f"{daemon.url}/api/workflows/bench/run?wait=5",
                data=dumps({"input": {"body": {"number": number}}}),
                headers=headers,
            ) as answer:
                answer.raise_for_status()
                await answer.read()
            times.append(_clock.monotonic() - began)
    return [
        Figure("execution.idle_p50", _share(times, 0.5) * 1000, "ms", 8, floor=floor * 1000),
        Figure("execution.idle_p99", _share(times, 0.99) * 1000, "ms"),
    ]


async def measure_idle(folder: Path, scale: float) -> list[Figure]:
    """What the daemon costs when nothing happens, and how soon it is ready."""
    starts = []
    for number in range(5):
        (folder / str(number)).mkdir()
        async with _daemon(folder / str(number)) as (_, _, seconds):
            starts.append(seconds)
    async with _daemon(folder) as (daemon, _, _):
        assert daemon.process is not None  # noqa: S101  # it is ready
        process = psutil.Process(daemon.process.pid)
        await _clock.sleep(2.0)  # what starting costs is over
        before = process.cpu_times()
        seconds = 10.0 * scale
        await _clock.sleep(seconds)
        after = process.cpu_times()
        busy = (after.user + after.system) - (before.user + before.system)
        rss = process.memory_info().rss / 1024 / 1024
    return [
        Figure("daemon.ready", statistics.median(starts), "s", 1.5),
        Figure("daemon.rss", rss, "MiB", 80),
        Figure("daemon.idle_cpu", busy / seconds * 100, "%", 0.5),
    ]


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


Measure = Callable[[Path, float], Any]
MEASURES: dict[str, Measure] = {
    "queue": measure_queue,
    "webhook": measure_webhooks,
    "execution": measure_single,
    "daemon": measure_idle,
}
