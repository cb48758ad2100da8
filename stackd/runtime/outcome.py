"""What a failed try of a node means: try again, give up, or say that nobody knows. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.errors import NodeError

RETRYABLE = frozenset({"timeout", "rate_limit", "network", "service_unavailable"})
JITTER = 0.25  # either way, as the origin's
SHORTEST_WAIT = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class NodeRetry:
    """How often and how patiently a node is tried. `initial`, `longest`: seconds between tries."""

    max_attempts: int
    initial: float = 1.0
    longest: float = 30.0


# The origin's defaults by node type prefix, most special first.
DEFAULT_RETRIES = (
    ("action.http.", NodeRetry(3, 1.0, 30.0)),
    ("action.time.", NodeRetry(1)),
    ("action.code.", NodeRetry(1)),  # what failed with that input fails with it again
    ("action.", NodeRetry(2, 1.5, 15.0)),
    ("transform.", NodeRetry(1)),
    ("logic.", NodeRetry(1)),
)
OTHER_RETRY = NodeRetry(2, 1.0)


def default_retry(node_type: str) -> NodeRetry:
    """The retry a node of this type has when its document names none."""
    return next((r for prefix, r in DEFAULT_RETRIES if node_type.startswith(prefix)), OTHER_RETRY)


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `wait` seconds."""

    wait: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The node has failed."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have happened: nobody may send it again but a person."""


Verdict = Again | GiveUp | Unknown


def judge(
    error: NodeError, *, unsafe: bool, attempt: int, retry: NodeRetry, roll: float
) -> Verdict:
    """What follows from the failed try number `attempt` (from 1). `roll`: uniform in [0, 1)."""
    if unsafe and error.sent and not error.answered:
        return Unknown()
    may_repeat = not unsafe or not error.sent or error.declined
    if not may_repeat or error.kind not in RETRYABLE or attempt >= retry.max_attempts:
        return GiveUp()
    wait = min(retry.initial * 2.0 ** min(attempt - 1, 62), retry.longest)
    wait = max(wait * (1.0 - JITTER + 2.0 * JITTER * roll), SHORTEST_WAIT)
    return Again(max(wait, error.retry_after or 0.0))
