"""What the daemon and a run tell each other is what the whole of json reads and writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.sandbox.child import frames

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_a_value_is_written_as_json_writes_it(value: Any) -> None:
    assert frames.text(value) == json.dumps(value, ensure_ascii=False)


@given(VALUES)
def test_a_frame_is_read_as_json_reads_it(value: Any) -> None:
    content = frames.packed(value)[frames.LENGTH.size :]

    assert frames.parsed(content) == json.loads(content)


@pytest.mark.parametrize(
    "value",
    [float("nan"), [float("inf")], {"at": {1, 2}}, {(1, 2): 3}, "\ud800"],
    ids=["nan", "infinite", "set", "key", "half"],
)
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        frames.packed(value)
