"""An app with OAuth on loopback, which rotates refresh tokens and ends a grant of which one is used twice (RFC 9700, 4.14)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import anyio

from support.servers import FarSide, Link, Seen, answer, far_side, json_answer

CLIENT = {"clientId": "client-1", "clientSecret": "client-secret-0123456789"}


@dataclass
class Grants:
    """What the app knows of its one grant.

    Attributes:
        asked: refresh tokens that were shown, in order.
        gate: holds back the answers of the token endpoint until it is set.
        breaks: the token endpoint closes the connection in place of an answer.
        also: what else its answers say.
    """

    far: FarSide | None = None
    serial: int = 1
    is_over: bool = False
    lasts: float = 3600.0
    asked: list[str] = field(default_factory=list)
    gate: anyio.Event | None = None
    breaks: bool = False
    also: dict[str, Any] = field(default_factory=dict)

    @property
    def access(self) -> str:
        return f"access-token-{self.serial:04}"

    @property
    def refresh(self) -> str:
        return f"refresh-token-{self.serial:04}"

    def url(self) -> str:
        assert self.far is not None
        return self.far.url()

    def calls(self) -> list[str]:
        """The tokens that the app itself was shown."""
        assert self.far is not None
        seen = [one for one in self.far.requests if one.target != "/token"]
        return [one.headers["authorization"].removeprefix("Bearer ") for one in seen]

    def definition(self, **auth: Any) -> dict[str, Any]:
        return {
            "id": "granted",
            "baseUrl": self.url(),
            "authentication": {"type": "oauth2", "tokenUrl": f"{self.url()}token", **auth},
            "testConnection": {"endpoint": "/x", "method": "GET", "label": "body.who"},
            "actions": [{"id": "look", "method": "GET", "endpoint": "/x"}],
        }

    async def behave(self, link: Link) -> None:
        while seen := await link.request():
            if seen.target != "/token":
                await link.send(self._app(seen))
                continue
            shown = parse_qs(seen.body.decode())
            self.asked.append(shown["refresh_token"][0])
            if self.gate is not None:
                await self.gate.wait()
            if self.breaks:
                return
            await link.send(self._token(shown))

    def _app(self, seen: Seen) -> bytes:
        if self.is_over or seen.headers["authorization"] != f"Bearer {self.access}":
            return answer(401, b"", ("WWW-Authenticate", 'Bearer error="invalid_token"'))
        return json_answer(b'{"who": "ada"}')

    def _token(self, shown: dict[str, list[str]]) -> bytes:
        is_client = shown.get("client_secret") == [CLIENT["clientSecret"]]
        if self.is_over or not is_client or shown["refresh_token"] != [self.refresh]:
            self.is_over = self.is_over or is_client  # used twice: all of it ends
            error = "invalid_grant" if is_client else "invalid_client"
            return json_answer(json.dumps({"error": error}).encode(), 400)
        self.serial += 1
        made = {
            "access_token": self.access, "refresh_token": self.refresh,
            "expires_in": self.lasts, "token_type": "Bearer", **self.also,
        }  # fmt: skip
        return json_answer(json.dumps(made).encode())


@asynccontextmanager
async def granting() -> AsyncIterator[Grants]:
    grants = Grants()
    async with far_side(grants.behave) as far:
        grants.far = far
        yield grants
