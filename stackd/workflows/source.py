"""The text of a document as a JSON value, and where in the text each part of it stands.

JSON is read token by token once the standard parser has called it JSON, YAML 1.2 from ruamel's event stream.
Both build the value part by part, so that what a document may not hold (aliases, tags, duplicate keys, other
documents, deep nesting, half characters) is refused where it stands and nothing is expanded.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.core.text import shown

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
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')

# An escape inside double quotes; a broken line stands for nothing.
_ESCAPE = re.compile(r"\\(?:x(?P<x>..)|u(?P<u>.{4})|U(?P<U>.{8})|\r?\n|(?P<letter>.))", re.DOTALL)
_BLANK_ESCAPES = frozenset("tnvfrNLP_ \t")


class SourceError(InputError):
    """The text cannot be read; `line` and `column` count from 1."""

    code = "document.unreadable"

    def __init__(
        self, message: str, *, position: Position, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.line, self.column = position


@dataclass(frozen=True, slots=True)
class _Written:
    """How a text value stands in the document: between two offsets, quotes included."""

    start: int
    end: int
    style: str  # of YAML: ' " | > or empty for plain


@dataclass(slots=True)
class Source:
    """A read document. `positions`: of every element of a list, and of every key under the place of its value."""

    text: str
    value: Json = None
    positions: dict[Place, Position] = field(default_factory=dict)
    written: dict[Place, _Written] = field(default_factory=dict)

    def position(self, place: Place) -> Position:
        """Where `place` stands, or the nearest thing around it."""
        while place and place not in self.positions:
            place = place[:-1]
        return self.positions.get(place, (1, 1))

    def inside(self, place: Place, within: Position) -> Position:
        """Where the character stands that is `within` the text at `place`, by lines and columns of that text."""
        written = self.written.get(place)
        value = self.value
        for key in place:
            value = value[key]
        if written is None or not isinstance(value, str):
            return self.position(place)
        offset = _offset(value, within)
        before = sum(not letter.isspace() for letter in value[:offset])
        is_at_one = offset < len(value) and not value[offset].isspace()
        visible = _visible(self.text[written.start : written.end], written.style)
        if is_at_one:
            found = next(islice(visible, before, None), 0)
        else:  # a blank may have been folded away: behind what comes before it
            found = next(islice(visible, before - 1, None), -1) + 1 if before else 0
        return _position(self.text, written.start + found)


def _offset(text: str, within: Position) -> int:
    line, column = within
    start = 0
    for _ in range(line - 1):
        start = text.find("\n", start) + 1
    return start + column - 1


def _position(text: str, offset: int) -> Position:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _visible(raw: str, style: str) -> Iterator[int]:
    """The offsets in `raw` of the characters of a text value that are no blanks, in order.

    Blanks are left out because YAML folds them; all other characters stay what and where they are.
    """
    index, end = 0, len(raw)
    if style in ("|", ">"):
        index = raw.find("\n") + 1  # what follows the sign on its line says how to read the block
    elif style in ("'", '"'):
        index, end = 1, end - 1
    while index < end:
        letter = raw[index]
        if letter == "\\" and style == '"':
            escape = _ESCAPE.match(raw, index)
            assert escape is not None  # noqa: S101  # the parser took it
            if _is_visible(escape):
                yield index
            index = escape.end()
            continue
        if not letter.isspace():
            yield index
        index += 2 if letter == "'" == style else 1


def _is_visible(escape: re.Match[str]) -> bool:
    digits = escape["x"] or escape["u"] or escape["U"]
    if digits:
        code = int(digits, 16)
        return not (
            0xDC00 <= code <= 0xDFFF or chr(code).isspace()
        )  # the first half counts for both
    return escape["letter"] is not None and escape["letter"] not in _BLANK_ESCAPES


def read_source(data: bytes) -> Source:
    """The document in `data`. A text that begins with `{` is read as JSON.

    Raises:
        SourceError: it is not UTF-8, malformed, or holds what a document may not; with the place.
    """
    raw = data.removeprefix(BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        read = raw[: error.start].decode()
        raise SourceError(
            f"not valid UTF-8 at byte {error.start}",
            code="document.encoding",
            position=_position(read, len(read)),
        ) from None
    return _read_json(text) if text.lstrip().startswith("{") else _read_yaml(text)


def _read_json(text: str) -> Source:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(
            f"not valid JSON: {error.msg.lower()}",
            code="json.malformed",
            position=(error.lineno, error.colno),
        ) from None
    except (
        RecursionError,
        ValueError,
    ):  # too deep, or a number too long: told below with its place
        pass
    builder = _Builder(text)
    line, line_start, done = 1, 0, 0
    for match in _JSON_TOKEN.finditer(text):
        token, start = match[0], match.start()
        if breaks := text.count("\n", done, start):
            line, line_start = line + breaks, text.rfind("\n", done, start) + 1
        done = match.end()
        at = (line, start - line_start + 1)
        match token[0]:
            case "{":
                builder.enter({}, at)
            case "[":
                builder.enter([], at)
            case "}" | "]":
                builder.leave()
            case ":" | ",":
                pass
            case '"' if builder.awaits_key:
                builder.key(json.loads(token), at)
            case '"':
                builder.scalar(json.loads(token), at, _Written(start, done, '"'))
            case _:
                builder.scalar(_literal(token, at), at)
    return builder.source


def _literal(token: str, at: Position) -> Json:
    known = {"true": True, "false": False, "null": None}
    if token in known:
        return known[token]
    if token in ("NaN", "Infinity", "-Infinity"):
        raise SourceError(f"JSON has no {token}", code="json.constant", position=at)
    return _number(token, at, int if _INTEGER.fullmatch(token) else float)


def _number(text: str, at: Position, kind: Callable[[str], float]) -> float:
    try:
        number = kind(text)
    except ValueError:
        raise SourceError("a number of too many digits", code="json.number", position=at) from None
    if number in (float("inf"), float("-inf")):
        raise SourceError(f"{text[:40]} is beyond a float", code="json.number", position=at)
    return number


def _read_yaml(text: str) -> Source:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    builder = _Builder(text)
    try:
        _build_yaml(builder, YAML(typ="safe", pure=True).parse(text))
    except ReaderError as error:
        raise SourceError(
            f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed",
            code="document.malformed",
            position=_position(text, error.position),
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SourceError(
            f"not valid YAML: {error.problem or error.context}",
            code="document.malformed",
            position=(1, 1) if mark is None else (mark.line + 1, mark.column + 1),
        ) from None
    return builder.source


def _build_yaml(builder: _Builder, events: Iterator[Any]) -> None:
    documents = 0
    for event in events:
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
                documents += 1
                if documents > 1:
                    raise SourceError(
                        "more than one document in the file",
                        code="document.several",
                        position=at,
                    )
            case "MappingStartEvent" | "SequenceStartEvent":
                _refuse_tag(event, at)
                builder.enter({} if kind == "MappingStartEvent" else [], at)
            case "MappingEndEvent" | "SequenceEndEvent":
                builder.leave()
            case "ScalarEvent":
                _refuse_tag(event, at)
                if builder.awaits_key:
                    builder.key(str(event.value), at)
                else:
                    builder.scalar(_scalar(event, at), at, _written(event))
            case _:
                pass


def _refuse_tag(event: Any, at: Position) -> None:
    tag = str(event.tag) if event.tag is not None else ""
    if tag and tag.removeprefix(_CORE) not in _CORE_TAGS:
        raise SourceError(f"the tag {shown(tag)} is refused", code="document.tag", position=at)


def _written(event: Any) -> _Written:
    return _Written(event.start_mark.index, event.end_mark.index, event.style or "")


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
    if _INTEGER.fullmatch(text):
        return _number(text, at, int)
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return _number(text, at, float)
    if _NOT_JSON.fullmatch(text):
        raise SourceError(f"JSON has no {text}", code="json.constant", position=at)
    return text


@dataclass(slots=True)
class _Open:
    """A map or list being read. `key`: the map key whose value comes next."""

    place: Place
    value: dict[str, Json] | list[Json]
    key: str | None = None


class _Builder:
    """Builds a value from its parts without recursion: depth costs nothing but the bound."""

    def __init__(self, text: str) -> None:
        self.source = Source(text)
        self._open: list[_Open] = []

    @property
    def awaits_key(self) -> bool:
        """Whether the next part is a key of the map being read."""
        if not self._open:
            return False
        inside = self._open[-1]
        return isinstance(inside.value, dict) and inside.key is None

    def enter(self, value: dict[str, Json] | list[Json], at: Position) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise SourceError(f"nested deeper than {MAX_DEPTH}", code="document.depth", position=at)
        if self.awaits_key:
            raise SourceError(
                "a map key must be text",
                code="document.key",
                position=at,
                hint='put expressions in quotes: "{{ … }}"',
            )
        self._open.append(_Open(self._add(value, at), value))

    def leave(self) -> None:
        self._open.pop()

    def key(self, text: str, at: Position) -> None:
        inside = self._open[-1]
        key = _whole(text, at)
        if key in inside.value:
            raise SourceError(
                f"duplicate key {key[:80]!r}", code="document.duplicate_key", position=at
            )
        inside.key = key
        self.source.positions[(*inside.place, key)] = at

    def scalar(self, value: Json, at: Position, written: _Written | None = None) -> None:
        if isinstance(value, str):
            value = _whole(value, at)
        place = self._add(value, at)
        if written is not None:
            self.source.written[place] = written

    def _add(self, value: Json, at: Position) -> Place:
        if not self._open:
            self.source.value = value
            self.source.positions[()] = at
            return ()
        inside = self._open[-1]
        if isinstance(inside.value, list):
            place: Place = (*inside.place, len(inside.value))
            inside.value.append(value)
            self.source.positions[place] = at
        else:
            assert inside.key is not None  # noqa: S101  # awaits_key was asked before
            place = (*inside.place, inside.key)
            inside.value[inside.key] = value
            inside.key = None
        return place


def _whole(text: str, at: Position) -> str:
    """`text` with the halves of characters, as JSON escapes them, put together."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise SourceError(
            "the text holds half a character (a lone surrogate)",
            code="document.text",
            position=at,
            hint=r"write the character itself, or both halves: \ud83d\ude00",
        ) from None
