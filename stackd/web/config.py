"""`/api/config`: the settings that this process runs with."""

from __future__ import annotations

from aiohttp import web

from stackd.client.models import ConfigView, SettingView
from stackd.core.json import dumps
from stackd.web.context import of


def add_to(app: web.Application) -> None:
    app.router.add_get("/api/config", show_config)


async def show_config(request: web.Request) -> web.Response:
    """Every setting, its value with secrets masked, and where it came from when the process began."""
    settings = of(request).settings
    view = ConfigView(
        settings=[SettingView(**row) for row in settings.report()],
        warnings=list(settings.warnings),
        problems=[],  # with one it would not run
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")
