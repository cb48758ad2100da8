"""What a person reads of the events: bad ends and moves of services always, the rest at debug."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from stackd.core.events import Event, EventBus
from stackd.queue.job import JobClaimed, QueuePaused
from stackd.web.event_log import log_events
from stackd.workflows.executions import ExecutionFinished, NodeFinished, TimerFired

GOOD = ExecutionFinished("e1", "w", "completed")
BAD = ExecutionFinished("e2", "w", "failed")
CLAIMED = JobClaimed(1, "execution.run", 7, 1)
FIRED = TimerFired("x", 7, "nap")
FINISHED = NodeFinished("e1", "w", 1, "nap", "action.time.delay", "completed", 0.1)


def told(level: str, *events: Event) -> list[tuple[str, str]]:
    bus = EventBus()
    log_events(bus, level=level)
    with capture_logs() as lines:
        for event in events:
            bus.emit(event)
    return [(line["log_level"], line["event"]) for line in lines]


def test_a_bad_end_and_a_move_of_the_queue_are_told_and_a_claim_is_not() -> None:
    assert told("info", GOOD, BAD, CLAIMED, QueuePaused()) == [
        ("warning", "execution finished"),
        ("info", "queue paused"),
    ]


@pytest.mark.parametrize("event", [GOOD, BAD, CLAIMED, FINISHED, FIRED, QueuePaused()])
def test_debug_tells_every_event_once(event: Event) -> None:
    assert len(told("debug", event)) == 1


def line(event: Event) -> dict[str, object]:
    """What `debug` logs of it."""
    bus = EventBus()
    log_events(bus, level="debug")
    with capture_logs() as lines:
        bus.emit(event)
    (only,) = lines
    return dict(only)


@pytest.mark.parametrize("event", [CLAIMED, FIRED])
def test_the_number_of_an_execution_is_not_told_as_if_it_were_its_id(event: Event) -> None:
    told = line(event)

    assert told["execution_seq"] == 7
    assert told.keys().isdisjoint({"subject", "execution"})


def test_the_subject_of_another_kind_of_job_is_told_as_it_is() -> None:
    assert line(JobClaimed(1, "other", "x", 1))["subject"] == "x"


def test_the_line_of_a_finished_node_has_all_ids() -> None:
    assert line(FINISHED).items() >= {"execution_id": "e1", "workflow_id": "w", "job_id": 1}.items()


def test_a_line_holds_the_facts_of_its_event() -> None:
    bus = EventBus()
    log_events(bus, level="info")
    with capture_logs() as lines:
        bus.emit(BAD)
    assert lines[0]["execution_id"] == "e2"
    assert lines[0]["status"] == "failed"


def test_a_failing_listener_and_a_failing_log_leave_the_other_listeners_to_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError

    heard: list[Event] = []
    bus = EventBus()
    bus.subscribe(fail)
    bus.subscribe(heard.append)
    monkeypatch.setattr("stackd.core.events._log", type("Broken", (), {"exception": fail}))

    bus.emit(BAD)

    assert heard == [BAD]
