"""Work on large values goes on a thread, one piece after another, and leaves the others their turn."""

from __future__ import annotations

import threading

import anyio
import pytest
from support.turns import turns

from stackd.core.aside import aside
from stackd.core.large_json import check, load

ODD_SHAPES = {
    "empties": b"[" + b",".join([b"[]"] * 2_000_000) + b"]",
    "deep": b"[" + b",".join([b"[" * 400 + b"]" * 400] * 1500) + b"]",
}


TURNS = 5  # read in one step, either shape leaves two; in pieces twelve and more, on a busy machine


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("what", ["checked", "read and freed"])
def test_other_threads_have_their_turn_while_large_json_is_read(shape: str, what: str) -> None:
    text = ODD_SHAPES[shape]
    most = 0

    for _ in range(3):  # others may be what takes the turns; read in one step it is few each time
        with turns() as taken:
            if what == "checked":
                check(text)
            else:
                load(text).take_apart()
            most = max(most, taken())
        if most >= TURNS:
            break

    assert most >= TURNS


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
