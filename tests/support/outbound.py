"""Requests to make, and how to tell what became of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError
from stackd.http.client import HttpClient
from stackd.http.egress import EgressPolicy
from stackd.http.message import JsonBody, Request, Response
from support.servers import (
    LOOPBACK,
    Names,
    Seen,
    answer,
    answers,
    far_side,
)

MIB = 1024 * 1024
OK = answer(200, b"ok")
EMPTY = answer(200)
EVERY_METHOD = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH")


def get(url: str, **more: Any) -> Request:
    return Request("GET", url, **more)


def post(url: str, content: bytes = b"1", **more: Any) -> Request:
    return Request("POST", url, body=JsonBody(content), **more)


@dataclass
class Tried:
    """How one request ended, and how often its sender was told that it leaves."""

    response: Response | None = None
    error: NodeError | None = None
    told: int = 0

    @property
    def failure(self) -> tuple[str, str, bool, bool]:
        """(kind, code, sent, answered) of the error there must be; `sent` is what the sender was told."""
        assert self.error is not None, self.response
        assert (self.told == 1) is self.error.sent
        return self.error.kind, self.error.code, self.error.sent, self.error.answered


async def attempt(http: HttpClient, request: Request) -> Tried:
    tried = Tried()

    def told() -> None:
        tried.told += 1

    try:
        tried.response = await http.request(request, on_sent=told)
    except NodeError as error:
        tried.error = error
    assert tried.told <= 1
    return tried


@asynccontextmanager
async def client(
    *, policy: EgressPolicy = LOOPBACK, names: Names | None = None, **more: Any
) -> AsyncIterator[HttpClient]:
    async with HttpClient(policy, clock=SystemClock(), resolver=names, **more) as opened:
        yield opened


async def seen_of(http: HttpClient, path: str = "/", **request: Any) -> Seen:
    """What a far side gets of a request."""
    async with far_side(answers(OK)) as far:
        await http.request(Request(**{"method": "POST", "url": far.url(path), **request}))
        return far.request


def parts_of(seen: Seen) -> list[Message]:
    head = f"Content-Type: {seen.headers['content-type']}\r\n\r\n".encode()
    return BytesParser(policy=HTTP).parsebytes(head + seen.body).get_payload()  # type: ignore[return-value]
