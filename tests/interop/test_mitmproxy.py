"""mitmproxy, as a far side that does what goes wrong in networks: what is told of it, and how often it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.connectors import action
from support.desk import Desk
from support.foreign import Foreign, needs_program, running

from stackd.core.errors import NodeError

FAULTS = Path(__file__).parents[1] / "support" / "faults.py"

pytestmark = needs_program("mitmdump", "pip install mitmproxy, in an environment of its own")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    words = (
        "mitmdump",
        "--quiet",
        "--mode",
        "reverse:http://127.0.0.1:9",
        "--listen-host",
        "127.0.0.1",
    )
    folder = Path(tmp_path_factory.mktemp("mitmproxy"))
    words = (
        *words,
        "--listen-port",
        "{port}",
        "-s",
        str(FAULTS),
        "--set",
        f"confdir={folder}",
        "--set",
        "connection_strategy=lazy",
    )  # there is nobody behind it
    with running(folder / "log", *words) as server:
        yield server


async def asked(desk: Desk, proxy: Foreign, path: str) -> int:
    """How often the proxy was asked for `path`."""
    found = await desk.ask(proxy.url, action("count", "GET", f"/count{path}", response="text"))
    return int(found)


FAULTS_TOLD = {
    "/status/503/7": ("server_error", "service_unavailable", True),
    "/status/429/3": ("rate_limit_exceeded", "rate_limit", True),
    "/status/500": ("server_error", "server_error", False),
    "/status/418": ("unknown_error", "rejected", False),
}


@pytest.mark.parametrize("path", FAULTS_TOLD)
async def test_a_status_is_told_in_its_class_and_what_was_declined_may_come_again(
    desk: Desk, proxy: Foreign, path: str
) -> None:
    code, kind, declined = FAULTS_TOLD[path]

    with pytest.raises(NodeError, match="by the proxy") as caught:
        await desk.ask(proxy.url, action("a", "POST", path))

    error = caught.value
    assert (error.code, error.kind, error.declined) == (code, kind, declined)
    assert error.retry_after == (float(path.rpartition("/")[2]) if declined else None)


@pytest.mark.parametrize("effect", ["keyed", "unsafe"])
async def test_a_write_whose_connection_breaks_is_not_sent_again_by_itself(
    desk: Desk, proxy: Foreign, effect: str
) -> None:
    path = f"/reset/{effect}"

    with pytest.raises(NodeError) as caught:
        await desk.ask(proxy.url, action("a", "POST", path, effect=effect), {"n": 1})

    assert (caught.value.kind, caught.value.sent, caught.value.answered) == ("network", True, False)
    assert await asked(desk, proxy, path) == 1


async def test_headers_that_come_twice_are_both_there(desk: Desk, proxy: Foreign) -> None:
    operation = action("a", "GET", "/twice-named", select="headers['set-cookie']")

    assert await desk.ask(proxy.url, operation) == "a=1, b=2"


async def test_a_packed_body_is_unpacked(desk: Desk, proxy: Foreign) -> None:
    assert await desk.ask(proxy.url, action("a", "GET", "/packed")) == {"ok": True}


@pytest.mark.parametrize(
    ("path", "code"), [("/not-packed", "http.bad_content"), ("/half-json", "json.malformed")]
)
async def test_a_body_that_is_not_what_it_says_is_refused_and_why(
    desk: Desk, proxy: Foreign, path: str, code: str
) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(proxy.url, action("a", "GET", path))

    assert (caught.value.code, caught.value.sent) == (code, True)


async def test_who_does_not_answer_is_given_up_in_time(desk: Desk, proxy: Foreign) -> None:
    with pytest.raises(NodeError) as caught:
        await desk.ask(proxy.url, action("a", "GET", "/silent", timeout="0.3s"))

    assert (caught.value.kind, caught.value.code) == ("timeout", "http.timeout")
