"""The known name that a wrong one was meant to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.core.names import ALIKE, COMPARED, nearest

NODES = ["start", "hook", "price", "score", "tell"]
KEYS = ["maxAttempts", "initialMs", "maxMs", "onError", "timeoutMs", "url"]


@pytest.mark.parametrize(
    ("wrong", "known", "meant"),
    [
        ("hok", NODES, "hook"),
        ("strat", NODES, "start"),
        ("prices", NODES, "price"),
        ("scoer", NODES, "score"),
        ("on_error", KEYS, "onError"),
        ("ONERROR", KEYS, "onError"),
        ("ulr", KEYS, "url"),
        ("maxAttempt", KEYS, "maxAttempts"),
        ("url", KEYS, "url"),
        ("colour", NODES, None),
        ("", NODES, None),
        ("hook", [], None),
        ("hook", [""], None),
        ("", [""], None),
        ("x" * 100_000, NODES, None),
        ("hook", ["hoook", "hookk"], "hoook"),
    ],
)
def test_the_nearest_name_is_the_one_with_most_letters_in_common_in_order(wrong, known, meant):
    assert nearest(wrong, known) == meant


def test_of_a_long_list_only_the_beginning_is_compared():
    looked_at = []

    def names():
        for number in range(COMPARED):
            looked_at.append(number)
            yield f"node_{number:05}"

    assert nearest("node_0000x", names()) == "node_00000"
    assert len(looked_at) == COMPARED // 10 + 1


def _common(left: str, right: str) -> int:
    """The longest common subsequence, as it is defined."""
    row = [0] * (len(right) + 1)
    for letter in left:
        above, row = row, [0]
        for index, other in enumerate(right):
            row.append(above[index] + 1 if letter == other else max(above[index + 1], row[-1]))
    return row[-1]


@given(st.text("abc", max_size=12), st.lists(st.text("abc", max_size=12), max_size=5))
def test_it_is_found_as_by_the_definition(wrong, known):
    shares = {one: 2 * _common(wrong, one) / (len(wrong) + len(one) or 1) for one in known}
    best = max(shares.values(), default=0.0)

    found = nearest(wrong, known)

    assert (found is None) == (best <= ALIKE)
    assert found is None or shares[found] == best
