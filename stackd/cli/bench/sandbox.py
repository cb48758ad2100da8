"""What isolation costs: runs of code beside a fork server and an interpreter that isolate nothing."""

from __future__ import annotations

import re
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import psutil

from stackd.cli.bench.figures import Figure, clock, ms
from stackd.sandbox.floor import BareZygote, bare_zygote, forked, spawned
from stackd.sandbox.limits import Limits
from stackd.sandbox.run import Job, Outcome
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

CLIENTS: Final = 4
ROUNDS: Final = 10
CODE: Final = "def run(params, context):\n    return {'total': params['count'] * 2.5}\n"
WAITING: Final = (
    "import asyncio\nasync def run(params, context):\n    await asyncio.sleep(0)\n    return 1\n"
)
BUSY: Final = "def run(params, context):\n    while True:\n        pass\n"
ASLEEP: Final = "import time\ndef run(params, context):\n    time.sleep(60)\n"
PARAMS: Final = {"count": 4}
WORKER_BEGINS: Final = 0.01  # seconds within which one that was asked for waits for its job
PROCESS_BEGINS: Final = 0.06
CPU_MS: Final = 800
TIMEOUT: Final = 0.2  # seconds
KIB: Final = re.compile(r"^Private_(?:Clean|Dirty): +([0-9]+) kB$", re.MULTILINE)


async def measure_sandbox(folder: Path, scale: float) -> list[Figure]:
    """Runs in both modes with a fresh process and with a parked one; how exactly limits are kept; what parking takes."""
    with bare_zygote(folder) as bare:
        await _once(bare)
        return [
            *await _workers(bare, scale),
            *await _processes(scale),
            *await _limits(scale),
        ]


async def _workers(bare: BareZygote, scale: float) -> list[Figure]:
    """Forks of the zygote: fresh, parked, and several at a time, each in turn with the bare one."""
    count = max(int(20 * scale), 5)
    floor: list[float] = []
    fresh: list[float] = []
    parked: list[float] = []
    whole: list[float] = []
    rates: list[float] = []
    bare_rates: list[float] = []
    forks: list[float] = []
    async with _sandbox("worker", parked=0) as plain, _sandbox("worker", parked=2) as warm:
        for _ in range(ROUNDS):
            for _ in range(count):
                floor.append(await _timed(lambda: _once(bare)))
                fresh.append(await _timed(lambda: _ran(plain, CODE)))
                await _until_parked(warm, WORKER_BEGINS)
                began = clock.monotonic()
                parked.append((await _ran(warm, CODE)).duration_ms / 1000)
                whole.append(clock.monotonic() - began)
            bare_rates.append(await _rate(lambda: _once(bare), count * 4))
            rates.append(await _rate(lambda: _ran(plain, CODE), count * 4))
            forks.append(await anyio.to_thread.run_sync(forked))
        # Last: a zygote that has loaded asyncio keeps it.
        awaits = [await _timed(lambda: _ran(plain, WAITING)) for _ in range(count)]
        private = await anyio.to_thread.run_sync(_private, warm)
    middle = statistics.median
    ratio = middle(ours / theirs for ours, theirs in zip(rates, bare_rates, strict=True))
    return [
        *_beside("worker_fresh", fresh, floor, 1.6),
        *_beside("worker_parked", parked, floor, 0.5),
        *_beside("worker_parked_reaped", whole, floor),
        Figure("sandbox.worker_rate", middle(rates), "runs/s", floor=middle(bare_rates)),
        Figure("sandbox.worker_rate_ratio", ratio, "of floor", 0.6, higher=True),
        *_beside("worker_fresh_to_fork", fresh, forks, 16),
        *_beside("worker_parked_to_fork", parked, forks, 5),
        Figure("sandbox.worker_asyncio_p50", *ms(awaits, 0.5)),
        *private,
    ]


async def _processes(scale: float) -> list[Figure]:
    """Interpreters of their own: fresh and parked, in turn with one that is started for nothing."""
    count = max(int(60 * scale), 10)
    floor: list[float] = []
    fresh: list[float] = []
    parked: list[float] = []
    awaits: list[float] = []
    async with _sandbox("process", parked=0) as plain, _sandbox("process", parked=2) as warm:
        for number in range(count):
            floor.append(await anyio.to_thread.run_sync(spawned))
            fresh.append(await _timed(lambda: _ran(plain, CODE)))
            await _until_parked(warm, PROCESS_BEGINS)
            parked.append((await _ran(warm, CODE)).duration_ms / 1000)
            if number % 4 == 0:
                awaits.append(await _timed(lambda: _ran(plain, WAITING)))
    return [
        *_beside("process_fresh", fresh, floor, 1.25),
        *_beside("process_parked", parked, floor),
        Figure("sandbox.process_asyncio_p50", *ms(awaits, 0.5), floor=ms(floor, 0.5)[0]),
    ]


async def _limits(scale: float) -> list[Figure]:
    """By how much runs, several at a time, go over their limits of CPU and time."""
    over: list[float] = []
    late: list[float] = []

    async def burn() -> None:
        limits = Limits(timeout=30.0, cpu_ms=CPU_MS)
        outcome = await sandbox.run(Job(BUSY, {}, {}, limits=limits))
        assert outcome.verdict == "cpu", outcome  # noqa: S101  # else nothing was measured
        over.append((outcome.cpu_ms - CPU_MS) / 1000)

    async def sleep() -> None:
        outcome = await sandbox.run(Job(ASLEEP, {}, {}, limits=Limits(timeout=TIMEOUT)))
        assert outcome.verdict == "timeout", outcome  # noqa: S101  # as above
        late.append(outcome.duration_ms / 1000 - TIMEOUT)

    async with _sandbox("worker", parked=0) as sandbox:
        await _rate(burn, max(int(16 * scale), 4))
        await _rate(sleep, max(int(60 * scale), 8))
    return [
        Figure("sandbox.cpu_overrun_p99", *ms(over, 0.99), 100),
        Figure("sandbox.timeout_to_dead_p99", *ms(late, 0.99), 50),
    ]


def _sandbox(mode: str, *, parked: int) -> Sandbox:
    return Sandbox(SandboxOptions(mode=mode, parked=parked, required_level=0), clock=clock)


def _beside(
    name: str, seconds: list[float], floor: list[float], budget: float | None = None
) -> list[Figure]:
    """The medians, and the one as a share of the other, which `budget` is for."""
    ours, bare = statistics.median(seconds), statistics.median(floor)
    return [
        Figure(f"sandbox.{name}_p50", ours * 1000, "ms", floor=bare * 1000),
        Figure(f"sandbox.{name}_ratio", ours / bare, "of floor", budget),
    ]


async def _once(bare: BareZygote) -> None:
    assert await bare.run(CODE, PARAMS) == {"total": 10}  # noqa: S101  # else nothing was measured


async def _ran(sandbox: Sandbox, code: str) -> Outcome:
    outcome = await sandbox.run(Job(code, PARAMS, {}))
    assert outcome.error is None, outcome  # noqa: S101  # else nothing was measured
    return outcome


async def _until_parked(sandbox: Sandbox, seconds: float) -> None:
    """Let those that wait have begun, as they have where runs are not one after another."""
    if sandbox.parked == 0:
        await _ran(sandbox, CODE)
    await clock.sleep(seconds)


def _private(sandbox: Sandbox) -> list[Figure]:
    """What a parked process has of memory for itself, where the system tells us."""
    _, *waiting = psutil.Process(sandbox.pid).children(recursive=True)
    try:
        texts = [Path(f"/proc/{one.pid}/smaps_rollup").read_text("ascii") for one in waiting]
    except PermissionError:
        return []
    kib = [sum(map(int, KIB.findall(text))) for text in texts]
    return [Figure("sandbox.parked_private", statistics.median(kib) / 1024, "MiB", 2)]


async def _timed(one: Callable[[], Awaitable[object]]) -> float:
    began = clock.monotonic()
    await one()
    return clock.monotonic() - began


async def _rate(one: Callable[[], Awaitable[object]], count: int) -> float:
    """How often `one` is done per second, CLIENTS at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await one()

    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(work)
    return count / (clock.monotonic() - began)
