"""A thousand crash runs. By hand: `.venv/bin/pytest tests/soak -k crash`; SOAK_RUNS and SOAK_SEED choose others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.crash import crash_run, deaths

RUNS = int(os.environ.get("SOAK_RUNS", "1000"))
SEED = int(os.environ.get("SOAK_SEED", "7"))
AT_ONCE = 3  # runs side by side; each waits more than it works


@pytest.mark.crash
@pytest.mark.timeout(0)
def test_a_thousand_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    numbered = list(enumerate(deaths(RUNS, SEED)))
    died = uncertain = resent = 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for account in pool.map(lambda one: crash_run(tmp_path / str(one[0]), one[1]), numbered):
            died += account.died
            uncertain += account.uncertain
            resent += account.resent

    print(
        f"runs: {RUNS}  died: {died}  uncertain: {uncertain}  unfinished steps sent again: {resent}"
    )
    assert died > RUNS * 0.8
