"""Requests through a proxy: what it is told, what is judged before it is asked, and what its refusals mean."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from support.outbound import OK, attempt, client, get, post
from support.servers import (
    LOOPBACK,
    FarSide,
    ForwardProxy,
    Names,
    answers,
    answers_then_resets,
    far_side,
    nobody_listens,
    redirect,
    says_nothing,
    self_signed,
)

from stackd.core.errors import SettingsError
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.http.proxy import Proxy
from stackd.http.tls import Tls

PUBLIC = "93.184.215.14"  # judged, and never connected to: the proxy leads elsewhere
NAMES = {"far.example": [PUBLIC], "inside.example": ["10.1.2.3"], "mixed.example": [PUBLIC, "10.1.2.3"],
         "here.example": ["127.0.0.1"]}  # fmt: skip
SECRET = "pass%40word"


@asynccontextmanager
async def proxied(
    behave: Any, *, pair: str = "", exempt: tuple[Any, ...] = (), **more: Any
) -> AsyncIterator[tuple[HttpClient, FarSide]]:
    """A client that asks the proxy `behave`, and the proxy."""
    async with far_side(behave) as at:
        proxy = Proxy.of(f"http://{pair}127.0.0.1:{at.port}", exempt)
        given = {"policy": EgressPolicy(), "names": Names(NAMES)} | more
        async with client(proxy=proxy, **given) as http:
            yield http, at


# -- what it is told


async def test_http_goes_out_in_absolute_form(tmp_path):
    async with far_side(answers(OK)) as far:
        proxy = ForwardProxy(far.port)
        async with proxied(proxy) as (http, _):
            response = await http.request(get("http://far.example/a?b=c"))

    assert response.body == b"ok"
    ((first, headers),) = proxy.heads
    assert first == "GET http://far.example/a?b=c HTTP/1.1"
    assert headers["host"] == "far.example"
    assert "proxy-authorization" not in headers


async def test_https_goes_through_a_tunnel(certificate, tmp_path):
    async with far_side(answers(OK), tls=certificate) as far:
        proxy = ForwardProxy(far.port)
        async with proxied(proxy, ca_file=tmp_path / "certificate.pem") as (http, _):
            response = await http.request(
                post("https://far.example/a", tls=Tls(verify=False), fresh_connection=True)
            )

    assert response.body == b"ok"
    assert [first for first, _ in proxy.heads] == ["CONNECT far.example:443 HTTP/1.1"]
    assert far.request.target == "/a"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_credentials_go_to_the_proxy_and_no_further(certificate, scheme):
    tls = certificate if scheme == "https" else None
    async with far_side(answers(OK), tls=tls) as far:
        proxy = ForwardProxy(far.port, authorization="Basic dXNlcjpwYXNzQHdvcmQ=")
        async with proxied(proxy, pair=f"user:{SECRET}@") as (http, _):
            await http.request(get(f"{scheme}://far.example/", tls=Tls(verify=False)))

    assert proxy.heads[0][1]["proxy-authorization"] == "Basic dXNlcjpwYXNzQHdvcmQ="
    if scheme == "https":
        assert "proxy-authorization" not in far.request.headers


async def test_a_tunnel_is_used_again(certificate):
    async with far_side(answers(OK), tls=certificate) as far:
        proxy = ForwardProxy(far.port)
        async with proxied(proxy) as (http, at):
            for _ in range(5):
                await http.request(get("https://far.example/", tls=Tls(verify=False)))

    assert (at.connections, len(far.requests)) == (1, 5)


# -- what is judged before it is asked


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://127.1/",
        "https://localhost.denied.example/",
        "http://inside.example/",
        "http://mixed.example/",  # the proxy might take the other address
        "http://here.example/",
    ],
)
async def test_a_denied_target_is_refused_and_the_proxy_not_asked(url):
    async with proxied(answers(OK), policy=EgressPolicy(deny_domains=("denied.example",))) as (
        http,
        at,
    ):
        tried = await attempt(http, get(url))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert at.connections == 0


async def test_a_redirect_to_a_denied_target_does_not_reach_the_proxy():
    async with far_side(answers(redirect(302, "http://inside.example/"))) as far:
        proxy = ForwardProxy(far.port)
        async with proxied(proxy) as (http, _):
            tried = await attempt(http, get("http://far.example/"))

    assert tried.failure == ("rejected", "egress.denied", True, False)
    assert len(proxy.heads) == 1


async def test_a_name_that_only_the_proxy_knows_is_judged_by_its_name():
    allowed = EgressPolicy(allow_domains=("only.example",), deny_domains=("not.only.example",))
    async with far_side(answers(OK)) as far:
        proxy = ForwardProxy(far.port)
        async with proxied(proxy, policy=allowed) as (http, _):
            fine = await http.request(get("http://only.example/"))
            refused = [
                await attempt(http, get(f"http://{name}/"))
                for name in ("not.only.example", "unknown.example")
            ]
        async with proxied(proxy) as (http, _):  # no allow list: any name
            also = await http.request(get("http://unknown.example/"))

    assert (fine.status, also.status) == (200, 200)
    assert {tried.failure for tried in refused} == {("rejected", "egress.denied", False, False)}
    assert len(proxy.heads) == 2


async def test_a_name_is_resolved_once_for_many_requests():
    names = Names(NAMES)
    async with (
        far_side(answers(OK)) as far,
        proxied(ForwardProxy(far.port), names=names) as (http, _),
    ):
        for _ in range(5):
            await http.request(get("http://far.example/"))

    assert names.asked == ["far.example"]


# -- what does not go through it


@pytest.mark.parametrize("exempt", ["here.example", "*.example", ip_network("127.0.0.0/8")])
async def test_an_exempt_target_is_called_directly(exempt):
    async with (
        far_side(answers(OK)) as far,
        proxied(answers(OK), exempt=(exempt,), policy=LOOPBACK) as (http, at),
    ):
        response = await http.request(get(far.url(host="here.example")))

    assert response.status == 200
    assert (far.connections, at.connections) == (1, 0)


async def test_an_exempt_literal_is_called_directly():
    async with (
        far_side(answers(OK)) as far,
        proxied(answers(OK), exempt=(ip_network("127.0.0.1/32"),), policy=LOOPBACK) as (http, at),
    ):
        await http.request(get(far.url()))

    assert (far.connections, at.connections) == (1, 0)


async def test_an_exempt_target_is_judged_all_the_same():
    async with proxied(answers(OK), exempt=("*.example",)) as (http, at):
        tried = await attempt(http, get("http://inside.example/"))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert at.connections == 0


# -- its refusals


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("refuses", "failure"),
    [
        (407, ("rejected", "http.proxy_auth", False, False)),
        (403, ("rejected", "http.proxy_refused", False, False)),
        (502, ("network", "http.proxy_refused", False, False)),
        (b"", ("network", "http.proxy_failed", False, False)),
        (b"nonsense\r\n\r\n", ("network", "http.proxy_failed", False, False)),
    ],
    ids=["credentials", "forbidden", "bad gateway", "closes", "no http"],
)
async def test_a_tunnel_that_the_proxy_refuses_was_not_sent_through(refuses, failure, fresh):
    async with proxied(ForwardProxy(1, refuses=refuses), pair=f"user:{SECRET}@") as (http, _):
        tried = await attempt(http, post("https://far.example/", fresh_connection=fresh))

    assert tried.failure == failure
    assert "proxy" in tried.error.message
    assert SECRET not in tried.error.message
    assert "pass@word" not in tried.error.message


async def test_a_proxy_that_wants_credentials_for_http_has_not_passed_the_request_on():
    async with proxied(ForwardProxy(1, authorization="Basic eA==")) as (http, _):
        tried = await attempt(http, post("http://far.example/"))

    assert tried.failure == ("rejected", "http.proxy_auth", True, True)


async def test_without_a_proxy_that_listens_nothing_was_sent():
    with nobody_listens() as port:
        proxy = Proxy.of(f"http://user:{SECRET}@127.0.0.1:{port}")
        async with client(policy=EgressPolicy(), names=Names(NAMES), proxy=proxy) as http:
            tried = [
                await attempt(http, post(f"{scheme}://far.example/"))
                for scheme in ("http", "https")
            ]

    for one in tried:
        assert one.failure == ("network", "http.proxy_connect", False, False)
        assert SECRET not in str(one.error)


async def test_a_proxy_that_says_nothing_is_no_connection_in_time():
    async with proxied(says_nothing) as (http, _):
        tried = await attempt(http, post("https://far.example/", timeout=0.5))

    assert tried.failure == ("timeout", "http.connect_timeout", False, False)


async def test_a_proxy_that_breaks_off_under_a_request_leaves_it_unknown():
    async with proxied(answers_then_resets()) as (http, _):
        tried = await attempt(http, post("http://far.example/", fresh_connection=True))

    assert tried.failure == ("network", "http.reset", True, False)


def test_a_proxy_shows_no_secret():
    proxy = Proxy.of(f"http://user:{SECRET}@proxy.example:3128")

    assert "user" not in repr(proxy)
    assert "dXNl" not in repr(proxy)


# -- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    made = self_signed(tmp_path)
    if made is None:
        pytest.skip("no openssl program")
    return made


async def test_a_certificate_of_the_operators_authority_is_accepted(certificate, tmp_path):
    async with (
        far_side(answers(OK), tls=certificate) as far,
        client(ca_file=tmp_path / "certificate.pem") as http,
    ):
        response = await http.request(get(far.url()))
        strict = await http.request(get(far.url(), tls=Tls(min_version="1.3")))

    assert (response.body, strict.body) == (b"ok", b"ok")


async def test_who_asks_for_no_verification_gets_none_and_others_do(certificate):
    async with far_side(answers(OK), tls=certificate) as far, client() as http:
        response = await http.request(get(far.url(), tls=Tls(verify=False)))
        tried = await attempt(http, get(far.url()))  # not over the connection that is open

    assert response.body == b"ok"
    assert tried.failure == ("rejected", "http.certificate", False, False)


async def test_a_far_side_below_the_version_asked_for_was_not_sent_the_request(certificate):
    certificate.maximum_version = ssl.TLSVersion.TLSv1_2
    async with far_side(answers(OK), tls=certificate) as far, client() as http:
        tried = await attempt(http, post(far.url(), tls=Tls(verify=False, min_version="1.3")))
        older = await http.request(get(far.url(), tls=Tls(verify=False)))

    assert (tried.failure[0], *tried.failure[2:]) == ("network", False, False)
    assert older.body == b"ok"


async def test_a_redirect_to_another_origin_is_verified(certificate):
    async with far_side(answers(OK), tls=certificate) as there:
        said = redirect(307, there.url())
        async with far_side(answers(said), tls=certificate) as here, client() as http:
            tried = await attempt(http, get(here.url(), tls=Tls(verify=False)))

    assert tried.failure == ("rejected", "http.certificate", True, False)
    assert there.requests == []


async def test_connections_of_one_way_of_tls_are_used_again(certificate):
    async with far_side(answers(OK), tls=certificate) as far, client() as http:
        for tls in (Tls(verify=False), Tls(verify=False, min_version="1.3")) * 3:
            await http.request(get(far.url(), tls=tls))

    assert (far.connections, len(far.requests)) == (2, 6)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_a_file_of_certificates_that_is_none_is_named_at_the_start(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError) as caught:
        async with client(ca_file=path):
            pass

    assert f"STACKD_TLS_CA_FILE {path}" in str(caught.value)
