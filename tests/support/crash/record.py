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

Step = tuple[str, str]  # (execution, key of the node run)


class Told(NamedTuple):
    """One event as the daemon's recorder wrote it."""

    name: str
    facts: dict[str, Any]


class ExecutionState(NamedTuple):
    """`called_by`: the step that started it, if none of the deliveries did."""

    status: str
    workflow: str
    output: Any
    called_by: Step | None


class NodeState(NamedTuple):
    status: str
    attempt: int
    effect: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Remains:
    """The file between two lives, or at the end.

    Attributes:
        running: fence by job.
        limited: jobs of the workflow of which only so many may run at once.
    """

    executions: dict[str, ExecutionState]
    nodes: dict[Step, NodeState]
    running: dict[int, int]
    limited: set[int]

    @property
    def finished(self) -> set[Step]:
        return {step for step, node in self.nodes.items() if node.status == "completed"}

    @property
    def cut_off(self) -> set[Step]:
        """Unsafe steps with an intent on disk and no outcome."""
        return {
            (execution, key)
            for (execution, key), state in self.nodes.items()
            if key in UNSAFE and state.status == "running"
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
        asked: step -> decisions that were sent, answered or not.
        decided: step -> the last decision that was answered.
    """

    numbers: Sequence[int]
    witness: Witness
    acknowledged: dict[int, str] = field(default_factory=dict)
    cancels: dict[str, str] = field(default_factory=dict)
    asked: dict[Step, list[Decision]] = field(default_factory=lambda: defaultdict(list))
    decided: dict[Step, Decision] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)

    @property
    def last(self) -> Remains:
        return self.lives[-1].remains

    @property
    def deaths(self) -> list[Life]:
        """The lives that did not end by themselves: all but the last, once that is over."""
        return self.lives[:-1]

    def cut_off(self) -> set[Step]:
        """Unsafe steps that were in flight when a process died."""
        return set().union(*(life.remains.cut_off for life in self.lives))


def read_events(path: Path) -> list[Told]:
    """A line that a kill cut in the middle is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [Told(*json.loads(line)) for line in lines]


def read_remains(raw: sqlite3.Connection) -> Remains:
    return Remains(
        executions={
            execution: ExecutionState(
                status,
                workflow,
                None if output is None else json.loads(output),
                None if parent is None else (parent, key),
            )
            for execution, status, workflow, output, parent, key in raw.execute(
                "SELECT e.id, e.status, e.workflow_id, e.output, p.id, e.parent_key "
                "FROM executions e LEFT JOIN executions p ON p.seq = e.parent"
            )
        },
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
        limited={
            job for (job,) in raw.execute("SELECT id FROM jobs WHERE concurrency_key IS NOT NULL")
        },
    )
