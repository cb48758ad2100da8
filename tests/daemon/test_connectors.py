"""Connectors in a real daemon: what it says can run, what runs, and what becomes of secrets."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from support.cli import Command
from support.connectors import action, write_connector
from support.daemon import DaemonProcess, FarSide, eventually, running

SECRET = "canary-secret-0123456789abcdef"

HANDLERS = """
async def by_handler(params, ctx):
    return {"by": "handler", "status": (await ctx.http.get("/handled")).status}

async def leaks(params, ctx):
    return {"token": ctx.connection["token"]}
"""


def desk(url: str) -> dict[str, Any]:
    fields = {"token": {"type": "string", "x-secret": True}, "team": {"type": "string"}}
    return {
        "id": "desk",
        "name": "Desk",
        "baseUrl": url,
        "authentication": {"type": "bearer"},
        "connection": {"fields": {"type": "object", "required": ["token"], "properties": fields}},
        "testConnection": {
            "endpoint": "/status/{team}",
            "label": "body.path",
            "expectedResponse": {"path": "/status/200"},
        },
        "actions": [
            action("by_handler", "GET", "/generic"),
            action("post", "POST", "/post"),
            action("refused", "POST", "/status/403"),
            action("down", "PUT", "/status/502"),
            action("leaks", "GET", "/leaks", hidden=True),
            {"id": "nothing"},
        ],
        "triggers": [action("new_post", "GET", "/posts", type="polling")],
    }


@pytest.fixture(scope="module")
def far() -> Iterator[FarSide]:
    with FarSide().listening() as far:
        yield far


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, far: FarSide) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("connectors")
    write_connector(folder / "mine", desk(far.url), handlers=HANDLERS)
    write_connector(folder / "mine", '{"id": "broken", ')
    (folder / "state").mkdir()
    with running(
        folder / "state",
        STACKD_CONNECTORS_DIR=str(folder / "mine"),
        GENERIC_EXECUTOR_ENABLED="true",
    ) as daemon:
        daemon.http(
            "POST",
            "/api/credentials",
            {"id": "main", "connector": "desk", "fields": {"token": SECRET}},
        )
        yield daemon


def flow(operation: str, *, name: str | None = None, extra: str = "") -> str:
    return (
        f"id: {name or operation}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n"
        f"  - {{id: a, type: action.desk.{operation}, connection: main, {extra}params: {{text: hi}}}}\n"
        "edges:\n  - {from: start, to: a}\n"
    )


def ran(daemon: DaemonProcess, text: str) -> dict[str, Any]:
    return ended(daemon, daemon.load(text)["id"])


def ended(daemon: DaemonProcess, workflow_id: str) -> dict[str, Any]:
    execution = daemon.until(daemon.begin(workflow_id), "completed", "failed", "uncertain")
    return next(node for node in execution["nodes"] if node["id"] == "a")


def count_of(far: FarSide, path: str) -> int:
    return sum(count for (asked, _), count in far.hits.items() if asked == path)


def capability(daemon: DaemonProcess, operation: str, query: str = "?include=unavailable") -> Any:
    payload = daemon.http("GET", f"/api/registry/capabilities{query}").json
    entry = next((one for one in payload["capabilities"] if one["app"] == "desk"), None)
    return None if entry is None else entry["actionDetails"].get(operation)


def test_what_can_run_is_told_with_what_runs_it(daemon: DaemonProcess) -> None:
    payload = daemon.http("GET", "/api/registry/capabilities").json
    entry = next(one for one in payload["capabilities"] if one["app"] == "desk")

    assert payload["success"] is True
    assert payload["runtimes"] == {
        "python": True, "http": True, "node": True, "appsScript": False, "cloudWorker": False,
    }  # fmt: skip
    assert entry["normalizedAppId"] == "desk"
    assert entry["actions"] == ["by_handler", "down", "leaks", "post", "refused"]
    assert entry["triggers"] == []
    assert entry["actionDetails"]["by_handler"] == {
        "id": "by_handler", "normalizedId": "by_handler", "kind": "action",
        "nativeRuntimes": ["python"], "fallbackRuntimes": ["http"], "resolvedRuntime": "python",
        "availability": "native",
        "enabledNativeRuntimes": ["python"], "enabledFallbackRuntimes": ["http"],
        "disabledNativeRuntimes": [], "disabledFallbackRuntimes": [], "issues": [],
    }  # fmt: skip
    assert entry["actionDetails"]["post"]["availability"] == "fallback"
    assert [one["code"] for one in entry["actionDetails"]["post"]["issues"]] == ["runtime.fallback"]
    assert [one["code"] for one in capability(daemon, "nothing")["issues"]] == [
        "runtime.missing_capability"
    ]


def test_what_can_run_is_listed_by_app_and_by_how(stackd: Command) -> None:
    table = stackd("capabilities", "--app", "Desk")
    some = stackd("capabilities", "--app", "desk", "--only", "unavailable", "--json")
    wrong = stackd("capabilities", "--app", "dsk")

    rows = [line.split("\t")[1:5] for line in table.out.splitlines()]
    assert ["action", "by_handler", "native", "python"] in rows
    assert ["action", "post", "fallback", "http"] in rows
    assert ["action", "nothing", "unavailable", "-"] in rows
    (desk,) = some.json["capabilities"]
    assert (desk["actions"], desk["triggers"]) == (["nothing"], ["new_post"])
    assert list(desk["actionDetails"]) == ["nothing"]
    assert (wrong.code, wrong.err) == (
        2,
        "error: there is no app 'dsk'\n  try: did you mean 'desk'?\n",
    )


def test_an_answer_that_has_not_changed_is_not_sent_again(daemon: DaemonProcess) -> None:
    url = f"{daemon.url}/api/registry/capabilities"
    bearer = {"Authorization": f"Bearer {daemon.token}"}
    with urlopen(Request(url, headers={**bearer, "Accept-Encoding": "gzip"})) as answer:
        packed, etag = answer.read(), answer.headers["ETag"]
        assert answer.headers["Content-Encoding"] == "gzip"
    with urlopen(Request(url, headers=bearer)) as answer:
        assert answer.read() == gzip.decompress(packed)

    unchanged = daemon.http("GET", "/api/registry/capabilities", **{"If-None-Match": etag})
    assert unchanged.status == 304
    assert (
        daemon.http("GET", "/api/registry/capabilities", **{"If-None-Match": '"other"'}).status
        == 200
    )


def test_a_broken_definition_hides_no_other_and_is_told(daemon: DaemonProcess) -> None:
    items = {one["id"]: one for one in daemon.http("GET", "/api/registry/connectors").json["items"]}

    assert items["desk"]["problems"] == []
    assert "definition.json" in items["broken"]["problems"][0]
    assert daemon.logged("a connector has faults")
    assert daemon.http("GET", "/api/registry/connectors/dsk").json["hint"] == "did you mean 'desk'?"


def test_a_node_runs_by_its_handler_or_by_generic_http_and_says_which(
    daemon: DaemonProcess,
) -> None:
    native = ran(daemon, flow("by_handler"))
    assert native["output"] == {"by": "handler", "status": 200}
    assert native["metadata"]["executor"] == "integration"
    assert native["metadata"]["credentialSource"] == "connection"
    assert native["metadata"]["connectionId"] == "main"

    generic = ran(daemon, flow("post"))
    assert generic["output"] == {"path": "/post"}
    assert generic["metadata"]["executor"] == "generic"
    assert generic["metadata"]["integrationFallbackReason"]

    failed = ran(daemon, flow("refused"))
    assert failed["error"]["code"] == "forbidden"
    assert failed["metadata"]["executor"] == "generic"


def test_a_secret_stands_nowhere(daemon: DaemonProcess) -> None:
    ran(daemon, flow("post", name="again"))
    ran(daemon, flow("refused", name="refused-again"))
    told = [daemon.http("GET", path).body for path in (
        "/api/credentials", "/api/credentials/main", "/api/executions", "/metrics",
        "/api/registry/connectors/desk",
    )]  # fmt: skip
    files = [path.read_bytes() for path in daemon.state.rglob("*") if path.is_file()]
    shown = [Path(f"/proc/{daemon.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]

    assert files
    for text in (*told, *files, *shown):
        assert SECRET.encode() not in (text.encode() if isinstance(text, str) else text)


def test_a_credential_of_another_connector_is_refused(daemon: DaemonProcess, far: FarSide) -> None:
    daemon.http(
        "POST",
        "/api/credentials",
        {"id": "other", "connector": "elsewhere", "fields": {"token": SECRET}},
    )
    before = far.hits.total()

    node = ran(
        daemon, flow("post", name="foreign").replace("connection: main", "connection: other")
    )

    assert node["error"]["code"] == "credential.other_connector"
    assert far.hits.total() == before


# What is in flight at a kill, by handler or by the generic HTTP that was asked after one had failed: how often
# its path is asked for in all, and how its execution ends.
IN_FLIGHT = {
    "holds_unsafe": (1, "uncertain"),
    "holds_keyed": (2, "completed"),
    "falls_unsafe": (1, "uncertain"),
    "falls_keyed": (2, "completed"),
    "falls_read": (2, "completed"),
}
KILLED_HANDLERS = "".join(
    f"async def {name}(params, ctx):\n"
    # one fails before anything is sent: that is none of the hosts of its app
    f"    await ctx.http.post('{'http://elsewhere.example' * name.startswith('falls')}/{name}')\n"
    for name in IN_FLIGHT
)


def test_after_a_kill_in_mid_flight_nothing_unsafe_is_asked_again_by_handler_or_generic_http(
    tmp_path: Path,
) -> None:
    with FarSide().listening() as far:
        actions = [
            action(name, "GET" if name == "falls_read" else "POST", f"/{name}", effect=name[6:])
            for name in IN_FLIGHT
        ]
        definition = {"id": "desk", "baseUrl": far.url, "actions": actions}
        write_connector(tmp_path / "mine", definition, handlers=KILLED_HANDLERS)
        (tmp_path / "state").mkdir()
        with running(
            tmp_path / "state",
            STACKD_CONNECTORS_DIR=str(tmp_path / "mine"),
            GENERIC_EXECUTOR_ENABLED="true",
        ) as daemon:
            far.is_open.clear()
            plain = "connection: main, params: {text: hi}"
            flows = {name: flow(name).replace(plain, "params: {}") for name in IN_FLIGHT}
            begun = {name: daemon.begin(daemon.load(text)["id"]) for name, text in flows.items()}
            for name in IN_FLIGHT:
                far.arrived(f"/{name}")
            daemon.kill()
            far.is_open.set()
            daemon.start()

            over = {name: daemon.until(one) for name, one in begun.items()}

        assert {
            name: (count_of(far, f"/{name}"), one["status"]) for name, one in over.items()
        } == IN_FLIGHT
        assert far.keys == {"": {f"{begun[name]}:a" for name in IN_FLIGHT if "keyed" in name}}
        told = {
            name: next(node for node in one["nodes"] if node["id"] == "a")["metadata"]
            for name, one in over.items()
            if one["status"] == "completed"
        }
        assert {name: one["executor"] for name, one in told.items()} == {
            "holds_keyed": "integration", "falls_keyed": "generic", "falls_read": "generic",
        }  # fmt: skip


def test_a_flag_that_is_changed_holds_from_the_next_request_on(tmp_path: Path) -> None:
    config = tmp_path / "stackd.toml"
    config.write_text("GENERIC_EXECUTOR_ENABLED = false\n")
    with FarSide().listening() as far:
        write_connector(tmp_path / "mine", desk(far.url), handlers=HANDLERS)
        (tmp_path / "state").mkdir()
        with running(
            tmp_path / "state",
            STACKD_CONNECTORS_DIR=str(tmp_path / "mine"),
            STACKD_CONFIG=str(config),
        ) as daemon:
            daemon.http(
                "POST",
                "/api/credentials",
                {"id": "main", "connector": "desk", "fields": {"token": SECRET}},
            )
            assert capability(daemon, "post", "") is None
            assert capability(daemon, "post")["availability"] == "unavailable"
            assert [one["code"] for one in capability(daemon, "post")["issues"]] == [
                "runtime.fallback_disabled"
            ]
            daemon.api.post("/api/workflows", flow("post").encode(), activate="true", force="true")
            node = ended(daemon, "post")
            assert node["error"]["code"] == "runtime.fallback_disabled"
            assert far.hits.total() == 0

            config.write_text("GENERIC_EXECUTOR_ENABLED = true\n")
            assert daemon.http("POST", "/api/config/reload").status == 200
            assert capability(daemon, "post", "")["availability"] == "fallback"
            assert ran(daemon, flow("post"))["status"] == "completed"

            write_connector(tmp_path / "mine", {**desk(far.url), "id": "second"})
            (tmp_path / "mine" / "desk" / "handlers.py").write_text("import nothing_of_that_name\n")
            assert daemon.http("POST", "/api/config/reload").status == 200
            apps = [
                one["id"] for one in daemon.http("GET", "/api/registry/connectors").json["items"]
            ]
            assert {"desk", "second"} <= set(apps)
            changed = capability(daemon, "by_handler")
            assert changed["availability"] == "fallback"
            assert "nothing_of_that_name" in changed["issues"][0]["message"]
            assert ran(daemon, flow("by_handler"))["metadata"]["executor"] == "generic"


def test_a_handler_file_that_others_can_write_is_not_run(tmp_path: Path) -> None:
    place = write_connector(
        tmp_path / "mine", desk("http://127.0.0.1:9"), handlers="open('ran', 'w')\n"
    )
    (place / "handlers.py").chmod(0o666)
    (tmp_path / "state").mkdir()
    with running(tmp_path / "state", STACKD_CONNECTORS_DIR=str(tmp_path / "mine")) as daemon:
        shown = daemon.http("GET", "/api/registry/connectors/desk").json

    assert "can be written by others" in shown["problems"][0]
    assert not (tmp_path / "ran").exists()


def test_how_operations_have_gone_is_told_and_what_rests_can_be_asked_for_again(
    daemon: DaemonProcess, far: FarSide
) -> None:
    text = flow("down", extra="retry: {maxAttempts: 1}, ")
    for _ in range(3):
        assert ran(daemon, text)["error"]["code"] == "server_error"

    refused = ran(daemon, text)["error"]
    (one,) = [
        item
        for item in daemon.http("GET", "/api/registry/evidence?app=desk").json["items"]
        if item["id"] == "down"
    ]
    shown = capability(daemon, "down", "?include=evidence")["evidence"]
    metrics = daemon.http("GET", "/metrics").body.decode()
    asked = count_of(far, "/status/502")
    closed = daemon.http("POST", "/api/registry/connectors/desk/reset", {"operation": "down"})
    ran(daemon, text)

    assert refused["code"] == "circuit.open"
    assert (one["calls"], one["failures"], one["fallbacks"]) == (3, 3, 0)
    assert (one["circuit"], one["credentialPresent"]) == ("open", True)
    assert one["circuits"][0]["credential"] == "main"
    assert shown["circuits"] == one["circuits"]
    assert 'stackd_circuits{state="open"} 1.0' in metrics
    failed = 'stackd_operations_total{app="desk",executor="generic",operation="down",outcome="failed"} 3.0'
    assert failed in metrics
    assert closed.json == {"closed": 1}
    assert (asked, count_of(far, "/status/502")) == (3, 4)


def test_the_busiest_connectors_are_the_first_to_be_tightened(
    daemon: DaemonProcess, stackd: Command, tmp_path: Path
) -> None:
    ran(daemon, flow("post"))
    seeded = {"runtimes": ["node"], "dedupe": {"strategy": "cursor", "cursor": {"path": "cursor"}}}
    for name in ("atlas", "desk"):
        write_connector(tmp_path, {"id": name, "triggers": {"made": seeded}})
    items = daemon.http("GET", "/api/registry/evidence").json["items"]

    reviewed = stackd("connectors", "review", "--folder", str(tmp_path), "--json").json
    first = stackd("connectors", "review", "--folder", str(tmp_path), "--limit", "1").out

    calls = sum(item["calls"] for item in items if item["app"] == "desk")
    assert calls > 0
    what = ["cursor path", "dedupe", "runtimes"]
    assert reviewed["connectors"] == [
        {"id": "desk", "calls": calls, "seeded": {"made": what}},
        {"id": "atlas", "calls": 0, "seeded": {"made": what}},
    ]
    assert first == f"desk\t{calls}\tmade\tcursor path, dedupe, runtimes\n"


def test_under_dev_a_definition_is_used_as_soon_as_it_is_written(
    tmp_path: Path, far: FarSide
) -> None:
    (tmp_path / "state").mkdir()
    with running(tmp_path / "state", STACKD_ENV="development") as daemon:
        place = tmp_path / "state" / "state" / "connectors"

        def written() -> bool:
            write_connector(place, {**desk(far.url), "id": "fresh"})
            found = daemon.http("GET", "/api/registry/connectors").json["items"]
            return "fresh" in [one["id"] for one in found]

        assert eventually("it is listed", written)


@pytest.mark.parametrize(
    ("team", "error", "status"),
    [
        pytest.param("200", None, 200, id="taken"),
        pytest.param("201", "credential.unexpected_answer", 201, id="unexpected"),
        pytest.param("401", "unauthorized", 401, id="refused"),
    ],
)
def test_a_test_says_whether_the_app_takes_the_credential_and_that_stands_with_it(
    daemon: DaemonProcess, stackd: Command, team: str, error: str | None, status: int
) -> None:
    name = f"of-{team}"
    fields = {"token": SECRET, "team": team}
    daemon.http("POST", "/api/credentials", {"id": name, "connector": "desk", "fields": fields})

    ran = stackd("credentials", "test", name, "--json")

    told = daemon.http("GET", f"/api/credentials/{name}").json["test"]
    assert ran.json == told
    assert (told["ok"], told["status"], ran.code) == (error is None, status, int(error is not None))
    assert (told["error"] or {"code": None})["code"] == error
    assert told["label"] == (f"/status/{team}" if error is None else None)
    assert SECRET not in ran.out + ran.err
    listed = stackd("credentials", "list").out.splitlines()
    word = "works" if error is None else "fails"
    assert word in next(line for line in listed if line.startswith(name))


def test_what_names_nothing_to_test_with_says_so(daemon: DaemonProcess, stackd: Command) -> None:
    body = {"id": "untold", "connector": "unheard", "fields": {"token": SECRET}}
    daemon.http("POST", "/api/credentials", body)

    ran = stackd("credentials", "test", "untold")

    assert ran.code == 1
    assert "was not tested" in ran.out
    assert "not known" in ran.out
    assert daemon.http("GET", "/api/credentials/untold").json["test"] is None


def test_a_change_of_the_credential_forgets_its_test(
    daemon: DaemonProcess, stackd: Command
) -> None:
    body = {"id": "again", "connector": "desk", "fields": {"token": SECRET, "team": "200"}}
    daemon.http("POST", "/api/credentials", body)
    live = stackd("connectors", "test", "--live", "--credential", "again")

    changed = daemon.http("PATCH", "/api/credentials/again", {"fields": {"team": "401"}})

    assert (live.code, live.out) == (0, "again works: /status/200\n")
    assert changed.json["test"] is None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["desk", "--operation", "by_handler"], 0, "live works: desk.by_handler, by integration"),
        (["--operation", "refused"], 2, "desk.refused does more than read (unsafe); nothing was sent"),
        (["--operation", "refused", "--yes"], 1, "live does not work: "),
        (["--operation", "byhandler"], 2, "did you mean by_handler?"),
        (["github"], 2, "credential 'live' is for desk, not for github"),
    ],
    ids=["read", "write", "write_meant", "unknown", "of_another"],
)  # fmt: skip
def test_an_account_is_shown_to_its_app_by_an_action_that_reads_or_is_meant(
    stackd: Command, daemon: DaemonProcess, words: list[str], code: int, told: str
) -> None:
    body = {"id": "live", "connector": "desk", "fields": {"token": SECRET, "team": "200"}}
    daemon.http("POST", "/api/credentials", body)

    ran = stackd("connectors", "test", *words, "--live", "--credential", "live")

    assert ran.code == code
    assert told in ran.out + ran.err
    assert daemon.http("GET", "/api/credentials/live").json["test"] is None


# -- credentials that stand in a node


INLINE = "inline-canary-0123456789"


def inline(name: str, credentials: str = f"{{token: {INLINE}}}", operation: str = "post") -> str:
    return flow(operation, name=name).replace("connection: main", f"credentials: {credentials}")


def test_credentials_of_a_node_work_and_are_shown_nowhere(
    daemon: DaemonProcess, far: FarSide
) -> None:
    loaded = daemon.load(inline("inline"))

    node = ran(daemon, inline("inline"))

    shown = daemon.http("GET", "/api/workflows/inline")
    assert "node.inline_credentials" in [one["code"] for one in loaded["warnings"]]
    assert (node["status"], node["metadata"]["credentialSource"]) == ("completed", "inline")
    assert far.tokens["/post"] == f"Bearer {INLINE}"
    assert list(shown.json["document"]["nodes"][1]["credentials"]) == ["$sealed"]
    for file in daemon.state.rglob("stackd.db*"):
        assert INLINE.encode() not in file.read_bytes()
    assert INLINE not in daemon.tail() + shown.text


def test_an_exported_document_keeps_the_credentials_that_it_does_not_show(
    daemon: DaemonProcess, far: FarSide
) -> None:
    first = daemon.load(inline("exported"))
    document = daemon.http("GET", "/api/workflows/exported").json["document"]

    same = daemon.http("POST", "/api/workflows", document)
    anew = daemon.http("POST", "/api/workflows", inline("exported").encode())
    document["name"] = "Another name"
    other = daemon.http("POST", "/api/workflows", document)
    execution = daemon.until(daemon.begin("exported"), "completed", "failed")

    versions = [one.json["version"] for one in (same, anew, other)]
    assert (first["version"], versions) == (1, [1, 1, 2])
    assert (same.status, anew.status, other.status) == (200, 200, 201)
    assert execution["status"] == "completed"
    assert far.tokens["/post"] == f"Bearer {INLINE}"


def test_sealed_credentials_serve_no_other_workflow_node_connector_or_address(
    daemon: DaemonProcess,
) -> None:
    daemon.load(inline("kept-here"))
    document = daemon.http("GET", "/api/workflows/kept-here").json["document"]
    sealed = document["nodes"][1]["credentials"]["$sealed"]

    def refused(text: str) -> str:
        answer = daemon.http("POST", "/api/workflows", text.encode())
        assert answer.status == 422
        return str(answer.code)

    reference = f"{{$sealed: {sealed}}}"
    moved = inline("kept-here", reference).replace("id: a,", "id: b,").replace("to: a", "to: b")
    assert refused(inline("elsewhere", reference)) == "credential.sealed_elsewhere"
    assert refused(moved) == "credential.sealed_elsewhere"
    assert (
        refused(inline("kept-here", reference).replace("action.desk.", "action.github."))
        == "credential.sealed_elsewhere"
    )
    beside = f"{{$sealed: {sealed}, baseUrl: http://evil.example}}"
    assert refused(inline("kept-here", beside)) == "document.invalid"


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param(f"{{token: [{INLINE}]}}", id="a list"),
        pytest.param(f"{{unheard: {INLINE}}}", id="an unknown field"),
        pytest.param(f'{{token: "{{{{ {INLINE} }}}}"}}', id="an expression"),
        pytest.param(f"{{token: {INLINE}}}, connection: main", id="beside a connection"),
        pytest.param("{}", id="none"),
    ],
)
def test_credentials_that_cannot_be_are_refused_and_not_shown(
    daemon: DaemonProcess, credentials: str
) -> None:
    answer = daemon.http("POST", "/api/workflows", inline("refused-ones", credentials).encode())

    assert answer.status == 422, answer.text
    assert INLINE not in answer.text
    assert daemon.http("GET", "/api/workflows/refused-ones").status == 404


def test_an_output_that_holds_the_credential_is_stored_sealed_and_shown_without_it(
    daemon: DaemonProcess, stackd: Command
) -> None:
    text = flow("leaks") + "  - {from: a, to: b}\n"
    text = text.replace(
        "edges:",
        '  - {id: b, type: transform.data.set, params: {values: {n: "{{ a.token | length }}"}}}\nedges:',
    )
    execution_id = daemon.begin(daemon.load(text)["id"])
    execution = daemon.until(execution_id, "completed", "failed")

    shown = stackd("executions", "show", execution_id, "--json")

    nodes = {node["id"]: node for node in execution["nodes"]}
    assert nodes["a"]["output"] == {"token": "[REDACTED]"}
    assert execution["output"] == nodes["b"]["output"] == {"n": len(SECRET)}
    assert SECRET not in shown.out
    for file in daemon.state.rglob("stackd.db*"):
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in daemon.tail()
