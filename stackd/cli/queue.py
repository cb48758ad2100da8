"""`stackd queue …`."""

from __future__ import annotations

from typing import Any

import typer

from stackd.cli.context import JsonFlag, daemon, print_json, say
from stackd.client.models import QueueView

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
