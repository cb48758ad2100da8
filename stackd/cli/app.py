"""The command tree and the one place where errors become exit codes.

0 done · 1 the thing asked about failed, is unhealthy or is not over in time · 2 usage or bad input · 3 daemon unreachable ·
130 interrupted.
`dev` and `start` exit as `daemon.py` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from stackd import __version__
from stackd.cli import (
    config,
    connectors,
    credentials,
    executions,
    queue,
    sandbox,
    systemd,
    token,
    why,
    workflows,
)
from stackd.cli.config import Role
from stackd.cli.context import DEBUG, complain, finish_output, print_json, say
from stackd.core.errors import (
    ApiError,
    InputError,
    SettingsError,
    StackdError,
    StoreFullError,
    UnreachableError,
)
from stackd.core.loading import loading
from stackd.settings import Settings, ensure_dev_secrets, load_settings

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class Availability(StrEnum):
    """How an operation runs."""

    NATIVE = "native"
    FALLBACK = "fallback"
    UNAVAILABLE = "unavailable"


app = typer.Typer(
    name="stackd",
    help="Self-hosted workflow automation: one durable asyncio process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(
    workflows.app,
    name="workflows",
    help="Import, check, list, show, activate, run and delete workflows, and go back to a version.",
)
app.add_typer(
    executions.app, name="executions", help="List, show, cancel, resolve and remove executions."
)
app.add_typer(
    connectors.app,
    name="connectors",
    help="List and show connectors, and fill in what their definitions leave out.",
)
app.add_typer(
    credentials.app,
    name="credentials",
    help="Add, list, show, set and remove credentials; no secret is ever shown.",
)
app.add_typer(queue.app, name="queue", help="See, pause and resume the queue.")
app.add_typer(
    sandbox.app,
    name="sandbox",
    help="Try how well code is isolated, run some, and let quarantined code run again.",
)
app.add_typer(token.app, name="token", help="Make, list and revoke tokens of the API.")
app.add_typer(config.app, name="config", help="See, check and reload settings.")
app.add_typer(
    systemd.app, name="systemd", help="Run as a service: print, install and remove units."
)


app.command(name="why")(why.why)

RoleArgument = Annotated[Role, typer.Argument(help="stack runs all five in one process.")]


def _tell_version(asked: bool) -> None:
    if asked:
        say(__version__)
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_tell_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    DEBUG.on = debug


@app.command()
def dev(role: RoleArgument = Role.stack) -> None:
    """Run on loopback with readable logs; secrets are derived and kept in the state directory."""
    _run(lambda: ensure_dev_secrets(load_settings("dev", role=role.value)), role)


@app.command()
def start(role: RoleArgument = Role.stack) -> None:
    """Run in production; unfit settings are refused, all at once, before anything starts."""
    _run(lambda: load_settings("start", role=role.value), role)


def _run(settings: Callable[[], Settings], role: Role) -> NoReturn:
    with loading():
        from stackd.daemon import EXIT_CONFIG, EXIT_GAVE_UP, run_daemon

    try:
        usable = settings()
    except SettingsError as error:
        complain(error.message)
        sys.exit(EXIT_CONFIG)
    except StoreFullError as error:
        complain(f"{error.message}; {error.hint}")
        sys.exit(EXIT_GAVE_UP)
    DEBUG.on = True  # what a daemon did not foresee belongs in its log in full
    sys.exit(run_daemon(usable, role.value))


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running and print how to look around.")
    ] = False,
    deliveries: Annotated[
        int, typer.Option(min=1, max=100_000, help="Webhook deliveries to post.")
    ] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Post real deliveries to the real stack, kill it in the middle, and account for every one."""
    from stackd.cli.demo import run_demo

    sys.exit(run_demo(keep=keep, deliveries=deliveries, as_json=as_json))


@app.command()
def bench(
    only: Annotated[
        str | None, typer.Option(help="Measure only what has this in its name: queue, webhook, …")
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="Multiplies the amount of work.")
    ] = 1.0,
) -> None:
    """Measure the budgets on this machine: one JSON line per figure; exit 1 if one is missed."""
    from stackd.cli.bench.run import run_bench

    sys.exit(run_bench(only=only, scale=scale))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, a tar.")],
    force: Annotated[bool, typer.Option("--force", help="Replace it if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the store and its blobs into one file, whether a daemon uses them or not."""
    from stackd.cli.backup import make

    make(file, force=force, as_json=as_json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` has written.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only see whether it is whole; nothing is changed.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="The state directory, if not the one of the settings.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Move aside the store that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let the store be the one in a backup; no daemon may run on it."""
    from stackd.cli import backup as backups

    if verify:
        backups.verify(file, as_json=as_json)
    else:
        backups.restore(file, state=state, force=force, as_json=as_json)


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(help="Which; without it, what there is.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list as JSON; a schema always is.")
    ] = False,
) -> None:
    """The JSON Schema of what people write, for editors; without a name, which there are."""
    from stackd.integrations.definition_schema import SCHEMAS, schema_named

    if name is not None:
        print_json(schema_named(name))
    elif as_json:
        print_json({"items": list(SCHEMAS), "nextCursor": None})
    else:
        for one in SCHEMAS:
            say(one)


@app.command()
def health(
    live: Annotated[bool, typer.Option("--live", help="Only: does the loop turn?")] = False,
    ready: Annotated[bool, typer.Option("--ready", help="Only: is it ready? (default)")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every check.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the daemon whether it works; exit 1 if not, 3 if nothing answers."""
    from stackd.cli.health import show

    sys.exit(show("/livez" if live and not ready else "/readyz", verbose=verbose, as_json=as_json))


@app.command()
def capabilities(
    app: Annotated[str | None, typer.Option("--app", help="Only of this app.")] = None,
    only: Annotated[
        Availability | None, typer.Option(help="Only what runs so, or does not.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which actions and triggers can run, by what, and why others cannot."""
    from stackd.cli.capabilities import show

    show(app=app, only=None if only is None else only.value, as_json=as_json)


def main() -> None:
    """Run the command line; the process exits with the code of what happened."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale can show
    code = _code_of(app)
    sys.exit(_code_of(finish_output) or code)


def _code_of(act: Callable[[], object]) -> int:
    """Act, and tell the error that ends it, if one does; the exit code."""
    try:
        act()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except StackdError as error:
        return _tell(error, error.message, error.hint)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _tell(error, f"{place}{error.strerror or error}")
    except Exception as error:  # noqa: BLE001  # a fault of ours; who typed the command gets one line
        words = f"this is a fault of stackd: {type(error).__name__}: {error}"
        return _tell(error, words, "the same command as `stackd --debug …` shows where")
    return 0


def _tell(error: Exception, message: str, hint: str | None = None) -> int:
    if DEBUG.on:
        raise error
    complain(f"error: {message}")
    if hint:
        complain(f"  try: {hint}")
    return _exit_code(error)


def _exit_code(error: Exception) -> int:
    match error:
        case UnreachableError():
            return 3
        case SettingsError() | InputError():
            return 2
        case ApiError(http_status=400 | 404 | 409 | 413 | 422):
            return 2
        case _:
            return 1
