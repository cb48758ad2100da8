"""Hostile code in the combinations of mode, level and user that the suite leaves out."""

from __future__ import annotations

import os

import pytest
from support.hostile.apart import ORDINARY, tried


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("mode", "level", "uid"),
    [("worker", 2, 0), ("process", 2, ORDINARY), ("worker", 1, 0), ("process", 1, 0)],
    ids=str,
)
def test_hostile_code_gets_nowhere_and_leaves_nothing(mode: str, level: int, uid: int) -> None:
    if uid == 0 and os.geteuid() != 0:
        pytest.skip("needs root")

    found = tried(mode, *(["namespaces"] if level == 1 else []), uid=uid)

    assert found["red"] == {}
