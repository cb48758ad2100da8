"""The moves of a node run, as events. `NodeSent` and `NodeAnswered` come before any commit."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.events import Event


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """The intent is on disk (for nodes with an effect); nothing was sent yet."""

    execution_id: str
    key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NodeSent(Event):
    """The first byte is about to leave. In memory only."""

    execution_id: str
    key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NodeAnswered(Event):
    """The far side answered; its answer is not on disk yet."""

    execution_id: str
    key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NodeRetried(Event):
    """A try failed and another follows after `wait` seconds."""

    execution_id: str
    key: str
    attempt: int
    code: str
    wait: float
