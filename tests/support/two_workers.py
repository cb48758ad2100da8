"""Everything that may befall two workers on one store, and what must hold whatever does.

Crashes, silence and drains; cancels and decisions, from here or elsewhere; nodes that are refused and tried
again; timers, places, a pause, and a wall clock that somebody sets.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stackd.core.clock import SystemClock
from stackd.core.errors import GoneError
from stackd.core.events import Event, EventBus
from stackd.core.json import dumps
from stackd.core.process import current_process
from stackd.http.message import Request
from stackd.queue import verbs
from stackd.queue.job import PROBATION, Job, JobClaimed, JobRescued, JobSettled, JobState
from stackd.queue.processes import SILENT_LEASES
from stackd.runtime.versions import Versions
from stackd.runtime.workflow_runtime import claim, rescue
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.workflows import catalogue, executions, resume
from stackd.workflows.catalogue import NewVersion
from stackd.workflows.document import read_document
from stackd.workflows.executions import FINAL, Decision, NewExecution, NodeFinished, TimerFired
from stackd.workflows.resume import NodeResumed
from support import invariants
from support.held import held
from support.worker_process import (
    ASKS,
    FLOWS,
    LEASE,
    UNSAFE,
    URL,
    Answer,
    SteppedClock,
    WorkerProcess,
)

SLOTS = ("a", "b")
EXECUTIONS = 8
LIMITS = {"keyed": 1, "unsafe": 2, "puts": None, "asks": None}  # to begin with
OFF_AT_MOST = 3600.0  # seconds that the wall clock may be wrong
CALM = 30  # turns of the loop after which whatever could go on has
AT_MOST = 200  # rounds to bring everything to an end

# A worker claims, or lets a write, a read or a request (by number) of its runs through, and gets this answer.
Move = tuple[str, int | None, Answer]


class TwoWorkers:
    """The store, two workers in slots `a` and `b`, and whoever else writes. Call `close` in the end."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.clock = SteppedClock()
        self._processes: dict[str, WorkerProcess] = {}
        self._made = 0
        self._acting: str | None = None  # the slot whose process writes at the moment
        self._paused_for = 0  # turns
        self._limits = dict(LIMITS)
        self._versions: dict[str, int] = {}
        # What was asked for, and what was seen.
        self._cancels: set[str] = set()
        self._called: set[str] = set()
        self._wakes: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()  # decisions that allow one more unsafe send
        self._sent: Counter[tuple[str, str]] = Counter()  # (node, execution)
        self._declined: Counter[tuple[str, str]] = Counter()
        self._keys: dict[str, set[str]] = {}
        self._finished: set[tuple[str, str]] = set()
        self._held: dict[int, int] = {}  # job -> fence of the claim that holds it
        self._fences: Counter[int] = Counter()
        self._ended: dict[str, str] = {}
        self._wrong: list[str] = []  # seen where nothing can be raised

        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "stackd.db"
        events = EventBus()
        events.subscribe(self._hear)
        self._opened = held(open_database(path, clock=SystemClock(), events=events, readers=1))
        self._store: Database = self._do(self._opened.__aenter__())
        self._graphs = Versions(self._store)
        self._file = sqlite3.connect(path)
        for flow in FLOWS:
            self._import(flow)
        for slot in SLOTS:
            self._boot(slot)

    def close(self) -> None:
        for process in self._processes.values():
            self._do(process.die())
        self._file.close()
        self._do(self._opened.__aexit__(None, None, None))
        self._do(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._folder.cleanup()

    def _do(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def _write(self, change: Callable[[Tx], Any], *, by: str | None = None) -> Any:
        """Commit `change` in the process of slot `by`, or in one that runs nothing."""
        self._acting = by
        try:
            return self._do(self._store.write(change, durable=False))
        finally:
            self._acting = None

    def _import(self, flow: str) -> None:
        """Make the document with the limit of now the current version."""
        limit = self._limits[flow]
        new = NewVersion(flow, flow, f"limit {limit}", _stored(flow), limit, ())
        done = self._write(lambda tx: catalogue.import_version(tx, new, activate=True, now=0.0))
        self._versions[flow] = done.row.version
        self._do(self._graphs.graph(flow, done.row.version))  # so that no run loads it

    def _boot(self, slot: str) -> None:
        """Start a process in `slot`; this one's identity stands for that of all, which are alive."""
        self._made += 1
        name, real = f"{slot}{self._made}", current_process()
        self._processes[slot] = WorkerProcess(name, self._store, self._graphs, self.clock, self)
        self._write(
            lambda tx: tx.execute(
                "INSERT INTO processes VALUES (?, 'worker', ?, ?, ?, ?, 0, 0, NULL)",
                (name, real.boot_id, real.namespace, real.pid, real.start_ticks),
            )
        )

    def _replace(self, slot: str) -> None:
        name = self._processes[slot].name
        self._write(lambda tx: tx.execute("DELETE FROM processes WHERE id = ?", (name,)))
        self._boot(slot)

    def _quiet(self) -> None:
        """Let every run go on until it stands at a gate, sleeps or has ended."""

        async def settle() -> None:
            calm = 0
            while calm < CALM:
                await asyncio.sleep(0)
                calm += 1
                for process in self._processes.values():
                    if not process.gates.idle.is_set():
                        await process.gates.idle.wait()
                        calm = 0

        self._do(settle())
        for slot, process in tuple(self._processes.items()):
            if process.is_draining and process.is_idle:  # it has ended; another is started
                self._replace(slot)

    # -- what goes on by itself

    def go_on(self, moves: Iterable[Move]) -> None:
        for slot, gate, answer in moves:
            gates = self._processes[slot].gates
            if gate is not None and gates.waiting:
                gates.open(gate, answer)
                self._quiet()
            else:
                self.claim(slot)

    def claim(self, slot: str) -> None:
        process, now = self._processes[slot], self.clock.time()
        if process.is_draining or not self._is_something_to_claim():
            return
        found = self._write(lambda tx: claim(tx, owner=process.name, limit=2, lease=LEASE, now=now))

        async def begin() -> None:
            for one in found:
                process.begin(one)

        self._do(begin())
        for flow in {one.row.workflow_id for one in found}:
            self._places_are_kept(flow)
        self._quiet()

    def _is_something_to_claim(self) -> bool:
        """Unless the queue is paused: a claim is tried then, too."""
        query = "SELECT 1 FROM jobs WHERE state = 'available' AND blocked = 0"
        return self._file.execute(query).fetchone() is not None

    def _places_are_kept(self, flow: str) -> None:
        """Of a workflow just claimed for. A limit that was lowered ends nothing that runs."""
        (running,) = self._file.execute(
            "SELECT count(*) FROM jobs j JOIN executions e ON e.seq = j.subject "
            "WHERE e.workflow_id = ? AND j.state = 'running'",
            (flow,),
        ).fetchone()
        limit = self._limits[flow]
        assert limit is None or running <= limit, f"{running} of {flow} run at once, {limit} may"

    # -- what may befall it

    def befall(self, what: str, *how: Any) -> None:
        """One turn: `what` is one of the methods below. A pause lasts for some of these."""
        getattr(self, what)(*how)
        if self._paused_for:
            self._paused_for -= 1
            if not self._paused_for:
                self.resume()

    def start(self, flow: str) -> None:
        if len(self.ids) == EXECUTIONS:
            return
        version, limit, now = self._versions[flow], self._limits[flow], self.clock.time()
        new = NewExecution(flow, version, "trigger.time.manual", "start", dumps(None), limit)
        self.ids.append(self._write(lambda tx: executions.start(tx, new, now=now)))

    def crash(self, slot: str) -> None:
        slot = self._busy(slot)
        self._do(self._processes[slot].die())
        self._replace(slot)

    def wear_down(self) -> None:
        """As if many processes had died over what waits now: it is on probation."""
        self._write(
            lambda tx: tx.execute(
                "UPDATE jobs SET rescues = max(rescues, ?) WHERE state = 'available'", (PROBATION,)
            )
        )

    def drain(self, slot: str) -> None:
        slot = self._busy(slot)
        self._do(self._processes[slot].drain())
        self._quiet()

    def _busy(self, slot: str) -> str:
        """`slot`, or the other if only that one runs something: what befalls an idle process shows little."""
        is_idle = self._processes[slot].is_idle
        return _other(slot) if is_idle and not self._processes[_other(slot)].is_idle else slot

    def rescue(self, slot: str) -> None:
        """Only the claims of the dead are taken, whatever the wall clock says."""
        before = [self._claims(one) for one in SLOTS]
        self._rescue(slot)
        assert [self._claims(one) for one in SLOTS] == before, "a living process was robbed"

    def _rescue(self, slot: str) -> None:
        process, now = self._processes[slot], self.clock.time()
        self._write(lambda tx: rescue(tx, me=process.name, watch=process.watch, now=now), by=slot)

    def _claims(self, slot: str) -> list[tuple[int, int]]:
        query = "SELECT id, fence FROM jobs WHERE state = 'running' AND owner = ?"
        return self._file.execute(query, (self._processes[slot].name,)).fetchall()

    def fall_silent(self, slot: str) -> None:
        """The process is taken for dead and robbed, and then goes on with what it had begun.

        Who judges it has not been heard of for as long, but knows that it lives.
        """
        slot = self._busy(slot)
        judge = _other(slot)
        self.rescue(judge)  # from now on it knows when each was heard last
        kept = self._claims(judge)
        for _ in range(SILENT_LEASES):
            self._advance(LEASE)
            self._rescue(judge)
        assert self._claims(judge) == kept, "a process robbed itself"
        assert not self._claims(slot), "a silent process keeps what it holds"
        for one in SLOTS:
            self._beat(one)
        self._quiet()

    def pass_time(self, seconds: float, timers_by: str | None) -> None:
        """Whatever sleeps so long wakes, both processes give a sign of life, and due timers fire."""

        self._advance(seconds)
        for slot in SLOTS:
            self._beat(slot)
        self._quiet()
        now = self.clock.time()
        self._write(lambda tx: executions.fire_timers(tx, now=now, limit=100), by=timers_by)
        self._quiet()

    def _advance(self, seconds: float) -> None:
        async def advance() -> None:
            self.clock.advance(seconds)

        self._do(advance())

    def _beat(self, slot: str) -> None:
        name, now = self._processes[slot].name, self.clock.time()
        self._write(lambda tx: verbs.renew(tx, owner=name, lease=LEASE, now=now))

    def pass_time_to_next_timer(self, timers_by: str | None) -> None:
        due = self._do(self._store.read(executions.next_timer))
        self.pass_time(0.0 if due is None else max(due - self.clock.time(), 0.0), timers_by)

    def set_wall_clock(self, seconds: float) -> None:
        """Somebody looks for the dead before and after."""
        self.rescue(SLOTS[0])
        off_by = self.clock.off_by + seconds
        self.clock.off_by = max(-OFF_AT_MOST, min(off_by, OFF_AT_MOST))
        self.rescue(SLOTS[0])

    def cancel(self, index: int, by: str | None) -> None:
        is_open = [one for one in self.ids if self.status(one) not in FINAL]
        if not is_open:
            return
        execution, now = is_open[index % len(is_open)], self.clock.time()
        self._wakes[execution] += 1
        self._cancels.add(execution)
        self._write(lambda tx: executions.cancel(tx, execution, now=now), by=by)
        self._quiet()

    def call(self, index: int, by: str | None) -> None:
        """Somebody calls the link of an execution that asks; the first call in time is taken, however early."""
        asking = [one for one in self.ids if self._asks(one)]
        asking = [one for one in asking if self.status(one) not in FINAL] or asking
        if not asking:
            return
        execution, now = asking[index % len(asking)], self.clock.time()
        text = dumps(f"call of {execution}")
        try:
            self._write(lambda tx: resume.resume(tx, execution, ASKS, text, now=now), by=by)
        except GoneError as error:
            assert (error.code == "link.used") == (execution in self._called), error
        else:
            assert execution not in self._called, "two calls were taken"
            self._called.add(execution)
        self._quiet()

    def _asks(self, execution: str) -> bool:
        query = "SELECT workflow_id = 'asks' FROM executions WHERE id = ?"
        return bool(self._file.execute(query, (execution,)).fetchone()[0])

    def look(self, slot: str) -> None:
        self._do(self._processes[slot].look())
        self._quiet()

    def resolve(self, index: int, decision: Decision) -> None:
        uncertain = [one for one in self.ids if self.status(one) == "uncertain"]
        if not uncertain:
            return
        execution, now = uncertain[index % len(uncertain)], self.clock.time()
        self._wakes[execution] += 1
        self._retries[execution] += decision == "retry"
        self._write(lambda tx: executions.resolve(tx, execution, decision, node=None, now=now))

    def pause(self, turns: int) -> None:
        self._write(verbs.pause)
        self._paused_for = turns

    def resume(self) -> None:
        self._write(verbs.resume)
        self._paused_for = 0

    def limit(self, flow: str, limit: int | None) -> None:
        self._limits[flow] = limit
        self._import(flow)

    # -- what is seen of it

    def status(self, execution: str) -> str:
        query = "SELECT status FROM executions WHERE id = ?"
        return str(self._file.execute(query, (execution,)).fetchone()[0])

    def _hear(self, event: Event) -> None:
        if self._acting is not None:
            self._processes[self._acting].hear(event)
        match event:
            case JobClaimed(job_id=job, fence=fence):
                if fence <= self._fences[job]:
                    self._wrong.append(f"fence {fence} of job {job} after {self._fences[job]}")
                if self._paused_for:
                    self._wrong.append(f"job {job} was claimed from a paused queue")
                self._fences[job] = self._held[job] = fence
            case JobRescued(job_id=job):
                self._held.pop(job, None)
            case JobSettled(job_id=job, fence=fence, state=state):
                holder = self._held.pop(job, None)
                if holder != fence and (holder is not None or state is not JobState.CANCELLED):
                    self._wrong.append(f"job {job}, held by {holder}, was settled by {fence}")
                if state in (JobState.RETRYABLE, JobState.DISCARDED, JobState.SCHEDULED):
                    self._wrong.append(f"job {job} is {state}: the runtime itself failed")
            case TimerFired(execution=seq) | NodeResumed(execution=seq):
                self._wakes[self.ids[seq - 1]] += 1
            case NodeFinished(status="completed"):
                self._finished.add((event.execution_id, event.key))
            case _:
                pass

    def note_request(self, request: Request, claim: Job) -> None:
        node, execution = _target(request)
        self._sent[node, execution] += 1
        if self._held.get(claim.id) != claim.fence:
            self._wrong.append(f"{node} of {execution} was sent by a run that lost its claim")
        if (execution, node) in self._finished:
            self._wrong.append(f"{node} of {execution} was finished and sent again")
        key = next((v for k, v in request.headers.items() if k.lower() == "idempotency-key"), None)
        if key is not None:
            self._keys.setdefault(execution, set()).add(key)

    def note_declined(self, request: Request) -> None:
        self._declined[_target(request)] += 1

    # -- what must hold at any time

    def check(self) -> None:
        assert not self._wrong
        invariants.check(self._file)
        self._nothing_is_lost_and_what_is_over_stays_so()
        self._each_wake_has_one_cause()
        self._no_fence_falls()
        self._no_node_meets_a_fault_of_ours()
        self._unsafe_is_sent_as_often_as_asked_for_and_keys_stay()

    def _nothing_is_lost_and_what_is_over_stays_so(self) -> None:
        rows = self._file.execute("SELECT id, status FROM executions").fetchall()
        assert {execution for execution, _ in rows} == set(self.ids)
        for execution, status in rows:
            assert status == self._ended.get(execution, status), "a final state changed"
            if status in FINAL:
                self._ended[execution] = status

    def _each_wake_has_one_cause(self) -> None:
        for execution, wakes in self._file.execute("SELECT id, wakes FROM executions"):
            assert wakes == self._wakes[execution], (
                f"{wakes} wakes, {self._wakes[execution]} causes"
            )

    def _no_fence_falls(self) -> None:
        for job, fence in self._file.execute("SELECT id, fence FROM jobs"):
            assert fence >= self._fences[job], (
                f"fence {fence} of job {job}, was {self._fences[job]}"
            )
            self._fences[job] = fence

    def _no_node_meets_a_fault_of_ours(self) -> None:
        query = "SELECT CAST(error AS TEXT) FROM node_runs WHERE CAST(error AS TEXT) LIKE '%node.internal%'"
        assert self._file.execute(query).fetchall() == []

    def _unsafe_is_sent_as_often_as_asked_for_and_keys_stay(self) -> None:
        for (node, execution), count in self._sent.items():
            may = 1 + self._retries[execution] + self._declined[node, execution]
            assert node != UNSAFE or count <= may, f"unsafe sent {count} times, {may} allowed"
        for execution, keys in self._keys.items():
            assert keys == {f"{execution}:book"}

    # -- and in the end

    def bring_to_an_end(self) -> None:
        """Resume what is paused, decide what is uncertain, let time pass: everything ends."""
        self.resume()
        for _ in range(AT_MOST):
            if all(self.status(one) in FINAL for one in self.ids):
                break
            for slot in SLOTS:
                self.look(slot)
                self.claim(slot)
                while self._processes[slot].gates.waiting:
                    self.go_on([(slot, 0, "ok")])
                self.rescue(slot)
            self.resolve(0, "skip")
            self.pass_time(1.0, None)  # for those who wait a moment without a timer
            self.pass_time_to_next_timer(None)
        else:
            raise AssertionError(f"stuck: {[(one, self.status(one)) for one in self.ids]}")
        self.check()
        for execution in self.ids:
            assert self.status(execution) != "cancelled" or execution in self._cancels
            if self._asks(execution) and self.status(execution) == "completed":
                self._has_what_it_was_told(execution)
        for execution, node in self._finished:
            if (node, execution) in self._sent or node in ("book", "mail", "first", "last"):
                done = self._sent[node, execution] - self._declined[node, execution]
                assert done >= 1, f"{node} of {execution} is completed and was never done"

    def _has_what_it_was_told(self, execution: str) -> None:
        query = """
SELECT n.status, CAST(n.output AS TEXT) FROM node_runs n JOIN executions e ON e.seq = n.execution
WHERE e.id = ? AND n.key = ?"""
        status, output = self._file.execute(query, (execution, ASKS)).fetchone()
        if execution in self._called:
            assert (status, output) == ("completed", f'"call of {execution}"')
        else:
            assert (status, output) == ("failed", None)


def _other(slot: str) -> str:
    return SLOTS[1 - SLOTS.index(slot)]


@functools.cache
def _stored(flow: str) -> bytes:
    return read_document(FLOWS[flow].encode(), name=flow, max_bytes=10**6).text


def _target(request: Request) -> tuple[str, str]:
    """(node, execution) that a request is of."""
    node, _, execution = request.url.removeprefix(f"{URL}/").partition("?e=")
    return node, execution
