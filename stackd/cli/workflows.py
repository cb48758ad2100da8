"""`stackd workflows …`."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stackd.cli.context import JsonFlag, complain, daemon, print_json, print_table, say
from stackd.client.api import TIMEOUT, Answer
from stackd.client.models import (
    ExecutionView,
    ImportedWorkflow,
    StartedExecution,
    WorkflowList,
    WorkflowView,
)
from stackd.core.clock import SystemClock
from stackd.core.errors import InputError, TooLargeError
from stackd.core.json import loads_strict
from stackd.core.text import plain

app = typer.Typer(no_args_is_help=True)

LONGEST_FILE = 64 * 1024 * 1024  # bytes; what STACKD_MAX_DOCUMENT_BYTES may be at most
LONGEST_WAIT = 300.0  # seconds the API holds a request; whoever waits longer asks again
POLL = 1.0  # seconds between these questions
RESTED = ("completed", "failed", "cancelled", "uncertain")

IdArgument = Annotated[str, typer.Argument(help="The workflow's id.")]


@app.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(help="Documents, YAML or JSON; - reads standard input.")
    ],
    activate: Annotated[
        bool, typer.Option("--activate", help="Let its triggers start it.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Store documents as the current versions of their workflows."""
    results = []
    for file in files:
        name = "standard input" if str(file) == "-" else plain(str(file))
        answer = daemon().post(
            "/api/workflows",
            _read(file, name),
            ImportedWorkflow,
            activate="true" if activate else None,
            name=name,
        )
        results.append(answer)
        if not as_json:
            _tell_import(answer, name)
    if as_json:
        print_json(results[0] if len(results) == 1 else results)


def _read(file: Path, name: str) -> bytes:
    try:
        if str(file) != "-":
            with file.open("rb") as opened:
                content = opened.read(LONGEST_FILE + 1)
        elif sys.stdin is not None:
            content = sys.stdin.buffer.read(LONGEST_FILE + 1)
        else:
            raise InputError("standard input is closed", code="file.unreadable")
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}", code="file.unreadable") from None
    if len(content) > LONGEST_FILE:
        raise TooLargeError(f"{name} is over {LONGEST_FILE:,} bytes", code="document.too_large")
    return content


def _tell_import(answer: dict[str, Any], name: str) -> None:
    state = "active" if answer["active"] else "inactive"
    say(f"{answer['id']} version {answer['version']} ({state})")
    for webhook in answer["webhooks"]:
        say(f"  webhook {webhook['node']}: {webhook['url']}")
    for warning in answer["warnings"]:
        place = f"{name}:{warning.get('line')}:{warning.get('column')}"
        say(f"  warning {place} {warning['code']}: {warning['message']}")
    if not answer["active"]:
        say(f"  activate it with: stackd workflows activate {answer['id']}")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All workflows."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = daemon().get("/api/workflows", WorkflowList, cursor=cursor, limit=500)
        items += page["items"]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        ("id", "name", "version", "active", "updated"),
        (
            (w["id"], w["name"], str(w["version"]), "yes" if w["active"] else "no", w["updatedAt"])
            for w in items
        ),
        empty="no workflows yet; import one with `stackd workflows import FILE`",
    )


@app.command()
def show(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """One workflow, its webhooks and its document."""
    view = daemon().get(f"/api/workflows/{workflow_id}", WorkflowView)
    if as_json:
        print_json(view)
        return
    state = "active" if view["active"] else "inactive"
    say(f"{view['id']}  {view['name']}  version {view['version']}  {state}")
    for webhook in view.get("webhooks", []):
        say(f"  webhook {webhook['node']}: {webhook['url']}")
    print_json(view.get("document"))


@app.command()
def activate(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Let the workflow's triggers start executions."""
    _set_active(workflow_id, "activate", as_json=as_json)


@app.command()
def deactivate(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Stop the workflow's triggers; executions under way go on."""
    _set_active(workflow_id, "deactivate", as_json=as_json)


def _set_active(workflow_id: str, verb: str, *, as_json: bool) -> None:
    view = daemon().post(f"/api/workflows/{workflow_id}/{verb}", None, WorkflowView)
    if as_json:
        print_json(view)
        return
    say(f"{view['id']} is {'active' if view['active'] else 'inactive'}")
    for webhook in view.get("webhooks", []):
        say(f"  webhook {webhook['node']}: {webhook['url']}")


def _finite(value: float) -> float:
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value} is not a number of seconds from 0 on")
    return value


@app.command()
def run(
    workflow_id: IdArgument,
    given: Annotated[str, typer.Option("--input", help="The trigger's output, JSON.")] = "null",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it rests and show it.")] = False,
    timeout: Annotated[
        float, typer.Option(callback=_finite, help="Seconds to wait.")
    ] = LONGEST_WAIT,
    as_json: JsonFlag = False,
) -> None:
    """Start an execution by hand; with --wait, exit 1 if it fails or is not over in time."""
    body = {"input": _json(given)}
    answer = _run_and_wait(workflow_id, body, timeout) if wait else _start(workflow_id, body)
    if as_json:
        print_json(answer.body)
    elif answer.status == 202:
        say(f"started {answer.body['executionId']}")
    else:
        from stackd.cli.executions import print_execution

        print_execution(answer.body)
    if answer.status == 200 and answer.body["status"] != "completed":
        sys.exit(1)
    if answer.status == 202 and wait:
        started = answer.body["executionId"]
        complain(
            f"not over after {timeout:g} s, and goes on; see `stackd executions show {started}`"
        )
        sys.exit(1)


def _start(
    workflow_id: str, body: dict[str, Any], *, wait: float | None = None, timeout: float = TIMEOUT
) -> Answer:
    api, path = daemon(), f"/api/workflows/{workflow_id}/run"
    answer = api.request("POST", path, body=body, query={"wait": wait}, timeout=timeout)
    return api.shaped(answer, StartedExecution if answer.status == 202 else ExecutionView)


def _json(given: str) -> Any:
    try:
        return loads_strict(os.fsencode(given))
    except InputError as error:
        raise InputError(
            f"--input: {error.message}",
            code=error.code,
            hint="""give it as JSON in UTF-8: --input '{"name": "Ada"}'""",
        ) from None


def _run_and_wait(workflow_id: str, body: dict[str, Any], timeout: float) -> Answer:
    """Start an execution; the answer once it rests, or the one to its start if it does not within `timeout`."""
    clock, at_once = SystemClock(), min(timeout, LONGEST_WAIT)
    give_up_at = clock.monotonic() + timeout
    try:
        started = _start(workflow_id, body, wait=at_once, timeout=at_once + TIMEOUT)
        if started.status != 202:
            return started
        while (left := give_up_at - clock.monotonic()) > 0:
            time.sleep(min(POLL, left))
            view = daemon().get(f"/api/executions/{started.body['executionId']}", ExecutionView)
            if view["status"] in RESTED:
                return Answer(200, view)
    except KeyboardInterrupt:
        complain(f"interrupted; it goes on, see `stackd executions list --workflow {workflow_id}`")
        raise
    return started
