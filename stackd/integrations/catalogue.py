"""The connectors there are: folders of definitions, indexed in one go and parsed at first use.

The index keeps every text as it was read, packed: what runs is what was indexed, until the next reading
replaces all of it at once. A file that cannot be used is in it too, with the reason.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from stackd.core.apps import folded, normal_app, normal_operation
from stackd.core.errors import InputError
from stackd.core.json import Json, loads, loads_strict
from stackd.core.text import shown
from stackd.integrations.account import no_way_in
from stackd.integrations.definition import APP_ID, METHODS, App, Operation, Trigger
from stackd.integrations.handlers import Handlers, load_handlers

NAME: Final = "definition.json"
HANDLERS: Final = "handlers.py"
LONGEST: Final = 64 * 1024 * 1024  # bytes; the largest known definition has less than one hundredth
PACKED: Final = 1  # of zlib's levels: a tenth of the text, at 100 MB/s

Kind = Literal["action", "trigger"]


@dataclass(frozen=True, slots=True)
class OperationEntry:
    """One operation, as far as the index knows it.

    Attributes:
        has_http: it names an endpoint and a method.
        problem: why its definition cannot be used.
        unsigned: why no request of it could be signed.
    """

    id: str
    normal_id: str
    has_http: bool
    problem: str | None = None
    unsigned: str | None = None


@dataclass(frozen=True)
class Connector:
    """One folder of the catalogue.

    Attributes:
        id: of the app, as its definition has it; of the folder where that says nothing.
        folder: where it is.
        digest: of the text and the handlers, so that two readings can be told apart.
        problems: what is wrong with it as a whole; each names the place.
        handlers: what runs some of its operations by code of its own.
    """

    id: str
    folder: Path
    name: str
    description: str
    category: str | None
    version: str
    digest: str
    actions: Mapping[str, OperationEntry]
    triggers: Mapping[str, OperationEntry]
    problems: tuple[str, ...]
    handlers: Handlers
    packed: bytes = field(repr=False, default=b"")

    @property
    def normal_id(self) -> str:
        return folded(self.id)

    def entries(self, kind: Kind) -> Mapping[str, OperationEntry]:
        return self.actions if kind == "action" else self.triggers

    @property
    def told(self) -> tuple[str, ...]:
        """All that is wrong with it and with its operations, for people."""
        every = [*self.actions.values(), *self.triggers.values()]
        own = [one.problem for one in every if one.problem is not None]
        return (*self.problems, *own, *filter(None, [self.handlers.problem]))

    @cached_property
    def definition(self) -> Definition:
        """Its definition, parsed now; some milliseconds for a large one."""
        return Definition(loads(zlib.decompress(self.packed)) if self.packed else {}, self.id)


class Definition:
    """A definition as it is used: the app, and its operations, each read when it is first asked for."""

    def __init__(self, raw: dict[str, Json], app_id: str) -> None:
        self._raw = {kind: dict(_operations(raw, kind)) for kind in _KEYS}
        self._read: dict[tuple[Kind, str], Operation] = {}
        self.app = App.model_validate({**raw, "id": raw.get("id") or app_id})

    def operation(self, kind: Kind, normal_id: str) -> Operation | None:
        """The operation of that name; None if there is none.

        Raises:
            InputError: its definition cannot be used.
        """
        known = self._read.get((kind, normal_id))
        if known is None:
            raw = self._raw[kind].get(normal_id)
            if raw is None:
                return None
            try:
                known = self._read[kind, normal_id] = _MODELS[kind].model_validate(raw)
            except ValidationError as error:
                raise InputError(
                    f"{self.app.id}: {first_problem(error, _place(kind, raw))}",
                    code="definition.invalid",
                ) from None
        return known


class Catalogue:
    """All connectors there are, by their names. Never changes: a new reading makes a new one."""

    def __init__(self, connectors: Sequence[Connector], problems: Sequence[str] = ()) -> None:
        self.connectors = tuple(sorted(connectors, key=lambda one: one.id))
        self.problems = tuple(problems)
        self._by_name: dict[str, Connector] = {}
        for connector in self.connectors:
            self._by_name.setdefault(connector.normal_id, connector)

    @cached_property
    def digest(self) -> str:
        """Differs where anything in it does."""
        whole = hashlib.sha256()
        for connector in self.connectors:
            whole.update(f"{connector.id} {connector.digest}\n".encode())
        return whole.hexdigest()

    def find(self, app: str) -> Connector | None:
        """The connector of that name, or of the app that goes by it."""
        return self._by_name.get(folded(app)) or self._by_name.get(normal_app(app))


def read_catalogue(folders: Sequence[Path]) -> Catalogue:
    """The connectors below `folders`; of two with one id, that of the earlier folder.

    Raises nothing for what is wrong with a connector or missing: that is told in what is returned.
    """
    found: dict[str, Connector] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            places = sorted(one for one in folder.iterdir() if (one / NAME).is_file())
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        for place in places:
            connector = read_connector(place)
            found.setdefault(connector.normal_id, connector)
    return Catalogue(list(found.values()), problems)


def read_connector(folder: Path) -> Connector:
    """The connector in `folder`, whatever is wrong with it."""
    path = folder / NAME
    raw: Json = {}
    text = b""
    problems: list[str] = []
    try:
        if path.stat().st_size > LONGEST:
            problems.append(f"{NAME}: over {LONGEST:,} bytes")
        else:
            text = path.read_bytes()
            raw = loads_strict(text)
    except OSError as error:
        problems.append(f"{NAME}: cannot be read ({error.strerror})")
    except InputError as error:
        problems.append(f"{NAME}: {error.message}")
    if not isinstance(raw, dict):
        problems.append(f"{NAME}: must hold a map")
        raw = {}
    app: App | None = None
    if problems:
        text = b""
    else:
        try:
            app = App.model_validate({**raw, "id": raw.get("id") or folder.name})
        except ValidationError as error:
            problems.append(first_problem(error, ""))
        problems += _faults(raw)
    app_id = raw.get("id")
    handlers = load_handlers(folder / HANDLERS)
    whole = hashlib.sha256(text)
    whole.update(f"{handlers.digest} {handlers.problem or ''}".encode())
    return Connector(
        id=app_id if isinstance(app_id, str) and app_id.strip() else folder.name,
        folder=folder,
        name=_text(raw.get("name")) or folder.name,
        description=_text(raw.get("description")),
        category=_text(raw.get("category")) or None,
        version=_text(raw.get("version")) or "1.0.0",
        digest=whole.hexdigest(),
        actions=_index(raw, "action", app),
        triggers=_index(raw, "trigger", app),
        problems=tuple(problems),
        handlers=handlers,
        packed=zlib.compress(text, PACKED) if text else b"",
    )


_KEYS: Final[dict[Kind, str]] = {"action": "actions", "trigger": "triggers"}
_MODELS: Final[dict[Kind, type[Operation]]] = {"action": Operation, "trigger": Trigger}


def _faults(raw: dict[str, Json]) -> Iterator[str]:
    """What is wrong with the lists of operations."""
    for kind, key in _KEYS.items():
        if raw.get(key) is not None and not isinstance(raw[key], list | dict):
            yield f"/{key}: must be a list or a map"
        names = [name for name, _ in _all_operations(raw, kind)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"/{key}: {shown(name)!r} is there more than once; the first counts"


def first_problem(error: ValidationError, within: str) -> str:
    """The first thing wrong, with the JSON pointer of its place."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = "/".join(str(part) for part in (*filter(None, [within]), *problem["loc"]))
    words = problem["msg"].removeprefix("Value error, ")
    return f"/{place}: {words[0].lower() + words[1:]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index(raw: dict[str, Json], kind: Kind, app: App | None) -> dict[str, OperationEntry]:
    """The operations of a definition; `app` None: nothing of it can be used, and one by one they are not judged."""
    found = {}
    for name, one in _operations(raw, kind):
        problem = unsigned = None
        if app is not None:
            try:  # looked at once and let go: what runs is read again at its first use
                operation = _MODELS[kind].model_validate(one)
            except ValidationError as error:
                problem = first_problem(error, _place(kind, one))
            else:
                unsigned = no_way_in(app, operation.auth)
        found[name] = OperationEntry(str(one["id"]), name, _has_http(one), problem, unsigned)
    return found


def _place(kind: Kind, raw: dict[str, Json]) -> str:
    return f"{_KEYS[kind]}/{raw['id']}"


def _has_http(operation: dict[str, Json]) -> bool:
    endpoint = operation.get("endpoint", operation.get("path"))
    method = operation.get("method")
    return (
        isinstance(endpoint, str)
        and bool(endpoint.strip())
        and isinstance(method, str)
        and method.strip().upper() in METHODS
    )


def _operations(raw: dict[str, Json], kind: Kind) -> Iterator[tuple[str, dict[str, Json]]]:
    """(name as it is compared, what is written) of each operation that has one; of two alike the first."""
    seen: set[str] = set()
    for name, one in _all_operations(raw, kind):
        if name not in seen:
            seen.add(name)
            yield name, one


def _all_operations(raw: dict[str, Json], kind: Kind) -> Iterator[tuple[str, dict[str, Json]]]:
    given = raw.get(_KEYS[kind])
    pairs = given.items() if isinstance(given, dict) else ((None, one) for one in given or [])
    if not isinstance(given, dict | list):
        return
    for key, one in pairs:
        if isinstance(one, dict):
            own = one.get("id", key)
            if isinstance(own, str) and own.strip():
                yield normal_operation(own), {**one, "id": own.strip()}


__all__ = [
    "APP_ID",
    "Catalogue",
    "Connector",
    "Definition",
    "Kind",
    "OperationEntry",
    "first_problem",
    "read_catalogue",
    "read_connector",
]
