"""`stackd config`: what is set, where it came from, and whether it can be used."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, complain, daemon, print_json, print_table, say
from stackd.client.models import ConfigView, ProblemView, ReloadView
from stackd.core.errors import SettingsError
from stackd.settings import Settings, read_settings, with_dev_secrets

app = typer.Typer(no_args_is_help=True)


class Mode(StrEnum):
    dev = "dev"
    start = "start"


class Role(StrEnum):
    stack = "stack"
    api = "api"
    worker = "worker"
    scheduler = "scheduler"
    timers = "timers"
    rotation = "rotation"


ModeOption = Annotated[Mode, typer.Option(help="As which command would read them.")]
RoleOption = Annotated[Role, typer.Option(help="For which role of it.")]


@app.command()
def show(
    mode: ModeOption = Mode.dev,
    role: RoleOption = Role.stack,
    running: Annotated[
        bool, typer.Option("--running", help="Those of the daemon that runs, as it read them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Every setting, its value (secrets masked) and where it came from; exit 2 if they cannot be used."""
    told = daemon().get("/api/config", ConfigView) if running else _report(mode, role)
    if as_json:
        print_json(told)
    else:
        print_table(
            (Column("setting"), Column("value", "folded"), Column("from", "cut", goes=1)),
            [(row["name"], _word(row["value"]), row["source"]) for row in told["settings"]],
            empty="",
        )
        for warning in told["warnings"]:
            complain(f"warning: {warning}")
        for problem in told["problems"]:
            complain(f"problem: {problem}")
    if told["problems"]:
        sys.exit(2)


def _report(mode: Mode, role: Role) -> dict[str, Any]:
    settings, problems = _read(mode, role)
    warnings = list(settings.warnings)
    return {"settings": settings.report(), "warnings": warnings, "problems": problems}


@app.command()
def check(
    mode: ModeOption = Mode.start, role: RoleOption = Role.stack, as_json: JsonFlag = False
) -> None:
    """Whether the settings can be used; lists every problem at once and exits 2 if there is one."""
    settings, problems = _read(mode, role)
    if as_json:
        told = {"problems": problems, "warnings": list(settings.warnings)}
        print_json({"ok": not problems, **told})
    else:
        for problem in problems:
            say(f"problem: {problem}")
        for warning in settings.warnings:
            say(f"warning: {warning}")
        if not problems:
            say("settings can be used")
    sys.exit(2 if problems else 0)


@app.command()
def reload(as_json: JsonFlag = False) -> None:
    """Let the daemon read its settings again; exit 2, and nothing has changed, if they cannot be used."""
    api = daemon()
    answer = api.request("POST", "/api/config/reload", allow=frozenset({422}))
    is_refused = answer.status == 422
    told = api.shaped(answer, ProblemView if is_refused else ReloadView).body
    if as_json:
        print_json(told)
    elif is_refused:
        complain(f"error: {told['detail']}")
        for problem in told.get("problems") or ():
            complain(f"problem: {problem}")
    else:
        _tell_reload(told)
    sys.exit(2 if is_refused else 0)


def _tell_reload(told: dict[str, Any]) -> None:
    for change in told["changed"]:
        say(f"{change['name']}: {_worded(change)}")
    if not told["changed"]:
        say("nothing has changed")
    for change in told["needsRestart"]:
        say(f"{change['name']}: restart the daemon to apply {_worded(change)}")
    for one in told["overruled"]:
        say(f"{one['name']}: what the config file says has no effect: {one['source']} wins")
    for warning in told["warnings"]:
        complain(f"warning: {warning}")


def _worded(change: dict[str, Any]) -> str:
    before, after = (_word(change[key]) or "(nothing)" for key in ("before", "after"))
    return f"{before} → {after}"


def _read(mode: Mode, role: Role) -> tuple[Settings, list[str]]:
    """The settings as the command would have them, with the secrets it has kept, and every problem."""
    settings, problems = read_settings(mode.value, role=role.value)
    try:
        return with_dev_secrets(settings), problems
    except SettingsError as error:
        return settings, problems + error.problems


def _word(value: Any) -> str:
    """`value` as people write it in a file of settings."""
    return str(value).lower() if isinstance(value, bool) else str(value)
