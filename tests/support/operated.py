"""stackd as a service of a virtual machine: asked, delivered to and looked at from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from support.daemon import eventually
from support.machine import Machine, Running

SERVICE, SOCKET = "stackd.service", "stackd.socket"
STATE = "/var/lib/stackd"
HOOK = "http://127.0.0.1:5000/api/webhooks/hooked"
HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
  - {id: out, type: transform.data.set, params: {values: {n: "{{ hook.body.n }}"}}}
edges: [{from: hook, to: out}]
"""
# Deliver over a connection each, some at a time, until the input ends; tell of each at once what became of it.
DELIVERIES = """
import http.client, itertools, json, sys, threading
numbers, over = itertools.count(), threading.Event()
def deliver():
    while not over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=120)
        try:
            body = json.dumps({"n": next(numbers)}).encode()
            connection.request("POST", "/api/webhooks/hooked", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            told = json.loads(answer.read())
            became = told["executionId"] if answer.status == 202 else told["code"]
            line = f"{answer.status} {became}"
        except Exception as error:
            line = f"000 {error!r}"
        finally:
            connection.close()
        sys.stdout.write(line + "\\n")
        sys.stdout.flush()
for _ in range(int(sys.argv[1])):
    threading.Thread(target=deliver).start()
sys.stdin.read()
over.set()
"""
AT_A_TIME = 3
SETTLED_WITHIN = 180.0  # seconds; many executions, on an emulated processor


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def accepted(lines: Collection[str]) -> set[str]:
    """The executions that deliveries were told of."""
    return {line.removeprefix("202 ") for line in lines if line.startswith("202 ")}


def others(lines: Collection[str]) -> set[str]:
    """What other deliveries were told."""
    return {line for line in lines if not line.startswith("202 ")}


class Service:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # -- as systemd has it

    def ctl(self, *words: str, check: bool = True) -> int | None:
        return self.machine.run("systemctl", *words, check=check).returncode

    def shown(self, name: str) -> str:
        return self.machine.shown(SERVICE, name)

    @property
    def pid(self) -> int:
        return int(self.shown("MainPID"))

    def again(self, pid: int, *, within: float = 120.0) -> None:
        """Wait until another process than `pid` is active."""

        def look() -> bool:
            words = ("show", "--property=ActiveState,MainPID", SERVICE)
            told = self.machine.run("systemctl", *words).stdout
            found = re.search(r"MainPID=(\d+)", told)
            assert found is not None
            return "ActiveState=active" in told and int(found[1]) not in (0, pid)

        eventually("it is active again", look, within=within)

    @contextmanager
    def edited(self, text: str) -> Iterator[None]:
        """With what `systemctl edit` would have made of `text`, from the next start on."""
        dropin = f"/etc/systemd/system/{SERVICE}.d/test.conf"
        self.machine.write(dropin, f"[Service]\n{text}\n")
        self.ctl("daemon-reload")
        try:
            yield
        finally:
            self.machine.run("rm", dropin)
            self.ctl("daemon-reload")

    # -- as its callers have it

    def ask(self, path: str, *, method: str = "GET", body: str = "", kind: str = "") -> Answer:
        """Ask over the Unix socket."""
        socket = ("--unix-socket", f"{STATE}/stackd.sock")
        return self._request(f"http://stackd{path}", method, body, kind, *socket)

    def deliver(self, body: str = '{"n": 1}', *, kind: str = "application/json") -> Answer:
        return self._request(HOOK, "POST", body, kind)

    def _request(self, url: str, method: str, body: str, kind: str, *words: str) -> Answer:
        words += ("--silent", "--show-error", "--max-time", "100", "--request", method)
        if body:
            words += ("--data-binary", "@-", "--header", f"Content-Type: {kind}")
        words += ("--write-out", "\n%{http_code}", url)
        said = self.machine.run("curl", *words, given=body).stdout
        text, _, status = said.rpartition("\n")
        return Answer(int(status), text)

    @contextmanager
    def delivering(self, at_a_time: int = AT_A_TIME) -> Iterator[Running]:
        """With deliveries all the time. Each line that it prints is a status, and an execution or why there is none."""
        with self.machine.started("python3", "-c", DELIVERIES, str(at_a_time)) as running:
            yield running

    def load(self, document: str = HOOKED) -> None:
        answer = self.ask(
            "/api/workflows?activate=true", method="POST", body=document, kind="application/yaml"
        )
        assert answer.status in (200, 201), answer

    def statuses(self) -> dict[str, str]:
        """Of all executions that there are."""
        found: dict[str, str] = {}
        cursor = ""
        while True:
            page = self.ask(f"/api/executions?limit=500{cursor}").json
            found |= {item["id"]: item["status"] for item in page["items"]}
            if page["nextCursor"] is None:
                return found
            cursor = f"&cursor={page['nextCursor']}"

    def until_ready(self) -> None:
        eventually("it is ready", lambda: self.ask("/readyz").status == 200, within=SETTLED_WITHIN)

    def all_complete(self, executions: set[str]) -> None:
        """Wait until they have ended; none may be missing, or have failed."""
        assert executions

        def look() -> bool:
            found = self.statuses()
            missing = executions - found.keys()
            assert not missing, f"{len(missing)} of {len(executions)} are lost"
            return {found[one] for one in executions} == {"completed"}

        eventually("all have completed", look, within=SETTLED_WITHIN)

    def fits_together(self) -> None:
        """`stackd queue check` has nothing to tell."""
        self.machine.stackd("queue", "check")
