"""Ten thousand runs of code in a row, and two hundred at a time beside deliveries. By hand: `.venv/bin/pytest tests/soak -k sandbox -s`."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import anyio
import psutil
import pytest
from support.beside import p99
from support.daemon import DaemonProcess, running

from stackd.core.clock import SystemClock
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

RUNS = int(os.environ.get("SOAK_RUNS", "10000"))
SETTLED = 500  # runs after which caches are warm
CLIENTS = 4
HEAVY = 200  # runs at a time
SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
MIB = 2**20
CODE = "def run(params, context):\n    return {'n': params['n'] * 2}\n"
BUSY = """
id: heavy
nodes:
  - {id: start, type: trigger.time.manual}
  - id: work
    type: action.code.run
    timeoutMs: 240000
    runtime:
      timeoutMs: 240000
      code: |
        def run(params, context):
            found = [bytes(100_000) for _ in range(200)]
            while True:
                sum(range(100_000))
edges: [{from: start, to: work}]
"""
ECHO = """
id: echo
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: echo}}
  - {id: set, type: transform.data.set, params: {values: {n: "{{ hook.body.n }}"}}}
edges: [{from: hook, to: set}]
"""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", ["worker", "process"])
async def test_ten_thousand_runs_leave_nothing_behind(mode: str) -> None:
    me = psutil.Process()
    took: list[float] = []

    async def some(count: int) -> None:
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                began = time.monotonic()
                outcome = await sandbox.run(Job(CODE, {"n": number}, {}))
                took.append(time.monotonic() - began)
                assert outcome.result == {"n": number * 2}, outcome

        async with anyio.create_task_group() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)

    options = SandboxOptions(mode=mode, required_level=0)
    async with Sandbox(options, clock=SystemClock()) as sandbox:
        await some(SETTLED)
        gc.collect()
        before, files = me.memory_info().rss, me.num_fds()
        took.clear()
        began = time.monotonic()
        await some(RUNS)
        rate = RUNS / (time.monotonic() - began)
        gc.collect()
        grown = me.memory_info().rss - before
        left = me.num_fds() - files
        processes = len(me.children(recursive=True))
        print(
            f"{mode}: {RUNS} runs, {rate:.0f}/s, p99 {p99(took) * 1000:.1f} ms, RSS {grown / MIB:+.2f} MiB,"
            f" descriptors {left:+d}, processes {processes}"
        )

    assert grown < 5 * MIB
    assert abs(left) <= 4 * options.parked  # as many as wait in advance now
    assert processes <= 2 + options.parked
    assert me.children(recursive=True) == []


@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", ["worker", "process"])
def test_two_hundred_heavy_runs_leave_room_for_deliveries(mode: str, tmp_path: Path) -> None:
    with running(
        tmp_path,
        SANDBOX_EXECUTOR=mode,
        STACKD_SANDBOX_CONCURRENCY=str(HEAVY),
        EXECUTION_WORKER_CONCURRENCY=str(HEAVY + 56),
        SANDBOX_MAX_CPU_MS="200000",
    ) as daemon:
        daemon.load(ECHO)
        daemon.load(BUSY)
        told("before", daemon, deliveries(daemon, 3))
        executions = [daemon.begin("heavy") for _ in range(HEAVY)]
        until = time.monotonic() + 60
        while at_once(daemon) < HEAVY:
            assert time.monotonic() < until, "they do not begin"
            time.sleep(0.1)

        before, since = cpu(daemon), time.monotonic()
        took = deliveries(daemon, SECONDS)
        load = (cpu(daemon) - before) / (time.monotonic() - since)
        assert at_once(daemon) == HEAVY
        told(f"{HEAVY} runs in mode {mode}, daemon at {load:.0%} of a core", daemon, took)
        for one in executions:
            daemon.api.post(f"/api/executions/{one}/cancel", {})
        for one in executions:
            assert daemon.until(one, within=60)["status"] == "cancelled"
        told("after", daemon, deliveries(daemon, 3))
    assert p99(took) < 0.1


def at_once(daemon: DaemonProcess) -> int:
    text = daemon.http("GET", "/metrics").text
    (line,) = [one for one in text.splitlines() if one.startswith("sandbox_active ")]
    return int(float(line.split()[1]))


def cpu(daemon: DaemonProcess) -> float:
    used = psutil.Process(daemon.pid).cpu_times()
    return used.user + used.system


def deliveries(daemon: DaemonProcess, seconds: float) -> list[float]:
    """How long each took, in seconds, one after another, some milliseconds apart; each must be taken."""
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert daemon.deliver("echo", {"n": len(took)}).status == 202
        took.append(time.monotonic() - began)
        time.sleep(0.005)
    return took


def told(name: str, daemon: DaemonProcess, took: list[float]) -> None:
    middle = sorted(took)[len(took) // 2]
    print(
        f"{name}: {len(took)} deliveries, p50 {middle * 1000:.1f} ms, p99 {p99(took) * 1000:.1f} ms,"
        f" longest {max(took) * 1000:.0f} ms, RSS {daemon.memory() / MIB:.0f} MiB"
    )
