"""Text from outside, as it is shown."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.core.text import plain, plain_json


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
