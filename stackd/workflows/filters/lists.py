"""Filters over lists and maps."""

from __future__ import annotations

from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    CHARACTERS_PER_STEP,
    LIST,
    MAP,
    MAX_RESULT_BYTES,
    MISSING,
    NULL,
    NUMBER,
    TEXT,
    TRUTH,
    Budget,
    bounded,
    kind_of,
    over_limit,
    require_order,
    text_of,
    too_large,
)


def _join(budget: Budget, value: Json, separator: Json) -> Json:
    budget.spend(len(value))
    room = MAX_RESULT_BYTES
    parts: list[str] = []
    for element in value:
        parts.append(text_of(element, "join"))
        room -= len(parts[-1]) + len(separator)
        if room < -len(separator):
            raise too_large()
    return separator.join(parts)


def _first(_: Budget, value: Json) -> Json:
    return value[0] if value else MISSING


def _last(_: Budget, value: Json) -> Json:
    return value[-1] if value else MISSING


def _length(_: Budget, value: Json) -> Json:
    return len(value)


def _keys(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value)


def _values(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value.values())


def _sum(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    if not set(map(type, value)) <= NUMBER:
        wrong = next(element for element in value if type(element) not in NUMBER)
        raise ExpressionError(f"sum adds numbers, not {kind_of(wrong)}")
    try:
        return bounded(sum(value), "sum")
    except OverflowError:
        raise over_limit("sum: the result is too large a number") from None


def _min(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    require_order(value, "min")
    return min(value) if value else MISSING


def _max(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    require_order(value, "max")
    return max(value) if value else MISSING


def _sort(budget: Budget, value: Json, reverse: Json, attribute: Json) -> Json:
    budget.spend(2 * len(value))
    if attribute is None:
        require_order(value, "sort")
        return sorted(value, reverse=reverse)
    keys = []
    for element in value:
        if type(element) is not dict or attribute not in element:
            raise ExpressionError(f'sort: an element has no "{attribute}"')
        keys.append(element[attribute])
    require_order(keys, "sort")
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
    return [value[index] for index in order]


def _unique(budget: Budget, value: Json) -> Json:
    """The first of each equal elements, in their order."""
    budget.spend(len(value))
    found: dict[str, Json] = {}
    for element in value:
        parts: list[str] = []
        _write_identity(element, parts, budget)
        found.setdefault("".join(parts), element)
    return list(found.values())


def _write_identity(value: Json, parts: list[str], budget: Budget) -> None:
    """Add text that equal values share and others do not. Text, because numbers' hashes can be made to collide."""
    kind = type(value)
    if kind is str:
        parts.append(f's{len(value)}"{value}')
    elif kind is list:
        budget.spend(len(value))
        parts.append(f"l{len(value)}[")
        for element in value:
            _write_identity(element, parts, budget)
    elif kind is dict:
        budget.spend(2 * len(value))
        parts.append(f"m{len(value)}{{")
        for key in sorted(value):
            parts.append(f'{len(key)}"{key}')
            _write_identity(value[key], parts, budget)
    elif kind is float and value.is_integer():
        parts.append(f"n{int(value):x};")
    elif kind is int:
        budget.spend(value.bit_length() // CHARACTERS_PER_STEP)
        parts.append(f"n{value:x};")
    else:
        parts.append(f"v{value!r};")


_SEQUENCE: Final = TEXT | LIST

FILTERS: Final[dict[str, Filter]] = {
    "join": Filter(_join, LIST, (Parameter("separator", TEXT, default=""),)),
    "first": Filter(_first, _SEQUENCE),
    "last": Filter(_last, _SEQUENCE),
    "length": Filter(_length, _SEQUENCE | MAP),
    "keys": Filter(_keys, MAP),
    "values": Filter(_values, MAP),
    "sum": Filter(_sum, LIST),
    "min": Filter(_min, LIST),
    "max": Filter(_max, LIST),
    "sort": Filter(
        _sort,
        LIST,
        (
            Parameter("reverse", TRUTH, default=False),
            Parameter("attribute", TEXT | NULL, default=None),
        ),
    ),
    "unique": Filter(_unique, LIST),
}
