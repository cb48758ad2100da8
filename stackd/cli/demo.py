"""`stackd demo`: the real stack in a child process, real deliveries, a `kill -9` in the middle, an account.

Each delivery carries its own number. The local service the workflows call applies an effect once per
Idempotency-Key and notes which delivery it was for; at the end every accepted delivery must have exactly one
effect and one completed execution.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import aiohttp
import anyio
from aiohttp import web

from stackd.core.clock import SystemClock
from stackd.core.errors import StackdError, first_error
from stackd.core.json import dumps, loads
from stackd.core.places import shipped
from stackd.core.sockets import free_port
from stackd.settings import foreign

KINDS = (
    ("order-intake.yaml", "orders", "order-small.json"),
    ("github-events.yaml", "github", "github-push.json"),
    ("sensor-batch.yaml", "sensors", "sensor-batch.json"),
)
EXAMPLE_SERVICE = (
    "http://127.0.0.1:9000"  # what the examples call; replaced by the demo's own service
)
SENDERS = 16
START_WITHIN = 30.0  # seconds
FINISH_WITHIN = 120.0  # seconds after the last delivery
SERVICE_DELAY = 0.02  # seconds the service takes, so that the kill meets requests in flight

# What Python runs in the child: it asks to be killed when its parent ends, however that happens, and becomes
# the command. Popen's preexec_fn could ask too, but is not safe beside threads.
TIED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # prctl(2); execve keeps it
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):  # else it ended before we asked
    os.execv(sys.argv[2], sys.argv[2:])
"""

Advance = Callable[[], None]  # counts one more on a progress bar

T = TypeVar("T")

_clock = SystemClock()


@dataclass(slots=True)
class _Account:
    """What the demo saw."""

    accepted: dict[int, str] = field(default_factory=dict)  # delivery number -> execution id
    ack_seconds: list[float] = field(default_factory=list)
    run_seconds: list[float] = field(default_factory=list)
    completed: int = 0
    lost: int = 0
    resent: int = 0
    kills: int = 0

    def summary(self, doubled: int) -> dict[str, Any]:
        return {
            "accepted": len(self.accepted),
            "completed": self.completed,
            "lost": self.lost,
            "doubled": doubled,
            "rerunSteps": self.resent,
            "kills": self.kills,
            "ackMs": _percentiles(self.ack_seconds),
            "executionMs": _percentiles(self.run_seconds),
        }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {"p50": 0.0, "p99": 0.0}

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    return {"p50": round(at(0.5) * 1000, 1), "p99": round(at(0.99) * 1000, 1)}


class _Service:
    """The far side: applies each Idempotency-Key once, like a payment API would."""

    def __init__(self) -> None:
        self.effects: Counter[int] = Counter()
        self.requests = 0
        self._answers: dict[str, bytes] = {}

    async def handle(self, request: web.Request) -> web.Response:
        body = loads(await request.read())
        self.requests += 1
        key = request.headers.get("Idempotency-Key", "")
        await _clock.sleep(SERVICE_DELAY)
        if key not in self._answers:
            self.effects[int(body["delivery"])] += 1
            self._answers[key] = dumps({"accepted": True, "number": sum(self.effects.values())})
        return web.Response(body=self._answers[key], content_type="application/json")

    @property
    def resent(self) -> int:
        """Requests that repeated a key."""
        return self.requests - len(self._answers)

    @property
    def doubled(self) -> int:
        """Deliveries with more than one effect."""
        return sum(count - 1 for count in self.effects.values() if count > 1)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_post("/{tail:.*}", self.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class ChildDaemon:
    """The stack as a child process on a port of its own. It ends with this process, whatever ends that."""

    def __init__(self, state: Path, log: IO[bytes]) -> None:
        self.state = state
        self._log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None  # noqa: S101  # it was started
        return self.process.pid

    @property
    def words(self) -> list[str]:
        """What Python runs in it."""
        return ["-m", "stackd", "dev"]

    def start(self) -> None:
        """Call it on the main thread: a child is tied to the thread that starts it."""
        environ = foreign() | {"STACKD_STATE_DIR": str(self.state), "PORT": str(self.port)}
        tied = [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid())]
        self.process = subprocess.Popen(
            [*tied, sys.executable, *self.words],
            env=environ,
            cwd=self.state,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for this process, which ends it
        )

    async def until_ready(self, session: aiohttp.ClientSession) -> None:
        """Return once it is ready.

        Raises:
            StackdError: it ended or was not ready in time; shows the end of its log.
        """
        deadline = _clock.monotonic() + START_WITHIN
        while _clock.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                async with session.get(f"{self.url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await _clock.sleep(0.05)
        raise StackdError(f"the daemon did not become ready\n{self.last_words()}")

    def last_words(self) -> str:
        tail = (self.state / "daemon.log").read_text(errors="replace")[-2000:]
        return f"the end of its log:\n{tail}"

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def ended_by_signals() -> Iterator[list[signal.Signals]]:
    """Cancel the block at Ctrl-C, SIGTERM or SIGHUP; the list it gets then holds the signal.

    A SIGHUP that was ignored from the start (`nohup`) stays so.
    """
    loop, scope = asyncio.get_running_loop(), anyio.CancelScope()
    heeded = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        heeded.remove(signal.SIGHUP)
    received: list[signal.Signals] = []

    def end(one: signal.Signals) -> None:
        received.append(one)
        scope.cancel()

    for one in heeded:
        loop.add_signal_handler(one, end, one)
    try:
        with scope:
            yield received
    finally:
        for one in heeded:
            loop.remove_signal_handler(one)


def run_until_signalled(
    work: Callable[..., Awaitable[T]], *arguments: Any, use_uvloop: bool = False
) -> T:
    """What `work` returns. A signal cancels it; once it has cleaned up, the process ends with 128 + its number."""

    async def main() -> tuple[list[signal.Signals], list[T]]:
        done: list[T] = []
        with ended_by_signals() as received:
            done.append(await work(*arguments))
        return received, done

    received, done = anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    if not done:
        sys.exit(128 + received[0])
    return done[0]


def run_demo(*, keep: bool, deliveries: int, as_json: bool) -> int:
    """Run it and print the account; 0 if nothing was lost or done twice."""
    state = Path(tempfile.mkdtemp(prefix="stackd-demo-"))
    try:
        return run_until_signalled(_demo, state, keep, deliveries, as_json)
    finally:
        if not keep:
            shutil.rmtree(state, ignore_errors=True)


async def _demo(state: Path, keep: bool, deliveries: int, as_json: bool) -> int:
    service, account = _Service(), _Account()
    with (state / "daemon.log").open("wb") as log:
        daemon = ChildDaemon(state, log)
        try:
            async with (
                service.listening() as service_url,
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
            ):
                if not as_json:
                    print(f"starting the stack on {daemon.url}, state in {state}")
                daemon.start()
                await daemon.until_ready(session)
                await _import_examples(session, daemon, service_url)
                with _progress(deliveries, quiet=as_json) as (delivered, finished):
                    await _deliver(session, daemon, account, deliveries, delivered)
                    await _account_for(session, daemon, account, service, finished)
                _report(account, service, as_json=as_json)
                if keep:
                    await _stay(daemon)
            daemon.stop()
        except Exception as error:
            cause = first_error(error)  # task groups wrap it
            if isinstance(cause, StackdError):
                raise cause from None
            if isinstance(cause, aiohttp.ClientError):
                raise StackdError(f"the daemon is gone: {cause}\n{daemon.last_words()}") from None
            raise
        finally:
            daemon.kill()  # if it was cut off: the store stands that, and nobody waits for a drain
    return _exit_code(account, service.doubled)


def _exit_code(account: _Account, doubled: int) -> int:
    """0 if something was accepted, and nothing of it lost or done twice."""
    return 0 if account.accepted and account.lost == 0 and doubled == 0 else 1


async def _import_examples(
    session: aiohttp.ClientSession, daemon: ChildDaemon, service_url: str
) -> None:
    headers = {"Authorization": f"Bearer {(daemon.state / 'dev-token').read_text().strip()}"}
    for name, _, _ in KINDS:
        text = (shipped("config") / "examples" / name).read_text()
        document = text.replace(EXAMPLE_SERVICE, service_url)
        async with session.post(
            f"{daemon.url}/api/workflows?activate=true", data=document.encode(), headers=headers
        ) as answer:
            if answer.status not in (200, 201):
                raise StackdError(f"{name} was not imported: {await answer.text()}")


async def _deliver(
    session: aiohttp.ClientSession,
    daemon: ChildDaemon,
    account: _Account,
    deliveries: int,
    delivered: Advance,
) -> None:
    """Post every delivery until it is acknowledged, and kill the daemon when a third of them is."""
    payloads = [
        (path, loads((shipped("config") / "payloads" / file).read_bytes()))
        for _, path, file in KINDS
    ]
    numbers = iter(range(deliveries))
    give_up_at = _clock.monotonic() + FINISH_WITHIN + deliveries * 0.05
    back = anyio.Event()
    back.set()

    async def send() -> None:
        nonlocal back
        for number in numbers:
            path, payload = payloads[number % len(payloads)]
            body = dumps({**payload, "delivery": number})
            while True:
                await back.wait()
                if _clock.monotonic() > give_up_at:
                    raise StackdError(f"delivery {number} is not accepted\n{daemon.last_words()}")
                try:
                    account.accepted[number] = await _post(
                        session, daemon, path, body, number, account
                    )
                except (aiohttp.ClientError, TimeoutError):
                    await _clock.sleep(0.05)  # the same delivery again, under the same key
                    continue
                break
            delivered()

    async def kill_in_the_middle() -> None:
        nonlocal back
        while len(account.accepted) < max(1, deliveries // 3):
            await _clock.sleep(0.005)
        back = anyio.Event()
        daemon.kill()
        account.kills += 1
        daemon.start()
        await daemon.until_ready(session)
        back.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill_in_the_middle)
        for _ in range(SENDERS):
            tasks.start_soon(send)


async def _post(
    session: aiohttp.ClientSession,
    daemon: ChildDaemon,
    path: str,
    body: bytes,
    number: int,
    account: _Account,
) -> str:
    began = _clock.monotonic()
    async with session.post(
        f"{daemon.url}/api/webhooks/{path}",
        data=body,
        headers={"Content-Type": "application/json", "Idempotency-Key": f"delivery-{number}"},
    ) as answer:
        if answer.status not in (200, 202):
            raise aiohttp.ClientError(f"answered {answer.status}")
        accepted = loads(await answer.read())
    account.ack_seconds.append(_clock.monotonic() - began)
    return str(accepted["executionId"])


async def _account_for(
    session: aiohttp.ClientSession,
    daemon: ChildDaemon,
    account: _Account,
    service: _Service,
    finished: Advance,
) -> None:
    """Wait until every accepted execution is over, and compare each with its effect."""
    headers = {"Authorization": f"Bearer {(daemon.state / 'dev-token').read_text().strip()}"}
    deadline = _clock.monotonic() + FINISH_WITHIN
    open_numbers = dict(account.accepted)
    while open_numbers and _clock.monotonic() < deadline:
        for number, execution_id in list(open_numbers.items()):
            async with session.get(
                f"{daemon.url}/api/executions/{execution_id}", headers=headers
            ) as answer:
                view = loads(await answer.read())
            if view.get("status") in ("queued", "running", "waiting"):
                await _clock.sleep(0.02)
                continue
            del open_numbers[number]
            finished()
            if view.get("status") == "completed" and service.effects[number] >= 1:
                account.completed += 1
                account.run_seconds.append(seconds_between(view["createdAt"], view["finishedAt"]))
            else:
                account.lost += 1
    account.lost += len(open_numbers)
    account.resent = service.resent


def seconds_between(first: str, second: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[tuple[Advance, Advance]]:
    """Two bars on a terminal, of what was delivered and of what has finished; call each once per delivery."""
    if quiet or not sys.stderr.isatty():
        yield (lambda: None), (lambda: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    words = TextColumn("{task.description}")
    console = Console(stderr=True)
    with Progress(words, BarColumn(), MofNCompleteColumn(), console=console) as progress:
        delivered = progress.add_task("delivered", total=total)
        finished = progress.add_task("finished", total=total)
        yield (lambda: progress.advance(delivered)), (lambda: progress.advance(finished))


def _report(account: _Account, service: _Service, *, as_json: bool) -> None:
    from stackd.cli.columns import Column
    from stackd.cli.context import print_json, print_table

    doubled = service.doubled
    summary = account.summary(doubled)
    if as_json:
        print_json(summary)
        return
    ack, run = summary["ackMs"], summary["executionMs"]
    print_table(
        (Column("what", "folded"), Column("figure")),
        [
            ("deliveries accepted", str(summary["accepted"])),
            ("executions completed", str(summary["completed"])),
            ("kill -9 in the middle", str(summary["kills"])),
            ("steps sent again (same key, counted once)", str(summary["rerunSteps"])),
            ("doubled effects", str(doubled)),
            ("acknowledged in, p50 / p99", f"{ack['p50']} / {ack['p99']} ms"),
            ("from acceptance to end, p50 / p99", f"{run['p50']} / {run['p99']} ms"),
        ],
        empty="",
    )
    print(
        f"lost: {account.lost}  doubled: {doubled}  "
        f"accepted: {len(account.accepted)}  completed: {account.completed}"
    )


def _tell_how_to_look(daemon: ChildDaemon) -> None:
    print("\nstill running; in another terminal:")
    print(f"  export STACKD_STATE_DIR={daemon.state}")
    print("  stackd executions list --limit 10")
    print("  stackd queue status")
    print("  stackd health --verbose")
    print(
        f"  curl -d '{{\"delivery\": 1}}' -H 'Content-Type: application/json' {daemon.url}/api/webhooks/orders"
    )
    print("Ctrl-C ends it.\n")


async def _stay(daemon: ChildDaemon) -> None:
    """Say how to look around, and return at Ctrl-C."""
    with ended_by_signals():
        _tell_how_to_look(daemon)
        await anyio.sleep_forever()
