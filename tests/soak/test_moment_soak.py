"""Death, drain and cancel at every single moment of loops and calls. By hand: `.venv/bin/pytest tests/soak -k moment`."""

from __future__ import annotations

import os

import pytest
from contract.test_any_document import STRUCK, check_document
from contract.test_every_moment import FLOWS, check_moments
from hypothesis import HealthCheck, Phase, given, settings

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "2000"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("blow", ["death", "drain", "cancel"])
@pytest.mark.parametrize("name", FLOWS)
async def test_no_moment_at_all_loses_doubles_or_sticks(tmp_path, name, blow):
    await check_moments(tmp_path, name, blow)


@pytest.mark.timeout(0)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    database=None,
)
@given(**STRUCK)
def test_what_lint_accepts_runs_to_its_end_however_much_is_tried(document, blow, moment):
    check_document(document, blow, moment)
