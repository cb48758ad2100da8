"""What an operation takes: its parameters and the fields of its body, as one JSON Schema whose members say where they go."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from stackd.core.json import Json
from stackd.integrations.importer.reading import File, Library
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.schemas import FILE, Schema, Schemas, Work
from stackd.integrations.importer.values import about, listing, mapping, member, text, texts, unused

MAX_FLATTENED: Final = 30  # fields of a body that become parameters
_LEFT_TO_US: Final = ("authorization", "accept", "content-type", "content-length", "host")
_PLACES: Final = ("path", "query", "header", "cookie", "body")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_COLON: Final = re.compile(r"(?<=/):([A-Za-z_][A-Za-z0-9_]*)(?=/|$)")
_KEY: Final = re.compile(r"[A-Za-z_$@][A-Za-z0-9_.\-\[\]$@:]*")
_SIGNS: Final = {"<": "_lt", ">": "_gt", "!": "_not", "=": "_eq", "*": "_any", "+": "_plus"}
_STYLES: Final = {
    "path": "simple",
    "header": "simple",
    "query": "form",
    "cookie": "form",
    "body": "form",
}
_KNOWN_STYLES: Final = (
    "simple", "label", "matrix", "form", "spaceDelimited", "pipeDelimited", "deepObject", "brackets",
)  # fmt: skip
_COLLECTIONS: Final = {
    "csv": (None, False), "ssv": ("spaceDelimited", False), "tsv": ("tabDelimited", False),
    "pipes": ("pipeDelimited", False), "multi": ("form", True),
}  # fmt: skip
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"


class Refused(Exception):  # noqa: N818  # no fault: the operation is left out
    """An operation cannot be made; the message is the reason."""


@dataclass(slots=True)
class Endpoint:
    """A path template. `names`: of its placeholders, by what the document calls them; `query`: fixed parts."""

    path: str
    names: dict[str, str] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    query: dict[str, Json] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """What an operation takes. The rest is how the body is written."""

    schema: Schema = field(default_factory=dict)
    encode: str | None = None
    content_type: str | None = None
    alternatives: list[str] = field(default_factory=list)


def endpoint(template: str, described: Container[str] = ()) -> Endpoint:
    """The path of a document without fragment, query and operators, its placeholders named as parameters may be.

    `:name` as a part of its own is a placeholder where it is described, as Express has them; else it is what it says,
    and escaped, since it would be one in a definition.

    Raises:
        Refused: its braces do not match.
    """
    path, _, query = template.partition("#")[0].strip().partition("?")
    if path.endswith("{") and "}" in query:  # `/a{?b}`: a template of RFC 6570
        path, query = template.partition("#")[0].strip(), ""
    found = Endpoint("")

    def place(match: re.Match[str]) -> str:
        name = match[1].strip()
        if name[:1] in ("?", "&"):
            found.asked.update(
                {one.strip("* "): one.strip("* ") for one in name[1:].split(",") if one.strip("* ")}
            )
            return ""
        slash = "/" if name[:1] == "/" else ""
        is_open = (
            name[:1] in ("+", "#") or name.endswith("*") or bool(re.search(r"[:=]\s*\S*\*", name))
        )
        plain = re.split(r"[:=]", name.lstrip("+/;.#"))[0].rstrip("*")
        if not plain:
            raise Refused("its path has a placeholder without a name")
        if plain not in found.names:
            found.names[plain] = unused(_placed(plain), found.names.values())
        if is_open:
            found.open.add(plain)
        return f"{slash}{{{found.names[plain]}}}"

    path = _COLON.sub(lambda one: f"{{{one[1]}}}" if one[1] in described else f"%3A{one[1]}", path)
    made = _PLACEHOLDER.sub(place, path)
    if re.search(r"[{}]", _PLACEHOLDER.sub("", made)):
        raise Refused("the braces of its path do not match")
    found.path = made if made.startswith("/") else f"/{made}"
    for name, value in parse_qsl(query, keep_blank_values=True):
        if asked := _PLACEHOLDER.fullmatch(value):
            found.asked[asked[1]] = name
        elif not _PLACEHOLDER.search(value):
            found.query[name] = value
    return found


class Parameters:
    """The parameters of one operation after the other; `made` is what the last one takes."""

    def __init__(
        self, schemas: Schemas, library: Library, report: Report, *, is_swagger: bool
    ) -> None:
        self._schemas = schemas
        self._library = library
        self._report = report
        self._is_swagger = is_swagger

    def merged(
        self, item: Schema, operation: Schema, file: File, place: str
    ) -> list[tuple[Schema, File]]:
        """The parameters of a path and of an operation, resolved; of two alike the operation's."""
        found: dict[tuple[str, str], tuple[Schema, File]] = {}
        for given in (item.get("parameters"), operation.get("parameters")):
            entries = list(mapping(given).values()) if isinstance(given, dict) else listing(given)
            for one in entries:
                raw, home = self._library.resolved(one, file)
                name, where = text(mapping(raw).get("name")), text(mapping(raw).get("in")).lower()
                if where == "querystring":
                    where = "query"
                if not name or where not in (*_PLACES, "formdata"):
                    self._report.guess(
                        place, "has a parameter without a name or a place; it is left out"
                    )
                    continue
                found[(name, where)] = (mapping(raw), home)
        return list(found.values())

    def make(
        self,
        given: list[tuple[Schema, File]],
        body: Json,
        to: Endpoint,
        file: File,
        work: Work,
        *,
        method: str,
        consumes: list[str],
        sent: set[tuple[str, str]],
    ) -> Taken:
        """All that the operation takes. `sent`: (place, name) of what the way in sends."""
        form = _Form(self._report, work.place)
        by_place: dict[str, list[tuple[Schema, File]]] = {}
        for raw, home in given:
            by_place.setdefault(text(raw["in"]).lower(), []).append((raw, home))
        self._path(form, by_place.get("path", []), to, work)
        self._asked(form, by_place.get("query", []), to)
        for where in ("query", "header", "cookie"):
            for raw, home in by_place.get(where, []):
                name = text(raw["name"])
                lower = name.lower()
                if (where, lower) in sent or (where == "header" and lower in _LEFT_TO_US):
                    continue
                schema = self._of(raw, home, where, work)
                form.add(name, where, schema, needed=raw.get("required") is True)
        taken = Taken()
        if self._is_swagger:
            self._old_body(form, by_place, consumes, work, taken, method)
        else:
            self._body(form, body, file, work, taken, method)
        if taken.encode == "raw":
            taken.content_type = _named_type(by_place.get("header", [])) or taken.content_type
        taken.schema = form.as_json()
        return taken

    # -- places

    def _path(
        self, form: _Form, given: list[tuple[Schema, File]], to: Endpoint, work: Work
    ) -> None:
        known = {text(raw["name"]): (raw, home) for raw, home in given}
        for name, key in to.names.items():
            entry = known.pop(name, None)
            if entry is None:
                self._report.guess(
                    work.place, f"the placeholder {name!r} is described nowhere; a text is taken"
                )
                schema: Schema = {"type": "string"}
            else:
                schema = self._of(*entry, "path", work)
                if (
                    entry[0].get("x-ms-skip-url-encoding") is True
                    or entry[0].get("allowReserved") is True
                ):
                    to.open.add(name)
            if name in to.open:
                schema["x-encode"] = "path"
            form.put(key, schema | {"x-in": "path"}, needed=True)
        for name in known:
            self._report.guess(work.place, f"the path has no place for {name!r}; it is left out")

    def _asked(self, form: _Form, given: list[tuple[Schema, File]], to: Endpoint) -> None:
        known = {text(raw["name"]) for raw, _ in given}
        for name, sent_as in to.asked.items():
            if sent_as not in known:
                form.add(sent_as, "query", {"type": "string"}, needed=name != sent_as)

    def _of(self, raw: Schema, home: File, where: str, work: Work) -> Schema:
        """The schema of a parameter, with how it is written."""
        content = mapping(raw.get("content"))
        if self._is_swagger:
            own = {
                key: value
                for key, value in raw.items()
                if key not in ("name", "in", "required", "description", "collectionFormat", "$ref")
            }
            kind = self._schemas.kind(own, home)
            found = self._schemas.translate(own, home, work)
            found |= _collected(raw, where, kind)
        elif content and "schema" not in raw:
            media = next(iter(content))
            inner = self._schemas.translate(mapping(content[media]).get("schema"), home, work)
            is_json = where == "query" and encoding(media) == "json"
            found = (
                inner | {"x-style": "json"}
                if is_json
                else {"type": "string", "contentMediaType": media, "contentSchema": inner}
            )
        else:
            kind = self._schemas.kind(raw.get("schema"), home)
            found = self._schemas.translate(raw.get("schema"), home, work)
            found |= _styled(raw, where, kind)
        if words := about(raw.get("description")):
            found["description"] = words
        if raw.get("deprecated") is True:
            found["deprecated"] = True
        if "examples" not in found and not self._is_swagger:
            examples = (
                [raw["example"]]
                if "example" in raw
                else [
                    one["value"]
                    for one in mapping(raw.get("examples")).values()
                    if "value" in mapping(one)
                ]
            )
            found |= self._schemas.translate({"examples": examples[:3]}, home, work)
        return found

    # -- bodies

    def _body(
        self, form: _Form, given: Json, file: File, work: Work, taken: Taken, method: str
    ) -> None:
        raw, home = self._library.resolved(given, file)
        content = {key: mapping(one) for key, one in mapping(mapping(raw).get("content")).items()}
        if not content:
            return
        media = chosen(content)
        taken.alternatives = list(content) if len({encoding(one) for one in content}) > 1 else []
        asked = raw.get("required")
        self._write_body(
            form, content[media].get("schema"), home, work, taken, media, method,
            needed=asked if isinstance(asked, bool) else None, words=raw.get("description"), name="body",
            parts=mapping(content[media].get("encoding")),
        )  # fmt: skip

    def _old_body(
        self, form: _Form, by_place: dict[str, list[tuple[Schema, File]]], consumes: list[str],
        work: Work, taken: Taken, method: str,
    ) -> None:  # fmt: skip
        bodies, fields = by_place.get("body", []), by_place.get("formdata", [])
        if bodies:
            raw, home = bodies[0]
            if len(bodies) > 1:
                self._report.guess(work.place, "has several bodies; the first is taken")
            media = chosen(dict.fromkeys(consumes or [JSON]))
            asked = raw.get("required")
            self._write_body(
                form, raw.get("schema"), home, work, taken, media, method, parts={},
                needed=asked if isinstance(asked, bool) else None, words=raw.get("description"), name="body",
            )  # fmt: skip
            return
        if not fields:
            return
        has_file = any(text(raw.get("type")) == "file" for raw, _ in fields)
        taken.encode = (
            "multipart" if has_file or (FORM not in consumes and MULTIPART in consumes) else "form"
        )
        for raw, home in fields:
            form.add(
                text(raw["name"]),
                "body",
                self._of(raw, home, "body", work),
                needed=raw.get("required") is True,
            )

    def _write_body(
        self, form: _Form, schema: Json, home: File, work: Work, taken: Taken, media: str, method: str, *,
        needed: bool | None, words: Json, name: str, parts: dict[str, Json],
    ) -> None:  # fmt: skip
        kind = encoding(media)
        target, _ = self._library.resolved(schema, home)
        if "*" in media and self._schemas.kind(schema, home) in ("object", "array"):
            kind, media = "json", JSON
        found = self._schemas.inline(schema, home, work) if kind != "raw" else _raw(media, words)
        fields = mapping(found.get("properties"))
        is_closed = found.get("additionalProperties") in (None, False)
        is_object = found.get("type") in ("object", None) and not set(found) & {
            "oneOf",
            "anyOf",
            "allOf",
            "not",
            "$ref",
        }
        if kind in ("form", "multipart"):
            for key, one in fields.items():
                fields[key] = self._part(
                    key, one, mapping(target).get("properties"), home, kind, parts
                )
        reads = method in ("GET", "HEAD", "OPTIONS")
        if is_object and not fields and (reads or found.get("additionalProperties") is False):
            return  # a body in which nothing can be
        taken.encode = kind
        standard = {"json": JSON, "form": FORM, "multipart": MULTIPART}.get(kind)
        if media.partition(";")[0].strip() != standard:
            taken.content_type = "application/octet-stream" if "*" in media else media
        if is_object and is_closed and 0 < len(fields) <= MAX_FLATTENED:
            required = set(texts(found.get("required"))) if needed is not False else set()
            for key, one in fields.items():
                form.add(key, "body", one, needed=key in required)
            return
        if described := about(words):
            found["description"] = described
        form.add(name, "body", found, needed=bool(needed), is_whole=True)

    def _part(
        self, key: str, made: Schema, raws: Json, home: File, kind: str, parts: dict[str, Json]
    ) -> Schema:
        """A field of a form, with how it is written."""
        raw, _ = self._library.resolved(mapping(raws).get(key), home)
        given = mapping(raw)
        if kind == "multipart":
            if _is_binary(given):
                return {**made, **FILE}
            if _is_binary(mapping(self._library.resolved(given.get("items"), home)[0])):
                return {**made, "items": dict(FILE), "x-file": True}
        own = mapping(parts.get(key))
        if "style" in own or "explode" in own:
            return made | _styled(own, "body", self._schemas.kind(mapping(raws).get(key), home))
        return made


def _named_type(headers: list[tuple[Schema, File]]) -> str | None:
    """What a parameter `Content-Type` says of a body that is sent as it is: its default, or all it may be."""
    for raw, _ in headers:
        if text(raw["name"]).lower() == "content-type":
            known = {**mapping(raw.get("schema")), **raw}
            choices = texts(known.get("enum"))
            return text(known.get("default")) or (choices[0] if len(choices) == 1 else None)
    return None


class _Form:
    """One schema, grown parameter by parameter; names that are taken give way."""

    def __init__(self, report: Report, place: str) -> None:
        self._members: Schema = {}
        self._required: list[str] = []
        self._report = report
        self._place = place

    def put(self, key: str, schema: Schema, *, needed: bool) -> None:
        self._members[key] = schema
        if needed:
            self._required.append(key)

    def add(
        self, name: str, where: str, schema: Schema, *, needed: bool, is_whole: bool = False
    ) -> None:
        clean = name if _KEY.fullmatch(name) else _cleaned(name)
        key = (
            clean if clean not in self._members else unused(f"{where}_{clean}", self._members, 120)
        )
        found = {**schema, "x-in": where}
        if (
            not needed
            and "default" in found
            and (where == "body" or found["default"] in (None, ""))
        ):
            found["x-default"] = found.pop(
                "default"
            )  # the far side's own; sent, it would undo what is there
        if is_whole:
            found["x-as"] = "$"
        elif key != name:
            found["x-as"] = name
        self.put(key, found, needed=needed)

    def as_json(self) -> Schema:
        found: Schema = {
            "type": "object",
            "properties": self._members,
            "additionalProperties": False,
        }
        return found | ({"required": self._required} if self._required else {})


def _placed(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) else member(name) or "part"


def _cleaned(name: str) -> str:
    spelled = "".join(_SIGNS.get(letter, letter) for letter in name)
    return member(spelled) or "field"


def _styled(raw: Schema, where: str, kind: str | None) -> Schema:
    """How a list or map is written in its place, named also where it is the usual way; nothing for one value."""
    style = raw["style"] if raw.get("style") in _KNOWN_STYLES else _STYLES[where]
    explode = (
        raw["explode"] if isinstance(raw.get("explode"), bool) else style in ("form", "deepObject")
    )
    if kind not in ("array", "object"):
        return {"x-style": style} if style in ("label", "matrix") else {}
    return {"x-style": style, "x-explode": explode}


def _collected(raw: Schema, where: str, kind: str | None) -> Schema:
    """As `_styled`, of Swagger 2.0."""
    if kind != "array":
        return {}
    style, explode = _COLLECTIONS.get(text(raw.get("collectionFormat")) or "csv", (None, False))
    return {"x-style": style or _STYLES[where], "x-explode": explode}


def encoding(media: str) -> str:
    """How a body of that media type is written."""
    kind = media.partition(";")[0].strip().lower()
    if kind == JSON or kind.endswith("+json") or kind == "text/json":
        return "json"
    if kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return "ndjson"
    if kind == FORM:
        return "form"
    return "multipart" if kind.startswith("multipart/") else "raw"


def chosen(content: Iterable[str]) -> str:
    """The media type that is easiest to fill in: JSON, a form, parts, the rest; of several alike the first."""

    def rank(media: str) -> tuple[int, int]:
        kind = media.partition(";")[0].strip().lower()
        if kind == JSON:
            return (0, 0)
        if kind == "application/json-patch+json":
            return (0, 2)  # a list of steps, where a plain object does as well
        order = {"json": 0, "form": 1, "multipart": 2, "ndjson": 3, "raw": 4}
        return (order[encoding(media)], 1)

    return min(content, key=rank)


def _is_binary(raw: Schema) -> bool:
    return (
        raw.get("format") == "binary"
        or raw.get("type") == "file"
        or (
            isinstance(raw.get("contentMediaType"), str)
            and "contentEncoding" not in raw
            and raw.get("type") != "object"
        )
    )


def _raw(media: str, words: Json) -> Schema:
    found: Schema = (
        {"type": "string"}
        if media.startswith("text/") or "xml" in media or "yaml" in media
        else dict(FILE)
    )
    return found | ({"description": about(words)} if about(words) else {})
