"""A process that dies, drains or is told to cancel at a chosen moment: before a commit, or while a request is open."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Literal

import anyio
import anyio.lowlevel

from stackd.core.events import Event
from stackd.http.message import Request, Response, SinkFor
from stackd.runtime.events import NodeSent
from stackd.runtime.workflow_runtime import claim
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import consistency, executions
from stackd.workflows.executions import FINAL, CallEnded, CancelRequested, Decision, ExecutionStatus
from support import invariants
from support.runs import LEASE, World

Step = tuple[str, str]  # (execution, key of the node run)
Blow = Literal["death", "drain", "cancel"]

STUCK = 400  # rounds; nothing here takes so many


class Death(BaseException):  # no error: the process is gone
    """Nothing that was under way goes on."""


class Moments:
    """Counts the moments of a life; at the one numbered `fatal` it calls `strike`."""

    def __init__(self, fatal: int | None = None) -> None:
        self.passed = 0
        self.is_dead = False
        self.strike: Callable[[], None] = lambda: None
        self._fatal = fatal

    def pass_one(self) -> None:
        if self.is_dead:
            raise Death
        if self.passed == self._fatal:
            self.passed += 1
            self.strike()
        else:
            self.passed += 1

    def die(self) -> None:
        self.is_dead = True
        raise Death


class MortalStore:
    """The real store, as a process sees it that may die before any of its commits."""

    def __init__(self, store: Database, moments: Moments) -> None:
        self._store = store
        self._moments = moments
        self.events = store.events
        self.reserve = store.reserve

    async def read(self, query: Callable[[Any], Any]) -> Any:
        if self._moments.is_dead:
            raise Death
        return await self._store.read(query)

    async def write(self, change: Callable[[Any], Any], **how: Any) -> Any:
        self._moments.pass_one()
        return await self._store.write(change, **how)


class FarSide:
    """Answers after a while; a path with `bad` in it is refused. `keys`: idempotency keys by the path they came to."""

    def __init__(self) -> None:
        self.moments = Moments()
        self.keys: dict[str, set[str]] = defaultdict(set)

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response:
        if on_sent is not None:
            on_sent()
        if "Idempotency-Key" in request.headers:
            self.keys[request.url].add(request.headers["Idempotency-Key"])
        await anyio.lowlevel.checkpoint()
        self.moments.pass_one()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        return ok(status=400 if "bad" in request.url else 200)


class Life:
    """Runs everything that is due, under a blow at one moment, and then to the end.

    `decisions`: in turn, about what is uncertain.
    """

    def __init__(self, world: World, *, decisions: tuple[Decision, ...] = ("skip",)) -> None:
        self._world = world
        self._database = world.store
        self.far_side = world.http = FarSide()  # type: ignore[assignment]
        self.sent: Counter[Step] = Counter()
        self._decisions = itertools.cycle(decisions)
        self._retries: Counter[Step] = Counter()
        world.runtime = world.process()
        world.store.events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        match event:
            case NodeSent():
                self.sent[event.execution_id, event.key] += 1
            case CallEnded():
                self._world.runtime.wake(event.execution)
            case CancelRequested():
                self._world.runtime.cancel(event.execution)

    async def through(self, execution_id: str, blow: Blow, moment: int | None) -> bool:
        """Live under a blow at that moment, then to the end; whether it lived so long. What must hold is looked at."""
        lived_so_long = await self._struck(execution_id, blow, moment)
        await self._all_fits_together()
        finished, before = await self.steps("completed"), self.sent.copy()
        in_flight = {step for step in await self.steps("running", "unsafe") if before[step]}
        unknown = in_flight | await self.steps("uncertain")
        await self._to_the_end()
        await self._all_fits_together()
        await self._nothing_is_left()
        for step in finished:
            assert self.sent[step] == before[step], f"{step} was finished and sent again"
        for step in await self.steps(None, "unsafe"):
            most = 1 + self._retries[step]
            assert self.sent[step] <= most, f"{step} was sent {self.sent[step]} times"
        if blow != "cancel":
            nobody_asked = unknown - await self._decided()
            assert not nobody_asked, f"nobody was asked about {nobody_asked}"
        return lived_so_long

    async def _struck(self, execution_id: str, blow: Blow, moment: int | None) -> bool:
        """Live with a `blow` at that moment, up to the first rest; whether it came so far."""
        world, moments = self._world, Moments(moment)
        seq = (await world.row(execution_id)).seq
        self.far_side.moments = moments
        world.store = MortalStore(self._database, moments)  # type: ignore[assignment]
        world.runtime = world.process()
        struck = anyio.Event()

        def strike() -> None:
            struck.set()
            match blow:
                case "death":
                    moments.die()
                case "drain":
                    world.runtime.interrupt_all()
                case "cancel":
                    world.runtime.cancel(seq)

        moments.strike = strike
        try:
            await self._run_all(until=lambda: blow == "drain" and struck.is_set())
        except BaseExceptionGroup as group:
            died, rest = group.split(Death)
            assert died is not None
            assert rest is None, rest
        except Death:
            pass
        world.store = self._database
        self.far_side.moments = Moments()
        world.runtime = world.process()
        if blow == "cancel" and struck.is_set():
            await world.cancel(execution_id)
        await world.crash_and_rescue()
        return moment is None or moments.passed > moment

    async def _to_the_end(self) -> None:
        """Run all, and decide about what is uncertain."""
        world = self._world
        for _ in range(STUCK):
            await self._run_all()
            rows = await self._database.read(
                lambda tx: tx.rows(
                    "SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq "
                    "WHERE e.status = 'uncertain' AND n.status = 'uncertain'"
                )
            )
            if not rows:
                break
            execution, key = rows[0]
            await self._all_fits_together()
            decision = next(self._decisions)
            self._retries[execution, key] += decision == "retry"
            await world.resolve(execution, decision, key)
        await self._database.read(lambda tx: invariants.check_loops(tx._connection))
        states = await self.states()
        assert {ExecutionStatus(one) for one in states.values()} <= FINAL, states

    async def _run_all(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Run what is due, side by side; then time passes to the next timer; until nothing is to come."""
        world = self._world
        for _ in range(STUCK):
            if until():
                return
            claimed = await self._database.write(
                lambda tx: claim(tx, owner="me", limit=10, lease=LEASE, now=world.clock.time())
            )
            if claimed:
                async with anyio.create_task_group() as tasks:
                    for one in claimed:
                        tasks.start_soon(world.runtime.execute, one)
                continue
            due_at = await self._database.read(executions.next_timer)
            if due_at is None:
                return
            await self._all_fits_together()
            world.clock.advance(max(due_at - world.clock.time(), 0.0) + 0.001)
            await world.fire_timers()

    async def states(self) -> dict[str, str]:
        return dict(
            await self._database.read(lambda tx: tx.rows("SELECT id, status FROM executions"))
        )

    async def steps(self, status: str | None, effect: str | None = None) -> set[Step]:
        return await self._steps(
            "n.status = coalesce(?, n.status) AND n.effect = coalesce(?, n.effect)", status, effect
        )

    async def _decided(self) -> set[Step]:
        """Those that somebody was asked about."""
        return await self._steps("CAST(n.metadata AS TEXT) LIKE '%resolved%'")

    async def _steps(self, where: str, *values: str | None) -> set[Step]:
        query = (
            "SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq "
            f"WHERE {where}"  # from here
        )
        rows = await self._database.read(lambda tx: tx.rows(query, values))
        return {(execution, key) for execution, key in rows}

    async def _all_fits_together(self) -> None:
        found = await self._database.read(lambda tx: consistency.findings(tx, now=0.0))
        assert found == []
        await self._database.read(lambda tx: invariants.check_loops(tx._connection))

    async def _nothing_is_left(self) -> None:
        left = {
            "jobs": "SELECT * FROM jobs WHERE state IN ('available', 'running', 'scheduled', 'retryable')",
            "timers": "SELECT * FROM timers WHERE state = 'pending'",
            "loop items": "SELECT * FROM loop_items l JOIN executions e ON e.seq = l.execution "
            "WHERE e.status = 'completed'",  # of others, a person may let them go on
            "open": "SELECT execution, key, status FROM node_runs "
            "WHERE status IN ('pending', 'running', 'waiting')",
        }
        for what, query in left.items():
            rows = await self._database.read(lambda tx, query=query: tx.rows(query))
            assert rows == [], f"{what}: {rows}"
