"""What every service holds, whatever it does: it says when it works, ends when drained, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from structlog.testing import capture_logs
from support.doors import doors_at
from support.runs import LEASE, World

from stackd.core.budget import Budget
from stackd.core.clock import Clock
from stackd.core.errors import StackdError
from stackd.core.events import Event, EventBus
from stackd.core.handover import Handover
from stackd.core.process import current_process
from stackd.integrations.coverage import coverage_in
from stackd.integrations.tokens import MemoryTokens
from stackd.queue import verbs
from stackd.queue.admission import Admission
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.runtime.credential_tests import CredentialTests
from stackd.runtime.versions import Versions
from stackd.services.api import CLOSE_WITHIN, Api
from stackd.services.rotation import Rotation
from stackd.services.scheduler import Scheduler
from stackd.services.timers import Timers
from stackd.services.worker import Worker
from stackd.settings import Settings
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.supervisor.herald import Herald
from stackd.supervisor.lag import LoopLag
from stackd.supervisor.service import Pulse, Service
from stackd.supervisor.supervisor import Supervisor
from stackd.vault.fields import NoSchemas
from stackd.vault.keyring import Keyring
from stackd.vault.records import Vault
from stackd.web.app import make_app
from stackd.web.bodies import Bodies
from stackd.web.context import Context
from stackd.web.doors import Doors
from stackd.web.event_stream import EventStream
from stackd.web.metrics import Metrics
from stackd.web.notes import Notes
from stackd.web.readiness import Readiness
from stackd.web.reload import Reloader
from stackd.web.waiting import Waiting
from stackd.workflows.executions import ExecutionFinished, TimerFired
from stackd.workflows.reconciliation import Reconciliation
from stackd.workflows.retention import Bounds, Retention

THIS_PROCESS = current_process()  # read here: a test may not block its loop
WITHIN = 5.0  # seconds of real time after which a test that hangs fails
SEED = 11
ROUNDS = 40
TURNS = 25  # of the loop: longer than any of the services takes to start

WORKFLOW = """
id: work
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: start, to: a}]
"""


class Site:
    """Real collaborators on a real store, and how each service is built of them."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.world = World(database)
        self.database = database
        self.folder = folder
        self.doors: list[Doors] = []  # of each API that was built
        self.settings = Settings(STACKD_STATE_DIR=str(folder), PORT=0)
        clock, events = self.world.clock, database.events
        self.blobs = BlobFolder(
            folder / "blobs", database, clock=clock, limits=BlobLimits(one=2**20, all=2**24)
        )
        self.context = Context(
            settings=self.settings,
            reloader=self._reloader(clock, events),
            store=database,
            vault=(vault := Vault(Keyring(self.settings.encryption_master_key), NoSchemas())),
            credential_tests=CredentialTests(
                store=database,
                vault=vault,
                manager=self.world.made_up.manager,
                accounts=self.world.made_up.accounts,
                tokens=MemoryTokens(clock),
                http=self.world.http,
                blobs=self.blobs,
                clock=clock,
            ),
            versions=Versions(database),
            registry=self.world.made_up.registry,
            coverage=partial(coverage_in, self.world.made_up.registry),
            sandbox=None,
            syntax=None,
            blobs=self.blobs,
            links=self.world.links,
            bodies=Bodies(
                Budget(2**26, clock=clock),
                max_bytes=self.settings.max_body_bytes,
                grace=15.0,
                clock=clock,
            ),
            answers=Budget(2**26, clock=clock),
            admission=Admission(1000, database.reserve),
            clock=clock,
            events=events,
            identity=THIS_PROCESS,
            supervisor=Supervisor(clock, events),
            lag=LoopLag(clock),
            readiness=Readiness(clock),
            waiting=Waiting(database, clock, events),
            stream=EventStream(events, clock),
            metrics=Metrics(events),
            notes=Notes(database, clock),
            token=None,
        )

    def _reloader(self, clock: Clock, events: EventBus) -> Reloader:
        async def nothing(_: object) -> None: ...

        async def none() -> int:
            return 0

        async def yes() -> bool:
            return True

        herald = Herald(
            Handover(),
            Supervisor(clock, events),
            events,
            clock=clock,
            queued=none,
            running=int,
            passes=yes,
            may_beat=lambda: True,
        )
        return Reloader(self.settings, "stack", apply=nothing, reread=nothing, herald=herald)

    def worker(self) -> Service:
        return Worker(
            store=self.database,
            runtime=self.world.runtime,
            events=self.database.events,
            clock=self.world.clock,
            owner=THIS_PROCESS.id,
            slots=4,
            lease=LEASE,
            lease_renew=LEASE / 4,
            pulse=Pulse(self.world.clock),
        )

    def scheduler(self) -> Service:
        return Scheduler(
            store=self.database,
            blobs=self.blobs,
            clock=self.world.clock,
            identity=THIS_PROCESS,
            lease=LEASE,
            interval=5.0,
            pulse=Pulse(self.world.clock),
            reconciliation=Reconciliation(self.database, self.world.clock),
            retention=Retention(self.database, self.world.clock, Bounds()),
        )

    def timers(self) -> Service:
        return Timers(
            store=self.database,
            events=self.database.events,
            clock=self.world.clock,
            interval=1.0,
            batch=100,
            pulse=Pulse(self.world.clock),
        )

    def rotation(self) -> Service:
        return Rotation()

    def api(self, app: web.Application | None = None) -> Service:
        path = self.folder / f"{len(self.doors)}.sock"
        self.doors.append(doors_at(host="127.0.0.1", port=0, socket_path=path))
        return Api(app or make_app(self.context), self.doors[-1])

    @property
    def port(self) -> int:
        """Of the API that was built last, as the path of its socket is."""
        assert self.doors[-1].address is not None
        return self.doors[-1].address[1]

    @property
    def socket_path(self) -> Path:
        return self.folder / f"{len(self.doors) - 1}.sock"

    def build(self, name: str) -> Service:
        service: Service = getattr(self, name)()
        return service

    # -- what shows that each works

    async def worker_works(self) -> None:
        started = await self.world.start("work")
        await self.happens(lambda e: isinstance(e, ExecutionFinished) and e.execution_id == started)

    async def scheduler_works(self) -> None:
        """Jobs of dead processes are back, as its first round comes before `started`."""
        assert await self.counts("running") == 0

    async def timers_works(self) -> None:
        def park(tx: Tx) -> None:
            tx.execute(
                "INSERT INTO timers (execution, key, due_at, state, output) "
                "SELECT max(seq), 'a', 1.0, 'pending', X'31' FROM executions"
            )
            tx.execute("INSERT INTO node_runs (execution, key, type, status, attempt, effect) "
                       "SELECT max(seq), 'a', 'x', 'waiting', 1, 'read' FROM executions")  # fmt: skip

        await self.world.start("work")
        await self.database.write(park)
        while not self.world.clock.is_awaited:  # a round that began before it is not over yet
            await anyio.lowlevel.checkpoint()
        self.world.clock.advance(1.0)
        await self.happens(lambda e: isinstance(e, TimerFired))

    async def rotation_works(self) -> None:
        """It has no work yet."""

    async def api_works(self) -> None:
        for connecting in (
            asyncio.open_connection("127.0.0.1", self.port),
            asyncio.open_unix_connection(self.socket_path),
        ):
            reader, writer = await connecting
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert answer.startswith(b"HTTP/1.1 200 ")

    async def happens(self, is_it: Callable[[Event], bool]) -> None:
        """Wait for an event, seen already or not."""
        heard = anyio.Event()
        unsubscribe = self.database.events.subscribe(lambda e: heard.set() if is_it(e) else None)
        try:
            if not any(is_it(event) for event in self.world.seen):
                await heard.wait()
        finally:
            unsubscribe()

    async def counts(self, state: str) -> int:
        now = self.world.clock.time()
        return (await self.database.read(lambda tx: verbs.status(tx, now=now))).counts[state]

    # -- what may be left

    def port_is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def close(self) -> None:
        for doors in self.doors:
            await anyio.to_thread.run_sync(doors.close)

    @asynccontextmanager
    async def leaving_nothing(self) -> AsyncIterator[None]:
        """After the block: the tasks, listeners and descriptors of before, and a store that works."""
        tasks, listeners = asyncio.all_tasks(), list(self.database.events._listeners)
        descriptors = open_descriptors()
        yield
        assert asyncio.all_tasks() == tasks
        assert self.database.events._listeners == listeners
        await self.close()
        assert open_descriptors() <= descriptors
        await self.database.write(verbs.resume)
        await self.counts("running")


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[anyio.CancelScope]:
    """The service has started and runs beside the block; at the end it must have ended."""
    with anyio.fail_after(WITHIN):
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: service.run(task_status=task_status))
            yield tasks.cancel_scope


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def turns(count: int) -> None:
    """Let the loop turn: only to fall into the midst of something, never to wait for it."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]


@pytest.fixture
async def site(database: Database, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(database, tmp_path)
    await site.world.load(WORKFLOW)
    yield site
    await site.close()


every_service = pytest.mark.parametrize(
    "name", ["api", "worker", "scheduler", "timers", "rotation"]
)


@every_service
async def test_it_works_once_it_has_started_and_ends_when_drained(site: Site, name: str) -> None:
    await site.world.start("work")
    await site.world.claim("gone")  # something to rescue
    service = site.build(name)

    async with site.leaving_nothing(), running(service):
        await getattr(site, f"{name}_works")()
        service.drain()


@every_service
async def test_it_is_known_by_its_name(site: Site, name: str) -> None:
    assert site.build(name).name == name


@every_service
async def test_drained_before_it_started_it_starts_and_ends(site: Site, name: str) -> None:
    service = site.build(name)
    service.drain()

    async with site.leaving_nothing(), running(service):
        pass


@every_service
async def test_drained_twice_and_after_its_end_it_ends_once(site: Site, name: str) -> None:
    service = site.build(name)

    async with site.leaving_nothing():
        async with running(service):
            service.drain()
            service.drain()
        service.drain()


@every_service
async def test_drained_at_any_moment_of_its_start_it_reports_started_and_ends(
    site: Site, name: str
) -> None:
    for moment in range(TURNS):
        service = site.build(name)
        async with site.leaving_nothing(), anyio.create_task_group() as tasks:

            async def drain(service: Service = service, moment: int = moment) -> None:
                await turns(moment)
                service.drain()

            tasks.start_soon(drain)
            async with running(service):
                pass


@every_service
async def test_cancelled_before_its_first_step_it_leaves_nothing(site: Site, name: str) -> None:
    service = site.build(name)

    async with site.leaving_nothing(), anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        tasks.cancel_scope.cancel()


@every_service
async def test_cancelled_at_any_moment_of_its_start_it_leaves_nothing(
    site: Site, name: str
) -> None:
    for moment in range(TURNS):
        service = site.build(name)
        async with site.leaving_nothing(), anyio.create_task_group() as tasks:
            tasks.start_soon(service.run)
            await turns(moment)
            tasks.cancel_scope.cancel()


@every_service
async def test_cancelled_while_it_runs_it_leaves_nothing(site: Site, name: str) -> None:
    await site.world.start("work")
    service = site.build(name)

    async with site.leaving_nothing(), running(service) as scope:
        scope.cancel()


@every_service
async def test_cancelled_while_it_drains_it_leaves_nothing(site: Site, name: str) -> None:
    for moment in range(5):
        service = site.build(name)
        async with site.leaving_nothing(), running(service) as scope:
            service.drain()
            await turns(moment)
            scope.cancel()


@every_service
async def test_any_order_of_starts_drains_and_cancels_leaves_nothing_and_the_next_one_works(
    site: Site, name: str
) -> None:
    roll = random.Random(f"{SEED} {name}")
    *upset, last = [site.build(name) for _ in range(ROUNDS + 1)]
    async with site.leaving_nothing():
        for service in upset:
            await site.world.start("work")
            await _upset(service, roll)
        async with running(last):
            await getattr(site, f"{name}_works")()
            last.drain()


async def _upset(service: Service, roll: random.Random) -> None:
    """One life of `service`: what happens to it, when, and in which order is rolled; it must be over at the end."""
    lets_start = roll.random() < 0.5
    moves = [roll.choice(["drain", "drain", "cancel", "wait"]) for _ in range(roll.randint(0, 3))]
    with anyio.fail_after(WITHIN):
        async with anyio.create_task_group() as tasks:
            if moves and roll.random() < 0.2:
                service.drain()
            if lets_start:
                await tasks.start(lambda *, task_status: service.run(task_status=task_status))
            else:
                tasks.start_soon(service.run)
            for move in [*moves, roll.choice(["drain", "cancel"])]:
                await turns(roll.choice([0, 0, 1, 2, 3, 5, 8, 13, 21]))
                if move == "drain":
                    service.drain()
                elif move == "cancel":
                    tasks.cancel_scope.cancel()


# -- the API alone


async def test_the_socket_file_is_for_its_user_only(site: Site) -> None:
    service = site.api()
    async with running(service):
        assert site.socket_path.stat().st_mode & 0o777 == 0o600
        service.drain()


async def test_an_api_built_anew_leaves_no_listener_of_the_old_one(site: Site) -> None:
    def listeners() -> int:
        return len(site.database.events._listeners)

    first = site.api()
    async with running(first):
        first.drain()
    before = listeners()
    second = site.api()
    async with running(second):
        second.drain()

    assert listeners() == before


async def test_a_socket_file_left_by_a_dead_process_is_replaced(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(site.folder / "0.sock"))
    service = site.api()

    async with running(service):
        await site.api_works()
        service.drain()


@pytest.mark.parametrize(
    ("host", "code"),
    [("nobody.invalid", "api.host_unknown"), ("192.0.2.7", "api.not_our_address")],
)
def test_a_host_that_is_not_here_is_told_to_be_the_cause(host: str, code: str) -> None:
    with pytest.raises(StackdError, match=host) as caught:
        doors_at(host=host, port=0)

    assert caught.value.code == code
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("set HOST to an address of this machine")


@pytest.mark.parametrize("listens", [True, False])
def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path, listens: bool) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, listens)
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        port, before = other.getsockname()[1], open_descriptors()

        with pytest.raises(StackdError, match=str(port)) as caught:
            doors_at(host="127.0.0.1", port=port, socket_path=tmp_path / "stackd.sock")

        assert caught.value.code == "api.address_in_use"
        assert caught.value.hint is not None
        assert "PORT" in caught.value.hint
        assert open_descriptors() <= before
        assert list(tmp_path.iterdir()) == []


async def test_drained_it_refuses_whoever_comes_then(site: Site) -> None:
    service = site.api()
    async with running(service):
        service.drain()

    assert not site.port_is_open()
    assert not site.socket_path.exists()


async def test_between_one_and_the_next_nobody_is_refused(site: Site) -> None:
    first = site.api()
    async with running(first) as scope:
        scope.cancel()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    second = Api(make_app(site.context), site.doors[-1])
    async with running(second):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        second.drain()
    writer.close()
    await writer.wait_closed()


async def test_a_request_that_hangs_is_cut_off_soon_after_the_drain(site: Site) -> None:
    arrived, was_cut = anyio.Event(), anyio.Event()

    async def hang(_: web.Request) -> web.Response:
        arrived.set()
        try:
            await anyio.sleep_forever()
        finally:
            was_cut.set()
        raise AssertionError

    app = make_app(site.context)
    app.router.add_get("/hang", hang)
    service = site.api(app)
    async with site.leaving_nothing():
        with anyio.fail_after(CLOSE_WITHIN * 3):
            async with running(service):
                _, writer = await asyncio.open_unix_connection(site.socket_path)
                writer.write(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
                await arrived.wait()
                service.drain()
        assert was_cut.is_set()
        writer.close()
        await writer.wait_closed()


async def test_an_idle_connection_does_not_delay_the_end(site: Site) -> None:
    service = site.api()
    with anyio.fail_after(CLOSE_WITHIN / 2):
        async with running(service):
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            service.drain()
        writer.close()
        await writer.wait_closed()
