"""What can run: `stackd capabilities`, and the question of it that others ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stackd.cli.columns import Column
from stackd.cli.context import client, daemon, print_json, print_table
from stackd.client.models import CapabilitiesView
from stackd.core.apps import folded, normal_app
from stackd.core.errors import InputError, StackdError
from stackd.core.names import nearest
from stackd.core.text import shown

if TYPE_CHECKING:
    from stackd.client.capabilities import Capabilities
    from stackd.core.coverage import Coverage

ASK_TIMEOUT = 5.0  # seconds a daemon has to say what it can run; who asks can do without


def show(
    *, app: str | None, only: Literal["native", "fallback", "unavailable"] | None, as_json: bool
) -> None:
    """Print what can run, or some of it, and why the rest cannot."""
    answer = daemon().get("/api/registry/capabilities", CapabilitiesView, include="unavailable")
    entries = answer["capabilities"]
    if app is not None:
        known = [one["app"] for one in entries]
        entries = [one for one in entries if _is_meant(one, app)]
        if not entries:
            meant = nearest(folded(app), known)
            raise InputError(
                f"there is no app {shown(app)!r}",
                hint=f"did you mean {meant!r}?"
                if meant
                else "`stackd connectors list` shows all there are",
            )
    if only is not None:
        entries = [found for one in entries if (found := _only(one, only)) is not None]
    if as_json:
        print_json({**answer, "capabilities": entries})
        return
    print_table(
        (
            Column("app"),
            Column("kind", goes=3),
            Column("operation"),
            Column("runs as"),
            Column("by", goes=2),
            Column("why", "folded", goes=4),
        ),
        (
            (
                entry["app"],
                detail["kind"],
                detail["id"],
                detail["availability"],
                detail["resolvedRuntime"] or "-",
                "; ".join(issue["message"] for issue in detail["issues"]),
            )
            for entry in entries
            for detail in _details(entry)
        ),
        empty="nothing of that kind",
    )


def _is_meant(entry: dict[str, Any], app: str) -> bool:
    return entry["normalizedAppId"] in (normal_app(app), folded(app))


def _details(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [*entry["actionDetails"].values(), *entry["triggerDetails"].values()]


def _only(entry: dict[str, Any], availability: str) -> dict[str, Any] | None:
    """The part of an entry that is available in that way; None if there is none."""
    kept: dict[str, Any] = dict(entry)
    for ids, details in (("actions", "actionDetails"), ("triggers", "triggerDetails")):
        found = {k: one for k, one in entry[details].items() if one["availability"] == availability}
        kept[details] = found
        kept[ids] = sorted(one["id"] for one in found.values())
    return kept if kept["actions"] or kept["triggers"] else None


class Asked:
    """What the daemon can run, asked for when the first operation of a connector is met.

    `unchecked`: why nobody could say; None if the daemon did, or nothing had to be asked.
    """

    def __init__(self) -> None:
        self.unchecked: str | None = None
        self._found: Capabilities | None = None

    def coverage(self, app: str, operation: str) -> Coverage:
        from stackd.core.coverage import Coverage

        if self._found is None and self.unchecked is None:
            self._ask()
        if self._found is None:
            return Coverage(app, operation, "native")
        return self._found.check(app, operation)

    def _ask(self) -> None:
        import anyio

        try:
            stackd = client(ASK_TIMEOUT)  # loads what it needs before there is a loop to hold up

            async def ask() -> Capabilities:
                async with stackd:
                    return await stackd.registry.capabilities()

            self._found = anyio.run(ask)
        except StackdError as error:
            self.unchecked = (
                f"whether something can run the operations was not checked: {error.message}"
            )
