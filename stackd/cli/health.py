"""`stackd health`: the daemon, and where its roles run as processes of their own, each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any, Final

from stackd.cli.context import daemon, print_json, say
from stackd.client.api import Api
from stackd.client.models import HealthView
from stackd.core.clock import SystemClock
from stackd.core.errors import StackdError, UnreachableError
from stackd.settings import connection_settings

PATIENCE: Final = 3.0  # seconds for the answers, of checks that may take one
GONE: Final = "gone"

_ROLE_SOCKET: Final = re.compile(r"(worker|scheduler|timers|rotation)-([1-9][0-9]*)\.sock")


@dataclass(frozen=True, slots=True)
class _Process:
    """What one process answered.

    Attributes:
        pid: None: the one that serves the API.
        status: `pass`; `fail`, also where nothing answers; `gone`: it died, and another does its work.
        reason: why it did not answer.
        body: of the answer.
    """

    role: str
    pid: int | None
    status: str
    reason: str | None = None
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.role if self.pid is None else f"{self.role} (pid {self.pid})"

    def as_json(self) -> dict[str, Any]:
        about = {"role": self.role, "pid": self.pid, "status": self.status, "reason": self.reason}
        return self.body | about


def show(path: str, *, verbose: bool, as_json: bool) -> int:
    """Print what the probe at `path` says of each process; 0 if all pass, 1 if not.

    Raises:
        UnreachableError: nothing is there to answer.
    """
    sockets = list(_role_sockets())
    if not sockets:
        found = [_answer_of(daemon(), path, "api", None)]
    else:
        found = _ask_all(path, sockets)
        if not any(one.status != GONE for one in found[1:]) and not found[0].body:
            found = [_answer_of(daemon(), path, "api", None)]
    if path == "/readyz":
        found = [_missed(one, found) for one in found]
    ok = all(one.status != "fail" for one in found)
    if as_json:
        said = {**found[0].body, "status": "pass" if ok else "fail"}
        print_json(said | {"processes": [one.as_json() for one in found]})
        return 0 if ok else 1
    say("healthy" if ok else "not healthy")
    if len(found) == 1:
        _say_answer(found[0].body, verbose=verbose, indent="  ")
        return 0 if ok else 1
    for one in found:
        words = {"pass": "healthy", "fail": "not healthy"}.get(one.status, one.status)
        say(f"  {one.name}  {words}{f': {one.reason}' if one.reason else ''}")
        if one.body:
            _say_answer(one.body, verbose=verbose, indent="    ")
    return 0 if ok else 1


def _role_sockets() -> Iterator[tuple[str, int, Path]]:
    """Role, pid and socket of each process beside the daemon that the settings name."""
    place = connection_settings()
    if place.url is not None:  # who is on another machine sees one process
        return
    for path in sorted(place.socket_path.parent.glob("*.sock")):
        if (found := _ROLE_SOCKET.fullmatch(path.name)) and path.is_socket():
            yield found[1], int(found[2]), path


def _ask_all(path: str, sockets: Sequence[tuple[str, int, Path]]) -> list[_Process]:
    """What each says, the one that serves the API first. All are asked at once: several may hang."""
    asked: list[tuple[Api, str, int | None]] = [(daemon(), "api", None)]
    asked += [(Api(socket_path=one), role, pid) for role, pid, one in sockets]
    silent = f"no answer within {PATIENCE:g} s"
    found = [_Process(role, pid, "fail", silent) for _, role, pid in asked]

    def ask(number: int) -> None:
        found[number] = _ask(asked[number][0], path, *asked[number][1:])

    threads = [Thread(target=ask, args=(number,), daemon=True) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    clock = SystemClock()
    until = clock.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(until - clock.monotonic(), 0.0))
    return list(found)


def _missed(one: _Process, found: Sequence[_Process]) -> _Process:
    """`one`; if it is gone and nobody who answered does its work, that is a fault."""
    if one.status != GONE:
        return one
    at_work = {service["name"] for other in found for service in other.body.get("services", ())}
    if one.role in at_work:
        return one
    return replace(one, status="fail", reason=f"{one.reason}, and nobody does its work")


def _ask(api: Api, path: str, role: str, pid: int | None) -> _Process:
    """As `_answer_of`, but that there is no answer is one."""
    try:
        return _answer_of(api, path, role, pid)
    except UnreachableError as error:
        if pid is not None and isinstance(error.__cause__, ConnectionRefusedError):
            return _Process(role, pid, GONE, "it has ended without a word")
        return _Process(role, pid, "fail", error.message)
    except StackdError as error:
        return _Process(role, pid, "fail", error.message)


def _answer_of(api: Api, path: str, role: str, pid: int | None) -> _Process:
    """What the process that `api` reaches says of itself."""
    answer = api.request(
        "GET", path, query={"verbose": "1"}, allow=frozenset({503}), timeout=PATIENCE
    )
    api.shaped(answer, HealthView)
    return _Process(role, pid, "pass" if answer.status == 200 else "fail", body=answer.body)


def _say_answer(body: dict[str, Any], *, verbose: bool, indent: str) -> None:
    for name, check in body["checks"].items():
        if verbose or check["status"] != "pass":
            reason = f"  {check['reason']}" if check.get("reason") else ""
            say(f"{indent}{check['status']:<4} {name}{reason}")
    if verbose:
        for service in body["services"]:
            _say_service(service, indent)


def _say_service(service: dict[str, Any], indent: str) -> None:
    """Its state and the last changes of that, a hundred at the most, the newest first."""
    reason = f": {service['reason']}" if service["reason"] else ""
    restarts = f", {service['restarts']} restarts" if service["restarts"] else ""
    say(f"{indent}{service['name']} {service['state']} since {service['since']}{restarts}{reason}")
    for move in reversed(service["moves"]):
        why = f"  {move['reason']}" if move["reason"] else ""
        say(f"{indent}  {move['at']}  {move['was']} → {move['state']}{why}")
