"""Where pages begin: at the first there is, or where the parameters say; and what is only supposed of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.connectors import action
from support.desk import Desk
from support.outbound import client
from support.servers import Seen, answers, far_side, json_answer

from stackd.core.errors import NodeError

THINGS = list(range(7))
BY_PAGE = {
    "type": "page", "send": {"query": "page"}, "size": {"query": "per_page", "max": 2},
    "items": "body.items", "start": 1,
}  # fmt: skip
BY_OFFSET = {**BY_PAGE, "type": "offset", "send": {"query": "offset"}, "start": 0}
BY_CURSOR = {**BY_PAGE, "type": "cursor", "from": "body.next", "send": {"query": "cursor"}}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with client() as http:
        yield Desk(http)


def shelf(seen: Seen) -> bytes:
    """Seven things, by page, by offset or by cursor."""
    asked = {name: values[-1] for name, values in parse_qs(urlsplit(seen.target).query).items()}
    size = int(asked.get("per_page", 100))
    at = int(asked.get("offset", asked.get("cursor", (int(asked.get("page", 1)) - 1) * size)))
    rest = str(at + size) if at + size < len(THINGS) else None
    return json_answer(
        json.dumps({"items": THINGS[at : at + size], "next": rest, "total": len(THINGS)}).encode()
    )


async def walked(
    desk: Desk, paginate: dict[str, Any], params: dict[str, Any], **more: Any
) -> tuple[Any, list[str]]:
    """What came, and the queries that asked for it."""
    async with far_side(answers(shelf)) as far:
        output = await desk.ask(far.url(), action("a", paginate=paginate, **more), params)
        return output["items"], [urlsplit(seen.target).query for seen in far.requests]


@pytest.mark.parametrize(
    ("paginate", "params"),
    [(BY_PAGE, {"page": 2}), (BY_OFFSET, {"offset": "2"}), (BY_CURSOR, {"cursor": "2"})],
    ids=["page", "offset", "cursor"],
)
async def test_pages_begin_where_the_parameters_say(
    desk: Desk, paginate: dict[str, Any], params: dict[str, Any]
) -> None:
    items, _ = await walked(desk, paginate, params)

    assert items == THINGS[2:]


@pytest.mark.parametrize("paginate", [BY_PAGE, BY_OFFSET], ids=["page", "offset"])
async def test_what_comes_before_the_first_page_asked_for_counts_as_seen(
    desk: Desk, paginate: dict[str, Any]
) -> None:
    place = paginate["send"]["query"]
    items, queries = await walked(
        desk, {**paginate, "total": "body.total"}, {place: 3, "per_page": 2}
    )

    assert items == (THINGS[4:] if place == "page" else THINGS[3:])
    assert len(queries) == 2


async def test_a_size_that_the_parameters_name_holds_whatever_it_is_called(desk: Desk) -> None:
    schema = {"properties": {"perPage": {"x-in": "query", "x-as": "per_page"}}}
    items, queries = await walked(desk, BY_PAGE, {"perPage": 1}, parameters=schema)

    assert items == THINGS
    assert queries[0] == "per_page=1&page=1"


async def test_a_page_that_is_no_number_is_refused_and_nothing_is_sent(desk: Desk) -> None:
    with pytest.raises(NodeError, match="page must be a whole number") as caught:
        await walked(desk, BY_PAGE, {"page": "last"})

    assert (caught.value.code, desk.sent) == ("validation_error", 0)


async def test_paging_that_is_a_guess_is_not_acted_on(desk: Desk) -> None:
    async with far_side(answers(shelf)) as far:
        guess = action("a", paginate={**BY_PAGE, "x-guess": True})
        output = await desk.ask(far.url(), guess, {"page": 2, "per_page": 3})

        assert output == {"items": [3, 4, 5], "next": "6", "total": 7}
        assert far.request.target == "/x?page=2&per_page=3"
