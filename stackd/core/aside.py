"""Work on large values, away from the loop and one piece of work after another.

The interpreter runs one thread at a time. Of many that all want to compute, the loop would get a small share;
beside one, it has its turn every few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

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
