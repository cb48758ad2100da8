"""What a sandbox says of itself and of each run, whatever becomes of them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import anyio
import pytest

from stackd.core.clock import SystemClock
from stackd.core.events import Event, EventBus
from stackd.sandbox.errors import SandboxUnavailableError
from stackd.sandbox.events import CodeRan, SandboxTried
from stackd.sandbox.limits import Limits
from stackd.sandbox.process import ZygoteOptions
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

WORKER = SandboxOptions(mode="worker")
ASKS = "def run(params, context, fetch):\n    fetch('http://192.0.2.1')"
ONE = "def run(params, context):\n    return 1"


@pytest.fixture
def seen(bus: EventBus) -> list[Event]:
    found: list[Event] = []
    bus.subscribe(found.append, CodeRan, SandboxTried)
    return found


def job(source: str, limits: Limits | None = None) -> Job:
    return Job(source, {}, {}, limits=limits or Limits())


async def test_each_run_is_told_once_with_how_it_ended_and_the_sandbox_before_the_first(
    bus: EventBus, seen: list[Event]
):
    async with Sandbox(WORKER, clock=SystemClock(), events=bus) as sandbox:
        assert sandbox.problem() == "how well code is isolated here is being found out"
        ok = await sandbox.run(job(ONE))
        spun = await sandbox.run(
            job("def run(params, context):\n    while True: pass", Limits(cpu_ms=20))
        )
        async with anyio.create_task_group() as tasks:
            asked = anyio.Event()

            async def fetch(_: dict[str, Any]) -> dict[str, Any]:
                asked.set()
                await anyio.sleep_forever()
                return {}

            tasks.start_soon(sandbox.run, replace(job(ASKS), fetch=fetch))
            await asked.wait()
            tasks.cancel_scope.cancel()

    tried, *ran = seen
    assert isinstance(tried, SandboxTried)
    assert (tried.mode, tried.required, tried.problem) == ("worker", 2, None)
    assert [(one.verdict, one.broken) for one in ran if isinstance(one, CodeRan)] == [
        ("ok", ()),
        ("cpu", ("resource-limit",)),
        ("aborted", ()),
    ]
    assert [one.seconds for one in ran[:2] if isinstance(one, CodeRan)] == [
        ok.duration_ms / 1000,
        spun.duration_ms / 1000,
    ]


FORGES = """
import json, os, struct

def run(params, context):
    for event in ({"type": "made up"}, {"type": ["network-denied"]}, {"type": None}, {}):
        told = json.dumps({"type": "violation", "event": event}).encode()
        os.write(3, struct.pack(">I", len(told)) + told)
"""


async def test_what_code_says_of_itself_makes_no_names_of_its_own(bus: EventBus, seen: list[Event]):
    async with Sandbox(WORKER, clock=SystemClock(), events=bus) as sandbox:
        await sandbox.run(job(FORGES))

    assert isinstance(seen[-1], CodeRan)
    assert seen[-1].broken == ("other",) * 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user, or cannot")
async def test_a_sandbox_that_does_not_start_is_told_and_tried_again_by_the_next_run(
    bus: EventBus, seen: list[Event]
):
    broken = replace(WORKER, zygote=ZygoteOptions(uid=-5))
    async with Sandbox(broken, clock=SystemClock(), events=bus) as sandbox:
        with pytest.raises(SandboxUnavailableError, match="the sandbox did not start"):
            await sandbox.run(job(ONE))
        told, problem = sandbox.told(), sandbox.problem()
        sandbox.options = WORKER
        outcome = await sandbox.run(job(ONE))

        assert told == {"mode": "worker", "required": 2, "level": None}
        assert (problem or "").startswith("the sandbox did not start: OverflowError")
        assert (outcome.result, sandbox.problem()) == (1, None)
        first, refused, second, ran = seen
        assert isinstance(first, SandboxTried)
        assert isinstance(second, SandboxTried)
        assert isinstance(refused, CodeRan)
        assert isinstance(ran, CodeRan)
        assert (first.isolation_level, first.problem) == (None, problem)
        assert (refused.verdict, second.problem, ran.verdict) == ("unavailable", None, "ok")
