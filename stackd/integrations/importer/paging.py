"""What a document lets suppose of lists: how they are paged, and whether they can be polled. Only ever a guess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from stackd.core.json import Json
from stackd.integrations.importer.schemas import Schema
from stackd.integrations.importer.values import listing, mapping, number

_ENVELOPES: Final = (
    (), ("meta",), ("paging",), ("pagination",), ("page_info",), ("pageInfo",), ("response_metadata",),
    ("metadata",), ("links",), ("_links",), ("meta", "pagination"), ("paging", "cursors"), ("cursors",),
)  # fmt: skip
_NEXT_CURSOR: Final = (
    "next_cursor", "nextCursor", "next_page_token", "nextPageToken", "next_token", "nextToken", "NextToken",
    "continue", "end_cursor", "endCursor", "cursor", "offset", "after", "next", "marker",
)  # fmt: skip
_CURSOR_SENT: Final = (
    "cursor", "start_cursor", "startCursor", "page_token", "pageToken", "next_token", "nextToken", "NextToken",
    "continue", "page_cursor", "pageCursor", "next_cursor", "after", "page[after]", "page[cursor]", "marker", "offset",
)  # fmt: skip
_NEXT_URL: Final = (
    "next_page_uri", "next_page_url", "next_url", "nextLink", "@odata.nextLink", "odata.nextLink", "nextPage",
    "next_page", "next",
)  # fmt: skip
_HAS_MORE: Final = ("has_more", "hasMore", "has_next", "hasNext", "has_next_page", "hasNextPage")
_OFFSET: Final = ("offset", "skip", "$skip", "startAt", "start", "page[offset]")
_PAGE: Final = ("page", "page_number", "pageNumber", "page_no", "pageNo", "page[number]")
_SIZE: Final = (
    "limit", "per_page", "perPage", "page_size", "pageSize", "maxResults", "max_results", "page[size]",
    "page[limit]", "$top", "size", "count", "rows", "first",
)  # fmt: skip
_LISTS: Final = (
    "data",
    "items",
    "results",
    "records",
    "entries",
    "value",
    "values",
    "list",
    "objects",
)
_SINCE: Final = re.compile(
    r"(updated|modified|changed|created|start)?_?(since|after|from)|(updated|modified|created)_?(min|gte?|at_min)",
    re.IGNORECASE,
)
_UPDATED: Final = re.compile(
    r"(last_?)?(updated|modified|edited|changed)(_?(at|on|time|date))?", re.IGNORECASE
)
_CREATED: Final = re.compile(
    r"created(_?(at|on|time|date))?|timestamp|published_?at", re.IGNORECASE
)
_IDS: Final = ("id", "uuid", "guid", "key", "_id")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer. `schema`: of its body; `headers`: in lower case."""

    schema: Schema
    named: dict[str, Schema]
    headers: frozenset[str] = frozenset()

    def resolved(self, schema: Any) -> Schema:
        for _ in range(20):
            given = mapping(schema)
            if isinstance(given.get("$ref"), str):
                schema = self.named.get(given["$ref"].removeprefix("#/schemas/"), {})
            elif not mapping(given.get("properties")) and (branches := listing(given.get("anyOf"))):
                schema = branches[0]
            else:
                return given
        return {}

    def members(self, path: tuple[str, ...]) -> Schema:
        """The members of the map at `path` in the body."""
        found = self.resolved(self.schema)
        for part in path:
            found = self.resolved(mapping(found.get("properties")).get(part))
        return mapping(found.get("properties"))

    def has_type(self, schema: Any, kind: str) -> bool:
        given = self.resolved(schema).get("type")
        return kind == given or (isinstance(given, list) and kind in given)

    def list_at(self) -> tuple[str | None, Schema] | None:
        """Where the list is, None for the body itself, and what is in it; None if there is none, or several."""
        whole = self.resolved(self.schema)
        if self.has_type(whole, "array"):
            return None, self.resolved(whole.get("items"))
        lists = {name: one for name, one in self.members(()).items() if self.has_type(one, "array")}
        name = next(
            (one for one in _LISTS if one in lists), next(iter(lists)) if len(lists) == 1 else None
        )
        if name is None:
            return None
        return access(("body", name)), self.resolved(self.resolved(lists[name]).get("items"))


def access(path: tuple[str, ...]) -> str:
    """`path` as an expression."""
    first, *further = path
    return first + "".join(
        f".{part}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) else f"[{_quoted(part)}]"
        for part in further
    )


def _quoted(part: str) -> str:
    return "'" + part.replace("\\", "\\\\").replace("'", "\\'") + "'"


def paginate(operation: Schema, answer: Answer, parameters: Schema) -> Schema | None:
    """How the pages of an answer follow each other, if it looks like having some."""
    sent = _sent(parameters)
    size = _size(sent)
    items = answer.list_at()
    vendor = _vendor(operation, sent, items)
    if vendor is None and (items is None or not (sent or "link" in answer.headers)):
        return None
    found = vendor or _plain(answer, sent, size)
    if found is None:
        return None
    if items is not None and items[0] is not None:
        found.setdefault("items", items[0])
    if size is not None:
        found["size"] = size
    return {**found, "x-guess": True}


def _plain(answer: Answer, sent: Schema, size: Schema | None) -> Schema | None:
    if "link" in answer.headers:
        return {"type": "link"}
    cursor = _first(_CURSOR_SENT, sent)
    has_more = _find(answer, _HAS_MORE)
    after = _find(answer, _NEXT_CURSOR)
    if after is not None and cursor is not None and not _is_number(answer, after):
        found: Schema = {
            "type": "cursor",
            "from": access(("body", *after)),
            "send": _spot(cursor, sent),
        }
        return found | ({"hasMore": access(("body", *has_more))} if has_more else {})
    if (url := _find(answer, _NEXT_URL, texts_only=True)) is not None:
        return {"type": "next_url", "path": access(("body", *url))}
    if has_more is not None and "starting_after" in sent:
        return {
            "type": "last_id", "from": "item.id", "send": _spot("starting_after", sent),
            "hasMore": access(("body", *has_more)),
        }  # fmt: skip
    if (offset := _first(_OFFSET, sent)) is not None and size is not None:
        return {"type": "offset", "send": _spot(offset, sent)}
    if (page := _first(_PAGE, sent)) is not None:
        least = number(sent[page].get("minimum"))
        default = number(sent[page].get("default"))
        start = 0 if 0 in (least, default) else 1
        return {"type": "page", "send": _spot(page, sent), "start": start}
    return None


def _vendor(operation: Schema, sent: Schema, items: Any) -> Schema | None:
    """What `x-ms-pageable` and `x-speakeasy-pagination` say, where it is clear."""
    pageable = mapping(operation.get("x-ms-pageable"))
    if isinstance(pageable.get("nextLinkName"), str) and pageable["nextLinkName"]:
        name = pageable.get("itemName")
        found: Schema = {"type": "next_url", "path": access(("body", pageable["nextLinkName"]))}
        if items is None:
            found["items"] = access(("body", name if isinstance(name, str) else "value"))
        return found
    given = mapping(operation.get("x-speakeasy-pagination"))
    inputs = [mapping(one) for one in listing(given.get("inputs"))]
    names = {one.get("type"): one.get("name") for one in inputs if isinstance(one.get("name"), str)}
    if given.get("type") == "offsetLimit" and names.get("page") in sent:
        return {"type": "page", "send": _spot(str(names["page"]), sent), "start": 1}
    if given.get("type") == "offsetLimit" and names.get("offset") in sent:
        return {"type": "offset", "send": _spot(str(names["offset"]), sent)}
    return None


def _find(
    answer: Answer, names: tuple[str, ...], *, texts_only: bool = False
) -> tuple[str, ...] | None:
    for envelope in _ENVELOPES:
        members = answer.members(envelope)
        for name in names:
            one = members.get(name)
            if one is None or answer.has_type(one, "array") or answer.has_type(one, "object"):
                continue
            if not texts_only or answer.has_type(one, "string"):
                return (*envelope, name)
    return None


def _is_number(answer: Answer, path: tuple[str, ...]) -> bool:
    one = answer.members(path[:-1]).get(path[-1])
    return path[-1] == "offset" and (
        answer.has_type(one, "integer") or answer.has_type(one, "number")
    )


def _sent(parameters: Schema) -> Schema:
    """What goes into the query or the body, by its true name."""
    return {
        one.get("x-as", key): one
        for key, one in mapping(parameters.get("properties")).items()
        if mapping(one).get("x-in") in ("query", "body") and mapping(one).get("x-as") != "$"
    }


def _first(names: tuple[str, ...], sent: Schema) -> str | None:
    return next((name for name in names if name in sent), None)


def _spot(name: str, sent: Schema) -> Schema:
    return {sent[name]["x-in"]: name}


def _size(sent: Schema) -> Schema | None:
    name = _first(_SIZE, sent)
    if name is None:
        return None
    found: Schema = _spot(name, sent)
    for key, given in (
        ("max", sent[name].get("maximum")),
        ("default", sent[name].get("default", sent[name].get("x-default"))),
    ):
        value = number(given)
        if value is not None and value >= 1 and value == int(value):
            found[key] = int(value)
    return found


def poll(answer: Answer, parameters: Schema) -> Schema | None:
    """The parts of a trigger that polls a list, if its members have an id, a time, and one can ask for those since."""
    items = answer.list_at()
    if items is None:
        return None
    members = mapping(items[1].get("properties"))
    queries = {name: one for name, one in _sent(parameters).items() if one.get("x-in") == "query"}
    since = next(
        (name for name in queries if _SINCE.fullmatch(name.replace("[", "_").replace("]", ""))),
        None,
    )
    key = next((name for name in _IDS if name in members), None)
    if since is None or key is None or "array" in str(queries[since].get("type")):
        return None
    time = next((n for n in members if _UPDATED.fullmatch(n)), None) or next(
        (n for n in members if _CREATED.fullmatch(n)), None
    )
    if time is None:
        return None
    is_number = answer.has_type(members[time], "integer") or answer.has_type(
        members[time], "number"
    )
    watched = [access(("item", key))]
    if _UPDATED.fullmatch(time):
        watched.append(access(("item", time)))
    found: dict[str, Json] = {
        "items": items[0] or "body",
        "cursor": {
            "type": "time", "from": access(("item", time)), "send": {"query": since},
            "form": "epoch_s" if is_number else "iso8601", "start": "now", "overlap": "2m",
        },
        "dedupe": {"key": watched, "window": {"items": 5000, "age": "30d"}},
        "interval": {"default": "5m", "min": "60s"},
        "firstRun": "baseline",
    }  # fmt: skip
    return found
