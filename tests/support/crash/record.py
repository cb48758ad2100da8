"""What a run leaves to be judged by: the events of each life of the daemon, and what stood on disk after it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support.crash.far_side import Witness
from support.crash.stories import UNSAFE, Decision

Step = tuple[str, str]  # (execution, node)


class Told(NamedTuple):
    """One event as the daemon's recorder wrote it."""

    name: str
    facts: dict[str, Any]


class NodeState(NamedTuple):
    status: str
    attempt: int
    effect: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Remains:
    """The file between two lives, or at the end. `running`: fence by job."""

    executions: dict[str, str]
    nodes: dict[Step, NodeState]
    running: dict[int, int]

    @property
    def finished(self) -> set[Step]:
        return {step for step, node in self.nodes.items() if node.status == "completed"}

    def cut_off(self, key: str) -> set[str]:
        """Executions whose node `key` has an intent on disk and no outcome."""
        return {
            execution
            for (execution, node), state in self.nodes.items()
            if node == key and state.status == "running"
        }


@dataclass(frozen=True, slots=True)
class Life:
    """One process, from its start to its death or its end.

    `seen`: (path, execution) -> requests that had reached the far side when it was over.
    """

    events: list[Told]
    remains: Remains
    seen: Counter[tuple[str, str]]

    def of(self, *names: str) -> Iterator[dict[str, Any]]:
        return (event.facts for event in self.events if event.name in names)

    def counts(self) -> Counter[str]:
        """How often each event happened; that of a node also as `Event:node`."""
        found = Counter(event.name for event in self.events)
        found.update(f"{e.name}:{e.facts['key']}" for e in self.events if "key" in e.facts)
        return found


@dataclass(slots=True)
class Ledger:
    """What the senders, the operator and the far side of one run know, and what each life has left.

    Attributes:
        numbers: of the deliveries.
        acknowledged: delivery -> execution.
        cancels: execution -> the status its cancel was answered with.
        asked: execution -> decisions that were sent, answered or not.
        decided: execution -> the last decision that was answered.
    """

    numbers: Sequence[int]
    witness: Witness
    acknowledged: dict[int, str] = field(default_factory=dict)
    cancels: dict[str, str] = field(default_factory=dict)
    asked: dict[str, list[Decision]] = field(default_factory=lambda: defaultdict(list))
    decided: dict[str, Decision] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)

    @property
    def last(self) -> Remains:
        return self.lives[-1].remains

    @property
    def deaths(self) -> list[Life]:
        """The lives that did not end by themselves: all but the last, once that is over."""
        return self.lives[:-1]

    def cut_off(self) -> set[str]:
        """Executions whose unsafe step was in flight when a process died."""
        return set().union(*(life.remains.cut_off(UNSAFE) for life in self.lives))


def read_events(path: Path) -> list[Told]:
    """A line that a kill cut in the middle is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [Told(*json.loads(line)) for line in lines]


def read_remains(raw: sqlite3.Connection) -> Remains:
    return Remains(
        executions=dict(raw.execute("SELECT id, status FROM executions")),
        nodes={
            (execution, key): NodeState(status, attempt, effect, json.loads(metadata or b"{}"))
            for execution, key, status, attempt, effect, metadata in raw.execute(
                "SELECT e.id, n.key, n.status, n.attempt, n.effect, n.metadata "
                "FROM node_runs n JOIN executions e ON e.seq = n.execution"
            )
        },
        running=dict(
            raw.execute(
                "SELECT id, fence FROM jobs WHERE state = 'running' AND kind = 'execution.run'"
            )
        ),
    )
