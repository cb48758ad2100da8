"""Whether something can run an operation, in the words of clients, of lint and of activation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal

from stackd.core.names import nearest
from stackd.core.text import shown

Mode = Literal["native", "fallback", "unavailable"]
Lack = Literal["missing-app", "missing-operation"]

MISSING: Final = "runtime.missing_capability"
FALLBACK: Final = "runtime.fallback"
NATIVE_RUNTIME: Final = "python"
FALLBACK_RUNTIME: Final = "node"  # what the origin's clients take it for where nobody says

# Runtimes as people call them, by all the names under which daemons list them.
_CALLED: Final = {
    "python": "Python",
    "http": "generic HTTP",
    "node": "Node.js",
    "appsScript": "Apps Script",
    "apps_script": "Apps Script",
    "cloudWorker": "cloud worker",
    "cloud_worker": "cloud worker",
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """What there is to run an operation, or an app: then `operation` is None.

    Attributes:
        native_supported: a handler of its own runs it.
        fallback_runtime: what runs it otherwise; None where nothing needs to, or can.
        code: of the registry's issue, `runtime.…`; empty if there is none.
        reason: that issue in its words.
        wrong, known: a name that is none, and those that there are.
    """

    app: str
    operation: str | None
    mode: Mode
    issue: Lack | None = None
    fallback_runtime: str | None = None
    code: str = ""
    reason: str = ""
    wrong: str | None = None
    known: Collection[str] = field(default=(), compare=False, repr=False)

    @property
    def supported(self) -> bool:
        """Whether anything runs it."""
        return self.mode != "unavailable"

    @property
    def native_supported(self) -> bool:
        return self.mode == "native"

    @property
    def meant(self) -> str | None:
        """The name that the wrong one is most like. Takes up to 2 ms: for what is shown, not for all there is."""
        return None if self.wrong is None else nearest(self.wrong, self.known)

    @property
    def warning(self) -> str | None:
        """What to tell who uses it; None if there is nothing to tell."""
        told, meant = self.fact, self.meant
        return told if told is None or meant is None else f"{told}; did you mean {meant!r}?"

    @property
    def fact(self) -> str | None:
        """As `warning`, but for what was meant."""
        app = shown(self.app).replace("-", " ").replace("_", " ").title()
        of_app = self.issue == "missing-app" or self.operation is None
        what = app if of_app else f"{app} {shown(self.operation or '')}"
        if self.mode == "native":
            return None
        if self.mode == "fallback":
            runtime = _called(self.fallback_runtime or FALLBACK_RUNTIME)
            return f"{what} will run via {runtime} fallback until it has a handler of its own"
        why = f": {self.reason}" if self.reason else ""
        return f"{what} is not enabled in {_called(NATIVE_RUNTIME)}{why}"


def unknown_app(app: str, operation: str | None, known: Collection[str]) -> Coverage:
    """That there is no such app."""
    reason = f"there is no connector {shown(app)!r}"
    return Coverage(app, operation, "unavailable", "missing-app", None, MISSING, reason, app, known)


def unknown_operation(app: str, operation: str, kind: str, known: Collection[str]) -> Coverage:
    """That the app has no such action or trigger."""
    reason = f"{shown(app)} has no {kind} {shown(operation)!r}"
    return Coverage(
        app, operation, "unavailable", "missing-operation", None, MISSING, reason, operation, known
    )


def _called(runtime: str) -> str:
    return _CALLED.get(runtime, runtime)
