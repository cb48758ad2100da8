"""Logs every event: what a person should know at once as info or warning, the rest at debug."""

from __future__ import annotations

import re
from dataclasses import fields

import structlog

from stackd.core.events import Event, EventBus
from stackd.queue.job import JobRescued, QueuePaused, QueueResumed
from stackd.store.database import StoreWritesStopped
from stackd.supervisor.supervisor import ServiceMoved
from stackd.workflows.catalogue import WorkflowChanged
from stackd.workflows.executions import ExecutionFinished, ExecutionParked, ExecutionStatus

TOLD = (JobRescued, QueuePaused, QueueResumed, ServiceMoved, StoreWritesStopped, WorkflowChanged)
BAD_ENDS = (ExecutionStatus.FAILED, ExecutionStatus.UNCERTAIN)

_log = structlog.get_logger("stackd.events")


def log_events(events: EventBus, *, level: str) -> None:
    """Log the events of `events`; the many that only `debug` shows are not even heard at other levels."""
    events.subscribe(lambda event: _log.info(_words(event), **_facts(event)), *TOLD)
    events.subscribe(_tell_bad_end, ExecutionFinished, ExecutionParked)
    if level == "debug":
        events.subscribe(_tell_rest, Event)


def _tell_bad_end(event: Event) -> None:
    if isinstance(event, ExecutionFinished | ExecutionParked) and event.status in BAD_ENDS:
        _log.warning(_words(event), **_facts(event))


def _tell_rest(event: Event) -> None:
    if not isinstance(event, TOLD):
        _log.debug(_words(event), **_facts(event))


def _words(event: Event) -> str:
    """`ExecutionFinished` as "execution finished"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(event).__name__).lower()


def _facts(event: Event) -> dict[str, object]:
    return {field.name: getattr(event, field.name) for field in fields(event)}
