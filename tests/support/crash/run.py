"""One crash run: deliveries, cancels and decisions to a real daemon that dies in the middle, once or twice.

Each life of the daemon sees the same traffic: whatever was not acknowledged in the life before is asked for
again, as its sender would. The last one is let live; what is left is then judged by `checks`.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stackd.core.errors import NoAnswerError, UnreachableError
from support.crash import checks
from support.crash.far_side import Witness
from support.crash.record import Ledger, Life, Step, read_events, read_remains
from support.crash.stories import (
    DECISIONS,
    NODE_AT,
    PATIENT,
    STORIES,
    UNSAFE,
    Decision,
    workflows,
)
from support.daemon import DaemonProcess, eventually

FINAL = frozenset({"completed", "failed", "cancelled"})
RESTED = FINAL | {"uncertain"}
WITHIN = 30.0  # seconds; nothing takes so long unless it is stuck
AT_ONCE = 3  # runs side by side; each waits more than it works
LOOKS_EVERY = 0.01  # seconds
DYING = 2.0  # seconds a killed process may take to be gone
TRAFFIC = 0.6  # seconds that the traffic of one life takes, about

# Every event of a job's and an execution's life, in the order it usually happens, and how often it is sure to
# happen in one whole life: a death inside the last of them is a death.
MOVES = {
    "JobEnqueued": 28,
    "ExecutionQueued": 26,
    "JobClaimed": 28,
    "ExecutionStarted": 28,
    "JobUnblocked": 4,  # more, if deliveries come faster than they are done with
    "NodeStarted": 70,
    "NodeSent": 70,
    "NodeSent:mail": 13,
    "NodeSent:each[1].send": 2,
    "NodeAnswered": 62,
    "NodeAnswered:mail": 8,
    "NodeAnswered:each[1].part": 3,
    "NodeRetried": 6,
    "NodeFinished": 125,
    "CallEnded": 4,
    "CancelRequested": 2,
    "TimerSet": 1,
    "ExecutionParked": 8,
    "TimerFired": 2,
    "JobSettled": 28,
    "ExecutionFinished": 22,
    "JobRescued": 1,
}
PATIENT_MOVES = ("TimerSet", "ExecutionParked", "TimerFired")
# What happens when the next process takes over: where some runs die a second time.
TAKING_OVER = ("JobClaimed", "JobRescued", "NodeStarted", "NodeSent", "NodeFinished", "JobSettled")


@dataclass(frozen=True, slots=True)
class Death:
    """When the daemon dies: inside the `count`-th event of a kind, or `after` seconds of traffic.

    `again`: the event inside which the process that takes over dies too. `patient`: with the delivery whose
    waits take seconds.
    """

    event: str | None = None
    count: int = 1
    after: float | None = None
    again: str | None = None
    patient: bool = False

    @property
    def blows(self) -> list[tuple[str, int]]:
        """(event, which of its kind) that ends each life but the last; another hand ends one without an event."""
        if self.event is None and self.after is None:
            return []
        first = (self.event or "", self.count)
        return [first] if self.again is None else [first, (self.again, 1)]

    def __str__(self) -> str:
        first = f"{self.event}-{self.count}" if self.event else "never"
        if self.after is not None:
            first = f"after-{self.after * 1000:.0f}ms"
        return first if self.again is None else f"{first}-then-{self.again}"


class Account(NamedTuple):
    """One run in figures: deaths, unsafe steps cut off by them, cancelled executions, requests sent again."""

    died: int
    uncertain: int
    cancelled: int
    sent_again: int


def deaths(count: int, seed: int) -> list[Death]:
    """`count` deaths: every event of a life in turn, each at a random place in the order, and random moments."""
    roll = random.Random(seed)
    found = []
    for number in range(count):
        again = TAKING_OVER[number // 4 % len(TAKING_OVER)] if number % 4 == 3 else None
        if number % 3 == 2:
            after = roll.uniform(0.0, TRAFFIC)
            found.append(Death(after=after, again=again, patient=number % 6 == 5))
            continue
        event = list(MOVES)[(number - number // 3) % len(MOVES)]
        place = roll.randint(1, MOVES[event])
        if event == "JobRescued":  # there is something to rescue only after another death
            found.append(Death("NodeSent", roll.randint(1, MOVES["NodeSent"]), again=event))
        else:
            found.append(Death(event, place, again=again, patient=event in PATIENT_MOVES))
    return found


def crash_run(folder: Path, death: Death) -> Account:
    """Run it once in `folder`; raises AssertionError with the daemon's last words if anything does not hold."""
    folder.mkdir(parents=True, exist_ok=True)
    with Witness(STORIES).listening() as witness:
        run = CrashRun(folder, death, witness)
        try:
            return run.through()
        except AssertionError as error:
            raise AssertionError(f"{death}: {error}\n{run.daemon.tail()}") from error
        finally:
            run.daemon.kill()


class CrashRun:
    """The run under way, and what its senders and its operator know. Used once."""

    def __init__(self, folder: Path, death: Death, witness: Witness) -> None:
        self.daemon = DaemonProcess(folder / "state", WORKFLOW_TIMER_POLL_INTERVAL_MS="500")
        self.ledger = Ledger(range(len(STORIES) if death.patient else PATIENT), witness)
        self._death = death
        self._witness = witness
        self._folder = folder
        self._record = folder

    def through(self) -> Account:
        died = 0
        for target, count in self._death.blows:
            self._begin(DIE_ON=target, DIE_AFTER=str(count))
            self._live(killed_after=None if self.ledger.lives else self._death.after)
            self._until("it dies, or all rests", lambda: self._all_are(RESTED))
            self._hear_all_events()
            died += not self.daemon.is_running
            self.daemon.kill()
            self._end()
        self._begin()
        self._live()
        self._until("all rests", lambda: self._all_are(RESTED))
        checks.what_was_cut_off_is_uncertain(self.ledger, self._states())
        self._decide_the_rest()
        self._until("all is over", lambda: self._all_are(FINAL))
        assert self.daemon.terminate() == 0
        self._end()
        checks.everything(self.ledger)
        assert not self.daemon.unforeseen()
        return self._account(died)

    def _hear_all_events(self) -> None:
        """Let the events of what is in the file be told too: a death may be planned inside the last of them."""
        if self.daemon.is_running:
            self._post("/api/queue/resume")  # answered after its own commit, and so after theirs

    def _account(self, died: int) -> Account:
        ledger, witness = self.ledger, self._witness
        return Account(
            died,
            uncertain=len(ledger.cut_off()),
            cancelled=sum(state.status == "cancelled" for state in ledger.last.executions.values()),
            sent_again=sum(
                max(count - witness.declined[at] - 1, 0)
                for at, count in witness.seen.items()
                if NODE_AT[at[0]] not in UNSAFE
            ),
        )

    # -- the daemon's life

    def _begin(self, **dying: str) -> None:
        self._record = self._folder / f"events-{len(self.ledger.lives) + 1}"
        if self.ledger.lives:  # it may die before it is ready
            self.daemon.spawn(RECORD=str(self._record), **dying)
            eventually("it is ready, or dead", self._is_ready_or_dead, within=WITHIN)
        else:
            self.daemon.start(RECORD=str(self._record), **dying)
            for document in workflows(self._witness.url):
                self.daemon.load(document)

    def _is_ready_or_dead(self) -> bool:
        try:
            answer = self.daemon.api.request(
                "GET", "/readyz", query={"verbose": ""}, allow=frozenset({503})
            )
        except (UnreachableError, NoAnswerError):
            return not self.daemon.is_running
        return answer.status == 200

    def _live(self, killed_after: float | None = None) -> None:
        """The traffic of one life: every delivery tells its story as far as it gets."""
        killer = threading.Timer(killed_after or 0.0, self.daemon.kill)
        if killed_after is not None:
            killer.start()
        with ThreadPoolExecutor(len(self.ledger.numbers)) as senders:
            list(senders.map(self._tell, self.ledger.numbers))
        if killed_after is not None:
            killer.join()

    def _end(self) -> None:
        """Put down what the life that is over has left."""
        self._witness.settle()
        with self.daemon.file() as raw:
            remains = read_remains(raw)
            checks.file_is_sound(raw)
        self.ledger.lives.append(
            Life(read_events(self._record), remains, self._witness.seen.copy())
        )

    # -- its traffic

    def _tell(self, number: int) -> None:
        """Deliver, then do what the story says, as far as this life lasts."""
        if number not in self.ledger.acknowledged:
            self._deliver(number)
        execution = self.ledger.acknowledged.get(number)
        if execution is None:
            return
        story = STORIES[number]
        if story.cancel is not None and execution not in self.ledger.cancels:
            self._cancel(number, execution, story.cancel)
        elif story.decision is not None and not self._is_decided(execution):
            self._await_state(execution, "uncertain")
            self._decide(execution, story.decision)

    def _deliver(self, number: int) -> None:
        """Post it once; not acknowledged if the daemon dies."""
        story = STORIES[number]
        body = {"delivery": number, "pauseMs": story.pause}
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"d{number}"}
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=20)
        try:
            path = f"/api/webhooks/{story.workflow}"
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            assert not self._lives_on(), f"delivery {number} was not answered"
            return
        finally:
            connection.close()
        assert answer.status in (200, 202), f"delivery {number}: {answer.status} {text!r}"
        self.ledger.acknowledged[number] = json.loads(text)["executionId"]

    def _cancel(self, number: int, execution: str, when: str) -> None:
        if when == "waiting":
            self._await_state(execution, "waiting")
        elif when != "at once":
            self._until(
                f"{execution} is asked for at {when}",
                lambda: self._witness.holds(number) or self._rests(execution),
            )
        answer = self._post(f"/api/executions/{execution}/cancel")
        if answer is not None:
            self.ledger.cancels[execution] = answer["status"]
            self._witness.release(number)

    def _decide(self, execution: str, decision: Decision) -> None:
        """About the first of its uncertain steps, if it is uncertain."""
        step = next((step for step in self._uncertain() if step[0] == execution), None)
        if step is None:
            return
        self.ledger.asked[step].append(decision)
        body = {"decision": decision, "node": step[1]}
        if self._post(f"/api/executions/{execution}/resolve", body) is not None:
            self.ledger.decided[step] = decision

    def _is_decided(self, execution: str) -> bool:
        return any(step[0] == execution for step in self.ledger.decided)

    def _decide_the_rest(self) -> None:
        """Steps that a death cut off, and stories whose second try it cut off too."""
        while self._uncertain():
            for number, execution in sorted(self.ledger.acknowledged.items()):
                turn = DECISIONS[number % len(DECISIONS)]
                self._decide(execution, STORIES[number].decision or turn)
            self._until("all rests", lambda: self._all_are(RESTED))

    def _post(self, path: str, body: Any = None) -> Any:
        """The answer; None if the daemon died over it."""
        try:
            return self.daemon.api.post(path, body)
        except (UnreachableError, NoAnswerError) as error:
            assert not self._lives_on(), str(error)
            return None

    # -- looking

    def _lives_on(self) -> bool:
        """Whether it is alive and is not just dying: its connections break before its end can be seen."""
        assert self.daemon.process is not None
        try:
            self.daemon.process.wait(DYING)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _until(self, what: str, check: Callable[[], bool]) -> None:
        """Until it holds or the daemon is dead; asked of the file, not of the daemon."""
        deadline = time.monotonic() + WITHIN
        while self.daemon.is_running and not check():
            assert time.monotonic() < deadline, f"not within {WITHIN} s: {what}"
            time.sleep(LOOKS_EVERY)

    def _await_state(self, execution: str, state: str) -> None:
        """Until the execution is in `state`, or rests otherwise, or the daemon is dead."""
        self._until(
            f"{execution} is {state}",
            lambda: self._state(execution) == state or self._rests(execution),
        )

    def _rests(self, execution: str) -> bool:
        return self._state(execution) in RESTED

    def _state(self, execution: str) -> str:
        states = self._states()
        assert execution in states, f"acknowledged but lost: {execution}"
        return states[execution]

    def _all_are(self, states: frozenset[str]) -> bool:
        return set(self._states().values()) <= states

    def _uncertain(self) -> list[Step]:
        with self.daemon.file() as raw:
            return raw.execute(
                "SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq "
                "WHERE e.status = 'uncertain' AND n.status = 'uncertain' ORDER BY 1, 2"
            ).fetchall()

    def _states(self) -> dict[str, str]:
        with self.daemon.file() as raw:
            return dict(raw.execute("SELECT id, status FROM executions"))
