"""One entry of the tables: what a filter or test accepts, its parameters, its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.values import KINDS, WHOLE, Budget, kind_of


class Required:
    """The type of `REQUIRED`."""

    __slots__ = ()


REQUIRED: Final = Required()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. `refuse` tells what is wrong with a value of the right type, or None.

    `cost(value)`: the steps that `refuse` takes. Who writes an argument out pays with its characters.
    """

    name: str
    accepts: frozenset[type]
    default: Json = REQUIRED  # REQUIRED: must be given
    refuse: Callable[[Any], str | None] | None = None
    cost: Callable[[Any], int] | None = None

    def check(self, value: Json, where: str, budget: Budget | None = None) -> None:
        if type(value) not in self.accepts:
            expected = _expected(self.accepts)
            raise ExpressionError(f"{where}: {self.name} must be {expected}, not {kind_of(value)}")
        if self.cost and budget:
            budget.spend(self.cost(value))
        problem = self.refuse(value) if self.refuse else None
        if problem:
            raise ExpressionError(f"{where}: {self.name} {problem}")


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter or test. `run(budget, value, *arguments)` gets every parameter, defaults filled in.

    `sees_missing`: a missing path arrives as MISSING instead of failing. A filter may return MISSING where
    there is no such value, which `nothing` words; that fails unless `default` or `omit` follows directly.
    `lazy`: arguments arrive as functions, so that one that is not needed is never evaluated.
    `named`: arguments are given by name only.
    `many`: the last parameter takes any number of arguments by place, at least one.
    `inner`: after the first `leading` parameters a filter's or test's name may follow by place, then its
    arguments: `run` gets it last, as a function `apply(value)`, or None. `apply` gives MISSING for MISSING
    if what it applies does not see that.
    `agree(*arguments)`: what is wrong with arguments together that are right each by itself, or None.
    """

    run: Callable[..., Json]
    accepts: frozenset[type]
    parameters: tuple[Parameter, ...] = ()
    sees_missing: bool = False
    nothing: str = "the {kind} is empty"
    lazy: bool = False
    named: bool = False
    many: bool = False
    inner: str = ""  # "filter" or "test"
    leading: int = 0
    agree: Callable[..., str | None] | None = None

    def check(self, value: Json, where: str) -> None:
        if type(value) not in self.accepts:
            raise ExpressionError(f"{where} takes {_expected(self.accepts)}, not {kind_of(value)}")


def _expected(accepts: frozenset[type]) -> str:
    if accepts == WHOLE:
        return "a whole number"
    return " or ".join(dict.fromkeys(name for kind, name in KINDS.items() if kind in accepts))
