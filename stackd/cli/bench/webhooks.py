"""Webhooks to finished executions, and one execution at a time on an idle box."""

from __future__ import annotations

import statistics
from pathlib import Path

import aiohttp
import anyio

from stackd.cli.bench.children import (
    THREE_STEPS,
    BareServer,
    flood,
    import_workflow,
    post,
    ready,
    token,
    until_idle,
)
from stackd.cli.bench.figures import Figure, clock, ms
from stackd.cli.demo import ChildDaemon, seconds_between
from stackd.core.json import dumps, loads
from stackd.store.floor import commit_floor

ROUNDS = 3


async def measure_webhooks(folder: Path, scale: float) -> list[Figure]:
    """Webhook to finished three-step execution, all history kept: throughput, then latency at half of it.

    The bare server gets the same deliveries at the same rates, and has done its work when it has answered.
    """
    count, seconds = int(1_500 * scale), 2 * scale
    rates, bare_rates = [], []
    acks: list[float] = []
    bare_acks: list[float] = []
    async with (
        ready(BareServer, folder / "floor") as (bare, to_bare, _),
        ready(ChildDaemon, folder / "ours") as (daemon, session, _),
    ):
        await import_workflow(daemon, session, THREE_STEPS)
        await flood(bare, to_bare, int(200 * scale))  # caches and pages are warm, as in use
        await flood(daemon, session, int(200 * scale))
        await until_idle(daemon, session)
        for _ in range(ROUNDS):
            began = clock.monotonic()
            await flood(bare, to_bare, count)
            bare_rates.append(count / (clock.monotonic() - began))
            began = clock.monotonic()
            await flood(daemon, session, count)
            await until_idle(daemon, session)
            rates.append(count / (clock.monotonic() - began))
        rate, bare_rate = statistics.median(rates), statistics.median(bare_rates)
        for _ in range(2):
            bare_acks += await _paced(bare, to_bare, rate / 2, seconds=seconds)
            acks += await _paced(daemon, session, rate / 2, seconds=seconds)
            await until_idle(daemon, session)
        runs = await _run_seconds(daemon, session)
    return [
        Figure("webhook.three_steps", rate, "executions/s", 1_000, higher=True, floor=bare_rate),
        Figure("webhook.ack_p50", *ms(acks, 0.5), 3, floor=ms(bare_acks, 0.5)[0]),
        Figure("webhook.ack_p99", *ms(acks, 0.99), 20, floor=ms(bare_acks, 0.99)[0]),
        Figure("webhook.execution_p50", *ms(runs, 0.5)),
        Figure("webhook.execution_p99", *ms(runs, 0.99)),
    ]


async def _paced(
    daemon: ChildDaemon, session: aiohttp.ClientSession, rate: float, *, seconds: float
) -> list[float]:
    """Acknowledgement times at `rate` deliveries per second, sent when due whatever is still open."""
    acks: list[float] = []

    async def one(number: int) -> None:
        acks.append(await post(daemon, session, number))

    began = clock.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(int(rate * seconds)):
            wait = began + number / rate - clock.monotonic()
            if wait > 0:
                await clock.sleep(wait)
            tasks.start_soon(one, number)
    return acks


async def _run_seconds(daemon: ChildDaemon, session: aiohttp.ClientSession) -> list[float]:
    """From acceptance to end, of the last 500 executions."""
    async with session.get(
        f"{daemon.url}/api/executions?limit=500", headers=token(daemon.state)
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
    async with ready(ChildDaemon, folder / "ours") as (daemon, session, _):
        await import_workflow(daemon, session, document)
        headers = token(daemon.state)
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
        Figure("execution.idle_p50", *ms(times, 0.5), 8, floor=floor * 1000),
        Figure("execution.idle_p99", *ms(times, 0.99)),
    ]
