"""The settings of the process as they are now, and how they are read again while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog

from stackd.core.aside import Aside
from stackd.core.errors import SettingsError
from stackd.settings import Flags, Reload, Settings, read_again, reloaded
from stackd.supervisor.herald import Herald

READ_WITHIN: Final = 5.0  # seconds; a disk may never answer, and whoever asked waits

_log = structlog.get_logger(__name__)


class Reloader:
    """Swaps the settings for others, all that may change of them at once.

    Args:
        apply: told of the new flags, if there are any.
        reread: reads again what else is files of the operator's, whenever the settings were.
        herald: tells the service manager of each reload, whatever comes of it.
    """

    def __init__(
        self,
        settings: Settings,
        role: str,
        *,
        apply: Callable[[Flags], Awaitable[None]],
        reread: Callable[[Settings], Awaitable[None]],
        herald: Herald,
    ) -> None:
        self.settings = settings
        self._role = role
        self._apply = apply
        self._reread = reread
        self._herald = herald
        self._turn = anyio.Lock()

    async def reload(self) -> Reload:
        """Read the settings again; those that can be used are the process's own afterwards, as far as they may.

        Raises:
            SettingsError: they cannot be used. Those from before stay.
        """
        async with self._turn:
            with self._herald.reloading():
                try:
                    fresh = await self._read()
                except SettingsError as error:
                    _log.error("settings not reloaded", problems=error.problems)
                    self._herald.remark = "settings not reloaded, they cannot be used"
                    raise
                found = reloaded(self.settings, fresh)
                if found.changed:
                    await self._apply(Flags.of(found.settings))
                self.settings = found.settings
                await self._reread(found.settings)
                waiting = [change.name for change in found.waiting]
                self._herald.remark = f"restart to apply {', '.join(waiting)}" if waiting else None
                _log.info(
                    "settings reloaded",
                    changed=[change.name for change in found.changed],
                    needs_restart=waiting,
                    overruled=dict(found.settings.overruled),
                )
            return found

    async def _read(self) -> Settings:
        # Each reload reads anew: one that hangs hinders no later one, nor the end of the process.
        reading = Aside(lambda: read_again(self.settings, self._role))
        with anyio.move_on_after(READ_WITHIN):
            return await reading.result()
        raise SettingsError([f"the settings could not be read within {READ_WITHIN:g} s"])
