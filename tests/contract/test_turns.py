"""Whatever is sent, the thread that reads or shows it leaves the others their turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from support.turns import turns

from stackd.web.forms import read_multipart, read_urlencoded
from stackd.web.redaction import without_secrets

TURNS = 25  # in one step, a shape leaves a dozen at most; in pieces 65 and more
LARGE = 10_000_000  # bytes

SHOWN = {
    "texts": b'{"headers":{"a":[' + b'"",' * (LARGE // 3) + b'""]}}',
    "members": b'{"headers":{' + b'"k":"",' * (LARGE // 7) + b'"z":""}}',
    "escapes": b'{"headers":{"a":"' + b"\\\\" * (LARGE // 2) + b'"}}',
    "empties": b'{"headers":{"a":[' + b"[]," * (LARGE // 3) + b"0]}}",
    "quotes": b'["' + b'\\"' * (LARGE // 2) + b'"]',
}


@pytest.fixture(autouse=True)
def who_asks_hardly_waits() -> Iterator[None]:
    """So that turns are there to count, however fast the machine."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("shape", SHOWN)
def test_other_threads_have_their_turn_while_a_large_text_is_shown(shape: str) -> None:
    with turns() as taken:
        without_secrets(SHOWN[shape])
        count = taken()

    assert count >= TURNS


def file(content: bytes, encoding: bytes = b"binary") -> bytes:
    return (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n'
        b"Content-Transfer-Encoding: %b\r\n\r\n%b\r\n--x--\r\n" % (encoding, content)
    )


MULTIPART = {
    "dashes": lambda: file(b"-" * 4 * LARGE),
    "nearly": lambda: file(b"\n--" * LARGE),
    "base64": lambda: file(b"QUFB" * LARGE, b"base64"),
    "quoted": lambda: file((b"=41" * 20 + b"=\r\n") * (LARGE // 15), b"quoted-printable"),
}


@pytest.mark.parametrize("shape", MULTIPART)
def test_other_threads_have_their_turn_while_a_large_file_is_taken_from_its_form(
    shape: str,
) -> None:
    body = MULTIPART[shape]()

    with turns() as taken:
        read_multipart(body, "multipart/form-data; boundary=x")
        count = taken()

    assert count >= TURNS


@pytest.mark.parametrize("escapes", [b"%", b"%4"], ids=["percents", "halves"])
def test_other_threads_have_their_turn_while_a_large_field_is_read(escapes: bytes) -> None:
    body = b"a=" + escapes * LARGE

    with turns() as taken:
        read_urlencoded(body, None)
        count = taken()

    assert count >= TURNS
