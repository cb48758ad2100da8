"""Settings in, services wired, supervised until asked to stop. The only wiring there is.

Exit codes: 0 asked to stop, 75 gave up (systemd should restart it), 78 settings, schema, another master key or a
taken lock. Where the loop hangs in a drain, a timer of `supervisor.lag` ends the process with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import math
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import anyio
import structlog

from stackd import __version__
from stackd.core.aside import Aside
from stackd.core.budget import Budget
from stackd.core.clock import Clock, SystemClock
from stackd.core.errors import (
    LockedError,
    MasterKeyError,
    SchemaError,
    SettingsError,
    StackdError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    first_error,
)
from stackd.core.events import Event, EventBus, Listener
from stackd.core.handover import Handover, handed_over, listening_sockets
from stackd.core.locks import LOCKED_ROLES, role_locks
from stackd.core.log import configure_logging, end_log, set_log_level
from stackd.core.places import shipped
from stackd.core.process import ProcessIdentity, current_process, give_back_large_buffers
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.http.proxy import Proxy
from stackd.integrations.catalogue import Catalogue, read_catalogue
from stackd.integrations.circuits import Circuits
from stackd.integrations.coverage import coverage_in
from stackd.integrations.handlers import LOAD_WITHIN
from stackd.integrations.limits import RateLimiter
from stackd.integrations.manager import IntegrationManager
from stackd.integrations.pairs import TokenPairs
from stackd.integrations.registry import CodeRuntime, Fallback, Options, Registry
from stackd.integrations.tokens import MemoryTokens
from stackd.integrations.watching import changes
from stackd.queue import processes, verbs
from stackd.queue.admission import Admission
from stackd.queue.job import RetryPolicy
from stackd.queue.processes import SILENT_LEASES
from stackd.runtime.accounts import DefinedFields, StoredAccounts
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.runtime.connectors import Connectors, effect_in
from stackd.runtime.coverage import tell_uncovered
from stackd.runtime.credential_tests import CredentialTests
from stackd.runtime.links import Links
from stackd.runtime.tools import Limits, Tools
from stackd.runtime.versions import Versions
from stackd.runtime.workflow_runtime import WorkflowRuntime
from stackd.sandbox.errors import SandboxUnavailableError
from stackd.sandbox.events import SandboxTried
from stackd.sandbox.options import options_of
from stackd.sandbox.sandbox import Sandbox
from stackd.services.api import Api
from stackd.services.rotation import Rotation
from stackd.services.scheduler import Scheduler
from stackd.services.timers import Timers
from stackd.services.worker import Worker
from stackd.settings import Flags, Settings, dev_token_file, ensure_dev_token, take_handed
from stackd.store.connection import Tx
from stackd.store.database import Database, StoreWritesStopped, open_database
from stackd.supervisor.herald import EXTENSION, Herald
from stackd.supervisor.lag import LoopLag
from stackd.supervisor.service import Pulse, Service, Spec
from stackd.supervisor.supervisor import GONE_WITHIN, ServiceMoved, ServiceState, Supervisor
from stackd.vault import keyring
from stackd.vault.keyring import Keyring
from stackd.vault.records import Vault
from stackd.web.app import make_app, make_probes
from stackd.web.bodies import Bodies
from stackd.web.checks import DAMAGED, Checks
from stackd.web.connections import FILES_KEPT_FREE, Connections
from stackd.web.context import Context
from stackd.web.doors import Doors, open_doors
from stackd.web.event_log import log_events
from stackd.web.event_stream import EventStream
from stackd.web.health import TURNS_WITHIN
from stackd.web.metrics import Metrics
from stackd.web.notes import Notes
from stackd.web.readiness import Readiness
from stackd.web.reload import Reloader
from stackd.web.starting import make_starting
from stackd.web.waiting import Waiting
from stackd.workflows.reconciliation import Reconciliation
from stackd.workflows.retention import Bounds, Retention

EXIT_OK: Final = 0
EXIT_GAVE_UP: Final = 75  # EX_TEMPFAIL of sysexits.h
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h

ROLES: Final[dict[str, tuple[str, ...]]] = {
    "stack": ("api", "worker", "scheduler", "timers", "rotation"),
    "api": ("api",),
    "worker": ("worker",),
    "scheduler": ("scheduler",),
    "timers": ("timers",),
    "rotation": ("rotation",),
}
SOFT_SILENCE = 10.0  # seconds a service may be silent beyond its own rests, then it is degraded
SLOW_STORE = 1.0  # seconds of one commit
HARD_SILENCE = 30.0  # and then restarted
END_WITHIN = (
    20.0  # seconds from the end of the services to that of the process: its store is closed in them
)
INTERRUPT_WITHIN = 5.0  # seconds cut-off attempts get to record where they stood
# Seconds in which a store is open, or who asks meanwhile is told; where the sockets are another's, who comes may wait.
OPENS_WITHIN, OPENS_WITHIN_BEHIND_A_SOCKET = 1.0, 10.0
CONNECTOR_FAULTS = 5  # of one connector, that are logged
READ_WITHIN = LOAD_WITHIN + 5.0  # seconds to read the connectors again; a disk may never answer
LOCKED_AGAIN = 1.0  # seconds until a store is tried again that another process keeps locked

_log = structlog.get_logger(__name__)


def run_daemon(settings: Settings, role: str, *, listeners: tuple[Listener, ...] = ()) -> int:
    """Run `role` until asked to stop; the exit code. `listeners` hear every event first."""
    gc.freeze()  # what is loaded by now stays: neither a collection nor the end of the process goes through it
    configure_logging(level=settings.log_level, style=settings.log_style)
    give_back_large_buffers()
    for warning in settings.warnings:
        _log.warning("setting", problem=warning)
    handover = handed_over(take_handed())
    code = EXIT_OK
    try:
        sockets = _sockets(handover, role)
        with _locks(settings, role), _state(settings) as (path, blobs):
            # What touches files at start does so here, before there is a loop to hold up.
            identity, token = current_process(), _token(settings, role)
            catalogue = read_catalogue(_connector_folders(settings))
            _tell_of(catalogue)
            with closing(_doors(settings, role, identity, sockets)) as doors:

                async def main() -> int:
                    return await _Daemon(
                        settings,
                        role,
                        path,
                        blobs,
                        identity,
                        token,
                        handover,
                        doors,
                        catalogue,
                        listeners,
                    ).run()

                code = anyio.run(main, backend_options={"use_uvloop": True})
    except* StackdError as group:  # task groups wrap what ended them
        code = _say_why(group, handover)
    return code


def _connector_folders(settings: Settings) -> list[Path]:
    """Where connectors are; of two with one id, that of the earlier folder counts."""
    own = [] if settings.connectors_dir is None else [settings.connectors_dir]
    return [settings.state_dir / "connectors", *own, shipped("connectors")]


def _tell_of(catalogue: Catalogue) -> None:
    """Say what was read, and what is wrong with it."""
    for problem in catalogue.problems:
        _log.warning("connectors cannot be read", problem=problem)
    for connector in catalogue.connectors:
        if told := connector.told:
            _log.warning(
                "a connector has faults", connector=connector.id, folder=str(connector.folder),
                problems=told[:CONNECTOR_FAULTS],
            )  # fmt: skip
    _log.info("connectors read", count=len(catalogue.connectors))


def _sockets(handover: Handover, role: str) -> tuple[socket.socket, ...]:
    """What the API is to listen on, if that was handed over.

    Raises:
        SettingsError: it is nothing that can be served on, or `role` serves nothing.
    """
    sockets = listening_sockets(handover)
    if sockets and "api" not in ROLES[role]:
        raise SettingsError([f"role {role} serves no API, but sockets were handed over for one"])
    return sockets


def _doors(
    settings: Settings, role: str, identity: ProcessIdentity, sockets: tuple[socket.socket, ...]
) -> Doors:
    """Where this process is reached: the API as the settings say, another role for probes alone.

    Raises:
        StackdError: a socket cannot be had.
    """
    if "api" in ROLES[role]:
        path = settings.state_dir / "stackd.sock"
        return open_doors(host=settings.host, port=settings.port, socket_path=path, handed=sockets)
    return open_doors(socket_path=settings.state_dir / f"{role}-{identity.pid}.sock")


def _raise_file_limit() -> int:
    """Let this process open as many files as it may; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


def _say_why(group: BaseExceptionGroup[StackdError], handover: Handover) -> int:
    """Say what keeps the daemon from going on, in the log and to the service manager; the exit code."""
    error = first_error(group)
    assert isinstance(error, StackdError)  # noqa: S101  # a group of these holds nothing else
    reason = "; ".join(error.problems) if isinstance(error, SettingsError) else error.message
    _log.error("cannot go on", code=error.code, reason=reason, hint=error.hint)
    handover.notifier.status(f"cannot go on: {reason}")
    return _exit_code(error)


def _exit_code(error: StackdError) -> int:
    """78 if a restart would meet the same error, else 75."""
    lasting = (SettingsError, SchemaError, MasterKeyError, LockedError, StoreCorruptError)
    if isinstance(error, lasting) or error.code == "store.read_only":
        return EXIT_CONFIG
    return EXIT_GAVE_UP


@contextmanager
def _state(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """(database file, blob folder), made if missing; in a folder that vanishes for the in-memory driver."""
    if settings.queue_driver == "inmemory":
        with tempfile.TemporaryDirectory(prefix="stackd-") as folder:
            yield Path(folder) / "stackd.db", Path(folder) / "blobs"
        return
    yield settings.database_path, settings.state_dir / "blobs"


def _locks(settings: Settings, role: str) -> AbstractContextManager[None]:
    return role_locks(settings.state_dir, [one for one in ROLES[role] if one in LOCKED_ROLES])


def _excluded(role: str) -> frozenset[str]:
    """The roles that nobody else can run while this process holds the locks of `role`."""
    held = LOCKED_ROLES.intersection(ROLES[role])
    return frozenset(other for other, services in ROLES.items() if held.intersection(services))


def _token(settings: Settings, role: str) -> str | None:
    """The bearer token of `dev`, if `role` serves the API: only one process does, nobody else makes the file."""
    if settings.env != "development" or "api" not in ROLES[role]:
        return None
    return ensure_dev_token(settings.state_dir)


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        age=settings.keep_seconds or math.inf,
        count=settings.keep_executions or math.inf,
        bytes=settings.keep_bytes or math.inf,
    )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Daemon:
    """One process: its store, its services, its end."""

    def __init__(
        self,
        settings: Settings,
        role: str,
        path: Path,
        blobs: Path,
        identity: ProcessIdentity,
        token: str | None,
        handover: Handover,
        doors: Doors,
        catalogue: Catalogue,
        listeners: tuple[Listener, ...],
    ) -> None:
        self._settings = settings
        self._role = role
        self._path = path
        self._blobs = blobs
        self._identity = identity
        self._clock: Clock = SystemClock()
        self._events = EventBus()
        for listener in listeners:
            self._events.subscribe(listener)
        self._supervisor = Supervisor(
            self._clock,
            self._events,
            escalate=lambda _: faulthandler.dump_traceback(all_threads=True),
        )
        self._lag = LoopLag(self._clock)
        self._token = token
        self._url = None if doors.address is None else _url(*doors.address)
        self._links = Links(
            settings.encryption_master_key,
            settings.public_url or self._url or _url(settings.host, settings.port),
        )
        self._vault = Vault(
            Keyring(settings.encryption_master_key), DefinedFields(lambda: self._registry)
        )
        self._runtime: WorkflowRuntime | None = None
        self._readiness = Readiness(self._clock)
        self._handover = handover
        self._doors = doors
        self._connection_limit = self._connections_at_most()
        self._herald: Herald | None = None
        self._reloader: Reloader | None = None
        self._code: CodeRuntime | None = None
        self._registry = Registry(catalogue, self._options)
        self._rereading = anyio.Lock()  # what was begun later is used later
        self._coverage = partial(coverage_in, self._registry)
        self._versions: Versions | None = None
        self._has_said_ready = False
        self._was_unclean = False  # the end of who had the store before
        self._opening_reason = "the store is being opened"
        self._opening = anyio.CancelScope()
        self._obeying = anyio.CancelScope()
        self._has_opened = anyio.Event()

    @property
    def _names(self) -> list[str]:
        """The services of this process, in the order they start."""
        names = list(ROLES[self._role])
        if self._role == "api" and self._settings.inline_worker:
            names.append("worker")
        return names if "api" in names else ["probes", *names]

    async def run(self) -> int:
        async with anyio.create_task_group() as beside:
            await beside.start(self._obey_signals)
            beside.start_soon(self._tell_of_opening)
            async with (
                self._store() as store,
                self._http() as http,
                self._sandbox() as sandbox,
            ):
                self._opening.cancel()
                await self._has_opened.wait()
                await self._serve(store, http, sandbox)
        failure = self._supervisor.failure
        if failure is not None:
            _log.error("gave up", code=failure.code, reason=failure.message, hint=failure.hint)
            self._handover.notifier.status(f"gave up: {failure.message}")
            return _exit_code(failure)
        _log.info("stopped")
        return EXIT_OK

    async def _tell_of_opening(self) -> None:
        """Where the store takes long to open, say so to who asks, and to the service manager, for more time."""
        notifier = self._handover.notifier
        within = OPENS_WITHIN_BEHIND_A_SOCKET if self._doors.are_handed else OPENS_WITHIN
        with self._opening:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    self._answer_meanwhile, within, "store.open", lambda: self._opening_reason
                )
                await self._clock.sleep(OPENS_WITHIN)
                _log.info("the store is being opened")
                notifier.status(f"starting: {self._opening_reason}")
                while True:
                    notifier.extend(EXTENSION)
                    await self._clock.sleep(EXTENSION / 2)
        self._has_opened.set()

    async def _stand_in(self) -> None:
        """Answer who comes while the API is out of order: its next try may be half a minute away."""
        moved, is_out = anyio.Event(), False

        def hear(event: Event) -> None:
            nonlocal moved, is_out
            if isinstance(event, ServiceMoved) and event.service == "api":
                is_out = event.state == ServiceState.RESTARTING
                moved.set()
                moved = anyio.Event()

        self._events.subscribe(hear, ServiceMoved)
        while True:
            while not is_out:
                await moved.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    self._answer_meanwhile,
                    OPENS_WITHIN,
                    "service.api",
                    lambda: "the API has failed and will be started again",
                )
                while is_out:
                    await moved.wait()
                tasks.cancel_scope.cancel()

    async def _answer_meanwhile(self, within: float, check: str, reason: Callable[[], str]) -> None:
        """Answer in place of the API, after `within` seconds, until cancelled."""
        await self._clock.sleep(within)
        await Api(
            make_starting(check, reason),
            self._doors,
            connections=self._connections(),
            name="starting",
        ).run()

    async def _wait_for_the_store(self, error: StoreBusyError) -> None:
        """Another process keeps it locked: that is no fault of this one, which a restart would mend."""
        if self._opening_reason != error.message:
            _log.warning("waiting for the store", reason=error.message, hint=error.hint)
            self._handover.notifier.status(f"starting: {error.message}")
        self._opening_reason = error.message
        await self._clock.sleep(LOCKED_AGAIN)

    async def _serve(self, store: Database, http: HttpClient, sandbox: Sandbox | None) -> None:
        """Run the services until all have ended."""
        self._events.subscribe(lambda _: self._give_up(store), StoreWritesStopped)
        self._herald = self._make_herald(store)
        self._reloader = self._make_reloader(store, http, self._herald)
        self._events.subscribe(lambda _: self._say_ready(), ServiceMoved)
        self._add_services(store, http, sandbox, self._reloader)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._heed_giving_up)
            tasks.start_soon(self._end_hard)
            tasks.start_soon(self._lag.run)
            tasks.start_soon(self._readiness.run)
            tasks.start_soon(self._herald.run)
            if "api" in self._names:
                tasks.start_soon(self._stand_in)
                tasks.start_soon(self._tell_uncovered, store)
            if sandbox is not None and "worker" in self._names:
                tasks.start_soon(self._try_sandbox, sandbox)
            if self._settings.env == "development":
                tasks.start_soon(self._watch_connectors)
            if self._was_unclean and "scheduler" in self._names:
                tasks.start_soon(self._look_through, store)
            await self._supervisor.run()
            # Whoever waits for a thread that waits for a disk would be waited for, down to the interpreter's end.
            last_resort = threading.Timer(END_WITHIN, os._exit, (EXIT_GAVE_UP,))
            last_resort.daemon = True
            last_resort.start()
            tasks.cancel_scope.cancel()
            self._obeying.cancel()
        if self._supervisor.failure is None and store.failure is None:
            with contextlib.suppress(StoreBusyError, StoreFullError):  # forgotten after a day
                await store.write(lambda tx: processes.forget(tx, self._identity))

    async def _tell_uncovered(self, store: Database) -> None:
        """Say what cannot run; of all roles on the store, one does."""
        with contextlib.suppress(StoreError):
            await tell_uncovered(store, self._coverage)

    @asynccontextmanager
    async def _sandbox(self) -> AsyncIterator[Sandbox | None]:
        """What runs code, where there is a worker; where there is an API, what reads the code of imports."""
        if {"api", "worker"}.isdisjoint(self._names):
            yield None
            return
        options = await anyio.to_thread.run_sync(options_of, self._settings)
        async with Sandbox(options, clock=self._clock, events=self._events) as sandbox:

            def learn(_: Event | None = None) -> None:
                self._code = CodeRuntime(sandbox.problem(), sandbox.told())

            if "worker" in self._names:
                self._events.subscribe(learn, SandboxTried)
                learn()
            yield sandbox

    async def _try_sandbox(self, sandbox: Sandbox) -> None:
        """Find out how well code is isolated, beside all else: only code nodes wait for it."""
        try:
            await sandbox.check()
        except SandboxUnavailableError:
            pass  # it has said so, and tries again when there is code to run
        except Exception:  # noqa: BLE001  # a fault there is no reason to run nothing at all
            _log.exception("the sandbox could not be tried")

    async def _look_through(self, store: Database) -> None:
        """See whether the file is whole, while all else goes on."""
        try:
            looked = await store.integrity.look()
        except StoreError as error:
            _log.warning("the store was not looked through", reason=error.message)
            return
        seconds = round(looked.seconds, 3)
        if looked.problems:
            _log.error(
                "the store is damaged", problems=looked.problems, seconds=seconds, hint=DAMAGED
            )
        else:
            _log.info("the store is whole", seconds=seconds)
            now = self._clock.time()  # those who are gone have been seen to
            with contextlib.suppress(StoreError):
                await store.write(lambda tx: processes.forget_gone(tx, silent_since=now))

    def _give_up(self, store: Database) -> None:
        assert store.failure is not None  # noqa: S101  # it has just said so
        self._supervisor.give_up(store.failure)

    def _make_herald(self, store: Database) -> Herald:
        def running() -> int:
            return 0 if self._runtime is None else self._runtime.running

        async def passes() -> bool:
            await self._readiness.told()
            return self._readiness.has_passed

        async def queued() -> int:
            return sum((await store.read(verbs.live_counts)).values())

        return Herald(
            self._handover,
            self._supervisor,
            self._events,
            clock=self._clock,
            queued=queued,
            running=running,
            passes=passes,
            may_beat=self._does_its_work,
        )

    def _does_its_work(self) -> bool:
        """Whether this process turns; whatever it depends on never enters this: a restart would not mend it."""
        silent = self._clock.monotonic() - self._supervisor.looked_at
        return silent < TURNS_WITHIN and not self._supervisor.is_stuck

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[Database]:
        settings, keys = self._settings, self._vault.keyring
        await anyio.to_thread.run_sync(keyring.refuse_other_at, self._path, keys)
        async with open_database(
            self._path,
            clock=self._clock,
            events=self._events,
            busy_timeout=settings.busy_timeout,
            readers=settings.reader_count,
            on_busy=self._wait_for_the_store,
        ) as store:
            now = self._clock.time()
            resolved = await anyio.to_thread.run_sync(
                partial(
                    processes.resolve,
                    self._path,
                    settings.state_dir,
                    lease=settings.lease,
                    works="worker" in self._names,
                )
            )

            def register(tx: Tx) -> bool:
                keyring.ensure(tx, keys, place=self._path, now=now)
                return processes.register(
                    tx,
                    self._identity,
                    role=self._role,
                    now=now,
                    excluded=_excluded(self._role),
                    resolved=resolved,
                )

            while True:
                try:
                    self._was_unclean = await store.write(register)
                    break
                except StoreBusyError as error:
                    await self._wait_for_the_store(error)
            yield store

    def _make_reloader(self, store: Database, http: HttpClient, herald: Herald) -> Reloader:
        log_at = log_events(self._events, level=self._settings.log_level)

        async def apply(flags: Flags) -> None:
            set_log_level(flags.log_level)
            log_at(flags.log_level)
            await http.use(self._egress(flags))

        async def reread(settings: Settings) -> None:
            await self._reread_connectors(settings)
            if "api" in self._names:
                await self._tell_uncovered(store)

        return Reloader(self._settings, self._role, apply=apply, reread=reread, herald=herald)

    async def _watch_connectors(self) -> None:
        """Read the connectors again whenever their files change."""
        folders = await anyio.to_thread.run_sync(_connector_folders, self._settings)
        async for _ in changes(folders, self._clock):
            _log.info("connectors have changed")
            await self._reread_connectors(self._settings)

    async def _reread_connectors(self, settings: Settings) -> None:
        """Let the connectors be as their files are now; what runs goes on as it began."""
        reading = Aside(lambda: read_catalogue(_connector_folders(settings)))
        async with self._rereading:
            await self._use_connectors(reading)

    async def _use_connectors(self, reading: Aside[Catalogue]) -> None:
        with anyio.move_on_after(READ_WITHIN):
            self._registry.use(await reading.result())
            if self._versions is not None:
                self._versions.forget()
            _tell_of(self._registry.catalogue)
            return
        _log.error("connectors not read again", reason=f"it took over {READ_WITHIN:g} s")

    def _options(self) -> Options:
        """What decides how operations run, by the settings as they are now."""
        settings = self._settings if self._reloader is None else self._reloader.settings
        return Options(
            settings.generic_executor,
            Fallback(settings.generic_fallback),
            development=settings.env == "development",
            code=self._code,
        )

    def _egress(self, flags: Flags) -> EgressPolicy:
        return EgressPolicy(
            allow_domains=flags.network_allow_domains,
            allow_ranges=flags.network_allow_ranges,
            deny_domains=flags.network_deny_domains,
            deny_ranges=flags.network_deny_ranges,
            allow_loopback=self._settings.env == "development",
        )

    def _http(self) -> HttpClient:
        settings = self._settings
        return HttpClient(
            self._egress(Flags.of(settings)),
            clock=self._clock,
            ca_file=settings.tls_ca_file,
            proxy=Proxy.of(settings.http_proxy, settings.no_proxy) if settings.http_proxy else None,
        )

    def _add_services(
        self, store: Database, http: HttpClient, sandbox: Sandbox | None, reloader: Reloader
    ) -> None:
        settings = self._settings
        registry = self._registry
        versions = self._versions = Versions(store, partial(effect_in, registry))
        accounts = StoredAccounts(store, self._vault, self._clock, self._identity)
        tokens = MemoryTokens(self._clock, TokenPairs(accounts, self._clock))
        manager = IntegrationManager(registry, tokens)
        blobs = BlobFolder(
            self._blobs,
            store,
            clock=self._clock,
            limits=BlobLimits(settings.max_blob_bytes, settings.blob_bytes),
        )
        admission = Admission(settings.max_jobs, store.reserve)
        runs_code = sandbox if "worker" in self._names else None  # else it only reads code
        tools = Tools(
            store=store,
            http=http,
            blobs=blobs,
            clock=self._clock,
            events=self._events,
            limits=Limits(settings.max_output_bytes, settings.max_execution_bytes),
            admission=admission,
            links=self._links,
            connectors=Connectors(
                manager,
                accounts,
                RateLimiter(store, self._clock),
                Circuits(store, self._clock),
            ),
            vault=self._vault,
            sandbox=runs_code,
            job_retry=RetryPolicy(
                settings.retry_delay, settings.max_retry_delay, settings.max_retries + 1
            ),
            # A process is taken for dead after SILENT_LEASES; its last sign of life may be a renewal older.
            send_within=(SILENT_LEASES - 1) * settings.lease,
        )
        runtime = self._runtime = WorkflowRuntime(
            tools,
            versions,
            memory=Budget(settings.run_memory_bytes, clock=self._clock),
            roll=random.random,
        )
        readiness = self._readiness
        reconciliation = Reconciliation(store, self._clock)
        checks = Checks(
            store=store,
            supervisor=self._supervisor,
            clock=self._clock,
            events=self._events,
            identity=self._identity,
            lag=self._lag,
            state_dir=settings.state_dir,
            reconciliation=reconciliation,
            slots=settings.worker_concurrency,
            sandbox=runs_code,
        )
        context = Context(
            settings=settings,
            reloader=reloader,
            store=store,
            vault=self._vault,
            credential_tests=CredentialTests(
                store=store,
                vault=self._vault,
                manager=manager,
                accounts=accounts,
                tokens=tokens,
                http=http,
                blobs=blobs,
                clock=self._clock,
            ),
            versions=versions,
            registry=registry,
            coverage=self._coverage,
            sandbox=runs_code,
            syntax=None if sandbox is None else sandbox.syntax_from_thread,
            blobs=blobs,
            links=self._links,
            bodies=Bodies(
                Budget(settings.body_memory_bytes, clock=self._clock),
                max_bytes=settings.max_body_bytes,
                grace=settings.client_patience,
                clock=self._clock,
            ),
            answers=Budget(settings.body_memory_bytes, clock=self._clock),
            admission=admission,
            clock=self._clock,
            events=self._events,
            identity=self._identity,
            supervisor=self._supervisor,
            lag=self._lag,
            readiness=readiness,
            waiting=Waiting(store, self._clock, self._events),
            stream=EventStream(self._events, self._clock),
            metrics=Metrics(self._events),
            notes=Notes(store, self._clock),
            token=self._token,
        )
        builders: dict[str, Callable[[Pulse], Service]] = {
            "worker": lambda pulse: Worker(
                store=store,
                runtime=runtime,
                events=self._events,
                clock=self._clock,
                owner=self._identity.id,
                slots=settings.worker_concurrency,
                lease=settings.lease,
                lease_renew=settings.lease_renew,
                pulse=pulse,
            ),
            "scheduler": lambda pulse: Scheduler(
                store=store,
                blobs=blobs,
                clock=self._clock,
                identity=self._identity,
                lease=settings.lease,
                interval=settings.scheduler_interval,
                pulse=pulse,
                reconciliation=reconciliation,
                retention=Retention(store, self._clock, _bounds(settings)),
            ),
            "timers": lambda pulse: Timers(
                store=store,
                events=self._events,
                clock=self._clock,
                interval=settings.timer_interval,
                batch=settings.timer_batch,
                pulse=pulse,
            ),
            "rotation": lambda _: Rotation(),
            "api": lambda _: Api(
                make_app(context),
                self._doors,
                connections=self._connections(),
            ),
            "probes": lambda _: Api(make_probes(context), self._doors, name="probes"),
        }
        names = self._names
        checks.into(readiness, services=names)
        silence = {
            "worker": 0.0,
            "scheduler": settings.scheduler_interval,
            "timers": settings.timer_interval,
        }
        for name in names:
            rests = silence.get(name)  # between two signs of life, if it gives any
            self._supervisor.add(
                Spec(
                    name,
                    builders[name],
                    essential=name not in ("rotation", "probes"),
                    excuse=lambda: "the store is slow" if store.is_behind(SLOW_STORE) else None,
                    soft=None if rests is None else rests + SOFT_SILENCE,
                    hard=None if rests is None else rests + HARD_SILENCE,
                )
            )

    def _connections(self) -> Connections:
        return Connections(limit=self._connection_limit, patience=self._settings.client_patience)

    def _connections_at_most(self) -> int:
        """As many as the settings say, or as there may be files, less those kept free for others."""
        wanted, files = self._settings.max_connections, _raise_file_limit()
        limit = max(min(wanted, files - FILES_KEPT_FREE), 1)
        if limit < wanted:
            _log.warning("fewer connections than STACKD_MAX_CONNECTIONS", limit=limit, files=files)
        return limit

    def _say_ready(self) -> None:
        """Once all services are ready: to the log, and with the token to the person at the terminal."""
        if self._has_said_ready or not self._supervisor.has_started:
            return
        self._has_said_ready = True
        facts = {} if self._url is None else {"url": self._url}
        _log.info(
            "ready", version=__version__, role=self._role, pid=self._identity.pid,
            state=str(self._settings.state_dir), **facts,
        )  # fmt: skip
        if self._token is not None:  # no log line holds it
            where = dev_token_file(self._settings.state_dir)
            with contextlib.suppress(OSError):  # nobody may be reading
                # Its end is in the same write, or a line of the log might come before it.
                print(f"dev token: {self._token} (kept in {where})\n", end="", flush=True)  # noqa: T201

    async def _obey_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Drain when asked to stop, end at the second time; of a service, a hang-up asks to read its settings again."""
        with (
            self._obeying,
            anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        ):
            task_status.started()
            asked = False
            async with anyio.create_task_group() as tasks:
                async for received in signals:
                    # In `dev` the terminal was closed.
                    reloads = received == signal.SIGHUP and self._settings.env == "production"
                    if self._reloader is None:
                        if not reloads:  # else its settings are fresh
                            await anyio.to_thread.run_sync(self._end_while_opening, received)
                    elif reloads:
                        tasks.start_soon(self._reload)
                    elif asked:
                        _log.warning("stopping now", signal=received.name)
                        self._supervisor.stop()
                        return
                    else:
                        asked = True
                        _log.info("draining", signal=received.name)
                        tasks.start_soon(self._drain)

    def _end_while_opening(self, received: signal.Signals) -> NoReturn:
        """Nothing has begun. What a migration has done is undone by whoever opens the store next, as after a kill."""
        self._handover.notifier.stopping("stopping before the store is open")
        _log.info("stopped before the store was open", signal=received.name)
        self._doors.close()
        end_log()
        os._exit(EXIT_OK)

    async def _heed_giving_up(self) -> None:
        """Finish what can be finished before the process ends."""
        await self._supervisor.has_given_up.wait()
        if not self._supervisor.is_stopping.is_set():
            await self._drain()
            self._supervisor.stop()

    async def _end_hard(self) -> None:
        """End the process if something in it does not heed that all is over: nobody else could."""
        await self._supervisor.is_stopping.wait()
        await self._clock.sleep(GONE_WITHIN)
        _log.error("cannot end; the stacks follow")
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_GAVE_UP)

    async def _reload(self) -> None:
        assert self._reloader is not None  # noqa: S101  # signals are obeyed once all is wired
        with contextlib.suppress(SettingsError):  # it has said so
            await self._reloader.reload()

    async def _drain(self) -> None:
        """No new work, finish what is in hand, then end the API; cut off what outlasts the deadline."""
        self._lag.end_if_held_up()
        if self._herald is not None:
            self._herald.drain(self._settings.drain_timeout)
        producers = ["scheduler", "timers", "rotation", "worker"]
        self._supervisor.drain(producers)
        with anyio.move_on_after(self._settings.drain_timeout) as in_time:
            await self._supervisor.ended("worker")
        if in_time.cancelled_caught and self._runtime is not None:
            _log.warning("drain deadline passed", running=self._runtime.running)
            self._runtime.interrupt_all()
            with anyio.move_on_after(INTERRUPT_WITHIN):
                await self._supervisor.ended("worker")
        self._supervisor.drain(["api", "probes"])
        with anyio.move_on_after(INTERRUPT_WITHIN) as ended:
            for name in (*producers, "api", "probes"):
                await self._supervisor.ended(name)
        if ended.cancelled_caught:
            self._supervisor.stop()
