"""`stackd health`."""

from __future__ import annotations

from typing import Any

from stackd.cli.context import daemon, print_json, say
from stackd.client.models import HealthView

MOVES_SHOWN = 5  # of each service; --json has the last hundred


def show(path: str, *, verbose: bool, as_json: bool) -> int:
    """Print what the probe at `path` says; 0 if it passes, 1 if not."""
    api = daemon()
    answer = api.request("GET", path, query={"verbose": "1"}, allow=frozenset({503}))
    api.shaped(answer, HealthView)
    ok = answer.status == 200
    if as_json:
        print_json(answer.body)
        return 0 if ok else 1
    say("healthy" if ok else "not healthy")
    for name, check in answer.body["checks"].items():
        if verbose or check["status"] != "pass":
            reason = f"  {check['reason']}" if check.get("reason") else ""
            say(f"  {check['status']:<4} {name}{reason}")
    if verbose:
        for service in answer.body["services"]:
            _say_service(service)
    return 0 if ok else 1


def _say_service(service: dict[str, Any]) -> None:
    """Its state and the last changes of that, the newest first."""
    reason = f": {service['reason']}" if service["reason"] else ""
    restarts = f", {service['restarts']} restarts" if service["restarts"] else ""
    say(f"  {service['name']} {service['state']} since {service['since']}{restarts}{reason}")
    for move in reversed(service["moves"][-MOVES_SHOWN:]):
        why = f"  {move['reason']}" if move["reason"] else ""
        say(f"    {move['at']}  {move['was']} → {move['state']}{why}")
