"""`stackd connectors review`: which seeded defaults of triggers are worth a person's look, the busiest connectors first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from stackd.cli.columns import Column
from stackd.cli.connector_lint import FOLDER, places
from stackd.cli.context import JsonFlag, complain, daemon, print_json, print_table
from stackd.client.models import EvidenceList
from stackd.core.errors import InputError, UnreachableError


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A connector. `calls`: as the daemon has counted them; None: nobody was there to be asked."""

    id: str
    calls: int | None
    seeded: dict[str, list[str]]

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "calls": self.calls, "seeded": self.seeded}


def review(
    folder: Annotated[Path, typer.Option("--folder", help="Where connectors are.")] = FOLDER,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many connectors.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """What is still a seeded default in the triggers of the busiest connectors, for a person to tighten."""
    from stackd.integrations.backfill import seeded

    calls = _calls()
    found = []
    for place in places(None, folder):
        try:
            left = seeded(place)
        except InputError as error:
            complain(f"not looked at: {error.message}")
            continue
        if left.triggers:
            count = None if calls is None else calls[left.connector]
            found.append(Reviewed(left.connector, count, left.triggers))
    found.sort(key=lambda one: (-(one.calls or 0), one.id))
    found = found[:limit]
    if as_json:
        print_json({"connectors": [one.as_json() for one in found]})
        return
    print_table(
        (Column("connector"), Column("calls"), Column("trigger"), Column("as seeded", "folded")),
        (
            (one.id, "?" if one.calls is None else f"{one.calls:,}", trigger, ", ".join(what))
            for one in found
            for trigger, what in one.seeded.items()
        ),
        empty="no trigger has a seeded default left",
    )


def _calls() -> Counter[str] | None:
    """How often each connector was asked for; None if no daemon is there."""
    found: Counter[str] = Counter()
    try:
        for one in daemon().all("/api/registry/evidence", EvidenceList):
            found[one["app"]] += one["calls"]
    except UnreachableError as error:
        complain(f"calls are not known: {error.message}")
        return None
    return found
