"""Documents as they are written: JSON or YAML 1.2, with what their `$ref`s lead to in files beside them.

Nothing is expanded: an alias is the very value it names, a reference is followed by who needs what is there. No
recursion, so that depth costs nothing. Nothing outside the folder of the document is read.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.core.text import shown
from stackd.integrations.importer.report import Report

LONGEST: Final = 64 * 1024 * 1024  # bytes of a document; the largest that are public have 12 MB
MAX_FILES: Final = 500  # that a document is made of, together no longer than LONGEST
MAX_DEPTH: Final = 5_000  # of maps and lists in each other
MAX_MERGED: Final = 200_000  # keys that YAML's `<<` may repeat
MAX_HOPS: Final = 50  # from reference to reference

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_PREFIXED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_MOST_DIGITS: Final = 4_000  # Python converts some more


@dataclass(frozen=True, eq=False)
class File:
    """One file of a document. `name`: as messages call it; `path`: where it is, if it is a file."""

    name: str
    value: Json
    path: Path | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """What a reference leads to. `pointer`: its place in `file`, one text for one place."""

    value: Json
    file: File
    pointer: str

    @property
    def key(self) -> tuple[str, str]:
        return (self.file.name, self.pointer)


def read_file(path: Path, report: Report) -> File:
    """The document at `path`.

    Raises:
        InputError: it cannot be read, is too large, or is neither JSON nor YAML; names it.
    """
    try:
        with path.open("rb") as opened:
            data = opened.read(LONGEST + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", code="import.unreadable"
        ) from None
    except ValueError:  # a name with a null character
        raise InputError(f"{path} cannot be read", code="import.unreadable") from None
    if len(data) > LONGEST:
        raise InputError(f"{path} is over {LONGEST:,} bytes", code="import.too_large")
    return File(path.name, read_text(data, path.name, report), path.resolve())


def read_text(data: bytes, name: str, report: Report) -> Json:
    """The value that `data` holds, JSON or YAML.

    Raises:
        InputError: it is neither; names `name` and the line.
    """
    try:
        text = _decoded(data)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not valid {error.encoding.upper()} at byte {error.start}",
            code="import.encoding",
        ) from None
    if text.lstrip()[:1] not in ("{", "["):
        return _read_yaml(text, name, report)
    try:
        return _read_json(text, name, report)
    except json.JSONDecodeError as error:
        try:
            return _read_yaml(text, name, report)  # it has maps in braces too
        except InputError:
            raise InputError(
                f"{name}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}",
                code="import.malformed",
            ) from None


def _decoded(data: bytes) -> str:
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.removeprefix(BOM_UTF8).decode()


# -- JSON


def _read_json(text: str, name: str, report: Report) -> Json:
    def one_of_each(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            for key in found:
                if keys.count(key) > 1:
                    _tell_twice(key, name, report)
        return found

    try:
        return json.loads(
            text,
            object_pairs_hook=one_of_each,
            parse_float=_float,
            parse_int=_integer,
            parse_constant=lambda _: None,
        )
    except RecursionError:
        return _read_deep_json(text, name, report)


def _read_deep_json(text: str, name: str, report: Report) -> Json:
    """As the standard parser reads it, token by token: that one recurses. Commas and colons are not looked at."""
    builder = _Builder(name, report)
    for match in _TOKEN.finditer(text):
        part = match[0]
        if part in ("{", "["):
            builder.enter({} if part == "{" else [])
        elif part in ("}", "]"):
            builder.leave()
        elif part not in (",", ":"):
            builder.scalar(json.loads(part, parse_float=_float, parse_int=_integer))
    return builder.value


def _float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS else None


def _tell_twice(key: str, name: str, report: Report) -> None:
    report.guess(
        name, f"the key {shown(key)!r} is there more than once in a map; the last one counts"
    )


# -- YAML


def _read_yaml(text: str, name: str, report: Report) -> Json:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it was built in
    builder = _Builder(name, report)
    try:
        _build(builder, loader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"{name}: not valid YAML{where}: {error.problem or error.context}",
            code="import.malformed",
        ) from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{name}: not valid YAML: {first}", code="import.malformed") from None
    except UnicodeEncodeError:
        raise InputError(f"{name}: holds half a character", code="import.encoding") from None
    return builder.value


def _build(builder: _Builder, events: Any) -> None:
    documents = 0
    while events.check_event():
        event = events.get_event()
        kind = type(event).__name__
        if kind == "ScalarEvent":
            is_plain = event.implicit[0]
            if builder.awaits_key:  # a name, as 200 of a response, whatever it looks like
                builder.key(event.value, event.anchor, is_plain=is_plain)
            else:
                builder.scalar(_scalar(event) if is_plain else event.value, event.anchor)
        elif kind == "MappingStartEvent":
            builder.enter({}, event.anchor)
        elif kind == "SequenceStartEvent":
            builder.enter([], event.anchor)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            builder.leave()
        elif kind == "AliasEvent":
            builder.alias(event.anchor)
        elif kind == "DocumentStartEvent":
            documents += 1
            if documents > 1:
                builder.tell("holds more than one document; the first is read")
                return


def _scalar(event: Any) -> Json:
    """A plain scalar by YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2): no dates, no yes and no."""
    text: str = event.value
    if len(text) > _MOST_DIGITS:
        return text
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] in "+-.0123456789":
        if _INTEGER.fullmatch(text):
            return int(text)
        if _PREFIXED.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return _float(text)
    return text


@dataclass(slots=True)
class _Open:
    """A map or list being read. `key`: that whose value comes next."""

    value: Any
    key: str | None = None
    merged: list[Json] = field(default_factory=list)


_MERGE: Final = "<<"


class _Builder:
    """Builds a value part by part, without recursion."""

    def __init__(self, name: str, report: Report) -> None:
        self.value: Json = None
        self._name = name
        self._report = report
        self._open: list[_Open] = []
        self._anchors: dict[str, Json] = {}
        self._merged = 0

    def tell(self, what: str) -> None:
        self._report.guess(self._name, what)

    def enter(self, value: Json, anchor: str | None = None) -> None:
        if self.awaits_key:
            raise InputError(f"{self._name}: a map key must be text", code="import.malformed")
        if len(self._open) >= MAX_DEPTH:
            raise InputError(f"{self._name}: nested deeper than {MAX_DEPTH:,}", code="import.depth")
        self._add(value, anchor)
        self._open.append(_Open(value))

    def leave(self) -> None:
        ended = self._open.pop()
        for one in ended.merged:
            for given in one if isinstance(one, list) else [one]:
                if isinstance(given, dict) and given is not ended.value:
                    self._merge(ended.value, given)

    def alias(self, anchor: str) -> None:
        value = self._anchors.get(anchor)
        if isinstance(value, dict | list) and any(one.value is value for one in self._open):
            self.tell(f"the alias {shown(anchor)!r} holds itself; it is left out")
            value = None
        if self.awaits_key and isinstance(value, dict | list):
            raise InputError(f"{self._name}: a map key must be text", code="import.malformed")
        self.scalar(value)

    def scalar(self, value: Json, anchor: str | None = None) -> None:
        if self.awaits_key:
            self.key(value if isinstance(value, str) else json.dumps(value))
        else:
            self._add(value, anchor)

    @property
    def awaits_key(self) -> bool:
        """Whether a name comes next, in a map."""
        if not self._open:
            return False
        inside = self._open[-1]
        return isinstance(inside.value, dict) and inside.key is None

    def key(self, key: str, anchor: str | None = None, *, is_plain: bool = False) -> None:
        if anchor:
            self._anchors[anchor] = key
        inside = self._open[-1]
        if key in inside.value and not (key == _MERGE and is_plain):
            _tell_twice(key, self._name, self._report)
        inside.key = key
        if key == _MERGE and is_plain:
            inside.merged.append(None)

    def _add(self, value: Json, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = value
        if not self._open:
            self.value = value
            return
        inside = self._open[-1]
        if isinstance(inside.value, list):
            inside.value.append(value)
            return
        if inside.merged and inside.merged[-1] is None and inside.key == _MERGE:
            inside.merged[-1] = value
        else:
            inside.value[inside.key] = value
        inside.key = None

    def _merge(self, into: dict[str, Json], given: dict[str, Json]) -> None:
        self._merged += len(given)
        if self._merged > MAX_MERGED:
            raise InputError(
                f"{self._name}: repeats more than {MAX_MERGED:,} keys by <<",
                code="import.too_large",
            )
        for key, value in given.items():
            into.setdefault(key, value)


# -- references


class Library:
    """The files that a document is made of, and what stands where in them."""

    def __init__(self, root: File, report: Report) -> None:
        self.root = root
        self._report = report
        self._files: dict[str, File | None] = {}
        self._found: dict[tuple[str, str], Node | None] = {}
        self._bytes = 0

    def find(self, ref: str, file: File) -> Node | None:
        """What `ref`, written in `file`, leads to in the end; None, and told, if that is nowhere."""
        asked = (file.name, ref)
        if asked not in self._found:
            self._found[asked] = self._follow(ref, file)
            if self._found[asked] is None:
                self._report.guess(ref, "leads nowhere; anything is taken there")
        return self._found[asked]

    def resolved(self, value: Json, file: File) -> tuple[Json, File]:
        """`value`, or what it refers to if it is a reference; ({}, file) if that is nowhere."""
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            node = self.find(value["$ref"], file)
            return ({}, file) if node is None else (node.value, node.file)
        return value, file

    def _follow(self, ref: str, file: File) -> Node | None:
        for _ in range(MAX_HOPS):
            node = self._step(ref, file)
            if node is None or not isinstance(node.value, dict):
                return node
            further = node.value.get("$ref")
            if not isinstance(further, str):
                return node
            ref, file = further, node.file
        return None

    def _step(self, ref: str, file: File) -> Node | None:
        place, _, fragment = ref.partition("#")
        target = self._beside(place, file) if place else file
        if target is None:
            return None
        value, parts = target.value, []
        for part in _pointer(fragment):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part[:9]) < len(value):
                value = value[int(part[:9])]
            else:
                return None
            parts.append(part)
        return Node(value, target, "/".join(_escaped(parts)))

    def _beside(self, place: str, file: File) -> File | None:
        if self.root.path is None or file.path is None:
            return None
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", place):
            return None  # no document is fetched
        folder = self.root.path.parent
        try:
            path = (file.path.parent / unquote(place)).resolve()
            if not path.is_relative_to(folder) or not path.is_file():
                return None
        except (OSError, ValueError, RuntimeError):
            return None
        if path == self.root.path:
            return self.root
        name = path.relative_to(folder).as_posix()
        if name not in self._files:
            self._files[name] = self._read(path, name)
        return self._files[name]

    def _read(self, path: Path, name: str) -> File | None:
        try:
            self._bytes += path.stat().st_size
            if len(self._files) >= MAX_FILES or self._bytes > LONGEST:
                self._report.guess(name, "is one file too many; it is not read")
                return None
            read = read_file(path, self._report)
        except (InputError, OSError) as error:
            self._report.guess(name, f"is not read: {error}")
            return None
        return File(name, read.value, read.path)


def _pointer(fragment: str) -> Iterator[str]:
    for part in fragment.strip("/").split("/") if fragment.strip("/") else ():
        yield unquote(part).replace("~1", "/").replace("~0", "~")


def _escaped(parts: list[str]) -> Iterator[str]:
    for part in parts:
        yield part.replace("~", "~0").replace("/", "~1")
