"""Forms are read as browsers and libraries send them; what is broken is named with its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from urllib.parse import urlencode

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.errors import InputError
from stackd.web.forms import MOST_FIELDS, FormFile, read_multipart, read_urlencoded

TYPE = "multipart/form-data; boundary=x"


def part(head: str, content: bytes = b"v") -> bytes:
    return b"--x\r\n" + head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--x--\r\n"
NAMED = 'Content-Disposition: form-data; name="a"'


# -- urlencoded


@given(st.lists(st.tuples(st.text(), st.text()), max_size=8))
def test_urlencoded_fields_are_read_as_they_were_sent(fields: list[tuple[str, str]]) -> None:
    assert read_urlencoded(urlencode(fields).encode(), None) == fields


@pytest.mark.parametrize(
    ("body", "charset", "expected"),
    [
        (b"a=1&&b=&c&=d", None, [("a", "1"), ("b", ""), ("c", ""), ("", "d")]),
        (b"a=1\r\n", None, [("a", "1")]),
        (b"a=b=c&d=%3d%3D%zz%", None, [("a", "b=c"), ("d", "==%zz%")]),
        (b"a=caf%E9", "latin-1", [("a", "café")]),
        (bytearray(b"a=caf\xc3\xa9"), None, [("a", "café")]),
        (b"a=" + "é".encode() * 100_000, None, [("a", "é" * 100_000)]),
    ],
)
def test_odd_urlencoded_bodies_are_read(
    body: bytes, charset: str | None, expected: list[tuple[str, str]]
) -> None:
    assert read_urlencoded(body, charset) == expected


# -- multipart


def test_a_multipart_form_of_another_library_is_read_as_it_was_sent() -> None:
    form = aiohttp.MultipartWriter("form-data", boundary="x")
    sent = [("note", b"caf\xc3\xa9", None), ("é", b"", None), ("file", b"\r\n--x\x00--", "ä b.bin")]
    for name, content, filename in sent:
        payload = form.append(content, {"Content-Type": "text/plain"} if filename is None else {})
        payload.set_content_disposition(
            "form-data",
            quote_fields=False,
            name=name,
            **({"filename": filename} if filename else {}),
        )
    body = b"".join(
        b"--x\r\n" + payload._binary_headers + payload._value + b"\r\n" for payload, _, _ in form._parts
    )  # fmt: skip

    fields = read_multipart(body + b"--x--\r\n", TYPE)

    assert fields[:2] == [("note", "café"), ("é", "")]
    name, file = fields[2]
    assert (name, file) == (
        "file", FormFile("ä b.bin", "application/octet-stream", b"\r\n--x\x00--"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(part(NAMED) + END, [("a", "v")], id="plain"),
        pytest.param(b"preamble\r\n" + part(NAMED) + END + b"epilogue", [("a", "v")], id="around"),
        pytest.param(part(NAMED) + b"--x--", [("a", "v")], id="no-last-line-end"),
        pytest.param((part(NAMED) + END).replace(b"\r\n", b"\n"), [("a", "v")], id="bare-lf"),
        pytest.param(part(NAMED, b"") + END, [("a", "")], id="empty"),
        pytest.param(part(NAMED, b"--xy\r\n --x") + END, [("a", "--xy\r\n --x")], id="nearly"),
        pytest.param(END, [], id="no-part"),
        pytest.param(part("content-disposition: form-data; name=a") + END, [("a", "v")], id="lower"),
        pytest.param(part(NAMED + "\nContent-Type: text/plain; charset=latin-1", b"\xe9") + END,
                     [("a", "é")], id="charset"),
        pytest.param(part('Content-Disposition: form-data; name="_charset_"', b"latin-1")
                     + part(NAMED, b"\xe9") + END, [("a", "é")], id="charset-of-all"),
        pytest.param(part(NAMED + "\nContent-Type: application/json", b"[1]") + END,
                     [("a", "[1]")], id="typed-field"),
        pytest.param(part(NAMED + "\nContent-Transfer-Encoding: base64", b"dg==") + END,
                     [("a", "v")], id="base64"),
        pytest.param(part(NAMED + "\nContent-Transfer-Encoding: Quoted-Printable", b"=76") + END,
                     [("a", "v")], id="quoted-printable"),
        pytest.param(part(NAMED + '; filename="f.pdf"\nContent-Type: application/pdf; v=1') + END,
                     [("a", FormFile("f.pdf", "application/pdf", b"v"))], id="file"),
        pytest.param(part(NAMED + '; filename=""') + END, [("a", "v")], id="no-filename"),
    ],
)  # fmt: skip
def test_odd_multipart_bodies_are_read(body: bytes, expected: list[object]) -> None:
    assert read_multipart(body, TYPE) == expected
    assert read_multipart(bytearray(body), TYPE) == expected


# -- what is broken


@pytest.mark.parametrize(
    ("read", "words"),
    [
        pytest.param(lambda: read_urlencoded(b"a=1&b=%ff", None), "field 2 is not utf-8", id="url"),
        pytest.param(lambda: read_urlencoded(b"a=1", "nope"), "no charset 'nope'", id="charset"),
        pytest.param(lambda: read_urlencoded(b"a=1", "zlib"), "no charset 'zlib'", id="no-text"),
        pytest.param(lambda: read_multipart(b"x", "multipart/form-data"), "no boundary", id="none"),
        pytest.param(lambda: read_multipart(b"garbage", TYPE), "no boundary in", id="garbage"),
        pytest.param(lambda: read_multipart(part(NAMED) + part(NAMED)[:-9], TYPE),
                     "breaks off in part 2", id="breaks-off"),
        pytest.param(lambda: read_multipart(part(NAMED) + part("no header") + END, TYPE),
                     "part 2 has a header line that is none", id="header"),
        pytest.param(lambda: read_multipart(part("Content-Type: text/plain") + END, TYPE),
                     "part 1 has no name", id="no-name"),
        pytest.param(lambda: read_multipart(part("X: " + "y" * 9000) + END, TYPE),
                     "part 1 has no empty line", id="endless-header"),
        pytest.param(lambda: read_multipart(part(NAMED, b"\xff") + END, TYPE),
                     "part 1 ('a') is not utf-8", id="not-utf8"),
        pytest.param(lambda: read_multipart(
            part(NAMED + "\nContent-Transfer-Encoding: odd") + END, TYPE),
            "part 1 ('a') has an unknown Content-Transfer-Encoding", id="encoding"),
        pytest.param(lambda: read_multipart(
            part(NAMED + "\nContent-Transfer-Encoding: base64", b"dg=") + END, TYPE),
            "part 1 ('a') is not base64", id="not-base64"),
        pytest.param(lambda: read_multipart(
            part(NAMED + "\nContent-Type: multipart/mixed; boundary=y") + END, TYPE),
            "part 1 ('a') holds further parts", id="nested"),
        pytest.param(lambda: read_multipart(
            part(NAMED + "\nContent-Type: text/plain; charset=nope") + END, TYPE),
            "no charset 'nope'", id="part-charset"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused_with_what_and_where(
    read: Callable[[], object], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        read()

    assert (caught.value.code, caught.value.status) == ("form.malformed", 400)
    assert words in caught.value.message


def test_a_form_of_too_many_fields_is_refused_by_their_number() -> None:
    fits = "&".join(["a=1"] * MOST_FIELDS).encode()
    fits_in_parts = part(NAMED) * MOST_FIELDS + END

    assert len(read_urlencoded(fits, None)) == len(read_multipart(fits_in_parts, TYPE)) == 1000
    for read in (
        lambda: read_urlencoded(fits + b"&a=1", None),
        lambda: read_multipart(part(NAMED) + fits_in_parts, TYPE),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert (caught.value.code, caught.value.status) == ("form.too_many_fields", 413)
        assert "more than 1,000 fields" in caught.value.message


@given(st.binary(max_size=60) | st.text('-x\r\n: ;"=aA').map(str.encode))
def test_no_body_breaks_the_reading_itself(body: bytes) -> None:
    for whole in (body, b"--x\r\n" + body + b"\r\n--x--", part(NAMED, body) + END):
        for read in (lambda whole=whole: read_multipart(whole, TYPE),
                     lambda whole=whole: read_urlencoded(whole, None)):  # fmt: skip
            with contextlib.suppress(InputError):
                read()
