"""`/api/config`: the settings that this process runs with."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import ConfigView, SettingView
from stackd.core.json import dumps
from stackd.web.context import of
from stackd.web.route import Route


async def show_config(request: web.Request) -> web.Response:
    """Every setting, its value with secrets masked, and where it came from when the process began."""
    settings = of(request).settings
    view = ConfigView(
        settings=[SettingView(**row) for row in settings.report()],
        warnings=list(settings.warnings),
        problems=[],  # with one it would not run
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


ROUTES: Final = (
    Route(
        "GET", "/api/config", show_config, Scope.ADMIN,
        "The settings this process runs with, secrets masked", {200: ConfigView},
    ),
)  # fmt: skip
