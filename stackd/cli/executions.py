"""`stackd executions …`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from stackd.cli import completion
from stackd.cli.context import (
    JsonFlag,
    daemon,
    is_terminal,
    print_json,
    print_table,
    say,
    say_styled,
    short_error,
)
from stackd.cli.tail import tail
from stackd.cli.tree import STYLES, node_lines
from stackd.client.models import ExecutionList, ExecutionView, MovedExecution
from stackd.core.clock import SystemClock
from stackd.core.errors import InputError

app = typer.Typer(no_args_is_help=True)

app.command()(tail)

IdArgument = Annotated[
    str, typer.Argument(help="The execution's id.", autocompletion=completion.execution_id)
]
OUTPUT_SHOWN = 200  # characters of an output on one line


@app.command("list")
def list_(
    workflow: Annotated[
        str | None,
        typer.Option(help="Only of this workflow.", autocompletion=completion.workflow_id),
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier list.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Executions, newest first."""
    page = daemon().get(
        "/api/executions",
        ExecutionList,
        workflowId=workflow,
        status=status,
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        print_json(page)
        return
    print_table(
        ("id", "workflow", "status", "created", "error"),
        (
            (e["id"], e["workflowId"], e["status"], e["createdAt"], short_error(e["error"]))
            for e in page["items"]
        ),
        empty="no executions yet; start one with `stackd workflows run ID`",
    )
    if page["nextCursor"] and is_terminal():
        say(f"more: --cursor {page['nextCursor']}")


@app.command()
def show(execution_id: IdArgument, as_json: JsonFlag = False) -> None:
    """One execution with its node runs; exit 1 if it failed."""
    view = daemon().get(f"/api/executions/{execution_id}", ExecutionView)
    if as_json:
        print_json(view)
    else:
        print_execution(view)
    if view["status"] in ("failed", "uncertain"):
        sys.exit(1)


def print_execution(view: dict[str, Any]) -> None:
    """The execution as a person reads it: its state, its node runs in time, its output, and what to decide."""
    head = f"{view['id']}  {view['workflowId']} v{view['version']}  "
    say_styled([[(head, "bold"), (view["status"], STYLES.get(view["status"], ""))]])
    say(f"  created {view['createdAt']}  finished {view['finishedAt'] or '-'}")
    if view["error"]:
        say(f"  error   {short_error(view['error'])}")
    if view["parent"]:
        say(
            f"  parent  {view['parent']['executionId']}  {view['parent']['node'] or '(waits for nothing)'}"
        )
    say_styled(node_lines(view, now=SystemClock().time()))
    if view["moreNodes"]:
        say(f"  more node runs are not shown: /api/executions/{view['id']}/nodes has all of them")
    say(f"  output  {_short(view['output'])}")
    uncertain = [n["id"] for n in view["nodes"] if n["status"] == "uncertain"]
    for key in uncertain if view["status"] == "uncertain" else []:
        say(f"  nobody knows whether {key} happened; look at the far side, then:")
        say(f"    stackd executions resolve {view['id']} --node {key} --retry | --skip | --fail")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= OUTPUT_SHOWN else f"{text[:OUTPUT_SHOWN]}… (--json shows all)"


@app.command()
def cancel(execution_id: IdArgument, as_json: JsonFlag = False) -> None:
    """End an execution."""
    answer = daemon().post(f"/api/executions/{execution_id}/cancel", None, MovedExecution)
    if as_json:
        print_json(answer)
    elif answer["status"] in ("completed", "failed"):
        say(f"{execution_id} was already {answer['status']}")
    elif answer["status"] == "cancelled":
        say(f"{execution_id} is cancelled")
    else:
        say(f"{execution_id} is being cancelled")


@app.command()
def retry(
    execution_id: IdArgument,
    start: Annotated[
        str | None, typer.Option("--from", help="Run this node anew, and all that follows it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let an execution that has ended go on at what failed; what is done is not done again."""
    answer = daemon().post(f"/api/executions/{execution_id}/retry", {"from": start}, MovedExecution)
    if as_json:
        print_json(answer)
    else:
        say(f"{execution_id} goes on; follow it with: stackd executions tail {execution_id}")


@app.command()
def resolve(
    execution_id: IdArgument,
    retry: Annotated[
        bool, typer.Option("--retry", help="It did not happen: send it again.")
    ] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="It happened: go on without its output.")
    ] = False,
    fail: Annotated[bool, typer.Option("--fail", help="Let the node fail.")] = False,
    node: Annotated[
        str | None, typer.Option(help="Which node run, if several are uncertain.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what shall become of an uncertain execution."""
    chosen = [n for n, is_set in (("retry", retry), ("skip", skip), ("fail", fail)) if is_set]
    if len(chosen) != 1:
        raise InputError("say one of --retry, --skip, --fail", code="input.decision")
    answer = daemon().post(
        f"/api/executions/{execution_id}/resolve",
        {"decision": chosen[0], "node": node},
        MovedExecution,
    )
    if as_json:
        print_json(answer)
    else:
        say(f"{execution_id} goes on ({chosen[0]})")
