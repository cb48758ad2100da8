"""Whatever is sent, the thread that reads or shows it leaves the others their turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from support.turns import turns

from stackd.web.redaction import without_secrets

TURNS = 30  # in one step, a shape leaves a dozen at most; in pieces 70 and more
LARGE = 10_000_000  # bytes

SHOWN = {
    "texts": b'{"headers":{"a":[' + b'"",' * (LARGE // 3) + b'""]}}',
    "members": b'{"headers":{' + b'"k":"",' * (LARGE // 7) + b'"z":""}}',
    "escapes": b'{"headers":{"a":"' + b"\\\\" * (LARGE // 2) + b'"}}',
    "empties": b'{"headers":{"a":[' + b"[]," * (LARGE // 3) + b"0]}}",
    "quotes": b'["' + b'\\"' * (LARGE // 2) + b'"]',
}


@pytest.fixture(autouse=True)
def who_asks_waits_a_tenth_as_long() -> Iterator[None]:
    """So that more turns are there to count, and a fast machine takes too long for none."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 10)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("shape", SHOWN)
def test_other_threads_have_their_turn_while_a_large_text_is_shown(shape: str) -> None:
    with turns() as taken:
        without_secrets(SHOWN[shape])
        count = taken()

    assert count >= TURNS
