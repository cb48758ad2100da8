"""Work on large values, away from the loop and one piece of work after another.

The interpreter runs one thread at a time. Of many that all want to compute, the loop would get a small share;
beside one, it has its turn every few milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, Generic, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.lowlevel import RunVar

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_LINE: Final[RunVar[anyio.CapacityLimiter]] = RunVar("line")


async def aside(function: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
    """`function(*arguments)` on a thread, in the order asked.

    Cancelled while it waits its turn, it does not run; once it runs, it is waited for.
    """
    try:
        line = _LINE.get()
    except LookupError:
        line = anyio.CapacityLimiter(1)
        _LINE.set(line)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=line)


async def aside_if(
    is_large: bool,  # noqa: FBT001  # it reads as the sentence it is
    function: Callable[[Unpack[Arguments]], T],
    *arguments: *Arguments,
) -> T:
    """`function(*arguments)`: aside if what it works on is large, else here and now."""
    return await aside(function, *arguments) if is_large else function(*arguments)


class Aside(Generic[T]):
    """A call that may never come back, as of a disk that does not answer: on a thread that nobody waits for.

    One is under way at a time, however often the result is asked for, and the process can end meanwhile.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._future: Future[T] | None = None

    async def result(self) -> T:
        """What the call gives that is under way, or else is made now; it may be given up at any time."""
        if self._future is None:
            self._future = Future()
            threading.Thread(target=self._call, args=(self._future,), daemon=True).start()
        future = self._future
        done, loop = anyio.Event(), asyncio.get_running_loop()

        def tell(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is over
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(tell)
        await done.wait()
        self._future = None
        return future.result()

    def _call(self, future: Future[T]) -> None:
        try:
            future.set_result(self._function())
        except Exception as error:  # noqa: BLE001  # for who asks
            future.set_exception(error)
