"""Code that means harm gets nowhere, in both modes, and whoever runs next finds all as it was."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from support.hostile import CASES, Case

from stackd.core.clock import SystemClock
from stackd.sandbox.limits import Limits
from stackd.sandbox.run import Job, Outcome
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

AT_ONCE = 4
LIMITS = Limits(timeout=10.0, cpu_ms=300, memory_mb=64)
CANARY = Job("def run(params, context):\n    return params", {"well": True}, {})

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("mode", ["worker", "process"])
async def test_hostile_code_gets_nowhere_and_leaves_nothing(mode: str, tmp_path: Path) -> None:
    store = tmp_path / "stackd.db"
    await anyio.Path(store).write_bytes(b"the store")
    options = SandboxOptions(mode=mode, limits=Limits(timeout=300.0, scratch_mb=64))
    found: list[str] = []

    async with Sandbox(options, clock=SystemClock()) as sandbox:
        await sandbox.check()
        await sandbox.run(CANARY)
        places = anyio.CapacityLimiter(AT_ONCE)

        async def attack(case: Case) -> None:
            params = {"store": str(store), "daemon": os.getpid()}
            limits = replace(LIMITS, **dict(case.limits))
            async with places:
                outcome = await sandbox.run(Job(case.code, params, {}, limits=limits))
                after = await sandbox.run(CANARY)
            if not _is_as_expected(case, outcome):
                told = outcome.error.message if outcome.error else outcome.result
                found.append(f"{case.number} {case.name}: {outcome.verdict}, {told!r:.200}")
            if after.result != CANARY.params:
                found.append(f"after {case.number} {case.name}: {after.verdict}")

        async with anyio.create_task_group() as tasks:
            for case in CASES:
                if mode in case.modes:
                    tasks.start_soon(attack, case)

    assert found == []
    assert await anyio.Path(store).read_bytes() == b"the store"


def _is_as_expected(case: Case, outcome: Outcome) -> bool:
    if outcome.verdict not in case.verdicts:
        return False
    return outcome.verdict != "ok" or case.result in (None, outcome.result)
