"""Processes that wait for code in advance: each is used once, none waits for long, none where nothing runs."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from stackd.core.clock import SystemClock
from stackd.sandbox.parked import PARKED_FOR
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions
from stackd.testing import FakeClock

LEVEL = "def run(params, context):\n    return 1\n"
TRACES = """
import sys
def run(params, context):
    seen, sys.trace_of_code = hasattr(sys, "trace_of_code"), True
    return seen
"""
ADDRESS = "def run(params, context):\n    return id(run)\n"


def made(mode: str, clock: SystemClock | FakeClock | None = None, *, parked: int = 2) -> Sandbox:
    options = SandboxOptions(mode=mode, parked=parked, required_level=0)
    return Sandbox(options, clock=clock or SystemClock())


@pytest.mark.parametrize("mode", ["worker", "process"])
async def test_code_finds_a_process_that_waits_once_other_code_has_run(mode: str) -> None:
    async with made(mode) as sandbox:
        await sandbox.check()
        waited = sandbox.parked

        first = await sandbox.run(Job(TRACES, {}, {}))
        found = [await sandbox.run(Job(TRACES, {}, {})) for _ in range(3)]

    assert (waited, first.was_parked) == (0, False)
    assert [(one.was_parked, one.result) for one in found] == [(True, False)] * 3


async def test_processes_that_waited_have_address_spaces_of_their_own() -> None:
    async with made("process") as sandbox:
        found = {(await sandbox.run(Job(ADDRESS, {}, {}))).result for _ in range(4)}

    assert len(found) > 1


async def test_code_that_wants_a_folder_is_given_a_process_that_was_made_for_it() -> None:
    write = "def run(params, context):\n    return open('/tmp/a', 'w').write('abc')\n"
    async with made("worker") as sandbox:
        await sandbox.run(Job(LEVEL, {}, {}))

        outcome = await sandbox.run(
            Job(write, {}, {}, limits=sandbox.options.limits.tightened(scratch_mb=1))
        )

    assert (outcome.was_parked, outcome.error) == (False, None)


async def test_process_that_has_waited_too_long_is_thrown_away() -> None:
    clock = FakeClock()
    async with made("worker", clock, parked=1) as sandbox:
        await sandbox.run(Job(LEVEL, {}, {}))
        assert sandbox.parked == 1

        clock.advance(PARKED_FOR)
        outcome = await sandbox.run(Job(LEVEL, {}, {}))

    assert (outcome.was_parked, outcome.error) == (False, None)


async def test_processes_that_wait_end_with_their_zygote_and_code_runs_with_the_next() -> None:
    async with made("worker") as sandbox:
        await sandbox.run(Job(LEVEL, {}, {}))
        assert sandbox.pid is not None
        tree = psutil.Process(sandbox.pid).children(recursive=True)

        os.kill(sandbox.pid, signal.SIGKILL)
        psutil.wait_procs(tree, timeout=5)
        outcome = await sandbox.run(Job(LEVEL, {}, {}))

        assert [one for one in tree if one.is_running()] == []
    assert outcome.result == 1


async def test_nothing_is_left_of_processes_that_waited() -> None:
    before = psutil.Process().num_fds()
    async with made("worker", parked=3) as sandbox:
        for _ in range(3):
            await sandbox.run(Job(LEVEL, {}, {}))

    assert psutil.Process().children() == []
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("mode", ["worker", "process"])
async def test_code_that_waits_has_a_loop_and_other_code_after_it_runs_as_before(mode: str) -> None:
    waits = """
import asyncio
async def run(params, context):
    return await asyncio.gather(*(asyncio.sleep(0, number) for number in range(3)))
"""
    plain = "async def run(params, context):\n    return 1\n"
    async with made(mode) as sandbox:
        found = [await sandbox.run(Job(code, {}, {})) for code in (plain, waits, waits, plain)]

    assert [(one.error, one.result) for one in found] == [
        (None, 1),
        (None, [0, 1, 2]),
        (None, [0, 1, 2]),
        (None, 1),
    ]
