"""What runs find of their cgroup, tried in place of the daemon: needs stackd alone, and prints one object."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from stackd.core.clock import SystemClock
from stackd.sandbox.cgroups import Cgroups, base_of, mounted_at, own_group
from stackd.sandbox.limits import Limits
from stackd.sandbox.run import Job, Outcome
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

BOMB = "def run(params, context):\n    return len([b'x' * (1 << 20) for _ in range(params)])\n"
BUSY = """
import time
def run(params, context):
    until = time.monotonic() + params
    while time.monotonic() < until:
        pass
"""
THREADS = """
import threading
def run(params, context):
    hold, count = threading.Event(), 0
    try:
        for _ in range(params):
            threading.Thread(target=hold.wait, daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    hold.set()
    return count
"""
LEAVE = """
def run(params, context):
    told = {}
    for path in params:
        try:
            open(path, "w").write("0")
            told[path] = "ok"
        except OSError as error:
            told[path] = type(error).__name__
    return told
"""
SLEEP = "import time\ndef run(params, context):\n    time.sleep(60)\n"
WAIT = 60.0


def told(outcome: Outcome) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict,
        "by": outcome.limited_by,
        "result": outcome.result,
        "error": None if outcome.error is None else str(outcome.error),
        "ms": outcome.duration_ms,
        "cpuMs": outcome.cpu_ms,
        "peak": outcome.peak_bytes,
        "throttled": outcome.throttled,
        "parked": outcome.was_parked,
    }


def base() -> Path:
    mounts, own = (Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup"))
    return base_of(mounted_at(mounts, own_group(own)))


def groups() -> list[str]:
    """Of runs, as they are there."""
    return sorted(str(one.relative_to(base())) for one in base().glob("sandbox-*/[0-9]*"))


async def tried(mode: str) -> dict[str, Any]:
    limits = Limits(timeout=WAIT, cpu_ms=30_000, memory_mb=64)
    found: dict[str, Any] = {}
    options = SandboxOptions(
        mode=mode, parked=1, required_level=0, limits=Limits(timeout=WAIT), silence=1.0
    )
    async with Sandbox(options, clock=SystemClock()) as sandbox:

        async def run(code: str, params: Any, **wanted: Any) -> dict[str, Any]:
            job = Job(code, params, {}, limits=limits.tightened(**wanted))
            return told(await sandbox.run(job))

        found["isolation"] = (await sandbox.check()).told()
        found["bomb"] = await run(BOMB, 80)
        found["bomb parked"] = await run(BOMB, 80)
        found["fits"] = await run(BOMB, 20)
        found["quota"] = await run(BUSY, 3, cpu_quota_ms=20)
        found["no quota"] = await run(BUSY, 3)
        found["silent, throttled"] = await run(BUSY, 5, cpu_quota_ms=1)
        found["threads"] = await run(THREADS, 40, threads=4)
        own = str(base())
        paths = [
            f"{own}/cgroup.procs",
            f"{own}/supervisor/cgroup.procs",
            "/sys/fs/cgroup/cgroup.procs",
        ]
        paths += [f"{own}/{one}/memory.max" for one in groups()]
        found["leave"] = await run(LEAVE, paths)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(sandbox.run(Job(SLEEP, {}, {}, limits=limits)))
            await asyncio.sleep(1)
            task.cancel()
        found["after"] = told(await sandbox.run(Job(BOMB, 1, {}, limits=limits)))
        found["groups while it waits"] = groups()
    found["groups afterwards"] = sorted(one.name for one in base().glob("sandbox-*"))
    return found


def figures() -> dict[str, float]:
    """Milliseconds: the median of what a group costs, and of a fork with its wait."""
    cgroups = Cgroups.opened("auto", uid=None)
    limits = Limits(cpu_quota_ms=50)
    took: dict[str, list[float]] = {
        "fork": [],
        "make": [],
        "remove": [],
        "throttled": [],
        "kill": [],
    }
    for _ in range(100):
        began = time.perf_counter()
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forked = time.perf_counter()
        group = cgroups.made()
        group.limit(limits)
        made = time.perf_counter()
        group.throttled()
        read = time.perf_counter()
        group.kill()
        killed = time.perf_counter()
        group.remove()
        removed = time.perf_counter()
        for name, spent in (
            ("fork", forked - began), ("make", made - forked), ("throttled", read - made),
            ("kill", killed - read), ("remove", removed - killed),
        ):  # fmt: skip
            took[name].append(spent * 1000)
    cgroups.close()
    return {name: statistics.median(spent) for name, spent in took.items()}


def left_behind() -> list[str]:
    """What is there of a daemon that was killed, once another one has begun."""
    pid = os.fork()
    if pid == 0:
        Cgroups.opened("auto").made()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    before = [one.name for one in base().glob("sandbox-*")]
    Cgroups.opened("auto").close()
    return [f"{len(before)} before", *(one.name for one in base().glob("sandbox-*"))]


def main() -> None:
    found: dict[str, Any] = {mode: asyncio.run(tried(mode)) for mode in ("worker", "process")}
    found["left behind"] = left_behind()
    found["figures"] = figures()
    found["base"] = str(base())
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
