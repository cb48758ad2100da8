"""Filters over lists and maps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    ANY_OR_OMIT,
    CHARACTERS_PER_STEP,
    LIST,
    MAP,
    MAX_RESULT_BYTES,
    MISSING,
    NULL,
    NUMBER,
    OMIT,
    TEXT,
    TRUTH,
    WHOLE,
    Budget,
    bounded,
    kind_of,
    over_limit,
    require_order,
    text_of,
    too_large,
)

MAX_ATTRIBUTE = 200  # characters
_STEPS_PER_ELEMENT = 3  # to apply a filter or test to one, without the work it does there

Apply = Callable[[Json], Json]  # of the filter or test that an argument names; MISSING for MISSING


# --- attributes ---------------------------------------------------------------------------------------


def _keys_of(attribute: Json) -> list[str]:
    """The keys that `a.b.0` goes down by."""
    return attribute.split(".") if type(attribute) is str else [str(attribute)]


def _below(value: Json, keys: list[str]) -> Json:
    """What is there under `keys`, or MISSING."""
    for key in keys:
        if type(value) is dict:
            value = value.get(key, MISSING)
        elif type(value) is list and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return MISSING
    return value


_INDEX = re.compile("[0-9]{1,9}")


def _column(
    budget: Budget, value: list[Json], attribute: Json, where: str, default: Json = MISSING
) -> list[Json]:
    """The attribute of every element, which must have it without a default; for null the elements themselves."""
    if attribute is None:
        return value
    keys = _keys_of(attribute)
    budget.spend(len(value) * (1 + len(keys)))
    column = [_below(element, keys) for element in value]
    if default is not MISSING:
        return [default if member is MISSING else member for member in column]
    if any(member is MISSING for member in column):
        raise _has_none(attribute, where)
    return column


def _has_none(attribute: Json, where: str) -> ExpressionError:
    return ExpressionError(f'{where}: an element has no "{attribute}"', code="expression.missing")


# --- element by element -------------------------------------------------------------------------------


def _map(budget: Budget, value: Json, attribute: Json, default: Json, apply: Apply | None) -> Json:
    if apply is not None:
        return _mapped(budget, value, apply)
    if attribute is None:
        raise ExpressionError(f"map: {_NO_MAP}")
    return [
        member for member in _column(budget, value, attribute, "map", default) if member is not OMIT
    ]


_NO_MAP = 'name an attribute or a filter: map(attribute="name") or map("upper")'


def _mapped(budget: Budget, value: list[Json], apply: Apply) -> list[Json]:
    room = MAX_RESULT_BYTES
    results: list[Json] = []
    for element in value:
        budget.spend(_STEPS_PER_ELEMENT)
        result = apply(element)
        if type(result) is str:
            room -= len(result)
            if room < 0:
                raise too_large()
        if result is not OMIT:
            results.append(result)
    return results


def _selecting(*, kept: bool) -> Callable[..., Json]:
    def run(budget: Budget, value: Json, apply: Apply | None) -> Json:
        budget.spend(_STEPS_PER_ELEMENT * len(value))
        test = apply or bool
        return [element for element in value if bool(test(element)) is kept]

    return run


def _selecting_by_attribute(where: str, *, kept: bool) -> Callable[..., Json]:
    """By the truth of the attribute, where a missing one is false, or by a test of it."""

    def run(budget: Budget, value: Json, attribute: Json, apply: Apply | None) -> Json:
        keys = _keys_of(attribute)
        budget.spend(len(value) * (_STEPS_PER_ELEMENT + len(keys)))
        chosen = []
        for element in value:
            member = _below(element, keys)
            if apply is not None:
                member = apply(member)
                if member is MISSING:
                    raise _has_none(attribute, where)
            elif member is MISSING:
                member = False
            if bool(member) is kept:
                chosen.append(element)
        return chosen

    return run


# --- all elements together ----------------------------------------------------------------------------


def _join(budget: Budget, value: Json, separator: Json, attribute: Json) -> Json:
    budget.spend(len(value))
    room = MAX_RESULT_BYTES
    parts: list[str] = []
    for element in _column(budget, value, attribute, "join"):
        parts.append(text_of(element, "join", budget))
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


def _sum(budget: Budget, value: Json, attribute: Json) -> Json:
    budget.spend(len(value))
    numbers = _column(budget, value, attribute, "sum")
    if not set(map(type, numbers)) <= NUMBER:
        wrong = next(element for element in numbers if type(element) not in NUMBER)
        raise ExpressionError(f"sum adds numbers, not {kind_of(wrong)}")
    try:
        return bounded(sum(numbers), "sum")
    except OverflowError:
        raise over_limit("sum: the result is too large a number") from None


def _extreme(where: str, choose: Callable[..., Json]) -> Callable[..., Json]:
    """The first element that is, or whose attribute is, least or greatest."""

    def run(budget: Budget, value: Json, attribute: Json) -> Json:
        budget.spend(len(value))
        keys = _column(budget, value, attribute, where)
        require_order(keys, where)
        return value[choose(range(len(keys)), key=keys.__getitem__)] if value else MISSING

    return run


def _sort(budget: Budget, value: Json, reverse: Json, attribute: Json) -> Json:
    budget.spend(2 * len(value))
    keys = _column(budget, value, attribute, "sort")
    require_order(keys, "sort")
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
    return [value[index] for index in order]


def _unique(budget: Budget, value: Json, attribute: Json) -> Json:
    """The first of each equal elements, in their order."""
    budget.spend(len(value))
    found: dict[str, Json] = {}
    for element, key in zip(value, _column(budget, value, attribute, "unique"), strict=True):
        parts: list[str] = []
        _write_identity(key, parts, budget)
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


# --- maps ---------------------------------------------------------------------------------------------


def _keys(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value)


def _values(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value.values())


def _items(budget: Budget, value: Json) -> Json:
    budget.spend(2 * len(value))
    return [[key, member] for key, member in value.items()]


def _pick(budget: Budget, value: Json, *wanted: Json) -> Json:
    """The members that are there, in the order asked for."""
    picked: dict[str, Json] = {}
    for keys in wanted:
        listed = keys if type(keys) is list else [keys]
        budget.spend(len(listed))
        picked |= {key: value[key] for key in listed if key in value}
    return picked


def _refuse_keys(keys: Json) -> str | None:
    if type(keys) is list and not set(map(type, keys)) <= TEXT:
        return "must be texts"
    return None


def _refuse_attribute(attribute: Json) -> str | None:
    if type(attribute) is int:
        return "must not be negative" if attribute < 0 else None
    if attribute is None:
        return None
    if len(attribute) > MAX_ATTRIBUTE:
        return f"is longer than {MAX_ATTRIBUTE} characters"
    return 'must be keys with "." between them' if "" in attribute.split(".") else None


def _refuse_neither(attribute: Json, _: Json) -> str | None:
    return _NO_MAP if attribute is None else None


_SEQUENCE: Final = TEXT | LIST
_ATTRIBUTE: Final = Parameter(
    "attribute", TEXT | WHOLE | NULL, default=None, refuse=_refuse_attribute
)
_OF_ATTRIBUTE: Final = Parameter("attribute", TEXT | WHOLE, refuse=_refuse_attribute)

FILTERS: Final[dict[str, Filter]] = {
    "join": Filter(_join, LIST, (Parameter("separator", TEXT, default=""), _ATTRIBUTE)),
    "first": Filter(_first, _SEQUENCE),
    "last": Filter(_last, _SEQUENCE),
    "length": Filter(_length, _SEQUENCE | MAP),
    "keys": Filter(_keys, MAP),
    "values": Filter(_values, MAP),
    "items": Filter(_items, MAP),
    "pick": Filter(_pick, MAP, (Parameter("keys", TEXT | LIST, refuse=_refuse_keys),), many=True),
    "map": Filter(
        _map,
        LIST,
        (_ATTRIBUTE, Parameter("default", ANY_OR_OMIT, default=MISSING)),
        inner="filter",
        agree=_refuse_neither,
    ),
    "select": Filter(_selecting(kept=True), LIST, inner="test"),
    "reject": Filter(_selecting(kept=False), LIST, inner="test"),
    "selectattr": Filter(
        _selecting_by_attribute("selectattr", kept=True),
        LIST,
        (_OF_ATTRIBUTE,),
        inner="test",
        leading=1,
    ),
    "rejectattr": Filter(
        _selecting_by_attribute("rejectattr", kept=False),
        LIST,
        (_OF_ATTRIBUTE,),
        inner="test",
        leading=1,
    ),
    "sum": Filter(_sum, LIST, (_ATTRIBUTE,)),
    "min": Filter(_extreme("min", min), LIST, (_ATTRIBUTE,)),
    "max": Filter(_extreme("max", max), LIST, (_ATTRIBUTE,)),
    "sort": Filter(_sort, LIST, (Parameter("reverse", TRUTH, default=False), _ATTRIBUTE)),
    "unique": Filter(_unique, LIST, (_ATTRIBUTE,)),
}
