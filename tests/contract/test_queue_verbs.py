"""What any backend of the queue must hold: the verbs, over a real store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from stackd.core.events import Event, EventBus
from stackd.core.process import current_process
from stackd.queue import processes, verbs
from stackd.queue.job import (
    MAX_RESCUES,
    PROBATION,
    Cancel,
    Complete,
    Discard,
    Fail,
    Job,
    JobEnqueued,
    JobState,
    JobUnblocked,
    NewJob,
    Outcome,
    RetryPolicy,
    Snooze,
)
from stackd.queue.processes import Watch
from stackd.store.database import Database
from stackd.testing import FakeClock

POLICY = RetryPolicy(base=1.0, cap=300.0, max_attempts=3)
ME = "me"
THIS_PROCESS = current_process()  # read here: a test may not block its loop


class Queue:
    """The verbs, each in a transaction of its own, at a time the test sets."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_000.0

    async def enqueue(self, *jobs: NewJob) -> list[int | None]:
        return await self.database.write(lambda tx: verbs.enqueue(tx, jobs, now=self.now))

    async def claim(self, limit: int = 10, owner: str = ME) -> list[Job]:
        return await self.database.write(
            lambda tx: verbs.claim(tx, owner=owner, limit=limit, lease=60.0, now=self.now)
        )

    async def settle(self, job: Job, outcome: Outcome) -> JobState | None:
        return await self.database.write(
            lambda tx: verbs.settle(tx, job, outcome, now=self.now, policy=POLICY, roll=0.0)
        )

    async def do(self, verb: Callable[..., Any], **arguments: Any) -> Any:
        return await self.database.write(lambda tx: verb(tx, **arguments))

    async def states(self) -> dict[int, str]:
        return dict(await self.database.read(lambda tx: tx.rows("SELECT id, state FROM jobs")))


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


async def test_claim_takes_highest_priority_first_then_oldest_due(queue: Queue) -> None:
    await queue.enqueue(
        NewJob("a", due_at=900.0),
        NewJob("b", due_at=800.0),
        NewJob("c", due_at=999.0, priority=5),
    )

    assert [job.kind for job in await queue.claim()] == ["c", "b", "a"]


async def test_claim_of_zero_changes_nothing(queue: Queue) -> None:
    (job_id,) = await queue.enqueue(NewJob("a"))

    assert await queue.claim(0) == []
    assert await queue.states() == {job_id: "available"}


async def test_a_job_is_claimed_by_one_owner_only(queue: Queue) -> None:
    await queue.enqueue(*[NewJob("a") for _ in range(10)])

    first, second = await queue.claim(6, "one"), await queue.claim(6, "two")

    assert len(first) == 6
    assert len(second) == 4
    assert not {j.id for j in first} & {j.id for j in second}


async def test_scheduled_job_is_not_claimed_before_it_is_due(queue: Queue) -> None:
    await queue.enqueue(NewJob("later", due_at=1_005.0))

    assert await queue.claim() == []
    queue.now = 1_005.0
    assert [j.kind for j in await queue.claim()] == ["later"]


async def test_second_live_job_of_a_subject_is_refused_until_the_first_is_done(
    queue: Queue,
) -> None:
    (first,) = await queue.enqueue(NewJob("run", subject=7))

    assert await queue.enqueue(NewJob("run", subject=7)) == [None]
    (job,) = await queue.claim()
    assert await queue.enqueue(NewJob("run", subject=7)) == [None]
    await queue.settle(job, Complete())
    assert await queue.enqueue(NewJob("run", subject=7)) != [None]
    assert first is not None


async def test_second_live_job_with_a_dedupe_key_is_refused(queue: Queue) -> None:
    await queue.enqueue(NewJob("a", dedupe_key="k"))

    assert await queue.enqueue(NewJob("b", dedupe_key="k"), NewJob("c", dedupe_key="l")) == [
        None,
        2,
    ]


async def test_enqueue_tells_of_new_jobs_only(queue: Queue, bus: EventBus) -> None:
    seen: list[Event] = []
    bus.subscribe(seen.append)

    await queue.enqueue(NewJob("a", dedupe_key="k"), NewJob("b", dedupe_key="k"))

    assert [e.kind for e in seen if isinstance(e, JobEnqueued)] == ["a"]


async def test_fence_grows_at_every_claim_and_an_old_claim_cannot_settle(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    (old,) = await queue.claim(owner="dead")
    await queue.do(verbs.rescue, owners=["dead"], now=queue.now)

    (new,) = await queue.claim()

    assert new.fence == old.fence + 1
    assert await queue.settle(old, Complete()) is None
    assert await queue.settle(new, Complete()) is JobState.COMPLETED


async def test_an_expired_lease_alone_does_not_invalidate_a_settle(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    (job,) = await queue.claim()
    queue.now += 10_000

    assert await queue.settle(job, Complete()) is JobState.COMPLETED


async def test_failed_job_waits_twice_as_long_each_time_and_is_discarded_at_the_last_attempt(
    queue: Queue,
) -> None:
    await queue.enqueue(NewJob("a"))
    waits = []
    for _ in range(2):
        (job,) = await queue.claim()
        assert await queue.settle(job, Fail("boom")) is JobState.RETRYABLE
        due = await queue.database.read(lambda tx: verbs.next_due(tx, now=queue.now))
        assert due is not None
        waits.append(due - queue.now)
        queue.now = due

    (job,) = await queue.claim()

    assert waits == [1.0, 2.0]
    assert await queue.settle(job, Fail("boom")) is JobState.DISCARDED


async def test_snoozed_job_costs_no_attempt(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    (job,) = await queue.claim()

    await queue.settle(job, Snooze(5.0))

    queue.now += 5
    (again,) = await queue.claim()
    assert again.attempt == 0


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Cancel(), JobState.CANCELLED), (Discard("never"), JobState.DISCARDED)],
    ids=["cancel", "discard"],
)
async def test_ended_job_is_never_claimed_again(
    queue: Queue, outcome: Outcome, state: JobState
) -> None:
    await queue.enqueue(NewJob("a"))
    (job,) = await queue.claim()

    assert await queue.settle(job, outcome) is state
    queue.now += 1e6
    assert await queue.claim() == []


async def test_discard_ends_a_live_job_whoever_holds_it_and_frees_its_place(queue: Queue) -> None:
    narrow = {"concurrency_key": "k", "concurrency_limit": 1}
    held, waits = await queue.enqueue(NewJob("a", **narrow), NewJob("a", **narrow))
    (job,) = await queue.claim()

    done = [await queue.do(verbs.discard, job_id=held, error="x", now=queue.now) for _ in range(2)]

    assert done == [True, False]
    assert await queue.states() == {held: "discarded", waits: "available"}
    assert [job.id for job in await queue.claim()] == [waits]
    assert await queue.settle(job, Complete()) is None
    query = "SELECT owner, leased_until, error FROM jobs WHERE id = ?"
    assert await queue.database.read(lambda tx: tx.one(query, (held,))) == (None, None, "x")


async def test_only_a_claim_that_is_nobodys_is_offered_again(queue: Queue) -> None:
    mine, nobodys = await queue.enqueue(NewJob("a"), NewJob("a"))
    await queue.claim()
    await queue.database.write(
        lambda tx: tx.execute("UPDATE jobs SET owner = NULL WHERE id = ?", (nobodys,))
    )

    for job_id in (mine, nobodys):
        await queue.do(verbs.offer_again, job_id=job_id)

    assert await queue.states() == {mine: "running", nobodys: "available"}


async def test_cancel_of_a_waiting_job_ends_it_and_of_a_running_one_does_not(queue: Queue) -> None:
    await queue.enqueue(NewJob("a", subject=1), NewJob("a", subject=2))
    (running,) = await queue.claim(1)

    assert await queue.do(verbs.cancel_pending, kind="a", subject=2, now=queue.now)
    assert not await queue.do(verbs.cancel_pending, kind="a", subject=1, now=queue.now)
    assert await queue.states() == {running.id: "running", 2: "cancelled"}


async def test_no_more_jobs_of_a_key_run_than_its_limit_and_others_are_not_held_up(
    queue: Queue,
) -> None:
    limited = [NewJob("slow", concurrency_key="w", concurrency_limit=2) for _ in range(5)]
    await queue.enqueue(*limited, NewJob("free", due_at=queue.now), NewJob("free"))

    claimed = await queue.claim(4)

    assert sorted(j.kind for j in claimed) == ["free", "free", "slow", "slow"]
    assert await queue.claim(4) == []


async def test_a_claim_stays_short_when_one_key_has_thousands_and_gets_past_them(
    queue: Queue,
) -> None:
    many = [NewJob("a", concurrency_key="w", concurrency_limit=1) for _ in range(2_000)]
    await queue.enqueue(*many, NewJob("b"))
    blocked = "SELECT count(*) FROM jobs WHERE blocked = 1"
    kinds: list[str] = []
    steps: list[int] = []

    while "b" not in kinds:
        before = (await queue.database.read(lambda tx: tx.rows(blocked)))[0][0]
        kinds += [job.kind for job in await queue.claim(limit=50)]
        steps.append((await queue.database.read(lambda tx: tx.rows(blocked)))[0][0] - before)

    assert sorted(kinds) == ["a", "b"]
    assert max(steps) <= verbs.CLAIM_ROUNDS * 50


async def test_a_freed_place_goes_to_the_oldest_job_of_the_key(queue: Queue) -> None:
    await queue.enqueue(
        *[NewJob(str(n), concurrency_key="w", concurrency_limit=1) for n in range(3)]
    )
    order = []
    for _ in range(3):
        (job,) = await queue.claim()
        order.append(job.kind)
        await queue.settle(job, Complete())

    assert order == ["0", "1", "2"]


async def test_the_place_of_a_job_cancelled_before_it_was_claimed_goes_to_the_next(
    queue: Queue,
) -> None:
    await queue.enqueue(
        *(NewJob("a", subject=n, concurrency_key="w", concurrency_limit=1) for n in range(3))
    )
    (first,) = await queue.claim()
    await queue.settle(first, Complete())

    await queue.do(verbs.cancel_pending, kind="a", subject=1, now=queue.now)

    assert [job.subject for job in await queue.claim()] == [2]


async def test_a_job_left_aside_beside_a_free_place_is_found_by_the_upkeep(queue: Queue) -> None:
    await queue.enqueue(NewJob("a", concurrency_key="w", concurrency_limit=1))
    await queue.database.write(lambda tx: tx.execute("UPDATE jobs SET blocked = 1"))
    assert await queue.claim() == []

    await queue.do(verbs.fill_all_places)

    assert len(await queue.claim()) == 1


async def test_rescue_of_a_limited_job_keeps_the_limit(queue: Queue) -> None:
    await queue.enqueue(
        *[NewJob(str(n), concurrency_key="w", concurrency_limit=1) for n in range(3)]
    )
    await queue.claim(owner="dead")

    await queue.do(verbs.rescue, owners=["dead"], now=queue.now)

    assert len(await queue.claim()) == 1
    assert await queue.claim() == []


async def test_a_new_limit_applies_to_jobs_that_wait(queue: Queue) -> None:
    await queue.enqueue(
        *[NewJob(str(n), concurrency_key="w", concurrency_limit=1) for n in range(3)]
    )
    assert len(await queue.claim()) == 1

    await queue.database.write(lambda tx: verbs.change_concurrency(tx, "w", 3))

    assert len(await queue.claim()) == 2


async def test_a_first_limit_counts_what_runs_and_holds_what_waits(queue: Queue) -> None:
    await queue.enqueue(*[NewJob("a", subject=n) for n in range(3)])
    (running,) = await queue.claim(1)

    await queue.do(verbs.give_key, key="w", kind="a", subjects=[0, 1, 2])
    await queue.do(verbs.change_concurrency, key="w", limit=1)

    assert await queue.claim() == []
    assert await queue.settle(running, Complete()) is JobState.COMPLETED
    assert len(await queue.claim()) == 1


async def test_paused_queue_gives_nothing_until_it_is_resumed(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    await queue.do(verbs.pause)

    assert await queue.claim() == []
    assert await queue.database.read(lambda tx: verbs.next_due(tx, now=queue.now)) is None
    await queue.do(verbs.resume)
    assert len(await queue.claim()) == 1


async def test_renew_extends_the_leases_of_one_owner(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"), NewJob("b"))
    await queue.claim(1, "one")
    await queue.claim(1, "two")

    assert await queue.do(verbs.renew, owner="one", lease=60.0, now=2_000.0) == 1
    leases = await queue.database.read(
        lambda tx: dict(tx.rows("SELECT owner, leased_until FROM jobs"))
    )
    assert leases == {"one": 2_060.0, "two": 1_060.0}


async def test_only_processes_proven_dead_are_rescued_from(queue: Queue) -> None:
    alive = THIS_PROCESS
    gone = replace(alive, start_ticks=alive.start_ticks + 1)  # the pid was reused
    other_boot = replace(alive, boot_id="00000000-0000")
    elsewhere = replace(alive, namespace=1, start_ticks=1)  # in another container: not to be seen
    for identity in (alive, gone, other_boot, elsewhere):
        await queue.database.write(
            lambda tx, identity=identity: processes.register(
                tx, identity, role="worker", now=queue.now
            )
        )
        await queue.enqueue(NewJob("a"))
        await queue.claim(1, identity.id)

    clock = FakeClock()
    watch = Watch(clock, patience=180.0)
    dead = await queue.do(verbs.dead_owners, me="me", watch=watch)
    clock.advance(90.0)
    await queue.do(verbs.dead_owners, me="me", watch=watch)
    clock.advance(89.0)
    not_yet = await queue.do(verbs.dead_owners, me="me", watch=watch)
    clock.advance(1.0)
    silent = await queue.do(verbs.dead_owners, me="me", watch=watch)

    assert set(dead) == set(not_yet) == {gone.id, other_boot.id}
    assert set(silent) == {alive.id, gone.id, other_boot.id, elsewhere.id}


async def test_time_in_which_nobody_looked_makes_nobody_dead(queue: Queue) -> None:
    """As when all processes were stopped and go on together."""
    await queue.database.write(
        lambda tx: processes.register(tx, THIS_PROCESS, role="worker", now=queue.now)
    )
    await queue.enqueue(NewJob("a"))
    await queue.claim(1, THIS_PROCESS.id)
    clock = FakeClock()
    watch = Watch(clock, patience=180.0)

    for away in (0.0, 91.0, 1000.0):
        clock.advance(away)
        assert await queue.do(verbs.dead_owners, me="me", watch=watch) == []


async def test_who_holds_the_locks_of_a_role_knows_that_its_predecessor_elsewhere_has_ended(
    queue: Queue,
) -> None:
    before = replace(THIS_PROCESS, namespace=1)
    visible = replace(THIS_PROCESS, start_ticks=THIS_PROCESS.start_ticks + 1)
    worker = replace(before, pid=2)
    for identity, role in ((before, "stack"), (worker, "worker"), (visible, "stack")):
        await queue.database.write(
            lambda tx, identity=identity, role=role: processes.register(
                tx, identity, role=role, now=queue.now
            )
        )

    await queue.database.write(
        lambda tx: processes.register(
            tx, THIS_PROCESS, role="stack", now=queue.now, excluded={"stack"}
        )
    )

    known = {row.identity for row in await queue.database.read(processes.listed)}
    assert known == {THIS_PROCESS, worker, visible}  # of what is visible, /proc tells more


async def test_a_jump_of_the_wall_clock_makes_no_live_process_dead(queue: Queue) -> None:
    await queue.database.write(
        lambda tx: processes.register(tx, THIS_PROCESS, role="worker", now=queue.now)
    )
    await queue.enqueue(NewJob("a"))
    await queue.claim(1, THIS_PROCESS.id)
    watch = Watch(FakeClock(), patience=180.0)

    for now in (queue.now + 90_000.0, queue.now - 90_000.0):
        await queue.database.write(
            lambda tx, now=now: processes.register(
                tx, replace(THIS_PROCESS, start_ticks=1), role="stack", now=now
            )
        )
        assert await queue.do(verbs.dead_owners, me="me", watch=watch) == []


async def test_an_idle_live_process_is_not_forgotten_by_a_jump_of_the_wall_clock(
    queue: Queue,
) -> None:
    gone = replace(THIS_PROCESS, start_ticks=1)
    for identity in (THIS_PROCESS, gone):
        await queue.database.write(
            lambda tx, identity=identity: processes.register(
                tx, identity, role="worker", now=queue.now
            )
        )

    await queue.database.write(
        lambda tx: processes.register(
            tx, replace(THIS_PROCESS, start_ticks=2), role="stack", now=queue.now + 90_000.0
        )
    )

    known = {row.identity for row in await queue.database.read(processes.listed)}
    assert THIS_PROCESS in known
    assert gone not in known


async def test_a_process_never_counts_itself_dead(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    await queue.claim(owner=ME)

    assert await queue.do(verbs.dead_owners, me=ME, watch=Watch(FakeClock(), patience=0.0)) == []


async def test_job_rescued_too_often_is_discarded(queue: Queue) -> None:
    await queue.enqueue(NewJob("a"))
    for _ in range(MAX_RESCUES):
        await queue.claim(owner="dead")
        (taken,) = await queue.do(verbs.rescue, owners=["dead"], now=queue.now)
        assert not taken.discarded
    await queue.claim(owner="dead")

    (last,) = await queue.do(verbs.rescue, owners=["dead"], now=queue.now)

    assert last.discarded
    assert await queue.claim() == []


async def test_prune_removes_old_finished_jobs_only(queue: Queue) -> None:
    await queue.enqueue(NewJob("done"), NewJob("live"))
    (job, *_) = await queue.claim(1)
    await queue.settle(job, Complete())

    pruned = await queue.do(verbs.prune, before=queue.now + 1, limit=10)

    assert pruned == 1
    assert list((await queue.states()).values()) == ["available"]


# -- probation


async def crashed(queue: Queue, owner: str, times: int = 1) -> None:
    """`owner` claims all it can and dies, so often."""
    for _ in range(times):
        await queue.claim(owner=owner)
        await queue.do(verbs.rescue, owners=[owner], now=queue.now)


async def test_of_the_jobs_on_probation_a_process_runs_one_at_a_time_beside_all_others(
    queue: Queue,
) -> None:
    await queue.enqueue(*[NewJob("suspect") for _ in range(3)])
    await crashed(queue, "dead", times=PROBATION)
    await queue.enqueue(*[NewJob("other") for _ in range(4)])

    mine, theirs = await queue.claim(), await queue.claim(owner="them")
    again = await queue.claim()

    assert sorted(job.kind for job in mine) == ["other"] * 4 + ["suspect"]
    assert [job.kind for job in theirs] == ["suspect"]
    assert again == []


async def test_a_job_on_probation_takes_a_place_even_where_others_fill_them_all(
    queue: Queue,
) -> None:
    await queue.enqueue(NewJob("suspect"))
    await crashed(queue, "dead", times=PROBATION)
    await queue.enqueue(*[NewJob("other", priority=9) for _ in range(4)])

    assert [job.kind for job in await queue.claim(2)] == ["suspect", "other"]
    assert [job.kind for job in await queue.claim(2)] == ["other", "other"]


async def test_the_next_on_probation_is_offered_when_the_one_before_it_has_ended(
    queue: Queue, bus: EventBus
) -> None:
    first, second = await queue.enqueue(NewJob("suspect"), NewJob("suspect"))
    await crashed(queue, "dead", times=PROBATION)
    (job,) = await queue.claim()
    due = [await queue.database.read(partial(verbs.next_due, now=queue.now, owner=ME))]
    seen: list[Event] = []
    bus.subscribe(seen.append, JobUnblocked)

    await queue.settle(job, Complete())
    due.append(await queue.database.read(partial(verbs.next_due, now=queue.now, owner=ME)))

    assert job.id == first
    assert [event.job_id for event in seen if isinstance(event, JobUnblocked)] == [second]
    assert due == [None, queue.now]
    assert [one.id for one in await queue.claim()] == [second]


async def test_a_job_that_kills_its_process_is_the_only_one_to_be_discarded_for_it(
    queue: Queue,
) -> None:
    (culprit,) = await queue.enqueue(NewJob("culprit"))
    innocent = await queue.enqueue(*[NewJob("innocent") for _ in range(30)])
    crashes = 0

    while JobState.AVAILABLE in (await queue.states()).values():
        claimed = await queue.claim(8, owner=f"process {crashes}")
        if any(job.id == culprit for job in claimed):
            await queue.do(verbs.rescue, owners=[f"process {crashes}"], now=queue.now)
            crashes += 1
        else:
            for job in claimed:
                await queue.settle(job, Complete())

    states = await queue.states()
    assert crashes == MAX_RESCUES + 1
    assert states.pop(culprit) == JobState.DISCARDED
    assert set(states) == set(innocent)
    assert set(states.values()) == {JobState.COMPLETED}
    most = await queue.database.read(
        lambda tx: tx.one("SELECT max(rescues) FROM jobs WHERE kind = 'innocent'")
    )
    assert most[0] <= PROBATION
