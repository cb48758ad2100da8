"""How the next page is found, and when there is none. Pure: an answer in, what to ask next out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin

from stackd.core.errors import NodeError
from stackd.core.json import Json
from stackd.http.values import scalar
from stackd.integrations.definition import Pagination
from stackd.integrations.expressions import Reader

LISTS: Final = ("items", "results", "data", "records", "entries", "values", "list", "objects")

_LINK: Final = re.compile(r"\s*<([^>]*)>\s*")
_PARAM: Final = re.compile(
    r"""\s*;\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?\s*"""
)


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a Link header. `params`: by name in lower case, the first of each."""

    target: str
    params: Mapping[str, str]

    @property
    def rels(self) -> tuple[str, ...]:
        return tuple(self.params.get("rel", "").lower().split())


def links(header: str) -> Iterator[Link]:
    """The links of a Link header, or of several joined by commas (RFC 8288, 3 and B.2); what is none ends it."""
    at = 0
    while at < len(header):
        found = _LINK.match(header, at)
        if found is None:
            return
        at = found.end()
        params: dict[str, str] = {}
        while (param := _PARAM.match(header, at)) is not None:
            at = param.end()
            quoted = param[2]
            value = param[3] or "" if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            params.setdefault(param[1].lower(), value)
        yield Link(found[1].strip(), params)
        while at < len(header) and header[at] != ",":
            at += 1
        while at < len(header) and header[at] in ", \t":
            at += 1


def next_link(header: str) -> str | None:
    """The target of the link to the next page. One that is about something else (`anchor`) does not count."""
    return next(
        (one.target for one in links(header) if "next" in one.rels and "anchor" not in one.params),
        None,
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked next: another address, or the same with other values.

    Attributes:
        url: absolute; None: the address stays.
        query, headers, body: values that take the place of those sent before; `body` by dotted place.
    """

    url: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Json] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The same for the same page."""
        return repr((self.url, sorted(self.query.items()), sorted(self.headers.items()), self.body))


@dataclass(slots=True)
class Pages:
    """A walk through the pages of one operation.

    Attributes:
        size: how many a page is asked for, if it is.
        begin: the page or offset that the parameters name; None: the first there is.
        items: what came so far.
        reason: why it ended where there may be more; None at the true end.
        found: whether an answer had a list where it was looked for, if an empty one.
    """

    rules: Pagination
    size: int | None = None
    begin: int | None = None
    limit: int | None = None
    items: list[Json] = field(default_factory=list)
    count: int = 0
    reason: str | None = None
    found: bool = False
    _seen: set[str] = field(default_factory=set)
    _number: int | None = None

    def first(self) -> Turn:
        """What the first page is asked with besides the operation's own parameters."""
        query: dict[str, str] = {}
        body: dict[str, Json] = {}
        size = self.rules.size
        if size is not None and self.size is not None:
            if size.query is not None:
                query[size.query] = str(self.size)
            if size.body is not None:
                body[size.body] = self.size
        if self.rules.type in ("page", "offset"):
            self._number = self.rules.start if self.begin is None else self.begin
        if self._number is None:
            return Turn(query=query, body=body)
        return _with(self.rules, self._number, query, body)

    def take(self, url: str, reader: Reader) -> Turn | None:
        """Take in the answer that came from `url`; what to ask next, or None.

        Raises:
            NodeError: the far side leads in a circle.
        """
        page = listed_in(reader, self.rules.items)
        self.count += 1
        if page is None:
            return None
        self.found = True
        self.items += page
        if self._is_full():
            return None
        turn = self._next(url, page, reader)
        if turn is None:
            return None
        if turn.mark in self._seen:
            raise NodeError(
                f"page {self.count + 1} is one that was there already: the far side leads in a circle",
                kind="rejected",
                code="paging.loop",
                sent=True,
                answered=True,
            )
        self._seen.add(turn.mark)
        if self.count >= self.rules.max_pages:
            self.reason = f"after {self.rules.max_pages} pages (maxPages)"
            return None
        return turn

    def _is_full(self) -> bool:
        """Whether there are as many as may be; the rest is left out."""
        most = self.rules.max_items if self.limit is None else min(self.limit, self.rules.max_items)
        if len(self.items) < most:
            return False
        is_cut = len(self.items) > most
        del self.items[most:]
        if self.limit is None or self.limit > self.rules.max_items or is_cut:
            self.reason = f"after {most} items"
        return True

    def _next(self, url: str, page: list[Json], reader: Reader) -> Turn | None:
        rules = self.rules
        if rules.stop is not None and reader.truth(rules.stop):
            return None
        if rules.has_more is not None and not reader.truth(rules.has_more):
            return None
        if rules.stop_short and self.size is not None and len(page) < self.size:
            return None
        match rules.type:
            case "link":
                target = next_link(str(reader.headers.get("link", "")))
                return None if not target else Turn(url=urljoin(url, target))
            case "next_url":
                target = reader.value(rules.path)
                return (
                    Turn(url=urljoin(url, target)) if isinstance(target, str) and target else None
                )
            case "cursor":
                cursor = reader.value(rules.source)
                return None if cursor in (None, "", False) else _with(rules, cursor, {}, {})
            case "last_id":
                if not page:
                    return None
                last = reader.value(rules.source, item=page[-1])
                return None if last in (None, "") else _with(rules, last, {}, {})
            case "page":
                if not page:
                    return None
                self._number = (1 if self._number is None else self._number) + 1
                return self._unless_over(reader, _with(rules, self._number, {}, {}))
            case "offset":
                if not page:
                    return None
                self._number = (0 if self._number is None else self._number) + len(page)
                return self._unless_over(reader, _with(rules, self._number, {}, {}))
            case _:
                return None

    def _unless_over(self, reader: Reader, turn: Turn) -> Turn | None:
        """`turn`, unless as many came as there are by the far side's own count."""
        if self.rules.total is None:
            return turn
        total = reader.value(self.rules.total)
        if isinstance(total, str) and total.isdecimal():
            total = int(total)
        if isinstance(total, bool) or not isinstance(total, int):
            return turn
        return None if self._before + len(self.items) >= total else turn

    @property
    def _before(self) -> int:
        """How many there are before the first page that was asked for, as far as that is known."""
        if self.begin is None:
            return 0
        if self.rules.type == "offset":
            return self.begin - (self.rules.start or 0)
        first = 1 if self.rules.start is None else self.rules.start
        return (self.begin - first) * (self.size or 0)


def _with(rules: Pagination, value: Json, query: dict[str, str], body: dict[str, Json]) -> Turn:
    spot = rules.send
    assert spot is not None  # noqa: S101  # as its model has it
    if spot.header is not None:
        return Turn(query=query, headers={spot.header: scalar(value)}, body=body)
    if spot.body is not None:
        return Turn(query=query, body={**body, spot.body: value})
    return Turn(query={**query, str(spot.query): scalar(value)}, body=body)


def listed_in(reader: Reader, where: str | None) -> list[Json] | None:
    """The list in an answer: where it is said to be, the answer itself, or the one that goes by a usual name."""
    if where is not None:
        found = reader.value(where)
        return found if isinstance(found, list) else None
    body = reader.body
    if isinstance(body, list):
        return body
    if not isinstance(body, dict):
        return None
    lists: dict[str, list[Json]] = {
        name: value for name, value in body.items() if isinstance(value, list)
    }
    for name in LISTS:
        if name in lists:
            return lists[name]
    return next(iter(lists.values())) if len(lists) == 1 else None


def at(body: Json, place: str) -> Json:
    """What is at the dotted `place` in `body`; None if nothing is."""
    for key in place.split("."):
        body = body.get(key) if isinstance(body, dict) else None
    return body


def put(body: Json, place: str, value: Json) -> Json:
    """`body` with `value` at the dotted `place`; what is on the way there is made."""
    root: dict[str, Json] = dict(body) if isinstance(body, dict) else {}
    inside = root
    *way, last = place.split(".")
    for key in way:
        inner = inside.get(key)
        inside[key] = dict(inner) if isinstance(inner, dict) else {}
        inside = inside[key]
    inside[last] = value
    return root
