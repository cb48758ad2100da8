"""The Unix socket of the API: at a path of any length, for its user alone, and never in another's place."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.doors import doors_at

from stackd.client.api import Api as Client
from stackd.core.errors import StackdError
from stackd.core.sockets import ADDRESS_BYTES, unix_address
from stackd.services.api import Api

WITHIN = 10.0
LENGTHS = [ADDRESS_BYTES, ADDRESS_BYTES + 1, 400]


def path_of(folder: Path, length: int) -> Path:
    """A path below `folder` of so many bytes, whose folders exist."""
    path = folder / "stackd.sock"
    while (missing := length - len(os.fsencode(path))) > 1:
        path = path.parent / ("d" * min(missing - 1, 100)) / path.name
    path = path.with_name(path.name + "k" * missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def api(path: Path) -> Api:
    async def hello(_: web.Request) -> web.Response:
        return web.json_response({"hello": "there"})

    app = web.Application()
    app.router.add_get("/hello", hello)
    return Api(app, doors_at(host="127.0.0.1", port=0, socket_path=path))


@asynccontextmanager
async def running(service: Api) -> AsyncIterator[None]:
    with anyio.fail_after(WITHIN):
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: service.run(task_status=task_status))
            yield
            service.drain()


def refusal(path: Path) -> StackdError:
    with pytest.raises(StackdError) as caught:
        doors_at(socket_path=path)
    assert caught.value.code == "api.address_in_use"
    assert caught.value.hint
    return caught.value


async def greeting(path: Path) -> object:
    return await anyio.to_thread.run_sync(Client(socket_path=path).get, "/hello")


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, unix_address(path) as address:
        dead.bind(address)


@pytest.mark.parametrize("length", LENGTHS)
async def test_it_serves_at_a_path_of_any_length_and_leaves_none_behind(
    tmp_path: Path, length: int
) -> None:
    path = path_of(tmp_path, length)
    before = descriptors()

    for _ in range(2):
        async with running(api(path)):
            assert await greeting(path) == {"hello": "there"}

    assert not path.exists()
    assert descriptors() <= before


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path, length: int) -> None:
    path = path_of(tmp_path, length)
    leave_dead_socket(path)

    async with running(api(path)):
        assert await greeting(path) == {"hello": "there"}


@pytest.mark.parametrize("backlog", [1, 0], ids=["free", "full"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_socket_that_somebody_listens_on_is_refused_by_name_and_stays(
    tmp_path: Path, length: int, backlog: int
) -> None:
    path = path_of(tmp_path, length)
    with (
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX) as caller,
        unix_address(path) as address,
    ):
        other.bind(address)
        other.listen(backlog)
        if not backlog:
            caller.connect(address)  # a backlog of 0 has one place

        error = refusal(path)

        assert error.message == f"cannot listen on {path}: another process listens there"
        if backlog:
            caller.connect(address)
        other.accept()[0].close()


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text("mine"), Path.mkdir, lambda path: path.symlink_to("nowhere")],
    ids=["file", "folder", "link"],
)
def test_what_is_no_socket_is_refused_by_name_and_stays(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "stackd.sock"
    make(path)
    before = stat.S_IFMT(path.lstat().st_mode)

    error = refusal(path)

    assert error.message == f"cannot listen on {path}: something that is no socket is there"
    assert stat.S_IFMT(path.lstat().st_mode) == before


async def test_nobody_else_could_ever_connect_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "stackd.sock"
    before = os.umask(0)
    try:
        async with running(api(path)):
            mode = path.stat().st_mode
    finally:
        os.umask(before)

    assert stat.S_IMODE(mode) == 0o600
