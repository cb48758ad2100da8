"""How long a retry waits, and where each outcome takes a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackd.core.backoff import JITTER, backoff
from stackd.queue.job import (
    LIVE,
    MAX_RESCUES,
    Cancel,
    Complete,
    Discard,
    Fail,
    Job,
    JobState,
    Move,
    Outcome,
    RetryPolicy,
    Snooze,
    next_move,
)

NOW = 1_700_000_000.0
POLICY = RetryPolicy(base=1.0, cap=300.0, max_attempts=4)
FUZZ = settings(deadline=None, derandomize=True)

attempts = st.integers(min_value=1, max_value=10_000)
seconds = st.floats(min_value=0.001, max_value=1e6)
rolls = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


def make_job(**changed: Any) -> Job:
    plain = Job(
        id=1,
        kind="execution.run",
        subject=7,
        payload=None,
        fence=3,
        attempt=0,
        rescues=0,
        priority=0,
        due_at=NOW - 10,
        concurrency_key=None,
        concurrency_limit=None,
    )
    return replace(plain, **changed)


def move(outcome: Outcome, *, roll: float = 0.0, policy: RetryPolicy = POLICY, **job: Any) -> Move:
    return next_move(make_job(**job), outcome, now=NOW, policy=policy, roll=roll)


# -- backoff


def test_backoff_doubles_from_its_base_up_to_its_cap():
    waits = [backoff(n, base=1.0, cap=10.0, roll=0.0) for n in range(1, 7)]

    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_backoff_adds_up_to_a_fifth_of_the_wait():
    assert JITTER == 0.2
    assert backoff(3, base=1.0, cap=300.0, roll=0.5) == pytest.approx(4.4)


def test_backoff_of_no_attempt_is_that_of_the_first():
    assert backoff(0, base=2.0, cap=300.0, roll=0.0) == 2.0


@FUZZ
@given(attempt=attempts, base=seconds, cap=seconds, roll=rolls)
def test_backoff_lies_between_the_plain_wait_and_a_fifth_more_and_never_over_the_cap(
    attempt: int, base: float, cap: float, roll: float
):
    plain = min(base * 2 ** min(attempt - 1, 62), cap)

    wait = backoff(attempt, base=base, cap=cap, roll=roll)

    assert plain <= wait <= min(plain * 1.2, cap)


@FUZZ
@given(attempt=attempts, base=seconds, cap=seconds, roll=rolls)
def test_backoff_never_falls_as_attempts_grow(attempt: int, base: float, cap: float, roll: float):
    earlier = backoff(attempt, base=base, cap=cap, roll=roll)

    assert backoff(attempt + 1, base=base, cap=cap, roll=roll) >= earlier


@FUZZ
@given(attempt=attempts, base=seconds, cap=seconds, roll=rolls)
def test_backoff_grows_with_the_roll(attempt: int, base: float, cap: float, roll: float):
    low = backoff(attempt, base=base, cap=cap, roll=0.0)

    assert low <= backoff(attempt, base=base, cap=cap, roll=roll)


# -- where an outcome takes a job


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Complete(), Move(JobState.COMPLETED, 2)),
        (Cancel(), Move(JobState.CANCELLED, 2)),
        (Discard("bad"), Move(JobState.DISCARDED, 2, error="bad")),
        (Snooze(30.0), Move(JobState.SCHEDULED, 2, NOW + 30.0)),
        (Snooze(0.0), Move(JobState.AVAILABLE, 2, NOW)),
        (Fail("no"), Move(JobState.RETRYABLE, 3, NOW + 4.0, "no")),
    ],
    ids=lambda value: "" if isinstance(value, Move) else repr(value),
)
def test_outcome_takes_the_job_to_its_state(outcome: Outcome, expected: Move):
    assert move(outcome, attempt=2) == expected


def test_failed_job_is_tried_with_doubling_waits_until_its_attempts_run_out():
    moves = [move(Fail("no"), attempt=n) for n in range(POLICY.max_attempts)]

    assert [m.state for m in moves] == [JobState.RETRYABLE] * 3 + [JobState.DISCARDED]
    assert [m.due_at and m.due_at - NOW for m in moves] == [1.0, 2.0, 4.0, None]
    assert [m.attempt for m in moves] == [1, 2, 3, 4]
    assert {m.error for m in moves} == {"no"}


def test_failed_job_with_a_single_attempt_is_discarded_at_once():
    assert move(Fail("no"), policy=RetryPolicy(max_attempts=1)).state is JobState.DISCARDED


def test_failed_job_beyond_its_attempts_is_discarded_when_their_number_was_lowered():
    assert move(Fail("no"), attempt=9).state is JobState.DISCARDED


@FUZZ
@given(attempt=st.integers(0, 50), roll=rolls, delay=st.floats(0, 1e6))
def test_move_of_any_outcome_is_consistent(attempt: int, roll: float, delay: float):
    for outcome in (Complete(), Cancel(), Discard("e"), Snooze(delay), Fail("e")):
        moved = move(outcome, attempt=attempt, roll=roll)

        assert moved.state is not JobState.RUNNING
        assert moved.attempt == attempt + isinstance(outcome, Fail), "only a failure costs one"
        assert (moved.due_at is not None) == (moved.state in LIVE), "what goes on has a time"
        assert moved.due_at is None or moved.due_at >= NOW


@FUZZ
@given(attempt=st.integers(0, 2), roll=rolls)
def test_retry_waits_as_the_backoff_of_its_policy_says(attempt: int, roll: float):
    policy = RetryPolicy(base=3.0, cap=10.0)

    moved = move(Fail("no"), attempt=attempt, roll=roll, policy=policy)

    assert moved.due_at == NOW + backoff(attempt + 1, base=3.0, cap=10.0, roll=roll)


@FUZZ
@given(
    changed=st.fixed_dictionaries(
        {
            "fence": st.integers(1, 10**9),
            "rescues": st.integers(0, MAX_RESCUES),
            "priority": st.integers(-10, 10),
            "subject": st.one_of(st.none(), st.integers(), st.text()),
            "concurrency_key": st.one_of(st.none(), st.text()),
        }
    )
)
def test_move_depends_on_nothing_of_the_job_but_its_attempts(changed: dict[str, Any]):
    for outcome in (Complete(), Cancel(), Discard("e"), Snooze(1.0), Fail("e")):
        assert move(outcome, **changed) == move(outcome)


def test_live_states_are_those_that_may_still_run():
    assert set(JobState) - set(LIVE) == {
        JobState.COMPLETED,
        JobState.CANCELLED,
        JobState.DISCARDED,
    }
