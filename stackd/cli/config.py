"""`stackd config`: what is set, where it came from, and whether it can be used."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from stackd.cli.context import JsonFlag, complain, print_json, print_table, say
from stackd.core.errors import SettingsError
from stackd.settings import load_settings

app = typer.Typer(no_args_is_help=True)


class Mode(StrEnum):
    dev = "dev"
    start = "start"


ModeOption = Annotated[Mode, typer.Option(help="As which command would read them.")]


@app.command()
def show(mode: ModeOption = Mode.dev, as_json: JsonFlag = False) -> None:
    """Every setting, its value (secrets masked) and where it came from."""
    settings = load_settings(mode=mode.value)
    rows = settings.report()
    if as_json:
        print_json({"settings": rows, "warnings": list(settings.warnings)})
        return
    print_table(
        ("setting", "value", "from"),
        [(row["name"], str(row["value"]), row["source"]) for row in rows],
        empty="",
    )
    for warning in settings.warnings:
        complain(f"warning: {warning}")


@app.command()
def check(mode: ModeOption = Mode.start, as_json: JsonFlag = False) -> None:
    """Whether the settings can be used; lists every problem at once and exits 2 if there is one."""
    problems: list[str] = []
    warnings: list[str] = []
    try:
        warnings += load_settings(mode=mode.value).warnings
    except SettingsError as error:
        problems += error.problems
    if as_json:
        print_json({"ok": not problems, "problems": problems, "warnings": warnings})
    else:
        for problem in problems:
            say(f"problem: {problem}")
        for warning in warnings:
            say(f"warning: {warning}")
        if not problems:
            say("settings can be used")
    sys.exit(2 if problems else 0)
