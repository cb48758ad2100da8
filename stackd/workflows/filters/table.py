"""All filters and tests of expressions, by name."""

from __future__ import annotations

from typing import Final

from stackd.workflows.filters import checks, codes, instants, lists, patterns, scalars, texts
from stackd.workflows.filters.filter import Filter

FILTERS: Final[dict[str, Filter]] = {
    **scalars.FILTERS,
    **texts.FILTERS,
    **lists.FILTERS,
    **instants.FILTERS,
    **codes.FILTERS,
    **patterns.FILTERS,
}
TESTS: Final[dict[str, Filter]] = {**checks.TESTS, **patterns.TESTS}
