"""A definition as lint looks at it: what is written, where, and as much of it as can be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from stackd.core.apps import normal_operation
from stackd.core.text import shown
from stackd.integrations.catalogue import Kind
from stackd.integrations.definition import App, Operation, Trigger
from stackd.workflows.findings import Finding, Remarks
from stackd.workflows.source import Place

M = TypeVar("M", bound=BaseModel)

KEYS: Final[dict[Kind, str]] = {"action": "actions", "trigger": "triggers"}


@dataclass(frozen=True, slots=True)
class Told:
    """A finding and the file it is in, relative to the connector's folder."""

    file: str
    finding: Finding


def told(file: str, code: str, message: str, line: int = 1, *, hint: str | None = None) -> Told:
    """An error in `file`."""
    return Told(file, Finding(code, message, line, 1, hint=hint))


@dataclass(frozen=True, slots=True)
class Written:
    """An operation. `read`: None if it cannot be."""

    kind: Kind
    id: str
    raw: dict[str, Any]
    place: Place
    read: Operation | None

    @property
    def members(self) -> Mapping[str, dict[str, Any]]:
        """The schemas of its parameters."""
        parameters = self.raw.get("parameters")
        found = parameters.get("properties") if isinstance(parameters, dict) else None
        pairs = found.items() if isinstance(found, dict) else ()
        return {name: one if isinstance(one, dict) else {} for name, one in pairs}

    @property
    def endpoint(self) -> str:
        found = self.raw.get("endpoint", self.raw.get("path"))
        return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True)
class Definition:
    """A whole definition. `app`: None if it cannot be read."""

    raw: dict[str, Any]
    app: App | None
    operations: tuple[Written, ...]

    @property
    def actions(self) -> list[Written]:
        return [one for one in self.operations if one.kind == "action"]

    @property
    def triggers(self) -> list[Written]:
        return [one for one in self.operations if one.kind == "trigger"]


def definition_of(raw: dict[str, Any], folder: str, remarks: Remarks) -> Definition:
    """`raw` as far as it can be read; what keeps the rest from it is noted."""
    around = {key: value for key, value in raw.items() if key not in KEYS.values()}
    app = _read(App, {**around, "id": raw.get("id") or folder}, (), remarks)
    return Definition(raw, app, tuple(_operations(raw, remarks)))


def _operations(raw: dict[str, Any], remarks: Remarks) -> Iterator[Written]:
    kind: Kind
    for kind in KEYS:
        key = KEYS[kind]
        given = raw.get(key, [])
        if not isinstance(given, list | dict):
            remarks.error("connector.invalid", f"{key} must be a list or a map", (key,))
            continue
        pairs = given.items() if isinstance(given, dict) else enumerate(given)
        seen: set[str] = set()
        for at, one in pairs:
            place: Place = (key, at)
            own = (
                one.get("id", at if isinstance(at, str) else None)
                if isinstance(one, dict)
                else None
            )
            if not isinstance(own, str) or not own.strip():
                remarks.error("operation.id", f"an entry of {key} without an id", place)
                continue
            if normal_operation(own) in seen:
                remarks.error("operation.id", f"{shown(own)!r} is there more than once", place)
            seen.add(normal_operation(own))
            model = Operation if kind == "action" else Trigger
            yield Written(kind, own, one, place, _read(model, {**one, "id": own}, place, remarks))


def _read(model: type[M], given: dict[str, Any], place: Place, remarks: Remarks) -> M | None:
    """`given` as a `model`; each fault is noted, and a key that is not known does not hide the rest."""
    try:
        return model.model_validate(given, extra="forbid")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    for problem in problems:
        where = (*place, *problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = [one.alias or name for name, one in model.model_fields.items()]
            remarks.error(
                "connector.unknown_key",
                f"nobody reads {shown(str(problem['loc'][-1]))!r}",
                where,
                wrong=str(problem["loc"][-1]),
                known=known,
                hint="a key of your own begins with x-",
            )
        else:
            words = problem["msg"].removeprefix("Value error, ")
            remarks.error("connector.invalid", words[0].lower() + words[1:], where)
    try:
        return model.model_validate(given)
    except ValidationError:
        return None
