"""`stackd bench`: the budgets measured on this machine, one JSON line per figure.

Figures stand beside a floor taken in the same run on the same disk, in turn with them: for the queue what plain
sqlite3 does with the same number of synced transactions, for the daemon a bare server that keeps each delivery
and runs nothing (`stackd/store/floor_server.py`). Machines differ and are noisy; the ratio carries over.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import aiohttp
import anyio
import psutil

from stackd.cli.demo import ChildDaemon, run_until_signalled
from stackd.cli.figures import Figure, clock
from stackd.cli.growth import measure_growth
from stackd.core.events import EventBus
from stackd.core.json import dumps, loads
from stackd.core.process import current_process
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.queue import processes, verbs
from stackd.queue.job import Complete, Job, JobSettled, NewJob, RetryPolicy
from stackd.queue.processes import Watch
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.runtime.context import NodeContext
from stackd.runtime.nodes import HANDLERS
from stackd.services.worker import Worker
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.floor import Floor, commit_floor, queue_floor

SENDERS = 16
ROUNDS = 5
WEBHOOK_ROUNDS = 3
HTTP_ROUNDS = 20  # short ones: both are met by what else the machine does
STARTS = 3
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
    )
    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await all_settled.wait()
        took = clock.monotonic() - began
        worker.drain()
    return jobs / took


# -- the whole daemon, as a child process


class BareServer(ChildDaemon):
    """The floor of the daemon: what takes the same deliveries and keeps them, in as few words as that takes."""

    @property
    def words(self) -> list[str]:
        file = self.state / "floor.db"
        return ["-m", "stackd.store.floor_server", str(file), str(self.port)]


@asynccontextmanager
async def _ready(
    kind: type[ChildDaemon], folder: Path
) -> AsyncIterator[tuple[ChildDaemon, aiohttp.ClientSession, float]]:
    """A ready daemon or bare server, a session to it, and the seconds from exec to ready."""
    connector = aiohttp.TCPConnector(limit=0)
    with _log_in(folder) as log:
        daemon = kind(folder, log)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                began = clock.monotonic()
                daemon.start()
                await daemon.until_ready(session)
                yield daemon, session, clock.monotonic() - began
        finally:
            daemon.stop()


@contextmanager
def _log_in(folder: Path) -> Iterator[IO[bytes]]:
    folder.mkdir()
    with (folder / "daemon.log").open("wb") as log:
        yield log


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
    """Webhook to finished three-step execution, all history kept: throughput, then latency at half of it.

    The bare server gets the same deliveries at the same rates, and has done its work when it has answered.
    """
    count, seconds = int(1_500 * scale), 2 * scale
    rates, bare_rates = [], []
    acks: list[float] = []
    bare_acks: list[float] = []
    async with (
        _ready(BareServer, folder / "floor") as (bare, to_bare, _),
        _ready(ChildDaemon, folder / "ours") as (daemon, session, _),
    ):
        await _import(daemon, session, THREE_STEPS)
        await _flood(bare, to_bare, int(200 * scale))  # caches and pages are warm, as in use
        await _flood(daemon, session, int(200 * scale))
        await _until_idle(daemon, session)
        for _ in range(WEBHOOK_ROUNDS):
            began = clock.monotonic()
            await _flood(bare, to_bare, count)
            bare_rates.append(count / (clock.monotonic() - began))
            began = clock.monotonic()
            await _flood(daemon, session, count)
            await _until_idle(daemon, session)
            rates.append(count / (clock.monotonic() - began))
        rate, bare_rate = statistics.median(rates), statistics.median(bare_rates)
        for _ in range(2):
            bare_acks += await _paced(bare, to_bare, rate / 2, seconds=seconds)
            acks += await _paced(daemon, session, rate / 2, seconds=seconds)
            await _until_idle(daemon, session)
        runs = await _run_seconds(daemon, session)
    return [
        Figure("webhook.three_steps", rate, "executions/s", 1_000, higher=True, floor=bare_rate),
        Figure("webhook.ack_p50", *_ms(acks, 0.5), 3, floor=_ms(bare_acks, 0.5)[0]),
        Figure("webhook.ack_p99", *_ms(acks, 0.99), 20, floor=_ms(bare_acks, 0.99)[0]),
        Figure("webhook.execution_p50", *_ms(runs, 0.5)),
        Figure("webhook.execution_p99", *_ms(runs, 0.99)),
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
    began = clock.monotonic()
    async with session.post(
        f"{daemon.url}/api/webhooks/bench",
        data=b'{"number": %d}' % number,
        headers={"Content-Type": "application/json"},
    ) as answer:
        answer.raise_for_status()
        await answer.read()
    return clock.monotonic() - began


async def _paced(
    daemon: ChildDaemon, session: aiohttp.ClientSession, rate: float, *, seconds: float
) -> list[float]:
    """Acknowledgement times at `rate` deliveries per second, sent when due whatever is still open."""
    acks: list[float] = []

    async def one(number: int) -> None:
        acks.append(await _post(daemon, session, number))

    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(int(rate * seconds)):
            wait = began + number / rate - clock.monotonic()
            if wait > 0:
                await clock.sleep(wait)
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
        await clock.sleep(0.01)


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
    floor = await anyio.to_thread.run_sync(commit_floor, folder / "raw.db", clock)
    document = {
        **THREE_STEPS,
        "nodes": [{"id": "hook", "type": "trigger.time.manual"}, *THREE_STEPS["nodes"][1:]],
    }
    async with _ready(ChildDaemon, folder / "ours") as (daemon, session, _):
        await _import(daemon, session, document)
        headers = _token(daemon.state)
        times = []
        for number in range(int(200 * scale)):
            began = clock.monotonic()
            async with session.post(
                f"{daemon.url}/api/workflows/bench/run?wait=5",
                data=dumps({"input": {"body": {"number": number}}}),
                headers=headers,
            ) as answer:
                answer.raise_for_status()
                await answer.read()
            times.append(clock.monotonic() - began)
    return [
        Figure("execution.idle_p50", *_ms(times, 0.5), 8, floor=floor * 1000),
        Figure("execution.idle_p99", *_ms(times, 0.99)),
    ]


# -- a step that calls an API


async def measure_http(folder: Path, scale: float) -> list[Figure]:
    """HTTP steps against a server on this machine, beside a bare aiohttp loop with the same payload, in turn.

    A step is what a node does from its parameters to its output: the egress rules, what is known of the sending,
    the body read within its limit.
    """
    count = int(500 * scale)
    payload = {"order": 12345, "items": [{"sku": f"A-{n}", "count": n} for n in range(20)]}
    steps: list[float] = []
    bare: list[float] = []
    async with (
        _ready(BareServer, folder / "far") as (far, session, _),
        open_database(folder / "stackd.db", clock=clock, events=EventBus()) as store,
        HttpClient(EgressPolicy(allow_loopback=True), clock=clock) as http,
    ):
        limits = BlobLimits(one=2**20, all=2**20)
        blobs = BlobFolder(folder / "blobs", store, clock=clock, limits=limits)
        url = f"{far.url}/echo"

        async def step() -> None:
            params = {"method": "POST", "url": url, "json": payload}
            output = await HANDLERS["action.http.request"](params, _context(http, blobs))
            assert output["body"] == payload  # noqa: S101  # else nothing was measured

        async def plain() -> None:
            async with session.post(url, json=payload) as answer:
                assert await answer.json() == payload  # noqa: S101  # as above

        for one in (step, plain):  # connections stand, caches are warm
            await _rate(one, count)
        for _ in range(HTTP_ROUNDS):
            for rates, one in ((bare, plain), (steps, step)):
                rates.append(await _rate(one, count))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(steps, bare, strict=True))
    return [
        Figure("http.steps", statistics.median(steps), "requests/s", floor=statistics.median(bare)),
        Figure("http.steps_ratio", ratio, "of floor", 0.7, higher=True),
    ]


def _context(http: HttpClient, blobs: BlobFolder) -> NodeContext:
    return NodeContext(
        clock=clock,
        http=http,
        blobs=blobs,
        unsafe=False,
        idempotency_key="a key of some length",
        timeout=30.0,
        max_bytes=2**20,
        tell_sent=lambda: None,
        tell_answered=lambda: None,
    )


async def _rate(one: Callable[[], Awaitable[None]], count: int) -> float:
    """How often `one` is done per second, SENDERS at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await one()

    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        for _ in range(SENDERS):
            tasks.start_soon(work)
    return count / (clock.monotonic() - began)


async def measure_idle(folder: Path, scale: float) -> list[Figure]:
    """What the daemon costs when nothing happens, and how soon it is ready; beside the bare server."""
    starts, bare_starts = [], []
    for number in range(STARTS):
        async with _ready(BareServer, folder / f"floor{number}") as (_, _, seconds):
            bare_starts.append(seconds)
        async with _ready(ChildDaemon, folder / f"ours{number}") as (_, _, seconds):
            starts.append(seconds)
    async with (
        _ready(BareServer, folder / "floor") as (bare, _, _),
        _ready(ChildDaemon, folder / "ours") as (daemon, _, _),
    ):
        await clock.sleep(2.0)  # what starting costs is over
        bare_cpu, cpu = await _idle_cpu([bare, daemon], seconds=10.0 * scale)
        bare_rss, rss = (
            psutil.Process(one.pid).memory_info().rss / 2**20 for one in (bare, daemon)
        )
    middle = statistics.median
    return [
        Figure("daemon.ready", middle(starts), "s", 1.5, floor=middle(bare_starts)),
        Figure("daemon.rss", rss, "MiB", 80, floor=bare_rss),
        Figure("daemon.idle_cpu", cpu, "%", 0.5, floor=bare_cpu),
    ]


async def _idle_cpu(daemons: list[ChildDaemon], *, seconds: float) -> list[float]:
    """Per cent of one core that each takes while `seconds` pass."""
    before = [_cpu_seconds(one.pid) for one in daemons]
    await clock.sleep(seconds)
    return [
        (_cpu_seconds(one.pid) - then) / seconds * 100
        for one, then in zip(daemons, before, strict=True)
    ]


def _cpu_seconds(pid: int) -> float:
    """What the process has taken so far. psutil counts in hundredths of a second: too coarse for an idle one."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) names


def _ms(seconds: list[float], share: float) -> tuple[float, str]:
    return _share(seconds, share) * 1000, "ms"


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


Measure = Callable[[Path, float], Any]
MEASURES: dict[str, Measure] = {
    "queue": measure_queue,
    "webhook": measure_webhooks,
    "execution": measure_single,
    "http": measure_http,
    "daemon": measure_idle,
    "growth": measure_growth,
}
