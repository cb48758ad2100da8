"""`action.http.request` on the real client: what its parameters send, and what it makes of an answer."""

from __future__ import annotations

import encodings.aliases
import gzip
import hashlib
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support.blobs import content_of, files
from support.held import held
from support.outbound import MIB, client, parts_of
from support.servers import (
    Link,
    Seen,
    answer,
    answers,
    answers_by_path,
    answers_once,
    answers_then_stalls,
    encoded,
    far_side,
    gzip_bomb,
    json_answer,
    leaves_the_second,
    nobody_listens,
    redirect,
)

from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError, NotFoundError, StackdError
from stackd.core.events import EventBus
from stackd.core.json import Json, dumps, loads
from stackd.http.client import HttpClient
from stackd.http.reading import RETRY_AFTER_LONGEST
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.runtime.context import NodeContext
from stackd.runtime.nodes import request
from stackd.store.database import open_database
from stackd.testing import FakeClock

PNG = b"\x89PNG\r\n\x00\xff"
MAX_BLOB = 16 * MIB


class Node:
    """Runs the handler as the runtime does, and keeps what it was told."""

    def __init__(self, http: HttpClient, blobs: BlobFolder, folder: Path) -> None:
        self.clock = FakeClock()
        self.folder = folder
        self.blobs = blobs
        self.told: list[str] = []
        self._http = http

    async def run(
        self,
        url: str,
        *,
        unsafe: bool = False,
        key: str | None = None,
        timeout: float = 10.0,
        max_bytes: int = 1024 * 1024,
        **params: Json,
    ) -> Any:
        context = NodeContext(
            clock=self.clock,
            http=self._http,
            blobs=self.blobs,
            unsafe=unsafe,
            idempotency_key=key,
            timeout=timeout,
            max_bytes=max_bytes,
            tell_sent=lambda: self.told.append("sent"),
            tell_answered=lambda: self.told.append("answered"),
        )
        return await request({"url": url, **params}, context)

    async def on(self, said: bytes, **params: Any) -> Any:
        """The output when a far side says `said`."""
        async with far_side(answers(said)) as far:
            return await self.run(far.url(), **params)

    async def fails(self, said: bytes, **params: Any) -> NodeError:
        """The error when a far side says `said`."""
        with pytest.raises(NodeError) as failed:
            await self.on(said, **params)
        return failed.value

    async def sends(self, **params: Any) -> Seen:
        """What a far side gets."""
        async with far_side(answers(json_answer(b"1"))) as far:
            await self.run(far.url(), **{"method": "POST", **params})
            return far.request


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with (
        client() as http,
        held(
            open_database(tmp_path / "stackd.db", clock=SystemClock(), events=EventBus())
        ) as store,
    ):
        limits = BlobLimits(one=MAX_BLOB, all=2 * MAX_BLOB)
        folder = tmp_path / "blobs"
        yield Node(http, BlobFolder(folder, store, clock=SystemClock(), limits=limits), folder)


# -- the output


async def test_the_output_is_status_headers_and_body(node):
    said = answer(
        201, b'{"n": 1}', ("Content-Type", "application/json"), ("X-A", "1"), ("x-a", "2")
    )

    assert await node.on(said) == {
        "status": 201,
        "headers": {"content-type": "application/json", "x-a": "1, 2", "content-length": "8"},
        "body": {"n": 1},
    }
    assert node.told == ["sent", "answered"]


JSON = b'{"n": 1}'
BLOB = object()


@pytest.mark.parametrize(
    ("content_type", "wanted", "body"),
    [
        ("application/json", "auto", {"n": 1}),
        ("Application/JSON; charset=utf-8", "auto", {"n": 1}),
        ("application/problem+json", "auto", {"n": 1}),
        ("text/plain", "auto", '{"n": 1}'),
        ("text/html; charset=utf-8", "auto", '{"n": 1}'),
        ("application/xml", "auto", '{"n": 1}'),
        ("application/atom+xml", "auto", '{"n": 1}'),
        ("application/x-www-form-urlencoded", "auto", '{"n": 1}'),
        (None, "auto", '{"n": 1}'),
        ("image/png", "auto", BLOB),
        ("application/octet-stream", "auto", BLOB),
        ("application/pdf", "auto", BLOB),
        ("text/plain", "json", {"n": 1}),
        (None, "json", {"n": 1}),
        ("application/json", "text", '{"n": 1}'),
        ("image/png", "text", '{"n": 1}'),
        ("application/json", "blob", BLOB),
        ("text/plain", "blob", BLOB),
    ],
)
async def test_the_body_is_read_by_its_type_unless_the_node_says_how(
    node, content_type, wanted, body
):
    fields = [("Content-Type", content_type)] if content_type else []

    output = await node.on(answer(200, JSON, *fields), responseType=wanted)

    if body is BLOB:
        assert await content_of(node.blobs, output["body"]["$blob"]) == JSON
    else:
        assert output["body"] == body


async def test_a_blob_is_named_by_its_content_with_size_and_type(node):
    output = await node.on(answer(200, PNG, ("Content-Type", "image/PNG; q=1")))

    assert output["body"] == {
        "$blob": hashlib.sha256(PNG).hexdigest(),
        "bytes": len(PNG),
        "contentType": "image/png",
    }


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("utf-8", "grüße €".encode(), "grüße €"),
        ("UTF-8", "grüße".encode(), "grüße"),
        ("iso-8859-1", b"gr\xfc\xdfe", "grüße"),
        ("windows-1252", b"\x80", "€"),
        ("shift_jis", "日本".encode("shift_jis"), "日本"),
        ("utf-16", "hé".encode("utf-16"), "hé"),
        (None, "grüße".encode(), "grüße"),
        (None, b"gr\xfc\xdfe", "gr\ufffd\ufffde"),
        ("us-ascii", b"gr\xfc", "gr\ufffd"),
        ("utf-9", "grüße".encode(), "grüße"),
        ("hex", b"6869", "6869"),
        ("undefined", b"hi", "hi"),
        ("utf-7", b"+2AA-", "+2AA-"),
        ("unicode_escape", b"\\ud800", "\\ud800"),
        ("idna", b"xn--bcher-kva", "xn--bcher-kva"),
    ],
)
async def test_text_is_read_in_its_charset_and_in_utf_8_when_that_is_none(node, charset, raw, text):
    content_type = f"text/plain; charset={charset}" if charset else "text/plain"

    output = await node.on(answer(200, raw, ("Content-Type", content_type)))

    assert output["body"] == text


async def test_no_charset_makes_text_that_cannot_be_kept_or_takes_long(node):
    names = sorted(set(encodings.aliases.aliases.values()) | {"punycode", "idna", "undefined"})
    raw = b"a" * 50_000 + b"-z9" + b"+2AA-\\ud800\xd8\x00\xed\xa0\x80" * 100

    async with far_side(answers(lambda seen: answer(
        200, raw, ("Content-Type", f"text/plain; charset={seen.target[1:]}")
    ))) as far:  # fmt: skip
        for name in names:
            output = await node.run(far.url(f"/{name}"))

            assert loads(dumps(output)) == output, name


@pytest.mark.parametrize("wanted", ["auto", "json"])
async def test_an_empty_json_body_is_null(node, wanted):
    assert (await node.on(json_answer(b""), responseType=wanted))["body"] is None


async def test_a_byte_order_mark_before_json_is_passed_over(node):
    assert (await node.on(json_answer(b"\xef\xbb\xbf[1]")))["body"] == [1]


async def test_integers_stay_exact(node):
    assert (await node.on(json_answer(b"12345678901234567890123")))["body"] == (
        12345678901234567890123
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"a": 1, "a": 2}', "json.duplicate_key"),
        (b'{"x": {"a": 1, "a": 1}}', "json.duplicate_key"),
        (b'{"a": ', "json.malformed"),
        (b"<html>", "json.malformed"),
        (b"NaN", "json.constant"),
        (b'"\xff"', "json.encoding"),
        (b"[" * 100_000, "json.depth"),
        (b"1" * 5000, "json.number"),
        (b'{"a": "\\uD83d"}', "json.text"),
        (b'{"\\udE00": 1}', "json.text"),
    ],
)
async def test_json_that_cannot_be_used_fails_the_node_and_is_an_answer(node, body, code):
    error = await node.fails(json_answer(body))

    assert (error.kind, error.code, error.sent, error.answered) == ("invalid", code, True, True)
    assert error.message.startswith("answered 200 with a body that cannot be used: ")
    assert node.told == ["sent", "answered"]


async def test_a_whole_surrogate_pair_is_text(node):
    assert (await node.on(json_answer(b'"\\ud83d\\ude00"')))["body"] == "\U0001f600"


async def test_a_header_that_is_no_utf_8_is_read_as_latin_1_and_can_be_kept(node):
    said = (
        b"HTTP/1.1 200 OK\r\nX-Utf: gr\xc3\xbc\r\nX-Latin: gr\xfc\r\n"
        b"Content-Type: image/\xfc\r\nContent-Length: 1\r\n\r\n1"
    )

    output = await node.on(said, responseType="blob")

    assert (output["headers"]["x-utf"], output["headers"]["x-latin"]) == ("grü", "grü")
    assert loads(dumps(output)) == output


# -- statuses


@pytest.mark.parametrize(
    ("allowed", "statuses"),
    [
        (None, {200, 204, 302, 304}),
        (False, {200, 204, 302, 304}),
        ([], {200, 204, 302, 304}),
        (True, {200, 204, 302, 304, 400, 404, 429, 500, 503}),
        ([404], {200, 204, 302, 304, 404}),
        (["404"], {200, 204, 302, 304, 404}),
        (["400-499"], {200, 204, 302, 304, 400, 404, 429}),
        (["400-404", 503], {200, 204, 302, 304, 400, 404, 503}),
    ],
    ids=lambda value: repr(sorted(value) if isinstance(value, set) else value),
)
async def test_a_status_of_400_and_above_fails_the_node_unless_it_is_allowed(
    node, allowed, statuses
):
    params = {} if allowed is None else {"allowStatus": allowed}
    passed = set()
    async with far_side(answers(lambda seen: answer(int(seen.target[1:])))) as far:
        for status in (200, 204, 302, 304, 400, 404, 429, 500, 503):
            try:
                output = await node.run(far.url(f"/{status}"), **params)
            except NodeError as error:
                assert error.code == f"http.status_{status}"
            else:
                passed.add(output["status"])

    assert passed == statuses


async def test_an_allowed_error_keeps_its_body(node):
    output = await node.on(json_answer(b'{"error": "gone"}', 410), allowStatus=[410])

    assert (output["status"], output["body"]) == (410, {"error": "gone"})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "rejected"), (401, "rejected"), (404, "rejected"), (409, "rejected"),
        (408, "timeout"), (422, "rejected"), (425, "rejected"), (429, "rate_limit"),
        (500, "server_error"), (501, "server_error"), (502, "service_unavailable"),
        (503, "service_unavailable"), (504, "service_unavailable"), (507, "server_error"),
    ],
)  # fmt: skip
async def test_a_status_says_what_kind_of_failure_it_is_and_is_an_answer(node, status, kind):
    error = await node.fails(answer(status))

    assert (error.kind, error.code) == (kind, f"http.status_{status}")
    assert (error.sent, error.answered, error.retry_after) == (True, True, None)
    assert error.declined is (status == 429)
    assert node.told == ["sent", "answered"]


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 400, RETRY_AFTER_LONGEST),
        (formatdate(FakeClock().time() + 90, usegmt=True), 90.0),
        (formatdate(FakeClock().time() - 90, usegmt=True), 0.0),
        ("Tue Nov 14 22:15:00 2023", 100.0),  # asctime's form, which names no zone
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_LONGEST),
        ("Fri, 31 Dec 9999 23:59:59 -2359", RETRY_AFTER_LONGEST),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("Fri, 31 Dec 2023 23:59:59 +999999999999999999", None),
        ("Fri, 31 Dec 2023 99:99:99 GMT", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 500])
async def test_retry_after_is_seconds_or_a_date_and_makes_503_a_refusal_to_act(
    node, status, value, wait
):
    error = await node.fails(answer(status, b"", ("Retry-After", value)))

    assert error.retry_after == wait
    assert error.declined is (status == 429 or (status == 503 and wait is not None))


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process runs nine hours ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


async def test_a_date_without_a_zone_is_in_utc_wherever_the_daemon_runs(node, in_tokyo):
    error = await node.fails(answer(503, b"", ("Retry-After", "Tue Nov 14 22:15:00 2023")))

    assert error.retry_after == 100.0


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("application/json", b'{"error": "no such thing"}', ": no such thing"),
        ("application/json", b'{"error": {"code": 7, "message": "no"}}', ": no"),
        ("application/problem+json", b'{"title": "t", "detail": "d"}', ": d"),
        ("application/json", b'{"message": "m", "error": "e"}', ": m"),
        ("application/json", b'{"other": 1}', ': {"other": 1}'),
        ("application/json", b'["a"]', ': ["a"]'),
        ("application/json", b"{broken", ": {broken"),
        ("application/json", b'{"error": "\\ud800"}', ': {"error": "\\ud800"}'),
        ("text/plain", b"  it is \xff\n", ": it is \ufffd"),
        ("text/plain", b" \n", ""),
        ("text/plain", b"x" * 500, ": " + "x" * 200),
        ("text/plain", b"x" * 70_000, ""),
        ("text/html", b"<h1>no</h1>", ""),
        ("image/png", PNG, ""),
        (None, b"plain", ": plain"),
        (None, b"", ""),
    ],
)
async def test_a_failed_status_shows_the_far_sides_own_words(node, content_type, body, words):
    fields = [("Content-Type", content_type)] if content_type else []

    error = await node.fails(answer(400, body, *fields))

    assert error.message == f"answered 400{words}"
    dumps(error.message)


# -- what its parameters send


async def test_the_method_is_upper_case_and_get_if_none_is_given(node):
    assert (await node.sends(method="patch")).method == "PATCH"
    async with far_side(answers(answer(200))) as far:
        await node.run(far.url())

    assert far.request.method == "GET"


async def test_scalars_go_out_as_json_writes_them_and_null_is_left_out(node):
    seen = await node.sends(
        headers={"X-Flag": True, "X-Number": 1.5, "X-Big": 12345678901234567890123, "X-Text": "t"},
        query={"a": [1, None, "x y"], "b": False, "c": None, "d": 2, "e": []},
        form={"a": [1, None, "x y"], "b": True, "c": None, "d": 0.5},
    )

    assert {name: seen.headers[name] for name in ("x-flag", "x-number", "x-big", "x-text")} == {
        "x-flag": "true", "x-number": "1.5", "x-big": "12345678901234567890123", "x-text": "t",
    }  # fmt: skip
    assert seen.target == "/?a=1&a=x+y&b=false&d=2"
    assert seen.body == b"a=1&a=x+y&b=true&d=0.5"
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("value", [None, False, "text", 12345678901234567890123, [1, {"ä": []}]])
async def test_json_is_sent_exactly_even_null(node, value):
    seen = await node.sends(json=value)

    assert loads(seen.body) == value
    assert seen.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("params", "body", "content_type"),
    [
        ({"body": "grüße"}, "grüße".encode(), "text/plain; charset=utf-8"),
        ({"body": "a,b", "headers": {"content-type": "text/csv"}}, b"a,b", "text/csv"),
        ({"body": {"n": 1}}, b'{"n":1}', "text/plain; charset=utf-8"),
        ({"body": ""}, b"", "text/plain; charset=utf-8"),
        ({"body": None}, b"", None),
        ({"json": 1, "headers": {"Content-Type": "application/ld+json"}}, b"1", "application/ld+json"),
        ({}, b"", None),
    ],
    ids=["text", "text of a type", "map", "empty", "null", "json of a type", "none"],
)  # fmt: skip
async def test_a_raw_body_is_text_unless_its_headers_name_a_type(node, params, body, content_type):
    seen = await node.sends(**params)

    assert seen.body == body
    assert seen.headers.get("content-type") == content_type


async def test_multipart_members_are_fields_or_files_and_lists_of_them(node):
    seen = await node.sends(
        headers={"Content-Type": "multipart/form-data"},
        multipart={
            "note": "grüße",
            "flag": True,
            "tags": ["a", None, "b"],
            "meta": {"k": 1},
            "nothing": None,
            "file": {"content": "a,b\n", "filename": "große Liste.csv", "contentType": "text/csv"},
            "plain": {"content": {"k": 1}, "filename": None, "contentType": None},
            "many": [{"content": "1", "filename": "1.txt"}, {"content": "2", "filename": "2.txt"}],
        },
    )

    found = [
        (part.get_param("name", header="content-disposition"), part.get_filename(),
         part.get_content_type(), part.get_payload(decode=True))
        for part in parts_of(seen)
    ]  # fmt: skip
    assert found == [
        ("note", None, "text/plain", "grüße".encode()),
        ("flag", None, "text/plain", b"true"),
        ("tags", None, "text/plain", b"a"),
        ("tags", None, "text/plain", b"b"),
        ("meta", None, "text/plain", b'{"k":1}'),
        ("file", "große Liste.csv", "text/csv", b"a,b\n"),
        ("plain", "plain", "application/octet-stream", b'{"k":1}'),
        ("many", "1.txt", "application/octet-stream", b"1"),
        ("many", "2.txt", "application/octet-stream", b"2"),
    ]


async def test_a_keyed_action_sends_its_key(node):
    assert (await node.sends(key="e1:a")).headers["idempotency-key"] == "e1:a"
    assert "idempotency-key" not in (await node.sends()).headers


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"])
async def test_an_authors_own_key_is_kept(node, name):
    seen = await node.sends(key="e1:a", headers={name: "mine"})

    assert [value for field, value in seen.fields if field == "idempotency-key"] == ["mine"]


async def test_redirects_are_followed_unless_the_node_says_no(node):
    behave = answers_by_path({"/a": redirect(302, "/b"), "/b": json_answer(b"1")})
    async with far_side(behave) as far:
        followed = await node.run(far.url("/a"))
        left = await node.run(far.url("/a"), followRedirects=False)

    assert (followed["status"], followed["body"]) == (200, 1)
    assert (left["status"], left["headers"]["location"]) == (302, "/b")


async def test_an_unsafe_action_has_a_connection_of_its_own(node):
    async with far_side(answers(answer(200))) as far:
        await node.run(far.url(), method="POST", key="k")
        await node.run(far.url(), method="POST", key="k")
        assert far.connections == 1
        await node.run(far.url(), method="POST", unsafe=True)

    assert far.connections == 2


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_an_unsafe_action_is_sent_once_whatever_its_method(node, method):
    async with far_side(answers_once()) as far:
        with pytest.raises(NodeError) as failed:
            await node.run(far.url(), method=method, unsafe=True)

    assert (failed.value.sent, failed.value.answered) == (True, False)
    assert len(far.requests) == 1


# -- blobs, out and in


PICTURE = bytes(range(256)) * 4_000  # 1 MB, more than a piece


@pytest.mark.parametrize("wanted", ["blob", "auto"])
async def test_an_answer_that_is_a_blob_may_be_larger_than_an_output(node, wanted):
    said = answer(200, PICTURE, ("Content-Type", "image/png"))

    output = await node.on(said, responseType=wanted, max_bytes=1000)

    body = output["body"]
    assert (body["bytes"], body["contentType"]) == (len(PICTURE), "image/png")
    assert await content_of(node.blobs, body["$blob"]) == PICTURE
    assert node.told == ["sent", "answered"]


async def test_a_packed_answer_is_kept_unpacked(node):
    output = await node.on(encoded("gzip", gzip.compress(PICTURE)), responseType="blob")

    assert await content_of(node.blobs, output["body"]["$blob"]) == PICTURE


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (answer(200, bytes(MAX_BLOB + 1)), "blob.too_large"),
        (encoded("gzip", gzip_bomb(64)), "blob.too_large"),
        (encoded("gzip", gzip.compress(PICTURE)[:-9]), "http.bad_content"),
        (answer(200, PICTURE, length=len(PICTURE) + 1), "http.reset"),
        (answer(404, PICTURE), "http.status_404"),
    ],
    ids=["too long", "bomb", "broken off", "shorter than said", "refused"],
)
async def test_an_answer_that_is_no_use_leaves_no_blob(node, said, code):
    async with far_side(answers_once(said)) as far:
        with pytest.raises(StackdError) as failed:
            await node.run(far.url(), responseType="blob")

    assert failed.value.code == code
    assert files(node.folder) == []


async def test_blobs_go_through_in_little_memory(node):
    tracemalloc.start()
    try:
        output = await node.on(encoded("gzip", gzip_bomb(MAX_BLOB // MIB)), responseType="blob")
        peak_in = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        async with far_side(drops_the_body) as far:
            await node.run(far.url(), method="PUT", body=output["body"])
        peak_out = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert output["body"]["bytes"] == MAX_BLOB
    assert peak_in < 4 * MIB
    assert peak_out < 4 * MIB


async def drops_the_body(link: Link) -> None:
    """Answers once as much has come as was said, and keeps nothing of it."""
    await link.drop_request()
    await link.send(json_answer(b"1"))


@pytest.mark.parametrize(
    ("params", "content_type"),
    [
        ({"contentType": "image/png"}, "image/png"),
        ({}, "application/octet-stream"),
        ({"contentType": "image/png", "headers": {"Content-Type": "image/x"}}, "image/x"),
    ],
)
async def test_a_body_that_is_a_blob_is_its_content(node, params, content_type):
    blob_id = await node.blobs.put(PICTURE)
    named = {"$blob": blob_id, "bytes": len(PICTURE)}
    headers = params.pop("headers", {})

    seen = await node.sends(body=named | params, headers=headers)

    assert seen.body == PICTURE
    assert seen.headers["content-length"] == str(len(PICTURE))
    assert seen.headers["content-type"] == content_type


async def test_parts_of_a_form_may_be_blobs(node):
    blob_id = await node.blobs.put(PICTURE)

    seen = await node.sends(
        multipart={
            "as it came": {"$blob": blob_id, "bytes": 1, "filename": "a.png", "contentType": "image/png"},
            "as content": {"content": {"$blob": blob_id}, "filename": "b.bin"},
            "note": "text",
        }
    )  # fmt: skip

    found = [
        (part.get_filename(), part.get_content_type(), part.get_payload(decode=True))
        for part in parts_of(seen)
    ]
    assert found == [
        ("a.png", "image/png", PICTURE),
        ("b.bin", "application/octet-stream", PICTURE),
        (None, "text/plain", b"text"),
    ]


@pytest.mark.parametrize("blob_id", ["0" * 64, "no id", "../../stackd.db"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda blob: {"body": blob},
        lambda blob: {"multipart": {"f": [blob]}},
        lambda blob: {"multipart": {"f": {"content": blob}}},
    ],
    ids=["body", "part", "content of a part"],
)
async def test_a_blob_that_is_not_there_fails_the_node_before_anything_is_sent(node, blob_id, wrap):
    async with far_side(answers(json_answer(b"1"))) as far:
        with pytest.raises(NotFoundError) as failed:
            await node.run(far.url(), method="POST", **wrap({"$blob": blob_id}))

    assert failed.value.code == "blob.not_found"
    assert (far.connections, node.told) == (0, [])


@pytest.mark.parametrize("shape", ["body", "multipart"])
async def test_a_redirect_that_keeps_the_body_sends_a_blob_whole_again(node, shape):
    named = {"$blob": await node.blobs.put(PICTURE), "filename": "a"}
    params = {"body": named} if shape == "body" else {"multipart": {"f": named}}

    async with far_side(answers(redirect(307, "/there"), json_answer(b"1"))) as far:
        await node.run(far.url("/here"), method="POST", **params)

    here, there = far.requests
    assert (here.target, there.target) == ("/here", "/there")
    assert PICTURE in here.body
    assert PICTURE in there.body


async def test_on_a_reused_connection_that_breaks_an_idempotent_blob_is_sent_whole_again(node):
    named = {"$blob": await node.blobs.put(PICTURE)}

    async with far_side(leaves_the_second(json_answer(b"1"))) as far:
        await node.run(far.url("/first"))
        await node.run(far.url("/second"), method="PUT", body=named)

    assert [seen.body for seen in far.requests] == [b"", PICTURE, PICTURE]


async def test_on_a_connection_of_its_own_an_unsafe_blob_is_sent_once(node):
    named = {"$blob": await node.blobs.put(PICTURE)}

    async with far_side(answers_once()) as far:
        with pytest.raises(NodeError) as failed:
            await node.run(far.url(), method="POST", unsafe=True, body=named)

    assert (failed.value.sent, failed.value.answered) == (True, False)
    assert [seen.body for seen in far.requests] == [PICTURE]


async def test_an_answer_before_all_of_a_blob_was_sent_is_the_answer(node):
    named = {"$blob": await node.blobs.put(bytes(MAX_BLOB))}

    async with far_side(refuses_at_once) as far:
        error = None
        try:
            await node.run(far.url(), method="POST", body=named)
        except NodeError as failed:
            error = failed

    assert error is not None
    assert (error.code, error.sent, error.answered) == ("http.status_413", True, True)


async def refuses_at_once(link: Link) -> None:
    """Answers once it has seen the head, and goes on reading, so that the answer is not lost to a reset."""
    await link.head()
    await link.send(answer(413, b"", ("Connection", "close")))
    await link.gone()


# -- limits, and what the runtime is told


async def test_a_body_over_the_limit_of_outputs_is_refused(node):
    said = answer(200, b"z" * 1001, ("Content-Type", "text/plain"))
    error = await node.fails(said, max_bytes=1000)

    assert (error.kind, error.code, error.answered) == ("limit", "http.response_too_large", True)
    assert "responseType: blob" in error.message


async def test_without_an_answer_only_the_sending_is_told(node):
    async with far_side(answers_then_stalls()) as far:
        with pytest.raises(NodeError) as failed:
            await node.run(far.url(), timeout=0.5)

    assert (failed.value.kind, failed.value.sent, failed.value.answered) == ("timeout", True, False)
    assert "within 0.5 s" in failed.value.message
    assert node.told == ["sent"]


async def test_without_a_connection_nothing_is_told(node):
    with nobody_listens() as port, pytest.raises(NodeError) as failed:
        await node.run(f"http://127.0.0.1:{port}/")

    assert (failed.value.kind, failed.value.sent) == ("network", False)
    assert node.told == []
