"""Feeds: RSS 2.0, Atom and RDF, as entries of one shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urljoin
from xml.parsers import expat

from stackd.core.aside import aside
from stackd.core.errors import NodeError
from stackd.integrations.manager import HandlerContext

LARGEST: Final = 4 * 1024 * 1024  # bytes of a feed; the answer has a limit of its own besides
MOST_ELEMENTS: Final = 100_000
DEEPEST: Final = 50
LONGEST: Final = 20_000  # characters of one text
FEEDS: Final = ("rss", "feed", "RDF")


async def fetch_feed(params: dict[str, Any], ctx: HandlerContext) -> Any:
    """The entries of a feed on the host of the connection, parsed beside the loop."""
    base = ctx.connection.get("baseUrl")
    if not base:
        raise NodeError(
            "the credential has no baseUrl, where feeds are", kind="invalid", code="credential.incomplete"
        )  # fmt: skip
    url = urljoin(str(base), params.get("url", ""))
    known = {"If-None-Match": params.get("etag"), "If-Modified-Since": params.get("last_modified")}
    headers = {name: value for name, value in known.items() if value}
    answer = await ctx.http.get(url, headers=headers)
    meta: dict[str, Any] = {
        "count": 0,
        "title": None,
        "etag": answer.headers.get("etag"),
        "lastModified": answer.headers.get("last-modified"),
        "notModified": answer.status == 304,
    }
    if answer.status == 304:
        meta["etag"] = meta["etag"] or params.get("etag")
        meta["lastModified"] = meta["lastModified"] or params.get("last_modified")
        return {"items": [], "meta": meta}
    response = answer.response
    if not response.body:
        raise _unreadable(f"what came is {response.content_type or 'empty'}")
    title, items = await aside(_read, response.body, response.charset, url, params["limit"])
    return {"items": items, "meta": {**meta, "count": len(items), "title": title}}


def _read(
    content: bytes, charset: str | None, url: str, limit: int
) -> tuple[str | None, list[dict[str, Any]]]:
    """Title and entries of the feed that came from `url`."""
    root = _parsed(content, charset)
    if root.name not in FEEDS:
        raise _unreadable(f"<{root.name[:40]}> is no feed")
    channel = root.first("channel") or root
    place = root if root.name != "rss" else channel
    found = [one for one in place.children if one.name in ("item", "entry")]
    return channel.text_of("title"), [_entry(one, url) for one in found[:limit]]


@dataclass(slots=True)
class _Element:
    """An element. `name`: without its namespace; `pieces`: its texts, those of what is in it too."""

    name: str
    attributes: dict[str, str]
    children: list[_Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def first(self, *names: str) -> _Element | None:
        """The first child by the first of these names that there is one of."""
        return next((one for name in names for one in self.children if one.name == name), None)

    def text_of(self, *names: str) -> str | None:
        found = (one.text for name in names for one in self.children if one.name == name)
        return next((text for text in found if text), None)

    @property
    def text(self) -> str | None:
        return "".join(self.pieces).strip()[:LONGEST] or None


def _parsed(content: bytes, charset: str | None) -> _Element:
    """The root of a document without a DOCTYPE, hence without entities of its own."""
    if len(content) > LARGEST:
        raise _unreadable(f"it is over {LARGEST:,} bytes")
    top = _Element("", {})
    path = [top]
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MOST_ELEMENTS or len(path) > DEEPEST:
            raise _unreadable(f"it has over {MOST_ELEMENTS:,} elements, or {DEEPEST} in each other")
        local = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        element = _Element(name.rpartition(" ")[2], local)
        path[-1].children.append(element)
        path.append(element)

    def text(piece: str) -> None:
        for element in path[1:]:
            element.pieces.append(piece)

    def refuse(*_: object) -> None:
        raise NodeError(
            "the feed has a DOCTYPE, which is not read", kind="rejected", code="rss.refused", answered=True
        )  # fmt: skip

    try:
        parser = expat.ParserCreate(charset, namespace_separator=" ")
        parser.StartElementHandler = start
        parser.EndElementHandler = lambda _: path.pop()
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = refuse
        parser.EntityDeclHandler = refuse
        parser.buffer_text = True
        parser.Parse(content, True)  # noqa: FBT003  # it takes no keyword
    except expat.ExpatError as error:
        words = expat.ErrorString(error.code)
        raise _unreadable(f"{words} (line {error.lineno})") from None
    except (LookupError, ValueError):
        raise _unreadable("its encoding is not known") from None
    return top.children[0]


def _entry(one: _Element, url: str) -> dict[str, Any]:
    link = next(_links(one), None)
    link = None if link is None else urljoin(url, link)
    author = one.first("author")
    own = one.attributes.get("about")
    title = one.text_of("title")
    return {
        "id": one.text_of("guid", "id") or own or link or title,
        "title": title,
        "link": link,
        "published": _instant(one.text_of("published", "pubDate", "date", "updated")),
        "summary": one.text_of("summary", "description", "content", "encoded"),
        "author": (author.text_of("name") or author.text if author else None)
        or one.text_of("creator"),
    }


def _links(one: _Element) -> Iterator[str]:
    """Where an entry leads, the surest first."""
    for link in one.children:
        if link.name == "link":
            rel = link.attributes.get("rel", "alternate")
            if "href" in link.attributes and rel == "alternate":
                yield link.attributes["href"]
            elif link.text:
                yield link.text
    guid = one.first("guid")
    if guid is not None and guid.text and guid.attributes.get("isPermaLink", "true") == "true":
        yield guid.text


def _instant(written: str | None) -> str | None:
    """RFC 3339 in UTC of a date as RSS or Atom writes it; None if it is none."""
    if written is None:
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = read(written)
            at = at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
        return at.isoformat().replace("+00:00", "Z")
    return None


def _unreadable(words: str) -> NodeError:
    return NodeError(
        f"the feed cannot be read: {words}", kind="rejected", code="rss.unreadable", answered=True
    )
