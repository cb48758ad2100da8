"""One entry of the tables: what a filter or test accepts, its parameters, its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.values import KINDS, MISSING, WHOLE, kind_of


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. `refuse` tells what is wrong with a value of the right type, or None."""

    name: str
    accepts: frozenset[type]
    default: Json = MISSING  # MISSING: must be given
    refuse: Callable[[Any], str | None] | None = None

    def check(self, value: Json, where: str) -> None:
        if type(value) not in self.accepts:
            expected = _expected(self.accepts)
            raise ExpressionError(f"{where}: {self.name} must be {expected}, not {kind_of(value)}")
        problem = self.refuse(value) if self.refuse else None
        if problem:
            raise ExpressionError(f"{where}: {self.name} {problem}")


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter or test. `run(budget, value, *arguments)` gets every parameter, defaults filled in.

    `sees_missing`: a missing path arrives as MISSING instead of failing. A filter may return MISSING where
    there is no such value; that fails unless `default` or `omit` follows directly.
    `lazy`: arguments arrive as functions, so that one that is not needed is never evaluated.
    """

    run: Callable[..., Json]
    accepts: frozenset[type]
    parameters: tuple[Parameter, ...] = ()
    sees_missing: bool = False
    lazy: bool = False

    def check(self, value: Json, where: str) -> None:
        if type(value) not in self.accepts:
            raise ExpressionError(f"{where} takes {_expected(self.accepts)}, not {kind_of(value)}")


def _expected(accepts: frozenset[type]) -> str:
    if accepts == WHOLE:
        return "a whole number"
    return " or ".join(dict.fromkeys(name for kind, name in KINDS.items() if kind in accepts))
