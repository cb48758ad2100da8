"""The built-in node types: what each takes, and what running it twice would mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from stackd.core.clock import epoch, is_instant
from stackd.core.json import Json
from stackd.core.names import nearest
from stackd.workflows.model import Node

WEBHOOK_PATH = re.compile(r"[A-Za-z0-9_~.-]+(/[A-Za-z0-9_~.-]+)*")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
LONGEST_TIMEOUT_MS = 86_400_000  # a day
LONGEST_DELAY_DAYS = 366  # by each of its parameters; `until` may lie further off


class Effect(StrEnum):
    """What sending an action again would do to the far side."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. `check` answers what is wrong with a value, or None; `choices`: if these are all it takes."""

    check: Callable[[Json], str | None]
    required: bool = False
    is_static: bool = False  # read before any execution: may hold no expression
    is_raw: bool = False  # its expressions are its own matter: checked and handed on as written
    choices: tuple[str, ...] = ()


Problem = tuple[str, str]  # (parameter, what is wrong)


@dataclass(frozen=True, slots=True)
class NodeType:
    """One kind of node. `one_of`: groups of parameters that exclude each other."""

    name: str
    params: Mapping[str, Param]
    is_trigger: bool = False
    one_of: tuple[tuple[str, ...], ...] = ()

    def problems(
        self, params: Mapping[str, Json], *, is_open: Callable[[Json], bool]
    ) -> Iterator[Problem]:
        """What is wrong with `params`; values that `is_open` are not known yet and pass."""
        for name, param in self.params.items():
            if name not in params:
                if param.required:
                    yield name, "is missing"
                continue
            value = params[name]
            if not param.is_raw and is_open(value):
                if param.is_static:
                    yield name, "is read before an execution begins and may hold no expression"
                continue
            problem = param.check(value)
            if problem is not None:
                yield name, problem
        for group in self.one_of:
            given = [name for name in group if name in params]
            for name in given[1:]:
                yield name, f"cannot be given together with {given[0]}"


def _text(value: Json) -> str | None:
    return None if isinstance(value, str) else "must be text"


def _any(_: Json) -> str | None:
    return None


def _map(value: Json) -> str | None:
    return None if isinstance(value, dict) else "must be a map"


def _boolean(value: Json) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(low: float, high: float) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        if _is_number(value) and low <= value <= high:
            return None
        return f"must be a number from {low:,.15g} to {high:,.15g}"

    return check


def _one_of(*choices: str, is_static: bool = False) -> Param:
    def check(value: Json) -> str | None:
        ok = isinstance(value, str) and value in choices
        return None if ok else f"must be one of {', '.join(choices)}"

    return Param(check, is_static=is_static, choices=choices)


def _method(value: Json) -> str | None:
    ok = isinstance(value, str) and value.upper() in METHODS
    return None if ok else f"must be one of {', '.join(METHODS)}"


def _methods(value: Json) -> str | None:
    if isinstance(value, list) and value and all(_method(item) is None for item in value):
        return None
    return f"must be a list of {', '.join(METHODS)}"


def _webhook_path(value: Json) -> str | None:
    ok = (
        isinstance(value, str)
        and len(value) <= 200
        and WEBHOOK_PATH.fullmatch(value)
        and not {".", ".."} & set(value.split("/"))
    )
    return None if ok else "must be segments of letters, digits, _ ~ . and -, joined by /"


def _url(value: Json) -> str | None:
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


def _headers(value: Json) -> str | None:
    if not isinstance(value, dict):
        return "must be a map"
    for name, item in value.items():
        if isinstance(item, dict | list) or item is None:
            return f"{name!r} must be text or a number"
    return None


def _scalars(value: Json) -> str | None:
    if not isinstance(value, dict):
        return "must be a map"
    for name, item in value.items():
        for one in item if isinstance(item, list) else [item]:
            if isinstance(one, dict | list):
                return f"{name!r} must be a scalar or a list of scalars"
    return None


def _statuses(value: Json) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, list) and all(
        re.fullmatch(r"[1-5][0-9][0-9](-[1-5][0-9][0-9])?", str(item)) for item in value
    ):
        return None
    return 'must be true, false, or a list of statuses and ranges such as "400-499"'


def _dedupe(value: Json) -> str | None:
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
    if "windowMs" in value and _number(1, 31 * 86_400_000)(value["windowMs"]) is not None:
        return "windowMs must be a number of milliseconds, at most 31 days"
    return None


def _instant(value: Json) -> str | None:
    if isinstance(value, str):
        try:
            epoch(value)
        except ValueError as error:
            return str(error)
        return None
    if _is_number(value) and is_instant(value):
        return None
    return "must be an RFC 3339 instant, or seconds since 1970 within the years 1 to 9999"


def _delay(per_day: int) -> Param:
    return Param(_number(0, LONGEST_DELAY_DAYS * per_day))


_TYPES: Final = (
    NodeType(
        "trigger.webhook.inbound",
        {
            "path": Param(_webhook_path, is_static=True),
            "methods": Param(_methods, is_static=True),
            "respond": _one_of("accepted", "last", is_static=True),
            "dedupe": Param(_dedupe, is_raw=True),
        },
        is_trigger=True,
    ),
    NodeType("trigger.time.manual", {}, is_trigger=True),
    NodeType(
        "action.http.request",
        {
            "url": Param(_url, required=True),
            "method": Param(_method, choices=METHODS),
            "query": Param(_scalars),
            "headers": Param(_headers),
            "json": Param(_any),
            "form": Param(_scalars),
            "multipart": Param(_map),
            "body": Param(_any),
            "timeoutMs": Param(_number(1, LONGEST_TIMEOUT_MS)),
            "followRedirects": Param(_boolean),
            "responseType": _one_of("auto", "json", "text", "blob"),
            "allowStatus": Param(_statuses),
        },
        one_of=(("json", "form", "multipart", "body"),),
    ),
    NodeType("transform.data.set", {"values": Param(_map, required=True)}),
    NodeType(
        "action.time.delay",
        {
            "delayMs": _delay(86_400_000),
            "delaySeconds": _delay(86_400),
            "delayMinutes": _delay(1440),
            "delayHours": _delay(24),
            "until": Param(_instant),
        },
        one_of=tuple(
            ("until", unit) for unit in ("delayMs", "delaySeconds", "delayMinutes", "delayHours")
        ),
    ),
)

NODE_TYPES: Final[Mapping[str, NodeType]] = {kind.name: kind for kind in _TYPES}

_BY_METHOD: Final = {
    "GET": Effect.READ,
    "HEAD": Effect.READ,
    "OPTIONS": Effect.READ,
    "PUT": Effect.IDEMPOTENT,
    "DELETE": Effect.IDEMPOTENT,
}


def effect_of(node: Node) -> Effect:
    """The effect class of a node: its own, else keyed if it names a key, else by its method.

    A method that is only known at run time counts as the worst one.
    """
    if node.effect is not None:
        return Effect(node.effect)
    if node.type != "action.http.request":
        return Effect.READ
    method: Any = node.params.get("method", "GET")
    effect = _BY_METHOD.get(method.upper() if isinstance(method, str) else "", Effect.UNSAFE)
    if node.idempotency_key is not None and effect is Effect.UNSAFE:
        return Effect.KEYED
    return effect
