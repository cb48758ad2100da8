"""What an answer means: the status, what APIs say beside a 200, and when to come again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from stackd.http.message import Response
from stackd.integrations.answers import failure, limit_of, matches, read_moment
from stackd.integrations.definition import ErrorRule, LimitsFrom
from stackd.integrations.expressions import Reader

NOW = 1_800_000_000.0


def told(
    status: int,
    body: Any = None,
    *,
    rules: list[dict[str, Any]] | None = None,
    limits: dict[str, Any] | None = None,
    content_type: str = "application/json",
    app: str = "desk",
    allowed: tuple[Any, ...] = (),
    redirects: int = 0,
    **headers: str,
):
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = Response(status, named, text, "https://a.example/x", content_type, None, redirects)
    reader = Reader(answer, None if isinstance(body, bytes) else body, {}, now=NOW)
    return failure(
        answer,
        reader,
        [ErrorRule.model_validate(rule) for rule in rules or []],
        app=app,
        allowed=allowed,
        limits=None if limits is None else LimitsFrom.model_validate(limits),
        now=NOW,
    )


@pytest.mark.parametrize(
    ("status", "code", "kind", "declined"),
    [
        (400, "validation_error", "rejected", False),
        (401, "unauthorized", "rejected", False),
        (403, "forbidden", "rejected", False),
        (404, "not_found", "rejected", False),
        (409, "conflict", "rejected", False),
        (422, "unprocessable_entity", "rejected", False),
        (429, "rate_limit_exceeded", "rate_limit", True),
        (418, "unknown_error", "rejected", False),
        (500, "server_error", "server_error", False),
        (503, "server_error", "service_unavailable", False),
    ],
)
def test_a_status_has_the_origins_code_and_its_words(status, code, kind, declined):
    error = told(status, {"message": "so it is"})

    assert (error.code, error.kind, error.declined) == (code, kind, declined)
    assert error.message == f"{code}: so it is"
    assert error.http_status == status
    assert error.sent
    assert error.answered


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"type": "about:blank", "title": "Bad", "detail": "the amount is negative"},
            "the amount is negative",
        ),
        ({"error": {"message": "No such customer"}}, "No such customer"),
        ({"errors": [{"message": "field x"}]}, "field x"),
        ({"errors": ["plain"]}, "plain"),
        ({"error": "invalid_grant", "error_description": "code expired"}, "code expired"),
        (
            {"description": "Bad Request: chat not found", "ok": False},
            "Bad Request: chat not found",
        ),
        ({}, "HTTP 400"),
        (b"", "HTTP 400"),
    ],
)
def test_the_far_sides_words_are_found_where_apis_put_them(body, words):
    assert told(400, body).message == f"validation_error: {words}"


@pytest.mark.parametrize(
    "body", [{"ok": True, "error": "x"}, {"ok": True}, {"error": None}, [1], None, {"error": ""}]
)
def test_a_200_that_says_nothing_of_a_failure_is_an_answer(body):
    assert told(200, body) is None


def test_a_200_that_says_it_failed_has():
    assert told(200, {"ok": False, "error": "channel_not_found"}, app="slack").message == (
        "slack_error: channel_not_found"
    )
    error = told(200, {"error": {"message": "quota"}})
    assert (error.code, error.message) == ("unknown_error", "unknown_error: quota")
    assert error.answered
    assert not error.declined


def test_the_first_rule_that_holds_decides():
    rules = [
        {
            "status": [403, 429],
            "when": "headers['x-ratelimit-remaining'] == '0'",
            "as": "rate_limited",
        },
        {"status": "4xx", "as": "not_found", "message": "gone: {{ body.id }}"},
    ]

    limited = told(403, {"id": 7}, rules=rules, x_ratelimit_remaining="0", retry_after="7")
    assert (limited.code, limited.kind, limited.retry_after, limited.declined) == (
        "rate_limit_exceeded", "rate_limit", 7.0, True,
    )  # fmt: skip
    assert told(403, {"id": 7}, rules=rules).message == "not_found: gone: 7"


def test_a_rule_can_make_an_answer_of_a_failure_and_the_reverse():
    assert told(404, {}, rules=[{"status": 404, "as": "ignore"}]) is None
    assert told(
        200, {"state": "no"}, rules=[{"when": "body.state == 'no'", "as": "invalid"}]
    ).code == ("validation_error")
    assert told(200, {"error": "fine"}, rules=[{"status": 200, "as": "success"}]) is None


def test_a_status_that_is_allowed_is_an_answer():
    assert told(404, {}, allowed=(404,)) is None
    assert told(404, {}, allowed=("4xx",)) is None


def test_after_a_redirect_a_refusal_proves_nothing():
    assert not told(429, {}, redirects=1).declined


def test_statuses_match_by_themselves_and_by_class():
    assert matches(429, (429,))
    assert matches(429, ("4xx",))
    assert not matches(500, ("4xx", 429))


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("30", "delta_s", 30.0),
        ("1500", "delta_ms", 1.5),
        (str(int(NOW) + 60), "epoch_s", 60.0),
        (str((int(NOW) + 60) * 1000), "epoch_ms", 60.0),
        ("2027-01-15T08:01:00Z", "iso8601", 60.0),
        ("2027-01-15T08:01:00", "iso8601", 60.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", "http_date", 60.0),
        ("6m0s", "duration", 360.0),
        ("1h2m3s", "duration", 3723.0),
        ("250ms", "duration", 0.25),
        ("1.5s", "duration", 1.5),
        ("30", "auto", 30.0),
        ("0.5", "auto", 0.5),
        (str(int(NOW) + 60), "auto", 60.0),
        (str((int(NOW) + 60) * 1000), "auto", 60.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", "auto", 60.0),
        ("2027-01-15T08:01:00Z", "auto", 60.0),
        ("1m30s", "auto", 90.0),
        (str(int(NOW) - 60), "epoch_s", 0.0),
        ("999999999", "delta_s", 86_400.0),
        ("soon", "auto", None),
        ("", "auto", None),
        ("-5", "delta_s", None),
        ("٣", "delta_s", None),
        ("9" * 400, "auto", 86_400.0),
    ],
)
def test_a_moment_is_read_in_each_form(text, form, expected):
    assert read_moment(text, form, now=NOW) == expected


def test_a_limit_is_read_from_the_fields_of_all_drafts():
    def limit(limits: dict[str, Any] | None = None, **headers: str):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = Response(200, named, b"", "https://a.example", None, None)
        rules = None if limits is None else LimitsFrom.model_validate(limits)
        found = limit_of(answer, Reader(answer, None, {}, now=NOW), rules, now=NOW)
        return found.remaining, found.reset

    assert limit(ratelimit='"default";r=50;t=30') == (50.0, 30.0)
    assert limit(ratelimit='"burst";r=9;t=1, "daily";r=2;t=3600') == (2.0, 3600.0)
    assert limit(ratelimit_remaining="3", ratelimit_reset="12") == (3.0, 12.0)
    assert limit(x_ratelimit_remaining="0", x_ratelimit_reset=str(int(NOW) + 5)) == (0.0, 5.0)
    assert limit(
        {"remaining": "X-Left", "reset": {"header": "X-Again", "form": "delta_ms"}},
        x_left="4",
        x_again="500",
    ) == (4.0, 0.5)
    assert limit() == (None, None)


def test_a_limit_that_is_met_waits_until_it_begins_anew():
    error = told(
        429, {}, x_ratelimit_remaining="0", x_ratelimit_reset=str(int(NOW) + 90), retry_after="5"
    )

    assert error.retry_after == 90.0
