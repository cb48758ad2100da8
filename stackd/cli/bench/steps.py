"""A step that calls an API, beside a bare aiohttp loop."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from stackd.cli.bench.children import SENDERS, BareServer, ready
from stackd.cli.bench.figures import Figure, clock
from stackd.core.events import EventBus
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.runtime.context import NodeContext
from stackd.runtime.nodes import HANDLERS
from stackd.store.database import open_database

ROUNDS = 20  # short ones: both are met by what else the machine does


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
        ready(BareServer, folder / "far") as (far, session, _),
        open_database(folder / "stackd.db", clock=clock, events=EventBus()) as store,
        HttpClient(EgressPolicy(allow_loopback=True), clock=clock) as http,
    ):
        limits = BlobLimits(one=2**20, all=2**20)
        blobs = BlobFolder(folder / "blobs", store, clock=clock, limits=limits)
        url = f"{far.url}/echo"

        async def step() -> None:
            params = {"method": "POST", "url": url, "json": payload}
            output = await HANDLERS["action.http.request"](params, context(http, blobs))
            assert output["body"] == payload  # noqa: S101  # else nothing was measured

        async def plain() -> None:
            async with session.post(url, json=payload) as answer:
                assert await answer.json() == payload  # noqa: S101  # as above

        for one in (step, plain):  # connections stand, caches are warm
            await rate(one, count)
        for _ in range(ROUNDS):
            for rates, one in ((bare, plain), (steps, step)):
                rates.append(await rate(one, count))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(steps, bare, strict=True))
    return [
        Figure("http.steps", statistics.median(steps), "requests/s", floor=statistics.median(bare)),
        Figure("http.steps_ratio", ratio, "of floor", 0.7, higher=True),
    ]


def context(http: HttpClient, blobs: BlobFolder) -> NodeContext:
    """One try of a node of which nothing is told."""
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


async def rate(one: Callable[[], Awaitable[None]], count: int) -> float:
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
