"""Every workflow in config/examples runs against a service that answers, and does there what its comment says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.daemon import DaemonProcess, answer_json
from support.flows import read

from stackd.workflows.document import read_document

FOLDER = Path(__file__).resolve().parents[2] / "config" / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PAYLOADS = FOLDER.parent / "payloads"

ANSWERS: dict[str, tuple[int, Any]] = {
    "/health/shop": (200, "fine"),
    "/health/blog": (500, "broken"),
    "/readers": (200, {"readers": [
        {"email": "ada@x.org", "name": "Ada", "active": True}, {"email": "b@x.org", "active": False},
        {"email": "none", "active": True}, {"email": "cy@x.org", "active": True},
    ]}),
    "/companies/big.example": (200, {"name": "Big", "address": {"country": "NL"}}),
    "/companies/small.example": (404, {"error": "unknown"}),
    "/sizes?domain=big.example": (200, {"employees": 5000}),
    "/sizes?domain=small.example": (503, {"error": "down"}),
    "/contacts/bad@x.org": (422, {"error": "no such domain"}),
}  # fmt: skip


class Service:
    """Answers from ANSWERS, else with 200 and an id; keeps what it was sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.calls.append((self.command, self.path, json.loads(sent) if sent else None))
                status, answer = ANSWERS.get(self.path, (200, {"id": len(service.calls)}))
                answer_json(self, status, answer)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[Service]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def sent(self, path: str) -> list[Any]:
        """The bodies of what arrived there, in order."""
        return [body for _, at, body in self.calls if at == path]


@pytest.fixture
def service(daemon: DaemonProcess) -> Iterator[Service]:
    """The service, and all examples imported to call it."""
    with Service().serving() as serving:
        for name in NAMES:
            text = (FOLDER / f"{name}.yaml").read_text()
            daemon.load(text.replace("http://127.0.0.1:9000", serving.url))
        yield serving


def payload(name: str) -> Any:
    """One of the payloads, with the id of a delivery, as `stackd demo` sends them."""
    return {**json.loads((PAYLOADS / name).read_text()), "delivery": "1"}


def delivered(daemon: DaemonProcess, path: str, body: Any, **headers: str) -> Any:
    """The execution that a delivery started, once it rests."""
    return daemon.until(daemon.deliver(path, body, **headers).json["executionId"])


def run(daemon: DaemonProcess, workflow: str, given: Any = None) -> Any:
    return daemon.until(daemon.begin(workflow, given))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_no_findings_and_says_what_it_is_for(name):
    text = (FOLDER / f"{name}.yaml").read_text()

    document = read_document(text.encode(), name=name, max_bytes=256 * 1024)

    assert document.warnings == ()
    assert document.id == name
    assert text.startswith("# ")
    assert read(text).workflow.name


def test_there_are_ten_examples_and_more():
    assert len(NAMES) >= 10


def test_hello(daemon, service):
    done = run(daemon, "hello", {"name": "Ada"})

    assert (done["status"], done["output"]["text"]) == ("completed", "Hello, Ada")


def test_github_events(daemon, service):
    done = delivered(daemon, "github", payload("github-push.json"))

    assert done["status"] == "completed", done["error"]
    (message,) = service.sent("/messages")
    assert "pushed" in message["text"]


def test_order_intake(daemon, service):
    assert delivered(daemon, "orders", payload("order-small.json"))["status"] == "completed"

    assert len(service.sent("/orders")) == 1


def test_sensor_batch(daemon, service):
    assert delivered(daemon, "sensors", payload("sensor-batch.json"))["status"] == "completed"

    assert len(service.sent("/summaries")) == 1


def test_contact_form(daemon, service):
    form = {"name": "Ada", "email": "Ada@X.org", "message": "Hello?"}

    people, robots = (
        daemon.deliver("contact", form),
        daemon.deliver("contact", form | {"website": "x"}),
    )

    assert people.json == robots.json == {"message": "Thank you, we will write back."}
    (mail,) = service.sent("/mails")
    assert mail["replyTo"] == "ada@x.org"
    assert "Hello?" in mail["text"]


def test_uptime_check(daemon, service):
    done = run(daemon, "uptime-check")

    assert done["status"] == "completed", done["error"]
    (message,) = service.sent("/messages")
    assert message["text"] == f"down: {service.url}/health/blog"


def test_newsletter(daemon, service):
    done = run(daemon, "newsletter", {"subject": "News", "text": "All is well."})

    assert done["status"] == "completed", done["error"]
    mails = {mail["to"]: mail["text"] for mail in service.sent("/mails")}
    assert mails == {
        "ada@x.org": "Dear Ada,\n\nAll is well.", "cy@x.org": "Dear reader,\n\nAll is well.",
    }  # fmt: skip


def test_approval(daemon, service):
    asked = {
        name: daemon.deliver("expenses", {"name": name, "amount": amount}).json["executionId"]
        for name, amount in (("ada", 250), ("bo", 300), ("cy", 20))
    }
    for name, link in (("ada", "accept"), ("bo", "refuse")):
        daemon.until(asked[name], "waiting")
        (mail,) = [m for m in service.sent("/mails") if m["text"].startswith(name)]
        assert (
            daemon.http("POST", mail[link].removeprefix(daemon.url), authorized=False).status == 202
        )

    for execution_id in asked.values():
        assert daemon.until(execution_id)["status"] == "completed"
    booked = {one["name"]: one["is"] for one in service.sent("/expenses")}
    assert booked == {"ada": "accepted", "bo": "refused", "cy": "accepted"}


def test_booking_reminder(daemon, service):
    guest = {"name": "Ada", "email": "ada@x.org"}
    soon = {"id": "b1", "startsAt": "2026-01-05T18:00:00Z", "guest": guest}
    later = {"id": "b2", "startsAt": "2126-01-05T18:00:00Z", "guest": guest}

    first = delivered(daemon, "bookings", soon)
    again = daemon.deliver("bookings", soon)
    waits = daemon.deliver("bookings", later).json["executionId"]

    assert first["status"] == "completed", first["error"]
    assert again.json["executionId"] == first["id"]
    assert daemon.until(waits, "waiting")
    (mail,) = service.sent("/mails")
    assert mail["text"] == "Until 05.01., 19:00, Ada!"


def test_enrich_lead(daemon, service):
    for email in ("Eve@Big.example", "sam@small.example"):
        done = delivered(daemon, "leads", {"email": email})
        assert done["status"] == "completed", done["error"]

    (big,) = service.sent("/crm/leads/eve@big.example")
    (small,) = service.sent("/crm/leads/sam@small.example")
    assert big == {
        "lead": {"email": "eve@big.example", "company": "Big", "country": "NL", "employees": 5000},
        "segment": "enterprise",
    }
    assert small == {
        "lead": {"email": "sam@small.example", "company": "small.example"}, "segment": "default",
    }  # fmt: skip
    assert [message["text"] for message in service.sent("/messages")] == [
        "call eve@big.example of Big"
    ]


def test_backup_report(daemon, service):
    reports = (
        {"host": "a", "status": "OK", "minutes": 5},
        {"host": "b", "status": "ok", "minutes": 500},
        {"host": "c", "status": "failed", "minutes": 1, "errors": [
            {"kind": "io", "text": "1"}, {"kind": "space", "text": "2"}, {"kind": "io", "text": "3"},
        ]},
        {"host": "d", "status": "what", "minutes": 1},
    )  # fmt: skip
    for report in reports:
        done = delivered(daemon, "backups", report)
        assert done["status"] == "completed", done["error"]

    (page,) = service.sent("/pages")
    assert page["summary"] == "backup of c failed: io, space"
    assert [len(problem["items"]) for problem in page["problems"]] == [2, 1]
    texts = [message["text"] for message in service.sent("/messages")]
    assert texts == ["backup of b took 500 minutes", "backup of d said what"]


def test_import_contacts_and_contact(daemon, service):
    lines = b"Ada; Ada@X.org\r\n\r\nNobody\nBad;bad@x.org\nCy;cy@x.org\n"

    answer = daemon.deliver("contacts", lines, Content_Type="text/plain")

    assert answer.json == {"imported": 2, "refused": [2, 3]}
    stored = [path for method, path, _ in service.calls if method == "PUT"]
    assert sorted(stored) == [
        "/contacts/ada@x.org",
        "/contacts/bad@x.org",
        "/contacts/cy@x.org",
    ]
    failed = daemon.api.get("/api/executions", None, workflowId="contact", status="failed")
    assert len(failed["items"]) == 2
