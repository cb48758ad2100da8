"""What is known to be sent when a request fails, on which connection, in what time, and where it may go at all."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import anyio
import pytest
from support.outbound import (
    EMPTY,
    EVERY_METHOD,
    OK,
    Tried,
    attempt,
    client,
    get,
    post,
)
from support.servers import (
    LOOPBACK,
    Names,
    answers,
    answers_by_path,
    answers_once,
    answers_then_resets,
    answers_then_stalls,
    can_bind,
    drips,
    far_side,
    greets,
    leaves_the_second,
    nobody_accepts,
    nobody_listens,
    redirect,
    resets_before_reading,
    says_nothing,
    self_signed,
)

from stackd.core.errors import NodeError
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.http.message import JsonBody, Request

SOON = 0.5  # seconds: the timeout of a request that must run into it


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    async with client() as opened:
        yield opened


# -- time


async def test_a_name_that_takes_too_long_is_no_connection_in_time():
    names = Names({}, hold=anyio.Event())
    async with client(names=names, connect_timeout=0.05) as http:
        tried = await attempt(http, get("http://slow.example/"))

    assert tried.failure == ("timeout", "http.connect_timeout", False, False)
    assert tried.error is not None
    assert "no connection in time" in tried.error.message


async def test_a_handshake_that_never_comes_is_no_connection_in_time():
    async with client(connect_timeout=0.1) as http, far_side(says_nothing) as far:
        tried = await attempt(http, get(far.url().replace("http:", "https:")))
        await far.until(ended=1)

    assert tried.failure == ("timeout", "http.connect_timeout", False, False)
    assert far.connections == 1


async def test_a_connection_that_nobody_takes_ends_at_the_requests_own_timeout(http):
    with nobody_accepts() as port:
        tried = await attempt(http, get(f"http://127.0.0.1:{port}/", timeout=SOON))

    assert tried.failure == ("timeout", "http.connect_timeout", False, False)
    assert f"within {SOON:g} s" in str(tried.error)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    "behave",
    [
        answers_then_stalls(),
        answers_then_stalls(b"HTTP/1.1 200 OK\r\nX: "),
        answers_then_stalls(b"HTTP/1.1 100 Continue\r\n\r\n"),
        answers_then_stalls(HEAD + b"abc"),
        drips(HEAD, b"x", every=0.01),
        drips(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", every=0.01),
    ],
    ids=["before", "in the headers", "after a 100", "in the body", "dripping body", "dripping headers"],
)  # fmt: skip
async def test_an_answer_that_is_not_whole_in_time_is_no_answer_and_its_connection_closed(
    http, behave
):
    async with far_side(behave) as far:
        tried = await attempt(http, post(far.url("/x?token=sesame"), timeout=SOON))
        await far.until(ended=1)

    assert tried.failure == ("timeout", "http.timeout", True, False)
    assert str(tried.error) == f"no answer from {far.url('/x')} within {SOON:g} s"


async def test_redirects_and_body_share_one_timeout(http):
    async with far_side(answers_then_stalls()) as slow, far_side(answers(redirect(302, slow.url()))) as far:  # fmt: skip
        tried = await attempt(http, get(far.url(), timeout=SOON))

    assert tried.failure == ("timeout", "http.timeout", True, False)
    assert len(slow.requests) == 1


# -- what is known to be sent


async def test_a_refused_connection_was_not_sent(http):
    with nobody_listens() as port:
        tried = await attempt(http, post(f"http://127.0.0.1:{port}/x?token=sesame"))

    assert tried.failure == ("network", "http.connect", False, False)
    assert str(tried.error) == f"http://127.0.0.1:{port}/x: no connection (ECONNREFUSED)"


async def test_an_unknown_name_was_not_sent():
    async with client(names=Names({"empty.example": []})) as http:
        for host in ("no.example", "empty.example"):
            tried = await attempt(http, post(f"http://{host}/"))

            assert tried.failure == ("network", "http.dns", False, False)


async def test_a_name_that_cannot_exist_was_not_sent(http):
    tried = await attempt(http, post(f"http://{'a' * 70}.example/"))

    assert tried.error is not None
    assert not tried.error.sent


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = self_signed(Path(tmp_path_factory.mktemp("tls")))
    if context is None:
        pytest.skip("no openssl program to make a certificate with")
    return context


async def test_a_certificate_that_is_not_accepted_is_named_and_nothing_sent(http, certificate):
    async with far_side(answers(OK), tls=certificate) as far:
        tried = await attempt(http, post(far.url()))

    assert tried.failure == ("rejected", "http.certificate", False, False)
    assert "certificate is not accepted (self" in str(tried.error)
    assert far.requests == []


async def test_a_far_side_that_speaks_no_tls_was_not_sent_the_request(http):
    async with far_side(greets(b"220 mail.example ESMTP\r\n")) as far:
        tried = await attempt(http, post(far.url().replace("http:", "https:")))

    assert tried.failure == ("network", "http.tls", False, False)
    assert "TLS failed (" in str(tried.error)
    assert "EPERM" not in str(tried.error)
    assert far.requests == []


async def test_a_handshake_that_breaks_was_not_sent(http):
    go = anyio.Event()
    go.set()
    async with far_side(resets_before_reading(go)) as far:
        tried = await attempt(http, post(far.url().replace("http:", "https:")))

    assert tried.failure == ("network", "http.connect", False, False)


@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
async def test_a_reset_before_the_far_side_read_counts_as_sent(http, fresh):
    told = anyio.Event()
    async with far_side(resets_before_reading(told)) as far:
        with pytest.raises(NodeError) as failed:
            await http.request(post(far.url(), fresh_connection=fresh), on_sent=told.set)

    assert (failed.value.code, failed.value.sent) == ("http.reset", True)
    assert far.requests == []


@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
@pytest.mark.parametrize("behave", [answers_once(), answers_then_resets()], ids=["end", "reset"])
async def test_an_end_after_the_far_side_read_counts_as_sent(http, behave, fresh):
    async with far_side(behave) as far:
        tried = await attempt(http, post(far.url(), fresh_connection=fresh))

    assert tried.failure == ("network", "http.reset", True, False)
    assert len(far.requests) == 1


@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
async def test_the_sender_is_told_once_and_before_the_first_byte_arrives(http, fresh):
    order: list[str] = []
    behave = answers_by_path({"/": OK, "/a": redirect(307, "/b"), "/b": OK})
    async with far_side(behave) as far:
        far.on_byte = partial(order.append, "byte")
        for path in ("/", "/a"):  # the second one on the connection of the first, unless fresh
            await http.request(
                post(far.url(path), fresh_connection=fresh), on_sent=partial(order.append, "sent")
            )

    assert order == ["sent", "byte", "sent", "byte", "byte"]


@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
async def test_a_sender_that_refuses_sends_nothing_and_harms_no_later_request(http, fresh):
    def refuse() -> None:
        raise NodeError("too late", kind="network", code="node.too_late")

    async with far_side(answers(OK)) as far:
        for _ in range(2):  # the second finds a connection in the pool, unless fresh
            with pytest.raises(NodeError) as refused:
                await http.request(post(far.url(), fresh_connection=fresh), on_sent=refuse)
            assert refused.value.sent is False
            await http.request(post(far.url(), fresh_connection=fresh))

    assert len(far.requests) == 2


async def test_two_requests_that_wait_for_one_name_each_know_what_they_sent():
    hold = anyio.Event()
    names = Names({"inner.example": ["10.0.0.1"]}, hold=hold)
    found: dict[str, Tried] = {}

    async def keep(name: str, request: Request) -> None:
        found[name] = await attempt(http, request)

    behave = answers(redirect(307, "http://inner.example/"))
    async with (
        client(names=names) as http,
        far_side(behave) as far,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(keep, "redirected", post(far.url()))
        await far.until(requests=1)
        tasks.start_soon(keep, "direct", post("http://inner.example/"))
        await anyio.wait_all_tasks_blocked()
        hold.set()

    assert found["redirected"].failure == ("rejected", "egress.denied", True, False)
    assert found["direct"].failure == ("rejected", "egress.denied", False, False)
    assert found["redirected"].error is not found["direct"].error


# -- connections


async def test_ordinary_requests_share_a_connection(http):
    async with far_side(answers(EMPTY)) as far:
        for method in EVERY_METHOD:
            await http.request(Request(method, far.url()))

    assert (len(far.requests), far.connections) == (len(EVERY_METHOD), 1)


async def test_many_requests_at_a_time_share_as_many_connections(http):
    async with far_side(answers(OK)) as far:

        async def ask() -> None:
            for _ in range(25):
                await http.request(get(far.url()))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)

    assert len(far.requests) == 200
    assert far.connections <= 8


@pytest.mark.parametrize("fresh", [False, True], ids=["pooled", "fresh"])
async def test_one_host_gets_no_more_connections_than_its_limit_and_others_have_theirs(fresh):
    async with (
        far_side(answers_then_stalls()) as slow,
        far_side(answers(OK)) as quick,
        client(per_host=3) as http,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(6):
            tasks.start_soon(attempt, http, get(slow.url(), fresh_connection=fresh))
        await slow.until(requests=3)
        response = await http.request(get(quick.url(), fresh_connection=fresh))
        tasks.cancel_scope.cancel()

        assert response.status == 200
        assert slow.connections == 3


async def test_a_name_that_leads_elsewhere_later_is_judged_again():
    """As in DNS rebinding: what was allowed once says nothing about the next connection."""
    addresses = {"turncoat.example": ["127.0.0.1"]}
    names = Names(addresses)
    policy = EgressPolicy(allow_ranges=(ip_network("127.0.0.1/32"),))
    async with (
        far_side(answers(OK, redirect(307, "/again"))) as far,
        client(policy=policy, names=names, names_kept=0) as http,
    ):
        url = far.url(host="turncoat.example")
        first = await http.request(get(url, fresh_connection=True))
        addresses["turncoat.example"] = ["169.254.169.254"]
        second = await attempt(http, post(url, fresh_connection=True))

    assert first.status == 200
    assert second.failure == ("rejected", "egress.denied", False, False)
    assert names.asked == ["turncoat.example"] * 2
    assert len(far.requests) == 1


async def test_a_name_is_asked_for_again_once_its_answer_is_old():
    names = Names({"near.example": ["127.0.0.1"]})
    asked = []
    for kept in (0, 60):
        async with far_side(answers(OK)) as far, client(names=names, names_kept=kept) as http:
            for _ in range(3):
                await http.request(get(far.url(host="near.example"), fresh_connection=True))
        asked.append(len(names.asked))

    assert asked == [3, 4]


async def test_a_fresh_connection_is_neither_taken_from_the_pool_nor_left_in_it(http):
    async with far_side(answers(OK)) as far:
        await http.request(get(far.url()))
        await http.request(get(far.url(), fresh_connection=True))
        await http.request(get(far.url(), fresh_connection=True))
        await far.until(ended=2)
        await http.request(get(far.url()))

    assert (len(far.requests), far.connections) == (4, 3)


@pytest.mark.parametrize("method", EVERY_METHOD)
async def test_on_a_fresh_connection_a_request_is_sent_at_most_once(http, method):
    async with far_side(answers_once()) as far:
        tried = await attempt(http, Request(method, far.url(), fresh_connection=True))

    assert tried.failure == ("network", "http.reset", True, False)
    assert (len(far.requests), far.connections) == (1, 1)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_on_a_reused_connection_that_breaks_an_action_is_not_sent_again(http, method):
    async with far_side(leaves_the_second(OK)) as far:
        await http.request(get(far.url("/first")))
        tried = await attempt(http, Request(method, far.url("/second"), body=JsonBody(b"1")))

    assert tried.failure == ("network", "http.reset", True, False)
    assert [seen.target for seen in far.requests] == ["/first", "/second"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_on_a_reused_connection_that_breaks_an_idempotent_method_is_sent_again(http, method):
    async with far_side(leaves_the_second(OK)) as far:
        await http.request(get(far.url("/first")))
        tried = await attempt(http, Request(method, far.url("/second"), body=JsonBody(b"[1]")))

    assert tried.response is not None
    assert tried.told == 1
    assert [(seen.target, seen.body) for seen in far.requests[1:]] == [("/second", b"[1]")] * 2
    assert far.connections == 2


async def test_a_pooled_connection_that_the_far_side_closed_takes_no_fresh_request(http):
    async with far_side(answers_once(OK)) as far:
        await http.request(get(far.url()))
        await far.until(ended=1)
        response = await http.request(post(far.url(), fresh_connection=True))

    assert response.status == 200
    assert [seen.method for seen in far.requests] == ["GET", "POST"]


@pytest.mark.parametrize(
    "behave", [answers_then_stalls(), answers_then_stalls(HEAD + b"abc")], ids=["before", "in the body"]
)  # fmt: skip
async def test_a_cancelled_request_closes_its_connection(http, behave):
    async with far_side(behave) as far:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.request, post(far.url()))
            await far.until(requests=1)
            tasks.cancel_scope.cancel()
        await far.until(ended=1)

    assert (far.connections, len(far.requests)) == (1, 1)


async def test_a_client_that_ends_closes_its_connections():
    async with far_side(answers(OK)) as far:
        async with client() as http:
            await http.request(get(far.url()))
            assert far.ended == 0
        await far.until(ended=1)


# -- where it may go


CLOSED = EgressPolicy()


async def test_without_an_allow_rule_loopback_is_not_even_connected_to():
    names = Names({"near.example": ["127.0.0.1"]})
    async with client(policy=CLOSED, names=names) as http, far_side(answers(OK)) as far:
        for host in ("127.0.0.1", "near.example", "[::ffff:127.0.0.1]", "127.0.0.1."):
            tried = await attempt(http, post(f"http://{host}:{far.port}/"))

            assert tried.failure == ("rejected", "egress.denied", False, False), host

    assert far.connections == 0


@pytest.mark.parametrize("policy", [CLOSED, LOOPBACK], ids=["closed", "loopback open"])
@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "017700000001", "0x7f.1", "127.1", "0177.0.0.1", "0", "127.1."]
)  # fmt: skip
async def test_no_odd_form_of_an_address_is_connected_to(policy, host):
    async with client(policy=policy) as http, far_side(answers(OK)) as far:
        tried = await attempt(http, post(f"http://{host}:{far.port}/"))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert far.connections == 0


@pytest.mark.parametrize("host", ["\uff11\uff12\uff17.0.0.1", "①②⑦.0.0.1", "127。0。0。1"])
async def test_digits_of_other_scripts_are_judged_as_the_address_they_become(host):
    async with client(policy=CLOSED) as http, far_side(answers(OK)) as far:
        tried = await attempt(http, post(f"http://{host}:{far.port}/"))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert far.connections == 0


@pytest.mark.parametrize("url", ["http://bücher.example/", "http://xn--bcher-kva.EXAMPLE./"])
async def test_a_denied_name_is_denied_in_every_script_and_never_asked_for(url):
    names = Names({})
    policy = EgressPolicy(deny_domains=("xn--bcher-kva.example",))
    async with client(policy=policy, names=names) as http:
        tried = await attempt(http, get(url))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert names.asked == []


async def test_of_the_addresses_of_a_name_only_the_allowed_ones_are_tried():
    names = Names({"mixed.example": ["10.0.0.1", "169.254.169.254", "127.0.0.1", "fd00::1"]})
    async with client(names=names) as http, far_side(answers(OK)) as far:
        response = await http.request(get(far.url(host="mixed.example")))

    assert response.status == 200
    assert far.request.headers["host"] == f"mixed.example:{far.port}"


async def test_when_one_address_of_a_name_refuses_the_next_is_tried_and_the_request_sent_once():
    names = Names({"two.example": ["127.0.0.2", "127.0.0.1"]})  # the server is on the second only
    async with client(names=names) as http, far_side(answers(OK)) as far:
        tried = await attempt(http, post(far.url(host="two.example"), fresh_connection=True))

    assert tried.response is not None
    assert (tried.told, len(far.requests)) == (1, 1)


async def test_a_name_with_no_allowed_address_is_refused_with_the_first_reason():
    names = Names({"inner.example": ["10.0.0.1", "192.168.0.1"]})
    async with client(names=names) as http:
        tried = await attempt(http, get("http://inner.example/"))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert "inner.example (10.0.0.1)" in str(tried.error)


async def test_the_address_that_was_judged_is_the_one_connected_to():
    addresses = {"turncoat.example": ["127.0.0.1"]}
    names = Names(addresses)
    async with client(names=names) as http, far_side(answers(OK)) as far:
        await http.request(get(far.url(host="turncoat.example"), fresh_connection=True))
        addresses["turncoat.example"] = ["10.0.0.1"]
        await http.request(get(far.url(host="turncoat.example"), fresh_connection=True))

    assert names.asked == ["turncoat.example"]  # the judged answer was kept
    assert far.connections == 2


async def test_an_allowed_domain_does_not_let_a_private_address_through():
    names = Names({"api.example": ["127.0.0.1"]})
    policy = EgressPolicy(allow_domains=("api.example",))
    async with client(policy=policy, names=names) as http, far_side(answers(OK)) as far:
        tried = await attempt(http, get(far.url(host="api.example")))

    assert tried.failure == ("rejected", "egress.denied", False, False)
    assert far.connections == 0


async def test_an_allowed_range_opens_its_addresses():
    policy = EgressPolicy(allow_ranges=(ip_network("127.0.0.0/8"),))
    async with client(policy=policy) as http, far_side(answers(OK)) as far:
        assert (await http.request(get(far.url()))).status == 200


@pytest.mark.skipif(not can_bind("::1"), reason="no IPv6 loopback here")
async def test_ipv6_loopback_is_reached_by_address_and_by_name():
    names = Names({"six.example": ["::1"]})
    async with client(names=names) as http, far_side(answers(OK), host="::1") as far:
        await http.request(get(far.url()))
        await http.request(get(far.url(host="six.example")))

    assert [seen.headers["host"] for seen in far.requests] == [
        f"[::1]:{far.port}", f"six.example:{far.port}",
    ]  # fmt: skip
