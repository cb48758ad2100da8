"""The link of a node run, over real sockets: who may call it, what a person sees, and what becomes of a call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.cli import child
from support.daemon import Answer, DaemonProcess, running

MAX_OUTPUT = 64 * 1024

ASKING = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: ask, type: action.wait.webhook, params: {params}}}
edges: [{{from: start, to: ask}}]
"""
PAGE = "text/html,application/xhtml+xml,*/*;q=0.8"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("resume")
    with running(folder, STACKD_MAX_OUTPUT_BYTES=str(MAX_OUTPUT)) as started:
        started.load(ASKING.format(id="asking", params="{}"))
        started.load(ASKING.format(id="getting", params="{methods: [GET]}"))
        yield started


def asked(daemon: DaemonProcess, workflow: str = "asking") -> tuple[str, str]:
    """An execution that waits, and its link as its owner sees it, without the address."""
    execution_id = daemon.begin(workflow)
    view = daemon.until(execution_id, "waiting")
    (node,) = [n for n in view["nodes"] if n["id"] == "ask"]
    link = urlsplit(node["metadata"]["resumeUrl"])
    assert f"{link.scheme}://{link.netloc}" == daemon.url
    return execution_id, f"{link.path}?{link.query}"


def call(
    daemon: DaemonProcess, link: str, body: Any = None, method: str = "POST", **headers: str
) -> Answer:
    return daemon.http(method, link, body, authorized=False, **headers)


def output(daemon: DaemonProcess, execution_id: str) -> Any:
    view = daemon.until(execution_id)
    assert view["status"] == "completed", view
    return view["output"]


def test_a_call_needs_no_token_and_is_the_output(daemon):
    execution_id, link = asked(daemon)

    answer = call(daemon, f"{link}&answer=yes&x=1&x=2", {"n": 1}, X_Trace="t")

    assert (answer.status, answer.json) == (
        202,
        {"success": True, "executionId": execution_id, "workflowId": "asking"},
    )
    given = output(daemon, execution_id)
    assert (given["body"], given["query"], given["method"]) == (
        {"n": 1},
        {"answer": "yes", "x": ["1", "2"]},
        "POST",
    )
    assert given["headers"]["x-trace"] == "t"


def test_the_link_may_come_as_headers_and_is_kept_nowhere(daemon):
    execution_id, link = asked(daemon)
    path, _, query = link.partition("?")
    token, signature = re.findall(r"=([^&]+)", query)

    answer = call(daemon, path, X_Resume_Token=token, X_Resume_Signature=signature)

    assert answer.status == 202
    output(daemon, execution_id)
    for file in daemon.state.glob("stackd.db*"):
        content = file.read_bytes()
        assert token.encode() not in content
        assert signature.encode() not in content
    assert token not in daemon.log.read_text()


def test_what_is_no_good_link_is_refused(daemon):
    execution_id, link = asked(daemon)
    path, _, query = link.partition("?")
    other = asked(daemon)[1].partition("?")[2]

    refusals = {
        place: (answer.status, answer.code)
        for place, answer in {
            "nothing": call(daemon, path),
            "half": call(daemon, link.partition("&")[0]),
            "of another": call(daemon, f"{path}?{other}"),
            "of no node": call(daemon, f"{path.replace('/ask/', '/task/')}?{query}"),
            "of no execution": call(daemon, f"{path.replace(execution_id, 'nope')}?{query}"),
        }.items()
    }

    invalid = (403, "link.invalid")
    assert refusals == {
        "nothing": (400, "link.incomplete"),
        "half": (400, "link.incomplete"),
        "of another": invalid,
        "of no node": invalid,
        "of no execution": invalid,
    }
    assert daemon.execution(execution_id)["status"] == "waiting"


def test_a_used_link_is_gone(daemon):
    execution_id, link = asked(daemon)
    call(daemon, link, "first")

    answer = call(daemon, link, "second")

    assert (answer.status, answer.code) == (410, "link.used")
    assert output(daemon, execution_id)["body"] == "first"


def test_of_two_calls_at_once_one_is_taken(daemon):
    execution_id, link = asked(daemon)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: call(daemon, link, n), range(16)))

    statuses = [answer.status for answer in answers]
    assert sorted(statuses) == [202] + [410] * 15
    assert output(daemon, execution_id)["body"] == statuses.index(202)


def test_looking_at_a_link_changes_nothing(daemon):
    execution_id, link = asked(daemon)

    page = call(daemon, f"{link}&is=%3Cb%3Efine", method="GET", Accept=PAGE)
    looks = [call(daemon, link, method=m) for m in ("GET", "HEAD", "OPTIONS", "PUT")]

    assert (page.status, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert '<form method="post">' in page.text
    assert "is: &lt;b&gt;fine" in page.text
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert "script" not in page.text
    assert [one.status for one in looks] == [405] * 4
    assert looks[0].headers["allow"] == "POST"
    assert daemon.execution(execution_id)["status"] == "waiting"


def test_a_person_is_answered_with_pages(daemon):
    execution_id, link = asked(daemon)
    form = {"Accept": PAGE, "Content_Type": "application/x-www-form-urlencoded"}

    done = call(daemon, f"{link}&is=fine", b"", **form)
    again = call(daemon, link, b"", **form)
    look = call(daemon, link, method="GET", Accept=PAGE)

    assert (done.status, again.status, look.status) == (202, 410, 410)
    assert all("<h1>" in one.text and "<form" not in one.text for one in (done, again, look))
    assert output(daemon, execution_id)["query"] == {"is": "fine"}


def test_a_node_may_be_called_by_get(daemon):
    execution_id, link = asked(daemon, "getting")

    refused = call(daemon, link)
    answer = call(daemon, f"{link}&a=b", method="GET")

    assert (refused.status, answer.status) == (405, 202)
    assert output(daemon, execution_id)["query"] == {"a": "b"}


def test_a_call_over_the_limit_of_an_output_is_refused_and_may_be_made_again(daemon):
    execution_id, link = asked(daemon)

    answer = call(daemon, link, "x" * MAX_OUTPUT)

    assert (answer.status, answer.code) == (413, "node.too_large")
    assert call(daemon, link, "small").status == 202
    assert output(daemon, execution_id)["body"] == "small"


def test_a_file_that_is_sent_stays_and_one_that_comes_too_late_goes(daemon):
    execution_id, link = asked(daemon)
    blobs = daemon.state / "blobs"
    binary = {"Content_Type": "application/octet-stream"}
    before = {file.name for file in blobs.rglob("*") if file.is_file()}

    assert call(daemon, link, b"\x00kept", **binary).status == 202
    assert call(daemon, link, b"\x00late", **binary).status == 410

    blob = output(daemon, execution_id)["body"]["$blob"]
    assert daemon.http("GET", f"/api/blobs/{blob}").body == b"\x00kept"
    assert {file.name for file in blobs.rglob("*") if file.is_file()} - before == {blob}
    with daemon.file() as file:  # an execution refers to it, so that it is not collected
        assert file.execute("SELECT refs FROM blobs WHERE id = ?", (blob,)).fetchone() == (1,)


def test_who_may_only_read_is_shown_no_link(daemon):
    execution_id, _ = asked(daemon)

    def links(scope: str) -> list[bool]:
        made = daemon.api.post("/api/tokens", {"name": scope, "scopes": [scope]})
        paths = (f"/api/executions/{execution_id}", f"/api/executions/{execution_id}/nodes")
        answers = [daemon.http("GET", p, Authorization=f"Bearer {made['token']}") for p in paths]
        assert [answer.status for answer in answers] == [200, 200]
        return ["resumeUrl" in answer.text for answer in answers]

    assert links("read") == [False, False]
    assert links("run") == [True, True]


def test_a_link_holds_over_a_kill_and_so_does_what_was_answered(tmp_path):
    with running(tmp_path) as daemon:
        daemon.load(ASKING.format(id="asking", params="{}"))
        execution_id, link = asked(daemon)
        daemon.kill()
        daemon.start()

        assert call(daemon, link, "after").status == 202
        daemon.kill()
        daemon.start()

        assert output(daemon, execution_id)["body"] == "after"


def test_links_and_webhook_addresses_begin_as_others_reach_the_daemon(tmp_path):
    with running(tmp_path, STACKD_PUBLIC_URL="https://box.example/flows/") as daemon:
        daemon.load(ASKING.format(id="asking", params="{}"))
        hook = "id: h\nnodes: [{id: hook, type: trigger.webhook.inbound, params: {path: a}}]\n"
        imported = daemon.load(hook)
        execution_id = daemon.begin("asking")
        view = daemon.until(execution_id, "waiting")
        state = str(daemon.state)

        shown = child("executions", "show", execution_id, STACKD_STATE_DIR=state)
        words = ("executions", "resume", execution_id, "--input", '{"by": "hand"}')
        resumed, again = (child(*words, STACKD_STATE_DIR=state) for _ in range(2))

        link = view["nodes"][-1]["metadata"]["resumeUrl"]
        assert link.startswith(f"https://box.example/flows/api/runs/{execution_id}/nodes/ask/")
        address = "https://box.example/flows/api/webhooks/a"
        assert [one["url"] for one in imported["webhooks"]] == [address]
        assert f"ask waits for a call to {link}" in shown.stdout.decode()
        assert (resumed.returncode, again.returncode) == (0, 2)
        assert "waits for no call" in again.stderr.decode()
        assert output(daemon, execution_id)["body"] == {"by": "hand"}
