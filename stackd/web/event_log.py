"""Logs every event: what a person should know at once as info or warning, the rest at debug."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

import structlog

from stackd.access.tokens import TokenCreated, TokenRevoked
from stackd.core.events import Event, EventBus
from stackd.queue.job import JobRescued, QueuePaused, QueueResumed
from stackd.sandbox.events import SandboxTried
from stackd.sandbox.quarantine import CodeQuarantined, CodeReleased
from stackd.store.database import StoreWritesStopped
from stackd.supervisor.supervisor import ServiceMoved
from stackd.vault.records import (
    CredentialChanged,
    CredentialCreated,
    CredentialDisconnected,
    CredentialRemoved,
    CredentialTested,
)
from stackd.workflows.catalogue import WorkflowChanged
from stackd.workflows.consistency import ConsistencyRepaired
from stackd.workflows.deletion import WorkflowDeleted
from stackd.workflows.executions import (
    JOB_KIND,
    ExecutionFinished,
    ExecutionParked,
    ExecutionStatus,
)
from stackd.workflows.history import HistoryPruned

TOLD = (
    CredentialChanged,
    CredentialCreated,
    CredentialDisconnected,
    CredentialRemoved,
    CredentialTested,
    HistoryPruned,
    JobRescued,
    QueuePaused,
    QueueResumed,
    SandboxTried,
    ServiceMoved,
    StoreWritesStopped,
    TokenCreated,
    TokenRevoked,
    WorkflowChanged,
    WorkflowDeleted,
    CodeQuarantined,
    CodeReleased,
)
BAD_ENDS = (ExecutionStatus.FAILED, ExecutionStatus.UNCERTAIN)

_log = structlog.get_logger("stackd.events")


def log_events(events: EventBus, *, level: str) -> Callable[[str], None]:
    """Log the events of `events`; the many that only `debug` shows are not even heard at other levels.

    What it returns takes another level.
    """
    events.subscribe(_tell, *TOLD)
    events.subscribe(
        _tell_bad, ExecutionFinished, ExecutionParked, ConsistencyRepaired, SandboxTried
    )
    unsubscribe: Callable[[], None] | None = None

    def use(level: str) -> None:
        nonlocal unsubscribe
        if unsubscribe is not None:
            unsubscribe()
        unsubscribe = events.subscribe(_tell_rest, Event) if level == "debug" else None

    use(level)
    return use


def _is_bad(event: Event) -> bool:
    match event:
        case ExecutionFinished() | ExecutionParked():
            return event.status in BAD_ENDS
        case SandboxTried():
            return event.problem is not None
        case _:
            return isinstance(event, ConsistencyRepaired)


def _tell(event: Event) -> None:
    if not _is_bad(event):
        _log.info(_words(event), **_facts(event))


def _tell_bad(event: Event) -> None:
    if _is_bad(event):
        _log.warning(_words(event), **_facts(event))


def _tell_rest(event: Event) -> None:
    if not (isinstance(event, TOLD) or _is_bad(event)):
        _log.debug(_words(event), **_facts(event))


def _words(event: Event) -> str:
    """`ExecutionFinished` as "execution finished"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(event).__name__).lower()


def _facts(event: Event) -> dict[str, object]:
    """Its fields. The number of an execution is called that: its name stands on the lines of the same `job_id`."""
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    if facts.get("kind") == JOB_KIND:
        facts["execution_seq"] = facts.pop("subject")
    elif "execution" in facts:
        facts["execution_seq"] = facts.pop("execution")
    return facts
