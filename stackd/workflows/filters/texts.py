"""Filters over texts."""

from __future__ import annotations

from typing import Final

from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    CHARACTERS_PER_STEP,
    MAX_RESULT_BYTES,
    NULL,
    TEXT,
    TRUTH,
    WHOLE,
    Budget,
    fitting,
    too_large,
)


def _lower(budget: Budget, value: Json) -> Json:
    fitting(value)
    budget.spend_reading(value)
    return value.lower()


def _upper(budget: Budget, value: Json) -> Json:
    fitting(value)
    budget.spend_reading(value)
    return value.upper()


def _trim(budget: Budget, value: Json) -> Json:
    budget.spend_reading(value)
    return value.strip()


def _replace(budget: Budget, value: Json, old: Json, new: Json) -> Json:
    fitting(value)
    budget.spend_reading(value, old)
    if len(value) + value.count(old) * (len(new) - len(old)) > MAX_RESULT_BYTES:
        raise too_large()
    return value.replace(old, new)


def _split(budget: Budget, value: Json, separator: Json) -> Json:
    fitting(value)
    budget.spend_reading(value, separator or "")
    parts = value.split(separator, budget.steps + 1)
    budget.spend(len(parts))
    return parts


def _truncate(
    budget: Budget, value: Json, length: Json, killwords: Json, end: Json, leeway: Json
) -> Json:
    """At most `length` characters, `end` included; one word that does not fit is cut all the same."""
    if len(value) <= length + leeway:
        return value
    end = end[:length]
    room = length - len(end)
    if room > MAX_RESULT_BYTES:
        raise too_large()
    budget.spend(room // CHARACTERS_PER_STEP)
    kept = value[:room]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


def _refuse_negative(value: int) -> str | None:
    return "must not be negative" if value < 0 else None


def _refuse_empty(value: str) -> str | None:
    return None if value else "must not be empty"


def _refuse_empty_or_null(value: str | None) -> str | None:
    return "must not be empty" if value == "" else None


FILTERS: Final[dict[str, Filter]] = {
    "lower": Filter(_lower, TEXT),
    "upper": Filter(_upper, TEXT),
    "trim": Filter(_trim, TEXT),
    "replace": Filter(
        _replace, TEXT, (Parameter("old", TEXT, refuse=_refuse_empty), Parameter("new", TEXT))
    ),
    "split": Filter(
        _split,
        TEXT,
        (Parameter("separator", TEXT | NULL, default=None, refuse=_refuse_empty_or_null),),
    ),
    "truncate": Filter(
        _truncate,
        TEXT,
        (
            Parameter("length", WHOLE, default=255, refuse=_refuse_negative),
            Parameter("killwords", TRUTH, default=False),
            Parameter("end", TEXT, default="..."),
            Parameter("leeway", WHOLE, default=0, refuse=_refuse_negative),
        ),
    ),
}
