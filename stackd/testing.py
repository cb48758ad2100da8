"""For tests, ours and those of connector authors: time that only the test moves, and a scripted far side."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from stackd.http.client import Request, Response


class FakeClock:
    """Stands still until `advance`. Whoever sleeps wakes when its moment has come."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, anyio.Event]] = []
        self._slept = anyio.Event()

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        alarm = anyio.Event()
        self._sleepers.append((self._now + seconds, alarm))
        self._slept.set()
        await alarm.wait()

    def advance(self, seconds: float) -> None:
        """Move time on and wake whoever is due."""
        self._now += seconds
        due = [entry for entry in self._sleepers if entry[0] <= self._now]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self._now]
        for _, alarm in due:
            alarm.set()

    async def someone_sleeps(self) -> float:
        """Wait until somebody sleeps; seconds until the first of them is due."""
        while not self._sleepers:
            self._slept = anyio.Event()
            await self._slept.wait()
        return min(at for at, _ in self._sleepers) - self._now


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
        self, request: Request, *, on_sent: Callable[[], None] | None = None
    ) -> Response:
        answer = self.script.popleft() if self.script else ok()
        if getattr(answer, "sent", True) and on_sent is not None:
            on_sent()
        self.requests.append(request)
        self._arrived.set()
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Response):
            return answer
        return await answer(request)

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
