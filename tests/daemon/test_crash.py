"""kill -9 at every event of a job's life and at random moments, thirty times; `tests/soak` has a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.crash import Death, crash_run, deaths

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


@pytest.mark.parametrize("death", deaths(30, seed=1), ids=str)
def test_a_kill_loses_nothing_and_does_nothing_twice(death: Death, tmp_path: Path) -> None:
    crash_run(tmp_path, death)
