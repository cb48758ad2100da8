"""Code that means harm gets nowhere: each case in each mode, at each level that this host offers, as any user.

The cases are tried in a process of their own, which stands for the daemon: it is what they are after.
"""

from __future__ import annotations

import os
from typing import Any

import anyio
import psutil
import pytest
from support.hostile.apart import ORDINARY, tried

from stackd.core.clock import SystemClock
from stackd.sandbox.limits import Limits
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

GROWTH = 24 * 1024 * 1024  # bytes that a hundred and fifty cases may leave, of caches
ENDS_WITHIN = 5.0  # seconds


@pytest.mark.timeout(180)
@pytest.mark.parametrize(  # the other combinations: tests/soak
    ("mode", "level", "uid"),
    [
        ("worker", 2, ORDINARY),
        pytest.param(
            "process", 2, 0, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
        ),
        ("worker", 1, ORDINARY),
        ("process", 1, ORDINARY),
    ],
    ids=str,
)
def test_hostile_code_gets_nowhere_and_leaves_nothing(mode: str, level: int, uid: int) -> None:
    found = tried(mode, *(["namespaces"] if level == 1 else []), uid=uid)

    if found["level"] < level:
        pytest.skip(f"this host offers level {found['level']}")
    assert found["red"] == {}
    assert len(found["tried"]) > 140
    assert found["grown"] < GROWTH


@pytest.mark.timeout(180)
@pytest.mark.parametrize("layer", ["seccomp", "namespaces", "namespaces+landlock"])
def test_the_cases_that_a_layer_stops_get_through_without_it(layer: str) -> None:
    found = tried("worker", *layer.split("+"), named=layer)

    assert found["tried"]
    assert sorted(found["red"]) == sorted(found["tried"])


# -- what is killed


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.mark.parametrize("mode", ["worker", "process"])
async def test_a_killed_zygote_takes_its_runs_along_and_another_takes_its_place(mode: str) -> None:
    before = descendants()
    async with Sandbox(SandboxOptions(mode=mode, required_level=0), clock=SystemClock()) as sandbox:
        await sandbox.check()
        verdicts: list[str] = []
        begun = anyio.Semaphore(0)

        async def run() -> None:
            code = "def run(params, context, fetch):\n    try:\n        fetch('x')\n    except Exception:\n        pass\n    import time\n    time.sleep(100)\n"

            async def told(_: dict[str, Any]) -> dict[str, Any]:
                begun.release()
                return {"error": "no", "code": "no"}

            job = Job(code, {}, {}, fetch=told, limits=Limits(timeout=30.0))
            verdicts.append((await sandbox.run(job)).verdict)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(run)
            for _ in range(4):
                await begun.acquire()
            for one in descendants() - before:
                if one.pid == sandbox.pid:
                    one.kill()
        found = await sandbox.run(Job("def run(params, context):\n    return 1", {}, {}))

    assert found.result == 1
    assert len(verdicts) == 4
    assert set(verdicts) <= {"crash", "lost"}
    _, alive = await anyio.to_thread.run_sync(
        psutil.wait_procs, list(descendants() - before), ENDS_WITHIN
    )
    assert not alive
