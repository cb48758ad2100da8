"""Tokens and scopes as values: what a token is, what each scope includes, what each route needs."""

from __future__ import annotations

import re

import pytest

from stackd.access.tokens import Scope, id_in, new_token
from stackd.core.errors import InputError
from stackd.web.app import all_routes
from stackd.web.auth import may_use_socket
from stackd.web.webhooks import Webhooks

NOW = 1_700_000_000.0


@pytest.mark.parametrize("held", list(Scope))
@pytest.mark.parametrize("needed", list(Scope))
def test_a_scope_includes_those_before_it_and_no_other(held: Scope, needed: Scope) -> None:
    order = ["read", "run", "write", "admin"]

    assert needed.is_within({held}) is (order.index(held) >= order.index(needed))


def test_a_token_has_a_prefix_its_id_and_256_bits_that_nothing_but_its_text_shows() -> None:
    one = new_token(" ci ", ["write", "read", "read"], expires_at=None, now=NOW)
    other = new_token("ci", ["run"], expires_at=NOW + 1, now=NOW)

    found = re.fullmatch(r"stkd_([0-9a-z]{26})_([A-Za-z0-9_-]{43})", one.text)
    assert found
    assert found[1] == one.row.id == id_in(one.text)
    assert (one.row.name, one.row.scopes) == ("ci", (Scope.READ, Scope.WRITE))
    assert len(one.secret_hash) == 32
    assert found[2] not in repr(one)
    assert one.text[-43:] != other.text[-43:]


@pytest.mark.parametrize(
    "text", ["", "wrong", "stkd_", f"stkd_{'a' * 26}_{'b' * 42}", f"xstkd_{'a' * 26}_{'b' * 43}"]
)
def test_what_is_no_token_has_no_id(text: str) -> None:
    assert id_in(text) is None


@pytest.mark.parametrize(
    ("name", "scopes", "expires_at", "code"),
    [
        ("", ["read"], None, "token.name"),
        ("x" * 101, ["read"], None, "token.name"),
        ("a\x1b[2Jb", ["read"], None, "token.name"),
        ("ci", [], None, "token.scope"),
        ("ci", ["raed"], None, "token.scope"),
        ("ci", ["read"], NOW, "token.expiry"),
    ],
)
def test_a_token_that_cannot_be_is_refused(
    name: str, scopes: list[str], expires_at: float | None, code: str
) -> None:
    with pytest.raises(InputError) as caught:
        new_token(name, scopes, expires_at=expires_at, now=NOW)

    assert caught.value.code == code
    assert "raed" not in scopes or caught.value.hint == "did you mean 'read'?"


@pytest.mark.parametrize(("uid", "may"), [(0, True), (1000, True), (1001, False), (65534, False)])
def test_only_the_daemons_user_and_root_may_use_the_socket(uid: int, may: bool) -> None:
    assert may_use_socket(uid, own=1000) is may


# What a caller must hold: a new route belongs here too.
EXPECTED = {
    ("GET", "/api/workflows"): "read",
    ("POST", "/api/workflows"): "write",
    ("GET", "/api/workflows/{id}"): "read",
    ("DELETE", "/api/workflows/{id}"): "write",
    ("POST", "/api/workflows/{id}/activate"): "write",
    ("POST", "/api/workflows/{id}/deactivate"): "write",
    ("GET", "/api/workflows/{id}/versions"): "read",
    ("GET", "/api/workflows/{id}/versions/{version}"): "read",
    ("POST", "/api/workflows/{id}/rollback"): "write",
    ("POST", "/api/workflows/{id}/lint"): "read",
    ("POST", "/api/workflows/lint"): "read",
    ("GET", "/api/schema/{name}"): "read",
    ("POST", "/api/workflows/{id}/run"): "run",
    ("POST", "/api/executions"): "run",
    ("GET", "/api/executions"): "read",
    ("GET", "/api/executions/{id}"): "read",
    ("GET", "/api/executions/{id}/nodes"): "read",
    ("POST", "/api/executions/prune"): "admin",
    ("POST", "/api/executions/{id}/cancel"): "run",
    ("POST", "/api/executions/{id}/resolve"): "run",
    ("POST", "/api/executions/{id}/retry"): "run",
    ("GET", "/api/blobs/{id}"): "read",
    ("GET", "/api/queue"): "read",
    ("GET", "/api/queue/check"): "read",
    ("POST", "/api/queue/repair"): "admin",
    ("POST", "/api/queue/pause"): "admin",
    ("POST", "/api/queue/resume"): "admin",
    ("GET", "/api/tokens"): "admin",
    ("POST", "/api/tokens"): "admin",
    ("DELETE", "/api/tokens/{id}"): "admin",
    ("GET", "/api/credentials"): "read",
    ("POST", "/api/credentials"): "admin",
    ("GET", "/api/credentials/{id}"): "read",
    ("PATCH", "/api/credentials/{id}"): "admin",
    ("DELETE", "/api/credentials/{id}"): "admin",
    ("GET", "/api/config"): "admin",
    ("GET", "/api/registry/capabilities"): "read",
    ("GET", "/api/registry/connectors"): "read",
    ("GET", "/api/registry/connectors/{id}"): "read",
    ("POST", "/api/registry/connectors/{id}/reset"): "write",
    ("POST", "/api/credentials/{id}/test"): "write",
    ("GET", "/api/registry/evidence"): "read",
    ("GET", "/api/sandbox/quarantine"): "read",
    ("POST", "/api/workflows/{id}/release"): "write",
    ("POST", "/api/config/reload"): "admin",
    ("GET", "/metrics"): "read",
    ("GET", "/api/events"): "read",
    ("GET", "/api/why/{id}"): "read",
    ("GET", "/api/openapi.json"): "read",
}
OPEN = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/startupz"),
    ("GET", "/readyz/{check}"),
    ("GET", "/api/health/queue"),
    ("GET", "/api/production/ready"),
    ("*", "/api/webhooks/{path:.+}"),
    ("*", "/api/runs/{execution}/nodes/{node}/resume"),
}


def test_every_route_needs_the_scope_that_is_written_here() -> None:
    needs = {(route.method, route.path): route.needs for route in all_routes(Webhooks())}

    assert {route: scope.value for route, scope in needs.items() if scope is not None} == EXPECTED
    assert {route for route, scope in needs.items() if scope is None} == OPEN
