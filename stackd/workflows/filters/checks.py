"""The tests of expressions: `value is name`."""

from __future__ import annotations

from typing import Final

from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter
from stackd.workflows.filters.values import (
    ANY_OR_OMIT,
    MISSING,
    Budget,
)


def _is_defined(_: Budget, value: Json) -> Json:
    return value is not MISSING


def _is_undefined(_: Budget, value: Json) -> Json:
    return value is MISSING


def _is_null(_: Budget, value: Json) -> Json:
    return value is None


TESTS: Final[dict[str, Filter]] = {
    "defined": Filter(_is_defined, ANY_OR_OMIT, sees_missing=True),
    "undefined": Filter(_is_undefined, ANY_OR_OMIT, sees_missing=True),
    "none": Filter(_is_null, ANY_OR_OMIT),
    "null": Filter(_is_null, ANY_OR_OMIT),
}
