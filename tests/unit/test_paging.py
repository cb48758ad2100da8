"""How the next page is found, and what ends a walk through pages."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.core.errors import NodeError
from stackd.http.message import Response
from stackd.integrations.definition import Pagination
from stackd.integrations.expressions import Reader
from stackd.integrations.paging import Pages, links, next_link, put

URL = "https://api.example/things?page=1"


def reader(body: Any, **headers: str) -> Reader:
    answer = Response(200, headers, orjson.dumps(body), URL, "application/json", None)
    return Reader(answer, body, {}, now=0.0)


def walk(
    rules: dict[str, Any],
    *bodies: Any,
    size: int | None = None,
    begin: int | None = None,
    limit: int | None = None,
):
    """What is asked after each answer, the last of them None; and the walk."""
    pages = Pages(Pagination.model_validate(rules), size=size, begin=begin, limit=limit)
    turns: list[Any] = [pages.first()]
    for body in bodies:
        headers = body.pop("$headers", {}) if isinstance(body, dict) else {}
        turns.append(pages.take(URL, reader(body, **headers)))
        if turns[-1] is None:
            break
    return turns, pages


# -- Link headers (RFC 8288)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('<https://a.example/2>; rel="next"', "https://a.example/2"),
        ("<https://a.example/2>; rel=next", "https://a.example/2"),
        ('<https://a.example/2>; REL="NEXT"', "https://a.example/2"),
        (
            '<https://a.example/1>; rel="prev", <https://a.example/3>; rel="next"',
            "https://a.example/3",
        ),
        (
            '<https://a.example/3>; title="a, b; rel=\\"prev\\""; rel="last next"',
            "https://a.example/3",
        ),
        ('<?page=2&a=b,c>; rel="next"', "?page=2&a=b,c"),
        ('<https://a.example/2>; rel="nextish"', None),
        ('<https://a.example/2>; rel="prev"; rel="next"', None),
        ('<https://a.example/2>; rel="next"; anchor="#x"', None),
        ("nothing; rel=next", None),
        ("<https://a.example/2", None),
        ("", None),
        ('<https://a.example/2> ; rel = "next"', "https://a.example/2"),
    ],
)
def test_the_next_link_is_the_first_whose_relations_hold_next(header, expected):
    assert next_link(header) == expected


@given(st.text(alphabet='<>;,="rel next\\a', max_size=60))
def test_any_header_ends_in_links_or_none(header):
    assert all(isinstance(one.target, str) for one in links(header))


def test_a_link_may_be_relative_to_the_page_it_is_on():
    turns, _ = walk({"type": "link"}, {"items": [1], "$headers": {"link": '<?page=2>; rel="next"'}})

    assert turns[1].url == "https://api.example/things?page=2"


# -- each kind


def test_a_cursor_is_sent_until_there_is_none():
    rules = {
        "type": "cursor",
        "from": "body.meta.next",
        "send": {"query": "cursor"},
        "size": {"query": "limit", "max": 2},
    }
    turns, pages = walk(
        rules,
        {"items": [1, 2], "meta": {"next": "c2"}},
        {"items": [], "meta": {"next": "c3"}},  # an empty page is not the end
        {"items": [3], "meta": {"next": ""}},
        size=2,
    )

    assert [turn and dict(turn.query) for turn in turns] == [
        {"limit": "2"},
        {"cursor": "c2"},
        {"cursor": "c3"},
        None,
    ]
    assert pages.items == [1, 2, 3]
    assert pages.reason is None


def test_a_cursor_may_go_into_the_body():
    rules = {"type": "cursor", "from": "body.next_cursor", "send": {"body": "start_cursor"}}
    turns, _ = walk(rules, {"results": [1], "next_cursor": "x"})

    assert turns[1].body == {"start_cursor": "x"}


def test_pages_are_counted_from_their_start_to_the_first_empty_one():
    rules = {"type": "page", "send": {"query": "page"}, "start": 0}
    turns, pages = walk(rules, [1], [2], [])

    assert [turn and turn.query["page"] for turn in turns] == ["0", "1", "2", None]
    assert pages.items == [1, 2]


def test_an_offset_grows_by_what_came_and_ends_at_the_total():
    rules = {"type": "offset", "send": {"query": "offset"}, "total": "body.total"}
    turns, _ = walk(rules, {"items": [1, 2], "total": 3}, {"items": [3], "total": 3})

    assert [turn and dict(turn.query) for turn in turns] == [{}, {"offset": "2"}, None]


def test_the_last_id_is_sent_while_there_is_more():
    rules = {
        "type": "last_id",
        "from": "item.id",
        "send": {"query": "starting_after"},
        "hasMore": "body.has_more",
    }
    turns, _ = walk(
        rules,
        {"data": [{"id": "a"}, {"id": "b"}], "has_more": True},
        {"data": [{"id": "c"}], "has_more": False},
    )

    assert [turn and dict(turn.query) for turn in turns] == [{}, {"starting_after": "b"}, None]


def test_a_next_url_is_followed_until_it_is_null():
    rules = {"type": "next_url", "path": "body.next"}
    turns, _ = walk(
        rules, {"results": [1], "next": "/things?after=1"}, {"results": [2], "next": None}
    )

    assert turns[1].url == "https://api.example/things?after=1"
    assert turns[2] is None


def test_a_short_page_is_the_last_only_where_that_is_said():
    rules = {"type": "page", "send": {"query": "page"}, "size": {"query": "n", "default": 2}}
    assert walk(rules, [1], size=2)[0][1] is not None
    assert walk({**rules, "stopShort": True}, [1], size=2)[0][1] is None


# -- guards


@pytest.mark.parametrize(
    ("rules", "body"),
    [
        (
            {"type": "cursor", "from": "body.next", "send": {"query": "c"}},
            {"items": [1], "next": "same"},
        ),
        ({"type": "next_url", "path": "body.next"}, {"items": [1], "next": "/again"}),
        ({"type": "last_id", "from": "item", "send": {"query": "after"}}, {"items": [1]}),
    ],
)
def test_a_far_side_that_leads_in_a_circle_is_told_of(rules, body):
    with pytest.raises(NodeError, match="circle") as caught:
        walk(rules, dict(body), dict(body), dict(body))

    assert caught.value.code == "paging.loop"


def test_a_walk_ends_after_so_many_pages_or_items_and_says_so():
    rules = {"type": "page", "send": {"query": "page"}, "maxPages": 2}
    _, pages = walk(rules, [1], [2], [3])
    assert pages.items == [1, 2]
    assert pages.reason == "after 2 pages (maxPages)"

    _, pages = walk({**rules, "maxItems": 3}, [1, 2], [3, 4])
    assert pages.items == [1, 2, 3]
    assert pages.reason == "after 3 items"


def test_what_is_no_list_ends_the_walk():
    turns, pages = walk({"type": "page", "send": {"query": "page"}}, {"error": "x"})

    assert turns[1] is None
    assert pages.items == []


def test_a_value_is_put_at_its_place_without_changing_what_was_there():
    before = {"a": {"b": 1}, "c": 2}

    assert put(before, "a.d.e", 3) == {"a": {"b": 1, "d": {"e": 3}}, "c": 2}
    assert before == {"a": {"b": 1}, "c": 2}
