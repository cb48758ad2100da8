"""What is told of checks: after two findings, at once where that is due, and never what is old."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from structlog.testing import capture_logs
from support.watched import WatchedClock

from stackd.core.aside import Aside
from stackd.core.errors import StoreBusyError
from stackd.web import readiness
from stackd.web.readiness import (
    ASKED_FOR,
    GOOD,
    PERIOD,
    STALE,
    Found,
    Readiness,
    Status,
    fail,
    warn,
)

PASS, WARN, FAIL = Status.PASS, Status.WARN, Status.FAIL
BAD = fail("broken")


class Part:
    """Finds what the test says, and counts how often it is looked at."""

    def __init__(self, found: Found | Exception = GOOD) -> None:
        self.found = found
        self.looks = 0
        self.hangs = False

    async def look(self) -> Found:
        self.looks += 1
        if self.hangs:
            await anyio.sleep_forever()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Site:
    def __init__(self) -> None:
        self.clock = WatchedClock()
        self.readiness = Readiness(self.clock)
        self.a, self.b = Part(), Part()
        self.readiness.add("a", self.a.look)
        self.readiness.add("b", self.b.look)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.readiness.run)
                await anyio.wait_all_tasks_blocked()
                await self.readiness.told()
                await anyio.wait_all_tasks_blocked()
                yield
                tasks.cancel_scope.cancel()

    async def next_look(self) -> None:
        self.clock.advance(PERIOD)
        await anyio.wait_all_tasks_blocked()

    async def told(self, name: str = "a") -> tuple[Status, str | None]:
        told = (await self.readiness.told())[name]
        return told.status, told.reason


@pytest.fixture
def site() -> Site:
    return Site()


async def test_what_is_found_first_is_told(site):
    site.a.found = BAD
    async with site.running():
        assert await site.told("a") == (FAIL, "broken")
        assert await site.told("b") == (PASS, None)


async def test_one_other_finding_changes_nothing_and_a_second_does(site):
    async with site.running():
        site.a.found = BAD
        await site.next_look()
        assert await site.told() == (PASS, None)
        await site.next_look()
        assert await site.told() == (FAIL, "broken")
        site.a.found = GOOD
        await site.next_look()
        assert await site.told() == (FAIL, "broken")
        await site.next_look()
        assert await site.told() == (PASS, None)
    assert site.readiness.flips == 2


async def test_findings_that_alternate_change_nothing(site):
    async with site.running():
        for _ in range(10):
            for found in (BAD, GOOD):
                site.a.found = found
                await site.next_look()
                assert await site.told() == (PASS, None)
    assert site.readiness.flips == 0


async def test_what_must_be_told_at_once_is(site):
    async with site.running():
        site.a.found = fail("refused", at_once=True)
        await site.next_look()
        assert await site.told() == (FAIL, "refused")


async def test_a_warning_is_told_at_once_and_is_no_failure(site):
    async with site.running():
        site.a.found = warn("little space")
        await site.next_look()
        assert await site.told() == (WARN, "little space")
    assert site.readiness.flips == 0


async def test_what_is_glanced_wins_over_what_was_looked_for(site):
    known: list[Found] = []
    site.readiness.add("c", site.a.look, glance=lambda: known[-1] if known else None)
    async with site.running():
        assert await site.told("c") == (PASS, None)
        known.append(fail("stopped"))
        assert await site.told("c") == (FAIL, "stopped")
        known.append(GOOD)
        assert await site.told("c") == (PASS, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreBusyError("the store is locked"), "the store is locked"),
        (RuntimeError("secret"), "the check itself failed (RuntimeError)"),
    ],
)
async def test_a_check_that_raises_has_failed(site, error, reason):
    site.a.found = error
    with capture_logs():
        async with site.running():
            assert await site.told() == (FAIL, reason)
            assert await site.told("b") == (PASS, None)


async def test_a_check_that_hangs_has_failed_and_holds_up_no_other(site):
    site.a.hangs = True
    async with site.running():
        told = await site.readiness.told()
        assert (told["a"].status, told["a"].reason) == (FAIL, "no answer within 1 s")
        assert told["b"].status is PASS


async def test_a_thread_that_does_not_come_back_holds_up_nobody_and_is_asked_nothing_more(
    site, monkeypatch
):
    monkeypatch.setattr(readiness, "TIMEOUT", 0.2)  # of real time, which each look waits for it
    gate, calls = threading.Event(), 0

    def hang() -> Found:
        nonlocal calls
        calls += 1
        gate.wait(10)
        return GOOD

    site.readiness.add("disk", Aside(hang).result)
    try:
        async with site.running():
            for _ in range(3):
                site.clock.advance(STALE + 1)
                told = await site.readiness.told()
                assert (told["disk"].status, told["b"].status) == (FAIL, PASS)
            assert calls == 1
            gate.set()
            site.clock.advance(STALE + 1)
            await site.readiness.told()  # it comes back
            site.clock.advance(STALE + 1)
            assert await site.told("disk") == (PASS, None)
    finally:
        gate.set()


async def test_a_look_that_cannot_be_given_up_holds_up_nobody_and_is_not_begun_again(
    site, monkeypatch
):
    monkeypatch.setattr(readiness, "TIMEOUT", 0.2)
    gate, looks = anyio.Event(), 0

    async def hang() -> Found:
        nonlocal looks
        looks += 1
        with anyio.CancelScope(shield=True):  # as a read of the store is
            await gate.wait()
        return GOOD

    site.readiness.add("store", hang)
    async with site.running():
        try:
            for _ in range(2):
                site.clock.advance(STALE + 1)
                with anyio.fail_after(3):
                    told = (await site.readiness.told())["store"]
                assert (told.status, told.reason) == (FAIL, "no answer within 1 s")
            assert looks == 1
        finally:
            gate.set()


@pytest.mark.parametrize("before", [GOOD, BAD])
async def test_what_was_found_before_a_rest_is_no_evidence(site, before):
    site.a.found = before
    async with site.running():
        await site.told()
        site.clock.advance(3600.0)
        await anyio.wait_all_tasks_blocked()
        site.clock.advance(3600.0)
        site.a.found = BAD if before is GOOD else GOOD
        told = (await site.readiness.told())["a"]
        assert (told.status is PASS, told.age) == (before is BAD, 0.0)


async def test_questions_are_answered_from_what_was_found(site):
    async with site.running():
        for _ in range(100):
            await site.told()
    assert site.a.looks == 1


async def test_what_is_seen_at_a_glance_is_not_looked_for(site):
    part = Part()
    site.readiness.add("c", part.look, glance=lambda: GOOD)
    async with site.running():
        for _ in range(5):
            await site.told("c")
            await site.next_look()
    assert part.looks == 0


async def test_when_nobody_asks_nobody_looks_and_the_next_question_begins_it_anew(site):
    async with site.running():
        await site.told()
        for _ in range(round(ASKED_FOR / PERIOD) + 3):
            await site.next_look()
        before = site.a.looks
        assert before <= ASKED_FOR / PERIOD + 2
        site.clock.advance(3600.0)
        await anyio.wait_all_tasks_blocked()
        assert site.a.looks == before
        assert await site.told() == (PASS, None)
        await anyio.wait_all_tasks_blocked()
        await site.next_look()
        assert site.a.looks >= before + 2


async def test_it_has_passed_once_all_did_and_stays_so(site):
    site.a.found = BAD
    async with site.running():
        await site.told()
        assert not site.readiness.has_passed
        site.a.found = GOOD
        await site.next_look()
        await site.next_look()
        await site.told()
        assert site.readiness.has_passed
        site.a.found = BAD
        await site.next_look()
        await site.next_look()
        await site.told()
        assert site.readiness.has_passed
