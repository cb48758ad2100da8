"""How columns share a line: which stay, how wide they are, and that what people copy is whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stackd.cli.columns import GAP, LEAST, Column, fitted

ID, NAME, AT = Column("id"), Column("name", "cut", goes=2), Column("at", goes=1)

a_column = st.builds(
    Column,
    st.just("x"),
    st.sampled_from(["whole", "cut", "folded"]),
    st.none() | st.integers(1, 5),
)


def taken(widths: dict[int, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def test_with_room_every_column_is_as_wide_as_its_longest_text() -> None:
    assert fitted((ID, NAME, AT), (26, 30, 24), room=84) == {0: 26, 1: 30, 2: 24}


def test_with_less_room_what_may_be_cut_is_cut_before_anything_goes() -> None:
    assert fitted((ID, NAME, AT), (26, 30, 24), room=70) == {0: 26, 1: 16, 2: 24}


def test_with_little_room_columns_go_least_important_first() -> None:
    assert fitted((ID, NAME, AT), (26, 30, 24), room=60) == {0: 26, 1: 30}
    assert fitted((ID, NAME, AT), (26, 30, 24), room=39) == {0: 26}


def test_what_stays_is_whole_though_the_line_is_shorter() -> None:
    assert fitted((ID, NAME, AT), (128, 30, 24), room=20) == {0: 128}


def test_columns_that_are_cut_share_and_a_short_one_leaves_the_rest_to_the_others() -> None:
    cut = Column("x", "cut")

    assert fitted((cut, cut, cut), (14, 5, 90), room=59) == {0: 14, 1: 5, 2: 36}


@given(st.lists(st.tuples(a_column, st.integers(1, 200)), min_size=1), st.integers(0, 300))
def test_a_line_is_longer_than_there_is_room_only_for_what_must_be_whole(
    given: list[tuple[Column, int]], room: int
) -> None:
    columns, longest = zip(*given, strict=True)

    widths = fitted(columns, longest, room)

    for place, width in widths.items():
        whole = columns[place].shown == "whole" or longest[place] <= LEAST
        assert width == longest[place] if whole else LEAST <= width <= longest[place]
    assert {p for p, column in enumerate(columns) if column.goes is None} <= set(widths)
    if taken(widths) > room:
        assert all(columns[place].goes is None for place in widths)
        assert all(width <= LEAST or columns[p].shown == "whole" for p, width in widths.items())
