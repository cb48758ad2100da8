"""`stackd sandbox quarantine` and `release`: code that runs no more for what it did, and letting it run again."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from stackd.cli import completion
from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, daemon, print_json, print_table, say
from stackd.client.models import QuarantineList, ReleaseView


def quarantine(as_json: JsonFlag = False) -> None:
    """List the code nodes that run no more, for rules they broke or what they took."""
    answer = daemon().get("/api/sandbox/quarantine", QuarantineList)
    if as_json:
        print_json(answer)
        return
    print_table(
        (
            Column("workflow"),
            Column("version"),
            Column("node"),
            Column("since"),
            Column("why", "folded"),
        ),
        (
            (
                one["workflowId"],
                str(one["version"]),
                one["node"],
                one["quarantinedAt"],
                f"{one['reason'].get('type')} {one['reason'].get('resource') or one['reason'].get('host') or ''}",
            )
            for one in answer["items"]
        ),
        empty="no code is quarantined",
    )


def release(
    workflow: Annotated[str, typer.Argument(autocompletion=completion.workflow_id, help="Its id.")],
    node: Annotated[str | None, typer.Argument(help="Only this node; default: all of it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let quarantined code run again."""
    body = {} if node is None else {"node": node}
    answer = daemon().post(f"/api/workflows/{quote(workflow, safe='')}/release", body, ReleaseView)
    if as_json:
        print_json(answer)
    elif answer["released"]:
        say(f"runs again: {answer['released']}")
    else:
        say("nothing of it is quarantined")
