"""The API as `/api/openapi.json` describes it, tried by a machine: whatever is sent, no 5xx and no false answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.daemon import DaemonProcess

from stackd.web.app import all_routes
from stackd.web.openapi import describe
from stackd.web.webhooks import Webhooks

DESCRIPTION = describe(all_routes(Webhooks()))
# A stream has no end; a paused queue would stop the others' executions.
LEFT_OUT = {"GET /api/events", "POST /api/queue/pause"}
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    found.ok().label: found.ok()
    for found in schemathesis.openapi.from_dict(DESCRIPTION).get_all_operations()
}
HELLO = """
id: hello
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: hook, type: trigger.webhook.inbound, params: {path: hello}}
edges: []
"""
KNOWN = {"id": "hello", "name": "workflow", "path": "hello", "version": "1"}  # of what is there


@pytest.fixture(scope="module")
def loaded(daemon: DaemonProcess) -> DaemonProcess:
    daemon.load(HELLO)
    return daemon


def test_the_description_is_what_the_daemon_serves(daemon):
    assert daemon.http("GET", "/api/openapi.json").json == DESCRIPTION


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", sorted(OPERATIONS.keys() - LEFT_OUT))
def test_an_operation_survives_what_fits_its_description_and_what_does_not(label, mode, loaded):
    operation = OPERATIONS[label]
    chosen = random.Random(label)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def attempt(case: Any) -> None:
        if case.path_parameters and chosen.random() < 0.5:  # else hardly anything would be found
            case.path_parameters.update({k: KNOWN[k] for k in case.path_parameters if k in KNOWN})
        case.headers.update({"Authorization": f"Bearer {loaded.token}"})
        answer = case.call(base_url=loaded.url, timeout=30)
        case.validate_response(answer, checks=CHECKS)

    try:
        attempt()
    except Unsatisfiable:
        assert (
            mode is GenerationMode.NEGATIVE
        )  # of some operations nothing can be against the description
