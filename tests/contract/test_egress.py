"""Where the credential of a connector could get away to: it does not, the place is named, and nothing arrives there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
from support.connectors import action
from support.desk import DONE, SECRET, Desk, account
from support.outbound import client
from support.servers import (
    FarSide,
    Names,
    Seen,
    answer,
    answers,
    far_side,
    json_answer,
    redirect,
)

from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError
from stackd.http.egress import EgressPolicy
from stackd.integrations.generic import Caller
from stackd.integrations.manager import HandlerHttp
from stackd.integrations.tokens import MemoryTokens

BEARER = {"authentication": {"type": "bearer"}}
HERE = EgressPolicy(allow_ranges=(ip_network("127.0.0.1/32"),))
SECRETS = {"token": SECRET, "clientId": "me", "clientSecret": SECRET, "password": SECRET}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with client() as http:
        yield Desk(http)


@pytest.fixture
async def foreign() -> AsyncIterator[FarSide]:
    async with far_side(answers(DONE)) as far:
        yield far


def knows_no_secret(error: NodeError) -> bool:
    return SECRET not in error.message and SECRET not in repr(error)


# -- the far side says where to go on

LISTS = {
    "a Link": ({"type": "link"}, lambda url: ((("Link", f'<{url}>; rel="next"'),), b"[1]")),
    "a next address": (
        {"type": "next_url", "path": "body.next", "items": "body.items"},
        lambda url: ((), json.dumps({"next": url, "items": [1]}).encode()),
    ),
    "one without a scheme": (
        {"type": "next_url", "path": "body.next", "items": "body.items"},
        lambda url: ((), json.dumps({"next": url.removeprefix("http:"), "items": [1]}).encode()),
    ),
}


@pytest.mark.parametrize("how", LISTS)
async def test_a_next_page_elsewhere_is_not_asked_for(
    desk: Desk, foreign: FarSide, how: str
) -> None:
    paginate, said = LISTS[how]
    fields, body = said(foreign.url("/next"))
    page = answer(200, body, ("Content-Type", "application/json"), *fields)
    async with far_side(answers(page)) as far:
        with pytest.raises(
            NodeError, match=r"the next page of desk\.a leads to 127\.0\.0\.1"
        ) as caught:
            await desk.ask(
                far.url(), action("a", paginate=paginate), as_=account(token=SECRET), **BEARER
            )

        assert len(far.requests) == 1
    assert (caught.value.code, foreign.connections) == ("egress.foreign_host", 0)
    assert knows_no_secret(caught.value)


async def test_a_redirect_elsewhere_takes_neither_header_nor_cookie_nor_key_along(
    desk: Desk, foreign: FarSide
) -> None:
    parts = [
        {"type": "bearer"},
        {"type": "api_key", "in": "cookie", "name": "sid", "value": "{{ conn.token }}"},
        {"type": "api_key", "in": "query", "name": "key", "value": "{{ conn.token }}"},
        {"type": "api_key", "in": "header", "name": "X-Key", "value": "{{ conn.token }}"},
    ]
    async with far_side(answers(redirect(302, foreign.url("/there")))) as far:
        await desk.ask(
            far.url(), action("a", "POST", "/x"), {"n": 1}, as_=account(token=SECRET),
            authentication={"type": "all", "parts": parts},
        )  # fmt: skip

        assert SECRET in str(far.request)
    assert SECRET not in str(foreign.request)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/", "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.2]:{port}/", "http://[::ffff:a9fe:a9fe]/", "http://2130706434:{port}/",
    ],
)  # fmt: skip
async def test_a_redirect_to_an_address_of_ones_own_is_refused(target: str) -> None:
    async with client(policy=HERE) as http, far_side(answers(DONE), host="127.0.0.2") as inner:
        async with far_side(answers(redirect(302, target.format(port=inner.port)))) as far:
            with pytest.raises(NodeError) as caught:
                await Desk(http).ask(far.url(), action("a"), as_=account(token=SECRET), **BEARER)

        assert (caught.value.code, caught.value.sent) == ("egress.denied", True)
        assert inner.connections == 0
        assert knows_no_secret(caught.value)


# -- names and addresses


class Rebound(Names):
    """Leads to another address each time it is asked."""

    def __init__(self, *addresses: str) -> None:
        super().__init__({})
        self._left = list(addresses)

    async def resolve(self, host: str, *more: Any) -> Any:
        self._answers = {host: [self._left.pop(0)]}
        return await super().resolve(host, *more)


async def test_a_name_that_leads_to_an_address_of_ones_own_the_second_time_is_refused() -> None:
    names = Rebound("127.0.0.1", "127.0.0.2")
    more = {"as_": account(token=SECRET), **BEARER}
    closes = answer(200, b"{}", ("Content-Type", "application/json"), ("Connection", "close"))
    async with (
        client(policy=HERE, names=names, names_kept=0) as http,
        far_side(answers(closes)) as far,
        far_side(answers(DONE), host="127.0.0.2", port=far.port) as inner,
    ):
        url = f"http://desk.example:{far.port}"
        await Desk(http).ask(url, action("a"), **more)
        with pytest.raises(NodeError, match=r"desk\.example \(127\.0\.0\.2\)") as caught:
            await Desk(http).ask(url, action("a"), **more)

        assert (caught.value.code, caught.value.sent) == ("egress.denied", False)
        assert (len(far.requests), inner.connections) == (1, 0)


@pytest.mark.parametrize(
    "host",
    [
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "0.0.0.0", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
    ],
)  # fmt: skip
async def test_an_address_of_ones_own_is_refused_however_it_is_written(host: str) -> None:
    async with client(policy=EgressPolicy()) as http, far_side(answers(DONE)) as far:
        with pytest.raises(NodeError) as caught:
            await Desk(http).ask(
                f"http://{host}:{far.port}", action("a"), as_=account(token=SECRET), **BEARER
            )

        assert (caught.value.code, caught.value.sent) == ("egress.denied", False)
        assert far.connections == 0


# -- what a connection, a handler and a definition say


async def test_an_address_that_the_definition_fixes_cannot_be_changed_by_a_field(
    desk: Desk, foreign: FarSide
) -> None:
    async with far_side(answers(DONE)) as far:
        fields = account(token=SECRET, baseUrl=foreign.url(), base_url=foreign.url())
        await desk.ask(far.url(), action("a"), as_=fields, **BEARER)

        assert len(far.requests) == 1
    assert foreign.connections == 0


async def test_a_handler_that_asks_elsewhere_is_refused(desk: Desk, foreign: FarSide) -> None:
    async with far_side(answers(DONE)) as far:
        plan = desk.plan(action("a"), baseUrl=far.url(), **BEARER)
        caller = Caller(
            plan, account(token=SECRET), desk.context(plan), MemoryTokens(SystemClock())
        )
        with pytest.raises(NodeError, match="none of its hosts") as caught:
            await HandlerHttp(caller).get(foreign.url("/x"))

        assert (caught.value.code, desk.sent, far.connections) == ("egress.foreign_host", 0, 0)
    assert foreign.connections == 0


SIGNING_IN: dict[str, dict[str, Any]] = {
    "OAuth": {"type": "oauth2", "grant": "client_credentials", "tokenUrl": "/token"},
    "a session": {
        "type": "session", "name": "X-Session", "token": "body.token",
        "login": {"endpoint": "/token", "body": {"password": "{{ conn.password }}"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("kind", SIGNING_IN)
async def test_signing_in_follows_no_redirect(
    desk: Desk, foreign: FarSide, kind: str, status: int
) -> None:
    def respond(seen: Seen) -> bytes:
        return redirect(status, foreign.url("/token")) if seen.target == "/token" else DONE

    async with far_side(answers(respond)) as far:
        with pytest.raises(NodeError, match=f"signing in .*was answered with {status}") as caught:
            await desk.ask(
                far.url(), action("a"), as_=account(**_without("token")),
                authentication=SIGNING_IN[kind],
            )  # fmt: skip

        assert [seen.target for seen in far.requests] == ["/token"]
    assert (caught.value.code, foreign.connections) == ("credential.sign_in", 0)
    assert knows_no_secret(caught.value)


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in SECRETS.items() if key != name}


async def test_a_token_is_sent_to_the_hosts_of_the_app_only(desk: Desk, foreign: FarSide) -> None:
    token = json_answer(json.dumps({"access_token": SECRET}).encode())
    async with far_side(answers(token)) as far:
        auth = {**SIGNING_IN["OAuth"], "tokenUrl": far.url("/token")}
        with pytest.raises(NodeError) as caught:
            await desk.ask(
                far.url(), action("a", endpoint=foreign.url("/x")),
                as_=account(**_without("token")), authentication=auth,
            )  # fmt: skip

        assert (caught.value.code, caught.value.sent) == ("egress.foreign_host", False)
    assert (far.connections, foreign.connections) == (0, 0)
