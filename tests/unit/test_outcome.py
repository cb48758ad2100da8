"""What a failed try of a node means: the table of verdicts, and what no error may ever lead to."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.errors import NodeError
from stackd.runtime.outcome import (
    JITTER,
    RETRYABLE,
    SHORTEST_WAIT,
    Again,
    GiveUp,
    NodeRetry,
    Unknown,
    Verdict,
    default_retry,
    judge,
)

MIDDLE = 0.5  # the roll that leaves a wait as it is
KINDS = [*sorted(RETRYABLE), "server_error", "rejected", "invalid", "limit", "internal"]


def failed(kind: str = "network", **facts: object) -> NodeError:
    return NodeError("it failed", kind=kind, **facts)  # type: ignore[arg-type]


def verdict(
    error: NodeError,
    *,
    unsafe: bool = False,
    attempt: int = 1,
    retry: NodeRetry | None = None,
    roll: float = MIDDLE,
) -> Verdict:
    return judge(
        error, unsafe=unsafe, attempt=attempt, retry=retry or NodeRetry(3, 2.0, 30.0), roll=roll
    )


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_failure_that_may_pass_is_tried_again(kind: str) -> None:
    expected = Again(2.0) if kind in RETRYABLE else GiveUp()

    assert verdict(failed(kind)) == expected


# unsafe, sent, answered, declined: what follows from a kind that may be tried again, on the first of 3 tries
TABLE = [
    (False, False, False, False, Again),
    (False, True, False, False, Again),
    (False, True, True, False, Again),
    (False, True, True, True, Again),
    (True, False, False, False, Again),
    (True, True, False, False, Unknown),
    (True, True, True, False, GiveUp),
    (True, True, True, True, Again),
    (True, True, False, True, Unknown),  # a "declined" that nobody answered proves nothing
    (True, False, True, False, Again),
]


@pytest.mark.parametrize(("unsafe", "sent", "answered", "declined", "expected"), TABLE)
def test_what_was_sent_and_answered_decides(
    unsafe: bool, sent: bool, answered: bool, declined: bool, expected: type[Verdict]
) -> None:
    error = failed(sent=sent, answered=answered, declined=declined)

    assert type(verdict(error, unsafe=unsafe)) is expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attempt", [1, 3, 99])
def test_an_unsafe_action_without_an_answer_is_unknown_whatever_the_kind_and_attempt(
    kind: str, attempt: int
) -> None:
    assert verdict(failed(kind, sent=True), unsafe=True, attempt=attempt) == Unknown()


@pytest.mark.parametrize(("attempt", "expected"), [(2, Again), (3, GiveUp), (4, GiveUp)])
def test_the_last_attempt_is_the_last(attempt: int, expected: type[Verdict]) -> None:
    assert type(verdict(failed(), attempt=attempt)) is expected


def test_one_attempt_means_no_retry() -> None:
    assert verdict(failed(), retry=NodeRetry(1)) == GiveUp()


@pytest.mark.parametrize(
    ("attempt", "wait"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0), (5, 20.0), (10_000, 20.0)]
)
def test_waits_double_up_to_the_longest(attempt: int, wait: float) -> None:
    assert verdict(failed(), attempt=attempt, retry=NodeRetry(10**9, 2.0, 20.0)) == Again(wait)


@pytest.mark.parametrize(("roll", "share"), [(0.0, 1 - JITTER), (MIDDLE, 1.0), (1.0, 1 + JITTER)])
def test_jitter_goes_either_way_by_the_same_share(roll: float, share: float) -> None:
    assert verdict(failed(), retry=NodeRetry(3, 8.0), roll=roll) == Again(8.0 * share)


def test_no_wait_is_shorter_than_the_shortest() -> None:
    assert verdict(failed(), retry=NodeRetry(3, 0.0)) == Again(SHORTEST_WAIT)


@pytest.mark.parametrize(
    ("asked", "wait"),
    [(None, 2.0), (0.0, 2.0), (1.0, 2.0), (2.5, 2.5), (3600.0, 3600.0), (-5.0, 2.0)],
)
def test_the_far_side_can_lengthen_a_wait_but_not_shorten_it(
    asked: float | None, wait: float
) -> None:
    assert verdict(failed("rate_limit", retry_after=asked)) == Again(wait)


def test_what_the_far_side_asks_for_does_not_bring_a_spent_node_back() -> None:
    assert verdict(failed("rate_limit", retry_after=1.0), attempt=3) == GiveUp()


@pytest.mark.parametrize(
    ("node_type", "attempts"),
    [
        ("action.http.request", 3),
        ("action.time.delay", 1),
        ("action.slack.post", 2),
        ("transform.data.set", 1),
        ("logic.if", 1),
        ("something.else", 2),
    ],
)
def test_default_retry_is_the_one_of_the_most_special_prefix(node_type: str, attempts: int) -> None:
    assert default_retry(node_type).max_attempts == attempts


ERRORS = st.builds(
    NodeError,
    st.just("it failed"),
    kind=st.sampled_from(KINDS),
    sent=st.booleans(),
    answered=st.booleans(),
    declined=st.booleans(),
    retry_after=st.none() | st.floats(0, 1e6),
)
RETRIES = st.builds(NodeRetry, st.integers(1, 1000), st.floats(0, 1e6), st.floats(0, 1e6))
ROLLS = st.floats(0, 1, exclude_max=True)


@given(ERRORS, st.integers(1, 2000), RETRIES, ROLLS)
def test_an_unsafe_failure_that_was_sent_and_not_answered_is_never_tried_again(
    error: NodeError, attempt: int, retry: NodeRetry, roll: float
) -> None:
    found = judge(error, unsafe=True, attempt=attempt, retry=retry, roll=roll)

    assert (found == Unknown()) == (error.sent and not error.answered)
    if isinstance(found, Again):
        assert not error.sent or error.declined


@given(ERRORS, st.booleans(), st.integers(1, 2000), RETRIES, ROLLS)
def test_every_wait_is_finite_and_within_its_bounds(
    error: NodeError, unsafe: bool, attempt: int, retry: NodeRetry, roll: float
) -> None:
    found = judge(error, unsafe=unsafe, attempt=attempt, retry=retry, roll=roll)

    if isinstance(found, Again):
        asked = error.retry_after or 0.0
        assert attempt < retry.max_attempts
        assert math.isfinite(found.wait)
        assert max(SHORTEST_WAIT, asked) <= found.wait
        assert found.wait <= max(retry.longest * (1 + JITTER), SHORTEST_WAIT, asked)


@given(ERRORS, st.integers(1, 2000), RETRIES, ROLLS)
def test_a_safe_failure_is_never_unknown(
    error: NodeError, attempt: int, retry: NodeRetry, roll: float
) -> None:
    assert judge(error, unsafe=False, attempt=attempt, retry=retry, roll=roll) != Unknown()
