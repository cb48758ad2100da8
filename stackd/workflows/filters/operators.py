"""The operators between two values: calculating and comparing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.values import (
    MAX_INTEGER_BITS,
    NUMBER,
    Budget,
    bounded,
    contains,
    equal,
    joined,
    kind_of,
    ordering,
    over_limit,
)


def _require_numbers(symbol: str, left: Json, right: Json) -> None:
    if type(left) not in NUMBER or type(right) not in NUMBER:
        raise ExpressionError(
            f'"{symbol}" needs two numbers, not {kind_of(left)} and {kind_of(right)}'
        )


def _add(budget: Budget, left: Json, right: Json) -> Json:
    kind = type(left)
    if kind is type(right) and kind is str:
        return joined([left, right])
    if kind is type(right) and kind is list:
        budget.spend(len(left) + len(right))
        return left + right
    if kind is str or type(right) is str:
        hint = "; to join texts use ~, to calculate use number"
        raise ExpressionError(f'"+" cannot add {kind_of(left)} and {kind_of(right)}{hint}')
    _require_numbers("+", left, right)
    return bounded(left + right, '"+"')


def _subtract(_: Budget, left: Json, right: Json) -> Json:
    _require_numbers("-", left, right)
    return bounded(left - right, '"-"')


def _multiply(_: Budget, left: Json, right: Json) -> Json:
    _require_numbers("*", left, right)
    if (
        type(left) is int
        and type(right) is int
        and left.bit_length() + right.bit_length() > MAX_INTEGER_BITS + 1
    ):
        raise over_limit('"*": the result is too large a number')
    return bounded(left * right, '"*"')


def _dividing(symbol: str, divide: Callable[[Any, Any], Any]) -> Callable[..., Json]:
    def apply(_: Budget, left: Json, right: Json) -> Json:
        _require_numbers(symbol, left, right)
        if right == 0:
            raise ExpressionError(f'"{symbol}": division by zero')
        return bounded(divide(left, right), f'"{symbol}"')

    return apply


ARITHMETIC: Final[dict[str, Callable[[Budget, Json, Json], Json]]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _dividing("/", operator.truediv),
    "FloorDiv": _dividing("//", operator.floordiv),
    "Mod": _dividing("%", operator.mod),
}

COMPARISONS: Final[dict[str, Callable[[Budget, Json, Json], bool]]] = {
    "eq": lambda budget, left, right: equal(left, right, budget),
    "ne": lambda budget, left, right: not equal(left, right, budget),
    "lt": ordering('"<"', operator.lt),
    "lteq": ordering('"<="', operator.le),
    "gt": ordering('">"', operator.gt),
    "gteq": ordering('">="', operator.ge),
    "in": lambda budget, left, right: contains(right, left, budget),
    "notin": lambda budget, left, right: not contains(right, left, budget),
}
