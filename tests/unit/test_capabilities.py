"""What can run, as a client keeps it and tells of it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from stackd.client.capabilities import Capabilities, CapabilityCache
from stackd.client.wire import Answer
from stackd.core.errors import UnreachableError
from stackd.testing import FakeClock


def detail(operation: str, availability: str, runtime: str | None = None, **more: Any) -> Any:
    return {"id": operation, "availability": availability, "resolvedRuntime": runtime, **more}


OFF = {"severity": "error", "code": "runtime.fallback_disabled", "message": "generic HTTP is off"}
PAYLOAD = {
    "success": True,
    "capabilities": [
        {
            "app": "home_assistant",
            "normalizedAppId": "home-assistant",
            "actions": ["call_service", "fire", "restart"],
            "triggers": ["state_changed"],
            "actionDetails": {
                "call_service": detail("call_service", "native", "python"),
                "fire": detail("fire", "fallback", "http"),
                "restart": detail("restart", "unavailable", issues=[OFF]),
            },
            "triggerDetails": {"state_changed": detail("state_changed", "native", "python")},
        },
        {
            "app": "slack",
            "actions": ["post_message"],
            "actionDetails": {"post_message": detail("post_message", "unavailable", issues=[OFF])},
        },
    ],
}


class Daemon:
    """Answers as it is told, one question at a time."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.answers: list[Answer | Exception] = []
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.busy = 0

    async def fetch(self, etag: str | None) -> Answer:
        self.asked.append(etag)
        self.busy += 1
        assert self.busy == 1
        try:
            await self.may_answer.wait()
        finally:
            self.busy -= 1
        answer = self.answers.pop(0) if self.answers else Answer(200, PAYLOAD, '"1"')
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def cache(daemon: Daemon, clock: FakeClock) -> CapabilityCache:
    return CapabilityCache(daemon.fetch, clock=clock)


# -- kept


async def test_an_answer_is_good_for_a_minute_and_then_asked_for_anew(cache, daemon, clock):
    first = await cache.get()
    clock.advance(59.9)
    assert await cache.get() is first
    clock.advance(0.1)
    await cache.get()

    assert daemon.asked == [None, '"1"']


async def test_an_answer_that_has_not_changed_is_good_for_another_minute(cache, daemon, clock):
    first = await cache.get()
    daemon.answers = [Answer(304, None, '"1"')]
    clock.advance(60)

    assert await cache.get() is first
    clock.advance(59.9)
    assert await cache.get() is first
    assert daemon.asked == [None, '"1"']


async def test_many_who_ask_at_once_are_one_question(cache, daemon):
    found: list[Capabilities] = []

    async def ask() -> None:
        found.append(await cache.get())

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)

    assert len(daemon.asked) == 1
    assert len({id(one) for one in found}) == 1


async def test_who_asks_for_what_is_so_now_is_not_given_the_answer_to_an_earlier_question(
    cache, daemon
):
    daemon.may_answer = anyio.Event()
    old, new = Answer(200, {"capabilities": []}, '"0"'), Answer(200, PAYLOAD, '"1"')
    daemon.answers = [old, new]
    found: list[Capabilities] = []

    async def ask(*, refresh: bool) -> None:
        capabilities = await cache.get(refresh=refresh)
        if refresh:
            found.append(capabilities)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: ask(refresh=False))
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            tasks.start_soon(lambda: ask(refresh=True))
        await anyio.wait_all_tasks_blocked()
        daemon.may_answer.set()

    assert daemon.asked == [None, '"0"']  # one for all five
    assert all(one.check("home_assistant", "call_service").supported for one in found)


async def test_an_error_is_told_to_all_who_waited_and_leaves_nothing_at_hand(cache, daemon, clock):
    await cache.get()
    clock.advance(60)
    daemon.answers = [UnreachableError("gone")]
    told: list[str] = []

    async def ask() -> None:
        with pytest.raises(UnreachableError) as caught:
            await cache.get()
        told.append(caught.value.message)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)

    assert told == ["gone"] * 3
    assert (await cache.get()).check("home_assistant").supported
    assert daemon.asked == [None, '"1"', None]


async def test_a_question_that_is_cancelled_is_asked_by_the_next(cache, daemon):
    daemon.may_answer = anyio.Event()
    found: list[Capabilities] = []

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await cache.get(refresh=True))

    first = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, first)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        daemon.may_answer.set()

    assert len(daemon.asked) == 2
    assert len(found) == 1


async def test_what_is_handed_out_may_be_changed(cache):
    changed = (await cache.get()).as_json()
    changed["capabilities"].clear()

    assert (await cache.get()).as_json() == PAYLOAD
    assert (await cache.get()).check("slack", "post_message").code == "runtime.fallback_disabled"


# -- told


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("", "x", "action"), ("native", None, "")),
        (("home_assistant", "call_service", "action"), ("native", None, "")),
        ((" Home Assistant ", "callService", "action"), ("native", None, "")),
        (("home-assistant", "call.service", "action"), ("native", None, "")),
        (("home_assistant", "stateChanged", "trigger"), ("native", None, "")),
        (("home_assistant", "fire", "action"), ("fallback", None, "runtime.fallback")),
        (
            ("home_assistant", "restart", "action"),
            ("unavailable", "missing-operation", "runtime.fallback_disabled"),
        ),
        (
            ("home_assistant", "state_changed", "action"),
            ("unavailable", "missing-operation", "runtime.missing_capability"),
        ),
        (
            ("slack", "post_message", "action"),
            ("unavailable", "missing-app", "runtime.fallback_disabled"),
        ),
        (("home_assistant", None, "action"), ("native", None, "")),
        (("slack", "", "action"), ("unavailable", "missing-app", "runtime.missing_capability")),
        (("nobody", "x", "action"), ("unavailable", "missing-app", "runtime.missing_capability")),
        (("core", "anything", "trigger"), ("native", None, "")),
        (("Built In", "anything", "action"), ("native", None, "")),
        (("time", "anything", "action"), ("native", None, "")),
    ],
    ids=str,
)
def test_a_check_says_by_what_an_operation_runs_or_what_is_missing(asked, told):
    app, operation, kind = asked
    found = Capabilities(PAYLOAD).check(app, operation, kind)

    assert (found.mode, found.issue, found.code) == told
    assert found.supported is (told[0] != "unavailable")
    assert found.native_supported is (told[0] == "native")
    assert (found.warning is None) is (told[0] == "native")


def test_a_built_in_app_that_the_daemon_lists_is_as_it_says():
    found = Capabilities({"capabilities": [{"app": "time", "actions": ["delay"]}]})

    assert found.check("time", "delay").supported
    assert found.check("time", "sleep").issue == "missing-operation"
    assert found.check("core", "sleep").supported


@pytest.mark.parametrize(
    "payload",
    [
        [{"app": "desk", "actions": ["post"]}],
        [{"appId": "Desk", "actions": [{"id": "post"}]}],
        [{"id": "desk", "actions": [{"normalizedId": "post", "availability": "native"}]}],
        [{"normalizedAppId": "desk", "actions": {"post": {"availability": "native"}}}],
        {"capabilities": {"desk": {"actionDetails": {"post": {"availability": "native"}}}}},
        {"apps": [{"name": "desk", "actions": [{"operation": "post"}]}]},
        {"desk": {"actions": ["post"]}},
    ],
    ids=["ids", "appId", "id", "map of operations", "map of apps", "apps", "bare map"],
)
def test_a_payload_is_read_however_it_is_spelt(payload):
    found = Capabilities(payload)

    assert found.check("desk", "post").native_supported
    assert found.check("desk", "other").issue == "missing-operation"


@pytest.mark.parametrize(
    "payload",
    [
        None, 1, "x", [], {}, [1, None, {}, {"app": 3}], {"capabilities": None}, {"a": 1},
        [{"app": "desk", "actions": 5, "actionDetails": [[]]}],
        [{"app": "desk", "actions": [{"id": {}}, None, ""], "triggers": {"x": None}}],
        [{"app": "desk", "actionDetails": {"x": {"availability": [], "issues": 3}}}],
        [{"app": "desk", "actionDetails": {"x": {"issues": [3, {"code": None}]}}}],
    ],
    ids=str,
)  # fmt: skip
def test_a_payload_that_is_none_says_of_nothing_that_it_cannot_be_read(payload):
    assert Capabilities(payload).check("nobody", "post").issue == "missing-app"
    assert Capabilities(payload).check("core", "post").supported


def test_a_fallback_without_a_runtime_is_by_node():
    found = Capabilities([{"app": "a", "actionDetails": {"x": {"availability": "fallback"}}}])

    assert found.check("a", "x").fallback_runtime == "node"


def test_warnings_are_the_origins_and_come_once():
    found = Capabilities(PAYLOAD)
    used = [
        ("slack", "post_message"),
        ("home_assistant", "fire"),
        ("home_assistant", "call_service"),
        ("slack", "post_message"),
        ("home_assistant", "restart"),
        ("slak", "x"),
        ("home_assistant", "fyre"),
    ]

    assert found.warnings(used) == [
        "Slack is not enabled in Python: generic HTTP is off",
        "Home Assistant fire will run via generic HTTP fallback until it has a handler of its own",
        "Home Assistant restart is not enabled in Python: generic HTTP is off",
        "Slak is not enabled in Python: there is no connector 'slak'; did you mean 'slack'?",
        "Home Assistant fyre is not enabled in Python: home_assistant has no action 'fyre'; "
        "did you mean 'fire'?",
    ]
