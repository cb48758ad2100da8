"""What connectors cost: an action by generic HTTP beside a bare aiohttp loop, and a large catalogue of them."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from stackd.cli.bench.children import BareServer, ready, token
from stackd.cli.bench.figures import Figure, clock, ms
from stackd.cli.bench.steps import ROUNDS, context, rate
from stackd.cli.demo import ChildDaemon
from stackd.core.events import EventBus
from stackd.core.json import dumps
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Catalogue, read_catalogue
from stackd.integrations.manager import IntegrationManager, Trace
from stackd.integrations.registry import Options, Registry
from stackd.integrations.tokens import MemoryTokens
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.sandbox.sandbox import UNKNOWN
from stackd.store.database import open_database

CONNECTORS: Final = 149  # the catalogue that stackd is made for, with its actions and triggers
ACTIONS: Final = 1_474
TRIGGERS: Final = 387
READS: Final = 5  # of the whole catalogue
ASKED: Final = 300  # times for what can run


async def measure_connectors(folder: Path, scale: float) -> list[Figure]:
    """Actions by generic HTTP, from parameters to output, and a catalogue as large as the origin's."""
    return [*await _generic(folder, scale), *await _catalogue(folder)]


async def _generic(folder: Path, scale: float) -> list[Figure]:
    """What a node does between its parameters and its output: checked, placed, signed, sent and judged."""
    account = Account("connection", "main", {"token": "t" * 40}, frozenset({"token"}))
    async with (
        ready(BareServer, folder / "far") as (far, session, _),
        open_database(folder / "stackd.db", clock=clock, events=EventBus()) as store,
        HttpClient(EgressPolicy(allow_loopback=True), clock=clock) as http,
    ):
        blobs = BlobFolder(
            folder / "blobs", store, clock=clock, limits=BlobLimits(one=2**20, all=2**20)
        )
        _write(folder / "echo" / "desk", _definition("desk", [_order()], [], base_url=far.url))
        registry = Registry(read_catalogue([folder / "echo"]), lambda: Options(generic=True))
        manager = IntegrationManager(registry, MemoryTokens(clock))

        async def action(items: Any) -> None:
            target = registry.target("desk", "order")
            tried = context(http, blobs)
            params = await manager.fitted(target, {"order": 12345, "items": items})
            output = await manager.execute(target, params, account, tried, Trace("desk", "order"))
            assert isinstance(output, dict)  # noqa: S101  # else nothing was measured
            assert output["order"] == 12345  # noqa: S101  # as above

        async def plain(items: Any) -> None:
            payload = {"order": 12345, "items": items}
            async with session.post(f"{far.url}/echo", json=payload) as answer:
                assert (await answer.json())["order"] == 12345  # noqa: S101  # as above

        figures: list[Figure] = []
        for name, size in (("generic", 20), ("generic_page", 1_000)):
            items = [{"sku": f"A-{n}", "count": n} for n in range(size)]
            count = int(500 * scale * 20 / (size + 80) + 100 * scale)
            one, other = partial(action, items), partial(plain, items)
            ours: list[float] = []
            bare: list[float] = []
            for ask in (one, other):  # connections stand, caches are warm
                await rate(ask, count)
            for _ in range(ROUNDS):
                for rates, ask in ((bare, other), (ours, one)):
                    rates.append(await rate(ask, count))
            ratios = [mine / theirs for mine, theirs in zip(ours, bare, strict=True)]
            middle = statistics.median
            figures += [
                Figure(f"connectors.{name}", middle(ours), "requests/s", floor=middle(bare)),
                Figure(f"connectors.{name}_ratio", middle(ratios), "of floor", 0.7, higher=True),
            ]
    return figures


async def _catalogue(folder: Path) -> list[Figure]:
    stock(folder / "stock")
    reads = []
    for _ in range(READS):
        began = clock.monotonic()
        _check(read_catalogue([folder / "stock"]))
        reads.append(clock.monotonic() - began)
    async with (
        ready(ChildDaemon, folder / "shipped") as (plain, _, _),
        ready(_Stocked, folder / "stocked") as (stocked, session, _),
    ):
        rss = [psutil.Process(one.pid).memory_info().rss / 2**20 for one in (plain, stocked)]
        headers = token(folder / "stocked")
        url = f"{stocked.url}/api/registry/capabilities"
        await _holds_all(session, url, headers)
        etag = await _settled(session, url, headers)
        whole = [(await _asked(session, url, headers, 200))[0] for _ in range(ASKED)]
        known = headers | {"If-None-Match": etag}
        same = [(await _asked(session, url, known, 304))[0] for _ in range(ASKED)]
    return [
        Figure("connectors.index", statistics.median(reads), "s", 1.0),
        Figure("connectors.index_rss", rss[1] - rss[0], "MiB", 12),
        Figure("connectors.capabilities_p50", *ms(whole, 0.5), 2),
        Figure("connectors.capabilities_same_p50", *ms(same, 0.5), 1),
    ]


async def _holds_all(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> None:
    async with session.get(url, headers=headers) as answer:
        text = await answer.text()
    assert f"app_{CONNECTORS - 1}" in text  # noqa: S101  # else nothing was measured
    assert text.count("act_") >= ACTIONS  # noqa: S101  # as above


async def _settled(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str:
    """The ETag, once how well code is isolated was found out: that is part of the answer."""
    while True:
        async with session.get(url, headers=headers) as answer:
            sandbox = (await answer.json())["environment"]["sandbox"]
            if sandbox["problem"] != UNKNOWN:
                return answer.headers["ETag"]
        await clock.sleep(0.02)


async def _asked(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str], status: int
) -> tuple[float, str]:
    """How long an answer took, and its ETag."""
    began = clock.monotonic()
    async with session.get(url, headers=headers, auto_decompress=False) as answer:
        await answer.read()
        assert answer.status == status, answer.status  # noqa: S101  # else nothing was measured
        return clock.monotonic() - began, answer.headers["ETag"]


class _Stocked(ChildDaemon):
    """A daemon with the large catalogue, all of which may run."""

    def start(self) -> None:
        stock(self.state / "connectors")
        (self.state / ".env").write_text("GENERIC_EXECUTOR_ENABLED=true\n", encoding="utf-8")
        super().start()


# -- the catalogue


def stock(folder: Path) -> None:
    """Write the large catalogue: each connector with its share of the actions and triggers."""
    for number in range(CONNECTORS):
        actions, triggers = (range(number, whole, CONNECTORS) for whole in (ACTIONS, TRIGGERS))
        name = f"app_{number:03}"
        _write(
            folder / name,
            _definition(
                name,
                [_operation(f"act_{one}") for one in actions],
                [{**_operation(f"seen_{one}"), "method": "GET"} for one in triggers],
                base_url=f"https://{name.replace('_', '-')}.example/v1",
            ),
        )


def _check(catalogue: Catalogue) -> None:
    counts = [
        sum(len(one.entries(kind)) for one in catalogue.connectors)
        for kind in ("action", "trigger")
    ]
    assert [len(catalogue.connectors), *counts] == [CONNECTORS, ACTIONS, TRIGGERS]  # noqa: S101  # as above


def _write(folder: Path, definition: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "definition.json").write_bytes(dumps(definition))


def _definition(
    name: str, actions: list[Any], triggers: list[Any], *, base_url: str
) -> dict[str, Any]:
    return {
        "id": name, "name": name.replace("_", " ").title(), "version": "1.0.0", "baseUrl": base_url,
        "description": "Things that are kept, found and told of by a service of somebody.",
        "authentication": {"type": "bearer"}, "headers": {"X-Api-Version": "2026-01-01"},
        "connection": {"fields": {"properties": {"token": {"type": "string", "x-secret": True}}}},
        "errors": [{"status": 409, "as": "conflict", "message": "{{ body.error }}"}],
        "actions": actions, "triggers": triggers,
    }  # fmt: skip


def _order() -> dict[str, Any]:
    """An action that takes and gives what the floor does."""
    line = {
        "type": "object",
        "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}},
    }
    members = {"order": {"type": "integer"}, "items": {"type": "array", "items": line}}
    schema = {"type": "object", "required": ["order"], "properties": members}
    return {
        "id": "order",
        "endpoint": "/echo",
        "method": "POST",
        "effect": "idempotent",
        "parameters": schema,
    }


def _operation(name: str) -> dict[str, Any]:
    """As long as those that are shipped, some three thousand characters."""
    members = {
        f"field_{n}": {
            "type": "string",
            "description": "What it is called, as people would.",
            "maxLength": 200,
        }
        for n in range(10)
    }
    schema = {"type": "object", "properties": members}
    return {
        "id": name, "title": name.replace("_", " ").capitalize(), "endpoint": f"/{name}/{{field_0}}",
        "description": "Does one of the many things that a service of somebody can be asked for.",
        "method": "POST", "parameters": {**schema, "required": ["field_0"]}, "outputSchema": schema,
        "sample": {f"field_{n}": "A text of some words, as an answer has it." for n in range(10)},
        "runtimes": ["http"], "fallback": None,
    }  # fmt: skip
