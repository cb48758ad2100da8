"""Filters over one value: what stands for a missing one, and from one kind to another."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable
from typing import Final

from stackd.core.errors import ExpressionError, InputError
from stackd.core.json import Json, dumps, loads_strict
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    ANY,
    ANY_OR_OMIT,
    MISSING,
    NODES_PER_STEP,
    NULL,
    NUMBER,
    OMIT,
    SCALAR,
    TEXT,
    TRUTH,
    WHOLE,
    Budget,
    bounded,
    fitting,
    over_limit,
    text_of,
)

_CODED_BYTES_PER_STEP = 64  # turned into JSON or back
_ZEROS: Final = str.maketrans("123456789", "0" * 9)
_LONG_NUMBER: Final = (
    "0" * 300
)  # perhaps: digits in a row, and the time to read them grows with their square
_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps: half of a pair is written like this too
_WHOLE_TEXT = re.compile(r"[+-]?[0-9]{1,400}", re.ASCII)
_NUMBER_TEXT = re.compile(r"[+-]?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_TRUTHS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_ROUNDINGS: Final = {
    "common": decimal.ROUND_HALF_UP,
    "ceil": decimal.ROUND_CEILING,
    "floor": decimal.ROUND_FLOOR,
}
_WIDE = decimal.Context(prec=400)  # digits: every float at 15 decimals fits exactly


def _default(
    _: Budget, value: Json, instead: Callable[[], Json], also_false: Callable[[], Json]
) -> Json:
    if value is MISSING or value is None or (not value and also_false()):
        return instead()
    return value


def _omit(_: Budget, value: Json) -> Json:
    return OMIT if value is MISSING or value is None else value


def _string(budget: Budget, value: Json) -> Json:
    return "null" if value is None else text_of(value, "string", budget)


def _int(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        return int(value) if type(value) is bool else int(bounded(value, "int"))
    text = value.strip()
    if not _WHOLE_TEXT.fullmatch(text):
        raise ExpressionError("int: the text is not a whole number")
    return bounded(int(text), "int")


def _float(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        try:
            return float(value)
        except OverflowError:
            raise over_limit("float: the number is too large") from None
    text = value.strip()
    if not _NUMBER_TEXT.fullmatch(text):
        raise ExpressionError("float: the text is not a number")
    return bounded(float(text), "float")


def _number(budget: Budget, value: Json) -> Json:
    if type(value) is not str:
        return value
    text = value.strip()
    if _WHOLE_TEXT.fullmatch(text):
        return bounded(int(text), "number")
    if not _NUMBER_TEXT.fullmatch(text):
        raise ExpressionError("number: the text is not a number")
    return _float(budget, text)


def _bool(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        return bool(value)
    truth = _TRUTHS.get(value.strip()[:6].lower())
    if truth is None:
        raise ExpressionError("bool: the text is none of true/false, yes/no, on/off, 1/0")
    return truth


def _json(budget: Budget, value: Json) -> Json:
    size = budget.measure(value)
    budget.spend(size // _CODED_BYTES_PER_STEP)
    if type(value) is int:
        budget.spend_writing(value)
    try:
        text = dumps(value).decode()
    except TypeError:
        raise ExpressionError("json: the value is nested too deep or is not valid text") from None
    fitting(text)
    return text


def _fromjson(budget: Budget, value: Json) -> Json:
    budget.spend(fitting(value) // _CODED_BYTES_PER_STEP)
    # Every element but the first needs a comma and every level a bracket, so this bounds what is built.
    budget.spend((value.count(",") + value.count("[") + value.count("{")) // NODES_PER_STEP)
    if _LONG_NUMBER in value.translate(_ZEROS):
        budget.spend(len(value) // 2)
    try:
        read = loads_strict(value.encode())
        if _HALF_ESCAPE.search(value):
            dumps(read)
    except (UnicodeEncodeError, TypeError):
        raise ExpressionError("fromjson: the text holds half a character") from None
    except InputError as error:
        raise ExpressionError(f"fromjson: {error.message}") from None
    return read


def _abs(_: Budget, value: Json) -> Json:
    return abs(value)


def _round(_: Budget, value: Json, precision: Json, method: Json) -> Json:
    """Half goes away from zero, as on paper; without decimals the result is a whole number."""
    if type(value) is int:
        return value
    bounded(value, "round")
    unit = decimal.Decimal(1).scaleb(-precision)
    exact = decimal.Decimal(repr(value)).quantize(unit, _ROUNDINGS[method], _WIDE)
    return float(exact) if precision else int(exact)


def _refuse_precision(value: int) -> str | None:
    return None if 0 <= value <= 15 else "must be between 0 and 15"


def _refuse_method(value: str) -> str | None:
    return None if value in _ROUNDINGS else f"must be one of {', '.join(_ROUNDINGS)}"


FILTERS: Final[dict[str, Filter]] = {
    "default": Filter(
        _default,
        ANY_OR_OMIT,
        (Parameter("value", ANY_OR_OMIT), Parameter("also_false", TRUTH, default=False)),
        sees_missing=True,
        lazy=True,
    ),
    "omit": Filter(_omit, ANY_OR_OMIT, sees_missing=True),
    "string": Filter(_string, SCALAR | NULL),
    "int": Filter(_int, SCALAR),
    "float": Filter(_float, SCALAR),
    "number": Filter(_number, NUMBER | TEXT),
    "bool": Filter(_bool, SCALAR | NULL),
    "json": Filter(_json, ANY),
    "fromjson": Filter(_fromjson, TEXT),
    "abs": Filter(_abs, NUMBER),
    "round": Filter(
        _round,
        NUMBER,
        (
            Parameter("precision", WHOLE, default=0, refuse=_refuse_precision),
            Parameter("method", TEXT, default="common", refuse=_refuse_method),
        ),
    ),
}
