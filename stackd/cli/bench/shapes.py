"""What peers are measured by: a webhook that sets some fields, and one that calls an API and replies with its answer.

The far side is the bare server; its floor is the same server called by nobody in between.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from stackd.cli.bench.children import BareServer, import_workflow, ready
from stackd.cli.bench.figures import Figure, clock, ms
from stackd.cli.bench.steps import rate
from stackd.cli.demo import ChildDaemon

ROUNDS: Final = 3
PAYLOAD: Final = {"order": 12345, "customer": {"email": "ada@example.org"}, "total": 99.5}


def _shape(name: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    hook = {
        "id": "hook",
        "type": "trigger.webhook.inbound",
        "params": {"path": name, "respond": "last"},
    }
    ids = ["hook", *(node["id"] for node in nodes)]
    edges = [{"from": a, "to": b} for a, b in pairwise(ids)]
    return {"id": name, "nodes": [hook, *nodes], "edges": edges}


def _set() -> dict[str, Any]:
    values = {"order": "{{ hook.body.order }}", "total": "{{ hook.body.total | round(2) }}"}
    return _shape(
        "set", {"id": "fields", "type": "transform.data.set", "params": {"values": values}}
    )


def _relay(url: str) -> dict[str, Any]:
    params = {"method": "POST", "url": f"{url}/echo", "json": "{{ hook.body }}"}
    call = {"id": "call", "type": "action.http.request", "effect": "keyed", "params": params}
    reply = {"id": "reply", "type": "transform.data.set", "params": {"values": "{{ call.body }}"}}
    return _shape("relay", call, reply)


async def measure_shapes(folder: Path, scale: float) -> list[Figure]:
    """Requests answered per second with the workflow's reply, and how long one takes, in turn with the floor."""
    count = int(500 * scale)
    times: dict[str, list[float]] = {"set": [], "relay": []}
    rates: dict[str, list[float]] = {"set": [], "relay": [], "bare": []}
    async with (
        ready(BareServer, folder / "far") as (far, session, _),
        ready(ChildDaemon, folder / "ours") as (daemon, _, _),
    ):
        await import_workflow(daemon, session, _set())
        await import_workflow(daemon, session, _relay(far.url))

        def asking(url: str, took: list[float] | None) -> Callable[[], Awaitable[None]]:
            async def ask() -> None:
                began = clock.monotonic()
                async with session.post(url, json=PAYLOAD) as answer:
                    answer.raise_for_status()
                    assert (await answer.json())["order"] == PAYLOAD["order"]  # noqa: S101  # else it was no reply
                if took is not None:
                    took.append(clock.monotonic() - began)

            return ask

        places = {
            "bare": asking(f"{far.url}/echo", None),
            "set": asking(f"{daemon.url}/api/webhooks/set", times["set"]),
            "relay": asking(f"{daemon.url}/api/webhooks/relay", times["relay"]),
        }
        for ask in places.values():  # connections stand, caches are warm
            await rate(ask, max(count // 5, 1))
        for taken in times.values():
            taken.clear()
        for _ in range(ROUNDS):
            for name, ask in places.items():
                rates[name].append(await rate(ask, count))
    bare = statistics.median(rates["bare"])
    return [
        Figure("shape.webhook_set", statistics.median(rates["set"]), "replies/s", floor=bare),
        Figure("shape.webhook_set_p50", *ms(times["set"], 0.5)),
        Figure(
            "shape.webhook_http_reply", statistics.median(rates["relay"]), "replies/s", floor=bare
        ),
        Figure("shape.webhook_http_reply_p50", *ms(times["relay"], 0.5)),
    ]
