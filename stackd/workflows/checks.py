"""What a parameter of a node may be: each check tells what is wrong with a value, or None."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from stackd.core.clock import epoch, is_instant
from stackd.core.json import Json
from stackd.core.names import nearest

Check = Callable[[Json], str | None]

WEBHOOK_PATH: Final = re.compile(r"[A-Za-z0-9_~.-]+(/[A-Za-z0-9_~.-]+)*")
TLS_VERSIONS: Final = ("1.2", "1.3")
RESERVED_CASES: Final = ("success", "error", "default")
METHODS: Final = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

_STEP: Final = re.compile(
    r"""\.?(?P<key>[^\s.\[\]"']+) | \[ (?: (?P<index>-?[0-9]{1,9}) | (?P<all>\*)
        | (?P<quoted>"(?:[^"\\]|\\.)*") ) \]""",
    re.VERBOSE,
)


def text(value: Json) -> str | None:
    return None if isinstance(value, str) else "must be text"


def anything(_: Json) -> str | None:
    return None


def mapping(value: Json) -> str | None:
    return None if isinstance(value, dict) else "must be a map"


def boolean(value: Json) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(low: float, high: float) -> Check:
    def check(value: Json) -> str | None:
        if is_number(value) and low <= value <= high:
            return None
        return f"must be a number from {low:,.15g} to {high:,.15g}"

    return check


def method(value: Json) -> str | None:
    ok = isinstance(value, str) and value.upper() in METHODS
    return None if ok else f"must be one of {', '.join(METHODS)}"


def methods(value: Json) -> str | None:
    if isinstance(value, list) and value and all(method(item) is None for item in value):
        return None
    return f"must be a list of {', '.join(METHODS)}"


def webhook_path(value: Json) -> str | None:
    ok = (
        isinstance(value, str)
        and len(value) <= 200
        and WEBHOOK_PATH.fullmatch(value)
        and not {".", ".."} & set(value.split("/"))
    )
    return None if ok else "must be segments of letters, digits, _ ~ . and -, joined by /"


def url(value: Json) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must be an http or https URL with a host"
    return None


def headers(value: Json) -> str | None:
    if not isinstance(value, dict):
        return "must be a map"
    for name, item in value.items():
        if isinstance(item, dict | list) or item is None:
            return f"{name!r} must be text or a number"
    return None


def scalars(value: Json) -> str | None:
    if not isinstance(value, dict):
        return "must be a map"
    for name, item in value.items():
        for one in item if isinstance(item, list) else [item]:
            if isinstance(one, dict | list):
                return f"{name!r} must be a scalar or a list of scalars"
    return None


def statuses(value: Json) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, list) and all(
        re.fullmatch(r"[1-5][0-9][0-9](-[1-5][0-9][0-9])?", str(item)) for item in value
    ):
        return None
    return 'must be true, false, or a list of statuses and ranges such as "400-499"'


def tls(value: Json) -> str | None:
    if not isinstance(value, dict) or set(value) - {"verify", "minVersion"}:
        return "must be a map of verify and minVersion"
    if not isinstance(value.get("verify", True), bool):
        return "verify must be true or false"
    if value.get("minVersion", "1.2") not in TLS_VERSIONS:
        return 'minVersion must be "1.2" or "1.3"'
    return None


def dedupe(value: Json) -> str | None:
    known = ("header", "expression", "windowMs")
    if not isinstance(value, dict) or not value:
        return "must be a map of header or expression, and windowMs"
    for key in value:
        if key not in known:
            meant = nearest(key, known)
            return f"has no {key[:80]!r}; " + (
                f"did you mean {meant!r}?" if meant else f"it takes: {', '.join(known)}"
            )
    if "header" in value and "expression" in value:
        return "takes header or expression, not both"
    if any(
        not isinstance(value[k], str) or not value[k]
        for k in ("header", "expression")
        if k in value
    ):
        return "header and expression must be text"
    if "windowMs" in value and number(1, 31 * 86_400_000)(value["windowMs"]) is not None:
        return "windowMs must be a number of milliseconds, at most 31 days"
    return None


def instant(value: Json) -> str | None:
    if isinstance(value, str):
        try:
            epoch(value)
        except ValueError as error:
            return str(error)
        return None
    if is_number(value) and is_instant(value):
        return None
    return "must be an RFC 3339 instant, or seconds since 1970 within the years 1 to 9999"


def scalar(value: Json) -> str | None:
    ok = isinstance(value, str | int | float | bool)
    return None if ok else "must be text, a number, true or false"


def items(value: Json) -> str | None:
    return None if isinstance(value, list) else "must be a list"


def whole(low: int, high: int) -> Check:
    def check(value: Json) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if ok else f"must be a whole number from {low:,} to {high:,}"

    return check


def expression(value: Json) -> str | None:
    ok = isinstance(value, str | bool)
    return None if ok else "must be an expression, true or false"


def cases(value: Json) -> str | None:
    """Of a switch: names to compare a value with, or names with conditions."""
    if not isinstance(value, list) or not value:
        return "must be a list of cases"
    seen: set[str] = set()
    for case in value:
        name = case.get("case") if isinstance(case, dict) else case
        if isinstance(case, dict) and case.keys() != {"case", "when"}:
            return "with conditions are maps of case and when"
        if not isinstance(name, str | int | float) or str(name) in RESERVED_CASES:
            return f"must be named by text or numbers other than {', '.join(RESERVED_CASES)}"
        if isinstance(case, dict) and expression(case["when"]) is not None:
            return f"when of {str(name)[:80]!r} must be an expression, true or false"
        if case_name(name) in seen:
            return f"{str(name)[:80]!r} is there twice"
        seen.add(case_name(name))
    return None


def case_name(value: Json) -> str:
    """A value as the `on` of an edge names it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def path(value: Json) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    try:
        parse_path(value)
    except ValueError as error:
        return str(error)
    return None


def paths(value: Json) -> str | None:
    if not isinstance(value, dict) or not value:
        return "must be a map of names and paths"
    for name, one in value.items():
        problem = path(one)
        if problem is not None:
            return f"{name!r} {problem}"
    return None


def parse_path(text: str) -> tuple[str | int | None, ...]:
    """The steps of a path such as `a.b[0]["c d"][*].e`; None is `[*]`, all elements.

    Raises:
        ValueError: it is none; the message says how one is written.
    """
    steps: list[str | int | None] = []
    done = len("$") if text == "$" or text.startswith(("$.", "$[")) else 0
    while done < len(text):
        step = _STEP.match(text, done)
        if step is None or (step["key"] is not None and (done > 0) != step[0].startswith(".")):
            raise ValueError(f"is no path from character {done + 1} on: write a.b[0][*].c")
        if step["key"] is not None:
            steps.append(step["key"])
        elif step["all"] is not None:
            steps.append(None)
        elif step["index"] is not None:
            steps.append(int(step["index"]))
        else:
            steps.append(json.loads(step["quoted"]))
        done = step.end()
    return tuple(steps)
