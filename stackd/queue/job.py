"""What a job is, and every decision about one, as functions of values.

scheduled ──due──> available ──claim──> running ──┬─> completed
    ^                  ^                   │      ├─> cancelled
    │                  └──rescue───────────┤      └─> discarded
    └──────snooze──────────────────────────┤
retryable <──fail──────────────────────────┘   (claimable again once due)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from stackd.core.backoff import backoff
from stackd.core.events import Event

MAX_RESCUES = 20  # a job whose process died this often is what kills it

# When a process dies, nobody knows which of its jobs was the cause, if any was: all are rescued. A job that was
# rescued this often is on probation, and of those a process runs only one at a time, beside any number of the
# others. So no further crash is held against more than one of them. The cause crashes its process whenever it
# is its turn and goes on to MAX_RESCUES alone; what was only in bad company ends at its own turn. The least
# rescued come first: a cause soon stands behind all it has drawn in. What may still hit one at its turn are
# jobs that are not on probation yet, each of them a few times. To run it with nothing beside it would be
# surer, but whatever a suspect waits for, everything else would wait for too. Not sooner: a box that loses power
# a few times would run its long executions one after another.
PROBATION = 5


class JobState(StrEnum):
    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    RUNNING = "running"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


LIVE = (JobState.SCHEDULED, JobState.AVAILABLE, JobState.RUNNING, JobState.RETRYABLE)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to enqueue.

    Attributes:
        kind: selects the handler.
        subject: what it is about; at most one live job exists per kind and subject.
        due_at: epoch seconds before which it is not claimed; None: at once.
        priority: higher first.
        dedupe_key: at most one live job carries it.
        concurrency_key, concurrency_limit: at most `limit` jobs with this key run at a time.
    """

    kind: str
    subject: int | str | None = None
    payload: bytes | None = None
    due_at: float | None = None
    priority: int = 0
    dedupe_key: str | None = None
    concurrency_key: str | None = None
    concurrency_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job. `fence` names this claim: every later write about it must match."""

    id: int
    kind: str
    subject: int | str | None
    payload: bytes | None
    fence: int
    attempt: int
    rescues: int
    priority: int
    due_at: float
    concurrency_key: str | None
    concurrency_limit: int | None


@dataclass(frozen=True, slots=True)
class Complete:
    """The job is done."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The attempt failed; another is due after a backoff, until attempts run out."""

    error: str


@dataclass(frozen=True, slots=True)
class Snooze:
    """Not now: offer it again after `delay` seconds. Costs no attempt."""

    delay: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """It shall not run any more."""


@dataclass(frozen=True, slots=True)
class Discard:
    """It can never succeed."""

    error: str


Outcome = Complete | Fail | Snooze | Cancel | Discard


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a job is tried, all in all, and the backoff between. `base`, `cap`: seconds."""

    base: float = 1.0
    cap: float = 300.0
    max_attempts: int = 4


@dataclass(frozen=True, slots=True)
class Move:
    """Where a running job goes."""

    state: JobState
    attempt: int
    due_at: float | None = None  # epoch seconds; None: unchanged
    error: str | None = None


def next_move(job: Job, outcome: Outcome, *, now: float, policy: RetryPolicy, roll: float) -> Move:
    """Where `outcome` takes the running `job`. `roll`: uniform in [0, 1), for the jitter."""
    match outcome:
        case Complete():
            return Move(JobState.COMPLETED, job.attempt)
        case Cancel():
            return Move(JobState.CANCELLED, job.attempt)
        case Discard(error):
            return Move(JobState.DISCARDED, job.attempt, error=error)
        case Snooze(delay):  # at once: whatever the wall clock does next, it can be claimed
            state = JobState.SCHEDULED if delay > 0 else JobState.AVAILABLE
            return Move(state, job.attempt, now + delay)
        case Fail(error):
            attempt = job.attempt + 1
            if attempt >= policy.max_attempts:
                return Move(JobState.DISCARDED, attempt, error=error)
            delay = backoff(attempt, base=policy.base, cap=policy.cap, roll=roll)
            return Move(JobState.RETRYABLE, attempt, now + delay, error)


@dataclass(frozen=True, slots=True)
class JobEnqueued(Event):
    """A job became durable. `due_at` in the future: it is scheduled."""

    job_id: int
    kind: str
    subject: int | str | None
    due_at: float


@dataclass(frozen=True, slots=True)
class JobUnblocked(Event):
    """A place under the job's concurrency key, or the one on probation, became free; it can be claimed."""

    job_id: int
    kind: str
    subject: int | str | None


@dataclass(frozen=True, slots=True)
class JobClaimed(Event):
    """A process took the job under a new fence."""

    job_id: int
    kind: str
    subject: int | str | None
    fence: int


@dataclass(frozen=True, slots=True)
class JobSettled(Event):
    """The claim ended and the job moved to `state`."""

    job_id: int
    kind: str
    subject: int | str | None
    fence: int
    state: JobState


@dataclass(frozen=True, slots=True)
class JobRescued(Event):
    """The job was taken back from a dead process; `discarded` once that happened too often."""

    job_id: int
    kind: str
    subject: int | str | None
    state: JobState
    rescues: int


@dataclass(frozen=True, slots=True)
class QueuePaused(Event):
    """Nothing is claimed any more; what runs goes on."""


@dataclass(frozen=True, slots=True)
class QueueResumed(Event):
    """Jobs are claimed again."""
