"""A whole document as a definition: the app, its actions, and triggers where there is something to suppose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.integrations.catalogue import first_problem
from stackd.integrations.definition import App, Operation, Trigger
from stackd.integrations.importer.authentication import Authentication, Fields, Servers
from stackd.integrations.importer.operations import METHODS, OTHER_METHODS, Asked, Made, Operations
from stackd.integrations.importer.parameters import Refused
from stackd.integrations.importer.reading import File, Library
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.samples import synthesised
from stackd.integrations.importer.schemas import DIALECT, Schema, Schemas, Work
from stackd.integrations.importer.values import (
    cut,
    first_sentence,
    mapping,
    plain,
    snake,
    text,
    texts,
    unused,
)

_WHO_AM_I: Final = re.compile(
    r"(/v?[\d.]+|/api|/rest)*(/users?)?/(me|self|user|account|whoami|profile|current_?user|myself|current)/?",
    re.IGNORECASE,
)
_REMAINING: Final = re.compile(r"(x-)?rate-?limit-?(requests-)?remaining", re.IGNORECASE)
_LIMIT: Final = re.compile(r"(x-)?rate-?limit(-limit)?", re.IGNORECASE)
_RESET: Final = re.compile(r"(x-)?rate-?limit-?(requests-)?reset", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Imported:
    """`definition`: None if no operation could be taken."""

    definition: Schema | None
    report: Report


def version_of(root: Json, name: str) -> str:
    """`2.0`, `3.0` or `3.1`, as the document says.

    Raises:
        InputError: it is no OpenAPI or Swagger document, or of a version that is not read.
    """
    given = mapping(root)
    if "openapi" in given:
        said = text(given["openapi"])
        if re.match(r"3\.0(\.|$)", said):
            return "3.0"
        if re.match(r"3(\.[1-9]|$)", said):
            return "3.1"
    elif "swagger" in given:
        said = text(given["swagger"])
        if re.match(r"2(\.|$)", said):
            return "2.0"
    else:
        raise InputError(
            f"{name} is no OpenAPI document: it has neither `openapi` nor `swagger`",
            code="import.no_spec",
            hint="name a document of Swagger 2.0 or OpenAPI 3",
        )
    raise InputError(
        f"{name} is of version {shown(said) or 'unknown'!r}; 2.0, 3.0 and 3.1 are read",
        code="import.version",
    )


def import_document(
    file: File,
    app_id: str,
    report: Report,
    *,
    tags: Sequence[str] = (),
    operations: Sequence[str] = (),
) -> Imported:
    """The definition of `app_id` that the document in `file` comes to, with all operations or those named.

    Args:
        tags: operations with one of these.
        operations: these, by operation id, by method and path, or by the id of the action.

    Raises:
        InputError: it is no such document, or has no such tag or operation.
    """
    version = version_of(file.value, file.name)
    root: Schema = file.value
    library = Library(file, report)
    chosen = _chosen(list(_all_operations(root, library, file, report)), tags, operations)
    report.operations = len(chosen)
    return _Assembly(root, version, library, report, app_id).made(file, chosen)


def _all_operations(root: Schema, library: Library, file: File, report: Report) -> list[Asked]:
    found = []
    for key in ("paths", "x-ms-paths"):
        for path, given in mapping(root.get(key)).items():
            if path.startswith("x-"):
                continue
            item, home = library.resolved(given, file)
            if not isinstance(item, dict):
                if item is not None:
                    report.guess(path, "is no map of operations; it is left out")
                continue
            if item is not given and isinstance(given, dict):
                item = item | {name: one for name, one in given.items() if name != "$ref"}
            for name, one in item.items():
                method = name.strip().lower()
                if method not in METHODS and method not in OTHER_METHODS:
                    continue
                raw, own = library.resolved(one, home)
                if raw is None:
                    report.guess(path, f"has nothing below {name}; it is left out")
                    continue
                found.append(Asked(method.upper(), path, raw, item, own))
    return found


def _chosen(known: list[Asked], tags: Sequence[str], operations: Sequence[str]) -> list[Asked]:
    if not tags and not operations:
        return known
    all_tags = dict.fromkeys(tag for one in known for tag in texts(mapping(one.raw).get("tags")))
    for tag in tags:
        if tag not in all_tags:
            raise _unknown("tag", tag, list(all_tags))
    by_name: dict[str, Asked] = {}
    for one in known:
        own = text(mapping(one.raw).get("operationId"))
        for name in (own, one.place, snake(own or one.place)):
            by_name.setdefault(name, one)
    for name in operations:
        if name not in by_name:
            raise _unknown("operation", name, list(by_name))
    named = {id(by_name[name]) for name in operations}
    return [
        one
        for one in known
        if id(one) in named or set(texts(mapping(one.raw).get("tags"))) & set(tags)
    ]


def _unknown(what: str, name: str, known: list[str]) -> InputError:
    meant = nearest(name, known)
    return InputError(
        f"the document has no {what} {shown(name)!r}",
        code=f"import.unknown_{what}",
        hint=f"did you mean {shown(meant)!r}?" if meant else None,
    )


class _Assembly:
    def __init__(
        self, root: Schema, version: str, library: Library, report: Report, app_id: str
    ) -> None:
        self._root = root
        self._version = version
        self._is_swagger = version == "2.0"
        self._library = library
        self._report = report
        self._id = app_id
        self._fields = Fields()
        self._servers = Servers(self._fields, report)
        self._authentication = Authentication(self._fields, report)
        self._schemas = Schemas(library, report, old=version != "3.1")

    def made(self, file: File, chosen: list[Asked]) -> Imported:
        root = self._root
        base_url = (
            self._servers.of_swagger(root)
            if self._is_swagger
            else self._servers.first(root.get("servers"))
        )
        self._authentication.base_url = base_url
        self._authentication.begin(root, self._library, file)
        self._authentication.survey([mapping(one.raw) for one in chosen])
        operations = Operations(
            root, self._library, self._schemas, self._authentication, self._servers, base_url,
            self._report, is_swagger=self._is_swagger,
        )  # fmt: skip
        begun = [
            one for one in (self._begun(operations, asked) for asked in chosen) if one is not None
        ]
        events = self._events(file)
        self._schemas.finish()
        actions: list[Schema] = []
        triggers: list[Schema] = []
        for one in begun:
            action = self._finished(operations, one)
            if action is None:
                continue
            actions.append(action)
            if (trigger := operations.trigger(action, one)) and _is_whole(Trigger, trigger) is None:
                triggers.append(trigger)
        for event in events:
            event["sample"] = synthesised(event["outputSchema"], self._schemas.named)
        triggers += events
        _name_apart(triggers)
        self._report.imported = len(actions)
        if not actions:
            return Imported(None, self._report)
        definition = self._app(base_url, begun, actions)
        definition |= {"actions": actions} | ({"triggers": triggers} if triggers else {})
        definition |= {"schemas": self._schemas.named} if self._schemas.named else {}
        return Imported(definition, self._report)

    def _begun(self, operations: Operations, asked: Asked) -> Made | None:
        if not isinstance(asked.raw, dict):
            self._report.skip(asked.place, "is no map")
            return None
        try:
            return operations.make(asked)
        except Refused as refused:
            self._report.skip(asked.place, str(refused))
        except Exception as fault:  # noqa: BLE001  # one operation is lost by a fault of ours, not the document
            self._report.skip(asked.place, f"fault: {type(fault).__name__}: {fault}")
        return None

    def _finished(self, operations: Operations, made: Made) -> Schema | None:
        try:
            action = operations.finish(made)
            problem = _is_whole(Operation, action)
        except Exception as fault:  # noqa: BLE001  # as above
            problem = f"fault: {type(fault).__name__}: {fault}"
            action = None
        if problem is not None:
            self._report.skip(made.asked.place, problem)
            return None
        return action

    def _app(self, base_url: str, begun: list[Made], actions: list[Schema]) -> Schema:
        info = mapping(self._root.get("info"))
        name = cut(" ".join(plain(info.get("title")).split()), 120)
        found: Schema = {"stackd": 1, "id": self._id, "name": name or self._id}
        if words := first_sentence(info.get("description") or info.get("summary")):
            found["description"] = words
        found["version"] = cut(text(info.get("version")), 60) or "1.0.0"
        if docs := text(mapping(self._root.get("externalDocs")).get("url")):
            found["docs"] = docs
        found |= self._authentication.as_json()
        if fields := self._fields.as_json():
            found["connection"] = {"fields": fields}
        found["baseUrl"] = base_url
        if self._servers.hosts:
            found["hosts"] = list(self._servers.hosts)
        if self._servers.asks:
            found["privateNetwork"] = True
        if test := self._test(actions):
            found["testConnection"] = test
        if limits := _limits(begun, self._library):
            found["limitsFrom"] = limits
        found["x-origin"] = {"format": f"openapi {self._version}", "title": text(info.get("title"))}
        problem = _is_whole(App, found)
        if problem is not None:  # nothing that is known leads here
            raise InputError(f"the document makes no definition: {problem}", code="import.invalid")
        return found

    def _test(self, actions: list[Schema]) -> Schema | None:
        """A read that tells who one is."""
        for action in actions:
            if (
                action["method"] == "GET"
                and _WHO_AM_I.fullmatch(action["endpoint"])
                and not action["parameters"].get("required")
                and not {"baseUrl", "auth"} & set(action)
            ):
                self._report.guess(
                    "testConnection",
                    f"GET {action['endpoint']} is taken for a test of a connection",
                )
                return {"endpoint": action["endpoint"], "method": "GET", "x-guess": True}
        return None

    # -- events

    def _events(self, file: File) -> list[Schema]:
        """A trigger for each event that the document names; who is asked for it must be written by hand."""
        found = []
        for key in ("webhooks", "x-webhooks"):
            for name, given in mapping(self._root.get(key)).items():
                item, home = self._library.resolved(given, file)
                for method in ("post", "put"):
                    raw, own = self._library.resolved(mapping(item).get(method), home)
                    if isinstance(raw, dict):
                        found.append(self._event(name, raw, own))
                        break
        for asked in _all_operations(self._root, self._library, file, Report()):
            for name, given in mapping(mapping(asked.raw).get("callbacks")).items():
                callback, home = self._library.resolved(given, asked.file)
                for item in mapping(callback).values():
                    raw = mapping(item).get("post")
                    if isinstance(raw, dict):
                        found.append(self._event(name, raw, home))
        return found

    def _event(self, name: str, raw: Schema, file: File) -> Schema:
        body, home = self._library.resolved(raw.get("requestBody"), file)
        contents = list(mapping(mapping(body).get("content")).values())
        schema = mapping(contents[0]).get("schema") if contents else None
        title = (
            " ".join(plain(raw.get("summary")).split())
            or snake(name).replace("_", " ").capitalize()
        )
        output = {"$schema": DIALECT} | self._schemas.translate(
            schema, home, Work(f"event {name[:60]}", "response")
        )
        trigger: Schema = {
            "id": snake(name) or "event",
            "type": "webhook",
            "x-guess": True,
            "title": cut(title, 120),
        }
        if words := first_sentence(raw.get("description")):
            trigger["description"] = words
        self._report.guess(
            f"event {name[:60]}", "is a webhook whose signature must be described by hand (verify)"
        )
        return trigger | {
            "outputSchema": output, "sample": None, "dedupe": {"key": [], "x-guess": True},
            "runtimes": ["http"], "fallback": None, "x-origin": name[:200],
        }  # fmt: skip


def _name_apart(triggers: list[Schema]) -> None:
    taken: set[str] = set()
    for one in triggers:
        one["id"] = unused(one["id"], taken)
        taken.add(one["id"])


def _is_whole(model: Any, given: Schema) -> str | None:
    """What is wrong with a part of the definition; None if nothing is."""
    try:
        model.model_validate(given, extra="forbid")
    except ValidationError as error:
        return first_problem(error, "")
    return None


def _limits(begun: list[Made], library: Library) -> Schema | None:
    """The headers that tell what is left of a limit, if answers are said to have some."""
    names: dict[str, None] = {}
    for made in begun:
        for answer in mapping(made.asked.raw.get("responses")).values():
            found, _ = library.resolved(answer, made.asked.file)
            names |= dict.fromkeys(one.lower() for one in mapping(mapping(found).get("headers")))
    ordered = sorted(names)
    limits: Schema = {}
    for key, pattern in (("remaining", _REMAINING), ("limit", _LIMIT)):
        if (name := next((one for one in ordered if pattern.fullmatch(one)), None)) is not None:
            limits[key] = name
    reset = next((one for one in ordered if _RESET.fullmatch(one)), None)
    if reset is None and "retry-after" in names:
        reset = "retry-after"
    if reset is not None:
        limits["reset"] = {"header": reset, "form": "auto"}
    return limits or None
