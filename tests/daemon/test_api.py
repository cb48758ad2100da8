"""The HTTP API of a running stack, route by route, over real sockets."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psutil
import pytest
from support.daemon import Answer, DaemonProcess, FarSide, eventually

from stackd.web.health import is_local

HELLO = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: greet, type: transform.data.set, params: {{values: {{text: "Hello, {{{{ start.name | default('world') }}}}"}}}}}}
edges: [{{from: start, to: greet}}]
"""
HELLO_AS_JSON = """
{{"edges": [{{"to": "greet", "from": "start"}}], "id": "{id}", "nodes": [
  {{"type": "trigger.time.manual", "id": "start"}},
  {{"id": "greet", "type": "transform.data.set",
    "params": {{"values": {{"text": "Hello, {{{{ start.name | default('world') }}}}"}}}}}}]}}
"""
SLEEPY = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: nap, type: action.time.delay, params: {{delayHours: 1}}}}
edges: [{{from: start, to: nap}}]
"""
CALLING = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: call, type: action.http.request, params: {{method: {method}, url: "{url}"}}}}
  - {{id: after, type: transform.data.set, params: {{values: {{done: true}}}}}}
edges: [{{from: start, to: call}}, {{from: call, to: after}}]
"""


@pytest.fixture(scope="module", autouse=True)
def workflows(daemon: DaemonProcess, far_side: FarSide) -> None:
    """hello ends at once, sleepy waits, held runs until the far side answers, doubtful ends uncertain, broken fails."""
    daemon.load(HELLO.format(id="hello"))
    daemon.load(SLEEPY.format(id="sleepy"))
    daemon.load(CALLING.format(id="held", method="GET", url=f"{far_side.url}/held"))
    daemon.load(CALLING.format(id="doubtful", method="POST", url=f"{far_side.url}/drop"))
    daemon.load(CALLING.format(id="broken", method="POST", url=f"{far_side.url}/status/400"))


@pytest.fixture
def closed(far_side: FarSide) -> Iterator[FarSide]:
    """The far side, answering nothing until the test opens it."""
    far_side.is_open.clear()
    yield far_side
    far_side.is_open.set()


def document(text: str, workflow_id: str) -> bytes:
    return text.format(id=workflow_id).encode()


# -- workflows


def test_import_answers_201_then_200_with_the_same_version_for_the_same_content(
    daemon: DaemonProcess,
) -> None:
    first = daemon.http("POST", "/api/workflows", document(HELLO, "import-twice"))
    again = daemon.http("POST", "/api/workflows", document(HELLO, "import-twice"))
    as_json = daemon.http("POST", "/api/workflows", document(HELLO_AS_JSON, "import-twice"))

    expected = {
        "id": "import-twice",
        "version": 1,
        "active": False,
        "warnings": [],
        "webhooks": [],
    }
    assert (first.status, first.json) == (201, expected)
    assert (again.status, again.json) == (200, expected)
    assert (as_json.status, as_json.json) == (200, expected)


def test_changed_content_is_a_new_version_and_old_content_its_old_one(
    daemon: DaemonProcess,
) -> None:
    changed = HELLO.replace("Hello", "Good day")
    daemon.http("POST", "/api/workflows", document(HELLO, "import-change"))

    new = daemon.http("POST", "/api/workflows", document(changed, "import-change"))
    old = daemon.http("POST", "/api/workflows", document(HELLO, "import-change"))

    assert (new.status, new.json["version"]) == (201, 2)
    assert (old.status, old.json["version"]) == (200, 1)
    run = daemon.http("POST", "/api/workflows/import-change/run?wait=20", {})
    assert run.json["output"] == {"text": "Hello, world"}


def test_every_error_of_a_document_comes_at_once_with_its_place(daemon: DaemonProcess) -> None:
    bad = b"""id: bad-doc
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: greet, type: transform.data.sett, params: {values: {a: "{{ strat.a }}"}}}
  - {id: wait, type: action.time.delay, params: {delaySeconds: soon}}
edges:
  - {from: start, to: nowhere}
"""

    refused = daemon.http("POST", "/api/workflows?name=bad.yaml", bad)

    assert (refused.status, refused.code) == (422, "document.invalid")
    findings = refused.json["findings"]
    assert {finding["line"] for finding in findings} >= {4, 5, 7}
    assert all(finding["code"] and finding["message"] for finding in findings)
    assert "transform.data.set" in str(findings), "the nearest known type is named"
    assert "bad.yaml" in refused.json["detail"]
    assert daemon.http("GET", "/api/workflows/bad-doc").code == "workflow.not_found"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 422, "document.invalid", id="empty"),
        pytest.param(b"id: [unclosed", 422, "document.invalid", id="malformed"),
        pytest.param(b"id: \xff", 422, "document.invalid", id="not-utf8"),
        pytest.param(b"# " + b"x" * (256 * 1024), 413, "document.too_large", id="large"),
    ],
)
def test_unreadable_documents_are_problems(
    daemon: DaemonProcess, body: bytes, status: int, code: str
) -> None:
    refused = daemon.http("POST", "/api/workflows", body)

    assert (refused.status, refused.code) == (status, code)


def test_workflows_are_listed_by_id_page_by_page(daemon: DaemonProcess) -> None:
    for number in range(5):
        daemon.http("POST", "/api/workflows", document(HELLO, f"paged-{number}"))

    seen: list[str] = []
    cursor: str | None = "paged-"
    while cursor is not None:
        page = daemon.http("GET", f"/api/workflows?limit=2&cursor={cursor}").json
        assert len(page["items"]) <= 2
        seen += [item["id"] for item in page["items"]]
        cursor = page["nextCursor"]

    assert seen == sorted(set(seen))
    assert seen[:5] == [f"paged-{number}" for number in range(5)]


def test_the_list_has_the_webhooks_of_each_workflow(daemon: DaemonProcess) -> None:
    ids = ["hooks-0", "hooks-1", "hooks-2"]
    for one, path in zip(ids, ("hooks/a", "hooks/b", None), strict=True):
        nodes = [{"id": "start", "type": "trigger.time.manual"}]
        if path is not None:
            hook = {"id": "hook", "type": "trigger.webhook.inbound", "params": {"path": path}}
            nodes.append(hook)
        daemon.http("POST", "/api/workflows", {"id": one, "nodes": nodes})

    listed = daemon.http("GET", "/api/workflows?limit=3&cursor=hooks-").json["items"]

    url = f"{daemon.url}/api/webhooks/hooks"
    assert [(item["id"], item["webhooks"]) for item in listed] == [
        ("hooks-0", [{"node": "hook", "url": f"{url}/a"}]),
        ("hooks-1", [{"node": "hook", "url": f"{url}/b"}]),
        ("hooks-2", []),
    ]


def test_show_has_the_document_and_what_was_listed(daemon: DaemonProcess) -> None:
    shown = daemon.http("GET", "/api/workflows/hello").json

    assert set(shown) == {
        "id", "name", "version", "active", "contentHash", "createdAt", "updatedAt", "webhooks",
        "warnings", "document",
    }  # fmt: skip
    assert (shown["id"], shown["active"], shown["version"]) == ("hello", True, 1)
    assert re.fullmatch(r"[0-9a-f]{64}", shown["contentHash"])
    assert shown["document"]["nodes"][1]["id"] == "greet"


def test_activate_and_deactivate_say_what_is_now(daemon: DaemonProcess) -> None:
    daemon.http("POST", "/api/workflows", document(HELLO, "switched"))

    states = [
        daemon.http("POST", f"/api/workflows/switched/{verb}").json["active"]
        for verb in ("activate", "activate", "deactivate", "deactivate")
    ]

    assert states == [True, True, False, False]
    assert daemon.http("GET", "/api/workflows/switched").json["active"] is False


@pytest.mark.parametrize(
    "path", ["", "/activate", "/deactivate", "/run"], ids=["show", "activate", "deactivate", "run"]
)
def test_an_unknown_workflow_is_404(daemon: DaemonProcess, path: str) -> None:
    method = "POST" if path else "GET"

    answer = daemon.http(method, f"/api/workflows/nobody{path}")

    assert (answer.status, answer.code) == (404, "workflow.not_found")


# -- starting executions


def test_run_answers_202_and_with_wait_the_whole_execution(daemon: DaemonProcess) -> None:
    started = daemon.http("POST", "/api/workflows/hello/run", {"input": {"name": "Ada"}})
    waited = daemon.http("POST", "/api/workflows/hello/run?wait=20", {"input": {"name": "Bob"}})

    execution_id = started.json["executionId"]
    assert started.status == 202
    assert started.json == {"success": True, "executionId": execution_id, "workflowId": "hello"}
    assert daemon.until(execution_id)["output"] == {"text": "Hello, Ada"}
    assert waited.status == 200
    assert (waited.json["status"], waited.json["output"]) == ("completed", {"text": "Hello, Bob"})


def test_a_wait_that_is_too_short_answers_202_and_the_execution_goes_on(
    daemon: DaemonProcess,
) -> None:
    answer = daemon.http("POST", "/api/workflows/sleepy/run?wait=0.05", {})

    assert answer.status == 202
    daemon.until(answer.json["executionId"], "waiting")


@pytest.mark.parametrize("wait", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused_and_starts_nothing(
    daemon: DaemonProcess, wait: str
) -> None:
    before = daemon.api.get("/api/executions", limit=1)["items"]

    by_path = daemon.http("POST", f"/api/workflows/hello/run?wait={wait}", {})
    by_body = daemon.http("POST", f"/api/executions?wait={wait}", {"workflowId": "hello"})

    assert {(one.status, one.code) for one in (by_path, by_body)} == {(422, "query.wait")}
    assert daemon.api.get("/api/executions", limit=1)["items"] == before


def test_post_executions_starts_the_named_workflow(daemon: DaemonProcess) -> None:
    answer = daemon.http(
        "POST", "/api/executions", {"workflowId": "hello", "input": {"name": "Cy"}}
    )

    assert answer.status == 202
    assert answer.json["workflowId"] == "hello"
    assert daemon.until(answer.json["executionId"])["output"] == {"text": "Hello, Cy"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"{}", 422, "input.workflow_id", id="no-workflow"),
        pytest.param(b'{"workflowId": 7}', 422, "input.workflow_id", id="workflow-no-text"),
        pytest.param(b'{"workflowId": "nobody"}', 404, "workflow.not_found", id="unknown"),
        pytest.param(b"[]", 422, "json.not_object", id="no-object"),
        pytest.param(b"{", 422, "json.malformed", id="malformed"),
        pytest.param(b'{"a": 1, "a": 2}', 422, "json.duplicate_key", id="duplicate-key"),
        pytest.param(
            b'{"workflowId": "hello", "input": "\\ud800"}', 422, "json.text", id="half-a-pair"
        ),
    ],
)
def test_bodies_that_start_nothing_are_problems(
    daemon: DaemonProcess, body: bytes, status: int, code: str
) -> None:
    answer = daemon.http("POST", "/api/executions", body)

    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        ("/api/workflows/hello/run", {"inptu": 1}, "did you mean 'input'?"),
        ("/api/workflows/hello/run", {"input": 1, "\n": 1}, "known here: input"),
        ("/api/executions", {"workflowId": "hello", "imput": 1}, "did you mean 'input'?"),
        ("/api/executions/x/resolve", {"decison": "skip"}, "did you mean 'decision'?"),
    ],
)
def test_a_member_that_is_not_known_is_refused_with_the_nearest_that_is(
    daemon: DaemonProcess, path: str, body: dict[str, object], hint: str
) -> None:
    answer = daemon.http("POST", path, body)

    assert (answer.status, answer.code) == (422, "input.unknown_key")
    assert answer.json["hint"] == hint


def test_an_idempotency_key_starts_one_execution_per_workflow(daemon: DaemonProcess) -> None:
    def start(path: str, key: str) -> str:
        body = {"workflowId": path, "input": None}
        return str(
            daemon.http("POST", "/api/executions", body, Idempotency_Key=key).json["executionId"]
        )

    first = start("hello", "one")
    by_run = daemon.http("POST", "/api/workflows/hello/run", {}, Idempotency_Key="one")

    assert start("hello", "one") == first
    assert by_run.json["executionId"] == first
    assert start("hello", "two") != first
    assert start("sleepy", "one") != first
    assert start("hello", "") != start("hello", "")


def test_a_key_that_comes_again_with_another_input_is_refused(daemon: DaemonProcess) -> None:
    def start(given: object) -> Answer:
        body = {"workflowId": "hello", "input": given}
        return daemon.http("POST", "/api/executions", body, Idempotency_Key="mine")

    first, other, again = start({"name": 1}), start({"name": 2}), start({"name": 1})

    assert (other.status, other.code) == (422, "idempotency.mismatch")
    assert first.json["executionId"] in other.json["detail"]
    assert again.json["executionId"] == first.json["executionId"]


def test_an_idempotency_key_over_255_characters_is_refused(daemon: DaemonProcess) -> None:
    answer = daemon.http("POST", "/api/workflows/hello/run", {}, Idempotency_Key="k" * 256)

    assert (answer.status, answer.code) == (422, "dedupe.key_too_long")


# -- executions


def test_executions_are_listed_newest_first_page_by_page_and_filtered(
    daemon: DaemonProcess,
) -> None:
    daemon.load(HELLO.format(id="listed"))
    started = [daemon.begin("listed") for _ in range(5)]
    for execution_id in started:
        daemon.until(execution_id, "completed")

    def pages(query: str) -> list[str]:
        found, cursor = [], ""
        while cursor is not None:
            more = f"&cursor={cursor}" if cursor else ""
            page = daemon.http("GET", f"/api/executions?{query}&limit=2{more}").json
            found += [item["id"] for item in page["items"]]
            cursor = page["nextCursor"]
        return found

    assert pages("workflowId=listed") == started[::-1]
    assert pages("workflowId=listed&status=completed") == started[::-1]
    assert pages("workflowId=listed&status=failed") == []
    assert pages("workflowId=nobody") == []
    assert daemon.http("GET", "/api/executions?status=completed").json["items"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("status=done", "query.status"),
        ("limit=0", "query.limit"),
        ("limit=501", "query.limit"),
        ("limit=ten", "query.limit"),
        (f"limit={'9' * 5000}", "query.limit"),
        ("cursor=abc", "query.cursor"),
        (f"cursor={'9' * 5000}", "query.cursor"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_query_is_refused(daemon: DaemonProcess, query: str, code: str) -> None:
    answer = daemon.http("GET", f"/api/executions?{query}")

    assert (answer.status, answer.code) == (422, code)


def test_one_execution_has_the_documented_shape(daemon: DaemonProcess) -> None:
    given = {"name": "Ada", "big": 12345678901234567890123}

    shown = daemon.http("POST", "/api/workflows/hello/run?wait=20", {"input": given}).json
    execution_id = shown["id"]

    assert shown == daemon.execution(execution_id)
    assert set(shown) == {
        "id", "workflowId", "version", "status", "trigger", "input", "output", "error",
        "createdAt", "startedAt", "finishedAt", "nodes", "parent", "moreNodes",
    }  # fmt: skip
    assert shown["trigger"] == {"type": "trigger.time.manual", "nodeId": "start"}
    assert (shown["input"], shown["error"]) == (given, None)
    assert (
        instant(shown["createdAt"]) <= instant(shown["startedAt"]) <= instant(shown["finishedAt"])
    )
    start, greet = shown["nodes"]
    assert set(greet) == {
        "id", "type", "status", "attempt", "startedAt", "durationMs", "output", "error", "logs",
        "metadata",
    }  # fmt: skip
    assert (start["id"], start["output"]) == ("start", given)
    assert (greet["id"], greet["type"]) == ("greet", "transform.data.set")
    assert (greet["status"], greet["attempt"]) == ("completed", 1)
    assert greet["output"] == {"text": "Hello, Ada"}
    assert greet["durationMs"] >= 0


def instant(text: str) -> datetime:
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text)


def test_a_failed_execution_says_which_node_and_why(daemon: DaemonProcess) -> None:
    failed = daemon.http("POST", "/api/workflows/broken/run?wait=20", {}).json

    assert (failed["status"], failed["output"]) == ("failed", None)
    assert set(failed["error"]) == {"code", "message", "nodeId"}
    assert failed["error"]["nodeId"] == "call"
    assert "400" in failed["error"]["message"]
    by_id = {node["id"]: node for node in failed["nodes"]}
    assert by_id["call"]["error"]["code"] == failed["error"]["code"]


def test_cancel_ends_a_waiting_execution_at_once(daemon: DaemonProcess) -> None:
    execution_id = daemon.begin("sleepy")
    daemon.until(execution_id, "waiting")

    answer = daemon.http("POST", f"/api/executions/{execution_id}/cancel")

    assert answer.status == 200
    assert answer.json == {"success": True, "executionId": execution_id, "status": "cancelled"}
    assert daemon.execution(execution_id)["error"]["code"] == "execution.cancelled"


def test_cancel_reaches_a_running_execution(daemon: DaemonProcess, closed: FarSide) -> None:
    execution_id = daemon.begin("held")
    daemon.until(execution_id, "running")

    answer = daemon.http("POST", f"/api/executions/{execution_id}/cancel")

    assert (answer.status, answer.json["status"]) == (202, "running")
    ended = daemon.until(execution_id)
    assert ended["status"] == "cancelled"
    assert {node["status"] for node in ended["nodes"]} <= {"completed", "skipped", "failed"}


def test_cancel_leaves_a_finished_execution_as_it_is(daemon: DaemonProcess) -> None:
    execution_id = daemon.begin("hello")
    before = daemon.until(execution_id, "completed")

    answer = daemon.http("POST", f"/api/executions/{execution_id}/cancel")

    assert (answer.status, answer.json["status"]) == (200, "completed")
    assert daemon.execution(execution_id) == before


@pytest.mark.parametrize(
    ("decision", "status", "node", "output"),
    [
        ("skip", "completed", "skipped", {"done": True}),
        ("fail", "failed", "failed", None),
        ("retry", "uncertain", "uncertain", None),  # the far side drops the connection again
    ],
)
def test_resolve_decides_an_uncertain_execution(
    daemon: DaemonProcess, far_side: FarSide, decision: str, status: str, node: str, output: Any
) -> None:
    execution_id = daemon.begin("doubtful")
    uncertain = daemon.until(execution_id)
    sent = far_side.hits["/drop", ""]

    answer = daemon.http(
        "POST", f"/api/executions/{execution_id}/resolve", {"decision": decision, "node": "call"}
    )

    assert uncertain["status"] == "uncertain"
    assert answer.status == 200
    assert answer.json == {"success": True, "executionId": execution_id, "status": "queued"}
    if decision == "retry":
        far_side.arrived("/drop", sent + 1)
    ended = eventually(
        "it rests again", lambda: (v := daemon.until(execution_id)) and decided(v) and v
    )
    call = next(one for one in ended["nodes"] if one["id"] == "call")
    assert (ended["status"], call["status"], ended["output"]) == (status, node, output)
    assert call["metadata"]["resolved"] == decision
    assert far_side.hits["/drop", ""] == sent + (decision == "retry")


def decided(view: dict[str, Any]) -> bool:
    call = next(one for one in view["nodes"] if one["id"] == "call")
    return "resolved" in call["metadata"]


def test_resolve_refuses_what_is_not_uncertain_or_no_decision(daemon: DaemonProcess) -> None:
    execution_id = daemon.begin("hello")
    daemon.until(execution_id, "completed")
    path = f"/api/executions/{execution_id}/resolve"

    finished = daemon.http("POST", path, {"decision": "skip"})
    undecided = daemon.http("POST", path, {"decision": "perhaps"})
    no_node = daemon.http("POST", path, {"decision": "skip", "node": 7})

    assert (finished.status, finished.code) == (409, "execution.not_uncertain")
    assert (undecided.status, undecided.code) == (422, "input.decision")
    assert (no_node.status, no_node.code) == (422, "input.node")


@pytest.mark.parametrize("verb", ["", "/cancel", "/resolve"], ids=["show", "cancel", "resolve"])
def test_an_unknown_execution_is_404(daemon: DaemonProcess, verb: str) -> None:
    body = {"decision": "skip"} if verb == "/resolve" else None

    answer = daemon.http("POST" if verb else "GET", f"/api/executions/nobody{verb}", body)

    assert (answer.status, answer.code) == (404, "execution.not_found")


# -- the queue


def test_a_paused_queue_takes_work_and_runs_it_once_resumed(daemon: DaemonProcess) -> None:
    paused = daemon.http("POST", "/api/queue/pause").json
    try:
        execution_id = daemon.begin("hello")
        status = daemon.http("GET", "/api/queue").json
        held = daemon.execution(execution_id)["status"]
    finally:
        resumed = daemon.http("POST", "/api/queue/resume").json

    assert (paused["paused"], status["paused"], resumed["paused"]) == (True, True, False)
    assert held == "queued"
    assert status["counts"]["available"] >= 1
    daemon.until(execution_id, "completed")


def test_queue_status_counts_every_state_and_names_the_processes(daemon: DaemonProcess) -> None:
    status = daemon.http("GET", "/api/queue").json

    assert set(status) == {"counts", "paused", "oldestWaitSeconds", "processes"}
    assert set(status["counts"]) == {
        "scheduled", "available", "running", "retryable", "completed", "cancelled", "discarded",
    }  # fmt: skip
    (process,) = status["processes"]
    assert (process["pid"], process["role"], process["alive"]) == (daemon.pid, "stack", True)
    assert instant(process["startedAt"]) <= instant(process["heartbeatAt"])


# -- who may call


GUARDED = [
    ("GET", "/api/workflows"),
    ("POST", "/api/workflows"),
    ("GET", "/api/executions"),
    ("POST", "/api/queue/pause"),
    ("GET", "/metrics"),
    ("GET", "/livez2"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED, ids=[f"{m} {p}" for m, p in GUARDED])
def test_without_its_token_a_caller_gets_401(daemon: DaemonProcess, method: str, path: str) -> None:
    none = daemon.http(method, path, authorized=False)
    wrong = daemon.http(method, path, Authorization="Bearer wrong")
    garbled = daemon.http(method, path, Authorization="Bearer caf\xe9")
    other = daemon.http(method, path, Authorization=f"Basic {daemon.token}")

    for answer in (none, wrong, garbled, other):
        assert (answer.status, answer.code) == (401, "auth.required")
        assert answer.headers["www-authenticate"].split()[0] == "Bearer"


def test_the_token_is_kept_private_and_opens_the_api(daemon: DaemonProcess) -> None:
    mode = (daemon.state / "dev-token").stat().st_mode & 0o777

    answer = daemon.http("GET", "/api/queue", Authorization=f"bearer {daemon.token}")

    assert (mode, answer.status) == (0o600, 200)


def test_the_unix_socket_needs_no_token_and_lets_only_its_user_in(daemon: DaemonProcess) -> None:
    mode = (daemon.state / "stackd.sock").stat().st_mode & 0o777

    status = daemon.api.get("/api/queue")

    assert (mode, status["paused"]) == (0o600, False)


def test_an_unknown_path_is_404_and_a_wrong_method_405(daemon: DaemonProcess) -> None:
    unknown = daemon.http("GET", "/api/nothing")
    wrong = daemon.http("DELETE", "/api/workflows")

    assert (unknown.status, unknown.code) == (404, "path.not_found")
    assert (wrong.status, wrong.code) == (405, "method.not_allowed")
    assert set(wrong.headers["allow"].split(",")) == {"GET", "HEAD", "POST"}


# -- health and metrics


@pytest.mark.parametrize("probe", ["/livez", "/readyz", "/startupz"])
def test_probes_are_plain_and_in_full_when_asked(daemon: DaemonProcess, probe: str) -> None:
    plain = daemon.http("GET", probe, authorized=False)
    verbose = daemon.http("GET", f"{probe}?verbose", authorized=False)
    by_accept = daemon.http("GET", probe, authorized=False, Accept="application/health+json")

    assert (plain.status, plain.text) == (200, "ok\n")
    assert plain.headers["cache-control"] == "no-store"
    for answer in (verbose, by_accept):
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/health+json"
        assert answer.json["status"] == "pass"
        assert answer.json["version"]
        assert {check["status"] for check in answer.json["checks"].values()} <= {"pass", "warn"}


def test_readiness_checks_a_write_and_every_service(daemon: DaemonProcess) -> None:
    checks = daemon.http("GET", "/readyz?verbose", authorized=False).json["checks"]

    assert set(checks) == {
        "goes_on", "store.write", "store.space", "store.integrity", "disk", "queue.work", "queue.consistency", "timers", "sandbox", "loop", "clock", "service.worker", "service.scheduler", "service.timers",
        "service.rotation", "service.api",
    }  # fmt: skip
    assert 0 <= checks["store.write"]["ageSeconds"] <= 5


def test_one_check_may_be_asked_for_by_its_name(daemon: DaemonProcess) -> None:
    plain = daemon.http("GET", "/readyz/store.write", authorized=False)
    verbose = daemon.http("GET", "/readyz/service.worker?verbose", authorized=False)
    unknown = daemon.http("GET", "/readyz/sotre.write", authorized=False)

    assert (plain.status, plain.text) == (200, "ok\n")
    assert verbose.json["checks"] == {"service.worker": {"status": "pass", "reason": None, "ageSeconds": None, "latencyMs": None, "details": None}}  # fmt: skip
    assert (unknown.status, unknown.code) == (404, "health.unknown_check")


def test_checks_that_are_excluded_do_not_count_and_unknown_ones_are_refused(
    daemon: DaemonProcess,
) -> None:
    path = "/readyz?verbose&exclude=store.write&exclude=loop"
    answer = daemon.http("GET", path, authorized=False)
    unknown = daemon.http("GET", "/readyz?exclude=nope", authorized=False)

    found = {name: check["status"] for name, check in answer.json["checks"].items()}
    assert [name for name, status in found.items() if status == "excluded"] == [
        "store.write", "loop",
    ]  # fmt: skip
    assert (unknown.status, unknown.code) == (400, "health.unknown_check")


def test_the_queue_is_durable_and_works(daemon: DaemonProcess) -> None:
    answer = daemon.http("GET", "/api/health/queue", authorized=False)

    health = answer.json["health"]
    assert (answer.status, answer.json["success"]) == (200, True)
    assert (health["status"], health["durable"], health["error"]) == ("pass", True, None)
    assert datetime.fromisoformat(health["checkedAt"]).tzinfo is not None


def test_production_is_ready_when_every_check_is_good(daemon: DaemonProcess) -> None:
    answer = daemon.http("GET", "/api/production/ready", authorized=False)

    assert (answer.status, answer.json["success"], answer.json["status"]) == (200, True, "ready")
    assert answer.json["checks"]["queue.work"] is True
    assert answer.json["queueDetails"]["durable"] is True


def test_readiness_tells_of_the_last_moves_of_each_service(daemon: DaemonProcess) -> None:
    services = daemon.http("GET", "/readyz?verbose", authorized=False).json["services"]

    assert [s["name"] for s in services] == ["api", "worker", "scheduler", "timers", "rotation"]
    for service in services:
        assert (service["state"], service["restarts"]) == ("ready", 0)
        assert [(m["was"], m["state"]) for m in service["moves"]] == [("starting", "ready")]
        assert (service["silentSeconds"] is None) == (service["name"] in ("rotation", "api"))


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        (None, True),
        ("", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.7", False),
        ("10.0.0.1", False),
        ("::ffff:192.0.2.7", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
        ("not an address", False),
    ],
)
def test_only_this_machine_counts_as_local(remote: str | None, local: bool) -> None:
    assert is_local(remote) is local


def test_from_another_address_a_probe_shows_status_words_only(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    daemon = DaemonProcess(tmp_path_factory.mktemp("open") / "state", HOST="0.0.0.0")
    try:
        daemon.start()
        seen = daemon.http("GET", "/readyz?verbose", host=address, authorized=False).json
        nearby = daemon.http("GET", "/readyz?verbose", authorized=False).json
    finally:
        daemon.kill()

    assert seen["status"] == "pass"
    assert seen["checks"].keys() == nearby["checks"].keys()
    words = {"reason": None, "ageSeconds": None, "latencyMs": None, "details": None}
    assert all(check == words | {"status": check["status"]} for check in seen["checks"].values())
    assert seen["version"] is None
    assert nearby["version"]
    assert nearby["checks"]["store.write"]["ageSeconds"] is not None


def own_address() -> str | None:
    """An IPv4 address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family is socket.AF_INET and not one.address.startswith("127."):
                return one.address
    return None


def test_metrics_have_the_documented_names_and_count(daemon: DaemonProcess) -> None:
    daemon.load(HELLO.format(id="counted"))
    daemon.until(daemon.begin("counted"), "completed")

    answer = daemon.http("GET", "/metrics")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    figures = metrics(answer)
    assert figures['executions_queued_total{workflow="counted"}'] == 1
    assert figures['executions_finished_total{status="completed",workflow="counted"}'] == 1
    assert figures['stackd_service_state{service="worker",state="ready"}'] == 1
    assert figures['stackd_service_moves_total{service="worker",state="ready"}'] == 1
    assert figures['jobs_total{move="completed"}'] >= 1
    assert figures['workflow_queue_depth{state="running"}'] >= 0
    latency = 'workflow_node_latency_ms_count{status="completed",type="transform.data.set"}'
    assert figures[latency] >= 1


def metrics(answer: Answer) -> dict[str, float]:
    lines = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
