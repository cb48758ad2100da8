"""A thousand crash runs. By hand: `.venv/bin/pytest tests/soak -k crash -s`; SOAK_RUNS, SOAK_SEED choose others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.crash.run import AT_ONCE, Account, Death, crash_run, deaths

RUNS = int(os.environ.get("SOAK_RUNS", "1000"))
SEED = int(os.environ.get("SOAK_SEED", "7"))


@pytest.mark.crash
@pytest.mark.timeout(0)
def test_a_thousand_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    planned = deaths(RUNS, SEED)
    numbered = list(enumerate(planned))

    def one(numbered_death: tuple[int, Death]) -> Account:
        number, death = numbered_death
        return crash_run(tmp_path / str(number), death)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        accounts = list(pool.map(one, numbered))

    died, uncertain, cancelled, again = (sum(figures) for figures in zip(*accounts, strict=True))
    print(
        f"runs: {RUNS}  deaths: {died}  unsafe steps cut off: {uncertain}  cancelled: {cancelled}  "
        f"unfinished steps sent again: {again}"
    )
    lived = [
        str(death) for account, death in zip(accounts, planned, strict=True) if not account.died
    ]
    assert not lived
    twice = [
        account.died
        for account, death in zip(accounts, planned, strict=True)
        if death.again is not None
    ]
    assert sum(died == 2 for died in twice) > 0.8 * len(twice)
