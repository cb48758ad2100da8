"""A loop that is held up is measured, and the line that holds it up is printed, whatever the line does."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELD_UP = """
import sys, time
import anyio
from stackd.core.clock import SystemClock
from stackd.supervisor import lag

lag.STEP, lag.TELL_AFTER, lag.TELL_REGARDLESS_AFTER, lag.REARM_EVERY = 0.02, 0.2, 0.6, 0.05

def hold_up_in_a_call():
    time.sleep(0.8)

def hold_up_the_interpreter():
    import re
    began = time.monotonic()
    length = 18
    while time.monotonic() - began < 0.9:
        began = time.monotonic()
        length += 1
        re.match("(a+)+$", "a" * length + "b")

async def main():
    watch = lag.LoopLag(SystemClock())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await anyio.sleep(0.3)
        {how}()
        await anyio.sleep(0.1)
        print(watch.over(10.0).most > 0.5)
        tasks.cancel_scope.cancel()

anyio.run(main)
"""


@pytest.mark.parametrize("how", ["hold_up_in_a_call", "hold_up_the_interpreter"])
def test_what_holds_up_the_loop_is_measured_and_printed(how: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HELD_UP.format(how=how)],
        capture_output=True,
        timeout=60,
        check=True,
        text=True,
    )

    assert "True" in ran.stdout
    assert how in ran.stderr
    if how == "hold_up_in_a_call":  # the thread has seen it
        assert "the event loop is held up" in ran.stdout + ran.stderr
    assert "Timeout" in ran.stderr  # and the timer


def test_a_loop_that_turns_is_not_told_of() -> None:
    quiet = HELD_UP.replace("        {how}()\n", "").replace("0.2, 0.6, 0.05", "30.0, 30.0, 0.05")

    ran = subprocess.run(
        [sys.executable, "-c", quiet], capture_output=True, timeout=60, check=True, text=True
    )

    assert ran.stderr == ""
