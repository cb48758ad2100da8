"""Death, drain and cancel at every single moment of loops and calls. By hand: `.venv/bin/pytest tests/soak -k moment`."""

from __future__ import annotations

import pytest
from contract.test_every_moment import FLOWS, check_moments


@pytest.mark.timeout(0)
@pytest.mark.parametrize("blow", ["death", "drain", "cancel"])
@pytest.mark.parametrize("name", FLOWS)
async def test_no_moment_at_all_loses_doubles_or_sticks(tmp_path, name, blow):
    await check_moments(tmp_path, name, blow)
