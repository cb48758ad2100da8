"""`/api/config`: the settings that this process runs with, and to read them again."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    ChangeView,
    ConfigView,
    OverruledView,
    ReloadView,
    SettingView,
)
from stackd.core.errors import SettingsError
from stackd.core.json import dumps
from stackd.settings import Change
from stackd.web import problem
from stackd.web.context import of
from stackd.web.route import Route


async def show_config(request: web.Request) -> web.Response:
    """Every setting, its value with secrets masked, and where it came from when it was last read."""
    settings = of(request).reloader.settings
    view = ConfigView(
        settings=[SettingView(**row) for row in settings.report()],
        warnings=list(settings.warnings),
        problems=[],  # with one it would not run
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


async def reload_config(request: web.Request) -> web.Response:
    """Read the settings again. What cannot be used changes nothing, and all that is wrong with it is told."""
    try:
        found = await of(request).reloader.reload()
    except SettingsError as error:
        return problem.problem(
            422,
            error.code,
            "the settings cannot be used; those from before stay",
            extra={"problems": error.problems},
        )
    view = ReloadView(
        changed=_views(found.changed),
        needs_restart=_views(found.waiting),
        overruled=[
            OverruledView(name=name, source=source)
            for name, source in found.settings.overruled.items()
        ],
        warnings=list(found.settings.warnings),
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


def _views(changes: tuple[Change, ...]) -> list[ChangeView]:
    return [ChangeView(name=one.name, before=one.before, after=one.after) for one in changes]


ROUTES: Final = (
    Route(
        "GET", "/api/config", show_config, Scope.ADMIN,
        "The settings this process runs with, secrets masked", {200: ConfigView},
    ),
    Route(
        "POST", "/api/config/reload", reload_config, Scope.ADMIN,
        "Read the settings again, and apply those that take no restart", {200: ReloadView},
    ),
)  # fmt: skip
