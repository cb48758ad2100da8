"""A small world for runtime tests: a real store, a scripted far side, time that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from stackd.core.budget import Budget
from stackd.core.errors import NotFoundError, TooLargeError
from stackd.core.events import Event
from stackd.core.json import dumps
from stackd.integrations.catalogue import Catalogue
from stackd.queue.admission import Admission
from stackd.queue.job import RetryPolicy
from stackd.queue.processes import SILENT_LEASES, Watch
from stackd.runtime.blobs import BlobFile, Incoming
from stackd.runtime.connectors import effect_in
from stackd.runtime.links import Links
from stackd.runtime.tools import Limits, Tools
from stackd.runtime.versions import Versions
from stackd.runtime.workflow_runtime import Claimed, WorkflowRuntime, claim, rescue
from stackd.sandbox.sandbox import Sandbox
from stackd.store.database import Database
from stackd.testing import FakeClock, ScriptedHttp
from stackd.vault.fields import NoSchemas
from stackd.vault.keyring import Keyring
from stackd.vault.records import Vault
from stackd.workflows import catalogue, executions
from stackd.workflows.catalogue import NewVersion
from stackd.workflows.document import read_document
from stackd.workflows.executions import Decision, ExecutionRow, NewExecution, NodeRow, NodeStatus
from support.connectors import MadeUp

LEASE = 60.0


class MemoryBlobs:
    """Keeps blobs in memory; the store knows of none."""

    max_bytes = 1024 * 1024

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, content: bytes | bytearray) -> str:
        blob_id = f"{len(self.kept):064x}"
        self.kept[blob_id] = bytes(content)
        return blob_id

    def check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise TooLargeError("over the limit of a blob", code="blob.too_large")

    def receive(self) -> Incoming:
        return Incoming(self)  # type: ignore[arg-type]  # what is small is put

    @asynccontextmanager
    async def open(self, blob_id: str) -> AsyncIterator[BlobFile]:
        raise NotFoundError(f"no blob {blob_id}", code="blob.not_found")
        yield


class World:
    """Imports workflows, starts executions, and runs claims as a worker process would."""

    def __init__(
        self,
        store: Database,
        *answers: Any,
        limits: Limits | None = None,
        connectors: Catalogue | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.store = store
        self.clock = FakeClock()
        self.made_up = MadeUp(store, connectors, clock=self.clock)
        self.watch = Watch(self.clock, patience=SILENT_LEASES * LEASE)
        self.http = ScriptedHttp(*answers)
        self.blobs = MemoryBlobs()
        self.sandbox = sandbox
        self.seen: list[Event] = []
        self.max_jobs = 100_000
        self.memory = 256 * 1024 * 1024
        self.limits = limits or Limits(output=1024 * 1024, execution=16 * 1024 * 1024)
        self.links = Links("k" * 32, "http://box.example")
        self.runtime = self.process()
        self._heard = anyio.Event()
        store.events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        self.seen.append(event)
        self._heard.set()

    def process(self) -> WorkflowRuntime:
        """The runtime of another process on the same store."""
        memory = Budget(self.memory, clock=self.clock)
        versions = Versions(self.store, partial(effect_in, self.made_up.registry))
        return WorkflowRuntime(self.tools(), versions, memory=memory, roll=lambda: 0.0)

    def tools(self) -> Tools:
        return Tools(
            store=self.store,
            http=self.http,
            blobs=self.blobs,
            clock=self.clock,
            events=self.store.events,
            limits=self.limits,
            admission=Admission(self.max_jobs, self.store.reserve),
            links=self.links,
            connectors=self.made_up.connectors,
            vault=Vault(Keyring("k" * 32), NoSchemas()),
            sandbox=self.sandbox,
            job_retry=RetryPolicy(base=1.0, cap=60.0),
            send_within=(SILENT_LEASES - 1) * LEASE,
        )

    async def load(self, text: str) -> str:
        document = await anyio.to_thread.run_sync(
            partial(read_document, text.encode(), name="test.yaml", max_bytes=10**6)
        )
        new = NewVersion(
            document.id,
            document.id,
            document.content_hash,
            document.text,
            document.workflow.concurrency,
            (),
        )
        await self.store.write(
            lambda tx: catalogue.import_version(tx, new, activate=True, now=self.clock.time())
        )
        return document.id

    async def start(self, workflow_id: str, given: Any = None, *, trigger: str = "start") -> str:
        new = NewExecution(workflow_id, 1, "trigger.time.manual", trigger, dumps(given), None)
        return await self.store.write(lambda tx: executions.start(tx, new, now=self.clock.time()))

    async def claim(self, owner: str = "me") -> Claimed:
        claimed = await self.store.write(
            lambda tx: claim(tx, owner=owner, limit=10, lease=LEASE, now=self.clock.time())
        )
        assert len(claimed) == 1, claimed
        return claimed[0]

    async def work(self) -> None:
        """Claim one job and run it until it rests."""
        await self.runtime.execute(await self.claim())

    async def run(self, text: str, given: Any = None) -> str:
        """Import, start and run once; the execution's id."""
        execution_id = await self.start(await self.load(text), given)
        await self.work()
        return execution_id

    async def crash_and_rescue(self, me: str = "heir") -> int:
        """As if the claiming process had died: an owner that no process table knows is dead."""
        return await self.store.write(
            lambda tx: rescue(tx, me=me, watch=self.watch, now=self.clock.time())
        )

    async def fire_timers(self) -> int:
        return await self.store.write(
            lambda tx: executions.fire_timers(tx, now=self.clock.time(), limit=100)
        )

    async def cancel(self, execution_id: str) -> str:
        return await self.store.write(
            lambda tx: executions.cancel(tx, execution_id, now=self.clock.time())
        )

    async def resolve(self, execution_id: str, decision: Decision, node: str | None = None) -> str:
        return await self.store.write(
            lambda tx: executions.resolve(
                tx, execution_id, decision, node=node, now=self.clock.time()
            )
        )

    async def row(self, execution_id: str) -> ExecutionRow:
        return await self.store.read(lambda tx: executions.get(tx, execution_id))

    async def nodes(self, execution_id: str) -> dict[str, NodeRow]:
        seq = (await self.row(execution_id)).seq
        rows = await self.store.read(lambda tx: executions.node_rows(tx, seq))
        return {row.key: row for row in rows}

    async def states(self, execution_id: str) -> dict[str, NodeStatus]:
        return {key: row.status for key, row in (await self.nodes(execution_id)).items()}

    async def happens(self, kind: type[Event]) -> Event:
        """The first event of `kind`, waited for."""
        while True:
            for event in self.seen:
                if isinstance(event, kind):
                    return event
            self._heard = anyio.Event()
            await self._heard.wait()

    @asynccontextmanager
    async def running(self, claimed: Claimed) -> AsyncIterator[None]:
        """Run `claimed` beside the block; wait for its rest at the end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.runtime.execute, claimed)
            yield


async def time_passes(world: World, step: float, *, until: Callable[[], bool]) -> None:
    """Move time on by `step` and let everybody act, until it is so."""
    while not until():
        world.clock.advance(step)
        await anyio.wait_all_tasks_blocked()
