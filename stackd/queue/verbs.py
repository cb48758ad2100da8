"""The verbs of the queue, each a function of a transaction: calling one inside yours joins yours.

The job row is the outbox: what a step decided and the job that acts on it commit together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stackd.core.json import dumps
from stackd.core.process import ProcessIdentity, is_gone
from stackd.queue import statements as sql
from stackd.queue.job import (
    LIVE,
    MAX_RESCUES,
    PROBATION,
    Job,
    JobClaimed,
    JobEnqueued,
    JobRescued,
    JobSettled,
    JobState,
    JobUnblocked,
    NewJob,
    Outcome,
    QueuePaused,
    QueueResumed,
    RetryPolicy,
    next_move,
)
from stackd.queue.processes import Watch
from stackd.store.connection import Row, Tx

PROMOTE_BATCH = 500  # due jobs made available per claim: keeps one claim short
RESCUE_BATCH = 500
UNBLOCK_BATCH = (
    500  # jobs offered at a time where a limit was taken away; the rest at the next look
)
CLAIM_ROUNDS = 10  # of setting jobs aside, per claim: keeps it short when one key has thousands
PAUSED = "paused"


def enqueue(tx: Tx, jobs: Iterable[NewJob], *, now: float) -> list[int | None]:
    """Make `jobs` durable; their ids in order, None where a live job for the subject or key exists."""
    ids: list[int | None] = []
    for job in jobs:
        due_at = now if job.due_at is None else job.due_at
        state = JobState.SCHEDULED if due_at > now else JobState.AVAILABLE
        row = tx.one(
            sql.ENQUEUE,
            (
                job.kind,
                job.subject,
                state.value,
                job.priority,
                due_at,
                job.payload,
                job.dedupe_key,
                job.concurrency_key,
                job.concurrency_limit,
                now,
            ),
        )
        ids.append(None if row is None else row[0])
        if row is not None:
            tx.emit(JobEnqueued(row[0], job.kind, job.subject, due_at))
    return ids


def claim(tx: Tx, *, owner: str, limit: int, lease: float, now: float) -> list[Job]:
    """Lease up to `limit` due jobs to process `owner`, highest priority first, then oldest due.

    Of those on probation it gets one, if it runs none. Jobs whose concurrency key has no free place are set
    aside until one frees up; where they are many, fewer than `limit` may be claimed although more are due.
    Nothing is claimed while the queue is paused.
    """
    if limit <= 0 or is_paused(tx):
        return []
    tx.execute(sql.PROMOTE_DUE, (now, PROMOTE_BATCH))
    claimed = _within_concurrency(tx, _claim_on_probation(tx, owner=owner, until=now + lease))
    for _ in range(CLAIM_ROUNDS):
        if len(claimed) == limit:
            break
        wanted = limit - len(claimed)
        rows = tx.rows(sql.CLAIM, (owner, now + lease, wanted))
        batch = sorted((Job(*row) for row in rows), key=lambda j: (-j.priority, j.due_at, j.id))
        claimed += _within_concurrency(tx, batch)
        if len(rows) < wanted:
            break
    for job in claimed:
        tx.emit(JobClaimed(job.id, job.kind, job.subject, job.fence))
    return claimed


def _claim_on_probation(tx: Tx, *, owner: str, until: float) -> list[Job]:
    """The next job on probation, unless `owner` runs one."""
    first = _next_on_probation(tx, owner)
    if first is None:
        return []
    return [Job(*row) for row in tx.rows(sql.CLAIM_ON_PROBATION, (owner, until, first[0]))]


def _next_on_probation(tx: Tx, owner: str | None) -> Row | None:
    """(id, kind, subject) of the job on probation that `owner` may run now."""
    first = tx.one(sql.FIRST_ON_PROBATION)
    is_taken = first is not None and tx.one(sql.RUNS_ON_PROBATION, (owner,)) is not None
    return None if is_taken else first


def _within_concurrency(tx: Tx, batch: list[Job]) -> list[Job]:
    """The part of a freshly claimed `batch` that its concurrency limits allow; the rest is set aside."""
    limited: dict[str, list[Job]] = {}
    for job in batch:
        if job.concurrency_key is not None and job.concurrency_limit is not None:
            limited.setdefault(job.concurrency_key, []).append(job)
    set_aside: set[int] = set()
    for key, jobs in limited.items():
        running = _count(tx, sql.COUNT_RUNNING_OF_KEY, key)
        excess = running - min(j.concurrency_limit or 0 for j in jobs)
        for job in reversed(jobs[-excess:] if excess > 0 else []):
            tx.execute(sql.BLOCK, (job.id, job.fence))
            set_aside.add(job.id)
    return [job for job in batch if job.id not in set_aside]


def renew(tx: Tx, *, owner: str, lease: float, now: float) -> int:
    """Extend every lease of `owner` to `lease` seconds from now and record its heartbeat; the jobs held."""
    tx.execute(sql.BEAT, (now, owner))
    return tx.execute(sql.RENEW, (now + lease, owner))


def holds(tx: Tx, job: Job) -> bool:
    """Whether this claim of `job` is still the current one."""
    return tx.one(sql.HOLDS, (job.id, job.fence)) is not None


def settle(
    tx: Tx, job: Job, outcome: Outcome, *, now: float, policy: RetryPolicy, roll: float
) -> JobState | None:
    """Move a claimed job to where `outcome` takes it; None if a newer claim owns it and nothing changed."""
    move = next_move(job, outcome, now=now, policy=policy, roll=roll)
    finished_at = None if move.due_at is not None else now
    values = (move.state.value, move.attempt, move.due_at, move.error, finished_at)
    key = job.concurrency_key
    if not tx.execute(sql.SETTLE, (*values, job.id, job.fence, key)):
        claim = tx.one(sql.KEY_OF_CLAIM, (job.id, job.fence))
        if claim is None:
            return None
        (key,) = claim  # given to it while it ran
        tx.execute(sql.SETTLE, (*values, job.id, job.fence, key))
    fill_places(tx, key)
    tx.emit(JobSettled(job.id, job.kind, job.subject, job.fence, move.state))
    if job.rescues >= PROBATION and (following := tx.one(sql.FIRST_ON_PROBATION)) is not None:
        tx.emit(JobUnblocked(*following))
    return move.state


def cancel_pending(tx: Tx, *, kind: str, subject: int | str, now: float) -> bool:
    """Cancel the live job of `subject` unless it is running; whether there was one."""
    rows = tx.rows(sql.CANCEL_PENDING, (now, kind, subject))
    for job_id, fence, key in rows:
        tx.emit(JobSettled(job_id, kind, subject, fence, JobState.CANCELLED))
        fill_places(tx, key)
    return bool(rows)


def discard(tx: Tx, job_id: int, *, error: str, now: float) -> bool:
    """End a live job that shall not run, whoever holds it; False if it has ended.

    Who runs it finds its claim lost.
    """
    row = tx.one(sql.DISCARD, (error, now, job_id))
    if row is None:
        return False
    kind, subject, fence, key = row
    fill_places(tx, key)
    tx.emit(JobSettled(job_id, kind, subject, fence, JobState.DISCARDED))
    return True


def offer_again(tx: Tx, job_id: int) -> None:
    """Take back a job that is running and nobody's."""
    row = tx.one(sql.OFFER_AGAIN, (job_id,))
    if row is not None:
        kind, subject, rescues, key = row
        fill_places(tx, key)
        tx.emit(JobRescued(job_id, kind, subject, JobState.AVAILABLE, rescues))


def dead_owners(tx: Tx, *, me: str, watch: Watch) -> list[str]:
    """Processes that hold running jobs and are proven dead: gone by pid and start time, or silent too long.

    Never `me`: a process does not rescue its own. An owner that is not known any more is dead: it is forgotten
    only then.
    """
    dead = []
    for owner, boot, namespace, pid, ticks, heartbeat_at in tx.rows(sql.RUNNING_OWNERS):
        if owner == me:
            continue
        if (
            pid is None
            or is_gone(ProcessIdentity(boot, namespace, pid, ticks))
            or watch.is_silent(owner, heartbeat_at)
        ):
            dead.append(owner)
    return dead


@dataclass(frozen=True, slots=True)
class Rescued:
    """A job taken back. `discarded`: it was taken back too often and will not run again."""

    id: int
    kind: str
    subject: int | str | None
    discarded: bool
    rescues: int


def rescue(tx: Tx, *, owners: Sequence[str], now: float) -> list[Rescued]:
    """Take back the running jobs of dead `owners`; a job that was rescued too often is discarded."""
    taken: list[Rescued] = []
    for owner in owners:
        parameters = (MAX_RESCUES, MAX_RESCUES, MAX_RESCUES, now, owner, RESCUE_BATCH)
        while rows := tx.rows(sql.RESCUE, parameters):
            for job_id, kind, subject, state, rescues, key in rows:
                fill_places(tx, key)
                taken.append(Rescued(job_id, kind, subject, state == JobState.DISCARDED, rescues))
                tx.emit(JobRescued(job_id, kind, subject, JobState(state), rescues))
    return taken


def fill_places(tx: Tx, concurrency_key: str | None) -> None:
    """Offer as many jobs of the key that were set aside as it has free places."""
    if concurrency_key is None:
        return
    first = tx.one(sql.FIRST_BLOCKED, (concurrency_key,))
    if first is None:
        return
    free = UNBLOCK_BATCH if first[0] is None else _free_places(tx, concurrency_key, first[0])
    for row in tx.rows(sql.UNBLOCK, (concurrency_key, max(free, 0))):
        tx.emit(JobUnblocked(*row))


def _free_places(tx: Tx, key: str, limit: int) -> int:
    taken = _count(tx, sql.COUNT_RUNNING_OF_KEY, key)
    return limit - taken - _count(tx, sql.COUNT_OFFERED_OF_KEY, key)


def keys_with_free_places(tx: Tx) -> list[str]:
    """The concurrency keys, of those with a limit, of which a job is set aside beside a free place."""
    return [
        key
        for (key,) in tx.rows(sql.BLOCKED_KEYS)
        if (first := tx.one(sql.FIRST_BLOCKED, (key,))) is not None
        and first[0] is not None
        and _free_places(tx, key, first[0]) > 0
    ]


def fill_all_places(tx: Tx) -> None:
    """Do so for every key: whatever was missed, nothing stays set aside beside a free place."""
    for (key,) in tx.rows(sql.BLOCKED_KEYS):
        fill_places(tx, key)


def change_concurrency(tx: Tx, key: str, limit: int | None) -> None:
    """Apply a new limit to the live jobs of `key`."""
    if tx.execute(sql.CHANGE_LIMIT, (limit, key, limit)):
        fill_places(tx, key)


def give_key(tx: Tx, key: str, *, kind: str, subjects: Sequence[int]) -> None:
    """Let the live jobs of `subjects` count under `key`: they had no limit so far, and so no key."""
    tx.execute(sql.GIVE_KEY, (key, kind, dumps(subjects)))


def _count(tx: Tx, statement: str, key: str) -> int:
    row = tx.one(statement, (key,))
    return 0 if row is None else int(row[0])


def prune(tx: Tx, *, before: float, limit: int) -> int:
    """Delete up to `limit` jobs that ended before `before`, the oldest first; how many."""
    return tx.execute(sql.PRUNE, (before, limit))


def pause(tx: Tx) -> None:
    """Stop all claims until `resume`; running jobs go on."""
    tx.execute(sql.SET_CONTROL, (PAUSED, "1"))
    tx.emit(QueuePaused())


def resume(tx: Tx) -> None:
    tx.execute(sql.SET_CONTROL, (PAUSED, "0"))
    tx.emit(QueueResumed())


def is_paused(tx: Tx) -> bool:
    row = tx.one(sql.GET_CONTROL, (PAUSED,))
    return row is not None and row[0] == "1"


def next_due(tx: Tx, *, now: float, owner: str | None = None) -> float | None:
    """When the next job can be claimed: `now` if one can, else the earliest due time, None if none waits.

    `owner`: by this process; None: by one that runs nothing.
    """
    if is_paused(tx):
        return None
    if tx.one(sql.HAS_AVAILABLE) is not None or _next_on_probation(tx, owner) is not None:
        return now
    row = tx.one(sql.NEXT_DUE)
    return None if row is None else row[0]


def is_live(tx: Tx, *, kind: str, subject: int | str) -> bool:
    """Whether there is such a job that has not ended."""
    return tx.one(sql.JOB_IS_LIVE, (kind, subject)) is not None


def live_counts(tx: Tx) -> dict[str, int]:
    """How many jobs there are in each of the live states."""
    return {state.value: 0 for state in LIVE} | dict(tx.rows(sql.COUNT_LIVE_BY_STATE))


def live_count(tx: Tx, *, at_most: int) -> int:
    """How many jobs are live, counted no further than `at_most`."""
    row = tx.one(sql.COUNT_LIVE, (at_most,))
    return 0 if row is None else int(row[0])


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Counts by state, ended jobs as far as they are kept; `oldest_wait`: seconds of the oldest due job."""

    counts: dict[str, int]
    paused: bool
    oldest_wait: float


def status(tx: Tx, *, now: float) -> QueueStatus:
    counts = {state.value: 0 for state in JobState}
    counts |= live_counts(tx) | dict(tx.rows(sql.COUNT_ENDED_BY_STATE))
    row = tx.one(sql.OLDEST_AVAILABLE)
    oldest = row[0] if row is not None and row[0] is not None else now
    return QueueStatus(counts, is_paused(tx), max(0.0, now - oldest))
