"""Schemas of OpenAPI 2.0, 3.0 and 3.1 as JSON Schema 2020-12.

A reference stays one: what it leads to is translated once, under a name in the definition's `schemas`, and cut off
from whoever refers to it. `allOf` becomes one schema where nothing is lost by that. Never raises for what it reads.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from stackd.core.json import Json
from stackd.integrations.importer.reading import File, Library, Node
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.values import (
    NOTHING,
    about,
    bounded,
    listing,
    mapping,
    number,
    plain,
    same,
    text,
    texts,
    unused,
)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_NODES: Final = 2_000  # schemas of one operation, or of one named schema
MAX_DEPTH: Final = 60  # schemas in each other
MAX_SCANNED: Final = 20_000  # parts of a schema that are looked through for readOnly
MAX_PATTERN: Final = 1_000  # characters
ENOUGH: Final = 200  # nodes that must be left for a base schema to be merged into another

Mode = Literal["request", "response"]
Schema = dict[str, Any]

TYPES: Final = ("null", "boolean", "object", "array", "number", "string", "integer")
_MEANT: Final = {
    "bool": "boolean", "int": "integer", "int32": "integer", "int64": "integer", "long": "integer",
    "float": "number", "double": "number", "decimal": "number", "date": "string",
    "datetime": "string", "date-time": "string", "uuid": "string", "str": "string",
    "enum": "string", "dict": "object", "map": "object", "list": "array",
}  # fmt: skip
FILE: Final[Schema] = {"type": ["string", "object"], "format": "binary", "x-file": True}
_SIZES: Final = (
    "maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties",
    "minContains", "maxContains",
)  # fmt: skip
_ANNOTATIONS: Final = ("title", "description", "default", "examples", "deprecated", "format")
_FLAGS: Final = ("readOnly", "writeOnly", "deprecated", "uniqueItems")
_SINGLE: Final = (
    "not", "contains", "propertyNames", "if", "then", "else", "unevaluatedProperties",
    "unevaluatedItems",
)  # fmt: skip
_SHAPES: Final = ("properties", "required", "type", "nullable", "additionalProperties")


@dataclass(slots=True)
class Work:
    """One schema being translated, with all that stands in it.

    Attributes:
        place: as messages call it.
        left: nodes that it may still have.
        merging: the bases that are being merged into it.
    """

    place: str
    mode: Mode
    left: int = MAX_NODES
    merging: list[tuple[str, str]] = field(default_factory=list)

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


class Schemas:
    """Translates, and keeps what is referred to. `named` is complete after `finish()`."""

    def __init__(self, library: Library, report: Report, *, old: bool) -> None:
        """`old`: before 3.1, where `nullable` counts and nothing does beside `$ref`."""
        self.named: dict[str, Schema] = {}
        self._library = library
        self._report = report
        self._old = old
        self._names: dict[tuple[tuple[str, str], Mode], str] = {}
        self._taken: set[str] = set()
        self._waiting: deque[tuple[str, Node, Mode]] = deque()
        self._varying: dict[tuple[str, str], bool] = {}
        self._within: dict[tuple[str, str], tuple[bool, list[Node]]] = {}

    def finish(self) -> None:
        """Translate all that was referred to, and what that refers to."""
        while self._waiting:
            name, node, mode = self._waiting.popleft()
            work = Work(f"schemas/{name}", mode, merging=[node.key])
            self.named[name] = self.translate(node.value, node.file, work)
        self.named = dict(sorted(self.named.items()))
        self._cut_cycles()

    def _cut_cycles(self) -> None:
        """No schema leads back to itself for one and the same value: who follows references comes to an end."""
        done: set[str] = set()
        for start in self.named:
            path: dict[str, Iterator[Schema]] = {start: _in_place(self.named[start])}
            while path:
                name, refs = next(reversed(path.items()))
                ref = next(refs, None)
                if ref is None:
                    done.add(name)
                    path.popitem()
                    continue
                target = ref["$ref"].removeprefix("#/schemas/")
                if target in path:
                    del ref["$ref"]
                    self._report.guess(
                        f"schemas/{name}", f"is {target} again; that adds nothing and is left out"
                    )
                elif target not in done:
                    path[target] = _in_place(self.named[target])

    def translate(self, raw: Json, file: File, work: Work, depth: int = 0) -> Schema:
        """`raw`, a schema written in `file`, as one of 2020-12."""
        if raw is False:
            return {"not": {}}
        if not isinstance(raw, dict):
            if raw is not None and raw is not True:
                self._report.guess(
                    work.place, "holds a schema that is none; anything is taken there"
                )
            return {}
        if not work.take() or depth > MAX_DEPTH:
            self._report.guess(
                work.place,
                f"has over {MAX_NODES:,} schemas, or over {MAX_DEPTH} in each other; anything is taken where the rest was",
            )
            return {}
        if isinstance(raw.get("$ref"), str):
            return self._reference(raw, file, work, depth)
        if isinstance(raw.get("allOf"), list) and raw["allOf"]:
            return self._all_of(raw, file, work, depth)
        return self._single(raw, file, work, depth)

    def inline(self, raw: Json, file: File, work: Work) -> Schema:
        """As `translate`, but the schema itself is no reference in the end."""
        found, home = self._library.resolved(raw, file)
        if found is not raw and (node := self._library.find(mapping(raw)["$ref"], file)):
            work.merging.append(node.key)
        return self.translate(found, home, work)

    def kind(self, raw: Json, file: File) -> str | None:
        """The type a value of `raw` has: the first, if it may have several; None if that is open."""
        for _ in range(8):
            raw, file = self._library.resolved(raw, file)
            given = mapping(raw)
            found = next((one for one in _type_names(given.get("type")) if one != "null"), None)
            if found in TYPES:
                return found
            if "properties" in given:
                return "object"
            if "items" in given:
                return "array"
            inner = next(
                (given[name] for name in ("allOf", "oneOf", "anyOf") if listing(given.get(name))),
                None,
            )
            if inner is None:
                return None
            raw = inner[0]
        return None

    # -- references

    def _reference(self, raw: Schema, file: File, work: Work, depth: int) -> Schema:
        node = self._library.find(raw["$ref"], file)
        if node is None:
            return {}
        found: Schema = {"$ref": f"#/schemas/{self._name(node, work.mode)}"}
        beside = {key: value for key, value in raw.items() if key != "$ref"}
        if self._old:
            kept = (
                "title",
                "description",
                "default",
                "example",
                "readOnly",
                "writeOnly",
                "deprecated",
            )
            beside = {key: beside[key] for key in kept if key in beside}
        if beside:
            found |= self._single(beside, file, work, depth)
        if self._old and raw.get("nullable") is True:
            branch = {"$ref": found.pop("$ref")}
            found["anyOf"] = [branch, {"type": "null"}]
        return found

    def _name(self, node: Node, mode: Mode) -> str:
        """The name of what `node` is; it waits to be translated from now on."""
        if not self._varies(node):
            mode = "response"
        asked = (node.key, mode)
        if asked not in self._names:
            last = node.pointer.rpartition("/")[2].replace("~1", "_").replace("~0", "_")
            base = re.sub(r"[^A-Za-z0-9._-]+", "_", last).strip("_")[:100] or "schema"
            name = unused(base + ("Request" if mode == "request" else ""), self._taken, 120)
            self._names[asked] = name
            self._taken.add(name)
            self._waiting.append((name, node, mode))
        return self._names[asked]

    def _varies(self, node: Node) -> bool:
        """Whether a request and an answer of that schema differ: something below it is readOnly or writeOnly."""
        if node.key in self._varying:
            return self._varying[node.key]
        seen = {node.key}
        open_nodes = [node]
        while open_nodes:
            own, further = self._scanned(open_nodes.pop())
            if own or any(self._varying.get(one.key) for one in further):
                self._varying[node.key] = True
                return True
            for one in further:
                if one.key not in seen:
                    seen.add(one.key)
                    open_nodes.append(one)
        self._varying.update(dict.fromkeys(seen, False))
        return False

    def _scanned(self, node: Node) -> tuple[bool, list[Node]]:
        """Whether it has such a mark itself, and what it refers to."""
        if node.key in self._within:
            return self._within[node.key]
        marked, further, seen = False, dict[tuple[str, str], Node](), set[int]()
        open_values: list[Json] = [node.value]
        while open_values and len(seen) < MAX_SCANNED:
            value = open_values.pop()
            if not isinstance(value, dict | list) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, list):
                open_values += value
                continue
            marked = marked or value.get("readOnly") is True or value.get("writeOnly") is True
            if isinstance(value.get("$ref"), str):
                if (one := self._library.find(value["$ref"], node.file)) is not None:
                    further.setdefault(one.key, one)
                continue
            open_values += [
                inner
                for key, inner in value.items()
                if key not in ("example", "examples", "default", "enum")
            ]
        self._within[node.key] = (marked, list(further.values()))
        return self._within[node.key]

    # -- one schema

    def _single(self, raw: Schema, file: File, work: Work, depth: int) -> Schema:
        found: Schema = {}
        self._put_annotations(raw, found, work)
        self._put_type(raw, found, work)
        self._put_bounds(raw, found, work)
        self._put_choices(raw, found, work)
        self._put_members(raw, file, found, work, depth)
        self._put_items(raw, file, found, work, depth)
        for name in ("oneOf", "anyOf"):
            if branches := listing(raw.get(name)):
                found[name] = [self.translate(one, file, work, depth + 1) for one in branches]
                if self._old and raw.get("nullable") is True:
                    found[name].append({"type": "null"})
        for name in _SINGLE:
            if isinstance(raw.get(name), dict | bool):
                found[name] = self.translate(raw[name], file, work, depth + 1)
        if given := mapping(raw.get("dependentSchemas")):
            found["dependentSchemas"] = {
                key: self.translate(one, file, work, depth + 1) for key, one in given.items()
            }
        if given := mapping(raw.get("dependentRequired")):
            found["dependentRequired"] = {key: texts(one) for key, one in given.items()}
        return found

    def _put_annotations(self, raw: Schema, found: Schema, work: Work) -> None:
        if title := plain(raw.get("title")):
            found["title"] = title[:200]
        if words := about(raw.get("description")):
            found["description"] = words
        if "default" in raw:
            default = _fitting(bounded(raw["default"]), raw)
            if default is not NOTHING and (default is not None or self._takes_null(raw)):
                found["default"] = default
        examples = listing(raw.get("examples")) or list(mapping(raw.get("examples")).values())
        if "example" in raw:
            examples = [raw["example"]]
        kept = [
            _fitting(one, raw)
            for one in (bounded(one, nodes=200) for one in examples[:3])
            if one is not NOTHING
        ]
        if kept:
            found["examples"] = kept
        for name in _FLAGS:
            if isinstance(raw.get(name), bool) and (raw[name] or name == "uniqueItems"):
                found[name] = raw[name]
        for name in ("format", "contentMediaType", "contentEncoding"):
            if isinstance(raw.get(name), str) and raw[name]:
                found[name] = raw[name]
        discriminator = raw.get("discriminator")
        if name := text(mapping(discriminator).get("propertyName")) or text(discriminator):
            found["x-discriminator"] = name
            self._report.guess(
                work.place, f"is told apart by {name!r}; its branches are tried one by one"
            )

    def _takes_null(self, raw: Schema) -> bool:
        return raw.get("nullable") is True or "null" in _type_names(raw.get("type"))

    def _put_type(self, raw: Schema, found: Schema, work: Work) -> None:
        names: list[str] = []
        for one in _type_names(raw.get("type")):
            if one == "file":
                found |= FILE
                return
            meant = one if one in TYPES else _MEANT.get(one.lower(), one.lower())
            if meant in TYPES:
                names.append(meant)
            elif meant != "any":
                self._report.guess(
                    work.place, f"has the type {one[:40]!r}, which is none; any is taken"
                )
                return
        if (names and raw.get("nullable") is True and self._old) or (
            raw.get("x-nullable") is True and names
        ):
            names.append("null")
        names = list(dict.fromkeys(names))
        if names:
            found["type"] = names[0] if len(names) == 1 else names

    def _put_bounds(self, raw: Schema, found: Schema, work: Work) -> None:
        for name in ("multipleOf", "maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"):
            if name in raw and not isinstance(raw[name], bool):
                value = number(raw[name])
                if value is None or (name == "multipleOf" and value <= 0):
                    self._drop(work, name)
                else:
                    found[name] = value
        for name, bound in (("exclusiveMaximum", "maximum"), ("exclusiveMinimum", "minimum")):
            if raw.get(name) is True and bound in found:
                found[name] = found.pop(bound)
        for name in _SIZES:
            if name in raw:
                value = number(raw[name])
                if value is None or value < 0 or value != int(value):
                    self._drop(work, name)
                else:
                    found[name] = int(value)
        if "pattern" in raw:
            if is_pattern(raw["pattern"]):
                found["pattern"] = raw["pattern"]
            else:
                self._drop(work, "pattern")

    def _drop(self, work: Work, name: str) -> None:
        self._report.guess(work.place, f"has a {name} that cannot be used; it is left out")

    def _put_choices(self, raw: Schema, found: Schema, work: Work) -> None:
        if "const" in raw and (const := bounded(raw["const"])) is not NOTHING:
            found["const"] = const
        given = raw.get("enum")
        if not isinstance(given, list):
            if given is not None:
                self._drop(work, "enum")
            return
        choices: list[Json] = []
        for one in given:
            copied = _fitting(bounded(one), raw)
            if copied is not NOTHING and not any(same(copied, known) for known in choices[:100]):
                choices.append(copied)
        if choices and self._old and raw.get("nullable") is True and None not in choices:
            choices.append(None)
        if choices:
            found["enum"] = choices

    def _put_members(self, raw: Schema, file: File, found: Schema, work: Work, depth: int) -> None:
        hidden: set[str] = set()
        given = mapping(raw.get("properties"))
        members: Schema = {}
        mark = "readOnly" if work.mode == "request" else "writeOnly"
        for name, one in given.items():
            target, _ = self._library.resolved(one, file)
            if mapping(one).get(mark) is True or mapping(target).get(mark) is True:
                hidden.add(name)
            else:
                members[name] = self.translate(one, file, work, depth + 1)
        if members:
            found["properties"] = members
        if patterned := mapping(raw.get("patternProperties")):
            kept = {
                key: self.translate(one, file, work, depth + 1)
                for key, one in patterned.items()
                if is_pattern(key)
            }
            if len(kept) < len(patterned):
                self._drop(work, "patternProperties")
            if kept:
                found["patternProperties"] = kept
        if required := [one for one in texts(raw.get("required")) if one not in hidden]:
            found["required"] = required
        beyond = raw.get("additionalProperties")
        if isinstance(beyond, bool):
            found["additionalProperties"] = beyond
        elif isinstance(beyond, dict):
            found["additionalProperties"] = self.translate(beyond, file, work, depth + 1)

    def _put_items(self, raw: Schema, file: File, found: Schema, work: Work, depth: int) -> None:
        items, first = raw.get("items"), listing(raw.get("prefixItems"))
        if isinstance(items, list):  # a tuple, as before 2020-12
            first, items = items, raw.get("additionalItems")
        if first:
            found["prefixItems"] = [self.translate(one, file, work, depth + 1) for one in first]
        if isinstance(items, dict | bool):
            found["items"] = self.translate(items, file, work, depth + 1)

    # -- allOf

    def _all_of(self, raw: Schema, file: File, work: Work, depth: int) -> Schema:
        own = {key: value for key, value in raw.items() if key != "allOf"}
        branches = raw["allOf"]
        if len(branches) == 1 and not any(
            own.get(key) not in (None, "object")
            for key in own
            if key not in (*_ANNOTATIONS, "nullable", "example")
        ):
            return self._annotated(branches[0], own, file, work, depth)
        parts = [self._base(one, file, work, depth) for one in branches]
        parts.append(self._single(own, file, work, depth))
        merged: Schema = {}
        rest: list[Schema] = []
        for part in parts:
            if "$ref" in part:
                rest.append(part)
            else:
                rest += _merge(merged, part)
        if rest:
            merged["allOf"] = rest
        return merged

    def _annotated(self, branch: Json, own: Schema, file: File, work: Work, depth: int) -> Schema:
        """The only branch, with what is said beside it: how a reference was described before 3.1."""
        found = self.translate(branch, file, work, depth + 1)
        words: Schema = {}
        self._put_annotations(own, words, work)
        if self._old and own.get("nullable") is True:
            if "$ref" in found:
                return {"anyOf": [found, {"type": "null"}], **words}
            if isinstance(found.get("type"), str):
                found["type"] = list(dict.fromkeys([found["type"], "null"]))
        return found | words

    def _base(self, branch: Json, file: File, work: Work, depth: int) -> Schema:
        """A branch of allOf as something to merge; still a reference where it leads back, or is too much."""
        ref = mapping(branch).get("$ref")
        node = self._library.find(ref, file) if isinstance(ref, str) else None
        if node is None:
            return self.translate(branch, file, work, depth + 1)
        if node.key in work.merging or work.left < ENOUGH:
            return self.translate({"$ref": ref}, file, work, depth + 1)
        work.merging.append(node.key)
        try:
            found = self.translate(node.value, node.file, work, depth + 1)
        finally:
            work.merging.pop()
        return {
            key: value for key, value in found.items() if key not in ("title", "x-discriminator")
        }


def _in_place(schema: Schema) -> Iterator[Schema]:
    """The references in `schema` that speak of the very value that it speaks of."""
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        if isinstance(one.get("$ref"), str):
            yield one
        for name in ("allOf", "anyOf", "oneOf"):
            waiting += reversed(listing(one.get(name)))
        waiting += [one[name] for name in ("not", "if", "then", "else") if name in one]


def _merge(into: Schema, part: Schema) -> list[Schema]:
    """What of `part` cannot be told in one schema with `into`, which has the rest of it then."""
    rest: Schema = {}
    for key, value in part.items():
        if key not in into or key in _ANNOTATIONS or key.startswith("x-"):
            into[key] = value
        elif same(into[key], value):
            pass
        elif key == "properties":
            for name, one in value.items():
                known = into[key].get(name)
                if known is None or same(known, {}):
                    into[key][name] = one
                elif not same(known, one):
                    into[key][name] = {"allOf": [known, one]}
        elif key == "required":
            into[key] = list(dict.fromkeys([*into[key], *value]))
        elif key == "type" and (both := _both_types(into[key], value)):
            into[key] = both
        elif key in ("minimum", "minLength", "minItems", "minProperties", "exclusiveMinimum"):
            into[key] = max(into[key], value)
        elif key in ("maximum", "maxLength", "maxItems", "maxProperties", "exclusiveMaximum"):
            into[key] = min(into[key], value)
        elif (
            key == "additionalProperties"
            and isinstance(value, bool)
            and isinstance(into[key], bool)
        ):
            into[key] = True
        else:
            rest[key] = value
    return [rest] if rest else []


def _both_types(one: Any, other: Any) -> Any:
    ones, others = _type_names(one), _type_names(other)
    both = [name for name in ones if name in others]
    if "integer" in (*ones, *others) and "number" in (*ones, *others) and "integer" not in both:
        both.append("integer")
    return both[0] if len(both) == 1 else both


def _fitting(value: Any, raw: Schema) -> Any:
    """`value`, as a number or a truth if it is written as text where only these are taken: documents quote them."""
    types = [_MEANT.get(one, one) for one in _type_names(raw.get("type"))]
    if not isinstance(value, str) or not types or "string" in types:
        return value
    if "boolean" in types and value in ("true", "false"):
        return value == "true"
    found = number(value) if {"integer", "number"} & set(types) else None
    return value if found is None else found


def _type_names(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    return [one for one in listing(given) if isinstance(one, str)]


_PROPERTY_CLASS: Final = re.compile(r"\\[pP]\{[A-Za-z_=]{1,40}\}")
_CODE_POINT: Final = re.compile(r"\\u\{[0-9A-Fa-f]{1,6}\}")


def is_pattern(given: Any) -> bool:
    """Whether `given` is a regular expression, as far as Python can tell of ECMA's."""
    if not isinstance(given, str) or len(given) > MAX_PATTERN:
        return False
    if len(given) > 1 and given[0] == given[-1] == "/":
        return False  # a literal of JavaScript: its slashes would be taken for part of it
    ours = _CODE_POINT.sub("a", _PROPERTY_CLASS.sub("a", given))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", ours))
    except (re.error, RecursionError, OverflowError):
        return False
    return True
