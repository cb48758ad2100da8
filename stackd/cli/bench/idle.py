"""What the daemon costs when nothing happens, and how soon it is ready."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psutil

from stackd.cli.bench.children import BareServer, ready
from stackd.cli.bench.figures import Figure, clock
from stackd.cli.demo import ChildDaemon

STARTS = 3


async def measure_idle(folder: Path, scale: float) -> list[Figure]:
    """What the daemon costs when nothing happens, and how soon it is ready; beside the bare server."""
    starts, bare_starts = [], []
    for number in range(STARTS):
        async with ready(BareServer, folder / f"floor{number}") as (_, _, seconds):
            bare_starts.append(seconds)
        async with ready(ChildDaemon, folder / f"ours{number}") as (_, _, seconds):
            starts.append(seconds)
    async with (
        ready(BareServer, folder / "floor") as (bare, _, _),
        ready(ChildDaemon, folder / "ours") as (daemon, _, _),
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
