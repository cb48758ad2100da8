"""Headers that carry secrets are not shown; everything else of a stored text is, to the byte."""

from __future__ import annotations

import json
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.json import dumps
from stackd.web.redaction import without_secrets

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SECRET = "s3cret-value"


@pytest.mark.parametrize(
    "name",
    ["authorization", "cookie", "x-api-key", "Proxy-Authorization", "Set-Cookie", "x-apikey",
     "X-Gitlab-Token", "x-webhook-secret", "x-session-id", "x-password"],
)  # fmt: skip
def test_a_header_that_carries_a_secret_is_not_shown(name: str) -> None:
    given = {"body": {"a": 1}, "headers": {"host": "here", name: SECRET, "x-tag": "t"}, "query": {}}

    shown = json.loads(without_secrets(dumps(given)))

    assert shown == {**given, "headers": {**given["headers"], name: "(redacted)"}}


@pytest.mark.parametrize(
    "value",
    [SECRET + '"}],:{', "\\" + SECRET, [SECRET, "b]"], "é" + SECRET, ""],
    ids=["brackets", "backslash", "list", "letters", "empty"],
)
def test_whatever_the_secret_holds_nothing_of_it_is_shown_and_json_stays_json(
    value: object,
) -> None:
    text = json.dumps({"headers": {"authorization": value, "accept": "*/*"}}, indent=1).encode()

    shown = without_secrets(text)

    assert json.loads(shown) == {"headers": {"authorization": "(redacted)", "accept": "*/*"}}


def test_headers_are_found_at_every_depth_of_an_output() -> None:
    answer = {"status": 200, "headers": {"set-cookie": SECRET}, "body": None}
    text = dumps({"a": answer, "list": [{"deeper": {"headers": {"cookie": SECRET}}}]})

    assert SECRET.encode() not in without_secrets(text)


@pytest.mark.parametrize(
    "value",
    [
        {"body": {"authorization": "of a book", "cookie": "chocolate"}},
        {"headers": ["authorization", "x"], "more": {"headers": "authorization"}},
        {"body": '"headers":{"authorization":"quoted"}'},
        {"body": 'x"headers', "headers": {"accept": "authorization"}},
    ],
    ids=["body", "no-map", "in-a-text", "value"],
)  # fmt: skip
def test_what_is_no_header_is_shown(value: object) -> None:
    assert without_secrets(dumps(value)) == dumps(value)


@given(JSON)
def test_a_text_without_such_headers_is_left_to_the_byte(value: object) -> None:
    text = dumps({"headers": {"x-tag": "y"}, "body": value})

    if b"headers" not in dumps(value):
        assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"headers":{"x":"' + b"token" * 400_000 + b'"}}', id="name-in-a-value"),
        pytest.param(b'{"headers":{"x":"' + b'\\"' * 1_000_000 + b'"}}', id="quotes"),
        pytest.param(b'{"headers":{"a":"' + b'"headers":{"a":"'[1:] * 100_000 + b'"}}', id="open"),
        pytest.param(b"[" + b'"headers",' * 200_000 + b"0]", id="name-often"),
        pytest.param(b"[" + b'{"headers":{"cookie":"c"}},' * 70_000 + b"0]", id="headers-often"),
    ],
)
def test_no_text_takes_longer_than_its_length_explains(text: bytes) -> None:
    began = time.thread_time()

    without_secrets(text)

    assert time.thread_time() - began < 3  # linear: some tenths; quadratic: minutes
