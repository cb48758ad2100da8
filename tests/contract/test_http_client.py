"""The outbound client on real sockets: what it sends, what it accepts, and what it calls each failure."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import aiohttp
import anyio
import pytest
from support.outbound import (
    EVERY_METHOD,
    MIB,
    OK,
    attempt,
    client,
    get,
    parts_of,
    post,
    seen_of,
)
from support.servers import (
    answer,
    answers,
    answers_once,
    answers_then_resets,
    chunked,
    encoded,
    far_side,
    gzip_bomb,
    gzip_of_nothing,
    nobody_listens,
    raw_deflate,
    repeats,
)

from stackd.http.client import HttpClient
from stackd.http.failures import meaning
from stackd.http.message import FilePart, FormBody, JsonBody, MultipartBody, RawBody, Request


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    async with client() as opened:
        yield opened


# -- what the far side sees


async def test_json_goes_as_it_is_with_its_type(http):
    seen = await seen_of(http, body=JsonBody(b'{"n": 12345678901234567890}'))

    assert seen.body == b'{"n": 12345678901234567890}'
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["content-length"] == "27"


async def test_a_form_repeats_names_and_encodes_values(http):
    seen = await seen_of(http, body=FormBody((("a", "1"), ("a", "2"), ("ü", "x y&=+%"))))

    assert seen.body == b"a=1&a=2&%C3%BC=x+y%26%3D%2B%25"
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_a_multipart_field_has_no_file_name_and_a_file_has_its_own(http):
    body = MultipartBody(
        (
            FilePart("note", "grüße".encode()),
            FilePart("file", b"\x00\r\n--\xff", 'my "file" ä.bin', "image/png"),
        )
    )

    note, file = parts_of(await seen_of(http, body=body))

    assert note["Content-Disposition"] == 'form-data; name="note"'
    assert note.get_payload(decode=True) == "grüße".encode()
    assert file["Content-Type"] == "image/png"
    assert str(file["Content-Disposition"]).startswith(
        'form-data; name="file"; filename="my \\"file'
    )
    assert file.get_payload(decode=True) == b"\x00\r\n--\xff"


async def test_a_file_name_goes_out_in_utf_8_with_its_spaces(http):
    body = MultipartBody((FilePart("f", b"1", "große Datei.txt", "text/plain"),))

    seen = await seen_of(http, body=body)

    assert 'filename="große Datei.txt"'.encode() in seen.body


async def test_the_type_of_a_multipart_body_always_names_its_boundary(http):
    seen = await seen_of(
        http,
        headers={"content-type": "multipart/form-data"},
        body=MultipartBody((FilePart("a", b"1"),)),
    )

    assert [part.get_payload(decode=True) for part in parts_of(seen)] == [b"1"]


@pytest.mark.parametrize("name", ["a\r\nX: 1", "a\n"])
async def test_a_line_break_in_a_part_name_is_refused(http, name):
    tried = await attempt(
        http,
        Request("POST", "http://127.0.0.1:1/", body=MultipartBody((FilePart(name, b"1", name),))),
    )

    assert tried.failure == ("invalid", "http.bad_request", False, False)


@pytest.mark.parametrize(
    ("body", "headers", "content_type"),
    [
        (RawBody(b"x", None), {}, "application/octet-stream"),
        (RawBody(b"x", "text/csv"), {}, "text/csv"),
        (RawBody(b"x", "text/csv"), {"content-type": "text/plain"}, "text/plain"),
        (JsonBody(b"1"), {"CONTENT-TYPE": "application/ld+json"}, "application/ld+json"),
        (None, {}, None),
    ],
    ids=["raw", "raw of a type", "raw, the author's type", "json, the author's type", "no body"],
)
async def test_the_authors_content_type_beats_the_bodys(http, body, headers, content_type):
    seen = await seen_of(http, body=body, headers=headers)

    assert seen.headers.get("content-type") == content_type
    assert seen.body == (body.content if body else b"")


async def test_the_query_is_added_to_that_of_the_url_and_the_fragment_is_not_sent(http):
    seen = await seen_of(
        http, "/p%2Fq?a=1&a=2&t=1%2B2#part", query={"b": ["x y", "&"], "a": "3", "e": "", "ü": "é"}
    )

    assert seen.target == "/p%2Fq?a=1&a=2&t=1%2B2&b=x+y&b=%26&a=3&e=&%C3%BC=%C3%A9"


async def test_an_authors_header_replaces_ours_whatever_its_case(http):
    seen = await seen_of(http, headers={"user-agent": "mine", "ACCEPT-ENCODING": "identity"})

    values = [value for name, value in seen.fields if name in ("user-agent", "accept-encoding")]
    assert sorted(values) == ["identity", "mine"]


async def test_a_cookie_that_is_set_is_not_sent_back(http):
    async with far_side(answers(answer(200, b"", ("Set-Cookie", "id=1; Path=/")))) as far:
        await http.request(get(far.url()))
        await http.request(get(far.url()))

    assert all("cookie" not in seen.headers for seen in far.requests)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    with nobody_listens() as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with client() as http:
            seen = await seen_of(http)

    assert seen.target == "/"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"), ("a b", "x"), ("a:", "x"), ("ä", "x"), ("a\n", "x"),
        ("a", "x\r\nb: y"), ("a", "x\n"), ("a", "x\0"), ("a", "\x7f"), ("a", "\ud800"),
        ("Content-Length", "1"), ("transfer-encoding", "chunked"),
    ],
)  # fmt: skip
async def test_a_header_that_would_break_the_message_is_refused(http, name, value):
    async with far_side(answers(OK)) as far:
        tried = await attempt(http, post(far.url(), headers={name: value}))

    assert tried.failure == ("invalid", "http.bad_header", False, False)
    assert far.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "", "/path", "far.example/", "ftp://far.example/", "http://", "http:///path", "https:far",
        "http://far.example:99999/", "http://far example/", "http://far.example/a b",
        "http://far.example/\r\nX:1", "http://far.example/\t", "http://far\n.example/", "http://far.example/\x7f",
        "http://far.example/\ud800",
        "http://[::1/", "http://me@far.example/",
        "http://far.example\\@127.0.0.1/",
    ],
)  # fmt: skip
async def test_what_is_no_http_url_is_refused(http, url):
    assert (await attempt(http, get(url))).failure == ("invalid", "http.bad_url", False, False)


async def test_a_refused_url_shows_neither_password_nor_query(http):
    tried = await attempt(http, get("http://me:hunter2@far.example/path?token=sesame#x"))

    assert tried.error is not None
    assert tried.error.message == "url http://far.example/path: credentials belong in a header"


async def test_a_method_that_is_no_token_is_refused(http):
    tried = await attempt(http, Request("GE T", "http://127.0.0.1:1/"))

    assert tried.failure == ("invalid", "http.bad_request", False, False)


# -- what is made of an answer


async def test_header_names_are_lower_case_and_repeated_ones_joined(http):
    said = answer(
        201, b"{}", ("X-A", "1"), ("x-a", "2"), ("Content-Type", "Text/HTML; charset=Latin-1")
    )
    async with far_side(answers(said)) as far:
        response = await http.request(get(far.url("/x#part")))

    assert (response.status, response.body, response.redirects) == (201, b"{}", 0)
    assert response.headers["x-a"] == "1, 2"
    assert (response.content_type, response.charset) == ("text/html", "Latin-1")
    assert response.url == far.url("/x")


async def test_an_answer_without_a_type_has_none(http):
    async with far_side(answers(OK)) as far:
        response = await http.request(get(far.url()))

    assert (response.content_type, response.charset) == (None, None)


@pytest.mark.parametrize(
    "said",
    [
        chunked(b"one ", b"two"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(200, b"one two"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none two",
        b"HTTP/1.0 200 OK\r\n\r\none two",
    ],
    ids=["chunked", "after 1xx", "until the end", "HTTP/1.0"],
)  # fmt: skip
async def test_a_body_is_read_however_it_is_framed(http, said):
    async with far_side(answers_once(said)) as far:
        assert (await http.request(get(far.url()))).body == b"one two"


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_ends_at_its_headers(http, method, status):
    said = b"HTTP/1.1 %d Said\r\nContent-Encoding: gzip\r\n\r\n" % status
    async with far_side(answers(said)) as far:
        response = await http.request(Request(method, far.url()))

    assert (response.status, response.body) == (status, b"")


async def test_the_length_of_an_answer_to_head_is_not_waited_for(http):
    said = answer(200, b"", ("Content-Encoding", "gzip"), length=1000)
    async with far_side(answers(said)) as far:
        response = await http.request(Request("HEAD", far.url()))

    assert (response.body, response.headers["content-length"]) == (b"", "1000")


# -- how much may come back


LIMIT = 100_000


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize(
    "said",
    [
        partial(answer, 200),
        chunked,
        lambda body: encoded("gzip", gzip.compress(body)),
        lambda body: encoded("deflate", zlib.compress(body)),
        lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body,
    ],
    ids=["length", "chunked", "gzip", "deflate", "until the end"],
)
async def test_a_body_up_to_the_limit_is_read_and_one_above_is_refused(http, said, size):
    async with far_side(answers_once(said(bytes(size)))) as far:
        tried = await attempt(http, get(far.url(), max_response_bytes=LIMIT))

    if size <= LIMIT:
        assert tried.response is not None
        assert len(tried.response.body) == size
    else:
        assert tried.failure == ("limit", "http.response_too_large", True, True)
        assert "100,000 bytes" in str(tried.error)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(10_000)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + bytes(1000) + b"\r\n"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip_of_nothing()[0],
            gzip_of_nothing()[1] * 1000,
        ),
    ],
    ids=["plain", "chunked", "gzip that unpacks to nothing"],
)  # fmt: skip
async def test_an_endless_body_is_refused_and_its_connection_closed(http, head, piece):
    async with far_side(repeats(head, piece)) as far:
        tried = await attempt(http, get(far.url(), max_response_bytes=LIMIT))
        await far.until(ended=1)

    assert tried.failure == ("limit", "http.response_too_large", True, True)


async def test_a_bomb_stays_small_in_memory(http):
    async with far_side(answers(encoded("gzip", gzip_bomb(64)))) as far:
        tracemalloc.start()
        try:
            tried = await attempt(http, get(far.url(), max_response_bytes=MIB))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert tried.failure == ("limit", "http.response_too_large", True, True)
    assert peak < 6 * MIB


BODY = b"a body that is said twice, a body that is said twice"


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
    ids=["gzip", "GZIP", "x-gzip", "two members", "deflate", "raw deflate", "identity", "empty"],
)
async def test_a_body_in_an_offered_encoding_is_unpacked(http, encoding, packed):
    async with far_side(answers(encoded(encoding, packed))) as far:
        assert (await http.request(get(far.url()))).body == BODY


@pytest.mark.parametrize(
    "said",
    [
        encoded("br", BODY),
        encoded("gzip, gzip", gzip.compress(gzip.compress(BODY))),
        answer(200, gzip.compress(BODY), ("Content-Encoding", "gzip"), ("Content-Encoding", "br")),
        encoded("gzip", BODY),
        encoded("gzip", gzip.compress(BODY)[:-1]),
        encoded("gzip", gzip.compress(BODY)[:15]),
        encoded("deflate", zlib.compress(BODY)[:-1]),
    ],
    ids=["br", "twice", "two headers", "no gzip", "cut trailer", "cut body", "cut deflate"],
)
async def test_a_body_that_cannot_be_unpacked_is_an_answer_that_is_no_use(http, said):
    async with far_side(answers(said)) as far:
        tried = await attempt(http, get(far.url()))

    assert tried.failure == ("invalid", "http.bad_content", True, True)


# -- answers that lie


@pytest.mark.parametrize(
    "behave",
    [
        answers_once(answer(200, b"abc", length=10)),
        answers_then_resets(answer(200, b"abc", length=10)),
        answers_then_resets(b"HTTP/1.1 200 OK\r\nContent-"),
        answers_once(b"HTTP/1.1 200 OK\r\nContent-"),
        answers_once(chunked(b"abc", end=b"")),
        answers_once(chunked(b"abc", end=b"10\r\nabc")),
    ],
    ids=[
        "length too long", "reset in the body", "reset in the headers",
        "end in the headers", "no last chunk", "end in a chunk",
    ],
)  # fmt: skip
async def test_an_answer_that_breaks_off_is_no_answer(http, behave):
    async with far_side(behave) as far:
        tried = await attempt(http, post(far.url()))

    assert tried.failure == ("network", "http.reset", True, False)
    assert len(far.requests) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"<html>as HTTP/0.9 answered</html>\n",
        b"hello\r\n\r\n",
        chunked(end=b"zz\r\nabc\r\n0\r\n\r\n"),
    ],
    ids=[
        "ssh", "smtp", "tls", "no status", "no header", "negative length", "two lengths",
        "length and chunked", "endless header", "HTTP/0.9", "no status line", "no chunk size",
    ],
)  # fmt: skip
async def test_an_answer_that_is_not_http_is_named(http, said):
    async with far_side(answers_once(said)) as far:
        tried = await attempt(http, post(far.url()))

    assert tried.failure == ("network", "http.bad_response", True, False)
    assert "is not HTTP" in str(tried.error)


@pytest.mark.parametrize(
    ("head", "piece", "code"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000, "http.bad_response"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", b" folded\r\n" * 1000, "http.bad_response"),
        (b"HTTP/1.1 200 ", b"x" * 1000, "http.bad_response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000, "http.bad_response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a=b;" * 1000, "http.timeout"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, "http.timeout"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100, "http.timeout"),
        (b"", b"\r\n" * 1000, "http.timeout"),
    ],
    ids=["headers", "folds", "status", "trailers", "chunk", "100", "103", "blank lines"],
)  # fmt: skip
async def test_an_endless_head_ends_in_little_memory_and_leaves_others_their_turn(
    http, head, piece, code
):
    turns = 0

    async def live() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0.01)
            turns += 1

    async with far_side(repeats(head, piece)) as far, anyio.create_task_group() as tasks:
        tasks.start_soon(live)
        tracemalloc.start()
        try:
            tried = await attempt(http, get(far.url(), timeout=0.3))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        tasks.cancel_scope.cancel()

    assert tried.error is not None
    assert (tried.error.code, tried.error.sent) == (code, True)
    assert peak < 2 * MIB
    assert code != "http.timeout" or turns > 3


async def test_what_is_packed_twice_is_not_unpacked_at_all(http):
    twice = gzip.compress(gzip_bomb(64))
    async with far_side(answers(encoded("gzip, gzip", twice))) as far:
        tried = await attempt(http, get(far.url()))

    assert tried.failure == ("invalid", "http.bad_content", True, True)


async def test_what_is_packed_twice_and_called_packed_once_stays_small(http):
    async with far_side(answers(encoded("gzip", gzip.compress(gzip_bomb(64))))) as far:
        response = await http.request(get(far.url()))

    assert len(response.body) == len(gzip_bomb(64))


async def test_what_follows_an_answer_unasked_never_answers_the_next_request(http):
    behave = answers(answer(200, b"first") + answer(200, b"smuggled"), answer(200, b"second"))
    async with far_side(behave) as far:
        first = await http.request(get(far.url("/1")))
        second = await http.request(get(far.url("/2")))

    assert (first.body, second.body) == (b"first", b"second")
    assert far.connections == 2


async def test_a_length_that_is_too_short_spoils_no_later_request(http):
    behave = answers(answer(200, b"abcdef", length=3), answer(200, b"second"))
    async with far_side(behave) as far:
        first = await attempt(http, post(far.url("/1")))
        second = await http.request(post(far.url("/2")))

    assert first.response is None or first.response.body == b"abc"
    assert second.body == b"second"
    assert far.connections == 2


# -- every error of the library below

NEVER_RAISED = {"UploadAbortedError"}  # set on a tracker of uploads, which is not used


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


@pytest.mark.parametrize(
    "kind",
    sorted(
        {kind for kind in below(aiohttp.ClientError) if kind.__name__ not in NEVER_RAISED},
        key=lambda kind: kind.__name__,
    ),
)
def test_every_error_of_aiohttp_has_a_meaning_of_its_own(kind: Callable[..., Exception]):
    error = kind.__new__(kind)  # type: ignore[call-overload]

    assert meaning(error)[1] != "http.failed"


def test_an_error_without_a_row_is_named_as_such():
    assert meaning(aiohttp.ClientError()) == ("network", "http.failed", "ClientError")
