"""Benchmarks drive daemons from their own loop; the guard of the suite would count that against them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_blocking_calls() -> None:
    """Replaces the guard of the suite."""
