"""What `stackd bench` measures, one JSON line per figure: `.venv/bin/pytest tests/benchmarks -s`."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from stackd.cli.bench.run import MEASURES


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MEASURES)
def test_budget_is_held_by(name: str, tmp_path: Path) -> None:
    figures = anyio.run(MEASURES[name], tmp_path, 1.0, backend_options={"use_uvloop": True})

    for figure in figures:
        print(json.dumps(figure.as_json()))
    assert [f.name for f in figures if f.is_within is False] == []
