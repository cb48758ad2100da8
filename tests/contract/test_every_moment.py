"""Loops and calls, with the process dying, draining or cancelling at every moment of their lives in turn."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import pytest
from support.mortal import Blow, Life
from support.runs import World

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database


def http(node_id: str, path: str, effect: str, more: str = "") -> str:
    return (
        f"{{id: {node_id}, type: action.http.request, effect: {effect}{more}, "
        f"params: {{method: POST, url: 'http://far.example/{path}'}}}}"
    )


def put(node_id: str, value: str) -> str:
    return f"{{id: {node_id}, type: transform.data.set, params: {{values: {{v: {value}}}}}}}"


def loop(
    node_id: str, items: str, *body: str, edges: str = "", more: str = "", at_once: int = 2
) -> str:
    nodes = ", ".join(body)
    return (
        f"{{id: {node_id}, type: logic.foreach{more}, params: {{items: {items}, concurrency: {at_once}}}, "
        f"nodes: [{nodes}], edges: [{edges}]}}"
    )


def flow(*nodes: str, edges: str, name: str = "flow") -> str:
    listed = "".join(f"  - {node}\n" for node in nodes)
    return f"id: {name}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n{listed}edges: [{edges}]\n"


def run_of(node_id: str, workflow: str, more: str = "", extra: str = "") -> str:
    return f"{{id: {node_id}, type: action.workflow.run{extra}, params: {{workflowId: {workflow}{more}}}}}"


DELAY = "{id: wait, type: action.time.delay, params: {delaySeconds: 5}}"
TO_EACH = "{from: start, to: each}"
CHILD = flow(
    http("post", "child/{{ execution.id }}", "keyed"), edges="{from: start, to: post}", name="child"
)
BAD_CHILD = flow(put("a", "'{{ 1 // 0 }}'"), edges="{from: start, to: a}", name="bad")

FLOWS = {
    "keyed": flow(
        loop("each", "[1, 2, 3]", http("post", "{{ index }}", "keyed"), put("b", "'{{ uuid() }}'"),
             edges="{from: post, to: b}"),
        edges=TO_EACH,
    ),
    "idempotent with waits": flow(
        loop("each", "[1, 2, 3, 4]", http("post", "{{ index }}", "idempotent"), DELAY,
             http("last", "{{ index }}/last", "idempotent"),
             edges="{from: post, to: wait}, {from: wait, to: last}"),
        edges=TO_EACH,
    ),
    "unsafe": flow(
        loop("each", "[1, 2, 3]", http("post", "{{ index }}", "unsafe")),
        http("after", "after", "unsafe"),
        edges=f"{TO_EACH}, {{from: each, to: after}}",
    ),
    "unsafe beside a failing one": flow(
        loop("each", "[ok, bad, ok]", http("post", "{{ item }}/{{ index }}", "unsafe"),
             more=", onError: continue"),
        http("after", "after", "unsafe"),
        edges=f"{TO_EACH}, {{from: each, to: after}}",
    ),
    "two starts, one fails at once": flow(
        loop("each", "[1, 2]", http("post", "{{ index }}", "unsafe"), put("a", "'{{ 1 // 0 }}'"),
             more=", onError: route"),
        http("after", "after", "keyed"),
        edges=f"{TO_EACH}, {{from: each, to: after, on: error}}",
    ),
    "nested, the inner one fails": flow(
        loop("each", "[ok, bad]",
             loop("inner", "['{{ item }}', ok]", http("post", "{{ item }}/{{ index }}", "unsafe"),
                  more=", onError: continue", at_once=1),
             http("last", "{{ index }}/last", "keyed"), edges="{from: inner, to: last}"),
        edges=TO_EACH,
    ),
    "nested, the outer one fails": flow(
        loop("each", "[1, 2]",
             loop("inner", "[ok, ok]", http("post", "{{ item }}/{{ index }}", "unsafe"), DELAY),
             http("check", "{{ (\"bad\" if index == 1 else \"ok\") }}", "idempotent"),
             more=", onError: continue"),
        http("after", "after", "keyed"),
        edges=f"{TO_EACH}, {{from: each, to: after}}",
    ),
    "beside a failing branch": flow(
        loop("each", "[1, 2, 3]", http("post", "{{ index }}", "unsafe"), at_once=3),
        http("check", "bad", "idempotent"),
        edges=f"{TO_EACH}, {{from: start, to: check}}",
    ),
    "calls": flow(
        loop("each", "[1, 2, 3]", run_of("call", "child", ", input: '{{ item }}'"),
             http("post", "{{ index }}", "keyed"), edges="{from: call, to: post}"),
        edges=TO_EACH,
    ),
    "calls that nobody waits for": flow(
        loop("each", "[1, 2]", run_of("call", "child", ", input: '{{ item }}', wait: false")),
        edges=TO_EACH,
    ),
    "calls beside a failing one": flow(
        loop("each", "[child, bad, child]", run_of("call", "'{{ item }}'", ", input: '{{ index }}'"),
             DELAY, edges="{from: call, to: wait}", more=", onError: continue"),
        http("after", "after", "unsafe"),
        edges=f"{TO_EACH}, {{from: each, to: after}}",
    ),
}  # fmt: skip


async def struck(folder: Path, name: str, blow: Blow, moment: int | None) -> tuple[str, bool]:
    """How an execution ends that a blow has struck at that moment, and whether it lived so long; all is looked at."""
    bus = EventBus()
    async with open_database(folder / f"{moment}.db", clock=SystemClock(), events=bus) as database:
        world = World(database)
        life = Life(world)
        for text in (CHILD, BAD_CHILD):
            await world.load(text)
        execution = await world.start(await world.load(FLOWS[name]))
        lived_so_long = await life.through(execution, blow, moment)
        for path, keys in life.far_side.keys.items():
            assert len(keys) == 1, f"{path} came with {keys}"
        return (await life.states())[execution], lived_so_long


async def check_moments(folder: Path, name: str, blow: Blow, *, step: int = 1) -> None:
    """Strike at every moment, or at every so many of them."""
    expected, _ = await struck(folder, name, blow, None)
    ends = {expected, "cancelled"} if blow == "cancel" else {expected}
    first = zlib.crc32(name.encode()) % step
    for moment in itertools.count(first, step):
        status, lived_so_long = await struck(folder, name, blow, moment)
        if not lived_so_long:
            return
        assert status in ends, f"struck at {moment}: {status}, not {expected}"


@pytest.mark.parametrize(("blow", "step"), [("death", 6), ("drain", 19), ("cancel", 29)])
@pytest.mark.parametrize("name", FLOWS)
async def test_no_moment_loses_doubles_or_sticks(tmp_path, name, blow, step):
    await check_moments(tmp_path, name, blow, step=step)


@pytest.mark.parametrize("name", ["unsafe", "unsafe beside a failing one"])
async def test_not_one_death_repeats_or_hides_what_is_unsafe(tmp_path, name):
    await check_moments(tmp_path, name, "death")
