"""What an answer of a far side means: done, not done, done in vain, or to be asked again later. Pure.

The codes and the beginnings of messages are the origin's: `not_found: <the far side's words>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from stackd.core.clock import epoch
from stackd.core.errors import NodeError
from stackd.core.json import Json
from stackd.core.redact import cut
from stackd.http.message import Response
from stackd.http.reading import (
    LONGEST_WORDS,
    RETRY_AFTER_LONGEST,
    is_declined,
    kind_of_status,
    message_in,
    retry_after,
    waited,
    words_of,
)
from stackd.integrations.definition import ErrorRule, LimitsFrom, Reset, Status
from stackd.integrations.expressions import Reader

CODES: Final = {
    400: "validation_error",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    422: "unprocessable_entity",
    429: "rate_limit_exceeded",
}
# class of an error rule: (code, kind as a retry policy sees it)
_CLASSES: Final = {
    "auth": ("unauthorized", "rejected"),
    "forbidden": ("forbidden", "rejected"),
    "not_found": ("not_found", "rejected"),
    "invalid": ("validation_error", "rejected"),
    "conflict": ("conflict", "rejected"),
    "rate_limited": ("rate_limit_exceeded", "rate_limit"),
    "transient": ("server_error", "service_unavailable"),
    "permanent": ("server_error", "rejected"),
}
_DURATION: Final = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?"
)
_NUMBER: Final = re.compile(r"\d{1,18}(?:\.\d{1,9})?")
EPOCH_AFTER: Final = 1_000_000_000  # a number from here on is an instant, one from 10^12 on in ms


@dataclass(frozen=True, slots=True)
class Limit:
    """What a far side told of its limit with an answer. `reset`: seconds until it begins anew."""

    remaining: float | None = None
    reset: float | None = None


_UNTOLD: Final = Limit()
_USUAL: Final = tuple(
    (f"{prefix}remaining", f"{prefix}reset")
    for prefix in ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
)


def matches(status: int, wanted: Iterable[Status]) -> bool:
    """Whether `wanted` names `status`, by itself or by its class."""
    return any(one == status or one == f"{status // 100}xx" for one in wanted)


def failure(
    response: Response,
    reader: Reader,
    rules: Iterable[ErrorRule],
    *,
    app: str,
    allowed: Iterable[Status],
    limits: LimitsFrom | None,
    now: float,
) -> NodeError | None:
    """Why an answer is none that was hoped for; None if it is one.

    The first rule that holds decides; then the status, then what APIs say beside a 200.
    """
    for rule in rules:
        if (rule.status and not matches(response.status, rule.status)) or (
            rule.when is not None and not reader.truth(rule.when)
        ):
            continue
        if rule.as_ in ("ignore", "success"):
            return None
        code, kind = _CLASSES[rule.as_]
        words = None if rule.message is None else reader.text(rule.message)
        wait = None
        if rule.retry_after is not None:
            wait = read_reset(rule.retry_after, reader, now=now)
        return _error(response, reader, code, kind, limits, words=words, wait=wait, now=now)
    status = response.status
    if status >= 400:
        if matches(status, allowed):
            return None
        code = CODES.get(status, "server_error" if status >= 500 else "unknown_error")
        return _error(response, reader, code, kind_of_status(status), limits, now=now)
    return _refused_in_body(reader, app)


def _error(
    response: Response,
    reader: Reader,
    code: str,
    kind: str,
    limits: LimitsFrom | None,
    *,
    words: str | None = None,
    wait: float | None = None,
    now: float,
) -> NodeError:
    if wait is None:
        wait = retry_after(response, now=now)
    if kind == "rate_limit":
        wait = _longest(wait, limit_of(response, reader, limits, now=now).reset)
    words = words or _words(response, reader) or f"HTTP {response.status}"
    # A limit that was met is the far side's word that it did nothing, whichever status that comes with.
    declined = is_declined(response, wait) or (kind == "rate_limit" and response.redirects == 0)
    return NodeError(
        f"{code}: {cut(words, LONGEST_WORDS)}",
        kind=kind,
        code=code,
        sent=True,
        answered=True,
        declined=declined,
        retry_after=wait,
        http_status=response.status,
    )


def _longest(*waits: float | None) -> float | None:
    given = [one for one in waits if one is not None]
    return min(max(given), RETRY_AFTER_LONGEST) if given else None


def _words(response: Response, reader: Reader) -> str | None:
    """The far side's words: of problem details, GraphQL, a list of errors, or what stands where others put it."""
    body = reader.body
    if isinstance(body, dict):
        for one in (body.get("errors"), body.get("error_description"), body.get("description")):
            if isinstance(one, list) and one:
                first = one[0]
                found = first if isinstance(first, str) else message_in(first)
                if found:
                    return found
            elif isinstance(one, str) and one:
                return one
    return None if body in ({}, []) else words_of(response)


def _refused_in_body(reader: Reader, app: str) -> NodeError | None:
    """The failure that a body tells of beside a status that is none: `ok: false`, or an `error`."""
    body = reader.body
    if not isinstance(body, dict) or body.get("ok") is True:
        return None
    if body.get("ok") is False:
        code = f"{app.replace('-', '_')}_error"
    elif body.get("error"):
        code = "unknown_error"
    else:
        return None
    given = body.get("error")
    words = given if isinstance(given, str) else message_in(body) or message_in(given)
    return NodeError(
        f"{code}: {cut(words or 'the answer says that it failed', LONGEST_WORDS)}",
        kind="rejected",
        code=code,
        sent=True,
        answered=True,
    )


# -- when to come again


def limit_of(response: Response, reader: Reader, limits: LimitsFrom | None, *, now: float) -> Limit:
    """What an answer tells of the far side's limit: where the definition says, else in the usual fields."""
    headers = response.headers
    if limits is not None:
        remaining = _number(headers.get(limits.remaining.lower(), "")) if limits.remaining else None
        reset = None if limits.reset is None else read_reset(limits.reset, reader, now=now)
        return Limit(remaining, reset)
    if (field := headers.get("ratelimit")) is not None:
        return _rate_limit_field(field)
    for left, reset_at in _USUAL:
        if (text := headers.get(left)) is not None:
            found = headers.get(reset_at, "")
            return Limit(_number(text), read_moment(found, "auto", now=now))
    return _UNTOLD


def _rate_limit_field(field: str) -> Limit:
    """The tightest policy of a RateLimit field (draft-ietf-httpapi-ratelimit-headers-11, 5): `"default";r=50;t=30`."""
    found: list[Limit] = []
    for item in field.split(","):
        params = dict(
            part.strip().partition("=")[::2] for part in item.split(";")[1:] if "=" in part
        )
        found.append(Limit(_number(params.get("r", "")), _number(params.get("t", ""))))
    told = [one for one in found if one.remaining is not None]
    return min(told, key=lambda one: one.remaining or 0.0, default=Limit())


def read_reset(reset: Reset, reader: Reader, *, now: float) -> float | None:
    """Seconds until the moment that an answer names; None if it names none."""
    if reset.header is not None:
        value: Json = reader.headers.get(reset.header.lower())
    else:
        value = reader.value(reset.body)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.9f}".rstrip("0").rstrip(".")
    return read_moment(value, reset.form, now=now) if isinstance(value, str) else None


def read_moment(text: str, form: str, *, now: float) -> float | None:
    """Seconds from `now` to what `text` means in `form`, at least 0 and at most a day; None if it is nothing."""
    text = text.strip()
    wait: float | None = None
    number = _number(text)
    match form:
        case "delta_s":
            wait = number
        case "delta_ms":
            wait = None if number is None else number / 1000
        case "epoch_s":
            wait = None if number is None else number - now
        case "epoch_ms":
            wait = None if number is None else number / 1000 - now
        case "iso8601":
            wait = _until(text, now)
        case "http_date":
            wait = None if number is not None else waited(text, now=now)
        case "duration":
            wait = _duration(text)
        case _:
            if number is not None:
                is_ms = number >= EPOCH_AFTER * 1000
                at = number / 1000 if is_ms else number
                wait = at - now if number >= EPOCH_AFTER else number
            else:
                wait = _first_of(_duration(text), _until(text, now), waited(text, now=now))
    return None if wait is None else min(max(wait, 0.0), RETRY_AFTER_LONGEST)


def _first_of(*found: float | None) -> float | None:
    return next((one for one in found if one is not None), None)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) and text.isascii() else None


def _duration(text: str) -> float | None:
    """Seconds of `6m0s`, `1h2m`, `250ms`."""
    found = _DURATION.fullmatch(text)
    if not text or found is None or not text.isascii():
        return None
    days, hours, minutes, seconds, ms = (float(part or 0) for part in found.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds + ms / 1000


def _until(text: str, now: float) -> float | None:
    try:
        return epoch(text) - now
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now
