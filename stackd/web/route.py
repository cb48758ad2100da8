"""What a route is: who may call it, what it takes and what it gives. The application and its description come of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import Model

Schema = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter."""

    name: str
    schema: Schema
    about: str


@dataclass(frozen=True, slots=True)
class Content:
    """A body in one of some media types; JSON that a model describes is that model alone."""

    types: tuple[str, ...]
    schema: Schema | type[Model] = field(default_factory=dict)


Shape = type[Model] | Content | None


def contents_of(shape: Shape | tuple[Content, ...]) -> tuple[Content, ...]:
    """What a body may be."""
    match shape:
        case None:
            return ()
        case tuple():
            return shape
        case Content():
            return (shape,)
        case model:
            return (Content((JSON,), model),)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One route.

    Attributes:
        method: `*` stands for all.
        path: as aiohttp writes it.
        needs: the scope its callers must hold; None: anybody may call it.
        about: what it does, in a line.
        takes: its body; None: it has none.
        gives: its answers that are no problems, by status.
        query: its query parameters.
        headers: the request headers that it minds.
        takes_nothing: whether the body may be left out.
    """

    method: str
    path: str
    handler: Handler
    needs: Scope | None
    about: str
    gives: Mapping[int, Shape | tuple[Content, ...]]
    takes: Shape = None
    query: tuple[Query, ...] = ()
    headers: tuple[Query, ...] = ()
    takes_nothing: bool = False


LIMIT: Final = Query(
    "limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "how many at most"
)
CURSOR: Final = Query("cursor", {"type": "string"}, "nextCursor of the page before")
IDEMPOTENCY_KEY: Final = Query(
    "Idempotency-Key",
    {"type": "string", "maxLength": 255},
    "the same key starts one execution, for as long as dedupe keys are kept",
)
