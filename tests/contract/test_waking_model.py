"""Waiting, waking and the fence, under every order of two workers, crashes, cancels, resolutions and timers.

Each write, read and request of a run stops at a gate that the test opens, so that a crash, a timer or another
claim may fall between any two of them. The runs, the verbs and the file are the real ones.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.held import held

from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError
from stackd.core.events import EventBus
from stackd.core.json import dumps
from stackd.core.process import current_process
from stackd.http.client import Request, Response
from stackd.queue.job import RetryPolicy
from stackd.runtime.run import Limits, Tools
from stackd.runtime.versions import Versions
from stackd.runtime.workflow_runtime import WorkflowRuntime, claim, rescue
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.testing import FakeClock, ok
from stackd.workflows import catalogue, executions
from stackd.workflows.catalogue import NewVersion
from stackd.workflows.document import read_document
from stackd.workflows.executions import FINAL, NewExecution

LEASE = 60.0
THIS_PROCESS = current_process()
URL = "http://far.example"
FLOWS = {
    "wait": f"""
id: wait
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {{id: book, type: action.http.request, effect: keyed, params: {{method: POST, url: "{URL}/book?e={{{{ execution.id }}}}"}}}}
edges: [{{from: start, to: pause}}, {{from: pause, to: book}}]
""",
    "join": f"""
id: join
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {{id: other, type: action.time.delay, params: {{delaySeconds: 20}}}}
  - {{id: mail, type: action.http.request, params: {{method: POST, url: "{URL}/mail?e={{{{ execution.id }}}}"}}}}
  - {{id: end, type: transform.data.set, params: {{values: {{}}}}}}
edges: [{{from: start, to: pause}}, {{from: start, to: other}}, {{from: start, to: mail}}, {{from: pause, to: end}}, {{from: other, to: end}}, {{from: mail, to: end}}]
""",
    "puts": f"""
id: puts
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: first, type: action.http.request, params: {{method: PUT, url: "{URL}/first?e={{{{ execution.id }}}}"}}}}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {{id: last, type: action.http.request, params: {{method: PUT, url: "{URL}/last?e={{{{ execution.id }}}}"}}}}
edges: [{{from: start, to: first}}, {{from: first, to: pause}}, {{from: pause, to: last}}]
""",
}


class Killed(BaseException):
    """The process is gone: nothing it was about to do happens."""


class Gates:
    """Where the steps of one process stop until the test lets them on."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[bool]] = []
        self.busy = 0
        self.dead = False

    async def pass_one(self) -> bool:
        """Wait for the test; what it said (False: this shall fail)."""
        if self.dead:
            raise Killed
        gate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(gate)
        try:
            return await gate
        finally:
            if gate in self.waiting:
                self.waiting.remove(gate)

    def open(self, index: int, *, good: bool) -> None:
        gate = self.waiting.pop(index % len(self.waiting))
        if not gate.done():
            gate.set_result(good)

    def kill(self) -> None:
        self.dead = True
        for gate in self.waiting:
            if not gate.done():
                gate.set_exception(Killed())


class GatedStore:
    def __init__(self, store: Database, gates: Gates) -> None:
        self._store = store
        self._gates = gates

    async def write(self, change: Callable[[Tx], Any], **how: Any) -> Any:
        await self._gates.pass_one()
        return await self._through(self._store.write(change, **how))

    async def read(self, query: Callable[[Tx], Any]) -> Any:
        await self._gates.pass_one()
        return await self._through(self._store.read(query))

    async def _through(self, work: Any) -> Any:
        self._gates.busy += 1
        try:
            return await work
        finally:
            self._gates.busy -= 1


class Process:
    """One worker process: its gates, its runtime, and the runs it has begun."""

    def __init__(self, model: Model, name: str) -> None:
        self.name = name
        self.gates = Gates()
        self.tasks: list[asyncio.Task[None]] = []
        self._model = model
        tools = Tools(
            store=GatedStore(model.store, self.gates),  # type: ignore[arg-type]
            http=self,
            blobs=None,  # type: ignore[arg-type]
            clock=model.clock,
            events=model.store.events,
            limits=Limits(10**6, 10**7),
            job_retry=RetryPolicy(1.0, 60.0),
            send_within=math.inf,
            flush_after=3600.0,
        )
        self.runtime = WorkflowRuntime(tools, Versions(model.store), roll=lambda: 0.0)

    async def request(
        self, request: Request, *, on_sent: Callable[[], None] | None = None
    ) -> Response:
        await self.gates.pass_one()
        assert on_sent is not None
        on_sent()
        self._model.note(request)
        if await self.gates.pass_one():
            return ok()
        raise NodeError("connection lost", kind="network", code="http.reset", sent=True)


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.sent: Counter[tuple[str, str]] = Counter()  # (path, execution)
        self.keys: dict[str, set[str]] = {}
        self.retries: Counter[str] = Counter()  # resolutions that allowed one more unsafe send
        self.ids: list[str] = []
        self.ended: dict[str, str] = {}
        self.processes: dict[str, Process] = {}
        self.made = 0
        self._opened = held(
            open_database(
                Path(self.folder.name) / "stackd.db", clock=SystemClock(), events=EventBus()
            )
        )
        self.store: Database = self._do(self._opened.__aenter__())

    def _do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def _write(self, change: Callable[[Tx], Any]) -> Any:
        return self._do(self.store.write(change, durable=False))

    def note(self, request: Request) -> None:
        path, _, execution = request.url.removeprefix(URL).partition("?e=")
        self.sent[path, execution] += 1
        key = next((v for k, v in request.headers.items() if k.lower() == "idempotency-key"), None)
        if key is not None:
            self.keys.setdefault(execution, set()).add(key)

    @initialize()
    def begin(self) -> None:
        for text in FLOWS.values():
            document = read_document(text.encode(), name="model", max_bytes=10**6)
            new = NewVersion(
                document.id, document.id, document.content_hash, document.canonical, None, ()
            )
            self._write(
                lambda tx, new=new: catalogue.import_version(tx, new, activate=True, now=0.0)
            )
        for slot in ("a", "b"):
            self._boot(slot)

    def _boot(self, slot: str) -> None:
        self.made += 1
        name = f"{slot}{self.made}"
        self.processes[slot] = Process(self, name)
        self._register(name, heartbeat_at=1e12)

    def _register(self, name: str, *, heartbeat_at: float) -> None:
        self._write(
            lambda tx: tx.execute(
                "INSERT OR REPLACE INTO processes VALUES (?, 'worker', ?, ?, ?, ?, 0, ?)",
                (
                    name,
                    THIS_PROCESS.boot_id,
                    THIS_PROCESS.namespace,
                    THIS_PROCESS.pid,
                    THIS_PROCESS.start_ticks,
                    heartbeat_at,
                ),
            )
        )

    def _quiet(self) -> None:
        """Let every run go on until it stands at a gate, sleeps or has ended."""

        async def settle() -> None:
            calm = 0
            while calm < 30:
                await asyncio.sleep(0)
                calm = 0 if any(p.gates.busy for p in self.processes.values()) else calm + 1

        self._do(settle())

    # -- what may happen, in any order

    @rule(flow=st.sampled_from(sorted(FLOWS)))
    @precondition(lambda self: len(self.ids) < 4)
    def start(self, flow: str) -> None:
        new = NewExecution(flow, 1, "trigger.time.manual", "start", dumps(None), None)
        self.ids.append(self._write(lambda tx: executions.start(tx, new, now=self.clock.time())))

    @rule(slot=st.sampled_from("ab"))
    def claim(self, slot: str) -> None:
        process = self.processes[slot]
        found = self._write(
            lambda tx: claim(tx, owner=process.name, limit=1, lease=LEASE, now=self.clock.time())
        )
        for one in found:
            process.tasks.append(self.loop.create_task(process.runtime.execute(one)))
        self._quiet()

    @rule(
        slot=st.sampled_from("ab"),
        index=st.integers(0, 3),
        good=st.sampled_from((True, True, True, False)),
    )
    def step(self, slot: str, index: int, good: bool) -> None:
        gates = self.processes[slot].gates
        if gates.waiting:
            gates.open(index, good=good)
            self._quiet()

    @rule(slot=st.sampled_from("ab"))
    def crash(self, slot: str) -> None:
        process = self.processes[slot]
        process.gates.kill()
        self._end(process)
        self._write(lambda tx: tx.execute("DELETE FROM processes WHERE id = ?", (process.name,)))
        self._boot(slot)

    def _end(self, process: Process) -> None:
        async def reap() -> None:
            for task in process.tasks:
                task.cancel()
                with suppress(BaseException):
                    await task

        self._do(reap())

    @rule(slot=st.sampled_from("ab"))
    def rescue_by(self, slot: str) -> None:
        name = self.processes[slot].name
        self._rescue(name, silent=None)

    def _rescue(self, me: str, *, silent: str | None) -> None:
        watch: Any = SimpleNamespace(is_silent=lambda owner, _: owner == silent)
        self._write(lambda tx: rescue(tx, me=me, watch=watch, now=self.clock.time()))

    @rule(slot=st.sampled_from("ab"))
    def stall_and_rescue(self, slot: str) -> None:
        """A process falls silent, is believed dead, and then goes on with what it had begun."""
        self._rescue("judge", silent=self.processes[slot].name)

    @rule(seconds=st.sampled_from((1.0, 10.0, 25.0)))
    def time_passes(self, seconds: float) -> None:
        async def pass_on() -> None:
            self.clock.advance(seconds)

        self._do(pass_on())
        self._quiet()

    @rule()
    def fire_timers(self) -> None:
        self._write(lambda tx: executions.fire_timers(tx, now=self.clock.time(), limit=100))

    @rule(index=st.integers(0, 3), seen_at_once=st.booleans())
    def cancel(self, index: int, seen_at_once: bool) -> None:
        if not self.ids:
            return
        execution_id = self.ids[index % len(self.ids)]
        self._write(lambda tx: executions.cancel(tx, execution_id, now=self.clock.time()))
        if seen_at_once:
            self._see_cancels()

    @rule()
    def _see_cancels(self) -> None:
        async def see() -> None:
            for seq in await self.store.read(executions.cancel_requests):
                for process in self.processes.values():
                    process.runtime.cancel(seq)

        self._do(see())
        self._quiet()

    @rule(index=st.integers(0, 3), decision=st.sampled_from(("retry", "skip", "fail")))
    def resolve(self, index: int, decision: Any) -> None:
        uncertain = [i for i in self.ids if self._status(i) == "uncertain"]
        if not uncertain:
            return
        execution_id = uncertain[index % len(uncertain)]
        node = self._uncertain_node(execution_id)
        self._write(
            lambda tx: executions.resolve(
                tx, execution_id, decision, node=node, now=self.clock.time()
            )
        )
        if decision == "retry" and node == "mail":
            self.retries[execution_id] += 1

    def _status(self, execution_id: str) -> str:
        return str(self._do(self.store.read(lambda tx: executions.get(tx, execution_id))).status)

    def _uncertain_node(self, execution_id: str) -> str:
        def query(tx: Tx) -> str:
            row = executions.get(tx, execution_id)
            return next(n.key for n in executions.node_rows(tx, row.seq) if n.status == "uncertain")

        return str(self._do(self.store.read(query)))

    # -- what must hold after each

    @invariant()
    def queued_and_running_have_exactly_one_live_job_and_others_none(self) -> None:
        rows = self._do(
            self.store.read(
                lambda tx: tx.rows(
                    "SELECT e.id, e.status, (SELECT count(*) FROM jobs j WHERE j.subject = e.seq AND "
                    "j.state IN ('scheduled', 'available', 'running', 'retryable')), "
                    "(SELECT count(*) FROM timers t WHERE t.execution = e.seq AND t.state = 'pending') "
                    "FROM executions e"
                )
            )
        )
        assert len(rows) == len(self.ids), "an execution is lost"
        for execution_id, status, live, timers in rows:
            assert live == (1 if status in ("queued", "running") else 0), (
                execution_id,
                status,
                live,
            )
            if status == "waiting":
                assert timers, f"{execution_id} waits for nothing"
            if execution_id in self.ended:
                assert status == self.ended[execution_id], "a final state changed"
            if status in FINAL:
                self.ended[execution_id] = status
                assert timers == 0

    @invariant()
    def unsafe_is_sent_once_and_keys_stay_the_same(self) -> None:
        for (path, execution_id), count in self.sent.items():
            if path == "/mail":
                assert count <= 1 + self.retries[execution_id], f"unsafe sent {count} times"
        for execution_id, keys in self.keys.items():
            assert keys == {f"{execution_id}:book"}

    # -- and in the end nothing is stuck

    def teardown(self) -> None:
        try:
            self._bring_to_an_end()
        finally:
            for process in self.processes.values():
                process.gates.kill()
                self._end(process)
            self._do(self._opened.__aexit__(None, None, None))
            self._do(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.folder.cleanup()

    def _bring_to_an_end(self) -> None:
        if not self.processes:
            return
        for _ in range(400):
            self._see_cancels()
            open_ids = [i for i in self.ids if self._status(i) not in FINAL]
            if not open_ids:
                return
            for slot in ("a", "b"):
                self.claim(slot)
                while self.processes[slot].gates.waiting:
                    self.step(slot, 0, True)
            self.rescue_by("a")
            self.resolve(0, "skip")
            self.time_passes(25.0)
            self.fire_timers()
        raise AssertionError(f"stuck: {[(i, self._status(i)) for i in open_ids]}")


@pytest.mark.timeout(300)
def test_no_order_of_events_loses_doubles_or_sticks() -> None:
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
        ),
    )
