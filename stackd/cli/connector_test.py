"""`stackd connectors test`: the recorded cases of connectors, replayed without a network, or a real account asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackd.cli import credentials
from stackd.cli.connector_lint import FOLDER, places
from stackd.cli.context import JsonFlag, print_json, progressing, say
from stackd.core.errors import InputError, NotFoundError
from stackd.core.text import plain

if TYPE_CHECKING:
    from stackd.integrations.cases import Case, Recorded


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case. `problems`: none: all was as recorded."""

    connector: str
    operation: str
    case: str
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "connector": self.connector,
            "operation": self.operation,
            "case": self.case,
            "ok": not self.problems,
            "problems": list(self.problems),
        }


def replay(
    connectors: Annotated[
        list[str] | None,
        typer.Argument(help="Ids below the folder, or folders of connectors. Default: all."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where connectors are.")] = FOLDER,
    operation: Annotated[
        str | None, typer.Option("--operation", help="Only of this action.")
    ] = None,
    case: Annotated[str | None, typer.Option("--case", help="Only those of this name.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the real service, by the daemon and --credential.")
    ] = False,
    credential: Annotated[
        str | None, typer.Option("--credential", help="With --live: whose account is asked.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replay recorded cases, without a network; exit 1 if one comes otherwise than recorded.

    --live asks the service itself, by the cheap read that its definition names for that.
    """
    if live or credential is not None:
        if connectors or operation or case or not (live and credential):
            raise InputError(
                "--live needs --credential, and nothing else besides",
                code="cli.live",
                hint="stackd connectors test --live --credential NAME",
            )
        credentials.try_(credential, as_json=as_json)
        return
    outcomes = _replayed(places(connectors, folder), operation, case)
    if not outcomes:
        raise NotFoundError(
            "no case of that name",
            code="cases.not_found",
            hint="--operation and --case name what is to be replayed",
        )
    failed = [one for one in outcomes if one.problems]
    if as_json:
        print_json({"ok": not failed, "cases": [one.as_json() for one in outcomes]})
    else:
        for one in failed:
            say(f"{one.connector}.{one.operation}: {plain(one.case)}")
            for problem in one.problems:
                say(f"  {plain(problem)}")
        of = f"{len(outcomes):,} case{'' if len(outcomes) == 1 else 's'}"
        say(f"{of}: all as recorded" if not failed else f"{len(failed):,} of {of}: not as recorded")
    sys.exit(1 if failed else 0)


def _replayed(folders: Sequence[Path], operation: str | None, case: str | None) -> list[Outcome]:
    import anyio

    from stackd.core.clock import SystemClock
    from stackd.integrations.cases import problems_of, read_cases
    from stackd.integrations.catalogue import Catalogue, read_connector
    from stackd.integrations.manager import IntegrationManager
    from stackd.integrations.registry import Options, Registry
    from stackd.integrations.tokens import MemoryTokens

    all_of_them = [(read_connector(one), read_cases(one)) for one in folders]
    options = Options(generic=True)
    registry = Registry(Catalogue([connector for connector, _ in all_of_them]), lambda: options)
    wanted = [
        (connector.id, recorded, name, one)
        for connector, recorded in all_of_them
        for name, one in _wanted(recorded, operation, case)
    ]

    async def replay_all() -> list[Outcome]:
        outcomes = []
        for connector, recorded, name, one in progressing(wanted, "replaying"):
            manager = IntegrationManager(registry, MemoryTokens(SystemClock()))  # it signs in anew
            problems = await problems_of(one, recorded, name, manager, connector)
            outcomes.append(Outcome(connector, name, one.name, tuple(problems)))
        return outcomes

    return anyio.run(replay_all)


def _wanted(
    recorded: Recorded, operation: str | None, case: str | None
) -> Iterator[tuple[str, Case]]:
    for name, own in recorded.by_operation.items():
        if operation in (None, name):
            for one in own:
                if case in (None, one.name):
                    yield name, one
