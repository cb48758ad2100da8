"""httpbin, which others test their HTTP clients against: what it understood of what we sent, and we of its answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.connectors import action
from support.desk import Desk, account
from support.foreign import Foreign, needs_module, served

from stackd.core.errors import NodeError

pytestmark = needs_module("httpbin")

HEADERS = {"properties": {name: {"x-in": "header"} for name in ("If-Match", "If-None-Match")}}
VALUES = {"a": "ä & =", "b": ["1", "2"]}


@pytest.fixture(scope="module")
def httpbin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    with served("httpbin", Path(tmp_path_factory.mktemp("httpbin")) / "log") as server:
        yield server


# -- signing in

SIGNS: dict[str, tuple[dict[str, Any], dict[str, str], str, dict[str, Any]]] = {
    "basic": (
        {"type": "basic"}, {"username": "ada", "password": "pä:ss"}, "/basic-auth/ada/pä:ss",
        {"authenticated": True, "user": "ada"},
    ),
    "bearer": (
        {"type": "bearer"}, {"token": "t-0123456789"}, "/bearer",
        {"authenticated": True, "token": "t-0123456789"},
    ),
    "a cookie": (
        {"type": "api_key", "in": "cookie", "name": "sid"}, {"apiKey": "k-0123"}, "/cookies",
        {"cookies": {"sid": "k-0123"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIGNS)
async def test_a_sign_is_understood(desk: Desk, httpbin: Foreign, kind: str) -> None:
    way, fields, path, understood = SIGNS[kind]

    output = await desk.ask(
        httpbin.url, action("a", "GET", path), as_=account(**fields), authentication=way
    )

    assert output == understood


async def test_another_password_is_told_as_the_reason(desk: Desk, httpbin: Foreign) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(
            httpbin.url, action("a", "GET", "/basic-auth/ada/right"),
            as_=account(username="ada", password="wrong"), authentication={"type": "basic"},
        )  # fmt: skip

    assert (caught.value.code, caught.value.http_status) == ("unauthorized", 401)


# -- bodies

BODIES: dict[str, dict[str, Any]] = {
    "json": {"json": VALUES, "form": {}},
    "form": {"json": None, "form": VALUES},
    "multipart": {"json": None, "form": VALUES},
    "ndjson": {"json": VALUES},
    "graphql": {"json": {"query": "{ x }", "variables": VALUES}},
}


@pytest.mark.parametrize("encode", BODIES)
async def test_a_body_is_understood(desk: Desk, httpbin: Foreign, encode: str) -> None:
    asked = action("a", "POST", "/anything", encode=encode, graphql="{ x }")

    output = await desk.ask(httpbin.url, asked, VALUES)

    assert {name: output[name] for name in BODIES[encode]} == BODIES[encode]


async def test_a_query_is_understood(desk: Desk, httpbin: Foreign) -> None:
    output = await desk.ask(httpbin.url, action("a", "GET", "/get", style="repeat"), VALUES)

    assert output["args"] == VALUES


# -- answers


async def test_a_request_follows_redirects_with_its_body_where_that_is_meant(
    desk: Desk, httpbin: Foreign
) -> None:
    async def went(status: int) -> tuple[str, Any]:
        query = {"url": "/anything", "status_code": status}
        asked = action("a", "POST", "/redirect-to", send={"query": query})
        output = await desk.ask(httpbin.url, asked, {"x": 1})
        return output["method"], output["json"]

    assert await went(307) == ("POST", {"x": 1})
    assert await went(303) == ("GET", None)


async def test_a_redirect_on_the_same_host_takes_the_credential_along(
    desk: Desk, httpbin: Foreign
) -> None:
    output = await desk.ask(
        httpbin.url, action("a", "GET", "/redirect/3"), as_=account(token="t-0123456789"),
        authentication={"type": "bearer"},
    )  # fmt: skip

    assert output["headers"]["Authorization"] == "Bearer t-0123456789"


async def test_cookies_that_an_answer_sets_are_not_kept(desk: Desk, httpbin: Foreign) -> None:
    await desk.ask(httpbin.url, action("a", "GET", "/cookies/set?session=of-another"))

    assert await desk.ask(httpbin.url, action("a", "GET", "/cookies")) == {"cookies": {}}


@pytest.mark.parametrize("kind", ["gzip", "deflate"])
async def test_a_packed_answer_is_read(desk: Desk, httpbin: Foreign, kind: str) -> None:
    output = await desk.ask(httpbin.url, action("a", "GET", f"/{kind}"))

    assert output["gzipped" if kind == "gzip" else "deflated"] is True


async def test_an_answer_packed_as_nobody_asked_for_is_named(desk: Desk, httpbin: Foreign) -> None:
    with pytest.raises(NodeError, match="an encoding it was not offered: br"):
        await desk.ask(httpbin.url, action("a", "GET", "/brotli"))


async def test_lines_and_binary_answers_are_read_as_what_they_are(
    desk: Desk, httpbin: Foreign
) -> None:
    lines = await desk.ask(httpbin.url, action("a", "GET", "/stream/3", response="ndjson"))
    image = await desk.ask(httpbin.url, action("a", "GET", "/image/png"))
    encoded = base64.urlsafe_b64encode(b"plain").decode()
    text = await desk.ask(httpbin.url, action("a", "GET", f"/base64/{encoded}", response="text"))

    assert [one["id"] for one in lines["items"]] == [0, 1, 2]
    assert image["contentType"] == "image/png"
    assert desk.blobs.kept[image["$blob"]].startswith(b"\x89PNG")
    assert text == "plain"


STATUSES = {
    400: ("validation_error", "rejected"), 401: ("unauthorized", "rejected"),
    403: ("forbidden", "rejected"), 404: ("not_found", "rejected"), 409: ("conflict", "rejected"),
    418: ("unknown_error", "rejected"), 422: ("unprocessable_entity", "rejected"),
    429: ("rate_limit_exceeded", "rate_limit"), 500: ("server_error", "server_error"),
    503: ("server_error", "service_unavailable"),
}  # fmt: skip


async def test_each_status_is_told_by_its_kind(desk: Desk, httpbin: Foreign) -> None:
    told = {}
    for status in STATUSES:
        with pytest.raises(NodeError) as caught:
            await desk.ask(httpbin.url, action("a", "GET", f"/status/{status}"))
        told[status] = (caught.value.code, caught.value.kind)

    assert told == STATUSES


async def test_an_etag_is_a_condition_on_both_sides(desk: Desk, httpbin: Foreign) -> None:
    same = action("a", "GET", "/etag/v1", parameters=HEADERS, select="status")

    assert await desk.ask(httpbin.url, same, {"If-None-Match": '"v0"'}) == 200
    assert await desk.ask(httpbin.url, same, {"If-None-Match": '"v1"'}) == 304
    with pytest.raises(NodeError) as caught:
        await desk.ask(httpbin.url, same, {"If-Match": '"v0"'})
    assert caught.value.http_status == 412


async def test_an_answer_that_takes_too_long_is_waited_for_no_longer(
    desk: Desk, httpbin: Foreign
) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(httpbin.url, action("a", "GET", "/delay/9", timeout="200ms"))

    assert (caught.value.code, caught.value.sent) == ("http.timeout", True)


# -- limits

LONG = {"of a length told": ("/html", "text"), "in chunks": ("/stream/20", "ndjson")}


@pytest.mark.parametrize("kind", LONG)
async def test_an_answer_over_the_limit_is_refused(desk: Desk, httpbin: Foreign, kind: str) -> None:
    path, response = LONG[kind]
    asked = action("a", "GET", path, response=response)
    assert await desk.ask(httpbin.url, asked)

    desk.max_bytes = 1000
    with pytest.raises(NodeError) as caught:
        await desk.ask(httpbin.url, asked)

    assert caught.value.code == "http.response_too_large"


@pytest.mark.parametrize("path", ["/bytes", "/stream-bytes"])
async def test_a_binary_answer_is_kept_whole(desk: Desk, httpbin: Foreign, path: str) -> None:
    output = await desk.ask(httpbin.url, action("a", "GET", f"{path}/65536"))

    assert len(desk.blobs.kept[output["$blob"]]) == 65536


async def test_redirects_without_end_are_followed_no_further(desk: Desk, httpbin: Foreign) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(httpbin.url, action("a", "GET", "/redirect/30"))

    assert caught.value.code == "http.too_many_redirects"
