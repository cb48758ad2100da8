"""`stackd executions …`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import typer

from stackd.cli import completion
from stackd.cli.columns import Column
from stackd.cli.context import (
    JsonFlag,
    YesFlag,
    confirm,
    daemon,
    is_terminal,
    is_watched,
    json_of,
    print_json,
    print_table,
    progress,
    refuse_unasked,
    say,
    say_styled,
    short_error,
    waiting,
)
from stackd.cli.lasting import seconds_in
from stackd.cli.tail import tail
from stackd.cli.tree import STYLES, node_lines
from stackd.client.models import (
    ExecutionList,
    ExecutionView,
    MovedExecution,
    PrunedExecutions,
    StartedExecution,
)
from stackd.core.clock import SystemClock
from stackd.core.errors import ConflictError, InputError
from stackd.core.text import segment

app = typer.Typer(no_args_is_help=True)

app.command()(tail)

IdArgument = Annotated[
    str, typer.Argument(help="The execution's id.", autocompletion=completion.execution_id)
]
RUNS = "/api/runs/"  # in every link
LOG_LINES = 20  # of a code node, the last ones
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
        (
            Column("id"),
            Column("workflow", goes=3),
            Column("status"),
            Column("created", goes=1),
            Column("error", "cut", goes=2),
        ),
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
    view = daemon().get(f"/api/executions/{segment(execution_id)}", ExecutionView)
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
    for node in view["nodes"]:
        _say_code(node)
    for key, link in _links(view).items():
        say(f"  {key} waits for a call to {link}")
        say(f"    stackd executions resume {view['id']} --node {key}")
    uncertain = [n["id"] for n in view["nodes"] if n["status"] == "uncertain"]
    for key in uncertain if view["status"] == "uncertain" else []:
        say(f"  nobody knows whether {key} happened; look at the far side, then:")
        say(f"    stackd executions resolve {view['id']} --node {key} --retry | --skip | --fail")


def _say_code(node: dict[str, Any]) -> None:
    """What the code of a node has logged, and where it failed."""
    metadata = node["metadata"]
    logs = metadata.get("logs") or []
    trace = (
        (metadata.get("error") or {}).get("trace")
        if isinstance(metadata.get("error"), dict)
        else None
    )
    if not (logs or trace or metadata.get("violations")):
        return
    say(f"  code of {node['id']}:")
    for line in logs[-LOG_LINES:]:
        say(f"    {line['level']:5} {line['message']}")
    if len(logs) > LOG_LINES or metadata.get("logsTruncated"):
        say("    (--json shows all that was kept)")
    for one in metadata.get("violations") or []:
        say(
            f"    denied {one.get('type')}: {one.get('host') or one.get('module') or one.get('resource') or ''}"
        )
    for line in (trace or "").rstrip().splitlines():
        say(f"    {line}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= OUTPUT_SHOWN else f"{text[:OUTPUT_SHOWN]}… (--json shows all)"


@app.command()
def cancel(execution_id: IdArgument, as_json: JsonFlag = False) -> None:
    """End an execution."""
    answer = daemon().post(f"/api/executions/{segment(execution_id)}/cancel", None, MovedExecution)
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
    answer = daemon().post(
        f"/api/executions/{segment(execution_id)}/retry", {"from": start}, MovedExecution
    )
    if as_json:
        print_json(answer)
    else:
        say(f"{execution_id} goes on; follow it with: stackd executions tail {execution_id}")


@app.command()
def resume(
    execution_id: IdArgument,
    given: Annotated[str, typer.Option("--input", help="What is sent, JSON.")] = "null",
    node: Annotated[
        str | None, typer.Option(help="Which node run, if several wait for a call.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Call the link of a node run that waits for it, so that the execution goes on."""
    body = json_of("--input", given)
    view = daemon().get(f"/api/executions/{segment(execution_id)}", ExecutionView)
    links = _links(view)
    chosen = links if node is None else {node: links[node]} if node in links else {}
    if len(chosen) != 1:
        raise ConflictError(
            f"{node or execution_id} waits for no call" if not chosen else "several node runs wait",
            code="execution.ambiguous_node",
            hint=f"name one: --node {' | '.join(links)}" if links else None,
        )
    link = urlsplit(next(iter(chosen.values())))
    path = link.path[link.path.index(RUNS) :]  # a public address may have a path before it
    query: dict[str, Any] = dict(parse_qsl(link.query))
    is_json = {"Content-Type": "application/json"}
    answer = daemon().post(path, body, StartedExecution, headers=is_json, **query)
    if as_json:
        print_json(answer)
    else:
        say(f"{execution_id} goes on; follow it with: stackd executions tail {execution_id}")


def _links(view: dict[str, Any]) -> dict[str, str]:
    """The links that the node runs of an execution wait to be called by, as far as the caller may know them."""
    found = {n["id"]: n["metadata"].get("resumeUrl") for n in view["nodes"]}
    return {key: link for key, link in found.items() if isinstance(link, str) and RUNS in link}


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
        f"/api/executions/{segment(execution_id)}/resolve",
        {"decision": chosen[0], "node": node},
        MovedExecution,
    )
    if as_json:
        print_json(answer)
    else:
        say(f"{execution_id} goes on ({chosen[0]})")


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="What ended longer ago than 90s, 30m, 12h, 30d, 8w.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="All but so many of the newest; 0: all.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only in this state: completed, failed or cancelled.")
    ] = None,
    workflow: Annotated[
        str | None,
        typer.Option(help="Only of this workflow.", autocompletion=completion.workflow_id),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove executions that have ended, with what they had called; what is open or uncertain stays."""
    wanted = {
        "olderThanSeconds": None
        if older_than is None
        else seconds_in("--older-than", older_than, code="prune.age"),
        "keep": keep,
        "status": status,
        "workflowId": workflow,
    }
    if not (dry_run or yes):
        refuse_unasked()
    count = None
    if dry_run or not yes or is_watched():
        with waiting("counting"):
            count = sum(_pruned(wanted, dry_run=True))
    if not dry_run and count != 0:
        confirm(f"remove {count:,} executions for good?" if count is not None else "", yes=yes)
        with progress("removing", total=count) as advance:
            count = 0
            for some in _pruned(wanted, dry_run=False):
                count += some
                advance(some)
    count = count or 0
    if as_json:
        print_json({"executions": count, "dryRun": dry_run})
    else:
        say(f"{count:,} executions {'would be' if dry_run else 'are'} removed")


def _pruned(wanted: dict[str, Any], *, dry_run: bool) -> Iterator[int]:
    """How many executions each request has removed, or counted, until none is left."""
    api, cursor = daemon(), None
    while True:
        body = {**wanted, "dryRun": dry_run, "cursor": cursor}
        answer = api.post("/api/executions/prune", body, PrunedExecutions)
        yield answer["executions"]
        cursor = answer["nextCursor"]
        if cursor is None:
            return
