"""Whatever lint accepts compiles and runs to its end, also struck in the middle: nothing stuck, no fault of ours."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import anyio
import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, event, given, settings
from support.any_document import GIVEN, documents
from support.mortal import Blow, Life
from support.runs import World

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.testing import FakeClock
from stackd.workflows.findings import DocumentError

CHILD = """
id: child
nodes: [{id: start, type: trigger.time.manual}, {id: a, type: transform.data.set, params: {values: {v: "{{ start }}"}}}]
edges: [{from: start, to: a}]
"""


class HurriedClock(FakeClock):
    """Whoever sleeps makes time pass."""

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.advance(seconds)


def check_document(document: dict[str, Any], blow: Blow, moment: int | None) -> None:
    anyio.run(_run_in_time, document, blow, moment)


async def _run_in_time(document: dict[str, Any], blow: Blow, moment: int | None) -> None:
    with anyio.fail_after(20):
        await _run_to_the_end(document, blow, moment)


async def _run_to_the_end(document: dict[str, Any], blow: Blow, moment: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        async with open_database(path, clock=SystemClock(), events=EventBus()) as database:
            world = World(database)
            world.clock = HurriedClock()
            life = Life(world, decisions=("retry", "skip", "fail"))
            await world.load(CHILD)
            try:
                await world.load(json.dumps(document))
            except DocumentError as refused:
                for finding in refused.findings:
                    if finding.severity == "error":
                        event(f"refused: {finding.code}")
                return
            execution = await world.start("flow", GIVEN)
            await life.through(execution, blow, moment)
            event(f"runs: {(await life.states())[execution]}")
            faults = await database.read(
                lambda tx: tx.rows(
                    "SELECT key, CAST(error AS TEXT) FROM node_runs WHERE CAST(error AS TEXT) LIKE '%internal%' "
                    "UNION SELECT id, CAST(error AS TEXT) FROM executions "
                    "WHERE CAST(error AS TEXT) LIKE '%internal%' OR CAST(error AS TEXT) LIKE '%job.%'"
                )
            )
            assert faults == []


STRUCK = {
    "document": documents(),
    "blow": st.sampled_from(("death", "death", "drain", "cancel")),
    "moment": st.one_of(st.none(), st.integers(1, 25)),
}


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
@given(**STRUCK)
def test_what_lint_accepts_runs_to_its_end(document, blow, moment):
    check_document(document, blow, moment)
