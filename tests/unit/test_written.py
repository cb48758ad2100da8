"""A document written down for people reads back as the same document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackd.core.text import plain
from stackd.workflows.source import MAX_DEPTH, read_source
from stackd.workflows.written import as_json, as_yaml

# What YAML, one of its dialects, or a terminal makes something of.
AWKWARD = [
    *("yes", "no", "on", "~", "null", "1e3", "0o7", "0x1F", "1:30", ".inf", "1_000", "2020-01-01"),
    *("-", "<<", "=", "!x", "&a", "*a", "'", '"', "a: b", "a #b", "# a", "- a", "{{ a }}"),
    *("a\nb", "a\n", "\n", "\na", " a\n  b", "a \nb\t\n\n"),
    *("\x1b", "\u202e", "\u2028", "\x85", "\ufeff"),
]
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30) | st.sampled_from(AWKWARD)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def exactly(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_whatever_a_document_holds_both_forms_read_back_as_the_same_and_do_nothing_to_a_terminal(
    document: dict[str, Any],
) -> None:
    for text in (as_yaml(document), as_json(document)):
        assert exactly(read_source(text.encode()).value) == exactly(document)
        assert all(plain(line) == line for line in text.split("\n"))


def test_keys_stand_in_the_order_in_which_people_write_them() -> None:
    document = {
        "edges": [{"on": "success", "to": "b", "from": "a"}],
        "id": "w",
        "later": 1,
        "name": "W",
        "nodes": [{"params": {"b": 1, "a": 2}, "retry": {"maxMs": 1, "maxAttempts": 2}, "id": "a"}],
    }

    assert as_yaml(document) == (
        "id: w\n"
        "name: W\n"
        "nodes:\n"
        "  - id: a\n"
        "    params:\n"
        "      b: 1\n"
        "      a: 2\n"
        "    retry:\n"
        "      maxAttempts: 2\n"
        "      maxMs: 1\n"
        "edges:\n"
        "  - from: a\n"
        "    to: b\n"
        "    on: success\n"
        "later: 1\n"
    )


def test_the_body_of_a_loop_is_in_order_too() -> None:
    inside = {"params": {}, "type": "t", "id": "b"}
    loop = {"params": {"items": [1], "nodes": [inside]}, "type": "logic.foreach", "id": "a"}

    text = as_yaml({"nodes": [loop]})

    assert text.index("id: b") < text.index("type: t") < text.index("params: {}")


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", -0.0, 2**70, 1e300, None], ids=repr)
def test_a_value_keeps_its_kind(value: Any) -> None:
    read = read_source(as_yaml({"a": value}).encode()).value["a"]

    assert exactly(read) == exactly(value)
    assert type(read) is type(value)


def test_a_text_over_lines_is_written_over_lines() -> None:
    assert as_yaml({"a": "one\ntwo {{ x }}\n"}) == "a: |\n  one\n  two {{ x }}\n"


def test_what_is_nested_as_deep_as_a_document_may_be_is_written() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]

    assert read_source(as_yaml({"a": value}).encode()).value == {"a": value}
