"""`stackd connectors evidence` and `reset`: how operations have gone, and asking for those that rest."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, daemon, print_json, print_table, say
from stackd.client.models import EvidenceList, ResetView
from stackd.core.text import segment

AppArgument = Annotated[str | None, typer.Argument(help="Only of this connector.")]


def evidence(app: AppArgument = None, as_json: JsonFlag = False) -> None:
    """How the operations of connectors have gone: tries, failures, fallbacks, and what rests."""
    items = daemon().all("/api/registry/evidence", EvidenceList, app=app)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("app"),
            Column("operation"),
            Column("calls", goes=4),
            Column("failed"),
            Column("fallbacks", goes=2),
            Column("circuit"),
            Column("last success", goes=3),
            Column("last failure", "folded", goes=5),
        ),
        (
            (
                one["app"],
                one["id"],
                str(one["calls"]),
                str(one["failures"]),
                str(one["fallbacks"]),
                one["circuit"].replace("_", " "),
                one["lastSuccessAt"] or "-",
                _last_failure(one),
            )
            for one in items
        ),
        empty="no operation of a connector was asked for yet",
    )


def _last_failure(one: dict[str, Any]) -> str:
    failure = one["lastFailure"]
    return f"{one['lastFailureAt']} {failure['message']}" if failure else "-"


def reset(
    connector: Annotated[str, typer.Argument(help="Its id, or a name it goes by.")],
    operation: Annotated[
        str | None, typer.Argument(help="Only this one; default: all that rest.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask for operations that rest after failures at once."""
    body = {} if operation is None else {"operation": operation}
    place = f"/api/registry/connectors/{segment(connector)}/reset"
    answer = daemon().post(place, body, ResetView)
    if as_json:
        print_json(answer)
    elif answer["closed"]:
        say(f"asked for again: {answer['closed']}")
    else:
        say("nothing rests there")
