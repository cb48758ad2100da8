"""Text from outside, as it is shown."""

from __future__ import annotations

import encodings
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.core.text import codec, plain, plain_json


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "utf-8"), ("UTF-8", "utf-8"), ("utf8", "utf-8"), ("ISO-8859-15", "iso8859-15"),
        ("windows-1252", "cp1252"), ("Shift_JIS", "shift_jis"), ("koi8-u", "koi8-u"),
        ("zlib", None), ("punycode", None), ("nope", None), ("u" * 10_000_000, None), ("é", None),
    ],
)  # fmt: skip
def test_a_charset_is_known_by_the_names_it_goes_by(charset: str | None, name: str | None) -> None:
    assert codec(charset) == name


def test_names_that_are_no_charset_are_not_remembered_by_python() -> None:
    before = len(encodings._cache)

    assert {codec(f"none-{number}") for number in range(100)} == {None}
    assert len(encodings._cache) == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 日本 👩‍💻 العربية\u00a0!", "Grüße, 日本 👩‍💻 العربية\u00a0!"),
        ("a\tb\nc\rd\x00", r"a\tb\nc\rd\x00"),
        ("\x1b[31mred\x1b[0m\x07\x7f", r"\x1b[31mred\x1b[0m\x07\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),  # the same in one character
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff\ud800", r"\udcff\ud800"),
        (r"C:\new", r"C:\new"),
        ("", ""),
    ],
)
def test_plain_text_shows_what_a_terminal_would_obey(text, shown):
    assert plain(text) == shown


@given(st.text() | st.text(st.characters(max_codepoint=0xA0)))
def test_plain_text_is_one_line_without_a_control_character(text):
    shown = plain(text)

    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1


@given(st.text() | st.text(st.characters(max_codepoint=0xA0)))
def test_plain_json_is_the_same_value_and_shows_what_a_terminal_would_obey(text):
    shown = plain_json(json.dumps({"key": [text]}, indent=2, ensure_ascii=False))

    assert json.loads(shown) == {"key": [text]}
    assert not {unicodedata.category(c) for c in shown.replace("\n", "")} & {"Cc", "Cs", "Zl", "Zp"}
