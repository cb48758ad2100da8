"""Many thousand expressions nobody would write. By hand: `.venv/bin/pytest tests/soak -k expression -s`."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from unit import test_expression_fuzz as fuzz

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "20000"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", fuzz.PROPERTIES)
def test_no_expression_breaks_out_however_many_are_tried(name: str) -> None:
    survives, given_what = fuzz.PROPERTIES[name]
    fuzz.slowest, fuzz.largest = (0.0, ""), (0, "")

    settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )(given(*given_what)(survives))()

    took, text = fuzz.slowest
    print(f"{name}: {EXAMPLES} tried, the slowest {took * 1000:.0f} ms: {text[:200]}")
    if fuzz.largest[0]:
        peak, text = fuzz.largest
        print(f"{name}: the largest {peak / 2**20:.1f} MiB: {text[:200]}")
