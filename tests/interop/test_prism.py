"""Prism over a document of OpenAPI 3.1: it refuses a request that is not as the document says.

Of its versions 5.14.2: later ones need Node 24.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from support.desk import Desk
from support.foreign import Foreign, needs_program, running
from support.judged import Imported, document, recorded, refused

from stackd.integrations.account import Account

NAME = "notion.json"
TOKEN = "made-up-token-0123"
# The document has only `database_id` where Notion's reference has `data_source_id`.
BEYOND = ["create_page"]

pytestmark = needs_program("prism", "npm install @stoplight/prism-cli@5.14.2")


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    words = ("prism", "mock", "--errors", "-h", "127.0.0.1", "-p", "{port}", str(document(NAME)))
    with running(Path(tmp_path_factory.mktemp("prism")) / "log", *words) as server:
        yield server


async def test_every_operation_of_an_import_asks_as_its_document_says(
    desk: Desk, prism: Foreign
) -> None:
    imported = await anyio.to_thread.run_sync(Imported, NAME, prism)
    account = Account("inline", fields={"token": TOKEN})

    taken, told = await refused(desk, imported.requests(auth=None), account)

    assert told == []
    assert taken == len(imported.made["actions"]) > 0


async def test_the_shipped_notion_asks_as_its_own_document_says(desk: Desk, prism: Foreign) -> None:
    requests = await recorded("notion", at=prism.url)
    taken, told = await refused(
        desk, iter(requests), Account("inline", fields={"accessToken": TOKEN})
    )

    assert [one.partition(":")[0] for one in told] == BEYOND
    assert taken == len(requests) - len(BEYOND) > 0
