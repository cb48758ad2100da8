"""What a `Range` header asks for, by the letter of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.web.ranges import part_asked

LONG = "9" * 5000  # digits; more than Python turns into a number


@pytest.mark.parametrize(
    ("header", "part"),
    [
        # §14.1.2: int-range and suffix-range
        ("bytes=0-0", range(1)),
        ("bytes=2-5", range(2, 6)),
        ("bytes=2-", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-10", range(10)),
        ("bytes=-11", range(10)),
        ("bytes=9-9", range(9, 10)),
        ("bytes=9-10", range(9, 10)),
        (f"bytes=3-{LONG}", range(3, 10)),
        (f"bytes=-{LONG}", range(10)),
        (f"bytes={'0' * 5000}3-4", range(3, 5)),
        # §14.1: the name of a unit is case-insensitive
        ("BYTES=0-1", range(2)),
        # a list may have empty elements and spaces around its commas (§5.6.1.2)
        ("bytes=0-1,", range(2)),
        ("bytes=, ,0-1", range(2)),
        # what is there of several is one part
        ("bytes=2-3 , 10-12", range(2, 4)),
        ("bytes=-0,2-3", range(2, 4)),
    ],
)
def test_one_part_is_told(header: str, part: range) -> None:
    assert part_asked(header, 10) == part


@pytest.mark.parametrize(
    "header",
    ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=-00", "bytes=-0,10-", f"bytes={LONG}-"],
)
def test_a_range_of_which_nothing_is_there_is_empty(header: str) -> None:
    assert part_asked(header, 10) == range(0)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=5-2", "bytes=abc", "bytes=-", "bytes=", "bytes=,", "bytes", "bytes=1", "bytes=1-2-3", "bytes=--1",
        "bytes=+1-2", "bytes=1.0-2", "bytes=0x1-2", "bytes=\u0661-\u0662", "bytes= 0-1", "bytes=0 - 1", "bytes:0-1",
        "bytes=0-1,abc", "bytes=0-1,5-2", "bytes=10-,5-2", "lines=0-1", "bytes=0-1 3-4", "", "0-1",
        "bytes=0-1,3-4", "bytes=0-,-1",
    ],
)  # fmt: skip
def test_another_unit_what_is_no_range_and_several_parts_are_passed_over(header: str) -> None:
    assert part_asked(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0"])
def test_what_is_empty_is_whole(header: str) -> None:
    assert part_asked(header, 0) is None


@given(st.text("bytes=-,0123456789 ", max_size=30).map("bytes=".__add__) | st.text())
def test_whatever_is_asked_a_part_is_within(header: str) -> None:
    part = part_asked(header, 1000)

    assert part is None or part == range(0) or 0 <= part.start < part.stop <= 1000
