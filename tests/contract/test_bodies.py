"""Bodies over real connections: who waits for whom, what is refused and when, what is held meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.doors import doors_at

from stackd.core.budget import Budget, Share
from stackd.core.errors import StackdError
from stackd.core.json import LARGE
from stackd.services.api import Api
from stackd.testing import FakeClock
from stackd.web import problem
from stackd.web.bodies import ROOM_PATIENCE, SLOWEST, Bodies
from stackd.web.connections import Connections

MAX = 1024 * 1024
ROOM = 2 * MAX
WITHIN = 10.0  # seconds of real time after which a test that hangs fails


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: str
    body: str


class Site:
    """A server that reads bodies and answers with their length, once the test lets it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.budget = Budget(ROOM, clock=self.clock)
        self.bodies = Bodies(self.budget, max_bytes=MAX, grace=0.5, clock=self.clock)
        self.socket_path = folder / "s"
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.clients: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        with Share(self.budget) as share:
            await share.obtain(ROOM, patience=0.0)
            yield

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            with self.bodies.of(request) as body:
                content = await body.read()
                await self.may_answer.wait()
                return web.Response(text=str(len(content)))
        except StackdError as error:
            return problem.of_error(error)
        except web.RequestPayloadError:
            return web.Response(status=400)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/", self._answer)
        api = Api(
            app, doors_at(socket_path=self.socket_path),
            connections=Connections(limit=1000, patience=60.0),
        )  # fmt: skip
        with anyio.fail_after(WITHIN):
            async with anyio.create_task_group() as tasks:
                await tasks.start(lambda *, task_status: api.run(task_status=task_status))
                try:
                    yield
                finally:
                    for client in self.clients:
                        client.transport.abort()
                    api.drain()

    async def taken(self, size: int) -> None:
        """Wait until so much of the budget is held."""
        while self.budget.taken != size:
            await anyio.lowlevel.checkpoint()


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Upload:
    """One request, sent in parts."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def begin(self, size: int | None, **headers: str) -> Upload:
        """Send the head; `size` None: in chunks."""
        self._reader, self._writer = await asyncio.open_unix_connection(self._site.socket_path)
        self._site.clients.append(self._writer)
        length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._writer.write(f"POST / HTTP/1.1\r\nHost: x\r\n{length}\r\n{more}\r\n".encode())
        return self

    def send(self, content: bytes) -> Upload:
        """Send as the server takes it; nobody waits for that."""
        self._writer.write(content)
        return self

    def chunk(self, content: bytes) -> Upload:
        return self.send(b"%x\r\n%b\r\n" % (len(content), content))

    async def answer(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        (length,) = re.findall(r"Content-Length: (\d+)", head)
        text = (await self._reader.readexactly(int(length))).decode()
        return Answer(int(head.split()[1]), head, text)

    def leave(self) -> None:
        self._writer.transport.abort()


async def whole(site: Site, size: int) -> Upload:
    upload = await Upload(site).begin(size)
    return upload.send(b"x" * size)


async def test_a_large_body_holds_its_size_until_it_is_answered(site: Site) -> None:
    site.may_answer = anyio.Event()
    async with site.serving():
        upload = await whole(site, MAX)
        await site.taken(MAX)
        site.may_answer.set()
        answer = await upload.answer()
        await site.taken(0)

    assert (answer.status, answer.body) == (200, str(MAX))


async def test_a_large_body_waits_for_room_and_small_ones_do_not(site: Site) -> None:
    site.may_answer = anyio.Event()
    async with site.serving():
        first = [await whole(site, MAX) for _ in range(ROOM // MAX)]
        await site.taken(ROOM)
        waits = await whole(site, MAX)
        small = await whole(site, LARGE)
        in_chunks = (await Upload(site).begin(None)).chunk(b"x" * 100)
        in_chunks.chunk(b"")
        site.may_answer.set()
        answers = [await upload.answer() for upload in (small, in_chunks, *first, waits)]

    assert [answer.body for answer in answers] == [str(LARGE), "100", *[str(MAX)] * 3]


async def test_small_bodies_are_answered_while_there_is_no_room(site: Site) -> None:
    async with site.serving(), site.full():
        answer = await (await whole(site, LARGE)).answer()

    assert answer.status == 200


async def test_a_body_that_waits_too_long_is_refused_with_retry_after(site: Site) -> None:
    async with site.serving(), site.full():
        upload = await whole(site, MAX)
        while not site.clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        site.clock.advance(ROOM_PATIENCE)
        answer = await upload.answer()

        assert (answer.status, '"code":"overloaded"' in answer.body) == (503, True)
        assert re.search(r"Retry-After: [1-9]", answer.head)
        await site.taken(ROOM)


async def test_a_client_that_leaves_gives_its_room_back(site: Site) -> None:
    async with site.serving():
        upload = await Upload(site).begin(MAX)
        upload.send(b"x" * (2 * LARGE))
        await site.taken(MAX)
        upload.leave()
        await site.taken(0)


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_a_body_of_unknown_size_takes_as_much_as_it_may_become_then_what_it_is(
    site: Site, encoding: str | None
) -> None:
    site.may_answer = anyio.Event()
    content = b"x" * (2 * LARGE)
    async with site.serving():
        if encoding is None:
            upload = (await Upload(site).begin(None)).chunk(content)
            await site.taken(MAX)
            upload.chunk(b"")
        else:
            packed = gzip.compress(content)
            upload = await Upload(site).begin(len(packed), Content_Encoding=encoding)
            upload.send(packed)
        await site.taken(len(content))
        site.may_answer.set()
        answer = await upload.answer()

    assert answer.body == str(len(content))


@pytest.mark.parametrize(
    ("size", "headers"),
    [(MAX + 1, {}), (None, {}), (None, {"Content_Encoding": "gzip"})],
    ids=["announced", "in-chunks", "unpacked"],
)
async def test_a_body_over_the_limit_is_refused(
    site: Site, size: int | None, headers: dict[str, str]
) -> None:
    async with site.serving():
        upload = await Upload(site).begin(size, **headers)
        if size is None:
            content = b"x" * (MAX + 1)
            upload.chunk(gzip.compress(content) if headers else content)
            upload.chunk(b"")
        answer = await upload.answer()
        await site.taken(0)

    assert (answer.status, '"code":"body.too_large"' in answer.body) == (413, True)


async def test_a_body_that_breaks_off_leaves_nothing_held(site: Site) -> None:
    async with site.serving():
        upload = (await Upload(site).begin(None)).chunk(b"x" * (2 * LARGE))
        await site.taken(MAX)
        upload.send(b"no chunk\r\n")
        answer = await upload.answer()
        await site.taken(0)

    assert answer.status == 400


@pytest.mark.parametrize("kept", [0, 30, 150], ids=["nothing", "a-little", "half"])
async def test_a_packed_body_that_ends_too_early_is_refused(site: Site, kept: int) -> None:
    packed = gzip.compress(random.Random(1).randbytes(300))[:kept] or gzip.compress(b"")[:5]
    async with site.serving():
        upload = await Upload(site).begin(len(packed), Content_Encoding="gzip")
        answer = await upload.send(packed).answer()

    assert (answer.status, '"code":"body.malformed"' in answer.body) == (400, True)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress"])
async def test_a_body_packed_in_an_unknown_way_is_refused(site: Site, encoding: str) -> None:
    async with site.serving():
        upload = await Upload(site).begin(5, Content_Encoding=encoding)
        answer = await upload.send(b"12345").answer()

    assert (answer.status, '"code":"body.encoding_unknown"' in answer.body) == (415, True)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
async def test_a_packed_body_is_read_in_full(site: Site, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"x" * MAX)
    encoding = "Gzip" if pack is gzip.compress else "deflate"
    async with site.serving():
        upload = await Upload(site).begin(len(packed), Content_Encoding=encoding)
        answer = await upload.send(packed).answer()

    assert (answer.status, answer.body) == (200, str(MAX))


async def test_the_time_a_body_waits_for_room_is_not_its_senders(site: Site) -> None:
    async with site.serving():
        async with site.full():
            upload = (await Upload(site).begin(MAX)).send(b"x" * (2 * LARGE))
            while not site.clock.is_awaited:
                await anyio.lowlevel.checkpoint()
            site.clock.advance(ROOM_PATIENCE - 1)
        await site.taken(MAX)
        for _ in range(100):  # it waits for more by now
            await anyio.lowlevel.checkpoint()
        answer = await upload.send(b"x" * (MAX - 2 * LARGE)).answer()

    assert answer.status == 200


async def test_who_is_slow_and_holds_room_must_hurry_while_others_wait_for_it(site: Site) -> None:
    slow_time = 2 * LARGE / SLOWEST  # seconds; more than its sender has while others wait
    async with site.serving():
        slow = [(await Upload(site).begin(MAX)).send(b"x" * (2 * LARGE)) for _ in range(2)]
        await site.taken(ROOM)
        site.clock.advance(slow_time)
        for upload in slow:
            upload.send(b"x")
        in_time = await whole(site, MAX)
        while not site.clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        for upload in slow:
            upload.send(b"x")
        answers = [await upload.answer() for upload in (*slow, in_time)]

    assert [answer.status for answer in answers] == [408, 408, 200]


async def test_a_packed_body_that_is_endless_and_nothing_is_refused(site: Site) -> None:
    nothing = gzip.compress(b"")
    async with site.serving():
        upload = await Upload(site).begin(None, Content_Encoding="gzip")
        answer = await upload.chunk(nothing * (2 * MAX // len(nothing))).answer()

    assert (answer.status, '"code":"body.too_large"' in answer.body) == (413, True)
