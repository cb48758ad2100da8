"""Large JSON is read in pieces: whatever is cut where, the verdict and the value are those of the whole."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.errors import InputError
from stackd.core.json import MAX_DEPTH, loads, loads_strict
from stackd.core.large_json import check, container_end, load

ODD_TEXT = st.text('ab"\\[]{}:,é😀\n \u2028', max_size=8)  # what a careless cut would trip over
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ODD_TEXT,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(ODD_TEXT.map(lambda t: t[:3]), inner)
    ),
    max_leaves=30,
)
LAYOUT = st.sampled_from(
    [
        {},
        {"ensure_ascii": False},
        {"separators": (",", ":")},
        {"indent": 1, "separators": (" ,", " : ")},
    ]
)
PIECES = st.integers(1, 25)
WOUND = st.binary(min_size=0, max_size=2) | st.sampled_from(list('[]{},:"\\')).map(str.encode)


def verdict(read: Callable[[bytes], object], text: bytes) -> str:
    """The code of what `read` refuses `text` for; empty if it does not."""
    try:
        read(text)
    except InputError as error:
        return str(error.code)
    return ""


@given(JSON, LAYOUT, PIECES)
def test_json_in_pieces_reads_as_the_whole(value: object, layout: dict, piece: int) -> None:
    text = json.dumps(value, **layout).encode()

    check(text, piece=piece)
    loaded = load(text, piece=piece)

    assert json.dumps(loaded.value) == json.dumps(loads(text))
    loaded.take_apart()


@given(JSON, LAYOUT, PIECES, WOUND, st.data())
def test_json_with_a_fault_is_refused_in_pieces_if_and_only_if_the_whole_is(
    value: object, layout: dict, piece: int, wound: bytes, data: st.DataObject
) -> None:
    text = json.dumps(value, **layout).encode()
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, min(first + 2, len(text))))
    text = text[:first] + wound + text[last:]

    in_pieces = verdict(lambda text: check(text, piece=piece), text)

    assert bool(in_pieces) == bool(verdict(loads_strict, text)), text


FILL = b"0," * 40_000  # longer than a piece


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        pytest.param(b"[" + FILL + b"\n 1 2]", "json.malformed", "line 2, column 4", id="no-comma"),
        pytest.param(b"[" + FILL + '\n"é" 2]'.encode(), "json.malformed",
                     "line 2, column 5", id="columns-are-characters"),
        pytest.param(b"[" + FILL + b"]", "json.malformed", "line 1, column 80002", id="comma-last"),
        pytest.param(b"[" + FILL, "json.malformed", "line 1, column 80002", id="not-closed"),
        pytest.param(b"[" + FILL + b"0}", "json.malformed", "line 1, column 80003", id="mixed"),
        pytest.param(FILL + b"1", "json.malformed", "line 1, column 2", id="no-list"),
        pytest.param(b"[" + FILL + b'"\xff"]', "json.encoding", "at byte 80002", id="not-utf8"),
        pytest.param(b"[" + FILL + b"NaN]", "json.constant", "NaN", id="nan"),
        pytest.param(b"[" + FILL + b"-1e400]", "json.number", "-1e400", id="endless-fraction"),
        pytest.param(b"[" + FILL + b"1" * 5000 + b"]", "json.number", "number", id="endless-integer"),
        pytest.param(b"[" + FILL + b'"\\udc00"]', "json.text", "surrogate", id="half-a-pair"),
        pytest.param(b'{"a":1,"b":[' + FILL + b'0],"a":2}', "json.duplicate_key", "'a'",
                     id="same-key-far-apart"),
        pytest.param(b"[" + FILL + b'{"a":1,"\\u0061":2}]', "json.duplicate_key", "'a'",
                     id="same-key-close"),
        pytest.param(b'[{"\\":":1,"\\":":2},' + FILL + b"0]", "json.duplicate_key", "\":",
                     id="same-key-with-a-colon"),
        pytest.param(b"[" + FILL + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"]", "json.depth",
                     "deeper than 500", id="deep"),
        pytest.param(b"{" + b",".join([b'"a\\\\":1'] * 10) + b" " * 70_000 + b"}",
                     "json.duplicate_key", "a", id="same-key-with-a-backslash"),
        pytest.param(b"[" * 499 + b'{"a":[]},' + FILL + b"0" + b"]" * 499, "json.depth",
                     "deeper than 500", id="deep-and-empty"),
        pytest.param(b"[" * 10_000_000, "json.depth", "deeper than 500", id="deep-without-a-comma"),
    ],
)  # fmt: skip
def test_a_fault_in_large_json_is_named_with_its_place(text: bytes, code: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check(text)

    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * MAX_DEPTH + FILL + b"0" + b"]" * MAX_DEPTH, id="deepest"),
        pytest.param(b"[" + b",".join([b"[" * 499 + b"]" * 499] * 60) + b"]", id="deep-often"),
        pytest.param(b'{"a":{"b":[' + FILL + b'18446744073709551616],"c":{}},"d":0.1}', id="nest"),
        pytest.param(b'["' + b"x" * 200_000 + b'",' + FILL + b"0]", id="long-text"),
        pytest.param(b'["' + b'\\"' * 200_000 + b'",' + FILL + b"0]", id="long-text-of-escapes"),
        pytest.param(b'["' + b"\\\\" * 65_535 + b'\\"",' + FILL + b"0]", id="escape-at-the-cut"),
        pytest.param(b"[" + b"{}," * 50_000 + b"[]]", id="empties"),
        pytest.param(b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(20_000)) + b"}", id="map"),
        pytest.param(b"[" + b" " * 200_000 + b"]", id="blanks"),
    ],
)
def test_large_json_reads_as_it_is(text: bytes) -> None:
    check(text)
    loaded = load(text)

    assert json.dumps(loaded.value) == json.dumps(json.loads(text))
    loaded.take_apart()


def test_the_collector_never_looks_at_a_large_value_and_forgets_nothing_else() -> None:
    looked_at = len(gc.get_objects())

    loaded = load(b"[" + b",".join([b"[1]"] * 100_000) + b"]")
    while_it_lives = len(gc.get_objects())
    loaded.take_apart()

    assert while_it_lives < looked_at + 10_000
    assert gc.isenabled()


@given(JSON, LAYOUT, PIECES, st.binary(max_size=3))
def test_the_end_of_a_list_or_map_is_found_without_reading_it(
    value: object, layout: dict, piece: int, rest: bytes
) -> None:
    text = b"[1, " + json.dumps([value], **layout).encode()

    assert container_end(text + rest, len(b"[1, "), piece=piece) == len(text)
    assert container_end(text[:-1], len(b"[1, "), piece=piece) == -1
