"""For tests, ours and those of connector authors: time that only the test moves, and a scripted far side."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import anyio

from stackd.http.message import Request, Response, SinkFor


class FakeClock:
    """Stands still until `advance`. Whoever sleeps or waits wakes when its moment has come."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._sleepers: list[_Alarm] = []
        self._timeouts: list[_Alarm] = []
        self._slept = anyio.Event()

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        self._slept.set()
        with self._alarm(seconds, self._sleepers) as rings:
            await rings.wait()

    async def wait(self, event: anyio.Event, timeout: float) -> bool:
        async def give_up(rings: anyio.Event) -> None:
            await rings.wait()
            tasks.cancel_scope.cancel()

        with self._alarm(timeout, self._timeouts) as rings:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(give_up, rings)
                await event.wait()
                tasks.cancel_scope.cancel()
        return event.is_set()

    @contextmanager
    def _alarm(self, seconds: float, alarms: list[_Alarm]) -> Iterator[anyio.Event]:
        """An event that `advance` sets once `seconds` from now have passed."""
        alarm = _Alarm(self._now + seconds, anyio.Event())
        alarms.append(alarm)
        try:
            yield alarm.rings
        finally:
            if alarm in alarms:
                alarms.remove(alarm)

    def advance(self, seconds: float) -> None:
        """Move time on and wake whoever is due."""
        self._now += seconds
        for alarms in (self._sleepers, self._timeouts):
            for alarm in [a for a in alarms if a.at <= self._now]:
                alarms.remove(alarm)
                alarm.rings.set()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an event, with a timeout."""
        return bool(self._timeouts)

    async def someone_sleeps(self) -> float:
        """Wait until somebody sleeps (a `wait` does not count); seconds until the first of them is due."""
        while not self._sleepers:
            self._slept = anyio.Event()
            await self._slept.wait()
            await anyio.lowlevel.checkpoint()
        return min(alarm.at for alarm in self._sleepers) - self._now


@dataclass(frozen=True, slots=True, eq=False)
class _Alarm:
    at: float
    rings: anyio.Event


Answer = Response | BaseException | Callable[[Request], Awaitable[Response]]


class ScriptedHttp:
    """Stands where the outbound client stands; answers from `script` in order, and remembers every request.

    Errors that are raised with `sent` true count as sent, as the real client's do.
    """

    def __init__(self, *script: Answer) -> None:
        self.script = deque(script)
        self.requests: list[Request] = []
        self._arrived = anyio.Event()

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response:
        answer = self.script.popleft() if self.script else ok()
        if getattr(answer, "sent", True) and on_sent is not None:
            on_sent()
        self.requests.append(request)
        self._arrived.set()
        if isinstance(answer, BaseException):
            raise answer
        response = answer if isinstance(answer, Response) else await answer(request)
        sink = None if sink_for is None else sink_for(response.status, response.content_type)
        if sink is None:
            return response
        await sink.write(response.body)
        return replace(response, body=b"")

    async def arrived(self, count: int) -> None:
        """Wait until `count` requests have arrived in all."""
        while len(self.requests) < count:
            self._arrived = anyio.Event()
            await self._arrived.wait()


def ok(body: bytes = b"{}", status: int = 200, **headers: str) -> Response:
    """An answer in JSON; underscores in header names stand for dashes."""
    return Response(
        status=status,
        headers={
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
        body=body,
        url="http://far.example/",
        content_type="application/json",
        charset=None,
    )
