"""`stackd connectors test`: the recorded cases of connectors, replayed without a network, or a real account asked."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackd.cli import credentials
from stackd.cli.connector_lint import FOLDER, handlers_apart, places
from stackd.cli.context import JsonFlag, daemon, print_json, progressing, say
from stackd.client.models import CredentialView
from stackd.core.apps import normal_app
from stackd.core.errors import InputError, NotFoundError
from stackd.core.names import nearest
from stackd.core.text import segment, shown

if TYPE_CHECKING:
    from stackd.integrations.cases import Case, Recorded
    from stackd.integrations.catalogue import Connector
    from stackd.integrations.differences import Difference

SHOWN = 10  # differences of a case


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case. `differences`: none: all was as recorded."""

    connector: str
    operation: str
    case: str
    differences: list[Difference]

    def as_json(self) -> dict[str, Any]:
        return {
            "connector": self.connector,
            "operation": self.operation,
            "case": self.case,
            "ok": not self.differences,
            "differences": [dataclasses.asdict(one) for one in self.differences],
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """A connector with its cases. `problems`: what is wrong with its files, whatever comes of its cases."""

    folder: Path
    connector: Connector
    recorded: Recorded
    problems: list[str] = field(default_factory=list)

    def wanted(self, operation: str | None, case: str | None) -> Iterator[tuple[str, Case]]:
        for name, own in self.recorded.by_operation.items() if self.connector.packed else ():
            if operation in (None, name):
                yield from ((name, one) for one in own if case in (None, one.name))


def replay(
    connectors: Annotated[
        list[str] | None,
        typer.Argument(help="Ids below the folder, or folders of connectors. Default: all."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help=f"Where connectors are. Default: {FOLDER}.")
    ] = None,
    operation: Annotated[
        str | None,
        typer.Option("--operation", help="Only of this action; with --live: ask by it."),
    ] = None,
    case: Annotated[str | None, typer.Option("--case", help="Only those of this name.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the real service, by the daemon and --credential.")
    ] = False,
    credential: Annotated[
        str | None, typer.Option("--credential", help="With --live: whose account is asked.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --live: also by an action that does more than read.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Replay recorded cases, without a network; exit 1 if one comes otherwise than recorded.

    --live asks the service itself, by the cheap read that its definition names for that, or by an --operation that
    needs no parameter.
    """
    if live or yes or credential is not None:
        if not (live and credential):
            raise _not_live("--live needs --credential, and --credential and --yes need --live")
        if folder is not None or case is not None:
            raise _not_live("--live asks by the connectors of the daemon: no --folder, no --case")
        _refuse_other(connectors or [], credential)
        credentials.show_to_app(credential, as_json=as_json, operation=operation, writes=yes)
        return
    found = dict.fromkeys(places(connectors, folder or FOLDER))
    with handlers_apart():
        subjects = [_subject(one) for one in found]
        outcomes = _replayed(subjects, operation, case)
    problems = {str(one.folder): one.problems for one in subjects if one.problems}
    if not outcomes and not problems:
        raise _nothing(subjects, operation, case)
    failed = [one for one in outcomes if one.differences]
    if as_json:
        print_json(
            {
                "ok": not failed and not problems,
                "problems": problems,
                "cases": [one.as_json() for one in outcomes],
            }
        )
    else:
        for place, own in problems.items():
            for problem in own:
                say(f"{place}: {problem}")
        for one in failed:
            _tell(one)
        of = f"{len(outcomes):,} case{'' if len(outcomes) == 1 else 's'}"
        if outcomes:
            say(f"{len(failed):,} of {of}: not as recorded" if failed else f"{of}: all as recorded")
    sys.exit(1 if failed or problems else 0)


def _not_live(message: str) -> InputError:
    return InputError(
        message,
        code="cli.live",
        hint="stackd connectors test [CONNECTOR] --live --credential NAME [--operation NAME [--yes]]",
    )


def _refuse_other(connectors: Sequence[str], credential: str) -> None:
    """Return if the credential is for the connector that was named, if one was."""
    if len(connectors) > 1:
        raise _not_live("--live asks one connector, that of the credential")
    for name in connectors:
        view = daemon().get(f"/api/credentials/{segment(credential)}", CredentialView)
        if normal_app(name) != normal_app(view["connector"]):
            raise InputError(
                f"credential {credential!r} is for {view['connector']}, not for {shown(name)}",
                code="credential.other_connector",
            )


def _subject(folder: Path) -> Subject:
    from stackd.integrations.cases import CaseConnection, Recorded, read_cases
    from stackd.integrations.catalogue import read_connector

    connector = read_connector(folder)
    problems = [*connector.told]
    try:
        recorded = read_cases(folder)
    except InputError as error:
        problems.append(error.message.removeprefix(f"{folder}/"))
        recorded = Recorded(CaseConnection(), {})
    return Subject(folder, connector, recorded, problems)


def _replayed(
    subjects: Sequence[Subject], operation: str | None, case: str | None
) -> list[Outcome]:
    import anyio

    from stackd.core.clock import SystemClock
    from stackd.integrations.catalogue import Catalogue
    from stackd.integrations.manager import IntegrationManager
    from stackd.integrations.registry import Options, Registry
    from stackd.integrations.replay import replay
    from stackd.integrations.tokens import MemoryTokens

    options = Options(generic=True)
    wanted = [
        (
            one,
            Registry(Catalogue([one.connector]), lambda: options),
            list(one.wanted(operation, case)),
        )
        for one in subjects
    ]
    runs = [(one, registry, *run) for one, registry, runs in wanted for run in runs]

    async def replay_all() -> list[Outcome]:
        outcomes = []
        for subject, registry, name, one in progressing(runs, "replaying"):
            manager = IntegrationManager(registry, MemoryTokens(SystemClock()))  # it signs in anew
            app = subject.connector.id
            found = await replay(one, subject.recorded, name, manager, app)
            outcomes.append(Outcome(app, name, one.name, found))
        return outcomes

    return anyio.run(replay_all)


def _nothing(subjects: Sequence[Subject], operation: str | None, case: str | None) -> NotFoundError:
    """Why nothing was replayed."""
    known = [(name, one.name) for subject in subjects for name, one in subject.wanted(None, None)]
    if not known:
        where = ", ".join(str(one.folder) for one in subjects[:3])
        return NotFoundError(
            f"no case is recorded in {where}{', …' if len(subjects) > 3 else ''}",
            code="cases.not_found",
            hint="connectors/README.md shows how cases/ACTION.json is written",
        )
    operations = list(dict.fromkeys(name for name, _ in known))
    if operation is not None and operation not in operations:
        return _unknown("case of an action", operation, operations)
    return _unknown("case", case or "", [name for own, name in known if operation in (None, own)])


def _unknown(what: str, name: str, known: Sequence[str]) -> NotFoundError:
    meant = nearest(name, known)
    return NotFoundError(
        f"no {what} {shown(name)!r}",
        code="cases.not_found",
        hint=f"did you mean {meant!r}?" if meant else "--json without it lists all",
    )


def _tell(outcome: Outcome) -> None:
    """What differs, as `diff` shows it: `-` is recorded, `+` came."""
    say(f"{outcome.connector}.{outcome.operation}: {outcome.case}")
    for one in outcome.differences[:SHOWN]:
        say(f"  {one.place}")
        for sign, text in (("-", one.recorded), ("+", one.came)):
            if text is not None:
                say(f"    {sign} {text}")
    more = len(outcome.differences) - SHOWN
    if more > 0:
        say(f"  and {more:,} more places; --json lists them")
