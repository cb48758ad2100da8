"""The forward proxy that requests go through, if there is one, and which targets are asked directly. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import unquote, urlsplit

from stackd.http.egress import matches

Exempt = str | IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Proxy:
    """`url`: without credentials, which are in `authorization`. `exempt`: domains and ranges it is not asked for."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    exempt: tuple[Exempt, ...] = ()

    @classmethod
    def of(cls, url: str, exempt: tuple[Exempt, ...] = ()) -> Proxy:
        """The proxy at `http://[user:password@]host:port`."""
        parts = urlsplit(url)
        bare = f"http://{parts.netloc.rpartition('@')[2]}"
        if parts.username is None:
            return cls(bare, None, exempt)
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(bare, f"Basic {base64.b64encode(pair.encode()).decode()}", exempt)

    def exempts_name(self, name: str) -> bool:
        return any(isinstance(rule, str) and matches(rule, name) for rule in self.exempt)

    def exempts_address(self, address: str) -> bool:
        ip = ip_address(address.partition("%")[0])
        return any(not isinstance(rule, str) and ip in rule for rule in self.exempt)
