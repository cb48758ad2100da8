"""Tells the service manager how the daemon stands: ready or not, and in words what is the matter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import StackdError
from stackd.core.events import EventBus
from stackd.core.handover import Handover
from stackd.supervisor.supervisor import ServiceMoved, ServiceState, Supervisor

COUNT_EVERY: Final = 10.0  # seconds between looks at the queue
DRAIN_EVERY: Final = 1.0  # seconds between words while draining
# Seconds asked for each time; what is cut off at the deadline ends within half of them.
EXTENSION: Final = 30.0
LOOK_AGAIN: Final = 0.2  # seconds between looks whether all passes, before it is called ready
# Seconds after which it is called started although a check fails: the service manager would end what works in part.
READY_ANYWAY: Final = 30.0
BEATS: Final = 4  # within the manager's interval, so that one that is late does no harm


class Herald:
    """Silent where there is no service manager.

    Args:
        queued: how many jobs there are that are not over.
        running: how many executions this process has in hand.
        passes: whether every check has passed; asked until it is so, once all services are ready.
        may_beat: whether the process does what it is there for; asked before each beat of the watchdog.
    """

    def __init__(
        self,
        handover: Handover,
        supervisor: Supervisor,
        events: EventBus,
        *,
        clock: Clock,
        queued: Callable[[], Awaitable[int]],
        running: Callable[[], int],
        passes: Callable[[], Awaitable[bool]],
        may_beat: Callable[[], bool],
    ) -> None:
        self._notifier = handover.notifier
        self._watchdog = handover.watchdog
        self._supervisor = supervisor
        self._clock = clock
        self._queued = queued
        self._running = running
        self._passes = passes
        self._may_beat = may_beat
        self._has_started = anyio.Event()
        self._queue: int | None = None  # as last counted
        self._has_said_ready = False
        self._said: str | None = None
        self._drain = anyio.Event()
        self._drain_until = 0.0
        self.remark: str | None = None  # what is to be said beside how the services are
        events.subscribe(lambda _: self.look(), ServiceMoved)

    async def run(self) -> None:
        """Report until cancelled. Beats come of this task: they end when the loop hangs."""
        if not self._notifier.is_heard:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._say_ready)
            tasks.start_soon(self._count)
            tasks.start_soon(self._extend)
            if self._watchdog is not None:
                tasks.start_soon(self._beat, self._watchdog / BEATS)

    def look(self) -> None:
        """Say how things are, if that is news."""
        if self._supervisor.has_started:
            self._has_started.set()
        words = self._words()
        if words != self._said:
            self._notifier.status(words)
        self._said = words

    def drain(self, within: float) -> None:
        """The end was asked for. More time is asked for as long as the drain may take, `within` seconds."""
        self._drain_until = self._clock.monotonic() + within
        self._drain.set()
        self._said = self._words()
        self._notifier.stopping(self._said)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload: the manager hears that it begins and, whatever comes of it, that it is over."""
        if not self._has_said_ready or self._drain.is_set():
            yield
            return
        self._notifier.reloading("reloading", at=self._clock.monotonic())
        try:
            yield
        finally:
            self._said = self._words()
            self._notifier.ready(self._said)

    async def _say_ready(self) -> None:
        """Say so once all services are ready and every check has passed."""
        await self._has_started.wait()
        give_up_at = self._clock.monotonic() + READY_ANYWAY
        while not (await self._passes() or self._clock.monotonic() >= give_up_at):
            await self._clock.sleep(LOOK_AGAIN)
        if not self._drain.is_set():
            self._has_said_ready = True
            self._said = self._words()
            self._notifier.ready(self._said)

    async def _count(self) -> None:
        while not self._drain.is_set():
            try:
                self._queue = await self._queued()
            except StackdError:  # the store's trouble is told by those who are there for it
                self._queue = None
            self.look()
            await self._clock.wait(self._drain, COUNT_EVERY)

    async def _extend(self) -> None:
        """While it drains, say how far that is, and ask for the time that it may take."""
        await self._drain.wait()
        while True:
            if self._clock.monotonic() < self._drain_until:
                self._notifier.extend(EXTENSION)
            self.look()
            await self._clock.sleep(DRAIN_EVERY)

    async def _beat(self, every: float) -> None:
        while True:
            if self._may_beat():
                self._notifier.beat()
            await self._clock.sleep(every)

    def _words(self) -> str:
        if self._drain.is_set():
            return f"draining: {self._running()} running"
        reports = self._supervisor.reports()
        odd = [
            f"{one.name} {one.state.value}{f': {one.reason}' if one.reason else ''}"
            for one in reports
            if one.state is not ServiceState.READY
        ]
        if not odd and not self._has_said_ready:
            words = ["starting: all services are ready, the checks are not through"]
        elif not odd:
            services = "1 service" if len(reports) == 1 else f"{len(reports)} services"
            words = [f"ready: {services}"]
        else:
            words = [f"{'degraded' if self._has_said_ready else 'starting'}: {', '.join(odd)}"]
        if self._queue is not None:
            words.append(f"queue {self._queue}")
        if self.remark is not None:
            words.append(self.remark)
        return "; ".join(words)
