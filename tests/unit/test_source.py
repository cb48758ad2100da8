"""The text of a document as a value, and where each part of it stands: also inside texts that YAML folds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.workflows.source import Source, SourceError, read_source

_WORDS = st.text("ab'\"{}|#äß€😀", min_size=1, max_size=5)
_GAPS = st.sampled_from([" ", "  ", "\n    ", "\n\n    ", " \n      "])


def written(words: list[str], gaps: list[str]) -> str:
    """`words` with `gaps` between them, as a text over lines that are indented by four or more."""
    return "".join(
        word + gap for word, gap in zip(words, [*gaps[: len(words) - 1], ""], strict=False)
    )


@st.composite
def yaml_texts(draw: st.DrawFn) -> str:
    """A document of one text value, in a style of YAML."""
    words = draw(st.lists(_WORDS, min_size=1, max_size=6))
    gaps = draw(st.lists(_GAPS, min_size=len(words), max_size=len(words)))
    style = draw(st.sampled_from(["plain", "single", "double", "literal", "folded"]))
    match style:
        case "plain":
            plain = [word.translate(str.maketrans("'\"{}|#", "cdefgh")) for word in words]
            return f"key: {written(plain, gaps)}\n"
        case "single":
            return f"key: '{written([w.replace(chr(39), chr(39) * 2) for w in words], gaps)}'\n"
        case "double":
            escapes = draw(
                st.lists(st.sampled_from(["", "\\\n    ", "\\t", "\\x41", "\\u00e4", "\\N"]))
            )
            inner = [w.replace('"', '\\"') for w in words]
            inner[0] += "".join(escapes)
            return f'key: "{written(inner, gaps)}"\n'
        case _:
            sign = "|" if style == "literal" else ">"
            mark = draw(st.sampled_from(["", "-", "+", "2-", " # why"]))
            return f"key: {sign}{mark}\n    {written(words, gaps)}\n"


def character_at(source: Source, position: tuple[int, int]) -> str:
    line, column = position
    return source.text.split("\n")[line - 1][column - 1]


def assert_every_character_is_found(source: Source, text: str, *place: str | int) -> None:
    for offset, letter in enumerate(text):
        if letter.isspace():
            continue
        within = (text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))
        found = character_at(source, source.inside(place, within))
        assert found in (letter, "\\"), (letter, found, offset)


@given(yaml_texts())
def test_every_character_of_a_yaml_text_is_found_where_it_stands(text):
    source = read_source(text.encode())

    assert_every_character_is_found(source, source.value["key"], "key")


@given(st.text(), st.booleans())
def test_every_character_of_a_json_text_is_found_where_it_stands(text, ascii_only):
    document = json.dumps({"a": [1, text], "b": 2}, ensure_ascii=ascii_only, indent=2)
    try:
        source = read_source(document.encode())
    except (SourceError, UnicodeEncodeError):
        assert any("\ud800" <= letter <= "\udfff" for letter in text)
        return

    assert source.value == {"a": [1, text], "b": 2}
    assert_every_character_is_found(source, text, "a", 1)


@pytest.mark.parametrize(
    ("text", "within", "position"),
    [
        ("key: ab", (1, 3), (1, 8)),  # behind the end
        ("key: |\n  ab\n  cd\n", (2, 3), (3, 5)),
        ("key: >\n  ab\n  cd\n", (1, 3), (2, 5)),  # the blank that a broken line became
        ('key: ""', (1, 1), (1, 6)),
        ("key: [ab]", (1, 1), (1, 1)),  # no text
    ],
)
def test_a_place_that_no_visible_character_has_is_behind_the_one_before(text, within, position):
    assert read_source(text.encode()).inside(("key",), within) == position


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _JSON),
    st.sampled_from([None, 1]),
)
def test_json_is_read_as_the_standard_parser_does_and_every_key_is_found(value, indent):
    text = json.dumps(value, indent=indent)

    source = read_source(text.encode())

    assert repr(source.value) == repr(json.loads(text))
    for key in value:
        assert character_at(source, source.position((key,))) == '"'


@given(st.text('{}[],:"\\ \n01e-.tfnau') | st.text())
def test_any_text_is_read_or_refused_with_a_place_inside_it(text):
    try:
        read_source(text.encode("utf-8", "surrogatepass"))
    except SourceError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines) + 1
        assert error.column >= 1


@pytest.mark.parametrize(
    ("data", "position"),
    [
        (b"id: \xff", (1, 5)),
        ("a: ü\nb: \udcff".encode("utf-8", "surrogateescape"), (2, 4)),
        (b"\xef\xbb\xbfid: \xff", (1, 5)),
    ],
)
def test_bytes_that_are_no_utf_8_are_told_with_their_place(data, position):
    with pytest.raises(SourceError) as caught:
        read_source(data)

    assert (caught.value.line, caught.value.column) == position


@pytest.mark.parametrize(
    "text", ['{"a": "\\ud83d\\ude00"}', 'a: "\\ud83d\\ude00"', "a: \U0001f600"]
)
def test_both_halves_of_a_character_are_one(text):
    assert read_source(text.encode()).value == {"a": "\U0001f600"}
