"""Searching texts for patterns, in time linear in pattern and text: RE2 does it, which never backtracks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    MISSING,
    NULL,
    TEXT,
    WHOLE,
    Budget,
    utf8,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PATTERN = 250  # characters; what compiles slowest, classes of Unicode, then takes some 10 ms
MAX_PROGRAM = (
    2_000  # of RE2's instructions: what a pattern becomes with its repetitions written out
)
_MEMORY = 256 * 1024  # bytes that RE2 may use per pattern; it goes on more slowly without more
_WORK_PER_STEP = 20  # at worst every instruction looks at every byte, 5 ns each
_STEPS_PER_CHARACTER = 20  # of a pattern, to compile it
_STEPS_PER_CLASS = 2_000  # of Unicode, as in \pL
_STEPS_PER_SEARCH = 30  # into RE2 and back
_KEPT = 16  # compiled patterns


@functools.lru_cache(maxsize=_KEPT)
def _compiled(pattern: str) -> Any:
    """RE2's form of `pattern`, or what is wrong with it: a text."""
    import re2  # type: ignore[import-untyped]  # 1 MiB, and most workflows have no pattern

    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except UnicodeEncodeError:
        return "holds half a character"
    except re2.error as error:
        return f"cannot be read: {_reason(error)}"
    finally:
        re2.purge()  # its own cache, of 128
    if compiled.programsize > MAX_PROGRAM:
        return "is too large with its repetitions written out"
    return compiled


def _reason(error: Exception) -> str:
    """RE2's words without the part of the pattern behind them: a pattern may come from data."""
    said = error.args[0] if error.args else b""
    words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    reason = words.partition(": ")[0]
    absent = reason.startswith(("invalid perl operator", "invalid escape"))
    return f"{reason} (there is no look-around and no back-reference)" if absent else reason


def _refuse_pattern(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN:
        return f"is longer than {MAX_PATTERN} characters"
    compiled = _compiled(pattern)
    return compiled if isinstance(compiled, str) else None


def _cost(pattern: str) -> int:
    if len(pattern) > MAX_PATTERN:
        return 0  # and is not compiled
    classes = pattern.lower().count("\\p")
    return _STEPS_PER_CHARACTER * len(pattern) + _STEPS_PER_CLASS * classes


def _refuse_group(pattern: str, group: Json) -> str | None:
    compiled = _compiled(pattern)
    named: Mapping[str, int] = compiled.groupindex
    if group is None or (type(group) is int and 0 <= group <= compiled.groups) or group in named:
        return None
    return (
        f"the pattern has no group {group}"
        if type(group) is int
        else "the pattern has no group of that name"
    )


def _match(budget: Budget, value: Json, pattern: Json, group: Json) -> Json:
    raw = utf8(value, "match")
    budget.spend(_STEPS_PER_SEARCH)
    compiled = _compiled(pattern)
    problem = _refuse_group(pattern, group)
    if problem:
        raise ExpressionError(f"match: {problem}")
    budget.spend(compiled.programsize * (1 + len(raw)) // _WORK_PER_STEP)
    found = compiled.search(raw)
    if group is None:
        return found is not None
    part = found[group] if found else None
    return MISSING if part is None else part.decode()


def _is_match(budget: Budget, value: Json, pattern: Json) -> Json:
    return _match(budget, value, pattern, None)


_PATTERN: Final = Parameter("pattern", TEXT, refuse=_refuse_pattern, cost=_cost)

FILTERS: Final[dict[str, Filter]] = {
    "match": Filter(
        _match,
        TEXT,
        (_PATTERN, Parameter("group", WHOLE | TEXT | NULL, default=None)),
        nothing="the pattern or the group is not in the text",
        agree=_refuse_group,
    ),
}
TESTS: Final[dict[str, Filter]] = {"match": Filter(_is_match, TEXT, (_PATTERN,))}
