"""Token buckets as moments: how many may go, and who has to wait until when."""

from __future__ import annotations

import pytest

from stackd.integrations.limits import Bucket, Level, granted, put_off, taken

NOW = 1_700_000_000.0
TWO_A_SECOND = Bucket(b"x" * 16, 0.5, 3.0, "at most 2 in 1 s")
FULL = Level(NOW, NOW, NOW)


def later(level: Level, seconds: float) -> Level:
    return level.at(level.seen_at + seconds)


def test_a_bucket_nobody_has_drawn_on_gives_its_burst_and_no_more() -> None:
    assert granted(FULL, TWO_A_SECOND, waited=False) == 3
    assert granted(taken(FULL, TWO_A_SECOND, 3), TWO_A_SECOND, waited=False) == 0


@pytest.mark.parametrize(("seconds", "count"), [(0.4, 0), (0.5, 1), (0.9, 1), (1.0, 2), (99.0, 3)])
def test_what_was_drawn_comes_back_one_by_one_up_to_the_burst(seconds: float, count: int) -> None:
    empty = taken(FULL, TWO_A_SECOND, 3)

    assert granted(later(empty, seconds), TWO_A_SECOND, waited=False) == count


def test_those_who_are_put_off_stand_one_behind_the_other() -> None:
    level, turns = taken(FULL, TWO_A_SECOND, 3), []
    for _ in range(4):
        level, turn = put_off(level, TWO_A_SECOND, waited=False)
        turns.append(turn - NOW)

    assert turns == [0.5, 1.0, 1.5, 2.0]


def test_who_comes_new_does_not_go_before_those_who_wait() -> None:
    level, _ = put_off(taken(FULL, TWO_A_SECOND, 3), TWO_A_SECOND, waited=False)
    level, _ = put_off(level, TWO_A_SECOND, waited=False)
    at_the_first_turn = later(level, 0.5)

    assert granted(at_the_first_turn, TWO_A_SECOND, waited=False) == 0
    assert granted(at_the_first_turn, TWO_A_SECOND, waited=True) == 1


def test_who_has_waited_and_finds_nothing_does_not_go_to_the_end_of_the_row() -> None:
    level = taken(FULL, TWO_A_SECOND, 3)
    for _ in range(50):
        level, _ = put_off(level, TWO_A_SECOND, waited=False)

    after, turn = put_off(level, TWO_A_SECOND, waited=True)

    assert after == level
    assert turn == NOW + 0.5


def test_a_clock_that_is_set_back_makes_nobody_wait_longer() -> None:
    empty = taken(FULL, TWO_A_SECOND, 3)

    back = empty.at(NOW - 86_400)

    assert granted(later(back, 0.5), TWO_A_SECOND, waited=False) == 1


def test_over_a_minute_no_more_is_granted_than_the_limit_and_its_burst() -> None:
    level, count = FULL, 0
    for _ in range(600):
        level = later(level, 0.1)
        some = min(granted(level, TWO_A_SECOND, waited=True), 2)
        level, count = taken(level, TWO_A_SECOND, some), count + some

    assert 120 <= count <= 123


def test_turns_of_those_who_do_not_come_hold_up_nobody() -> None:
    level = taken(FULL, TWO_A_SECOND, 3)
    for _ in range(10_000):
        level, _ = put_off(level, TWO_A_SECOND, waited=False)

    assert granted(later(level, 60), TWO_A_SECOND, waited=False) == 3
