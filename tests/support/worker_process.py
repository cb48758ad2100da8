"""Two worker processes on one real store, made so that a test decides what happens next.

Each write, read and request of a run stops at a gate that the test opens, so that a crash, a timer or another
claim may fall between any two of them. The runs, the verbs and the file are the real ones.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol

from stackd.core.budget import Budget
from stackd.core.clock import Clock
from stackd.core.errors import NodeError, StoreFullError
from stackd.core.events import Event
from stackd.http.message import Request, Response, SinkFor
from stackd.queue.admission import Admission
from stackd.queue.job import Job, RetryPolicy
from stackd.queue.processes import SILENT_LEASES, Watch
from stackd.runtime.links import Links
from stackd.runtime.tools import Limits, Tools
from stackd.runtime.versions import Versions
from stackd.runtime.workflow_runtime import Claimed, WorkflowRuntime
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.testing import FakeClock, ok
from stackd.vault.fields import NoSchemas
from stackd.vault.keyring import Keyring
from stackd.vault.records import Vault
from stackd.workflows import executions
from stackd.workflows.executions import CancelRequested, TimerFired
from stackd.workflows.resume import NodeResumed
from support.connectors import MadeUp
from support.runs import MemoryBlobs

LEASE = 60.0
URL = "http://far.example"

# What becomes of a request. lost: taken in, and the connection breaks. busy: declined, nothing was done.
# And of a write: full is a store that refuses it for now. Whatever does not apply is ok.
Answer = Literal["ok", "lost", "busy", "full"]

_CLAIM: contextvars.ContextVar[Job] = contextvars.ContextVar("claim")


def _call(node: str, how: str, retry: str = "{maxAttempts: 2, initialMs: 400}") -> str:
    url = f"{URL}/{node}?e={{{{ execution.id }}}}"
    return f'{{id: {node}, type: action.http.request, {how}, url: "{url}"}}, retry: {retry}}}'


_WITH_TIMER = "{maxAttempts: 3, initialMs: 5000}"  # such a wait holds no worker place
ASKS = "ask"  # the node that waits for a call
FLOWS = {
    "keyed": f"""
id: keyed
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {_call("book", "effect: keyed, params: {method: POST", _WITH_TIMER)}
edges: [{{from: start, to: pause}}, {{from: pause, to: book}}]
""",
    "unsafe": f"""
id: unsafe
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {{id: other, type: action.time.delay, params: {{delaySeconds: 20}}}}
  - {_call("mail", "params: {method: POST", _WITH_TIMER)}
  - {{id: end, type: transform.data.set, params: {{values: {{}}}}}}
edges:
  - {{from: start, to: pause}}
  - {{from: start, to: other}}
  - {{from: start, to: mail}}
  - {{from: pause, to: end}}
  - {{from: other, to: end}}
  - {{from: mail, to: end}}
""",
    "puts": f"""
id: puts
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {_call("first", "params: {method: PUT")}
  - {{id: pause, type: action.time.delay, params: {{delaySeconds: 10}}}}
  - {_call("last", "params: {method: PUT", _WITH_TIMER)}
edges: [{{from: start, to: first}}, {{from: first, to: pause}}, {{from: pause, to: last}}]
""",
    "asks": f"""
id: asks
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: {ASKS}, type: action.wait.webhook, onError: continue, params: {{expiresMs: 30000}}}}
  - {{id: other, type: action.time.delay, params: {{delaySeconds: 20}}}}
  - {_call("book", "effect: keyed, params: {method: POST", _WITH_TIMER)}
edges: [{{from: start, to: {ASKS}}}, {{from: start, to: other}}, {{from: {ASKS}, to: book}}]
""",
}
UNSAFE = "mail"


class SteppedClock(FakeClock):
    """A clock whose wall time somebody sets back and forth, while the monotonic one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.off_by = 0.0  # seconds

    def time(self) -> float:
        return super().time() + self.off_by


class Killed(BaseException):
    """The process is gone: nothing it was about to do happens."""


class Gates:
    """Where the steps of one process stop until the test lets them on."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Answer]] = []
        self.idle = asyncio.Event()  # nothing that was let through is still under way
        self.idle.set()
        self._under_way = 0
        self._dead = False

    async def pass_one(self) -> Answer:
        """Wait for the test; what the far side, if this is a request, shall answer."""
        if self._dead:
            raise Killed
        gate: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append(gate)
        try:
            return await gate
        finally:
            if gate in self.waiting:
                self.waiting.remove(gate)

    def open(self, index: int, answer: Answer) -> None:
        gate = self.waiting.pop(index % len(self.waiting))
        if not gate.done():
            gate.set_result(answer)

    @contextmanager
    def passing(self) -> Iterator[None]:
        self._under_way += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    def kill(self) -> None:
        self._dead = True
        for gate in self.waiting:
            if not gate.done():
                gate.set_exception(Killed())


class _GatedStore:
    def __init__(self, store: Database, gates: Gates) -> None:
        self._store = store
        self._gates = gates

    async def write(self, change: Callable[[Tx], Any], *, size_bytes: int = 0) -> Any:
        if await self._gates.pass_one() == "full":
            raise StoreFullError("no space left")
        with self._gates.passing():
            return await self._store.write(change, durable=False, size_bytes=size_bytes)

    async def read(self, query: Callable[[Tx], Any]) -> Any:
        await self._gates.pass_one()
        with self._gates.passing():
            return await self._store.read(query)


class Observer(Protocol):
    """Who is told what the far side sees."""

    def note_request(self, request: Request, claim: Job) -> None:
        """A request of the run that holds `claim`, or believes so, has arrived."""

    def note_declined(self, request: Request) -> None:
        """It was refused, and nothing done."""


class WorkerProcess:
    """One worker process: its gates, its runtime, the runs it has begun, and how it judges others.

    `versions`: loaded already, for what a run loads it loads past the gates.
    """

    def __init__(
        self, name: str, store: Database, versions: Versions, clock: Clock, observer: Observer
    ) -> None:
        self.name = name
        self.gates = Gates()
        self.watch = Watch(clock, patience=SILENT_LEASES * LEASE)
        self.is_draining = False
        self._store = store
        self._observer = observer
        self._tasks: list[asyncio.Task[None]] = []
        tools = Tools(
            store=_GatedStore(store, self.gates),  # type: ignore[arg-type]
            http=self,
            blobs=MemoryBlobs(),
            clock=clock,
            events=store.events,
            limits=Limits(10**6, 10**7),
            admission=Admission(10**6, store.reserve),
            links=Links("k" * 32, "http://box.example"),
            connectors=MadeUp(store, clock=clock).connectors,
            vault=Vault(Keyring("k" * 32), NoSchemas()),
            sandbox=None,
            job_retry=RetryPolicy(1.0, 60.0),
            send_within=(SILENT_LEASES - 1) * LEASE,
            flush_after=3600.0,
        )
        memory = Budget(10**9, clock=clock)
        self.runtime = WorkflowRuntime(tools, versions, memory=memory, roll=lambda: 0.0)

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response:
        await self.gates.pass_one()
        assert on_sent is not None
        on_sent()
        self._observer.note_request(request, _CLAIM.get())
        match await self.gates.pass_one():
            case "busy":
                self._observer.note_declined(request)
                return ok(status=503, retry_after="0")
            case "lost":
                raise NodeError("connection lost", kind="network", code="http.reset", sent=True)
            case _:
                return ok()

    def begin(self, claimed: Claimed) -> None:
        """Run a claim, in a task that knows by which claim it runs."""
        context = contextvars.copy_context()
        context.run(_CLAIM.set, claimed.job)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self.runtime.execute(claimed), context=context))

    @property
    def is_idle(self) -> bool:
        return all(task.done() for task in self._tasks)

    def hear(self, event: Event) -> None:
        """What a worker does at the events of its own process."""
        match event:
            case CancelRequested():
                self.runtime.cancel(event.execution)
            case TimerFired() | NodeResumed():
                self.runtime.wake(event.execution)
            case _:
                pass

    async def look(self) -> None:
        """What a worker does every second, to see what other processes did."""
        for seq in await self._store.read(executions.cancel_requests):
            self.runtime.cancel(seq)
        if waiting := self.runtime.waiting():
            for seq in await self._store.read(lambda tx: executions.woken(tx, waiting)):
                self.runtime.wake(seq)

    async def drain(self) -> None:
        """Claim no more, and give back what runs."""
        self.is_draining = True
        self.runtime.interrupt_all()

    async def die(self) -> None:
        self.gates.kill()
        for task in self._tasks:
            task.cancel()
            with suppress(BaseException):
                await task
