"""A store is damaged, row by row: each damage is found by its name and nothing else is; mended, all of it goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs
from support.held import held
from support.runs import LEASE, World

from stackd import __version__
from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError
from stackd.core.events import EventBus
from stackd.core.json import dumps, loads
from stackd.core.process import ProcessIdentity, current_process, start_ticks
from stackd.http.message import Request
from stackd.queue import processes
from stackd.runtime.workflow_runtime import Claimed, claim
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.migrations import known_migrations
from stackd.testing import FakeClock
from stackd.workflows import executions, reconciliation, resume
from stackd.workflows.consistency import CHECKS, ConsistencyRepaired
from stackd.workflows.executions import NewExecution
from stackd.workflows.reconciliation import (
    BY_ITSELF,
    BY_REPAIR,
    EVERY,
    LOOK_AGAIN,
    Reconciliation,
    Result,
    reconcile,
)

THIS_PROCESS = current_process()  # read here: a test may not block its loop
SCHEMA = len(known_migrations())
_PARENT = psutil.Process().ppid()
OTHER_PROCESS = replace(THIS_PROCESS, pid=_PARENT, start_ticks=start_ticks(_PARENT) or 0)

QUICK = """
id: quick
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: end, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: start, to: end}]
"""
NARROW = QUICK.replace("id: quick", "id: narrow\nconcurrency: 1")
NAP = """
id: nap
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: nap, type: action.time.delay, params: {delaySeconds: 600}}
  - {id: end, type: transform.data.set, params: {values: {v: "{{ nap }}"}}}
edges: [{from: start, to: nap}, {from: nap, to: end}]
"""
NAPS = """
id: naps
timeoutMs: 3600000
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: one, type: action.time.delay, params: {delaySeconds: 500}}
  - {id: other, type: action.time.delay, params: {delaySeconds: 600}}
  - {id: mail, type: action.http.request, params: {method: POST, url: "http://far.example/naps"}}
  - id: each
    type: logic.foreach
    params: {items: [1, 2]}
    nodes: [{id: nap, type: action.time.delay, params: {delaySeconds: 400}}]
edges: [{from: start, to: one}, {from: start, to: other}, {from: start, to: each}, {from: start, to: mail}]
"""
ASKING = """
id: asking
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: ask, type: action.wait.webhook, params: {expiresMs: 900000}}
edges: [{from: start, to: ask}]
"""
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: call, type: action.workflow.run, params: {workflowId: nap}}
edges: [{from: start, to: call}]
"""
RETRYING = """
id: retrying
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: get, type: action.http.request, retry: {maxAttempts: 2, initialMs: 60000}, params: {url: "http://far.example/get"}}
edges: [{from: start, to: get}]
"""
MAILING = """
id: mailing
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: mail, type: action.http.request, params: {method: POST, url: "http://far.example/mail"}}
edges: [{from: start, to: mail}]
"""
FAILING = """
id: failing
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: end, type: transform.data.set, params: {values: {v: "{{ 1 // 0 }}"}}}
edges: [{from: start, to: end}]
"""


def reset(*, sent: bool) -> NodeError:
    return NodeError("connection lost", kind="network", code="http.reset", sent=sent)


class HastyClock(FakeClock):
    """Whoever sleeps has slept."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


class Busy:
    """A store that holds something of every kind, and all of it fits together."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.world = World(database)
        self.world.clock = HastyClock()
        self.world.runtime = self.world.process()
        self.ids: dict[str, str] = {}
        self.held: list[Claimed] = []
        self.repaired: list[ConsistencyRepaired] = []
        database.events.subscribe(self._hear, ConsistencyRepaired)

    def _hear(self, event: Any) -> None:
        self.repaired.append(event)

    async def fill(self) -> None:
        world, now = self.world, self.world.clock.time()
        found = processes.Resolved("1:1", "/x/stackd.db", "1:2", "/x", LEASE)
        await world.store.write(
            lambda tx: processes.register(tx, THIS_PROCESS, role="stack", now=now, resolved=found)
        )
        for text in (QUICK, NARROW, NAP, NAPS, ASKING, CALLING, RETRYING, MAILING, FAILING):
            await world.load(text)
        await self._rest("completed", "quick")
        await self._rest("failed", "failing")
        await self._rest("napping", "nap")
        await self._rest("napping twice", "naps")
        await self._rest("asking", "asking")
        await self._rest("calling", "calling")
        self.ids["called"] = await self._called("calling")
        await world.runtime.execute(await world.claim(THIS_PROCESS.id))
        world.http.script.append(reset(sent=False))
        await self._rest("retrying", "retrying")
        world.http.script.append(reset(sent=True))
        await self._rest("uncertain", "mailing")
        await self._rest("cancelled", "nap")
        await world.cancel(self.ids["cancelled"])
        new = NewExecution("narrow", 1, "trigger.time.manual", "start", b"null", 1)
        for name in ("first", "second"):
            self.ids[name] = await world.store.write(lambda tx: executions.start(tx, new, now=now))
        self.ids["running"] = await world.start("quick")
        self.held = await world.store.write(
            lambda tx: claim(tx, owner=THIS_PROCESS.id, limit=10, lease=LEASE, now=now)
        )
        self.ids["queued"] = await world.start("quick")
        assert {name: await self.status(name) for name in self.ids} == {
            "completed": "completed", "failed": "failed", "napping": "waiting", "napping twice": "waiting",
            "asking": "waiting", "calling": "waiting", "called": "waiting", "retrying": "waiting",
            "uncertain": "uncertain", "cancelled": "cancelled", "first": "running", "second": "queued",
            "running": "running", "queued": "queued",
        }  # fmt: skip

    async def _rest(self, name: str, workflow_id: str) -> None:
        self.ids[name] = await self.world.start(workflow_id)
        await self.world.runtime.execute(await self.world.claim(THIS_PROCESS.id))

    async def _called(self, name: str) -> str:
        nodes = await self.world.nodes(self.ids[name])
        return str(loads(nodes["call"].metadata or b"{}")["executionId"])

    async def status(self, name: str) -> str:
        return (await self.world.row(self.ids[name])).status.value

    async def damage(self, *statements: str) -> None:
        """As somebody does who edits the file: foreign keys are not minded. `{x}` is the number of execution x."""
        numbers = {
            name.replace(" ", "_"): (await self.world.row(execution_id)).seq
            for name, execution_id in self.ids.items()
        }
        with self.file() as raw:
            for statement in statements:
                changed = raw.execute(statement.format(**numbers, now=self.world.clock.time()))
                assert changed.rowcount > 0, statement

    @contextmanager
    def file(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.database.path)) as raw, raw:
            yield raw

    def dump(self) -> list[str]:
        with self.file() as raw:
            return list(raw.iterdump())

    async def look(self, mends: Any = ()) -> Result:
        return await reconciliation.look_twice(self.database, self.world.clock, mends=mends)

    async def found(self) -> dict[str, set[str]]:
        return {one.code: set(one.ids) for one in (await self.look()).left}

    def named(self, *names: str) -> set[str]:
        """The ids that a finding has for these; `x:node` for a node of x."""
        found = set()
        for name in names:
            execution, colon, node = name.partition(":")
            found.add(f"{self.ids.get(execution, execution)}{colon}{node}")
        return found

    async def finish(self) -> None:
        """Run everything to its end: time passes, and what is uncertain is skipped."""
        world = self.world
        for one in self.held:
            await world.runtime.execute(one)
        for _ in range(30):
            for one in await world.store.write(
                lambda tx: claim(
                    tx, owner=THIS_PROCESS.id, limit=10, lease=LEASE, now=world.clock.time()
                )
            ):
                await world.runtime.execute(one)
            for name in self.ids:
                if await self.status(name) == "uncertain":
                    await world.resolve(self.ids[name], "skip")
            world.clock.advance(60.0)
            await world.fire_timers()

    def mails(self, path: str) -> int:
        return sum(request.url.endswith(path) for request in self.world.http.requests)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a filled store is made of again, in a moment."""

    file: bytes
    ids: dict[str, str]
    held: list[Claimed]
    requests: list[Request]
    now: float


@pytest.fixture(scope="module")
def filled() -> list[Filled]:
    """Filled by the first test that needs it."""
    return []


@pytest.fixture
async def busy(tmp_path: Path, bus: EventBus, filled: list[Filled]) -> AsyncIterator[Busy]:
    path = tmp_path / "stackd.db"
    if filled:
        path.write_bytes(filled[0].file)
    async with held(open_database(path, clock=SystemClock(), events=bus, readers=1)) as database:
        busy = Busy(database)
        if not filled:
            await busy.fill()
            copy = tmp_path / "copy.db"
            with busy.file() as raw:
                raw.execute("VACUUM INTO ?", (str(copy),))
            requests, now = [*busy.world.http.requests], busy.world.clock.time()
            filled.append(Filled(copy.read_bytes(), {**busy.ids}, busy.held, requests, now))
        else:
            (as_filled,) = filled
            busy.ids, busy.held = {**as_filled.ids}, [*as_filled.held]
            busy.world.http.requests = [*as_filled.requests]
            busy.world.clock.advance(as_filled.now - busy.world.clock.time())
        yield busy


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done to the file, what is found then, and how the damaged executions end once that is mended."""

    code: str
    ids: tuple[str, ...]
    statements: tuple[str, ...]
    ends: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()  # what is found once this is mended, and mended too


def job(subject: str, state: str = "available") -> str:
    return (
        "INSERT INTO jobs (id, kind, subject, state, priority, due_at, created_at)"
        f" VALUES (777, 'execution.run', {subject}, '{state}', 0, 0, 0)"
    )


def timer(execution: str, key: str) -> str:
    return (
        "INSERT INTO timers (execution, key, due_at, state, output)"
        f" VALUES ({execution}, '{key}', 9e9, 'pending', x'')"
    )


NODE = (
    "UPDATE node_runs SET status = '{status}'{more} WHERE execution = {{{name}}} AND key = '{key}'"
)


def node(name: str, key: str, status: str, more: str = "") -> str:
    return NODE.format(name=name, key=key, status=status, more=more)


MENDED_BY_ITSELF = {
    "a queued one without a job": Damage(
        "queue.without_job", ("queued",), ("DELETE FROM jobs WHERE subject = {queued}",),
        (("queued", "completed"),),
    ),
    "a running one without a job": Damage(
        "queue.without_job", ("running",), ("DELETE FROM jobs WHERE subject = {running}",),
        (("running", "completed"),),
    ),
    "a job of nothing": Damage("queue.job_alone", ("job 777",), (job("99999"),)),
    "a claim of nothing": Damage("queue.job_alone", ("job 777",), (job("99999", "running"),
        "UPDATE jobs SET owner = 'ghost', leased_until = 9e9 WHERE id = 777")),
    "a job of a completed one": Damage(
        "queue.job_of_ended", ("completed",), (job("{completed}"),), (("completed", "completed"),)
    ),
    "a claim of an ended one that keeps a place": Damage(
        "queue.job_of_ended", ("first",),
        ("UPDATE executions SET status = 'completed', finished_at = 1 WHERE seq = {first}",),
        (("first", "completed"), ("second", "completed")),
    ),
    "a job of a cancelled one": Damage(
        "queue.job_of_ended", ("cancelled",), (job("{cancelled}", "retryable"),),
        (("cancelled", "cancelled"),),
    ),
    "a job of a waiting one": Damage(
        "queue.states_differ", ("napping",), (job("{napping}"),), (("napping", "completed"),)
    ),
    "a job of an uncertain one": Damage(
        "queue.states_differ", ("uncertain",), (job("{uncertain}"),), (("uncertain", "completed"),)
    ),
    "a queued one called waiting": Damage(
        "queue.states_differ", ("queued",),
        ("UPDATE executions SET status = 'waiting' WHERE seq = {queued}",),
        (("queued", "completed"),),
    ),
    "a claimed one called queued": Damage(
        "queue.states_differ", ("running",),
        ("UPDATE executions SET status = 'queued' WHERE seq = {running}",),
        (("running", "completed"),),
    ),
    "an ended job that is live": Damage(
        "queue.job_state", ("job of queued",), ("UPDATE jobs SET state = 'completed' WHERE subject = {queued}",),
        (("queued", "completed"),), also=("queue.without_job",),
    ),
    "a claim by nobody": Damage(
        "queue.claim_by_nobody", ("job of running",), ("UPDATE jobs SET owner = NULL WHERE subject = {running}",),
        (("running", "completed"),),
    ),
    "a wake that was lost": Damage(
        "queue.nothing_awaited", ("napping",),
        (node("napping", "nap", "completed", ", output = CAST('1' AS BLOB)"),
         "UPDATE timers SET state = 'fired' WHERE execution = {napping}"),
        (("napping", "completed"),),
    ),
    "a node that was left": Damage(
        "queue.node_left", ("napping twice",),
        (node("napping_twice", "one", "pending"),
         "UPDATE timers SET state = 'fired' WHERE execution = {napping_twice} AND key = 'one'"),
        (("napping twice", "completed"),),
    ),
    "an unsafe one that was left in flight": Damage(
        "queue.node_left", ("napping twice",), (node("napping_twice", "mail", "running"),),
        (("napping twice", "completed"),),
    ),
    "nothing uncertain": Damage(
        "queue.nothing_uncertain", ("uncertain",), (node("uncertain", "mail", "skipped"),),
        (("uncertain", "completed"),),
    ),
    "a delay without its timer": Damage(
        "queue.wait_endless", ("napping:nap",), ("DELETE FROM timers WHERE execution = {napping}",),
        (("napping", "completed"),),
    ),
    "a retry without its timer": Damage(
        "queue.wait_endless", ("retrying:get",), ("DELETE FROM timers WHERE execution = {retrying}",),
        (("retrying", "completed"),),
    ),
    "a wait in a loop without its timer": Damage(
        "queue.wait_endless", ("napping twice:each[0].nap",),
        ("DELETE FROM timers WHERE execution = {napping_twice} AND key LIKE 'each%'",),
        (("napping twice", "completed"),),
    ),
    "a link without its timer": Damage(
        "queue.wait_endless", ("asking:ask",), ("DELETE FROM timers WHERE execution = {asking}",),
        (("asking", "failed"),),
    ),
    "an end that was not heard": Damage(
        "queue.call_unheard", ("calling:call",),
        ("UPDATE executions SET status = 'completed', output = CAST('7' AS BLOB), finished_at = 1"
         " WHERE seq = {called}",
         node("called", "nap", "completed"),
         "UPDATE timers SET state = 'fired' WHERE execution = {called}"),
        (("calling", "completed"),),
    ),
    "a failure that was not heard": Damage(
        "queue.call_unheard", ("calling:call",),
        ("UPDATE executions SET status = 'failed', finished_at = 1 WHERE seq = {called}",
         node("called", "nap", "failed"),
         "UPDATE timers SET state = 'cancelled' WHERE execution = {called}"),
        (("calling", "failed"),),
    ),
    "a node that outlives its execution": Damage(
        "queue.open_after_end", ("completed",), (node("completed", "end", "waiting"),),
    ),
    "a timer of what is over": Damage(
        "queue.timer_alone", ("completed:end",), (timer("{completed}", "end"),)
    ),
    "a timer of nothing": Damage(
        "queue.timer_alone", ("execution 99999:end",), (timer("99999", "end"),)
    ),
    "a timer without a wait": Damage(
        "queue.timer_alone", ("napping:end",), (timer("{napping}", "end"),), (("napping", "completed"),)
    ),
    "a timer that is late": Damage(
        "queue.timer_overdue", ("napping:nap",),
        ("UPDATE timers SET due_at = {now} - 100 WHERE execution = {napping}",),
        (("napping", "completed"),),
    ),
    "a place that is free": Damage(
        "queue.place_free", ("narrow",),
        ("UPDATE jobs SET concurrency_key = NULL WHERE subject = {first}",
         "UPDATE jobs SET blocked = 1 WHERE subject = {second}"),
        (("second", "completed"),),
    ),
    "a cancel of a waiting one": Damage(
        "queue.cancel_unheard", ("napping",),
        ("UPDATE executions SET cancel_requested = 1 WHERE seq = {napping}",),
        (("napping", "cancelled"),),
    ),
    "a cancel of a queued one": Damage(
        "queue.cancel_unheard", ("queued",),
        ("UPDATE executions SET cancel_requested = 1 WHERE seq = {queued}",),
        (("queued", "cancelled"),),
    ),
}  # fmt: skip
GHOST = "UPDATE jobs SET owner = 'ghost', leased_until = {now} - 1 WHERE subject = {running}"
NOT_MENDED = {
    "a call of nothing": Damage(
        "queue.call_lost", ("calling:call",),
        ("DELETE FROM timers WHERE execution = {called}", "DELETE FROM node_runs WHERE execution = {called}",
         "DELETE FROM executions WHERE seq = {called}"),
    ),
    "a call of what another has started": Damage(
        "queue.call_lost", ("calling:call",),
        ("UPDATE executions SET parent_key = 'other' WHERE seq = {called}",),
    ),
    "a claim of a ghost": Damage("queue.claim_lost", ("job of running",), (GHOST,)),
    "too many rescues": Damage(
        "queue.odd_counts", ("job of queued",), ("UPDATE jobs SET rescues = 99 WHERE subject = {queued}",)
    ),
}  # fmt: skip
ALL = MENDED_BY_ITSELF | NOT_MENDED


async def expected(busy: Busy, damage: Damage) -> dict[str, set[str]]:
    ids = set()
    for name in damage.ids:
        if name.startswith("job of "):
            seq = (await busy.world.row(busy.ids[name.removeprefix("job of ")])).seq
            with busy.file() as raw:
                (job_id,) = raw.execute(
                    "SELECT id FROM jobs WHERE subject = ? AND finished_at IS NULL", (seq,)
                ).fetchone()
            ids.add(f"job {job_id}")
        else:
            ids |= busy.named(name)
    return {damage.code: ids}


async def test_a_busy_store_has_no_findings(busy: Busy) -> None:
    assert await busy.found() == {}


async def test_what_has_come_to_its_end_has_no_findings(busy: Busy) -> None:
    await busy.finish()

    assert {name: await busy.status(name) for name in busy.ids} == dict.fromkeys(
        busy.ids, "completed"
    ) | {"failed": "failed", "cancelled": "cancelled", "asking": "failed"}
    assert await busy.found() == {}
    assert busy.mails("/mail") == 1


@pytest.mark.parametrize("what", ALL)
async def test_each_damage_is_found_and_nothing_else_is(busy: Busy, what: str) -> None:
    await busy.damage(*ALL[what].statements)

    before = busy.dump()
    found = await busy.found()

    assert found == await expected(busy, ALL[what])
    assert busy.dump() == before, "who only looks changes nothing"


def test_every_code_is_damaged_by_a_test() -> None:
    damaged = {damage.code for damage in ALL.values()} | {"queue.roles_differ"}

    assert damaged == {check.code for check in CHECKS}


@pytest.mark.parametrize("what", MENDED_BY_ITSELF)
async def test_mended_by_itself_it_goes_on_to_its_end_once(busy: Busy, what: str) -> None:
    damage = MENDED_BY_ITSELF[what]
    await busy.damage(*damage.statements)

    result = await busy.look(BY_ITSELF)

    assert result.is_sound, result.left
    assert set(result.repaired) == {damage.code, *damage.also}
    assert {event.code for event in busy.repaired} == {damage.code, *damage.also}
    assert await busy.found() == {}
    assert (await busy.look(BY_ITSELF)).repaired == {}
    await busy.finish()
    assert {name: await busy.status(name) for name, _ in damage.ends} == dict(damage.ends)
    assert busy.mails("/mail") == 1
    assert busy.mails("/naps") == 1
    assert await busy.found() == {}


@pytest.mark.parametrize("what", NOT_MENDED)
async def test_what_only_a_person_or_time_can_mend_stays_and_is_told(busy: Busy, what: str) -> None:
    await busy.damage(*NOT_MENDED[what].statements)
    before = busy.dump()

    result = await busy.look(BY_ITSELF)

    assert {one.code for one in result.left} == {NOT_MENDED[what].code}
    assert not result.repaired
    assert busy.dump() == before


async def test_a_call_of_nothing_is_given_up_when_somebody_asks_for_a_repair(busy: Busy) -> None:
    await busy.damage(*NOT_MENDED["a call of nothing"].statements)

    result = await busy.look(BY_REPAIR)

    del busy.ids["called"]
    await busy.finish()
    assert (result.is_sound, result.repaired) == (True, {"queue.call_lost": 1})
    row = await busy.world.row(busy.ids["calling"])
    assert (row.status, loads(row.error or b"")["code"]) == ("failed", "workflow.lost")


async def test_a_run_that_lost_its_job_sends_nothing_more(busy: Busy) -> None:
    """Its job went while it ran; the one that takes its place goes by the journal."""
    world = busy.world
    mailing = await world.start("mailing")
    claimed = await world.store.write(
        lambda tx: claim(tx, owner=THIS_PROCESS.id, limit=10, lease=LEASE, now=world.clock.time())
    )
    (lost_claim,) = [one for one in claimed if one.row.id == mailing]
    busy.ids["mailing"] = mailing
    await busy.damage("DELETE FROM jobs WHERE subject = {mailing}")
    before = busy.mails("/mail")

    await busy.look(BY_ITSELF)
    await world.runtime.execute(lost_claim)
    lost = busy.mails("/mail")
    await world.runtime.execute(await world.claim(THIS_PROCESS.id))

    assert (lost, busy.mails("/mail")) == (before, before + 1)
    assert await busy.status("mailing") == "completed"


async def test_a_delay_without_its_timer_ends_when_it_would_have_and_not_before(busy: Busy) -> None:
    await busy.damage(*MENDED_BY_ITSELF["a delay without its timer"].statements)
    busy.world.clock.advance(300.0)

    await busy.look(BY_ITSELF)
    (one,) = await busy.world.store.write(
        lambda tx: [
            found
            for found in claim(
                tx, owner=THIS_PROCESS.id, limit=10, lease=LEASE, now=busy.world.clock.time()
            )
            if found.row.id == busy.ids["napping"]
        ]
    )
    await busy.world.runtime.execute(one)

    with busy.file() as raw:
        due = raw.execute(
            "SELECT due_at FROM timers WHERE state = 'pending' AND execution = ?", (one.row.seq,)
        ).fetchall()
    nodes = await busy.world.nodes(busy.ids["napping"])
    assert due == [((nodes["nap"].started_at or 0.0) + 600.0,)]


async def test_a_link_without_its_timer_can_still_be_called_until_it_expires(busy: Busy) -> None:
    with busy.file() as raw:
        wanted = raw.execute("SELECT max(due_at) FROM timers WHERE key = 'ask'").fetchone()
    await busy.damage(*MENDED_BY_ITSELF["a link without its timer"].statements)
    world = busy.world
    world.clock.advance(300.0)

    await busy.look(BY_ITSELF)

    with busy.file() as raw:
        due = raw.execute("SELECT max(due_at) FROM timers WHERE key = 'ask'").fetchone()
    assert due == pytest.approx(wanted, abs=0.001)
    await world.store.write(
        lambda tx: resume.resume(
            tx, busy.ids["asking"], "ask", dumps("yes"), now=world.clock.time()
        )
    )
    await busy.finish()
    assert await busy.status("asking") == "completed"


async def test_the_end_of_a_call_is_heard_with_what_it_gave(busy: Busy) -> None:
    await busy.damage(*MENDED_BY_ITSELF["an end that was not heard"].statements)

    await busy.look(BY_ITSELF)
    await busy.finish()

    assert (await busy.world.row(busy.ids["calling"])).output == b"7"


async def test_an_unsafe_node_that_outlives_its_execution_in_flight_is_uncertain(
    busy: Busy,
) -> None:
    await busy.damage(
        "INSERT INTO node_runs (execution, key, type, status, attempt, effect)"
        " VALUES ({failed}, 'mail', 'action.http.request', 'running', 1, 'unsafe'),"
        " ({failed}, 'get', 'action.http.request', 'running', 1, 'read')"
    )

    result = await busy.look(BY_ITSELF)

    states = await busy.world.states(busy.ids["failed"])
    assert result.repaired == {"queue.open_after_end": 1}
    assert (states["mail"], states["get"]) == ("uncertain", "skipped")


async def test_much_damage_is_counted_in_full_shown_in_part_and_mended_step_by_step(
    busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROWS", 20), ("IDS", 3)):
        monkeypatch.setattr(f"stackd.workflows.consistency.{name}", value)
    monkeypatch.setattr("stackd.workflows.reconciliation.REPAIRS", 7)
    for _ in range(50):
        await busy.world.start("quick")
    await busy.damage("DELETE FROM jobs WHERE state = 'available' AND blocked = 0")

    (told,) = (await busy.look()).left
    result = await busy.look(BY_ITSELF)

    assert (told.count, len(told.ids)) == (51, 3)
    assert (result.is_sound, result.repaired) == (True, {"queue.without_job": 51})
    assert [event.count for event in busy.repaired] == [7, 7, 6] * 2 + [7, 4]


async def test_what_was_mended_meanwhile_is_left_alone(busy: Busy) -> None:
    """Two that repair at once: the one that comes second finds nothing to do."""
    await busy.damage(*MENDED_BY_ITSELF["a queued one without a job"].statements)

    async def look(check: Any) -> Any:
        return await busy.database.read(lambda tx: check.find(tx, busy.world.clock.time()))

    (check,) = [check for check in CHECKS if check.code == "queue.without_job"]
    found = await look(check)
    repairs = [
        await busy.database.write(lambda tx: check.repair(tx, found.rows, 0.0)) for _ in range(2)
    ]

    assert repairs == [1, 0]
    assert (await look(check)).count == 0


async def test_what_may_be_so_for_a_moment_is_told_only_if_it_lasts(busy: Busy) -> None:
    await busy.damage(GHOST)
    clock = busy.world.clock

    first = await reconcile(busy.database, clock)
    again = await reconcile(busy.database, clock, suspects=first.suspects)
    asked_at = clock.time()
    asked = await busy.look()

    assert first.left == ()
    assert (
        [one.code for one in again.left] == [one.code for one in asked.left] == ["queue.claim_lost"]
    )
    assert clock.time() - asked_at == LOOK_AGAIN


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET owner = 'ghost', leased_until = {now} + 9 WHERE subject = {running}",
        "UPDATE jobs SET leased_until = {now} - 9 WHERE subject = {running}",
        "UPDATE timers SET due_at = {now} - 50 WHERE execution = {napping}",
        "UPDATE jobs SET concurrency_limit = NULL WHERE subject = {second}",
    ],
    ids=["within its lease", "of a process that lives", "a late timer", "a limit was taken away"],
)
async def test_what_is_about_to_be_dealt_with_is_no_finding(busy: Busy, statement: str) -> None:
    await busy.damage(statement)

    assert await busy.found() == {}


async def test_many_waits_of_one_execution_are_mended_a_few_at_a_time(busy: Busy) -> None:
    many = ", ".join(
        f"({{napping_twice}}, 'each[{n}].x', 'action.time.delay', 'waiting', 1, 'read')"
        for n in range(120)
    )
    await busy.damage(
        f"INSERT INTO node_runs (execution, key, type, status, attempt, effect) VALUES {many}"
    )

    result = await busy.look(BY_ITSELF)

    assert (result.is_sound, result.repaired) == (True, {"queue.wait_endless": 120})
    assert max(event.count for event in busy.repaired) == 50


async def test_it_reconciles_once_a_minute_and_remembers_what_came_of_it(busy: Busy) -> None:
    reconciliation, clock = Reconciliation(busy.database, busy.world.clock), busy.world.clock
    began_at = clock.time()
    await reconciliation.round()
    first = reconciliation.last
    await busy.damage(*MENDED_BY_ITSELF["a queued one without a job"].statements)

    clock.advance(EVERY - 1)
    await reconciliation.round()
    not_yet = reconciliation.last
    clock.advance(1.0)
    await reconciliation.round()

    assert first is not None
    assert (first.at, first.is_sound, first.repaired) == (began_at, True, {})
    assert not_yet is first
    assert reconciliation.last is not None
    assert reconciliation.last.at == began_at + EVERY
    assert reconciliation.last.repaired == {"queue.without_job": 1}


async def test_what_is_left_is_logged_once_and_what_may_pass_at_the_second_look(busy: Busy) -> None:
    reconciliation, clock = Reconciliation(busy.database, busy.world.clock), busy.world.clock
    await busy.damage(GHOST, *NOT_MENDED["too many rescues"].statements)

    told = []
    for _ in range(4):
        with capture_logs() as lines:
            await reconciliation.round()
        told.append([line["code"] for line in lines])
        clock.advance(EVERY)

    assert told == [["queue.odd_counts"], ["queue.claim_lost"], [], []]
    assert reconciliation.last is not None
    assert len(reconciliation.last.left) == 2


async def register(busy: Busy, identity: ProcessIdentity, **other: Any) -> None:
    found = processes.Resolved("1:1", "/x/stackd.db", "1:2", "/x", LEASE)
    now = busy.world.clock.time()

    def change(tx: Tx) -> None:
        processes.register(tx, identity, role="worker", now=now, resolved=found)
        whole = asdict(processes.listed(tx)[0].resolved) | other  # type: ignore[arg-type]
        text = dumps(whole).decode()
        tx.execute("UPDATE processes SET resolved = ? WHERE id = ?", (text, identity.id))

    await busy.database.write(change)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"store": "1:9"}, "store: stack (pid {}) has /x/stackd.db (1:1), worker (pid {}) has /x/stackd.db (1:9)"),
        ({"state": "1:9", "state_path": "/y"}, "state directory: stack (pid {}) has /x (1:2), worker (pid {}) has /y (1:9)"),
        ({"version": "9"}, f"version: stack (pid {{}}) has {__version__}, worker (pid {{}}) has 9"),
        ({"schema": 99}, f"schema: stack (pid {{}}) has {SCHEMA}, worker (pid {{}}) has 99"),
        ({"lease": 5.0}, "EXECUTION_LOCK_DURATION_MS: stack (pid {}) has 60000, worker (pid {}) has 5000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
async def test_processes_that_do_not_agree_are_both_named(
    busy: Busy, other: dict[str, Any], told: str
) -> None:
    busy.world.clock.advance(1.0)
    await register(busy, OTHER_PROCESS, **other)

    assert await busy.found() == {
        "queue.roles_differ": {told.format(THIS_PROCESS.pid, OTHER_PROCESS.pid)}
    }


@pytest.mark.parametrize(
    ("identity", "other"),
    [
        (OTHER_PROCESS, {"store_path": "/link/stackd.db", "state_path": "/link"}),
        (replace(OTHER_PROCESS, start_ticks=1), {"version": "9"}),
        (OTHER_PROCESS, {"unknown": 1}),
    ],
    ids=["another path to the same", "gone", "of another version, which says more"],
)
async def test_processes_that_agree_or_cannot_be_compared_are_no_finding(
    busy: Busy, identity: ProcessIdentity, other: dict[str, Any]
) -> None:
    await register(busy, identity, **other)

    assert await busy.found() == {}


async def test_of_a_process_elsewhere_its_heartbeat_tells_whether_it_lives(busy: Busy) -> None:
    await register(busy, replace(OTHER_PROCESS, namespace=1), version="9")

    found = await busy.found()
    busy.world.clock.advance(3 * LEASE)

    assert "queue.roles_differ" in found
    assert "queue.roles_differ" not in await busy.found()


def test_a_place_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "stackd.db").touch()
    (tmp_path / "link").symlink_to("state")

    one, other = (
        processes.resolve(
            tmp_path / name / "stackd.db", tmp_path / name, lease=1.0, works=name == "a"
        )
        for name in ("state", "link")
    )

    assert (one.store, one.state) == (other.store, other.state)
    assert one.store != one.state
    assert other.store_path == str(tmp_path / "link" / "stackd.db")
