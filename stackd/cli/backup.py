"""`stackd backup` and `stackd restore`: they work on the files themselves, on the machine where these are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackd.cli.context import complain, print_json, progress, say
from stackd.client.api import Api
from stackd.client.models import ConfigView
from stackd.core.clock import SystemClock, rfc3339
from stackd.core.errors import InputError, UnreachableError
from stackd.core.text import plain
from stackd.runtime import archive, backup
from stackd.runtime.archive import Manifest
from stackd.runtime.backup import Place
from stackd.settings import connection_settings, store_places

MIB = 1024 * 1024


class _Shows:
    def __call__(self, doing: str, *, total: int) -> Any:
        return progress(doing, total=total or None, is_bytes=True)


def make(target: Path, *, force: bool, as_json: bool) -> None:
    """Write a backup, and say what it holds."""
    now = SystemClock().time()
    made = backup.back_up(_place(), target.absolute(), force=force, now=now, shows=_Shows())
    if as_json:
        print_json({"file": str(target.absolute()), **_facts(made)})
    else:
        say(f"{plain(str(target))} holds {_words(made)}")
    if made.missing:
        complain(
            f"{len(made.missing)} blobs that executions refer to had no file, so they are not in it"
        )


def restore(source: Path, *, state: Path | None, force: bool, as_json: bool) -> None:
    """Let the store be the one in a backup, and say where the one before is."""
    places = store_places(state=None if state is None else str(state.absolute()))
    there = [Place(*one) for one in places if one[0].exists()]
    place = there[0] if there else Place(*places[0])
    stamp = (rfc3339(SystemClock().time()) or "").replace(":", "").replace("-", "")
    found, aside = backup.restore(source, place, force=force, stamp=stamp, shows=_Shows())
    if as_json:
        kept = None if aside is None else str(aside)
        print_json({"state": str(place.state_dir), "before": kept, **_facts(found)})
        return
    say(f"{place.database} holds {_words(found)}")
    if aside is not None:
        say(f"the store before it is kept: {aside}")


def verify(source: Path, *, as_json: bool) -> None:
    """Say what a backup holds, if it is whole and sound."""
    found = archive.verify(source, shows=_Shows())
    if as_json:
        print_json({"file": str(source.absolute()), **_facts(found)})
    else:
        say(f"{plain(str(source))} is whole, and holds {_words(found)}")


def _facts(found: Manifest) -> dict[str, Any]:
    return {
        "createdAt": found.created_at,
        "stackd": found.stackd,
        "schema": found.schema,
        "bytes": found.total,
        "blobs": len(found.blobs),
        "missingBlobs": found.missing,
    }


def _words(found: Manifest) -> str:
    size = f"{found.total / MIB:,.1f} MiB"
    return f"the store of {found.created_at}, {size} with {len(found.blobs):,} blobs"


def _place() -> Place:
    """Where the running daemon says its store is; without one, where a daemon would have it.

    Raises:
        InputError: the daemon is elsewhere, or keeps nothing.
    """
    connection = connection_settings()
    if connection.url is not None:
        raise InputError(
            "a backup is made on the machine of the daemon, beside its store",
            code="backup.remote",
            hint="unset STACKD_URL and type it there",
        )
    try:
        view = Api(socket_path=connection.socket_path).get("/api/config", ConfigView)
    except UnreachableError:
        places = [Place(*one) for one in store_places()]
        return next((one for one in places if one.database.exists()), places[0])
    values = {one["name"]: one["value"] for one in view["settings"]}
    if values["QUEUE_DRIVER"] == "inmemory":
        raise InputError("this daemon keeps its store in memory only", code="backup.no_store")
    state_dir = Path(values["STACKD_STATE_DIR"])
    return Place(state_dir, Path(values["STACKD_DATABASE_URL"] or state_dir / "stackd.db"))
