"""The text of a document as a JSON value, and where in the text each part of it stands.

JSON is read by the standard parser; YAML 1.2 from ruamel's event stream, value by value, so that aliases,
tags, duplicate keys, other documents and deep nesting are refused where they stand and nothing is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict

MAX_DEPTH = 64  # maps and lists in each other

Place = tuple[str | int, ...]
Position = tuple[int, int]  # line and column, from 1

_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = frozenset({"map", "seq", "str", "int", "float", "bool", "null"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class SourceError(InputError):
    """The text cannot be read; `line` and `column` count from 1, None when not known."""

    code = "document.unreadable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        position: Position | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.line = position[0] if position else None
        self.column = position[1] if position else None


@dataclass(slots=True)
class Source:
    """A read document. `positions`: of every value, and of every key under the place of its value."""

    value: Json
    positions: dict[Place, Position] = field(default_factory=dict)

    def position(self, place: Place) -> Position | None:
        """Where `place` stands, or the nearest thing around it."""
        while place and place not in self.positions:
            place = place[:-1]
        return self.positions.get(place)


def read_source(data: bytes) -> Source:
    """The document in `data`. A text that begins with `{` is read as JSON.

    Raises:
        SourceError: it is not UTF-8, malformed, or holds what a document may not; with the place.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"not valid UTF-8 at byte {error.start}", code="document.encoding"
        ) from None
    if not text.lstrip().startswith("{"):
        return _read_yaml(text)
    try:
        value = loads_strict(text.encode())
    except InputError as error:
        raise SourceError(error.message, code=error.code) from None
    _refuse_depth(value)
    return Source(value)


def with_positions(source: Source, data: bytes) -> Source:
    """The same document with positions; JSON is read again as the YAML it also is, for messages only."""
    if source.positions:
        return source
    try:
        return Source(source.value, _read_yaml(data.decode("utf-8-sig")).positions)
    except SourceError:
        return source


def _refuse_depth(value: Json) -> None:
    open_values: list[tuple[Json, int]] = [(value, 1)]
    while open_values:
        current, depth = open_values.pop()
        if not isinstance(current, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise SourceError(f"nested deeper than {MAX_DEPTH}", code="document.depth")
        inner = current.values() if isinstance(current, dict) else current
        open_values.extend((item, depth + 1) for item in inner)


def _read_yaml(text: str) -> Source:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    source = Source(None)
    try:
        _Reader(source, YAML(typ="safe", pure=True).parse(text)).read()
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise SourceError(
            f"not valid YAML: {problem}",
            code="document.malformed",
            position=None if mark is None else (mark.line + 1, mark.column + 1),
        ) from None
    return source


@dataclass(slots=True)
class _Open:
    """A map or list being read. `key`: the map key whose value comes next."""

    place: Place
    value: dict[str, Json] | list[Json]
    key: str | None = None


class _Reader:
    """Builds values from events without recursion: depth costs nothing but the bound."""

    def __init__(self, source: Source, events: Iterator[Any]) -> None:
        self._source = source
        self._events = events
        self._open: list[_Open] = []
        self._documents = 0

    def read(self) -> None:
        for event in self._events:
            kind = type(event).__name__
            at = (event.start_mark.line + 1, event.start_mark.column + 1)
            if kind == "AliasEvent" or getattr(event, "anchor", None):
                raise SourceError(
                    "anchors and aliases are refused",
                    code="document.alias",
                    position=at,
                    hint="write the value out",
                )
            match kind:
                case "DocumentStartEvent":
                    self._documents += 1
                    if self._documents > 1:
                        raise SourceError(
                            "more than one document in the file",
                            code="document.several",
                            position=at,
                        )
                case "MappingStartEvent" | "SequenceStartEvent":
                    self._refuse_tag(event, at)
                    self._enter({} if kind == "MappingStartEvent" else [], at)
                case "MappingEndEvent" | "SequenceEndEvent":
                    self._open.pop()
                case "ScalarEvent":
                    self._scalar(event, at)
                case _:
                    pass

    def _refuse_tag(self, event: Any, at: Position) -> None:
        tag = str(event.tag) if event.tag is not None else ""
        if tag and tag.removeprefix(_CORE) not in _CORE_TAGS:
            raise SourceError(f"the tag {tag} is refused", code="document.tag", position=at)

    def _enter(self, value: dict[str, Json] | list[Json], at: Position) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise SourceError(f"nested deeper than {MAX_DEPTH}", code="document.depth", position=at)
        if self._open and self._awaits_key():
            raise SourceError(
                "a map key must be text",
                code="document.key",
                position=at,
                hint='put expressions in quotes: "{{ … }}"',
            )
        place = self._add(value, at)
        self._open.append(_Open(place, value))

    def _awaits_key(self) -> bool:
        inside = self._open[-1]
        return isinstance(inside.value, dict) and inside.key is None

    def _scalar(self, event: Any, at: Position) -> None:
        self._refuse_tag(event, at)
        if not self._open or not self._awaits_key():
            self._add(_scalar(event, at), at)
            return
        inside = self._open[-1]
        key = str(event.value)
        assert isinstance(inside.value, dict)  # noqa: S101  # for the type checker
        if key in inside.value:
            raise SourceError(f"duplicate key {key!r}", code="document.duplicate_key", position=at)
        inside.key = key
        self._source.positions[(*inside.place, key)] = at

    def _add(self, value: Json, at: Position) -> Place:
        if not self._open:
            self._source.value = value
            self._source.positions[()] = at
            return ()
        inside = self._open[-1]
        if isinstance(inside.value, list):
            place: Place = (*inside.place, len(inside.value))
            inside.value.append(value)
            self._source.positions[place] = at
        else:
            assert inside.key is not None  # noqa: S101  # _awaits_key was asked before
            place = (*inside.place, inside.key)
            inside.value[inside.key] = value
            inside.key = None
        return place


def _scalar(event: Any, at: Position) -> Json:
    """A scalar by YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2); quoted text stays text."""
    text = str(event.value)
    tag = str(event.tag) if event.tag is not None else ""
    if event.style is not None or tag.endswith(":str"):
        return text
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _PREFIXED.fullmatch(text):
            return int(text, 0)
    except ValueError:
        raise SourceError("a number of too many digits", code="json.number", position=at) from None
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise SourceError(f"{text} is beyond a float", code="json.number", position=at)
        return number
    if _NOT_JSON.fullmatch(text):
        raise SourceError(f"JSON has no {text}", code="json.constant", position=at)
    return text
