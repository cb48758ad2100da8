"""Redirects on real sockets: what changes, what is kept, what is left behind, and where they may not lead."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.outbound import (
    EMPTY,
    OK,
    attempt,
    client,
    get,
    parts_of,
    post,
)
from support.servers import (
    Names,
    Seen,
    answer,
    answers,
    answers_by_path,
    far_side,
    nobody_listens,
    redirect,
)

from stackd.http.client import MAX_REDIRECTS, HttpClient
from stackd.http.egress import EgressDeniedError
from stackd.http.message import FilePart, JsonBody, MultipartBody, RawBody, Request


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    async with client() as opened:
        yield opened


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"),
        (303, "PUT", "GET"), (303, "DELETE", "GET"), (303, "HEAD", "HEAD"),
    ],
)  # fmt: skip
async def test_a_redirect_that_changes_the_method_drops_the_body_and_what_describes_it(
    http, status, method, then
):
    behave = answers_by_path({"/a": redirect(status, "/b"), "/b": EMPTY})
    headers = {"Content-Type": "text/csv", "Content-Language": "de", "X-Mine": "1"}
    async with far_side(behave) as far:
        response = await http.request(
            Request(method, far.url("/a"), headers=headers, body=RawBody(b"x", None))
        )

    first, second = far.requests
    assert first.body == b"x"
    assert (second.method, second.body) == (then, b"")
    assert not [name for name in second.headers if name.startswith("content-")]
    assert second.headers["x-mine"] == "1"
    assert (response.redirects, response.url) == (1, far.url("/b"))


@pytest.mark.parametrize(
    ("status", "method"), [(307, "POST"), (308, "POST"), (307, "PUT"), (301, "PUT"), (302, "PATCH")]
)
async def test_any_other_redirect_keeps_method_and_body(http, status, method):
    behave = answers_by_path({"/a": redirect(status, "/b"), "/b": OK})
    async with far_side(behave) as far:
        await http.request(Request(method, far.url("/a"), body=JsonBody(b'{"n": 1}')))

    second = far.requests[1]
    assert (second.method, second.body) == (method, b'{"n": 1}')
    assert second.headers["content-type"] == "application/json"


async def test_a_kept_multipart_body_is_sent_whole_again(http):
    behave = answers_by_path({"/a": redirect(308, "/b"), "/b": OK})
    async with far_side(behave) as far:
        body = MultipartBody((FilePart("f", b"content", "f.txt"),))
        await http.request(Request("POST", far.url("/a"), body=body))

    assert [part.get_payload(decode=True) for part in parts_of(far.requests[1])] == [b"content"]


@pytest.mark.parametrize(
    ("target", "then"),
    [
        ("/b?x=1", "/b?x=1"), ("b", "/dir/b"), ("../b", "/b"), ("?x=1", "/dir/a?x=1"),
        ("/b#part", "/b"), ("//{host}/b", "/b"), ("http://{host}/b", "/b"), ("/b%2Fc?d=%2B", "/b%2Fc?d=%2B"),
    ],
)  # fmt: skip
async def test_a_target_is_relative_to_what_redirected_and_has_no_fragment(http, target, then):
    def respond(seen: Seen) -> bytes:
        if seen.target == "/dir/a?q=1":
            return redirect(302, target.format(host=seen.headers["host"]))
        return OK

    async with far_side(answers(respond)) as far:
        response = await http.request(get(far.url("/dir/a#own"), query={"q": "1"}))

    assert far.requests[1].target == then
    assert "#" not in response.url


SECRETS = {
    "Authorization": "Bearer s", "Cookie": "id=s", "X-Api-Key": "s", "apikey": "s",
    "X-Auth": "s", "Private-Token": "s", "Proxy-Authorization": "s", "X-Hub-Signature": "s",
    "DD-Application-Key": "s", "Anything-Else": "s",
}  # fmt: skip
CARRIED = {"Accept": "text/csv", "Idempotency-Key": "k", "User-Agent": "mine", "Range": "bytes=0-1"}


async def test_a_redirect_to_the_same_origin_keeps_every_header(http):
    behave = answers_by_path({"/a": redirect(307, "/b"), "/b": OK})
    async with far_side(behave) as far:
        await http.request(post(far.url("/a"), headers=SECRETS | CARRIED))

    got = far.requests[1].headers
    assert {name: got.get(name.lower()) for name in SECRETS | CARRIED} == SECRETS | CARRIED


async def test_a_redirect_to_another_origin_takes_no_header_that_could_be_a_secret(http):
    async with far_side(answers(OK)) as other, far_side(answers(redirect(307, other.url()))) as far:
        await http.request(post(far.url(), headers=SECRETS | CARRIED | {"Host": "virtual.example"}))

    got = other.request.headers
    assert not {name.lower() for name in SECRETS} & got.keys()
    assert {name: got.get(name.lower()) for name in CARRIED} == CARRIED
    assert got["content-type"] == "application/json"
    assert got["host"] == f"127.0.0.1:{other.port}"


@pytest.mark.parametrize(("status", "method"), [(307, "POST"), (308, "PUT"), (301, "PATCH")])
async def test_a_body_is_not_led_away_from_the_hosts_that_a_request_may_go_to(http, status, method):
    async with (
        far_side(answers(OK)) as other,
        far_side(answers(redirect(status, other.url()))) as far,
    ):
        request = Request(method, far.url(), body=JsonBody(b"{}"), carries_to=lambda _: False)
        tried = await attempt(http, request)

    assert tried.failure == ("rejected", "egress.foreign_host", True, True)
    assert (len(far.requests), other.connections) == (1, 0)


async def test_a_secret_dropped_on_the_way_does_not_come_back_with_the_first_origin(http):
    def back(seen: Seen) -> bytes:
        return redirect(302, seen.target.partition("=")[2])

    async with far_side(answers(back)) as other:
        behave = answers_by_path({"/b": OK})
        async with far_side(behave) as far:
            start = get(other.url(f"/?={far.url('/b')}"), headers={"Authorization": "Bearer s"})
            await http.request(start)
            async with far_side(answers(redirect(302, other.url(f"/?={far.url('/b')}")))) as third:
                await http.request(get(third.url(), headers={"Authorization": "Bearer s"}))

    assert all("authorization" not in seen.headers for seen in far.requests)
    assert len(far.requests) == 2


async def test_an_endless_redirect_ends_after_the_limit(http):
    async with far_side(answers(redirect(302, "/again"))) as far:
        tried = await attempt(http, get(far.url()))

    assert tried.failure == ("rejected", "http.too_many_redirects", True, True)
    assert len(far.requests) == MAX_REDIRECTS + 1


async def test_as_many_redirects_as_the_limit_are_followed(http):
    behave = answers(*[redirect(302, "/again")] * MAX_REDIRECTS, OK)
    async with far_side(behave) as far:
        response = await http.request(get(far.url()))

    assert (response.status, response.redirects) == (200, MAX_REDIRECTS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_that_is_not_to_be_followed_is_the_answer(http, status):
    async with far_side(answers(redirect(status, "/b"))) as far:
        response = await http.request(get(far.url(), follow_redirects=False))

    assert (response.status, response.headers["location"]) == (status, "/b")
    assert len(far.requests) == 1


@pytest.mark.parametrize(
    "said", [answer(302, b"no target"), answer(300, b"", ("Location", "/b")), answer(201, b"", ("Location", "/b"))]
)  # fmt: skip
async def test_what_names_no_target_or_is_no_redirect_is_the_answer(http, said):
    async with far_side(answers(said)) as far:
        assert (await http.request(get(far.url()))).redirects == 0

    assert len(far.requests) == 1


@pytest.mark.parametrize(
    "target",
    ["ftp://far.example/", "javascript:alert(1)", "http://me@far.example/", "http://[::1", "http://x:99999/"],
)  # fmt: skip
async def test_a_redirect_to_what_is_no_http_url_is_refused(http, target):
    async with far_side(answers(redirect(302, target))) as far:
        tried = await attempt(http, get(far.url()))

    assert tried.failure == ("rejected", "http.bad_redirect", True, True)


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[fd00::1]/",
        "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/",
        "http://0.0.0.0/", "http://2130706433/", "http://0x7f.1/", "//10.0.0.1/",
        "http://inner.example/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
async def test_a_redirect_to_a_denied_address_is_refused_and_the_request_counts_as_sent(
    target, fresh
):
    names = Names({"inner.example": ["10.0.0.1"]})
    async with client(names=names) as http, far_side(answers(redirect(307, target))) as far:
        tried = await attempt(http, post(far.url(), fresh_connection=fresh))

    assert tried.failure == ("rejected", "egress.denied", True, False)
    assert isinstance(tried.error, EgressDeniedError)
    assert len(far.requests) == 1


async def test_a_redirect_to_where_nobody_listens_counts_as_sent(http):
    with nobody_listens() as port:
        async with far_side(answers(redirect(307, f"http://127.0.0.1:{port}/"))) as far:
            tried = await attempt(http, post(far.url()))

    assert tried.failure == ("network", "http.connect", True, False)
