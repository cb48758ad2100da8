"""Work on large values goes on a thread, one piece after another, and leaves the others their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from stackd.core.aside import aside
from stackd.core.large_json import check, load

ODD_SHAPES = {
    "empties": b"[" + b",".join([b"[]"] * 500_000) + b"]",
    "deep": b"[" + b",".join([b"[" * 400 + b"]" * 400] * 1500) + b"]",
}


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_other_threads_have_their_turn_while_large_json_is_read_and_freed(shape: str) -> None:
    text = ODD_SHAPES[shape]

    def share_of_the_longest_step(work: Callable[[], None]) -> float:
        began = time.monotonic()
        with gaps() as longest:
            work()
        return longest() / (time.monotonic() - began)

    for work in (lambda: check(text), lambda: load(text).take_apart()):
        # A busy machine makes any wait long, but not three times; in one step, each would be all of it.
        assert min(share_of_the_longest_step(work) for _ in range(3)) < 0.25


@contextmanager
def gaps() -> Iterator[Callable[[], float]]:
    """The longest that another thread had to wait for its turn, in seconds."""
    seen = [0.0]
    done = threading.Event()

    def wait_and_see() -> None:
        last = time.monotonic()
        while not done.wait(0.001):
            now = time.monotonic()
            seen.append(now - last)
            last = now

    watcher = threading.Thread(target=wait_and_see)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        watcher.join()


async def test_one_piece_of_work_runs_at_a_time_in_the_order_asked() -> None:
    order: list[int] = []
    running = 0
    most = 0

    def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(number)
        running -= 1

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(aside, work, number)

    assert (order, most) == (list(range(20)), 1)


async def test_work_whose_asker_is_gone_before_its_turn_is_not_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def hold() -> None:
        begun.set()
        go_on.wait(5)
        done.append("held")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(aside, hold)
        await anyio.to_thread.run_sync(begun.wait, 5)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(aside, done.append, "never")
            await anyio.lowlevel.checkpoint()
            leaving.cancel_scope.cancel()
        go_on.set()

    assert done == ["held"]


async def test_an_error_of_the_work_is_the_askers() -> None:
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 / 0)

    assert await aside(lambda: 1) == 1
