"""What a daemon can run, kept for a minute, and what to warn of before something is used that it cannot."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import anyio

from stackd.client.wire import Answer
from stackd.core.apps import folded, normal_app, normal_operation
from stackd.core.clock import Clock
from stackd.core.coverage import (
    FALLBACK,
    MISSING,
    Coverage,
    Lack,
    Mode,
    unknown_app,
    unknown_operation,
)

KEPT: Final = 60.0  # seconds, as the origin's clients do
ANY: Final = "*"

Kind = Literal["action", "trigger"]
Fetch = Callable[[str | None], Awaitable[Answer]]

# Apps that are part of the runtime: with them there is nothing to ask for, unless the daemon lists one itself.
BUILT_IN: Final = ("core", "built-in", "time")

# How daemons and clients before us have spelt the members of an entry.
_APP_IDS: Final = ("app", "normalizedAppId", "appId", "id")
_OPERATION_IDS: Final = ("normalizedId", "id", "operation", "operationId", "name")
_LISTS: Final[Mapping[Kind, tuple[str, str]]] = {
    "action": ("actions", "actionDetails"),
    "trigger": ("triggers", "triggerDetails"),
}


@dataclass(frozen=True, slots=True)
class _Operation:
    mode: Mode
    runtime: str | None = None  # of a fallback
    code: str = ""
    reason: str = ""


@dataclass(slots=True)
class _App:
    name: str
    operations: dict[Kind, dict[str, _Operation]] = field(
        default_factory=lambda: {"action": {}, "trigger": {}}
    )

    @property
    def runs(self) -> bool:
        """Whether anything of it can run."""
        every = (one for of_kind in self.operations.values() for one in of_kind.values())
        return any(one.mode != "unavailable" for one in every)


class _Unread(NamedTuple):
    name: str
    entry: dict[str, Any]


class Capabilities:
    """What can run, as a daemon said it at one time. Never changes.

    Args:
        payload: of `/api/registry/capabilities`, or its `capabilities` alone: a list of apps, or a map of them by id.
    """

    def __init__(self, payload: Any) -> None:
        self._payload = payload
        # An app is read when it is asked about: of ten thousand operations, all at once would hold up a loop.
        self._apps: dict[str, _App | _Unread] = {name: _built_in(name) for name in BUILT_IN}
        for names, entry in _entries(payload):
            self._apps |= dict.fromkeys(map(folded, names), _Unread(names[0], entry))

    def as_json(self) -> Any:
        """The payload as it came; the caller's own to change."""
        return copy.deepcopy(self._payload)

    def check(self, app: str, operation: str | None = None, kind: Kind = "action") -> Coverage:
        """Whether `app.operation` can run, and by what; names are read as the daemon reads them.

        No app asks for nothing and is supported. Without an operation, the app is if anything of it can run.
        """
        if not app.strip():
            return Coverage(app, operation, "native")
        found = self._app(folded(app)) or self._app(normal_app(app))
        if found is None:
            return unknown_app(app, operation, self._apps)
        if not (operation or "").strip():
            return _of_app(app, found)
        assert operation is not None  # noqa: S101  # it is not blank
        known = found.operations[kind]
        one = known.get(normal_operation(operation)) or known.get(ANY)
        if one is None:
            return unknown_operation(found.name, operation, kind, known)
        if one.mode == "unavailable":
            lack: Lack = "missing-operation" if found.runs else "missing-app"
            return Coverage(app, operation, one.mode, lack, None, one.code or MISSING, one.reason)
        code = one.code or (FALLBACK if one.mode == "fallback" else "")
        return Coverage(app, operation, one.mode, None, one.runtime, code, one.reason)

    def _app(self, name: str) -> _App | None:
        found = self._apps.get(name)
        if isinstance(found, _Unread):
            found = self._apps[name] = _app(*found)
        return found

    def warnings(self, used: Iterable[tuple[str, str]], kind: Kind = "action") -> list[str]:
        """What to tell who uses these (app, operation), each once, in their order."""
        told = (self.check(app, operation, kind).warning for app, operation in used)
        return list(dict.fromkeys(filter(None, told)))


def _built_in(name: str) -> _App:
    anything = {ANY: _Operation("native")}
    return _App(name, {"action": anything, "trigger": anything})


def _of_app(app: str, found: _App) -> Coverage:
    if not found.runs:
        return Coverage(app, None, "unavailable", "missing-app", None, MISSING)
    every = [one for of_kind in found.operations.values() for one in of_kind.values()]
    if any(one.mode == "native" for one in every):
        return Coverage(app, None, "native")
    first = next(one for one in every if one.mode == "fallback")
    return Coverage(app, None, "fallback", None, first.runtime, FALLBACK)


def _entries(payload: Any) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(names of an app, its entry) in a payload of whatever shape; what is none is left out."""
    listed = payload
    if isinstance(payload, dict):
        listed = next((payload[key] for key in ("capabilities", "apps") if key in payload), payload)
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(listed, dict):
        pairs = listed.items()
    elif isinstance(listed, list):
        pairs = ((None, one) for one in listed)
    for key, entry in pairs:
        if isinstance(entry, dict):
            given = [entry.get(one) for one in _APP_IDS] + [key, entry.get("name")]
            names = [one for one in given if isinstance(one, str) and one.strip()]
            if names:
                yield names[: len(_APP_IDS)], entry


def _app(name: str, entry: dict[str, Any]) -> _App:
    app = _App(name)
    for kind, (ids, details) in _LISTS.items():
        known = app.operations[kind]
        for given in (entry.get(ids), entry.get(details)):  # what is told in full counts
            for operation, detail in _operations(given):
                known[operation] = _operation(detail)
    return app


def _operations(given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(normal id, what is known of it) of a list of ids or of objects, or of a map by id."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(given, dict):
        pairs = given.items()
    elif isinstance(given, list):
        pairs = ((one, one) for one in given)
    for key, detail in pairs:
        described = detail if isinstance(detail, dict) else {}
        name = _text(described, _OPERATION_IDS) or (key if isinstance(key, str) else None)
        if name:
            yield name if name == ANY else normal_operation(name), described


def _operation(detail: dict[str, Any]) -> _Operation:
    said = detail.get("availability", detail.get("mode"))
    mode: Mode = said if said in ("fallback", "unavailable") else "native"
    issues = detail.get("issues")
    issue = issues[0] if isinstance(issues, list) and issues and isinstance(issues[0], dict) else {}
    runtime = _text(detail, ("resolvedRuntime", "fallbackRuntime")) or "node"
    return _Operation(
        mode,
        runtime if mode == "fallback" else None,
        _text(issue, ("code",)) or "",
        _text(issue, ("message",)) or "",
    )


def _text(entry: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next(
        (entry[one] for one in names if entry.get(one) and isinstance(entry[one], str)), None
    )


class CapabilityCache:
    """The capabilities of one daemon, asked for at most once at a time.

    Args:
        fetch: asks the daemon; gets the ETag of what is at hand, and answers 304 where that is still so.
        kept: seconds an answer is good for.
    """

    def __init__(self, fetch: Fetch, *, clock: Clock, kept: float = KEPT) -> None:
        self._fetch = fetch
        self._clock = clock
        self._kept = kept
        self._turn = anyio.Lock()
        self._found: Capabilities | None = None
        self._etag: str | None = None
        self._until = 0.0
        self._begun = 0  # how many questions there were
        self._answered = 0  # the last one of them that an answer, or an error, came to
        self._error: Exception | None = None  # of that one

    async def get(self, *, refresh: bool = False) -> Capabilities:
        """What can run: as of the last minute, or with `refresh` as of now.

        Who asks while somebody else does shares that answer, and that error; with `refresh` those of the question
        after it. Raises as `fetch`; after an error nothing is at hand.
        """
        asked_after = self._begun if refresh else self._answered
        async with self._turn:
            if self._answered > asked_after:
                if self._error is not None:
                    raise self._error
            elif refresh or self._found is None or self._clock.monotonic() >= self._until:
                await self._ask()
            assert self._found is not None  # noqa: S101  # else there was an error
            return self._found

    async def _ask(self) -> None:
        self._begun += 1
        try:
            answer = await self._fetch(self._etag)
            if answer.status != 304:
                self._found, self._etag = Capabilities(answer.body), answer.etag
        except Exception as error:
            self._found, self._etag, self._error = None, None, error
            self._answered = self._begun
            raise
        self._error, self._until = None, self._clock.monotonic() + self._kept
        self._answered = self._begun
