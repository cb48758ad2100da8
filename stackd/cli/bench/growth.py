"""The budget of growth: what the queue and the lists cost in a store full of history, beside an empty one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stackd.cli.bench.figures import Figure, clock
from stackd.core.events import EventBus
from stackd.core.process import current_process
from stackd.queue import processes, verbs
from stackd.queue.job import Complete, RetryPolicy
from stackd.runtime.workflow_runtime import Claimed, claim
from stackd.store import growth
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionStatus, NewExecution

FINISHED = 1_000_000
QUEUED = 100_000
FEW = 5_000  # that wait in the store that is as good as empty: as many as are claimed while it is measured
ROUNDS = 60
READS = 5
BATCH = 50  # jobs claimed and settled at a time, as a worker does
WITHIN = 1.5  # times what it takes in an empty store


async def measure_growth(folder: Path, scale: float) -> list[Figure]:
    """Claim, settle, start and list in both stores, in turn; the medians, and how they compare."""
    async with (
        open_database(folder / "small.db", clock=clock, events=EventBus()) as small,
        open_database(folder / "large.db", clock=clock, events=EventBus()) as large,
    ):
        await _fill(small, finished=FEW, queued=FEW)
        await _fill(large, finished=int(FINISHED * scale), queued=max(int(QUEUED * scale), FEW))
        taken: dict[str, tuple[list[float], list[float]]] = {}
        for _ in range(ROUNDS):
            for index, store in enumerate((small, large)):
                for name, seconds in (await _one_round(store)).items():
                    taken.setdefault(name, ([], []))[index].append(seconds)
    return [_figure(name, *times) for name, times in taken.items()]


def _figure(name: str, small: list[float], large: list[float]) -> Figure:
    """How many times as long it takes in the large store."""
    ratio = statistics.median(large) / statistics.median(small)
    return Figure(f"growth.{name}", ratio, "of empty", WITHIN, floor=1.0)


async def _fill(store: Database, *, finished: int, queued: int) -> None:
    await store.write(growth.add_workflows)
    await _add(store, growth.add_finished, 1, finished)
    await _add(store, growth.add_queued, finished + 1, finished + queued)
    identity = current_process()
    await store.write(lambda tx: processes.register(tx, identity, role="bench", now=clock.time()))


async def _add(store: Database, add: Callable[..., None], first: int, last: int) -> None:
    for start in range(first, last + 1, growth.BATCH):
        end = min(start + growth.BATCH - 1, last)
        await store.write(partial(add, first=start, last=end), durable=False)


async def _one_round(store: Database) -> dict[str, float]:
    """Seconds that each thing takes once. Nothing is synced: that takes the same in either store, and longest."""
    owner, claimed = current_process().id, list[Claimed]()
    now = clock.time()

    def take(tx: Tx) -> None:
        found = claim(tx, owner=owner, limit=BATCH, lease=60.0, now=now)
        claimed.extend(one for one in found if isinstance(one, Claimed))

    def settle(tx: Tx) -> None:
        for one in claimed:
            verbs.settle(tx, one.job, Complete(), now=now, policy=RetryPolicy(), roll=0.0)
            executions.end(
                tx, one.row, ExecutionStatus.COMPLETED, output=b"null", error=None, now=now
            )

    def start(tx: Tx) -> None:
        for number in range(BATCH):
            new = NewExecution(f"w{number}", 1, "trigger.time.manual", "start", b"{}", None)
            executions.start(tx, new, now=now)

    def listed(**which: Any) -> Callable[[Tx], object]:
        wanted = {"workflow_id": None, "status": None, **which}
        return lambda tx: executions.listed(tx, before=2**62, limit=50, **wanted)

    return {
        "claim": await _written(store, take),
        "settle": await _written(store, settle),
        "start": await _written(store, start),
        "next_due": await _read(store, lambda tx: verbs.next_due(tx, now=now)),
        "list": await _read(store, listed()),
        "list_of_workflow": await _read(store, listed(workflow_id="w7")),
        "list_queued": await _read(store, listed(status="queued")),
        "list_failed_of_workflow": await _read(store, listed(workflow_id="w7", status="failed")),
        "list_completed": await _read(store, listed(status="completed")),
    }


async def _written(store: Database, change: Callable[[Tx], object]) -> float:
    began = clock.monotonic()
    await store.write(change, durable=False)
    return clock.monotonic() - began


async def _read(store: Database, query: Callable[[Tx], object]) -> float:
    """The shortest of some: the first after a write reads pages anew."""
    times = []
    for _ in range(READS):
        began = clock.monotonic()
        await store.read(query)
        times.append(clock.monotonic() - began)
    return min(times)
