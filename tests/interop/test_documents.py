"""connexion over documents that services publish: it refuses a request that is not as the document says.

What it cannot judge: how credentials look (it is given documents without), and documents of OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from support.desk import Desk
from support.foreign import Foreign, needs_module, served
from support.judged import Imported, document, recorded, refused

from stackd.integrations.account import Account

NAMES = ("gotify.json", "petstore3.yaml", "docker-engine.yaml")
# Docker's document wants one type of a body in `consumes`, another in its header: nothing satisfies both.
BEYOND = {"docker-engine.yaml": {"image_build"}}

pytestmark = needs_module("connexion")


@contextmanager
def judge(name: str, tmp_path: Path) -> Iterator[Foreign]:
    with served("connexion", tmp_path / "log", str(document(name))) as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
async def test_every_operation_of_an_import_asks_as_its_document_says(
    desk: Desk, tmp_path: Path, name: str
) -> None:
    with judge(name, tmp_path) as server:
        imported = await anyio.to_thread.run_sync(Imported, name, server)
        account = Account("inline", fields={"baseUrl": imported.url})
        taken, told = await refused(desk, imported.requests(auth="none"), account)

    beyond = BEYOND.get(name, set())
    assert [one for one in told if one.partition(":")[0] not in beyond] == []
    assert taken == len(imported.made["actions"]) - len(beyond) > 0


async def test_the_shipped_gotify_asks_as_its_own_document_says(desk: Desk, tmp_path: Path) -> None:
    with judge("gotify.json", tmp_path) as server:
        requests = await recorded("gotify")
        fields = {"baseUrl": server.url, "clientToken": "C-made-up", "appToken": "A-made-up"}
        taken, told = await refused(desk, iter(requests), Account("inline", fields=fields))

    assert told == []
    assert taken == len(requests) > 0
