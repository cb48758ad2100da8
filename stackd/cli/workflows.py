"""`stackd workflows …`."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackd.cli import completion
from stackd.cli.capabilities import Asked
from stackd.cli.columns import Column
from stackd.cli.context import (
    JsonFlag,
    YesFlag,
    complain,
    confirm,
    daemon,
    json_of,
    print_json,
    print_safe,
    print_table,
    progressing,
    say,
    waiting,
)
from stackd.cli.files import documents, name_of, read
from stackd.client.models import (
    DeletedWorkflow,
    ExecutionView,
    ImportedWorkflow,
    StartedExecution,
    VersionList,
    VersionView,
    WorkflowList,
    WorkflowView,
)
from stackd.client.wire import TIMEOUT, Answer
from stackd.core.clock import SystemClock
from stackd.core.errors import TooLargeError
from stackd.core.text import plain, segment

if TYPE_CHECKING:
    from stackd.workflows.code import Slip
    from stackd.workflows.findings import Finding
    from stackd.workflows.model import Code

app = typer.Typer(no_args_is_help=True)

LONGEST_WAIT = 300.0  # seconds the API holds a request; whoever waits longer asks again
POLL = 1.0  # seconds between these questions
RESTED = ("completed", "failed", "cancelled", "uncertain")

IdArgument = Annotated[
    str, typer.Argument(help="The workflow's id.", autocompletion=completion.workflow_id)
]
FilesArgument = Annotated[
    list[Path],
    typer.Argument(help="Documents, YAML or JSON, and folders of them; - reads standard input."),
]


ForceFlag = Annotated[
    bool, typer.Option("--force", help="Activate it though nothing can run some operation of it.")
]


@app.command("import")
def import_(
    files: FilesArgument,
    activate: Annotated[
        bool, typer.Option("--activate", help="Let its triggers start it.")
    ] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Store documents as the current versions of their workflows."""
    results = []
    for file in progressing(documents(files), "importing"):
        name = name_of(file)
        answer = daemon().post(
            "/api/workflows",
            read(file),
            ImportedWorkflow,
            activate="true" if activate else None,
            force="true" if force else None,
            name=name,
        )
        results.append(answer)
        if not as_json:
            _tell_import(answer, name)
    if as_json:
        print_json(results[0] if len(results) == 1 else results)


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


@app.command()
def lint(
    files: FilesArgument,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say all there is to say of documents; exit 1 if one cannot be used.

    Whether something can run the operations of connectors is known to a daemon: without one that is not looked at.
    """
    from stackd.settings import read_settings

    settings, _ = read_settings("dev", role="stack")
    asked = Asked()
    judged = [
        (name_of(file), _findings(file, settings.max_document_bytes, asked))
        for file in documents(files)
    ]
    told = [
        {
            "file": name,
            "ok": not any(strict or finding.severity == "error" for finding in findings),
            "findings": [_shown(finding) for finding in findings],
        }
        for name, findings in judged
    ]
    ok = all(one["ok"] for one in told)
    if as_json:
        print_json({"ok": ok, "files": told, "unchecked": asked.unchecked})
    else:
        for name, findings in judged:
            for found in findings:
                hint = f" ({found.hint})" if found.hint else ""
                place = f"{name}:{found.line}:{found.column}"
                say(f"{place}: {found.severity} {found.code}: {found.message}{hint}")
        bad = sum(not one["ok"] for one in told)
        say(f"{len(told)} can be used" if ok else f"{bad} of {len(told)} cannot be used")
        if asked.unchecked is not None:
            complain(asked.unchecked)
    sys.exit(0 if ok else 1)


def _findings(file: Path, max_bytes: int, asked: Asked) -> list[Finding]:
    from stackd.workflows.document import findings_in
    from stackd.workflows.findings import Finding

    try:
        return findings_in(
            read(file),
            name=name_of(file),
            max_bytes=max_bytes,
            coverage=asked.coverage,
            syntax=_syntax,
        )
    except TooLargeError as error:
        return [Finding(error.code, error.message, 1, 1)]


def _syntax(codes: Sequence[Code]) -> list[Slip | None] | str:
    """Whether code can run: it is read in a sandbox of this command's own."""
    import anyio

    from stackd.sandbox.errors import SandboxError
    from stackd.sandbox.sandbox import Sandbox, SandboxOptions

    async def read_all() -> list[Slip | None]:
        async with Sandbox(SandboxOptions(mode="worker"), clock=SystemClock()) as sandbox:
            return await sandbox.syntax([(one.code, one.entry_point) for one in codes])

    try:
        return anyio.run(read_all)
    except SandboxError as error:
        return error.message


def _shown(finding: Finding) -> dict[str, Any]:
    """As the API shows it."""
    return {key: value for key, value in dataclasses.asdict(finding).items() if key != "bars"}


@app.command()
def versions(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Every version of a workflow, newest first."""
    items = daemon().all(f"/api/workflows/{segment(workflow_id)}/versions", VersionList)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("version"),
            Column("created", goes=2),
            Column("current"),
            Column("content", goes=1),
        ),
        (
            (str(v["version"]), v["createdAt"], "yes" if v["current"] else "no", v["contentHash"])
            for v in items
        ),
        empty="",
    )


@app.command()
def rollback(
    workflow_id: IdArgument,
    to: Annotated[
        int | None, typer.Option(help="The version; the one before the current if not said.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make an earlier version the current one; executions under way keep theirs."""
    answer = daemon().post(
        f"/api/workflows/{segment(workflow_id)}/rollback",
        {"version": to},
        ImportedWorkflow,
        force="true" if force else None,
    )
    if as_json:
        print_json(answer)
    else:
        _tell_import(answer, f"version {answer['version']}")


@app.command()
def export(
    workflow_id: IdArgument,
    version: Annotated[
        int | None, typer.Option(help="Which version; the current one if not said.")
    ] = None,
    as_yaml: Annotated[bool, typer.Option("--yaml/--json", help="How it is written.")] = True,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, instead of standard output.")
    ] = None,
) -> None:
    """A workflow's document as a file to import: the same content, so the same version."""
    from stackd.workflows import written

    if version is None:
        view = daemon().get(f"/api/workflows/{segment(workflow_id)}", WorkflowView)
    else:
        view = daemon().get(
            f"/api/workflows/{segment(workflow_id)}/versions/{version}", VersionView
        )
    document = view["document"]
    text = written.as_yaml(document) if as_yaml else written.as_json(document)
    if out is None:
        print_safe(text)
    else:
        out.write_text(text)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All workflows."""
    items = daemon().all("/api/workflows", WorkflowList)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("id"),
            Column("name", "cut", goes=2),
            Column("version"),
            Column("active"),
            Column("updated", goes=1),
        ),
        (
            (w["id"], w["name"], str(w["version"]), "yes" if w["active"] else "no", w["updatedAt"])
            for w in items
        ),
        empty="no workflows yet; import one with `stackd workflows import FILE`",
    )


@app.command()
def show(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """One workflow, its webhooks and its document."""
    view = daemon().get(f"/api/workflows/{segment(workflow_id)}", WorkflowView)
    if as_json:
        print_json(view)
        return
    state = "active" if view["active"] else "inactive"
    say(f"{view['id']}  {view['name']}  version {view['version']}  {state}")
    _tell_parts(view)
    print_json(view.get("document"))


@app.command()
def activate(workflow_id: IdArgument, force: ForceFlag = False, as_json: JsonFlag = False) -> None:
    """Let the workflow's triggers start executions; refused while nothing can run an operation of it."""
    _set_active(workflow_id, "activate", as_json=as_json, force=force)


@app.command()
def deactivate(workflow_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Stop the workflow's triggers; executions under way go on."""
    _set_active(workflow_id, "deactivate", as_json=as_json)


def _set_active(workflow_id: str, verb: str, *, as_json: bool, force: bool = False) -> None:
    view = daemon().post(
        f"/api/workflows/{segment(workflow_id)}/{verb}",
        None,
        WorkflowView,
        force="true" if force else None,
    )
    if as_json:
        print_json(view)
        return
    say(f"{view['id']} is {'active' if view['active'] else 'inactive'}")
    _tell_parts(view)


def _tell_parts(view: dict[str, Any]) -> None:
    """Print where a workflow's webhooks answer, and what of it cannot run as it should."""
    for webhook in view.get("webhooks", []):
        say(f"  webhook {webhook['node']}: {webhook['url']}")
    for warning in view.get("warnings") or []:
        say(f"  warning {warning['code']}: {warning['message']}")


@app.command()
def delete(workflow_id: IdArgument, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Delete a workflow with its versions, webhooks and executions; refused while one of these is open."""
    if not yes:
        daemon().get(f"/api/workflows/{segment(workflow_id)}", WorkflowView)
    confirm(f"delete {workflow_id} with all of its executions for good?", yes=yes)
    executions, more = 0, True
    with waiting(f"{plain(workflow_id)} is deleted"):
        while more:
            answer = daemon().delete(f"/api/workflows/{segment(workflow_id)}", DeletedWorkflow)
            executions, more = executions + answer["executions"], answer["more"]
    if as_json:
        print_json({"workflowId": workflow_id, "executions": executions})
    else:
        say(f"{workflow_id} is deleted, with {executions:,} executions")


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
    body = {"input": json_of("--input", given)}
    if wait:
        with waiting(f"{plain(workflow_id)} runs"):
            answer = _run_and_wait(workflow_id, body, timeout)
    else:
        answer = _start(workflow_id, body)
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
    api, path = daemon(), f"/api/workflows/{segment(workflow_id)}/run"
    answer = api.request("POST", path, body=body, query={"wait": wait}, timeout=timeout)
    return api.shaped(answer, StartedExecution if answer.status == 202 else ExecutionView)


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
            view = daemon().get(
                f"/api/executions/{segment(started.body['executionId'])}", ExecutionView
            )
            if view["status"] in RESTED:
                return Answer(200, view)
    except KeyboardInterrupt:
        complain(f"interrupted; it goes on, see `stackd executions list --workflow {workflow_id}`")
        raise
    return started
