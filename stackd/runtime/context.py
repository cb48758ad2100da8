"""What a node handler is given: everything it may touch, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import NodeError
from stackd.core.json import Json
from stackd.http.exchange import Blobs, Http


@dataclass(slots=True)
class NodeContext:
    """One try of one node run.

    Attributes:
        idempotency_key: the same over retries and restarts; None unless the effect is keyed.
        timeout: seconds this try may take.
        max_bytes: the largest output.
        is_large: whether the parameters or the output may be more than `LARGE` as JSON text: what goes
            through all of them then belongs aside.
        sent: set once the first byte of a request may have left.
        answered: set once the far side has answered in full.
        has_acted: set once the far side has done a part of what this try is for.
        metadata: what ran it, as that says itself.
        deadline: ends this try when `timeout` is over.
        send_before: by the monotonic clock; a first byte after it is refused. This process may have been
            stopped since, taken for dead, and the execution gone on elsewhere.
        turn_of: the seconds to wait before a request, 0 if it may go; the first one has had its turn.
        requests: how many have asked for theirs.
        rests: seconds for which the far side has nothing left, as its last answer says.
        secrets: those that its execution has to do with so far, whose ever they are.
    """

    clock: Clock
    http: Http
    blobs: Blobs
    unsafe: bool
    idempotency_key: str | None
    timeout: float
    max_bytes: int
    tell_sent: Callable[[], None]
    tell_answered: Callable[[], None]
    is_large: bool = False
    sent: bool = False
    answered: bool = False
    has_acted: bool = False
    metadata: dict[str, Json] | None = None
    deadline: anyio.CancelScope | None = None
    send_before: float = math.inf
    turn_of: Callable[[], Awaitable[float]] | None = None
    requests: int = 0
    rests: float = 0.0
    secrets: Callable[[], frozenset[str]] = frozenset

    async def turn(self) -> None:
        """Return when the next request may go, by the limits that its app declares."""
        self.requests += 1
        if self.turn_of is None or self.requests == 1:
            return
        while wait := await self.turn_of():
            await self.clock.sleep(wait)

    def acted(self) -> None:
        """Called once the far side has done a part: what fails after it may not begin all of it again."""
        self.has_acted = True

    def exhausted(self, seconds: float) -> None:
        """Called where an answer says that nothing is left of a limit for so long."""
        self.rests = seconds

    def on_answered(self) -> None:
        """Called once the far side has answered in full: what is left to do is ours, and takes its time."""
        self.answered = True
        if self.deadline is not None:
            self.deadline.deadline = math.inf
        self.tell_answered()

    def on_sent(self) -> None:
        """Called by the seam before the first byte leaves.

        Raises:
            NodeError: too much time has passed since this try was written down; nothing was sent.
        """
        if not self.sent:
            if self.clock.monotonic() > self.send_before:
                raise NodeError(
                    "this process was held up before it could send; nothing was sent",
                    kind="network",
                    code="node.too_late",
                )
            self.sent = True
            self.tell_sent()


Handler = Callable[[dict[str, Json], NodeContext], Awaitable[Json]]
