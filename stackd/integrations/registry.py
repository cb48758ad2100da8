"""What can run each operation, told truthfully: a handler, generic HTTP, or nothing, and why.

`/api/registry/capabilities` is this as JSON; the names of its members and codes are the origin's.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from cachetools import LRUCache

from stackd.core.apps import folded, normal_operation
from stackd.core.errors import InputError, NodeError, NotFoundError
from stackd.core.json import Json, dumps
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.integrations.catalogue import Catalogue, Connector, Kind, OperationEntry
from stackd.integrations.handlers import Handler
from stackd.integrations.plan import Plan
from stackd.workflows.model import CODE
from stackd.workflows.nodetypes import NODE_TYPES, Effect

PLANS: Final = 256  # compiled operations that are kept
PYTHON: Final = "python"
HTTP: Final = "http"

# The runtimes there are, by all names under which clients look for them: the origin's, and ours.
RUNTIMES: Final = (PYTHON, HTTP, "node", "appsScript", "cloudWorker")


class Fallback(StrEnum):
    """What may be asked for again by the generic executor after a handler has failed."""

    SAFE = "safe"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class CodeRuntime:
    """What runs code nodes in this process. `problem`: why nothing does, now; `told`: how well they are isolated, as JSON."""

    problem: str | None
    told: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Options:
    """What decides what runs, as it is now: settings, and what was found of the host.

    `code`: None: nobody here knows, as it is another process that runs it.
    """

    generic: bool = False
    fallback: Fallback = Fallback.SAFE
    development: bool = False
    code: CodeRuntime | None = None


class Availability(StrEnum):
    NATIVE = "native"
    FALLBACK = "fallback"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Issue:
    """Why an operation runs otherwise than by a handler, or not at all."""

    severity: str
    code: str
    message: str

    def as_json(self) -> dict[str, Json]:
        return {"severity": self.severity, "code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Capability:
    """What is known of one operation."""

    app: str
    id: str
    normal_id: str
    kind: Kind
    availability: Availability
    native: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    enabled_native: tuple[str, ...] = ()
    enabled_fallback: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()

    @property
    def resolved(self) -> str | None:
        return next(iter((*self.enabled_native, *self.enabled_fallback)), None)

    def as_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "normalizedId": self.normal_id,
            "kind": self.kind,
            "nativeRuntimes": list(self.native),
            "fallbackRuntimes": list(self.fallback),
            "resolvedRuntime": self.resolved,
            "availability": self.availability.value,
            "enabledNativeRuntimes": list(self.enabled_native),
            "enabledFallbackRuntimes": list(self.enabled_fallback),
            "disabledNativeRuntimes": [
                one for one in self.native if one not in self.enabled_native
            ],
            "disabledFallbackRuntimes": [
                one for one in self.fallback if one not in self.enabled_fallback
            ],
            "issues": [one.as_json() for one in self.issues],
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What an operation is asked of. `handler` None: only the generic executor can."""

    connector: Connector
    capability: Capability
    plan: Plan
    handler: Handler | None

    @property
    def speaks_itself(self) -> bool:
        """Whether its handler does not ask by `ctx.http`, so that nobody can count what it sends."""
        return "own" in (self.connector.handlers.transport, self.plan.operation.transport)


@dataclass(frozen=True, slots=True)
class Payload:
    """An answer that is ready to be sent. `etag`: a strong one, in its quotes."""

    body: bytes
    packed: bytes
    etag: str


@dataclass(slots=True)
class _Made:
    """What was computed for one catalogue and one set of options."""

    key: tuple[str, Options]
    payloads: dict[bool, Payload] = field(default_factory=dict)
    runs: dict[str, bool] = field(default_factory=dict)  # by connector
    plans: LRUCache[tuple[str, Kind, str], Plan] = field(default_factory=lambda: LRUCache(PLANS))
    faults: dict[tuple[str, Kind, str], str] = field(default_factory=dict)  # met when compiled
    targets: dict[tuple[str, str, Kind], Target] = field(default_factory=dict)


class Registry:
    """The operations of a catalogue, under the options there are now. `options` is asked each time."""

    def __init__(self, catalogue: Catalogue, options: Callable[[], Options]) -> None:
        self.catalogue = catalogue
        self._options = options
        self._made = _Made((catalogue.digest, options()))

    @property
    def options(self) -> Options:
        return self._options()

    def use(self, catalogue: Catalogue) -> None:
        """Let `catalogue` be what there is from now on, all of it at once."""
        self.catalogue = catalogue

    def _current(self) -> _Made:
        key = (self.catalogue.digest, self.options)
        if self._made.key != key:
            self._made = _Made(key)
        return self._made

    def connector(self, name: str) -> Connector:
        """The connector of that id or name.

        Raises:
            NotFoundError: there is none.
        """
        found = self.catalogue.find(name)
        if found is not None:
            return found
        meant = nearest(name, [one.id for one in self.catalogue.connectors])
        raise NotFoundError(
            f"no connector {shown(name)!r}",
            code="connector.not_found",
            hint=f"did you mean {meant!r}?" if meant else "see `stackd connectors list`",
        )

    # -- one operation

    def target(self, app: str, operation: str, kind: Kind = "action") -> Target:
        """What `app.operation` is asked of now.

        Raises:
            NodeError: there is no such connector or operation, its definition cannot be used, or nothing
                can run it; with the issue's code and words.
        """
        targets = self._current().targets
        found = targets.get((app, operation, kind))
        if found is None:
            if len(targets) >= PLANS:
                targets.clear()
            found = targets[app, operation, kind] = self._target(app, operation, kind)
        return found

    def _target(self, app: str, operation: str, kind: Kind) -> Target:
        connector = self.catalogue.find(app)
        if connector is None:
            known = [one.id for one in self.catalogue.connectors]
            meant = nearest(folded(app), known)
            raise _unusable(
                f"Unknown connector: {shown(app)}{f'; did you mean {meant}?' if meant else ''}",
                "connector.unknown",
            )
        name = normal_operation(operation)
        entry = connector.entries(kind).get(name)
        if entry is None:
            meant = nearest(name, connector.entries(kind))
            raise _unusable(
                f"Function not found: {connector.id}.{shown(operation)}"
                f"{f'; did you mean {meant}?' if meant else ''}",
                "operation.unknown",
            )
        capability = self.capability(connector, entry, kind)
        if capability.availability is Availability.UNAVAILABLE:
            first = capability.issues[0]
            raise _unusable(first.message, first.code)
        try:
            plan = self.plan(connector, entry, kind)
        except InputError as error:
            raise _unusable(error.message, error.code) from None
        return Target(connector, capability, plan, connector.handlers.by_name.get(name))

    def plan(self, connector: Connector, entry: OperationEntry, kind: Kind) -> Plan:
        """How the operation is asked for, compiled at first use.

        Raises:
            InputError: its definition cannot be used.
        """
        plans = self._current().plans
        key = (connector.id, kind, entry.normal_id)
        found = plans.get(key)
        if found is None:
            definition = connector.definition
            operation = definition.operation(kind, entry.normal_id)
            assert operation is not None  # noqa: S101  # the index has it of the same text
            try:
                found = plans[key] = Plan(definition.app, operation)
            except InputError as error:
                self._learn(key, error.message)
                raise
        return found

    def _learn(self, key: tuple[str, Kind, str], fault: str) -> None:
        """Tell from now on that an operation cannot run."""
        made = self._current()
        made.faults[key] = fault
        made.payloads.clear()
        made.runs.pop(key[0], None)

    def effect(self, app: str, operation: str) -> Effect:
        """What running the action again would do; the worst where that is not known."""
        connector = self.catalogue.find(app)
        entry = None if connector is None else connector.actions.get(normal_operation(operation))
        if connector is None or entry is None or _faults(connector):
            return Effect.UNSAFE
        try:
            return self.plan(connector, entry, "action").effect
        except InputError:
            return Effect.UNSAFE

    def capability(self, connector: Connector, entry: OperationEntry, kind: Kind) -> Capability:
        """What can run that operation now."""
        options = self.options
        words = f"{connector.id}.{entry.id}"
        issues: list[Issue] = []
        native = (
            (PYTHON,) if kind == "action" and entry.normal_id in connector.handlers.by_name else ()
        )
        fallback = (HTTP,) if kind == "action" and entry.has_http else ()
        fault = self._fault(connector, entry, kind)
        enabled_native = native if fault is None else ()
        can_ask = fault is None and entry.unsigned is None and options.generic
        enabled_fallback = fallback if can_ask else ()
        if enabled_native:
            availability = Availability.NATIVE
        elif enabled_fallback:
            availability = Availability.FALLBACK
            message = f"{words} runs by generic HTTP: no handler of its own"
            if connector.handlers.problem:
                message = f"{words} runs by generic HTTP: {connector.handlers.problem}"
            issues.append(Issue("warning", "runtime.fallback", message))
        else:
            availability = Availability.UNAVAILABLE
            issues += _why_not(connector, entry, words, kind, fault=fault)
        return Capability(
            connector.id, entry.id, entry.normal_id, kind, availability,
            native, fallback, enabled_native, enabled_fallback, tuple(issues),
        )  # fmt: skip

    def _fault(self, connector: Connector, entry: OperationEntry, kind: Kind) -> str | None:
        """What is wrong with the definition of an operation, as far as that is known before it is asked for."""
        own = next(iter(_faults(connector)), None) or entry.problem
        return own or self._current().faults.get((connector.id, kind, entry.normal_id))

    def runs(self, connector: Connector) -> bool:
        """Whether anything of it can run now."""
        known = self._current().runs
        if connector.id not in known:
            every = (
                self.capability(connector, entry, kind)
                for kind in _KINDS
                for entry in connector.entries(kind).values()
            )
            known[connector.id] = any(
                one.availability is not Availability.UNAVAILABLE for one in every
            )
        return known[connector.id]

    # -- all of them

    def capabilities(self, app: str | None = None) -> list[Capability]:
        """Those of all connectors, or of one, by app and id; the built-in ones first."""
        every = _built_in(self.options.code)
        found = [one for one in every if app is None or one.app == folded(app)]
        for connector in self.catalogue.connectors:
            if app is not None and connector is not self.catalogue.find(app):
                continue
            for kind in _KINDS:
                entries = sorted(connector.entries(kind).values(), key=lambda one: one.normal_id)
                found += [self.capability(connector, entry, kind) for entry in entries]
        return found

    def payload(self, *, unavailable: bool = False) -> Payload:
        """`/api/registry/capabilities`: what can run; with `unavailable` the rest too. Kept until something changes."""
        made = self._current()
        found = made.payloads.get(unavailable)
        if found is None:
            found = made.payloads[unavailable] = packed(self._as_json(unavailable=unavailable))
        return found

    def _as_json(self, *, unavailable: bool) -> dict[str, Json]:
        options = self.options
        by_app: dict[str, list[Capability]] = {}
        for one in self.capabilities():
            if unavailable or one.availability is not Availability.UNAVAILABLE:
                by_app.setdefault(one.app, []).append(one)
        enabled = {PYTHON: True, "node": True, HTTP: options.generic}
        return {
            "success": True,
            "capabilities": [_entry(app, by_app[app]) for app in sorted(by_app)],
            "runtimes": {name: enabled.get(name, False) for name in RUNTIMES},
            "runtimeFlags": {
                "genericExecutorEnabled": options.generic,
                "genericExecutorFallback": options.fallback.value,
            },
            "environment": {
                "connectorSimulatorEnabled": False,
                "genericExecutorEnabled": options.generic,
                "nodeEnv": "development" if options.development else "production",
                "sandbox": None if options.code is None else _sandbox(options.code),
            },
        }


_KINDS: Final[tuple[Kind, Kind]] = ("action", "trigger")


def packed(value: Json) -> Payload:
    """`value` ready to be sent, as it is and gzipped."""
    body = dumps(value)
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Payload(body, gzip.compress(body, 6, mtime=0), f'"{digest}"')


def _entry(app: str, all_of_it: Iterable[Capability]) -> dict[str, Json]:
    ids: dict[Kind, list[str]] = {"action": [], "trigger": []}
    details: dict[Kind, dict[str, Json]] = {"action": {}, "trigger": {}}
    for one in all_of_it:
        ids[one.kind].append(one.id)
        details[one.kind][one.normal_id] = one.as_json()
    return {
        "app": app,
        "normalizedAppId": folded(app),
        "actions": sorted(ids["action"]),
        "triggers": sorted(ids["trigger"]),
        "actionDetails": details["action"],
        "triggerDetails": details["trigger"],
    }


def _faults(connector: Connector) -> tuple[str, ...]:
    """What keeps all of a connector from running: an operation that is there twice does not."""
    return tuple(one for one in connector.problems if "more than once" not in one)


def _why_not(
    connector: Connector, entry: OperationEntry, words: str, kind: Kind, *, fault: str | None
) -> Iterable[Issue]:
    """Why nothing can run an operation, the first reason first."""
    if fault is not None:
        message = f"{words}: its definition cannot be used ({fault})"
        yield Issue("error", "runtime.no_capability", message)
        return
    if kind == "trigger":
        yield Issue(
            "error",
            "runtime.no_runtime",
            f"{words}: triggers of connectors do not run in this version",
        )
        return
    if connector.handlers.problem:
        yield Issue("error", "runtime.native_unavailable", f"{words}: {connector.handlers.problem}")
    if entry.has_http and entry.unsigned:
        yield Issue("error", "runtime.no_capability", f"{words}: {entry.unsigned}")
    elif entry.has_http:
        message = f"{words} needs generic HTTP, which is off; set GENERIC_EXECUTOR_ENABLED=true"
        yield Issue("error", "runtime.fallback_disabled", message)
    elif not connector.handlers.problem:
        message = f"{words} has no handler, and its definition no endpoint and method"
        yield Issue("error", "runtime.missing_capability", message)


def _sandbox(code: CodeRuntime) -> dict[str, Json]:
    return {"available": code.problem is None, "problem": code.problem, **code.told}


def _built_in(code: CodeRuntime | None) -> Iterable[Capability]:
    """The built-in actions and triggers, which run by themselves; code nodes where there is a sandbox."""
    for name in sorted(NODE_TYPES):
        group, _, rest = name.partition(".")
        app, _, operation = rest.partition(".")
        if name == CODE and code is not None and code.problem is not None:
            issue = Issue(
                "error", "runtime.native_unavailable", f"code does not run: {code.problem}"
            )
            yield Capability(
                app, operation, operation, _GROUPS[group], Availability.UNAVAILABLE,
                (PYTHON,), (), (), (), (issue,),
            )  # fmt: skip
        elif group in _GROUPS:
            yield Capability(
                app, operation, operation, _GROUPS[group], Availability.NATIVE,
                (PYTHON,), (), (PYTHON,), (),
            )  # fmt: skip


_GROUPS: Final[Mapping[str, Kind]] = {"action": "action", "trigger": "trigger"}


def _unusable(message: str, code: str) -> NodeError:
    return NodeError(message, kind="invalid", code=code)


def connector_view(connector: Connector) -> dict[str, Any]:
    """A connector as lists show it, whatever is wrong with it."""
    return {
        "id": connector.id,
        "normalizedId": connector.normal_id,
        "name": connector.name,
        "description": connector.description,
        "category": connector.category,
        "version": connector.version,
        "actions": [one.id for one in connector.actions.values()],
        "triggers": [one.id for one in connector.triggers.values()],
        "hasHandlers": bool(connector.handlers.by_name),
        "problems": list(connector.told),
    }


def connector_detail(registry: Registry, connector: Connector) -> dict[str, Any]:
    """A connector in full: its fields, and each operation with what runs it and what it takes."""
    operations: list[dict[str, Any]] = []
    definition = None if _faults(connector) else connector.definition
    for kind in _KINDS:
        for entry in connector.entries(kind).values():
            effect = _effect_shown(registry, connector, entry, kind)  # compiles it, which may fail
            one = registry.capability(connector, entry, kind).as_json()
            is_read = definition is not None and entry.problem is None
            found = definition.operation(kind, entry.normal_id) if definition and is_read else None
            if found is not None:
                one |= {
                    "title": found.words,
                    "description": found.description,
                    "method": found.method,
                    "endpoint": found.endpoint,
                    "parameters": found.parameters,
                    "effect": effect,
                }
            operations.append(one)
    return {
        **connector_view(connector),
        "docs": definition.app.docs if definition else None,
        "baseUrl": definition.app.base_url if definition else None,
        "authentication": {name: one.type for name, one in definition.app.ways_in.items()}
        if definition
        else {},
        "fields": definition.app.connection.fields if definition else {},
        "operations": operations,
    }


def _effect_shown(
    registry: Registry, connector: Connector, entry: OperationEntry, kind: Kind
) -> str | None:
    if kind == "trigger" or _faults(connector):
        return None
    try:
        return registry.plan(connector, entry, kind).effect.value
    except InputError:
        return None
