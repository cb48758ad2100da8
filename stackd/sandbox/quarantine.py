"""Quarantine: code that keeps breaking rules, or had to be killed for what it took, runs no more.

It is bound to the version of its workflow: a new version begins anew, and a person can let an old one run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from stackd.core.clock import rfc3339
from stackd.core.events import Event
from stackd.core.json import Json, dumps, loads
from stackd.sandbox import statements as sql
from stackd.sandbox.errors import SandboxError
from stackd.store.connection import Tx

VIOLATIONS: Final = 3  # runs that break a rule, of which one is quarantined; the origin's number
WINDOW: Final = 3600.0  # seconds in which they count together


class CodeNode(NamedTuple):
    """A code node that has broken a rule. `since`: of the first of its `violations`."""

    workflow_id: str
    version: int
    node: str
    violations: int
    since: float
    quarantined_at: float | None
    text: bytes

    @property
    def reason(self) -> dict[str, Json]:
        """What it did last: `{type, …}`."""
        found: dict[str, Json] = loads(self.text)
        return found


Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class CodeQuarantined(Event):
    """A code node runs no more, until a person releases it or there is a new version. `reason`: the type of what it did."""

    workflow_id: str
    version: int
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class CodeReleased(Event):
    """A person lets code run again. `node`: None: all of the workflow."""

    workflow_id: str
    node: str | None
    released: int


class SandboxQuarantinedError(SandboxError):
    """No code was run."""

    name = "SandboxQuarantinedError"

    def __init__(self, found: CodeNode) -> None:
        super().__init__(
            f"Sandbox is quarantined due to previous violations: {found.node} of version {found.version} runs no more "
            f"since {rfc3339(found.quarantined_at)} ({found.reason.get('type')}); mend it and import it anew, or "
            f"`stackd sandbox release {found.workflow_id} {found.node}`",
            code="sandbox.quarantined",
            reason=found.reason,
        )


def get(tx: Tx, key: Key) -> CodeNode | None:
    """What is known of a code node; None: nothing bad."""
    row = tx.one(sql.GET_CODE_NODE, key)
    return None if row is None else CodeNode(*row)


def violated(tx: Tx, key: Key, reason: Json, *, at_once: bool, now: float) -> None:
    """Count a run that broke a rule. `at_once`: it was killed for what it took, and is quarantined for that."""
    before = get(tx, key)
    fresh = before is None or not 0 <= now - before.since < WINDOW
    count = 1 if fresh or before is None else before.violations + 1
    since = now if fresh or before is None else before.since
    is_over = at_once or count >= VIOLATIONS
    text = dumps(reason)
    tx.execute(sql.PUT_CODE_NODE, (*key, count, since, now if is_over else None, text))
    if is_over and (before is None or before.quarantined_at is None):
        kind = reason.get("type") if isinstance(reason, dict) else None
        tx.emit(CodeQuarantined(*key, str(kind)))


def behaved(tx: Tx, key: Key) -> None:
    """A run broke no rule: what was counted is forgotten."""
    tx.execute(sql.FORGET_CODE_NODE, key)


def quarantined(tx: Tx) -> list[CodeNode]:
    """All that run no more."""
    return [CodeNode(*row) for row in tx.rows(sql.LIST_QUARANTINED)]


def release(tx: Tx, workflow_id: str, node: str | None = None) -> int:
    """Let a code node run again, in all versions, or all of a workflow; how many were quarantined."""
    if node is None:
        count = tx.execute(sql.RELEASE_CODE_NODES, (workflow_id,))
    else:
        count = tx.execute(sql.RELEASE_CODE_NODE, (workflow_id, node))
    tx.emit(CodeReleased(workflow_id, node, count))
    return count
