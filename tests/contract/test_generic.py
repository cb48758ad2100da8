"""The generic executor on real sockets: what it sends, to whom, and what it makes of the answer."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.connectors import action
from support.desk import DONE, SECRET, Desk, account
from support.outbound import client
from support.servers import (
    Names,
    Seen,
    answer,
    answers,
    answers_by_path,
    far_side,
    json_answer,
    redirect,
)

from stackd.core.errors import NodeError
from stackd.core.redact import LIVE, Redactor
from stackd.http.egress import EgressPolicy
from stackd.integrations.account import Account


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with client() as http:
        yield Desk(http)


# -- where parameters go


def params(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


PLACED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a path": (
        action("a", "GET", "/repos/{owner}/{repo}"),
        {"owner": "a/b", "repo": "c d"},
        "/api/repos/a%2Fb/c%20d",
    ),
    "a path of colons": (action("a", "GET", "/users/:id/mail"), {"id": 7}, "/api/users/7/mail"),
    "a path in another case": (action("a", "GET", "/x/{userId}"), {"user_id": 7}, "/api/x/7"),
    "a colon that is no place": (
        action("a", "POST", "/x/{id}:cancel"),
        {"id": 7},
        "/api/x/7:cancel",
    ),
    "a query by method": (
        action("a", "GET", "/x"),
        {"q": "a b&c", "n": 2, "b": True},
        "/api/x?q=a+b%26c&n=2&b=true",
    ),
    "a list in a query": (action("a", "GET", "/x"), {"t": ["a", "b"]}, "/api/x?t=a,b"),
    "a repeated query": (
        action("a", "GET", "/x", style="repeat"),
        {"t": ["a", "b"]},
        "/api/x?t=a&t=b",
    ),
    "a renamed query": (
        action("a", "POST", "/x", parameters=params(since={"x-in": "query", "x-as": "since[]"})),
        {"since": "1"},
        "/api/x?since[]=1",
    ),
    "null is left out": (action("a", "GET", "/x"), {"q": None, "n": 1}, "/api/x?n=1"),
    "a fixed query": (
        action("a", "GET", "/x", send={"query": {"v": 2, "w": "{{ params.n + 1 }}"}}),
        {"n": 1},
        "/api/x?v=2&w=2&n=1",
    ),
    "slashes that stay": (
        action(
            "a", "GET", "/c/{path}", parameters=params(path={"x-in": "path", "x-encode": "path"})
        ),
        {"path": "a/b c.md"},
        "/api/c/a/b%20c.md",
    ),
    "a template": (action("a", "GET", "/t/{{ params.a }}/x"), {"a": "b/c"}, "/api/t/b%2Fc/x"),
}


@pytest.mark.parametrize("case", PLACED)
async def test_a_parameter_goes_where_its_definition_has_it(desk: Desk, case: str) -> None:
    operation, given, target = PLACED[case]
    if "{{" in operation["endpoint"]:
        operation = {**operation, "parameters": params(a={"x-in": "none"})}

    seen = await desk.sends(operation, given)

    assert seen.target.replace("%5B%5D", "[]").replace("%2C", ",") == target


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "json": (
        action("a", "POST", "/x"),
        {"a": 1, "b": {"c": [None]}},
        "application/json",
        '{"a":1,"b":{"c":[null]}}',
    ),
    "a null that is meant": (
        action("a", "PATCH", "/x"),
        {"a": None},
        "application/json",
        '{"a":null}',
    ),
    "a form": (
        action("a", "POST", "/x", encode="form"),
        {"a": "b c", "n": [1, 2]},
        "application/x-www-form-urlencoded",
        "a=b+c&n=1&n=2",
    ),
    "a bracketed form": (
        action("a", "POST", "/x", encode="form", style="brackets"),
        {"items": [{"price": "p"}], "meta": {"k": "v"}, "expand": ["x"]},
        "application/x-www-form-urlencoded",
        "items%5B0%5D%5Bprice%5D=p&meta%5Bk%5D=v&expand%5B%5D=x",
    ),
    "graphql": (
        action("a", "POST", "/x", encode="graphql", graphql="mutation($t:String!){x(t:$t)}"),
        {"t": "hi"},
        "application/json",
        '{"query":"mutation($t:String!){x(t:$t)}","variables":{"t":"hi"}}',
    ),
    "lines": (
        action(
            "a",
            "POST",
            "/x",
            encode="ndjson",
            parameters=params(rows={"x-in": "body", "x-as": "$"}),
        ),
        {"rows": [{"a": 1}, {"a": 2}]},
        "application/x-ndjson",
        '{"a":1}\n{"a":2}\n',
    ),
    "raw": (
        action(
            "a",
            "POST",
            "/x",
            encode="raw",
            contentType="text/markdown",
            parameters=params(text={"x-in": "body", "x-as": "$"}),
        ),
        {"text": "# hi"},
        "text/markdown",
        "# hi",
    ),
    "a whole body": (
        action("a", "PUT", "/x", parameters=params(tags={"x-in": "body", "x-as": "$"})),
        {"tags": [1, 2]},
        "application/json",
        "[1,2]",
    ),
    "a fixed part": (
        action(
            "a",
            "POST",
            "/x",
            send={"body": {"parent": {"id": "{{ params.page }}"}}},
            parameters=params(page={"x-in": "none"}),
        ),
        {"page": "p1", "title": "t"},
        "application/json",
        '{"parent":{"id":"p1"},"title":"t"}',
    ),
    "an empty map": (
        action("a", "POST", "/x", parameters=params(a={"type": "string"})),
        {},
        "application/json",
        "{}",
    ),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_body_is_written_as_its_definition_has_it(desk: Desk, case: str) -> None:
    operation, given, content_type, body = BODIES[case]

    seen = await desk.sends(operation, given)

    assert seen.headers["content-type"].split(";")[0] == content_type
    assert seen.body.decode() == body


async def test_an_action_without_a_body_sends_none(desk: Desk) -> None:
    seen = await desk.sends(action("a", "POST", "/x"), {})

    assert seen.body == b""
    assert "content-type" not in seen.headers


async def test_a_whole_body_that_is_left_out_is_not_sent(desk: Desk) -> None:
    whole = action("a", "POST", "/x", parameters=params(body={"x-in": "body", "x-as": "$"}))

    assert (await desk.sends(whole, {})).body == b""
    assert (await desk.sends(whole, {"body": []})).body == b"[]"


async def test_a_multipart_body_has_fields_and_files(desk: Desk) -> None:
    operation = action("a", "POST", "/x", encode="multipart")
    seen = await desk.sends(
        operation, {"title": "t", "document": {"content": "PDF", "filename": "a.pdf"}}
    )

    assert seen.headers["content-type"].startswith("multipart/form-data")
    assert b'name="title"' in seen.body
    assert b'filename="a.pdf"' in seen.body


# -- how it signs in


BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()
WAYS: dict[str, tuple[dict[str, Any], dict[str, str], Callable[[Seen], Any], Any]] = {
    "bearer": (
        {"type": "bearer"},
        {"token": SECRET},
        lambda s: s.headers["authorization"],
        f"Bearer {SECRET}",
    ),
    "another prefix": (
        {"type": "bearer", "prefix": "Bot "},
        {"token": SECRET},
        lambda s: s.headers["authorization"],
        f"Bot {SECRET}",
    ),
    "a header": (
        {"type": "api_key", "in": "header", "name": "X-Key"},
        {"apiKey": SECRET},
        lambda s: s.headers["x-key"],
        SECRET,
    ),
    "a query": (
        {"type": "api_key", "in": "query", "name": "key"},
        {"apiKey": SECRET},
        lambda s: s.target,
        f"/api/x?key={SECRET}",
    ),
    "a cookie": (
        {"type": "api_key", "in": "cookie", "name": "sid"},
        {"apiKey": SECRET},
        lambda s: s.headers["cookie"],
        f"sid={SECRET}",
    ),
    "a template": (
        {"type": "api_key", "name": "Authorization", "value": "Token token={{ conn.key }}"},
        {"key": SECRET},
        lambda s: s.headers["authorization"],
        f"Token token={SECRET}",
    ),
    "basic": (
        {"type": "basic"},
        {"username": "me", "password": SECRET},
        lambda s: s.headers["authorization"],
        f"Basic {BASIC}",
    ),
    "the origin's spelling": (
        {
            "type": "api_key",
            "config": {"apiKeyLocation": "header", "apiKeyName": "X-Api-Key", "apiKeyPrefix": "k:"},
        },
        {"apiKey": SECRET},
        lambda s: s.headers["x-api-key"],
        f"k:{SECRET}",
    ),
    "a stored token of oauth": (
        {"type": "oauth2", "authUrl": "https://a.example"},
        {"accessToken": SECRET},
        lambda s: s.headers["authorization"],
        f"Bearer {SECRET}",
    ),
    "two at once": (
        {
            "type": "all",
            "parts": [
                {"type": "api_key", "name": "X-A", "value": "{{ conn.a }}"},
                {"type": "api_key", "name": "X-B", "value": "{{ conn.b }}"},
            ],
        },
        {"a": SECRET, "b": "two"},
        lambda s: (s.headers["x-a"], s.headers["x-b"]),
        (SECRET, "two"),
    ),
}


@pytest.mark.parametrize("case", WAYS)
async def test_a_request_is_signed_as_its_definition_has_it(desk: Desk, case: str) -> None:
    auth, fields, look, expected = WAYS[case]

    seen = await desk.sends(
        action("a", "GET", "/x"), {}, as_=account(**fields), authentication=auth
    )

    assert look(seen) == expected


async def test_a_keyed_hash_signs_the_body(desk: Desk) -> None:
    auth = {
        "type": "hmac",
        "options": {
            "header": "X-Sig",
            "secret": "{{ conn.secret }}",
            "prefix": "sha256=",
            "text": "{{ method }}.{{ body }}",
        },
    }
    seen = await desk.sends(
        action("a", "POST", "/x"), {"a": 1}, as_=account(secret=SECRET), authentication=auth
    )

    import hashlib
    import hmac

    expected = hmac.new(SECRET.encode(), b'POST.{"a":1}', hashlib.sha256).hexdigest()
    assert seen.headers["x-sig"] == f"sha256={expected}"


async def test_an_operation_may_need_no_sign(desk: Desk) -> None:
    seen = await desk.sends(
        action("a", "GET", "/x", auth="none"),
        {},
        as_=account(token=SECRET),
        authentication={"type": "bearer"},
    )

    assert "authorization" not in seen.headers


async def test_a_credential_without_its_field_sends_nothing(desk: Desk) -> None:
    async with far_side(answers(DONE)) as far:
        with pytest.raises(NodeError, match="the credential has no username") as caught:
            await desk.ask(
                far.url(), action("a"), as_=account(token="x"), authentication={"type": "basic"}
            )

        assert not caught.value.sent
        assert far.requests == []


async def test_a_session_is_begun_once_and_anew_when_it_is_over(desk: Desk) -> None:
    tokens = iter(["first", "second"])
    state = {"over": False}

    def respond(seen: Seen) -> bytes:
        if seen.target == "/login":
            assert json.loads(seen.body) == {"user": "me", "pass": SECRET}
            return json_answer(json.dumps({"session": {"id": next(tokens)}}).encode())
        if state["over"] and seen.headers["x-session"] == "first":
            return json_answer(b"{}", 401)
        return DONE

    auth = {
        "type": "session",
        "name": "X-Session",
        "login": {
            "endpoint": "/login",
            "body": {"user": "{{ conn.username }}", "pass": "{{ conn.password }}"},
        },
        "token": "body.session.id",
    }
    me = account(username="me", password=SECRET)
    async with far_side(answers(respond)) as far:
        for over in (False, False, True):
            state["over"] = over
            await desk.ask(far.url(), action("a"), as_=me, authentication=auth)
        targets = [seen.target for seen in far.requests]

    assert targets == ["/login", "/x", "/x", "/x", "/login", "/x"]


SEVERAL: dict[str, dict[str, dict[str, Any]]] = {
    "sessions": {
        name: {
            "type": "session", "name": "X-Token", "token": "body.access_token",
            "login": {"endpoint": f"/login/{name}"},
        }
        for name in ("one", "two")
    },
    "scopes": {
        name: {"type": "oauth2", "grant": "client_credentials", "tokenUrl": "/login", "scopes": [name]}
        for name in ("one", "two")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
async def test_each_way_in_of_an_app_has_a_token_of_its_own(desk: Desk, kind: str) -> None:
    def respond(seen: Seen) -> bytes:
        if not seen.target.startswith("/login"):
            return DONE
        which = "one" if b"one" in seen.target.encode() + seen.body else "two"
        return json_answer(json.dumps({"access_token": which}).encode())

    me = account(clientId="me", clientSecret=SECRET)
    async with far_side(answers(respond)) as far:
        for name in ("one", "two", "one"):
            await desk.ask(far.url(), action("a", auth=name), as_=me, auths=SEVERAL[kind])
        asked = [seen.headers for seen in far.requests if seen.target == "/x"]
        logins = len(far.requests) - len(asked)

    shown = [one.get("x-token") or one["authorization"].removeprefix("Bearer ") for one in asked]
    assert shown == ["one", "two", "one"]
    assert logins == 2


async def test_the_client_itself_is_given_a_token(desk: Desk) -> None:
    def respond(seen: Seen) -> bytes:
        if seen.target == "/token":
            assert (
                seen.body
                == f"grant_type=client_credentials&scope=a+b&client_id=me&client_secret={SECRET}".encode()
            )
            return json_answer(b'{"access_token": "made", "expires_in": 3600}')
        assert seen.headers["authorization"] == "Bearer made"
        return DONE

    async with far_side(answers(respond)) as far:
        auth = {
            "type": "oauth2",
            "grant": "client_credentials",
            "tokenUrl": far.url("/token"),
            "scopes": ["a", "b"],
        }
        me = account(clientId="me", clientSecret=SECRET)
        for _ in range(2):
            await desk.ask(far.url(), action("a"), as_=me, authentication=auth)

        assert [seen.target for seen in far.requests] == ["/token", "/x", "/x"]


async def test_the_time_of_a_try_runs_on_while_a_second_token_is_tried(desk: Desk) -> None:
    auth = {"type": "session", "login": {"endpoint": "/login"}, "token": "body.session"}
    heard: list[bool] = []

    def respond(seen: Seen) -> bytes:
        if seen.target == "/login":
            return json_answer(b'{"session": "a-session-of-someone"}')
        heard.append(context.answered)
        return json_answer(b"{}", 401) if len(heard) == 1 else DONE

    async with far_side(answers(respond)) as far:
        plan = desk.plan(action("a"), baseUrl=far.url(), authentication=auth)
        context = desk.context(plan)
        await desk.executor.execute(plan, {}, account(), context)

    assert (heard, context.answered) == ([False, False], True)


# -- the answer


async def test_what_is_selected_of_the_answer_is_the_output(desk: Desk) -> None:
    async with far_side(
        answers(json_answer(b'{"data": {"rows": [1, 2]}, "n": 9007199254740993}'))
    ) as far:
        assert await desk.ask(far.url(), action("a")) == {
            "data": {"rows": [1, 2]},
            "n": 9007199254740993,
        }
        assert await desk.ask(far.url(), action("a", select="body.data.rows")) == {
            "items": [1, 2], "meta": {"count": 2},
        }  # fmt: skip
        assert await desk.ask(far.url(), action("a", select="status")) == 200


async def test_lines_are_read_one_by_one(desk: Desk) -> None:
    async with far_side(answers(answer(200, b'{"a": 1}\n\n{"a": 2}\n'))) as far:
        assert (await desk.ask(far.url(), action("a", response="ndjson")))["items"] == [
            {"a": 1},
            {"a": 2},
        ]


async def test_pages_follow_the_link_as_it_is_given(desk: Desk) -> None:
    pages = {
        "/api/x?per_page=2": answer(
            200, b"[1, 2]", ("Content-Type", "application/json"),
            ("Link", '</repositories/7/x?page=2&per_page=2>; rel="next", </x?page=9>; rel="last"'),
        ),
        "/repositories/7/x?page=2&per_page=2": json_answer(b"[3]"),
    }  # fmt: skip
    paginate = {"type": "link", "size": {"query": "per_page", "max": 2}}
    async with far_side(answers_by_path(pages)) as far:
        output = await desk.ask(far.url("/api"), action("a", paginate=paginate))

    assert output == {"items": [1, 2, 3], "meta": {"count": 3, "pages": 2}}


@pytest.mark.parametrize(
    "link",
    [
        "http://evil.example/x",
        "http://127.0.0.1:1/x",
        "//evil.example/x",
        "http://desk.example.evil.example/",
    ],
)
async def test_a_page_on_a_foreign_host_is_refused_and_not_asked_for(desk: Desk, link: str) -> None:
    first = answer(
        200, b"[1]", ("Content-Type", "application/json"), ("Link", f'<{link}>; rel="next"')
    )
    async with far_side(answers(first)) as far:
        with pytest.raises(NodeError, match="none of its hosts") as caught:
            await desk.ask(
                far.url(),
                action("a", paginate={"type": "link"}),
                as_=account(token=SECRET),
                authentication={"type": "bearer"},
            )

        assert caught.value.code == "egress.foreign_host"
        assert len(far.requests) == 1


# -- hosts


async def test_a_request_to_a_foreign_host_is_refused_before_anything_is_sent(desk: Desk) -> None:
    async with far_side(answers(DONE)) as far, far_side(answers(DONE)) as foreign:
        with pytest.raises(NodeError) as caught:
            await desk.ask(
                far.url(),
                action("a", endpoint=foreign.url("/x")),
                as_=account(token=SECRET),
                authentication={"type": "bearer"},
            )

        assert caught.value.code == "egress.foreign_host"
        assert not caught.value.sent
        assert far.requests == foreign.requests == []
    assert desk.sent == 0


async def test_a_redirect_to_a_foreign_host_takes_no_credential_along() -> None:
    names = Names(
        {
            "desk.example": ["127.0.0.1"],
            "files.example": ["127.0.0.1"],
            "cdn.example": ["127.0.0.1"],
        }
    )
    async with client(names=names) as http, far_side(answers(DONE)) as target:
        desk = Desk(http)
        for host, expected in (("files.example", f"Bearer {SECRET}"), ("cdn.example", None)):
            there = f"http://{host}:{target.port}/there"
            async with far_side(answers(redirect(302, there))) as far:
                await desk.ask(
                    f"http://desk.example:{far.port}",
                    action("a"),
                    as_=account(token=SECRET),
                    authentication={"type": "bearer"},
                    hosts=["files.example"],
                )
            assert target.requests[-1].headers.get("authorization") == expected


@pytest.mark.parametrize(
    ("address", "grants", "reached"),
    [
        ("127.0.0.1", False, False),
        ("127.0.0.1", True, True),
        ("169.254.169.254", True, False),
        ("::ffff:169.254.169.254", True, False),
        ("100.100.100.200", True, False),
    ],
)
async def test_a_host_of_the_users_own_network_is_asked_only_where_the_connection_grants_it(
    address: str, grants: bool, reached: bool
) -> None:
    names = Names({"home.example": [address]})
    policy = EgressPolicy()
    async with client(policy=policy, names=names) as http, far_side(answers(DONE)) as far:
        me = Account(
            "connection", "main", {"token": SECRET}, frozenset({"token"}), grants_private=grants
        )
        ask = Desk(http).ask(
            f"http://home.example:{far.port}",
            action("a"),
            as_=me,
            authentication={"type": "bearer"},
            privateNetwork=True,
        )
        if reached:
            assert await ask == {"ok": True}
        else:
            with pytest.raises(NodeError) as caught:
                await ask
            assert caught.value.code == "egress.denied"
            assert not caught.value.sent
            assert far.requests == []


async def test_what_a_connection_grants_holds_for_its_host_alone() -> None:
    names = Names({"home.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    async with client(policy=EgressPolicy(), names=names) as http, far_side(answers(DONE)) as inner:
        async with far_side(answers(redirect(302, f"http://other.example:{inner.port}/"))) as far:
            me = Account(
                "connection", "main", {"token": SECRET}, frozenset({"token"}), grants_private=True
            )
            with pytest.raises(NodeError) as caught:
                await Desk(http).ask(
                    f"http://home.example:{far.port}",
                    action("a"),
                    as_=me,
                    authentication={"type": "bearer"},
                    privateNetwork=True,
                )

        assert caught.value.code == "egress.denied"
        assert inner.requests == []


@pytest.mark.parametrize(
    "domain",
    [
        "evil.example/",
        "evil.example#",
        "a@evil.example",
        "evil.example?",
        "",
        "a b",
        "evil.example\\",
    ],
)
async def test_a_field_cannot_lead_to_another_host(desk: Desk, domain: str) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(
            "https://{domain}.desk.example/api",
            action("a"),
            as_=Account("connection", "m", {"domain": domain}),
        )

    assert not caught.value.sent
    assert caught.value.code.startswith(("credential.", "connector."))


@pytest.mark.parametrize("value", ["..", ".", "../admin", "a/../../b"])
async def test_a_parameter_cannot_lead_to_another_path(desk: Desk, value: str) -> None:
    operation = action(
        "a", "GET", "/x/{p}/y", parameters=params(p={"x-in": "path", "x-encode": "path"})
    )
    with pytest.raises(NodeError, match="would lead to another address"):
        await desk.ask("https://desk.example", operation, {"p": value})


async def test_a_key_goes_where_the_far_side_looks_for_it(desk: Desk) -> None:
    post = action("a", "POST", "/x", effect="keyed")
    assert (await desk.sends(post, {}, key="k1")).headers["idempotency-key"] == "k1"
    own = {**post, "idempotency": {"header": "X-Request-Id"}}
    assert (await desk.sends(own, {}, key="k1")).headers["x-request-id"] == "k1"
    inside = {**post, "idempotency": {"body": "idempotency_key"}}
    assert json.loads((await desk.sends(inside, {"a": 1}, key="k1")).body) == {
        "a": 1,
        "idempotency_key": "k1",
    }


@pytest.mark.parametrize("body", [b"[]", b'{"total": 0, "items": []}', b'{"total": 0, "runs": []}'])
async def test_an_empty_list_is_one_whatever_is_around_it(desk: Desk, body: bytes) -> None:
    async with far_side(answers(json_answer(body))) as far:
        output = await desk.ask(far.url("/api"), action("a", paginate={"type": "link"}))

    assert output == {"items": [], "meta": {"count": 0, "pages": 1}}


async def test_a_base_url_may_end_in_a_slash(desk: Desk) -> None:
    async with far_side(answers(DONE)) as far:
        own = account(baseUrl=far.url("/"))
        await desk.ask("{{ conn.baseUrl }}/api", action("a", "GET", "/x"), as_=own)

        assert far.request.target == "/api/x"


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        ("cookie", "a; session=other", "http.bad_cookie"),
        ("cookie", "a\r\nX-Own: 1", "http.bad_header"),
        ("header", "a\r\nX-Own: 1", "http.bad_header"),
    ],
)
async def test_a_parameter_never_becomes_another_header_or_cookie(
    desk: Desk, place: str, value: str, code: str
) -> None:
    given = params(sid={"type": "string", "x-in": place})
    async with far_side(answers(DONE)) as far:
        with pytest.raises(NodeError) as caught:
            await desk.ask(far.url("/api"), action("a", parameters=given), {"sid": value})

        assert caught.value.code == code
        assert not caught.value.sent
        assert far.requests == []


# -- what is left out


async def test_a_field_that_a_connection_leaves_out_stands_by_its_default(desk: Desk) -> None:
    async with far_side(answers(DONE)) as far:
        fields = {
            "baseUrl": {"type": "string", "default": far.url("/v2")},
            "team": {"type": "string", "default": "blue"},
        }
        asked = action("a", send={"headers": {"x-team": "{{ conn.team }}"}})
        await desk.ask("{{ conn.baseUrl }}", asked, connection={"fields": {"properties": fields}})

        assert far.request.target == "/v2/x"
        assert far.request.headers["x-team"] == "blue"


async def test_an_operation_at_an_address_of_its_own_stays_there_unless_another_is_chosen(
    desk: Desk,
) -> None:
    fields = {"properties": {"baseUrl": {"default": "http://usual.example"}}}
    async with far_side(answers(DONE)) as far:
        asked = action("a", baseUrl=far.url("/uploads"))
        await desk.ask("http://usual.example", asked, connection={"fields": fields})

        assert far.request.target == "/uploads/x"


async def test_an_update_sends_no_default_that_nobody_asked_for(desk: Desk) -> None:
    schema = {"properties": {"title": {}, "state": {"default": "open"}}}
    plans = {
        method: desk.plan(action("a", method, parameters=schema)) for method in ("POST", "PATCH")
    }

    sent = {method: plan.schema.fitted({"title": "t"}) for method, plan in plans.items()}

    assert sent == {"POST": {"title": "t", "state": "open"}, "PATCH": {"title": "t"}}


@pytest.mark.parametrize(
    "sub", ["evil.test/", "evil.test?", "evil.test#", "a@evil.test", "evil.test\\"]
)
async def test_a_field_in_a_host_name_names_no_other_host(desk: Desk, sub: str) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask("https://{{ conn.sub }}.example.com", action("a"), as_=account(sub=sub))

    assert (caught.value.code, caught.value.sent) == ("credential.bad_host", False)


async def test_a_secret_is_not_cut_through_so_that_its_half_is_told(desk: Desk) -> None:
    said = json_answer(json.dumps({"message": f"{'x' * 190} {SECRET}"}).encode(), status=400)
    live = LIVE.set(Redactor([SECRET]))
    async with far_side(answers(said)) as far:
        with pytest.raises(NodeError) as caught:
            await desk.ask(far.url(), action("a"))
    LIVE.reset(live)

    assert SECRET[:6] not in caught.value.message


async def test_an_idempotency_key_that_has_no_place_in_the_body_is_not_left_out(desk: Desk) -> None:
    keyed = action("a", "POST", idempotency={"body": "key"}, parameters=params(all={"x-as": "$"}))
    async with far_side(answers(DONE)) as far:
        with pytest.raises(NodeError) as caught:
            await desk.ask(far.url(), keyed, {"all": [1, 2]}, key="k1")

        assert (caught.value.code, far.requests) == ("operation.no_key", [])


async def test_pages_that_are_too_much_together_end_the_walk(desk: Desk) -> None:
    numbers = itertools.count()
    body = json.dumps([{"text": "x" * 1_000_000}]).encode()

    def page(seen: Seen) -> bytes:
        link = f'<{far.url("/x")}?after={next(numbers)}>; rel="next"'
        return answer(200, body, ("Content-Type", "application/json"), ("Link", link))

    paging = {"type": "link", "maxItems": 1_000, "maxPages": 1_000}
    async with far_side(answers(page)) as far:
        with pytest.raises(NodeError) as caught:
            await desk.ask(far.url(), action("a", paginate=paging))

    assert caught.value.code == "response.too_large"
    assert next(numbers) == 17  # of the 16 that may be held, one too many
