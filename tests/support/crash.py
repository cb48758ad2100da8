"""One crash run: deliveries to a real daemon that dies in the middle, a restart, and the account of it.

What must hold afterwards, whatever the moment of death: nothing acknowledged is lost, no finished step was
sent again, each keyed action counts once, an unsafe one was sent at most once and is `uncertain` if it was
in flight, every execution has come to rest, and the file is sound.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.daemon import DaemonProcess, FarSide, eventually

DELIVERIES = 12
SENDERS = 4
RARE = ("TimerSet", "ExecutionParked", "TimerFired", "ExecutionFinished", "JobSettled")
LONG_WAIT = ("TimerSet", "ExecutionParked", "TimerFired")
RESTED = ("completed", "failed", "cancelled", "uncertain")

# Every event of a job's and an execution's life, in the order it usually happens.
MOVES = (
    "JobEnqueued",
    "ExecutionQueued",
    "JobClaimed",
    "ExecutionStarted",
    "NodeStarted",
    "NodeSent",
    "NodeAnswered",
    "NodeFinished",
    "TimerSet",
    "ExecutionParked",
    "TimerFired",
    "JobSettled",
    "ExecutionFinished",
)
# What happens when the next process takes over: where some runs die a second time.
TAKING_OVER = ("JobRescued", "JobClaimed", "NodeStarted", "NodeSent", "NodeFinished", "JobSettled")

WORKFLOW = """
id: crash
vars: {{service: "{url}"}}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: crash}}}}
  - {{id: look, type: action.http.request, params: {{url: "{{{{ vars.service }}}}/look", headers: {head}}}}}
  - {{id: pick, type: transform.data.set, params: {{values: {{n: "{{{{ hook.body.delivery }}}}"}}}}}}
  - id: book
    type: action.http.request
    effect: keyed
    params: {{method: POST, url: "{{{{ vars.service }}}}/book", headers: {head}, json: "{{{{ pick }}}}"}}
  - {{id: pause, type: action.time.delay, params: {{delayMs: {delay}}}}}
  - {{id: tell, type: action.http.request, params: {{method: PUT, url: "{{{{ vars.service }}}}/tell", headers: {head}}}}}
  - {{id: mail, type: action.http.request, params: {{method: POST, url: "{{{{ vars.service }}}}/mail", headers: {head}}}}}
edges:
  - {{from: hook, to: look}}
  - {{from: look, to: pick}}
  - {{from: pick, to: book}}
  - {{from: book, to: pause}}
  - {{from: pause, to: tell}}
  - {{from: hook, to: mail}}
"""
# An uncertain execution may have another branch that waits; a completed one has nothing open.
OPEN_NODES_OF_COMPLETED = """
SELECT e.id, n.key, n.status FROM node_runs n JOIN executions e ON e.seq = n.execution
WHERE e.status = 'completed' AND n.status IN ('pending', 'running', 'waiting')"""
HEAD = '{x-execution: "{{ execution.id }}"}'
NODES_BY_PATH = {"/look": "look", "/book": "book", "/tell": "tell", "/mail": "mail"}


@dataclass(slots=True)
class Death:
    """When the daemon dies: inside the `count`-th event of a kind, or `after` seconds of deliveries.

    `again`: the event at which the process that takes over dies too.
    """

    event: str | None = None
    count: int = 1
    after: float = 0.0
    again: str | None = None

    def __str__(self) -> str:
        first = f"{self.event}-{self.count}" if self.event else f"after-{self.after * 1000:.0f}ms"
        return first if self.again is None else f"{first}-then-{self.again}"


@dataclass(slots=True)
class Account:
    """What one run saw."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    died: bool = False
    uncertain: int = 0
    resent: int = 0


def deaths(count: int, seed: int) -> list[Death]:
    """`count` deaths: every event of a life in turn, each at a random place in the order, and random moments."""
    roll = random.Random(seed)
    found = []
    for number in range(count):
        again = TAKING_OVER[number // 4 % len(TAKING_OVER)] if number % 4 == 3 else None
        if number % 3 == 2:
            found.append(Death(after=roll.uniform(0.0, 0.35), again=again))
        else:
            event = MOVES[(number - number // 3) % len(MOVES)]
            most = DELIVERIES if event in RARE else DELIVERIES * 2
            found.append(Death(event, roll.randint(1, most), again=again))
    return found


def crash_run(folder: Path, death: Death, *, deliveries: int = DELIVERIES) -> Account:
    """Run it once in `folder`; raises AssertionError with the daemon's last words if anything does not hold."""
    folder.mkdir(parents=True, exist_ok=True)
    account = Account()
    long_wait = death.event in LONG_WAIT
    with FarSide(delay=0.004).listening() as far_side:
        daemon = DaemonProcess(folder / "state", WORKFLOW_TIMER_POLL_INTERVAL_MS="500")
        dying = (
            {} if death.event is None else {"DIE_ON": death.event, "DIE_AFTER": str(death.count)}
        )
        try:
            daemon.start(**dying)
            text = WORKFLOW.format(url=far_side.url, head=HEAD, delay=1050 if long_wait else 5)
            _import(daemon, text)
            killer = _kill_later(daemon, death.after) if death.event is None else None
            _deliver(daemon, account, range(deliveries))
            if killer is not None:
                killer.join()
            _await_death_or_rest(daemon)
            account.died = not daemon.is_running
            daemon.kill()
            if death.again is not None:
                daemon.spawn(DIE_ON=death.again)
                _await_death_or_rest(daemon)
                daemon.kill()
            time.sleep(0.02)  # requests already on the wire arrive and are counted
            before = dict(far_side.hits)
            finished = _finished_steps(daemon)
            daemon.start()
            if not _has_workflow(daemon):
                _import(daemon, text)
            _deliver(
                daemon, account, [n for n in range(deliveries) if n not in account.acknowledged]
            )
            rows = eventually("every execution rests", lambda: _all_rested(daemon), within=30)
            _check(daemon, far_side, account, rows, before, finished, deliveries)
            assert daemon.terminate() == 0
            with daemon.file() as raw:
                assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
                assert raw.execute(OPEN_NODES_OF_COMPLETED).fetchall() == []
                assert raw.execute(
                    "SELECT count(*) FROM jobs WHERE state = 'running'"
                ).fetchone() == (0,)
        except AssertionError as error:
            raise AssertionError(f"{death}: {error}\n{daemon.tail()}") from error
        finally:
            daemon.kill()
    return account


def _import(daemon: DaemonProcess, text: str) -> None:
    """The daemon may die in the middle of this; the caller looks again after its restart."""
    try:
        daemon.api.post("/api/workflows", text.encode(), activate="true")
    except Exception as error:  # whatever a dying peer causes
        if daemon.is_running:
            raise AssertionError(f"import: {error}") from error


def _has_workflow(daemon: DaemonProcess) -> bool:
    items = daemon.api.get("/api/workflows")["items"]
    return any(item["id"] == "crash" and item["active"] for item in items)


def _kill_later(daemon: DaemonProcess, seconds: float) -> threading.Thread:
    def kill() -> None:
        time.sleep(seconds)
        daemon.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def _deliver(daemon: DaemonProcess, account: Account, numbers: Any) -> None:
    """Post each delivery once; what is not acknowledged because the daemon died is left out."""

    def post(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
        try:
            connection.request(
                "POST",
                "/api/webhooks/crash",
                body=json.dumps({"delivery": number}),
                headers={"Content-Type": "application/json", "Idempotency-Key": f"d{number}"},
            )
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()
        if answer.status in (200, 202):
            account.acknowledged[number] = json.loads(body)["executionId"]
        elif daemon.is_running:
            raise AssertionError(f"delivery {number} was answered {answer.status}: {body!r}")

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(post, numbers))


def _await_death_or_rest(daemon: DaemonProcess) -> None:
    """Until the daemon has died, or has nothing left to die of."""

    def over() -> bool:
        if not daemon.is_running:
            return True
        try:
            return _all_rested(daemon) is not None
        except Exception:  # noqa: BLE001  # it died while it was asked
            return not daemon.is_running

    eventually("the daemon dies or is done", over)


def _all_rested(daemon: DaemonProcess) -> list[dict[str, Any]] | None:
    items: list[dict[str, Any]] = daemon.api.get("/api/executions", limit=500)["items"]
    return items if all(item["status"] in RESTED for item in items) else None


def _finished_steps(daemon: DaemonProcess) -> set[tuple[str, str]]:
    """(execution, node) of every step whose end is on disk."""
    with daemon.file() as raw:
        return set(
            raw.execute(
                "SELECT e.id, n.key FROM node_runs n JOIN executions e ON e.seq = n.execution "
                "WHERE n.status = 'completed'"
            )
        )


def _check(
    daemon: DaemonProcess,
    far_side: FarSide,
    account: Account,
    rows: list[dict[str, Any]],
    before: dict[tuple[str, str], int],
    finished: set[tuple[str, str]],
    deliveries: int,
) -> None:
    by_id = {row["id"]: row for row in rows}
    assert len(account.acknowledged) == deliveries, "a delivery to the restarted daemon was refused"
    lost = set(account.acknowledged.values()) - set(by_id)
    assert not lost, f"acknowledged but lost: {lost}"
    assert len(by_id) == deliveries, f"{len(by_id)} executions of {deliveries} deliveries"
    for execution_id, row in by_id.items():
        assert row["status"] in ("completed", "uncertain"), row
        mails = far_side.hits["/mail", execution_id]
        assert mails <= 1, f"unsafe sent {mails} times in {execution_id}"
        assert len(far_side.keys.get(execution_id, set())) == 1, "one key per execution"
        if row["status"] == "completed":
            assert mails == 1, f"completed without its unsafe step: {execution_id}"
        account.uncertain += row["status"] == "uncertain"
        for path, node in NODES_BY_PATH.items():
            again = far_side.hits[path, execution_id] - before.get((path, execution_id), 0)
            if (execution_id, node) in finished:
                assert again == 0, f"finished step {node} of {execution_id} was sent again"
            elif before.get((path, execution_id), 0):
                account.resent += again
