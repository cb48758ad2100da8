"""Binary answers of connectors: kept as files with name and type, up to a size, and sent on as what they are."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.blobs import content_of, files
from support.connectors import action
from support.desk import DONE, Desk, shipped
from support.outbound import client, parts_of
from support.runs import World
from support.servers import answer, answers, answers_once, far_side

from stackd.core.errors import NodeError, StackdError
from stackd.integrations.account import Account
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.store.database import Database

PDF = b"%PDF-1.7 " + bytes(range(256)) * 400
MAX_BLOB = 256 * 1024
NAMED = (
    "Content-Disposition",
    "attachment; filename=\"bill.pdf\"; filename*=UTF-8''Rechnung%20%E2%82%AC.pdf",
)
TYPED = ("Content-Type", "application/pdf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def desk(database: Database, folder: Path) -> AsyncIterator[Desk]:
    world = World(database)
    limits = BlobLimits(MAX_BLOB, 8 * MAX_BLOB)
    async with client() as http:
        desk = Desk(http)
        desk.blobs = BlobFolder(folder, world.store, clock=world.clock, limits=limits)
        desk.max_bytes = 1_000  # of other answers
        yield desk


async def test_a_document_is_kept_with_its_name_and_type_and_sent_on_so(desk: Desk) -> None:
    download = await shipped("paperless_ngx", "download_document")
    upload = await shipped("paperless_ngx", "upload_document")
    async with far_side(answers_once(answer(200, PDF, TYPED, NAMED))) as far:
        me = Account("inline", fields={"baseUrl": far.url(), "token": "made-up"})
        document = await desk.run(download, {"document_id": 7}, me)
    async with far_side(answers(DONE)) as far:
        me = Account("inline", fields={"baseUrl": far.url(), "token": "made-up"})
        await desk.run(upload, {"document": document}, me)
        part = parts_of(far.request)[0]

    assert document == {
        "$blob": hashlib.sha256(PDF).hexdigest(), "bytes": len(PDF),
        "contentType": "application/pdf", "filename": "Rechnung €.pdf",
    }  # fmt: skip
    assert await content_of(desk.blobs, document["$blob"]) == PDF
    assert (part.get_filename(), part.get_content_type()) == ("Rechnung €.pdf", "application/pdf")
    assert part.get_payload(decode=True) == PDF


@pytest.mark.parametrize("wanted", ["auto", "blob"])
async def test_what_is_over_the_limit_of_blobs_fails_the_node_and_leaves_nothing(
    desk: Desk, folder: Path, wanted: str
) -> None:
    async with far_side(answers(answer(200, bytes(MAX_BLOB + 1), TYPED))) as far:
        with pytest.raises(StackdError) as caught:
            await desk.ask(far.url(), action("a", response=wanted))

    assert caught.value.code == "blob.too_large"
    assert files(folder) == []


async def test_a_refusal_with_a_binary_body_is_no_blob(desk: Desk, folder: Path) -> None:
    async with far_side(answers(answer(404, PDF[:500], TYPED))) as far:
        with pytest.raises(NodeError) as caught:
            await desk.ask(far.url(), action("a", response="blob"))

    assert caught.value.code == "not_found"
    assert files(folder) == []


async def test_text_is_a_blob_only_where_the_definition_says_so(desk: Desk) -> None:
    said = answer(200, b"a,b\n1,2\n", ("Content-Type", "text/csv"))
    async with far_side(answers(said)) as far:
        text = await desk.ask(far.url(), action("a"))
        blob = await desk.ask(far.url(), action("a", response="blob"))

    assert text == "a,b\n1,2\n"
    assert await content_of(desk.blobs, blob["$blob"]) == b"a,b\n1,2\n"
