"""`stackd credentials reset`: works on the store itself, which no daemon can open once its master key is lost."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import anyio

from stackd.cli.context import confirm, print_json, say
from stackd.core.clock import SystemClock
from stackd.core.errors import NotFoundError, SettingsError
from stackd.core.events import EventBus
from stackd.core.locks import LOCKED_ROLES, role_locks
from stackd.core.text import plain
from stackd.runtime.backup import Place, refuse_living
from stackd.settings import load_settings, store_places, with_dev_secrets
from stackd.store.copies import snapshot
from stackd.store.database import open_database
from stackd.vault import lost
from stackd.vault.keyring import Keyring
from stackd.vault.lost import Lost


def reset(*, yes: bool, as_json: bool) -> None:
    """Drop what the master key there is now does not open, and let it be the store's.

    Raises:
        NotFoundError: there is no store.
        LockedError: a process uses it; names it.
        SettingsError: there is no usable key.
    """
    place = _place()
    key = with_dev_secrets(load_settings("dev")).encryption_master_key
    if not key:  # one that is made up here would let everything be dropped
        raise SettingsError(
            [
                "ENCRYPTION_MASTER_KEY is missing: give the one that the store is to have from now on, as its "
                "daemon gets it (`dev` makes its own at a start)"
            ]
        )
    ring = Keyring(key)
    with role_locks(place.state_dir, sorted(LOCKED_ROLES)):
        refuse_living(place.database)
        with snapshot(place.database) as seen:
            found = lost.lost_with(seen.tx, ring)
        if found.keys:
            confirm(
                f"{_words(found)} of {plain(str(place.database))} cannot be opened with the ENCRYPTION_MASTER_KEY "
                "there is now; drop them for good? If the former key is anywhere, restore that instead",
                yes=yes,
            )
            found = anyio.run(partial(_dropped, place, ring))
    if as_json:
        print_json(asdict(found))
    elif found.keys:
        say(f"dropped: {_words(found)}; everything else is as it was")
        for name in found.credentials:
            say(f"  add anew: stackd credentials add {name}")
        for name in found.workflows:
            say(f"  import anew, with its credentials: {name}")
    else:
        say("everything opens with the ENCRYPTION_MASTER_KEY there is; nothing was changed")


def _place() -> Place:
    """The store that there is."""
    for place in store_places():
        if place[1].exists():
            return Place(*place)
    raise NotFoundError(
        "there is no store",
        code="store.not_found",
        hint="set STACKD_STATE_DIR to the state directory of the daemon",
    )


async def _dropped(place: Place, ring: Keyring) -> Lost:
    clock = SystemClock()
    async with open_database(place.database, clock=clock, events=EventBus()) as store:
        now = clock.time()
        return await store.write(lambda tx: lost.drop(tx, ring, by="reset", now=now))


def _words(found: Lost) -> str:
    words = f"{len(found.credentials):,} credentials"
    return f"{words} and those in {len(found.workflows):,} workflows" if found.workflows else words
