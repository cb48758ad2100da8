"""Thousands of orders of crash, timer, cancel and resume. By hand: `.venv/bin/pytest tests/soak -k model`."""

from __future__ import annotations

import os

import pytest
from contract.test_waking_model import Model
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "2000"))


@pytest.mark.timeout(0)
def test_no_order_of_events_loses_doubles_or_sticks_however_many_are_tried() -> None:
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=100,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            database=None,
        ),
    )
