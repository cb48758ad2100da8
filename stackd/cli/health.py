"""`stackd health`."""

from __future__ import annotations

from stackd.cli.context import daemon, print_json, say
from stackd.client.models import HealthView


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
    return 0 if ok else 1
