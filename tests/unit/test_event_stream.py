"""The ring of recent events that all streams read: what each gets, in which order, and what it has missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from stackd.core.errors import OverloadedError
from stackd.core.events import EventBus
from stackd.testing import FakeClock
from stackd.web.event_stream import (
    ASK_AGAIN,
    BEAT,
    KEPT,
    KEPT_FOR,
    MAX_STREAMS,
    EventStream,
    Reader,
    Wanted,
)
from stackd.workflows.executions import (
    ExecutionFinished,
    ExecutionQueued,
    TimerFired,
)

ALL = Wanted()


class Client:
    def __init__(self) -> None:
        self.is_gone = self.may_be_gone = False
        self.told: set[anyio.Event] = set()

    @contextmanager
    def telling(self, told: anyio.Event) -> Iterator[None]:
        self.told.add(told)
        yield
        self.told.discard(told)

    def leave(self) -> None:
        self.may_be_gone = True
        for told in self.told:
            told.set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stream(bus: EventBus, clock: FakeClock) -> EventStream:
    return EventStream(bus, clock)


def messages(text: bytes | None) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each."""
    assert text is not None
    found = []
    for block in text.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


async def read(reader: Reader, wanted: Wanted = ALL) -> list[tuple[str, str, dict[str, Any]]]:
    return messages(await reader.next(wanted, Client()))


async def test_a_stream_gets_what_happens_after_it_began(bus, stream):
    bus.emit(ExecutionQueued("before", "w"))
    reader = stream.open(None)
    bus.emit(ExecutionQueued("x", "w"))
    bus.emit(ExecutionFinished("x", "w", "completed"))

    assert [(event, data["executionId"]) for _, event, data in await read(reader)] == [
        ("ExecutionQueued", "x"), ("ExecutionFinished", "x"),
    ]  # fmt: skip


async def test_an_event_is_shown_with_its_moment_and_its_fields(bus, stream):
    reader = stream.open(None)
    bus.emit(ExecutionFinished("x", "w", "failed"))
    bus.emit(TimerFired("z", 7, "wait"))

    (_, _, finished), (_, _, fired) = await read(reader)

    assert finished == {
        "at": "2023-11-14T22:13:20.000Z", "executionId": "x", "workflowId": "w", "status": "failed",
    }  # fmt: skip
    assert fired == {"at": "2023-11-14T22:13:20.000Z", "executionId": "z", "key": "wait"}


@pytest.mark.parametrize(
    ("wanted", "events"),
    [
        (Wanted(execution_id="x"), ["ExecutionQueued", "ExecutionFinished"]),
        (Wanted(workflow_id="v"), ["ExecutionQueued"]),
        (Wanted(types=frozenset({"TimerFired"})), ["TimerFired"]),
        (Wanted(types=frozenset({"ExecutionQueued"}), execution_id="x"), ["ExecutionQueued"]),
    ],
)
async def test_a_stream_gets_what_it_asked_for(bus, stream, wanted, events):
    reader = stream.open(None)
    bus.emit(ExecutionQueued("x", "w"))
    bus.emit(ExecutionQueued("y", "v"))
    bus.emit(ExecutionFinished("x", "w", "completed"))
    bus.emit(TimerFired("z", 7, "wait"))

    assert [event for _, event, _ in await read(reader, wanted)] == events


async def test_who_comes_back_goes_on_after_the_last_event_it_had(bus, stream):
    reader = stream.open(None)
    for name in "abc":
        bus.emit(ExecutionQueued(name, "w"))
    (last, _, _), *_ = await read(reader)
    reader.close()
    bus.emit(ExecutionQueued("d", "w"))

    again = stream.open(last)

    assert [data["executionId"] for _, _, data in await read(again)] == ["b", "c", "d"]


@pytest.mark.parametrize("last", ["x", "deadbeef-1", "-", "deadbeef-x", "1" * 5000])
async def test_who_comes_back_from_another_process_is_told_that_nobody_knows_what_it_missed(
    bus, stream, last
):
    stream.open(None)
    bus.emit(ExecutionQueued("a", "w"))
    reader = stream.open(last)
    bus.emit(ExecutionQueued("b", "w"))

    ((_, event, data),) = await read(reader)
    assert (event, data) == ("Missed", {"count": None})
    assert [data["executionId"] for _, _, data in await read(reader)] == ["b"]


async def test_who_falls_behind_is_told_how_many_it_has_missed(bus, stream):
    reader = stream.open(None)
    for number in range(KEPT + 3):
        bus.emit(ExecutionQueued(str(number), "w"))

    (_, event, data), (_, _, first), *_ = await read(reader)

    assert (event, data) == ("Missed", {"count": 3})
    assert first["executionId"] == "3"


async def test_all_of_many_events_come_in_order(bus, stream):
    reader = stream.open(None)
    for number in range(1000):
        bus.emit(ExecutionQueued(str(number), "w"))

    found: list[str] = []
    while len(found) < 1000:
        found += [data["executionId"] for _, _, data in await read(reader)]

    assert found == [str(number) for number in range(1000)]


async def said_upon(clock, stream, happens: Callable[[Client], None]) -> bytes | None:
    """What a reader that waits on a silent stream is given when `happens` was done with its client."""
    reader, client = stream.open(None), Client()
    said: list[bytes | None] = []

    async def listen() -> None:
        said.append(await reader.next(ALL, client))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        while not clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        happens(client)
    return said[0]


async def test_a_silent_stream_says_that_it_is_there(clock, stream):
    assert await said_upon(clock, stream, lambda _: clock.advance(BEAT)) == b": beat\n\n"


async def test_a_silent_stream_comes_back_to_be_asked_whether_it_may_go_on(clock, stream):
    assert await said_upon(clock, stream, lambda _: clock.advance(ASK_AGAIN)) == b""


async def test_a_stream_in_which_nothing_fits_says_that_it_is_there_too(bus, clock, stream):
    reader = stream.open(None)
    clock.advance(BEAT)
    bus.emit(ExecutionQueued("x", "w"))

    assert await reader.next(Wanted(execution_id="other"), Client()) == b": beat\n\n"


async def test_a_stream_ends_when_its_client_leaves(clock, stream):
    assert await said_upon(clock, stream, Client.leave) is None


async def test_all_streams_end_with_the_process(clock, stream):
    readers = [stream.open(None), stream.open(None)]

    async with anyio.create_task_group() as tasks:
        for reader in readers:
            tasks.start_soon(reader.next, ALL, Client())
        while not clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        stream.release()

    assert await readers[0].next(ALL, Client()) is None


async def test_there_are_so_many_streams_and_no_more(stream):
    readers = [stream.open(None) for _ in range(MAX_STREAMS)]

    with pytest.raises(OverloadedError) as refused:
        stream.open(None)
    readers[0].close()

    assert refused.value.code == "events.too_many"
    stream.open(None)


async def test_nothing_is_heard_while_nobody_has_listened_for_a_while(bus, clock, stream):
    reader = stream.open(None)
    bus.emit(ExecutionQueued("a", "w"))
    (last, _, _), *_ = await read(reader)
    reader.close()
    clock.advance(KEPT_FOR + 1)
    bus.emit(ExecutionQueued("b", "w"))

    assert not bus._by_kind.get(ExecutionQueued)
    again = stream.open(last)
    bus.emit(ExecutionQueued("c", "w"))
    ((_, event, data),) = await read(again)
    assert (event, data) == ("Missed", {"count": None})
    assert [data["executionId"] for _, _, data in await read(again)] == ["c"]
