"""The client for programs with an event loop: what it makes of a daemon that is not there, is silent, or is none."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.stub import HOLD, listening, said

from stackd.client.capabilities import Capabilities
from stackd.client.client import Client
from stackd.core.errors import ApiError, InputError, NoAnswerError, UnreachableError
from stackd.core.json import loads
from stackd.core.places import shipped
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.coverage import coverage_in
from stackd.integrations.registry import Options, Registry


async def test_nothing_that_listens_is_unreachable(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Client(url=f"http://127.0.0.1:{taken.getsockname()[1]}") as stackd:
            with pytest.raises(UnreachableError, match=r"no daemon answers at http.*refused"):
                await stackd.health()
    async with Client(socket_path=tmp_path / "stackd.sock") as stackd:
        with pytest.raises(
            UnreachableError, match=r"no daemon answers at .*stackd\.sock \(No such"
        ):
            await stackd.health()


@pytest.mark.parametrize(
    "how",
    [{}, {"url": "ftp://h"}, {"url": "http://h", "token": "a b"}],
    ids=["nowhere", "no http", "no token"],
)
def test_what_names_no_daemon_is_refused_before_anything_is_asked(how):
    with pytest.raises(InputError):
        Client(**how)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_silence_is_no_answer_and_says_how_long_it_lasted(method):
    with listening(HOLD) as stub:
        async with Client(url=stub.url, timeout=0.1) as stackd:
            with pytest.raises(NoAnswerError, match=r"gave no answer within 0\.1 s") as caught:
                await stackd.request(method, "/x")

    assert ("may have done" in caught.value.hint) is (method == "POST")


@pytest.mark.parametrize(
    "words",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"SSH-2.0-OpenSSH_9.6\r\n"],
    ids=["nothing", "half a body", "another protocol"],
)
async def test_an_answer_that_ends_too_soon_is_none(words):
    with listening(words) as stub:
        async with Client(url=stub.url) as stackd:
            with pytest.raises(NoAnswerError, match="closed the connection"):
                await stackd.request("POST", "/x")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"<h1>hello</h1>", "text/html"), (b"[1]", "application/json"), (b"{}", "application/json")],
    ids=["html", "list", "empty map"],
)
async def test_what_answers_otherwise_is_no_daemon(body, content_type):
    with listening(said(200, body, content_type)) as stub:
        async with Client(url=stub.url) as stackd:
            with pytest.raises(ApiError, match="is no stackd daemon"):
                await stackd.workflows.get("x")
            with pytest.raises(ApiError, match="is no stackd daemon"):
                await stackd.registry.capabilities()
            with pytest.raises(ApiError, match="is no stackd daemon"):
                async with stackd.executions.events():
                    pass


async def test_a_redirect_is_not_followed_and_takes_the_token_nowhere():
    with listening(said(200, {"status": "pass", "checks": {}})) as other:
        elsewhere = (
            f"HTTP/1.1 302 Found\r\nLocation: {other.url}/readyz\r\nContent-Length: 0\r\n\r\n"
        )
        with listening(elsewhere.encode()) as stub:
            async with Client(url=stub.url, token="secret") as stackd:
                with pytest.raises(ApiError, match="is no stackd daemon"):
                    await stackd.health()

    assert other.requests == []


async def test_a_problem_is_told_with_its_code_and_hint():
    problem = {"code": "workflow.not_found", "detail": "no workflow 'x'", "hint": "look"}
    with listening(said(404, problem)) as stub:
        async with Client(url=stub.url) as stackd:
            with pytest.raises(ApiError, match="no workflow 'x'") as caught:
                await stackd.workflows.get("x")

    assert (caught.value.code, caught.value.http_status) == ("workflow.not_found", 404)
    assert caught.value.hint == "look"


async def test_who_is_cancelled_has_closed_the_connection():
    asked, gone = anyio.Event(), anyio.Event()

    async def answer(request: web.Request) -> web.Response:
        asked.set()
        try:
            await anyio.sleep_forever()
        finally:
            gone.set()

    async with _serving(answer) as url, Client(url=url) as stackd:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(stackd.workflows.run, "x", wait=300))
            await asked.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            await gone.wait()


async def test_events_come_whole_however_they_are_cut_and_leaving_them_closes_the_connection():
    gone = anyio.Event()
    pieces = [b": hello\n\nid: 1\nevent: Jo", b'bClaimed\ndata: {"a": "\xc3', b'\xa4"}\n', b"\n"]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        try:
            await anyio.sleep_forever()
        finally:
            gone.set()

    async with _serving(answer) as url, Client(url=url) as stackd:
        async with stackd.executions.events(types=["JobClaimed"]) as events:
            event = await anext(events)
        with anyio.fail_after(5):
            await gone.wait()

    assert (event.id, event.name, event.data) == ("1", "JobClaimed", {"a": "ä"})


async def test_a_stream_that_breaks_is_told_of_and_one_that_ends_is_over():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        if request.query.get("executionId") == "broken":
            assert request.transport is not None
            request.transport.abort()
        return response

    async with _serving(answer) as url, Client(url=url) as stackd:
        async with stackd.executions.events("whole") as events:
            assert [one.data async for one in events] == [1]
        async with stackd.executions.events("broken") as events:
            with pytest.raises(NoAnswerError, match="closed the connection"):
                assert [one.data async for one in events] == [1]


async def test_a_list_is_asked_for_page_by_page():
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        number = int(request.query.get("cursor", 0))
        version = {"version": number, "createdAt": "", "contentHash": "", "current": False}
        cursor = None if number == 2 else str(number + 1)
        return web.json_response({"items": [version], "nextCursor": cursor})

    async with _serving(answer) as url, Client(url=url) as stackd:
        numbers = [one.version async for one in stackd.workflows.versions("x")]

    assert numbers == [0, 1, 2]
    assert asked == ["limit=500", "cursor=1&limit=500", "cursor=2&limit=500"]


@asynccontextmanager
async def _serving(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Serve `answer` on a port of loopback for the length of the block; the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


# -- what a client says, and what the daemon does


@pytest.mark.parametrize("generic", [False, True], ids=["generic off", "generic on"])
def test_a_client_says_of_each_shipped_action_what_activation_does(generic):
    registry = Registry(
        read_catalogue([shipped("connectors")]), lambda: Options(generic=generic, development=True)
    )
    client = Capabilities(loads(registry.payload(unavailable=True).body))
    asked = [
        (connector.id, one.id)
        for connector in registry.catalogue.connectors
        for one in connector.actions.values()
    ]
    asked += [("slak", "post_message"), ("slack", "post_mesage"), ("GitHub", "createIssue")]

    modes = set()
    for app, operation in asked:
        ours, theirs = client.check(app, operation), coverage_in(registry, app, operation)
        modes.add(theirs.mode)
        assert (ours.mode, ours.issue, ours.code, ours.reason, ours.fallback_runtime) == (
            theirs.mode, theirs.issue, theirs.code, theirs.reason, theirs.fallback_runtime,
        ), (app, operation)  # fmt: skip
    assert modes == (
        {"native", "fallback", "unavailable"} if generic else {"native", "unavailable"}
    )
