"""A budget is never overdrawn by those who ask; they are served in order, or told no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from stackd.core.budget import MOST_WAITING, Budget, Share
from stackd.core.errors import OverloadedError
from stackd.testing import FakeClock

PATIENCE = 10.0
TURNS = 30  # of the loop: more than any chain of wake-ups here takes


async def settled() -> None:
    for _ in range(TURNS):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def budget(clock: FakeClock) -> Budget:
    return Budget(100, clock=clock)


class Asker:
    """Asks for a share in a task of its own, and holds it until told to give it back."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self._size = size
        self._leave = anyio.Event()
        self.share: Share | None = None
        self.refused = False
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        try:
            with self.scope, Share(self._budget) as share:
                await share.obtain(self._size, patience=PATIENCE)
                self.share = share
                await self._leave.wait()
        except OverloadedError:
            self.refused = True

    async def leave(self) -> None:
        self._leave.set()
        await settled()


@asynccontextmanager
async def asking(budget: Budget, *sizes: int) -> AsyncIterator[list[Asker]]:
    """One after another they ask; each has what it can get."""
    askers = [Asker(budget, size) for size in sizes]
    async with anyio.create_task_group() as tasks:
        for asker in askers:
            tasks.start_soon(asker.run)
            await settled()
        yield askers
        tasks.cancel_scope.cancel()


def served(askers: list[Asker]) -> list[bool]:
    return [asker.share is not None for asker in askers]


async def test_who_asks_for_more_than_is_free_waits_until_it_is(budget: Budget) -> None:
    async with asking(budget, 60, 40, 1) as askers:
        before = served(askers)
        await askers[1].leave()

        assert (before, served(askers)) == ([True, True, False], [True, True, True])
        assert budget.taken == 61

    assert budget.taken == 0


async def test_who_came_first_is_served_first_though_less_would_fit(budget: Budget) -> None:
    async with asking(budget, 60, 50, 10) as askers:
        before = served(askers)
        await askers[0].leave()

        assert (before, served(askers)) == ([True, False, False], [True, True, True])


async def test_more_than_the_whole_is_had_alone(budget: Budget) -> None:
    async with asking(budget, 2, 500, 2) as askers:
        before = served(askers)
        await askers[0].leave()
        between = served(askers)
        await askers[1].leave()

        assert (before, between) == ([True, False, False], [True, True, False])
        assert served(askers) == [True, True, True]


async def test_nothing_is_had_at_once_however_many_wait(budget: Budget) -> None:
    async with asking(budget, 100, 50, 0) as askers:
        assert served(askers) == [True, False, True]


async def test_who_waits_for_too_long_is_refused_and_no_longer_in_the_way(
    budget: Budget, clock: FakeClock
) -> None:
    async with asking(budget, 60, 90) as askers:
        clock.advance(PATIENCE / 2)
        async with asking(budget, 30) as later:
            before = served(later)
            clock.advance(PATIENCE / 2)
            await settled()

            assert (before, askers[1].refused) == ([False], True)
            assert served(later) == [True]


async def test_who_leaves_while_waiting_takes_nothing_and_is_no_longer_in_the_way(
    budget: Budget,
) -> None:
    async with asking(budget, 60, 90, 40) as askers:
        askers[1].scope.cancel()
        await settled()

        assert served(askers) == [True, False, True]
        assert budget.taken == 100


async def test_who_leaves_in_the_moment_of_being_served_gives_it_back(budget: Budget) -> None:
    async with asking(budget, 100, 100) as askers:
        askers[0]._leave.set()
        askers[1].scope.cancel()
        await settled()

        assert budget.taken == 0


async def test_one_who_would_be_one_too_many_to_wait_is_refused_at_once(budget: Budget) -> None:
    async with asking(budget, 100, *[1] * MOST_WAITING, 1) as askers:
        assert [asker.refused for asker in askers] == [False] * (MOST_WAITING + 1) + [True]


async def test_a_share_that_grows_waits_for_nobody_but_others_wait_for_it(budget: Budget) -> None:
    async with asking(budget, 60) as (holder,):
        assert holder.share is not None
        holder.share.grow(100)
        async with asking(budget, 30) as later:
            before = served(later)
            holder.share.resize(10)
            await settled()

            assert (before, served(later)) == ([False], [True])
            assert budget.taken == 40


async def test_a_little_passes_those_who_wait_for_much(budget: Budget) -> None:
    async with asking(budget, 60, 50, 1) as askers:
        assert served(askers) == [True, False, True]


async def test_a_little_that_waits_is_served_before_those_who_wait_for_much(budget: Budget) -> None:
    async with asking(budget, 60, 40, 50, 1) as askers:
        assert askers[1].share is not None
        askers[1].share.resize(39)
        await settled()

        assert (served(askers), budget.is_short) == ([True, True, False, True], True)


async def test_who_gives_up_lets_the_next_have_what_is_free(budget: Budget) -> None:
    served: list[int] = []
    gives_up = anyio.CancelScope()

    async def ask(size: int, scope: anyio.CancelScope) -> None:
        with scope:
            await budget.obtain(size, patience=PATIENCE)
            served.append(size)

    async with anyio.create_task_group() as tasks:
        await budget.obtain(60, patience=PATIENCE)
        tasks.start_soon(ask, 90, gives_up)
        await settled()
        tasks.start_soon(ask, 30, anyio.CancelScope())
        await settled()
        gives_up.cancel()
        await settled()

        assert served == [30]
