"""Forms are read as browsers and libraries send them; what is broken is named with its place."""

from __future__ import annotations

import base64
import binascii
import contextlib
import time
import warnings
from collections.abc import Callable
from urllib.parse import unquote_plus, urlencode

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.errors import InputError
from stackd.web.forms import MOST_FIELDS, STEP, FormFile, read_multipart, read_urlencoded

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
        (b"&&&a=1&&&b=2&&& \r\n", None, [("a", "1"), ("b", "2")]),
        (b"a=1" + b" " * 200_000, None, [("a", "1")]),
        (b" " * 200_000, None, []),
    ],
)
def test_odd_urlencoded_bodies_are_read(
    body: bytes, charset: str | None, expected: list[tuple[str, str]]
) -> None:
    assert read_urlencoded(body, charset) == expected


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("escape", [b"%41", b"%", b"%%", b"%4", b"+", b"%C3%A9"])
def test_an_escape_is_read_wherever_in_a_long_field_it_stands(before: int, escape: bytes) -> None:
    letters = b"x" * (STEP - before)

    fields = read_urlencoded(b"a=" + letters + escape + b"y", None)

    assert fields == [("a", unquote_plus((letters + escape + b"y").decode()))]


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


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("end", [b"\r\n--x--", b"\n--x \t--x\r\n--x--\r\n"])
def test_a_boundary_is_found_wherever_behind_a_long_part_it_stands(before: int, end: bytes) -> None:
    head = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n"
    content = b"y" * (STEP - len(head) - before)

    [(name, value)] = read_multipart(head + content + end, TYPE)

    assert name == "a"
    assert value == (content + end.removesuffix(b"\r\n").removesuffix(b"\r\n--x--")).decode()


@given(
    st.binary(max_size=50), st.sampled_from([1, 3000]), st.sampled_from([b"", b"\r\n", b" -\xff\0"])
)
def test_base64_is_read_however_long_and_whatever_parts_its_lines(
    content: bytes, times: int, ends: bytes
) -> None:
    content *= times
    encoded = base64.b64encode(content)
    lines = b"".join(encoded[at : at + 77] + ends for at in range(0, len(encoded), 77))
    head = NAMED + '; filename="f"\nContent-Transfer-Encoding: base64'

    [(_, file)] = read_multipart(part(head, lines) + END, TYPE)

    assert file.content == content


@pytest.mark.parametrize(
    "content", [b"a b=\xff\r\n" * 20_000, b"x" * (STEP - 3), b"=" * 9, b"\n" * STEP]
)
def test_quoted_printable_is_read_however_long(content: bytes) -> None:
    encoded = binascii.b2a_qp(content, istext=True)
    head = NAMED + '; filename="f"\nContent-Transfer-Encoding: quoted-printable'

    [(_, file)] = read_multipart(part(head, encoded) + END, TYPE)

    assert file.content == content


# -- Content-Disposition


@pytest.mark.parametrize(
    ("header", "name", "filename"),
    [
        pytest.param('form-data; name="a"; filename="b"', "a", "b", id="usual"),
        pytest.param("FORM-DATA;NAME=a;Filename=b.txt", "a", "b.txt", id="tokens"),
        pytest.param('form-data ; name = "a" ;; filename= "b" ; ', "a", "b", id="blanks"),
        pytest.param('form-data; size=3; name="a"; filename="b"', "a", "b", id="another"),
        pytest.param('form-data; name="a;b=c"; filename="; name=d"', "a;b=c", "; name=d", id="inside"),
        pytest.param('form-data; name="a%22%0D%0Ab"; filename="%22%0d%0a"', 'a"\r\nb', '"\r\n', id="browser"),
        pytest.param('form-data; name="%41%"; filename="100%2B"', "%41%", "100%2B", id="percents"),
        pytest.param(r'form-data; name="a\"b\\"; filename="C:\d\f"', 'a"b\\', r"C:\d\f", id="backslashes"),
        pytest.param('form-data; name="a\\"; filename="b\\"', "a\\", "b\\", id="backslash-last"),
        pytest.param(r'form-data; name="a\"; b"; filename="\""', 'a"; b', '"', id="quote-and-semicolon"),
        pytest.param('form-data; name="é"; filename="日本"', "é", "日本", id="letters"),
        pytest.param("form-data; name=\"a\"; filename=\"x\"; filename*=UTF-8''%e2%82%ac%20b", "a", "€ b", id="extended"),
        pytest.param("form-data; name=\"a\"; filename*=iso-8859-1'en'%A3", "a", "£", id="latin"),
        pytest.param("form-data; name*=utf-8''%C3%A9; filename=b", "é", "b", id="extended-name"),
        pytest.param('form-data; name="/a"; filename="/etc/passwd"', "/a", "/etc/passwd", id="slashes"),
    ],
)  # fmt: skip
def test_names_are_read_as_browsers_and_libraries_write_them(
    header: str, name: str, filename: str
) -> None:
    [(read, file)] = read_multipart(part("Content-Disposition: " + header) + END, TYPE)

    assert isinstance(file, FormFile)
    assert (read, file.filename) == (name, filename)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\%"), min_size=1)


@given(NAMES, NAMES)
def test_any_name_is_read_as_a_browser_writes_it(name: str, filename: str) -> None:
    def written(text: str) -> str:
        return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")

    head = f'Content-Disposition: form-data; name="{written(name)}"; filename="{written(filename)}"'
    [(read, file)] = read_multipart(b"--x\r\n" + head.encode() + b"\r\n\r\n\r\n" + END, TYPE)

    assert isinstance(file, FormFile)
    assert (read, file.filename) == (name, filename)


NO_NAMES = [
    'form-data; name="a\x1b[31mEVIL"; =bad; secret-of-client', "form-data; name=\"a\"; filename*=utf-8''%E4x",
    "form-data; name=\"a\"; filename*=utf-7''x", 'form-data; name="a"; filename*="b"', "form-data name=", ";;;",
    "form-data; name=", 'form-data; name="a', 'form-data; name="a"b"', 'form-data; name="a" filename="b"',
    'form-data; name="a"; name="b"', 'form-data; name="a"; NAME="b"', "form-data; name=é", "", "é",
    'attachment; name="a"', "form-data;", 'form-data; filename="a"', 'form-data; name="a"; "b"',
    'form-data; name="a"' + "".join(f"; p{n}=1" for n in range(16)),
]  # fmt: skip


@pytest.mark.parametrize("header", NO_NAMES)
def test_a_content_disposition_that_is_none_is_refused_and_nothing_of_it_warned_of(
    header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = part("Content-Disposition: " + header) + END

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(InputError) as caught:
            read_multipart(body, TYPE)

    assert caught.value.code == "form.malformed"
    assert "part 1 has " in caught.value.message
    assert "Content-Disposition" in caught.value.message
    assert warned == []
    assert capsys.readouterr() == ("", "")


# -- what is broken


@pytest.mark.parametrize(
    ("read", "words"),
    [
        pytest.param(lambda: read_urlencoded(b"a=1&b=%ff", None), "field 2 is not utf-8", id="url"),
        pytest.param(lambda: read_urlencoded(b"a=1", "nope"), "no charset 'nope'", id="charset"),
        pytest.param(lambda: read_urlencoded(b"a=1", "zlib"), "no charset 'zlib'", id="no-text"),
        pytest.param(lambda: read_multipart(b"x", "multipart/form-data"), "no boundary", id="none"),
        pytest.param(lambda: read_multipart(b"x", "multipart/form-data; boundary=\udcff"),
                     "a boundary that is none", id="boundary-of-no-letters"),
        pytest.param(lambda: read_multipart(b"x", "multipart/form-data; boundary=" + "x" * 71),
                     "a boundary that is none", id="endless-boundary"),
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
            part(NAMED + "\nContent-Transfer-Encoding: base64", b"dg==" + b"A" * STEP) + END, TYPE),
            "part 1 ('a') is not base64", id="base64-goes-on"),
        pytest.param(lambda: read_multipart(
            part(NAMED + "\nContent-Transfer-Encoding: quoted-printable", b"A" * 2 * STEP) + END, TYPE),
            "part 1 ('a') has a line of more than 65536 bytes", id="endless-line"),
        pytest.param(lambda: read_multipart(
            part('Content-Disposition: form-data; name="_charset_"', b"u" * 9999) + END, TYPE),
            f"no charset {'u' * 50!r}", id="endless-charset"),
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


@pytest.mark.parametrize(
    ("odd", "usual"),
    [(b"--x" + b" " * 10_000_000 + b"y", b"--x" + b"y" * 10_000_000),
     (b"--x" + b"\t" * 10_000_000 + b"\r\n", b"--x" + b"y" * 10_000_000)],
    ids=["blanks", "tabs"],
)  # fmt: skip
def test_what_follows_a_boundary_takes_no_longer_than_other_text(odd: bytes, usual: bytes) -> None:
    def took(body: bytes) -> float:
        began = time.thread_time()
        with pytest.raises(InputError):
            read_multipart(body, TYPE)
        return time.thread_time() - began

    assert took(odd) < 0.02 + 5 * took(usual)


def test_ampersands_without_fields_take_no_longer_than_a_field() -> None:
    began = time.thread_time()

    assert read_urlencoded(b"a=1" + b"&" * 10_000_000, None) == [("a", "1")]

    assert time.thread_time() - began < 0.3  # one by one, some seconds


@given(st.binary(max_size=60) | st.text('-x\r\n: ;"=aA').map(str.encode))
def test_no_body_breaks_the_reading_itself(body: bytes) -> None:
    for whole in (body, b"--x\r\n" + body + b"\r\n--x--", part(NAMED, body) + END):
        for read in (lambda whole=whole: read_multipart(whole, TYPE),
                     lambda whole=whole: read_urlencoded(whole, None)):  # fmt: skip
            with contextlib.suppress(InputError):
                read()
