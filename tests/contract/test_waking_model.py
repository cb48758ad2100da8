"""Waiting, waking, the fence, places and the pause, under every order of what may befall two workers."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.two_workers import EXECUTIONS, SLOTS, Move, TwoWorkers
from support.worker_process import FLOWS, Answer

FLOW = st.sampled_from(sorted(FLOWS))
SLOT = st.sampled_from(SLOTS)
ANYWHERE = st.sampled_from((*SLOTS, None))  # None: a process that runs nothing
WORN = st.sampled_from((False, False, True))
INDEX = st.integers(0, EXECUTIONS - 1)


def _event(name: str, *how: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *how)


# One choice of all, not a rule for each: of rules Hypothesis leaves out many in each example, and without time,
# without a crash or without a second execution nothing much happens.
EVENTS = st.one_of(
    _event("start", FLOW),
    _event("crash", SLOT),
    _event("wear_down"),
    _event("drain", SLOT),
    _event("fall_silent", SLOT),
    _event("rescue", SLOT),
    _event("look", SLOT),
    _event("pass_time", st.sampled_from((1.0, 10.0, 25.0)), ANYWHERE),
    _event("pass_time_to_next_timer", ANYWHERE),
    _event("set_wall_clock", st.sampled_from((-3600.0, -61.5, -7.5, 7.5, 61.5, 3600.0))),
    _event("cancel", INDEX, ANYWHERE),
    *(_event("call", INDEX, ANYWHERE) for _ in range(3)),  # many come to nothing
    _event("resolve", INDEX, st.sampled_from(("retry", "skip", "fail"))),
    _event("pause", st.integers(1, 3)),
    _event("limit", FLOW, st.sampled_from((1, 2, None))),
)
GATES = (0, 0, 0, 1, 2, None)  # mostly what came first
ANSWERS: tuple[Answer, ...] = ("ok", "ok", "ok", "ok", "busy", "lost", "full")
MOVES = st.lists(
    st.sampled_from(tuple(itertools.product(SLOTS, GATES, ANSWERS))), min_size=1, max_size=7
)


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = TwoWorkers()
        self.is_sound = True

    @initialize(flows=st.lists(FLOW, min_size=2, max_size=5), worn=WORN, then=MOVES)
    def begin(self, flows: list[str], worn: bool, then: list[Move]) -> None:
        for flow in flows:
            self.world.start(flow)
        if worn:
            self.world.wear_down()
        self.world.go_on(then)

    @rule(event=EVENTS, then=MOVES)
    def turn(self, event: tuple[Any, ...], then: list[Move]) -> None:
        """Something befalls them, then they go on for a while."""
        self.is_sound = False
        self.world.befall(*event)
        self.world.go_on(then)

    @invariant()
    def all_is_well(self) -> None:
        self.is_sound = False
        self.world.check()
        self.is_sound = True

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.world.bring_to_an_end()
        finally:
            self.world.close()


@pytest.mark.timeout(300)
def test_no_order_of_events_loses_doubles_or_sticks() -> None:
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=45,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
        ),
    )
