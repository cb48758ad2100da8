"""Secrets of headers and queries are not shown; everything else of a stored text is, to the byte."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.json import MAX_DEPTH, dumps
from stackd.core.secret_names import is_secret
from stackd.runtime.links import Links
from stackd.web import redaction
from stackd.web.redaction import LARGEST_MAP, SHOWN

SECRET = "s3cret-value"


def without_secrets(text: bytes, **how: int) -> bytes:
    return b"".join(redaction.without_secrets(text, **how))


# -- which names


@pytest.mark.parametrize(
    "name",
    ["authorization", "Proxy-Authorization", "x-auth", "X-Auth-Key", "oauth_verifier", "x-authz",
     "cookie", "Set-Cookie", "x-api-key", "x-apikey", "X_Api_Key", "apiKey", "key", "keyId", "AWSKeyId",
     "Ocp-Apim-Subscription-Key", "x-functions-key", "X-Access-Key", "X-Amz-Credential", "X-JWT",
     "X-Goog-Iap-Jwt-Assertion", "X-Passwd", "x-password", "passphrase", "X-Gitlab-Token", "token",
     "access_token", "ToKeN", "COOKIE", "idToken", "x-webhook-secret", "x-session-id", "PHPSessionId",
     "X-Hub-Signature-256", "sig", "keys[]", "key1", "x-idempotency-key-secret"],
)  # fmt: skip
def test_a_name_that_speaks_of_a_secret_is_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["host", "accept", "content-type", "user-agent", "if-match", "etag", "x-request-id", "authority",
     ":authority", "author", "authors", "keyword", "keywords", "keyboard", "design", "assignee",
     "Idempotency-Key", "X-Idempotency-Key", "idempotencyKey", "idempotency_key", "sec-websocket-key",
     "surrogate-key", "WWW-Authenticate", "access-control-allow-credentials", "compass",
     "x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-limit"],
)  # fmt: skip
def test_a_name_that_only_looks_so_is_shown(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("name", ["ratelimit-" * 6000 + "token", "aA" * 30_000 + "key"])
def test_a_long_name_is_soon_known(name: str) -> None:
    began = time.thread_time()

    assert is_secret(name)

    assert time.thread_time() - began < 0.3  # some hundredths; tried as a harmless one, a second


# -- where


@pytest.mark.parametrize("key", ["headers", "query", "Headers", "QUERY"])
def test_a_secret_in_such_a_map_is_not_shown(key: str) -> None:
    given = {"body": {"a": 1}, key: {"host": "here", "x-api-key": SECRET, "x-tag": "t"}, "b": {}}

    shown = json.loads(without_secrets(dumps(given)))

    assert shown == {**given, key: {**given[key], "x-api-key": SHOWN}}


@pytest.mark.parametrize(
    "value",
    [SECRET + '"}],:{', "\\" + SECRET, [SECRET, "b]"], "é" + SECRET, "", 5, None, True, {}, [["a"], "b"],
     {"scheme": "b", "v": SECRET}, [{"v": SECRET}], {"headers": {"a": SECRET}}],
    ids=["brackets", "backslash", "list", "letters", "empty", "number", "null", "true", "empty-map",
         "list-in-list", "map", "map-in-list", "headers"],
)  # fmt: skip
def test_whatever_the_secret_is_nothing_of_it_is_shown_and_json_stays_json(value: object) -> None:
    text = json.dumps({"headers": {"authorization": value, "accept": "*/*"}}, indent=1).encode()

    shown = without_secrets(text)

    assert json.loads(shown) == {"headers": {"authorization": SHOWN, "accept": "*/*"}}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"headers":{"m":{"x":1},"authorization":"LEAK"}}', id="beside-a-map"),
        pytest.param('{"headers":{"n":[{}],"cookie":"LEAK"}}', id="beside-a-list"),
        pytest.param('{"headers":{"auth\\u006frization":"LEAK"}}', id="escaped-name"),
        pytest.param('{"he\\u0061d\\u0045rs":{"cookie":"LEAK"}}', id="escaped-key"),
        pytest.param('{"headers" \n\t:\r {  "cookie"  :  "LEAK"  }  }', id="blanks"),
        pytest.param('{"a":[{"deeper":{"headers":{"set-cookie":"LEAK"}}}]}', id="deep"),
        pytest.param('{"headers":{"a":[{"query":{"token":"LEAK"}}]}}', id="in-each-other"),
        pytest.param('{"x":"\\\\","headers":{"cookie":"LEAK"}}', id="after-a-backslash"),
        pytest.param('{"headers":"headers","query":{"token":"LEAK"}}', id="after-a-text"),
    ],
)
def test_a_secret_is_found_however_it_is_written(text: str) -> None:
    shown = without_secrets(text.encode())

    assert b"LEAK" not in shown
    assert json.loads(shown)
    assert SHOWN.encode() in shown


def test_of_a_map_that_is_too_large_nothing_is_shown_and_what_follows_is() -> None:
    fits = {"a": "x" * (LARGEST_MAP - len('{"a":""}'))}
    over = {"a": "x" * (LARGEST_MAP - len('{"a":""}') + 1)}

    assert json.loads(without_secrets(dumps([{"headers": fits}, 1]))) == [{"headers": fits}, 1]
    assert json.loads(without_secrets(dumps([{"headers": over}, 1]))) == [{"headers": SHOWN}, 1]


def test_a_map_as_deep_as_json_may_be_is_shown_but_for_its_secrets() -> None:
    deep = json.loads("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))
    given = {"headers": {"a": deep, "cookie": SECRET}}

    shown = without_secrets(dumps(given))

    assert shown == dumps({"headers": {"a": deep, "cookie": SHOWN}})


@pytest.mark.parametrize(
    "inside",
    [["", "]"] * 40_000, ["[" * 100_000], ["\\" * 100_000, '"' * 100_000], [[[]], [{}], {"a": [1]}] * 8000,
     [0] * 100_000, {str(n): n for n in range(20_000)}, [[[0]] * 300] * 100, "é" * 40_000],
    ids=["texts", "brackets-in-a-text", "escapes", "nest", "numbers", "members", "lists", "letters"],
)  # fmt: skip
def test_a_map_that_is_too_large_is_found_to_its_end(inside: object) -> None:
    given = [{"query": {"token": inside}, "after": 1}]

    assert json.loads(without_secrets(dumps(given))) == [{"query": SHOWN, "after": 1}]


@pytest.mark.parametrize(
    "value",
    [
        {"body": {"authorization": "of a book", "cookie": "chocolate"}},
        {"headers": ["authorization", "x"], "more": {"headers": "authorization"}},
        {"body": '"headers":{"authorization":"quoted"}'},
        {"body": 'x"headers', "headers": {"accept": "authorization"}},
        {'x"headers': {"cookie": "c"}, "xheaders": {"cookie": "c"}, "headersx": {"cookie": "c"}},
        {"headers": {"deeper": {"cookie": "of no header"}}},
    ],
    ids=["body", "no-map", "in-a-text", "value", "other-keys", "deeper"],
)
def test_what_is_no_header_is_shown(value: object) -> None:
    assert without_secrets(dumps(value)) == dumps(value)


# -- any text

NAME = st.sampled_from(
    ["headers", "Query", "x-token", "Authorization", "a", "author", "key", '"', '\\"headers', "é"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{}:,é', max_size=6) | NAME,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME | st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
LAYOUT = st.sampled_from(
    [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1, "separators": (" ,", " : ")}]
)  # fmt: skip


def plainly(value: object, *, hides: bool = False) -> object:
    """What is to be shown of `value`, without regard to time or bytes."""
    if isinstance(value, list):
        return [plainly(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        name: SHOWN
        if hides and is_secret(name)
        else plainly(inner, hides=name.lower() in ("headers", "query"))
        for name, inner in value.items()
    }


def escaped(text: bytes) -> bytes:
    """The same JSON, with every letter a of it as an escape."""
    return text.replace(b"a", b"\\u0061").replace(b"f\\u0061lse", b"false")


@given(JSON, LAYOUT, st.integers(1, 80), st.booleans())
def test_any_json_is_shown_as_it_is_but_for_secrets(
    value: object, layout: dict, piece: int, escapes: bool
) -> None:
    text = json.dumps(value, **layout).encode()
    text = escaped(text) if escapes and b"\\" not in text else text

    shown = without_secrets(text, piece=piece)

    expected = plainly(value)
    assert json.loads(shown) == expected
    if expected == value:
        assert shown == text


@given(st.binary(max_size=40) | st.text('{}[]":,\\hx ').map(str.encode))
def test_what_is_no_json_ends_too(text: bytes) -> None:
    without_secrets(b'{"headers":' + text, piece=3)


def test_a_large_text_is_given_back_in_parts_of_which_none_is_tiny() -> None:
    text = b"[" + b'{"headers":{"cookie":"c"}},' * 50_000 + b'"' + b"x" * 3_000_000 + b'"]'

    parts = redaction.without_secrets(text)

    assert json.loads(b"".join(parts))[:2] == [{"headers": {"cookie": SHOWN}}] * 2
    assert all(redaction.PART <= len(part) < 2 * redaction.PART for part in parts[:-1])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"headers":{"x":"' + b"token" * 400_000 + b'"}}', id="name-in-a-value"),
        pytest.param(b'{"headers":{"x":"' + b'\\"' * 1_000_000 + b'"}}', id="quotes"),
        pytest.param(b'{"headers":' * 400 + b'{"x":"' + b"y" * 2_000_000 + b'"}' + b"}" * 400, id="open"),
        pytest.param((b'{"query":' * 400 + b'{"x":"' + b"y" * 9000 + b'"}' + b"}" * 400) * 150, id="nest"),
        pytest.param(b"[" + b'"headers",' * 200_000 + b"0]", id="name-often"),
        pytest.param(b"[" + b'{"headers":{"cookie":"c"}},' * 70_000 + b"0]", id="headers-often"),
        pytest.param(b'{"headers"' + b" " * 2_000_000 + b":1}", id="blanks"),
        pytest.param(b'{"headers":{"x":[' + b"[" * 400_000 + b"]" * 400_000 + b"]}}", id="brackets"),
    ],
)  # fmt: skip
def test_no_text_takes_longer_than_its_length_explains(text: bytes) -> None:
    began = time.thread_time()

    without_secrets(text)

    assert time.thread_time() - began < 3  # linear: some tenths; quadratic: minutes


# -- links


AS_WRITTEN = {
    "as it is": lambda url: url,
    "in Go's JSON": lambda url: url.replace("&", "\\u0026"),
    "in HTML": lambda url: url.replace("&", "&amp;"),
    "in another URL": lambda url: quote(url, safe=""),
    "the other way round": lambda url: "{}resume?{}&{}".format(
        url.partition("resume?")[0], *reversed(url.partition("resume?")[2].split("&"))
    ),
}


@pytest.mark.parametrize("how", AS_WRITTEN)
def test_a_link_of_a_node_run_is_shown_without_what_makes_it_good(how: str) -> None:
    url = Links("k" * 32, "http://box").url("e1", "each[3].ask")
    written = AS_WRITTEN[how](url)
    text = b'{"mail": "see %b&is=yes", "n": ["%b"]}' % (written.encode(), written.encode())

    shown = without_secrets(text)

    assert json.loads(shown).keys() == {"mail", "n"}
    for secret in re.findall("=([^&]{43})", url):
        assert secret.encode() not in shown
    assert shown.count(SHOWN.encode()) == 4
    assert b"is=yes" in shown


def test_what_only_looks_like_a_link_is_shown() -> None:
    text = dumps({"a": "/resume?token=short&signature=short"})

    assert without_secrets(text) == text
