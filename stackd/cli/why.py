"""`stackd why ID`."""

from __future__ import annotations

from typing import Annotated

import typer

from stackd.cli.context import JsonFlag, daemon, print_json, say, say_styled
from stackd.cli.tree import STYLES
from stackd.client.models import WhyView
from stackd.core.text import segment


def why(
    subject: Annotated[
        str, typer.Argument(metavar="ID", help="An execution, a workflow, or: queue.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Why something is as it is: what holds it now, and what has befallen it."""
    view = daemon().get(f"/api/why/{segment(subject)}", WhyView)
    if as_json:
        print_json(view)
        return
    style = STYLES.get(view["state"], "")
    subject = (
        view["kind"] if view["kind"] == view["subject"] else f"{view['kind']} {view['subject']}"
    )
    say_styled([[(f"{subject}  ", "bold"), (view["state"], style)]])
    if not view["reasons"]:
        say("  nothing holds it")
    for reason in view["reasons"]:
        say(f"  {reason['message']}  ({reason['code']})")
        if reason["hint"]:
            say(f"    → {reason['hint']}")
    if view["notes"]:
        say("  what has befallen it:")
    for note in view["notes"]:
        times = f" x{note['count']}" if note["count"] > 1 else ""
        say(f"    {note['lastAt']}  {note['message']}{times}  ({note['code']})")
