"""One operation of a document as an action of a definition, or the reason why it is none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from stackd.core.apps import normal_operation
from stackd.core.json import Json
from stackd.integrations.importer import paging, parameters
from stackd.integrations.importer.authentication import Authentication, Servers
from stackd.integrations.importer.parameters import Parameters, Refused, Taken
from stackd.integrations.importer.reading import File, Library
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.samples import synthesised
from stackd.integrations.importer.schemas import DIALECT, MAX_NODES, Schema, Schemas, Work
from stackd.integrations.importer.values import (
    LONGEST_TITLE,
    NOTHING,
    bounded,
    cut,
    first_sentence,
    listing,
    mapping,
    plain,
    snake,
    text,
    texts,
    trimmed,
    unused,
)

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch")
OTHER_METHODS: Final = ("trace", "connect", "query")
EFFECTS: Final = {
    "GET": "read", "HEAD": "read", "OPTIONS": "read", "PUT": "idempotent", "DELETE": "idempotent",
    "POST": "unsafe", "PATCH": "unsafe",
}  # fmt: skip
_READS_AS: Final = {
    "application/x-ndjson": "ndjson", "application/ndjson": "ndjson", "application/jsonl": "ndjson",
    "application/json-seq": "ndjson",
}  # fmt: skip
_READING: Final = ("search", "query", "list", "find")
_TEXT: Final = re.compile(r"text/.*|.*[/+]xml|.*[/+]ya?ml|application/(javascript|graphql)")


@dataclass(frozen=True, eq=False)
class Asked:
    """An operation as the document has it. `place`: its method and path, as people name it."""

    method: str
    path: str
    raw: Schema
    item: Schema
    file: File

    @property
    def place(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def origin(self) -> str:
        return text(self.raw.get("operationId")) or self.place


@dataclass(slots=True)
class Made:
    """An action that is all but done: what depends on other schemas comes when all are there."""

    asked: Asked
    action: Schema
    example: Json
    headers: frozenset[str]


class Operations:
    """Makes actions, each under a name of its own."""

    def __init__(
        self, root: Schema, library: Library, schemas: Schemas, authentication: Authentication,
        servers: Servers, base_url: str, report: Report, *, is_swagger: bool,
    ) -> None:  # fmt: skip
        self._root = root
        self._library = library
        self._schemas = schemas
        self._authentication = authentication
        self._servers = servers
        self._base_url = base_url
        self._report = report
        self._is_swagger = is_swagger
        self._parameters = Parameters(schemas, library, report, is_swagger=is_swagger)
        self._names: set[str] = set()

    def make(self, asked: Asked) -> Made:
        """The action of `asked`.

        Raises:
            Refused: there can be none; says why.
        """
        raw, place = asked.raw, asked.place
        if asked.method not in EFFECTS:
            raise Refused(f"the method {asked.method} cannot be sent")
        work = Work(place, "request")
        given = self._parameters.merged(asked.item, raw, asked.file, place)
        in_path = {text(one["name"]) for one, _ in given if text(one["in"]).lower() == "path"}
        to = parameters.endpoint(asked.path, in_path)
        taken = self._parameters.make(
            given, raw.get("requestBody"), to,
            asked.file, work, method=asked.method, consumes=self._media("consumes", raw),
            sent=self._authentication.names_sent,
        )  # fmt: skip
        action: Schema = {"id": self._name(asked)} | self._words(asked)
        action |= {"endpoint": to.path, "method": asked.method, "effect": EFFECTS[asked.method]}
        if own := self._own_server(asked):
            action["baseUrl"] = own
        way, scopes = self._authentication.choice(raw.get("security"), place)
        if way is not None:
            action["auth"] = way
        if scopes:
            action["requiredScopes"] = scopes
        action["parameters"] = taken.schema
        self._put_request(action, taken, to.query)
        response = Work(place, "response", left=max(work.left, MAX_NODES // 10))
        example, headers = self._put_response(action, raw, asked.file, response)
        action |= {"runtimes": ["http"], "fallback": None, "x-origin": asked.origin}
        return Made(asked, action, example, headers)

    def finish(self, made: Made) -> Schema:
        """The action as it is written: with a sample, and with how it is paged."""
        action, named = made.action, self._schemas.named
        schema = action["outputSchema"]
        example = made.example
        action["sample"] = synthesised(schema, named) if example is NOTHING else example
        answer = paging.Answer(schema, named, made.headers)
        is_read = EFFECTS[made.asked.method] == "read" or _reads(made.asked)
        found = paging.paginate(made.asked.raw, answer, action["parameters"]) if is_read else None
        if found is not None:
            action["paginate"] = found
            self._report.guess(
                made.asked.place,
                f"its pages seem to follow by {found['type']}; without x-guess in paginate they are followed",
            )
        return action

    def trigger(self, action: Schema, made: Made) -> Schema | None:
        """A trigger that polls the list that `action` reads, if it looks fit for it."""
        if made.asked.method != "GET":
            return None
        answer = paging.Answer(action["outputSchema"], self._schemas.named, made.headers)
        parts = paging.poll(answer, action["parameters"])
        if parts is None:
            return None
        kept = (
            "title", "tags", "endpoint", "method", "baseUrl", "auth", "requiredScopes", "parameters", "send",
            "paginate", "response", "outputSchema",
        )  # fmt: skip
        found: Schema = {"id": f"{action['id'][:56]}_polled", "type": "poll", "x-guess": True}
        found |= {key: action[key] for key in kept if key in action}
        found |= parts
        self._report.guess(made.asked.place, f"can be polled, it seems: trigger {found['id']}")
        items = (
            action["sample"]
            if isinstance(action["sample"], list)
            else next(
                (one for one in mapping(action["sample"]).values() if isinstance(one, list)), []
            )
        )
        found["sample"] = items[0] if items else None
        return found | {"runtimes": ["http"], "fallback": None, "x-origin": made.asked.origin}

    # -- what it is called

    def _name(self, asked: Asked) -> str:
        given = text(asked.raw.get("operationId"))
        base = (
            snake(given)
            or snake(f"{asked.method}_{re.sub(r'[{}]', '', asked.path)}")
            or asked.method.lower()
        )
        name = unused(base, self._names)
        self._names.add(normal_operation(name))
        self._names.add(name)
        return name

    def _words(self, asked: Asked) -> Schema:
        raw = asked.raw
        title = " ".join(plain(raw.get("summary") or asked.item.get("summary")).split())
        if not title:
            words = snake(text(raw.get("operationId")) or asked.place).replace("_", " ")
            title = words[:1].upper() + words[1:]
        found: Schema = {"title": cut(title or asked.place, LONGEST_TITLE)}
        if sentence := first_sentence(raw.get("description") or asked.item.get("description")):
            found["description"] = sentence
        if tags := texts(raw.get("tags")):
            found["tags"] = tags
        if raw.get("deprecated") is True:
            found |= {"deprecated": True, "hidden": True}
        if raw.get("x-internal") is True:
            found["hidden"] = True
        return found

    # -- what it sends

    def _media(self, key: str, raw: Schema) -> list[str]:
        return texts(raw.get(key)) or texts(self._root.get(key))

    def _own_server(self, asked: Asked) -> str | None:
        if self._is_swagger:
            return None
        servers = listing(asked.raw.get("servers")) or listing(asked.item.get("servers"))
        return self._servers.own(servers, self._base_url) if servers else None

    def _put_request(self, action: Schema, taken: Taken, query: dict[str, Json]) -> None:
        if taken.encode is not None:
            action["encode"] = taken.encode
        if taken.content_type is not None:
            action["contentType"] = taken.content_type
        if taken.alternatives:
            action["x-encode"] = taken.alternatives
        if query:
            action["send"] = {"query": query}

    # -- what comes back

    def _put_response(
        self, action: Schema, raw: Schema, file: File, work: Work
    ) -> tuple[Json, frozenset[str]]:
        """Put what the answer is; an example of it, NOTHING if there is none, and the names of its headers."""
        answer, home, status = self._answer(raw, file)
        headers = frozenset(name.lower() for name in mapping(answer.get("headers")))
        links = bounded(answer.get("links"), nodes=200)
        if isinstance(links, dict) and links:
            action["x-links"] = links
        media, schema, example = self._content(answer, raw)
        reads_as = _read_as(media, schema, home, self._schemas)
        if media is None and schema is None:
            if status in ("204", "205") or action["method"] == "HEAD":
                action["response"] = "none"
                action["outputSchema"] = {"$schema": DIALECT, "type": "null"}
                return None, headers
            action["outputSchema"] = {"$schema": DIALECT}
            return (None if example is NOTHING else example), headers
        if reads_as != "auto":
            action["response"] = reads_as
        if reads_as == "text":
            made: Schema = {"type": "string"}
        elif reads_as == "blob":
            made, example = {"type": "object", "x-file": True}, {}
        else:
            made = self._schemas.translate(schema, home, work)
        action["outputSchema"] = {"$schema": DIALECT} | made
        return example, headers

    def _answer(self, raw: Schema, file: File) -> tuple[Schema, File, str]:
        """The answer that tells of success: the lowest 2xx with content, else the lowest; then `default`."""
        given = {str(key): one for key, one in mapping(raw.get("responses")).items()}
        good = sorted(key for key in given if re.fullmatch(r"2\d\d", key.strip()))
        good += [key for key in given if key.strip().upper() == "2XX"]
        good = good or [key for key in given if key == "default"]
        known = []
        for key in good:
            one, home = self._library.resolved(given[key], file)
            known.append((mapping(one), home, key.strip()))
        full = next(
            (one for one in known if mapping(one[0].get("content")) or one[0].get("schema")), None
        )
        return full or (known[0] if known else ({}, file, ""))

    def _content(self, answer: Schema, raw: Schema) -> tuple[str | None, Json, Json]:
        """Media type, schema and example of an answer."""
        if self._is_swagger:
            schema = answer.get("schema")
            examples = mapping(answer.get("examples"))
            produced = self._media("produces", raw)
            media = parameters.chosen(dict.fromkeys(produced)) if produced else parameters.JSON
            example = next(
                (one for key, one in examples.items() if parameters.encoding(key) == "json"),
                NOTHING,
            )
            if schema is None and example is NOTHING:
                return None, None, NOTHING
            return media, schema, _example(example)
        content = {key: mapping(one) for key, one in mapping(answer.get("content")).items()}
        if not content:
            return None, None, NOTHING
        media = parameters.chosen(content)
        chosen = content[media]
        example = chosen.get("example", NOTHING)
        if example is NOTHING:
            for one in mapping(chosen.get("examples")).values():
                found, _ = self._library.resolved(one, self._library.root)
                if "value" in mapping(found):
                    example = mapping(found)["value"]
                    break
        return media, chosen.get("schema"), _example(example)


def _example(given: Json) -> Json:
    if given is NOTHING:
        return NOTHING
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "[") and len(given) < 100_000:
        try:
            given = json.loads(given, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return trimmed(given)
    return trimmed(given)


def _read_as(media: str | None, schema: Json, home: File, schemas: Schemas) -> str:
    """How a body is read: `auto` is JSON where it comes as that."""
    if isinstance(schema, dict) and schema.get("type") == "file":
        return "blob"
    if media is None:
        return "auto"
    kind = media.partition(";")[0].strip().lower()
    if parameters.encoding(kind) in ("json", "form"):
        return "auto"
    if kind in _READS_AS:
        return _READS_AS[kind]
    if _TEXT.fullmatch(kind):
        return (
            "text"
            if schemas.kind(schema, home) not in ("object", "array") or "xml" in kind
            else "auto"
        )
    if "*" in kind:
        return "auto"
    return "blob"


def _reads(asked: Asked) -> bool:
    """Whether a POST looks like a query: its pages are worth a guess."""
    if asked.method != "POST":
        return False
    words = re.split(r"[/:]", asked.path.rstrip("/").lower())[-1].strip("_")
    first = snake(text(asked.raw.get("operationId"))).partition("_")[0]
    return words in _READING or first in _READING
