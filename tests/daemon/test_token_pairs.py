"""A daemon that is killed while a token endpoint has its request: what became of the pair is told, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from support.connectors import write_connector
from support.daemon import DaemonProcess
from support.grants import CLIENT, Grants, granting

Daemons = Callable[..., DaemonProcess]


@contextmanager
def holding(portal: BlockingPortal) -> Iterator[Grants]:
    """An app whose token endpoint keeps its answers until its gate is set."""
    with portal.wrap_async_context_manager(granting()) as grants:
        grants.gate = portal.call(anyio.Event)
        yield grants


def connect(daemon: DaemonProcess, name: str, grants: Grants) -> None:
    """A credential of that name whose access token is over, and a workflow that needs it."""
    fields = {
        **CLIENT, "accessToken": "over-long-ago", "refreshToken": grants.refresh,
        "expiresAt": "2020-01-01T00:00:00Z",
    }  # fmt: skip
    daemon.api.post("/api/credentials", {"id": name, "connector": name, "fields": fields})
    daemon.load(
        f"id: {name}\nnodes:\n  - {{id: go, type: trigger.time.manual}}\n"
        f"  - {{id: a, type: action.{name}.look, connection: {name}}}\nedges: [{{from: go, to: a}}]\n"
    )


def ended(daemon: DaemonProcess, execution_id: str) -> tuple[str, str | None]:
    """How an execution ended, and with which error; sooner than the claim of a dead process would by itself."""
    view: Any = daemon.until(execution_id, "completed", "failed", within=15.0)
    return view["status"], (view["error"] or {}).get("code")


def test_a_daemon_killed_while_it_renews_leaves_no_claim_and_a_pair_that_is_renewed_or_told_as_lost(
    daemons: Daemons, tmp_path: Path
) -> None:
    with start_blocking_portal() as portal, ExitStack() as stack:
        apps = {name: stack.enter_context(holding(portal)) for name in ("kept", "lost")}
        for name, grants in apps.items():
            write_connector(tmp_path / "mine", grants.definition() | {"id": name, "name": name})
        daemon = daemons(
            STACKD_CONNECTORS_DIR=str(tmp_path / "mine"), GENERIC_EXECUTOR_ENABLED="true"
        )
        daemon.start()
        for name, grants in apps.items():
            connect(daemon, name, grants)
        begun = {name: daemon.begin(name) for name in apps}
        for grants in apps.values():
            assert grants.far is not None
            portal.call(lambda far=grants.far: far.until(requests=1))

        daemon.kill()
        apps[
            "kept"
        ].breaks = True  # it did nothing for that request; the other has ended its old token
        for grants in apps.values():
            assert grants.far is not None
            assert grants.gate is not None
            portal.call(grants.gate.set)
            portal.call(lambda far=grants.far: far.until(ended=1))
        apps["kept"].breaks = False
        daemon.start()

        assert ended(daemon, begun["kept"]) == ("completed", None)
        assert ended(daemon, begun["lost"]) == ("failed", "credential.reconnect")
        shown = {name: daemon.api.get(f"/api/credentials/{name}") for name in apps}
        assert shown["kept"]["reconnect"] is None
        assert "invalid_grant" in shown["lost"]["reconnect"]
        assert apps["kept"].calls() == ["access-token-0002"]
        assert apps["lost"].calls() == []
        for file in daemon.state.rglob("stackd.db*"):
            content = file.read_bytes()
            secrets = ("refresh-token-000", "access-token-000", CLIENT["clientSecret"])
            assert not [one for one in secrets if one.encode() in content]
