"""Where the webhooks of workflows answer."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from stackd.client.models import WebhookAddress
from stackd.web.context import of

_HOST: Final = re.compile(r"(?:[\w.-]{1,255}|\[[0-9a-fA-F:.]{2,45}\])(?::\d{1,5})?", re.ASCII)


def addresses(request: web.Request, webhooks: list[tuple[str, str]]) -> list[WebhookAddress]:
    """The URLs of `webhooks`, (node id, path) each, as the caller reaches them."""
    settings = of(request).settings
    host = request.host  # as its caller names this machine, if that is a name
    if host == "localhost" or _HOST.fullmatch(host) is None:
        host = f"{settings.host}:{settings.port}"
    base = settings.public_url or f"http://{host}"
    return [WebhookAddress(node=node, url=f"{base}/api/webhooks/{path}") for node, path in webhooks]
