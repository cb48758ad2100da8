"""The tests of expressions: `value is name`, and the names that `select` and its like take."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    ANY,
    ANY_OR_OMIT,
    LIST,
    MAP,
    MISSING,
    NULL,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Budget,
    bounded,
    contains,
    equal,
    ordering,
)


def _is_defined(_: Budget, value: Json) -> Json:
    return value is not MISSING


def _is_undefined(_: Budget, value: Json) -> Json:
    return value is MISSING


def _of_kind(kinds: frozenset[type]) -> Filter:
    def run(_: Budget, value: Json) -> Json:
        return type(value) in kinds

    return Filter(run, ANY_OR_OMIT)


def _is_true(_: Budget, value: Json) -> Json:
    return value is True


def _is_false(_: Budget, value: Json) -> Json:
    return value is False


def _is_even(_: Budget, value: Json) -> Json:
    return value % 2 == 0


def _is_odd(_: Budget, value: Json) -> Json:
    return value % 2 == 1


def _is_divisible(_: Budget, value: Json, number: Json) -> Json:
    return bounded(value, "divisibleby") % bounded(number, "divisibleby") == 0


def _refuse_zero(value: int) -> str | None:
    return None if value else "must not be 0"


def _is_equal(budget: Budget, value: Json, other: Json) -> Json:
    return equal(value, other, budget)


def _is_unequal(budget: Budget, value: Json, other: Json) -> Json:
    return not equal(value, other, budget)


def _is_in(budget: Budget, value: Json, container: Json) -> Json:
    return contains(container, value, budget)


def _is_starting(budget: Budget, value: Json, start: Json) -> Json:
    budget.spend_reading(start)
    return value.startswith(start)


def _is_ending(budget: Budget, value: Json, end: Json) -> Json:
    budget.spend_reading(end)
    return value.endswith(end)


def _in_order(name: str, compare: Callable[[Any, Any], bool]) -> Filter:
    return Filter(ordering(name, compare), ANY, (Parameter("other", ANY),))


TESTS: Final[dict[str, Filter]] = {
    "defined": Filter(_is_defined, ANY_OR_OMIT, sees_missing=True),
    "undefined": Filter(_is_undefined, ANY_OR_OMIT, sees_missing=True),
    **dict.fromkeys(("none", "null"), _of_kind(NULL)),
    "boolean": _of_kind(TRUTH),
    "true": Filter(_is_true, ANY_OR_OMIT),
    "false": Filter(_is_false, ANY_OR_OMIT),
    "number": _of_kind(NUMBER),
    "integer": _of_kind(WHOLE),
    "float": _of_kind(frozenset({float})),
    "string": _of_kind(TEXT),
    "list": _of_kind(LIST),
    "sequence": _of_kind(LIST | TEXT),
    **dict.fromkeys(("map", "mapping"), _of_kind(MAP)),
    "even": Filter(_is_even, WHOLE),
    "odd": Filter(_is_odd, WHOLE),
    "divisibleby": Filter(_is_divisible, WHOLE, (Parameter("number", WHOLE, refuse=_refuse_zero),)),
    **dict.fromkeys(("eq", "=="), Filter(_is_equal, ANY, (Parameter("other", ANY),))),
    **dict.fromkeys(("ne", "!="), Filter(_is_unequal, ANY, (Parameter("other", ANY),))),
    **dict.fromkeys(("lt", "<"), _in_order("lt", operator.lt)),
    **dict.fromkeys(("le", "<="), _in_order("le", operator.le)),
    **dict.fromkeys(("gt", ">"), _in_order("gt", operator.gt)),
    **dict.fromkeys(("ge", ">="), _in_order("ge", operator.ge)),
    "in": Filter(_is_in, ANY, (Parameter("container", TEXT | LIST | MAP),)),
    "startingwith": Filter(_is_starting, TEXT, (Parameter("start", TEXT),)),
    "endingwith": Filter(_is_ending, TEXT, (Parameter("end", TEXT),)),
}
