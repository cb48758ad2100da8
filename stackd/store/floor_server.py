"""The least that can take a webhook and keep it: bare aiohttp, one row per request, committed in groups.

`stackd bench` measures the daemon beside it: `python -m stackd.store.floor_server FILE PORT`. It runs nothing, and
has loaded only what the daemon is built on. One thread syncs while the next group gathers, as in `database.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

import anyio
import pydantic_settings  # noqa: F401  # loaded, not used: the daemon is built on it
import uvloop
from aiohttp import web


class Receiver:
    """Answers each delivery once its row is on disk."""

    def __init__(self, file: str) -> None:
        self._raw = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._raw.execute("PRAGMA journal_mode=WAL")
        self._raw.execute("PRAGMA synchronous=FULL")
        self._raw.execute("CREATE TABLE deliveries (id INTEGER PRIMARY KEY, body BLOB)")
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        is_kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((await request.read(), is_kept))
        self._arrived.set()
        await is_kept
        return web.json_response({"success": True}, status=202)

    async def commit_forever(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            group, self._waiting = self._waiting, []
            await asyncio.to_thread(self._insert, [(body,) for body, _ in group])
            for _, is_kept in group:
                if not is_kept.done():  # the caller is gone
                    is_kept.set_result(None)

    def _insert(self, rows: list[tuple[bytes]]) -> None:
        self._raw.execute("BEGIN IMMEDIATE")
        self._raw.executemany("INSERT INTO deliveries (body) VALUES (?)", rows)
        self._raw.execute("COMMIT")


async def echo(request: web.Request) -> web.Response:
    """A far side that costs next to nothing."""
    return web.Response(body=await request.read(), content_type="application/json")


async def ready(_: web.Request) -> web.Response:
    return web.json_response({"status": "pass"})


async def main(file: str, port: int) -> None:
    receiver = Receiver(file)
    app = web.Application()
    app.router.add_get("/readyz", ready)
    app.router.add_post("/api/webhooks/{path}", receiver.take)
    app.router.add_post("/echo", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.commit_forever)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
