"""`stackd executions tail`: what happens, line by line, as it happens."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import typer

from stackd.cli import completion
from stackd.cli.context import daemon, finish_output, say, seconds
from stackd.client.api import Api
from stackd.client.models import ExecutionView
from stackd.client.wire import ServerEvent
from stackd.core.errors import NoAnswerError, StackdError
from stackd.core.text import plain_json, segment

QUIET = 2.0  # seconds without an event after which the execution is looked at: another process may run it
BROKEN = 45.0  # seconds without a byte; a live stream says every 15 that it is there

_ENDED: Final = ("completed", "failed", "cancelled")
_TOLD: Final = (
    "ExecutionQueued",
    "ExecutionStarted",
    "ExecutionParked",
    "ExecutionFinished",
    "NodeFinished",
    "NodeRetried",
    "Missed",
)


def tail(
    execution_id: Annotated[
        str | None,
        typer.Argument(
            help="Only this execution, until it rests.", autocompletion=completion.execution_id
        ),
    ] = None,
    workflow: Annotated[
        str | None,
        typer.Option(help="Only of this workflow.", autocompletion=completion.workflow_id),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each event.")
    ] = False,
) -> None:
    """Follow executions as they run; one that is named until it rests, exit 1 if it failed."""
    api = daemon()
    tell = _Teller(as_json=as_json)
    if execution_id is None:
        for event in _all_events(api, workflow):
            tell.event(event)
        return
    view = api.get(
        f"/api/executions/{segment(execution_id)}", ExecutionView
    )  # unknown: said at once
    waiting = _Events(api, execution_id)
    while True:
        tell.nodes(view)
        if view["status"] in _ENDED or view["status"] == "uncertain":
            break
        for event in waiting.until_quiet():
            tell.event(event)
            if event.name in ("ExecutionFinished", "ExecutionParked"):
                break
        view = api.get(f"/api/executions/{segment(execution_id)}", ExecutionView)
    tell.end(view)
    if view["status"] in ("failed", "uncertain"):
        sys.exit(1)


def _all_events(api: Api, workflow: str | None) -> Iterator[ServerEvent]:
    """Events without end: after a broken connection it goes on where it was."""
    last: str | None = None
    while True:
        try:
            for event in api.events(
                "/api/events", timeout=BROKEN, last_id=last, workflowId=workflow, types=_types()
            ):
                last = event.id or last
                yield event
        except NoAnswerError:
            continue
        return  # the daemon ends


def _types() -> str:
    return ",".join(name for name in _TOLD if name != "Missed")


class _Events:
    """The events of one execution, read beside who asks for them."""

    def __init__(self, api: Api, execution_id: str) -> None:
        self._api = api
        self._id = execution_id
        self._came: queue.SimpleQueue[ServerEvent] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._api.events(
                "/api/events", timeout=BROKEN, executionId=self._id, types=_types()
            ):
                self._came.put(event)
        except StackdError:
            return  # the execution is looked at again and again anyway

    def until_quiet(self) -> Iterator[ServerEvent]:
        """Events, until for a while there is none."""
        while True:
            try:
                yield self._came.get(timeout=QUIET)
            except queue.Empty:
                return


class _Teller:
    """Prints each thing once, whether an event told it or a look at the execution."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told: set[tuple[str, str]] = set()  # node runs and how they ended

    def event(self, event: ServerEvent) -> None:
        data = event.data if isinstance(event.data, dict) else {}
        if event.name == "NodeFinished":
            mark = (f"{data.get('executionId')}:{data.get('key')}", str(data.get("status")))
            if mark in self._told:
                return
            self._told.add(mark)
        if self._as_json:
            say(plain_json(json.dumps({"event": event.name, **data}, ensure_ascii=False)))
        elif event.name in _LINES:
            at = str(data.get("at", ""))[11:23]
            say(f"{at}  {_LINES[event.name](data)}")
        finish_output()  # whoever reads it reads it now, behind a pipe too

    def nodes(self, view: dict[str, Any]) -> None:
        """Tell the node runs that have ended and that no event has told."""
        for node in view["nodes"]:
            if node["status"] not in ("completed", "failed", "skipped", "uncertain"):
                continue
            took = node["durationMs"]
            data = {
                "at": node["startedAt"] or "",
                "executionId": view["id"],
                "key": node["id"],
                "status": node["status"],
                "seconds": None if took is None else took / 1000,
            }
            self.event(ServerEvent(None, "NodeFinished", data))

    def end(self, view: dict[str, Any]) -> None:
        if self._as_json:
            data = {"executionId": view["id"], "status": view["status"], "error": view["error"]}
            say(json.dumps({"event": "Rested", **data}, ensure_ascii=False))
            return
        error = f": {view['error']['message']}" if view["error"] else ""
        say(f"{view['id']} is {view['status']}{error}")


def _node(data: dict[str, Any]) -> str:
    took = data.get("seconds")
    time = seconds(None if took is None else took * 1000)
    return f"{data.get('executionId')}  {data.get('key')} {data.get('status')} {time}".rstrip()


def _execution(word: str) -> Callable[[dict[str, Any]], str]:
    return lambda data: f"{data.get('executionId')}  {data.get('workflowId')} {word}"


_LINES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "ExecutionQueued": _execution("queued"),
    "ExecutionStarted": _execution("started"),
    "ExecutionParked": lambda data: _execution(str(data.get("status")))(data),
    "ExecutionFinished": lambda data: _execution(str(data.get("status")))(data),
    "NodeFinished": _node,
    "NodeRetried": lambda data: (
        f"{data.get('executionId')}  {data.get('key')} try {data.get('attempt')} failed "
        f"({data.get('code')}), again in {data.get('wait'):.1f} s"
    ),
    "Missed": lambda data: f"missed {data.get('count') or 'some'} events",
}
