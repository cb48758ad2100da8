"""The demo: what it prints and leaves behind, and that its account would show a loss or a repetition."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.daemon import ENVIRON

from stackd.cli.demo import ChildDaemon, _Account, _account_for, _exit_code, _Service
from stackd.client.api import Api
from stackd.core.errors import UnreachableError

DELIVERIES = 30
LAST_LINE = f"lost: 0  doubled: 0  accepted: {DELIVERIES}  completed: {DELIVERIES}"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def no_blocking_calls() -> None:
    """Overrides the guard of the suite: the demo's loop serves nobody else, and reads a file on it."""


@contextmanager
def demo(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`stackd demo` with its state in `folder`."""
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "stackd", "demo", "--deliveries", str(DELIVERIES), *words],
        env=ENVIRON | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its own child


def test_the_demo_accounts_for_every_delivery_and_stays_only_if_asked(tmp_path: Path) -> None:
    with (
        demo(tmp_path / "programs", "--json") as for_programs,
        demo(tmp_path / "people") as for_people,
        demo(tmp_path / "kept", "--keep") as kept,
    ):
        told = read_until(kept, "Ctrl-C ends it.")
        (state,) = (tmp_path / "kept").iterdir()
        daemon = Api(socket_path=state / "stackd.sock")
        completed = daemon.get("/api/executions", status="completed", limit=500)["items"]
        os.kill(kept.pid, signal.SIGINT)
        ended = [one.communicate(timeout=60) for one in (for_programs, for_people, kept)]

    (answer, _), (text, _), _ = ended
    assert [one.returncode for one in (for_programs, for_people, kept)] == [0, 0, 0]
    assert [errors for _, errors in ended] == ["", "", ""]

    counts = {"accepted": DELIVERIES, "completed": DELIVERIES, "lost": 0, "doubled": 0, "kills": 1}
    summary = json.loads(answer)
    assert {name: summary[name] for name in counts} == counts

    assert text.splitlines()[-1] == LAST_LINE
    assert "kill -9 in the middle\t1\n" in text

    assert LAST_LINE in told.splitlines()
    assert f"export STACKD_STATE_DIR={state}" in told
    assert re.search(r"curl -d .* http://127\.0\.0\.1:\d+/api/webhooks/orders", told)
    assert len(completed) == DELIVERIES
    with pytest.raises(UnreachableError):
        daemon.get("/api/queue")

    left = [folder.name for folder in tmp_path.iterdir() if any(folder.iterdir())]
    assert left == ["kept"]


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints up to the line with `words`."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if words in line:
            return read
    raise AssertionError(f"it ended by itself:\n{read}")


# -- the account


EXECUTIONS: dict[str, dict[str, Any]] = {
    "done": {
        "status": "completed",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "finishedAt": "2026-01-01T00:00:01.000Z",
    },
    "failed": {"status": "failed"},
    "uncertain": {"status": "uncertain"},
}


@asynccontextmanager
async def daemon_that_knows(
    executions: dict[str, dict[str, Any]], state: Path
) -> AsyncIterator[ChildDaemon]:
    """What stands for the daemon: it answers for these executions, and 404 for any other."""

    async def show(request: web.Request) -> web.Response:
        view = executions.get(request.match_info["id"])
        return web.json_response(view or {"code": "x"}, status=200 if view else 404)

    (state / "dev-token").write_text("token\n")
    app = web.Application()
    app.router.add_get("/api/executions/{id}", show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with (state / "log").open("wb") as log:
        daemon = ChildDaemon(state, log)
        daemon.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield daemon
        finally:
            await runner.cleanup()


async def account_of(state: Path, accepted: dict[int, str], effects: dict[int, int]) -> _Account:
    """The account of `accepted` deliveries, by execution, when the service saw `effects`."""
    account, service = _Account(accepted=accepted), _Service()
    service.effects.update(effects)
    async with (
        daemon_that_knows(EXECUTIONS, state) as daemon,
        aiohttp.ClientSession() as session,
    ):
        await _account_for(session, daemon, account, service, lambda: None)
    return account


async def test_a_completed_execution_with_its_effect_is_in_order(tmp_path: Path) -> None:
    account = await account_of(tmp_path, {0: "done", 1: "done"}, {0: 1, 1: 1})

    assert (account.completed, account.lost, account.run_seconds) == (2, 0, [1.0, 1.0])
    assert _exit_code(account, doubled=0) == 0


@pytest.mark.parametrize(
    ("execution_id", "effects"),
    [
        pytest.param("missing", {0: 1, 1: 1}, id="missing"),
        pytest.param("failed", {0: 1, 1: 1}, id="failed"),
        pytest.param("uncertain", {0: 1, 1: 1}, id="uncertain"),
        pytest.param("done", {0: 1}, id="no-effect"),
    ],
)
async def test_an_accepted_delivery_that_led_to_nothing_is_lost(
    tmp_path: Path, execution_id: str, effects: dict[int, int]
) -> None:
    account = await account_of(tmp_path, {0: "done", 1: execution_id}, effects)

    assert (account.completed, account.lost) == (1, 1)
    assert account.summary(doubled=0)["lost"] == 1
    assert _exit_code(account, doubled=0) == 1


async def test_an_effect_under_a_second_key_counts_as_doubled_and_under_the_same_as_resent() -> (
    None
):
    service = _Service()
    async with service.listening() as url, aiohttp.ClientSession() as session:

        async def call(delivery: int, key: str) -> bytes:
            headers = {"Idempotency-Key": key}
            async with session.post(url, json={"delivery": delivery}, headers=headers) as answer:
                return await answer.read()

        first = await call(1, "a")
        again = await call(1, "a")
        in_order = (service.doubled, service.resent)
        await call(1, "b")
        await call(2, "c")

    assert first == again
    assert in_order == (0, 1)
    assert (service.doubled, service.resent) == (1, 1)
    assert _exit_code(_Account(accepted={1: "x"}), service.doubled) == 1


def test_nothing_accepted_is_no_success() -> None:
    assert _exit_code(_Account(), doubled=0) == 1
