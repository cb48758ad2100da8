"""Requests and responses, as those who make them see them. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from yarl import URL

from stackd.http.tls import DEFAULT_TLS, Tls


@dataclass(frozen=True, slots=True)
class JsonBody:
    """`content`: a JSON text."""

    content: bytes


@dataclass(frozen=True, slots=True)
class FormBody:
    pairs: tuple[tuple[str, str], ...]


class Source(Protocol):
    """Content that is read while it is sent: a file, as a rule."""

    @property
    def size(self) -> int: ...

    async def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, at least one before the end."""


class Sink(Protocol):
    """Takes a body while it comes in.

    Attributes:
        max_bytes: it takes no more.
    """

    @property
    def max_bytes(self) -> int: ...

    async def write(self, chunk: bytes) -> None:
        """Take the next piece. What this raises ends the request and is raised there."""


SinkFor = Callable[[int, str | None], Sink | None]


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a multipart body; a plain field has no file name."""

    name: str
    content: bytes | Source
    filename: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class MultipartBody:
    parts: tuple[FilePart, ...]


@dataclass(frozen=True, slots=True)
class RawBody:
    """`content_type` None: the request's own headers name it."""

    content: bytes | Source
    content_type: str | None


Body = JsonBody | FormBody | MultipartBody | RawBody


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        timeout: seconds for all of it, redirects and body included.
        max_response_bytes: of the body, decompressed.
        fresh_connection: a connection of its own, and sent at most once. Without it a connection may be
            reused, and a method that HTTP calls idempotent is sent a second time if that one breaks.
        tls: how TLS is spoken; after a redirect to another origin, certificates are verified in any case.
        carries_to: where a redirect to another origin may take everything along, credentials too; a body goes
            nowhere else. None: all headers that could be secrets stay behind, a body is sent where it leads.
        grants_private: whether the host of `url` may be in the user's own network, whatever the rules say of that.
    """

    method: str
    url: str
    query: Mapping[str, str | list[str]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    timeout: float = 30.0
    follow_redirects: bool = True
    max_response_bytes: int = 1024 * 1024
    fresh_connection: bool = False
    tls: Tls = DEFAULT_TLS
    carries_to: Callable[[URL], bool] | None = None
    grants_private: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read in full. Header names are lower-case; repeated ones are joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    content_type: str | None
    charset: str | None
    redirects: int = 0
