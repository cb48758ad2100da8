"""`stackd queue …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from stackd.cli.context import (
    JsonFlag,
    complain,
    daemon,
    print_json,
    say,
    waiting,
)
from stackd.client.models import Model, QueueCheckView, QueueRepairView, QueueView

SHOWN = 3  # ids of a finding
PATIENCE = 600.0  # seconds: every page of the file is read

app = typer.Typer(no_args_is_help=True)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Jobs by state, and the processes on this state directory."""
    _show(daemon().get("/api/queue", QueueView), as_json=as_json)


@app.command()
def pause(as_json: JsonFlag = False) -> None:
    """Stop all claims; what runs goes on, and deliveries are still accepted."""
    _show(daemon().post("/api/queue/pause", None, QueueView), as_json=as_json)


@app.command()
def resume(as_json: JsonFlag = False) -> None:
    """Claim again."""
    _show(daemon().post("/api/queue/resume", None, QueueView), as_json=as_json)


@app.command()
def check(as_json: JsonFlag = False) -> None:
    """What does not fit together in the store; ends with 1 if anything does."""
    with waiting("looking through the store"):
        view = _looked(QueueCheckView, "GET", "/api/queue/check")
    if as_json:
        print_json(view)
    else:
        _show_findings(view)
    if not view["sound"]:
        sys.exit(1)


@app.command()
def repair(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Mend what does not fit together; ends with 1 if anything is left."""
    with waiting("looking through the store"):
        view = _looked(QueueRepairView, "POST", "/api/queue/repair", {"dryRun": dry_run})
    if as_json:
        print_json(view)
    else:
        for repaired in view["repaired"]:
            say(f"mended {repaired['code']}: {repaired['count']}")
        _show_findings(view)
    if not view["sound"]:
        sys.exit(1)


def _looked(shape: type[Model], method: str, path: str, body: Any = None) -> Any:
    api = daemon()
    return api.shaped(api.request(method, path, body=body, timeout=PATIENCE), shape).body


def _show_findings(view: dict[str, Any]) -> None:
    if view["sound"]:
        say("all fits together")
        return
    for finding in view["findings"]:
        say(f"{finding['code']}: {finding['about']}")
        of = _some(finding["ids"], finding["count"])
        say(f"  {finding['count']}, {_MENDED[finding['repair']]}: {of}")
    complain("README, Queue consistency, says what each of these means")


_MENDED = {
    "itself": "mended by itself",
    "repair": "mended by `stackd queue repair`",
    "none": "for a person to look at",
}


def _some(ids: Sequence[str], count: int) -> str:
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _show(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    say("paused" if view["paused"] else "running")
    for state, count in view["counts"].items():
        say(f"  {state:<10} {count}")
    say(f"  oldest due job waits {view['oldestWaitSeconds']:.1f} s")
    for process in view["processes"]:
        gone = "" if process["alive"] else "  (gone)"
        say(f"  {process['role']} pid {process['pid']} last heard {process['heartbeatAt']}{gone}")
