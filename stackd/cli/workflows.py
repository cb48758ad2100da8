"""`stackd workflows …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stackd.cli.context import JsonFlag, daemon, print_json, print_table
from stackd.core.errors import InputError
from stackd.core.json import loads_strict

app = typer.Typer(no_args_is_help=True)

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
        name = "standard input" if str(file) == "-" else str(file)
        answer = daemon().post(
            "/api/workflows", _read(file), activate="true" if activate else None, name=name
        )
        results.append(answer)
        if not as_json:
            _tell_import(answer, name)
    if as_json:
        print_json(results[0] if len(results) == 1 else results)


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", code="file.unreadable") from None


def _tell_import(answer: dict[str, Any], name: str) -> None:
    state = "active" if answer["active"] else "inactive"
    print(f"{answer['id']} version {answer['version']} ({state})")
    for webhook in answer["webhooks"]:
        print(f"  webhook {webhook['node']}: {webhook['url']}")
    for warning in answer["warnings"]:
        place = f"{name}:{warning['line']}:{warning['column']}"
        print(f"  warning {place} {warning['code']}: {warning['message']}")
    if not answer["active"]:
        print(f"  activate it with: stackd workflows activate {answer['id']}")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All workflows."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = daemon().get("/api/workflows", cursor=cursor, limit=500)
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
    view = daemon().get(f"/api/workflows/{workflow_id}")
    if as_json:
        print_json(view)
        return
    state = "active" if view["active"] else "inactive"
    print(f"{view['id']}  {view['name']}  version {view['version']}  {state}")
    for webhook in view["webhooks"]:
        print(f"  webhook {webhook['node']}: {webhook['url']}")
    print_json(view["document"])


@app.command()
def activate(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Let the workflow's triggers start executions."""
    _set_active(workflow_id, "activate", as_json=as_json)


@app.command()
def deactivate(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Stop the workflow's triggers; executions under way go on."""
    _set_active(workflow_id, "deactivate", as_json=as_json)


def _set_active(workflow_id: str, verb: str, *, as_json: bool) -> None:
    view = daemon().post(f"/api/workflows/{workflow_id}/{verb}")
    if as_json:
        print_json(view)
        return
    print(f"{view['id']} is {'active' if view['active'] else 'inactive'}")
    for webhook in view["webhooks"]:
        print(f"  webhook {webhook['node']}: {webhook['url']}")


@app.command()
def run(
    workflow_id: IdArgument,
    given: Annotated[str, typer.Option("--input", help="The trigger's output, JSON.")] = "null",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it rests and show it.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Start an execution by hand."""
    body = {"input": loads_strict(given.encode())}
    answer = daemon().request(
        "POST",
        f"/api/workflows/{workflow_id}/run",
        body=body,
        query={"wait": timeout if wait else None},
        timeout=timeout + 30,
    )
    if as_json:
        print_json(answer.body)
    elif answer.status == 202:
        print(f"started {answer.body['executionId']}")
        if wait:
            print(f"not over yet; see `stackd executions show {answer.body['executionId']}`")
    else:
        from stackd.cli.executions import print_execution

        print_execution(answer.body)
    if answer.status == 200 and answer.body["status"] != "completed":
        sys.exit(1)
