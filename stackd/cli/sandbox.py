"""`stackd sandbox …`: how well this machine isolates code, and running some without a daemon."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
import typer

from stackd.cli import files, quarantine
from stackd.cli.columns import Column
from stackd.cli.context import (
    JsonFlag,
    complain,
    json_of,
    print_json,
    print_table,
    say,
    seconds,
    waiting,
)
from stackd.core.clock import SystemClock
from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict
from stackd.core.loading import loading
from stackd.core.text import plain
from stackd.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stackd.sandbox.levels import Isolation
    from stackd.sandbox.limits import Limits
    from stackd.sandbox.run import Job, Outcome
    from stackd.sandbox.sandbox import SandboxOptions

LONGEST_LINE: Final = 200  # characters of a line of code that are shown
LONGEST_CODE: Final = 262_144  # characters, as of a node
HELLO: Final = "def run(params, context):\n    return params"
# What a node's code has in `context`, where there is no execution.
CONTEXT: Final[Mapping[str, Json]] = {
    "workflowId": None, "executionId": None, "nodeId": None, "userId": None, "prevOutput": None, "nodeOutputs": {},
    "trigger": None, "vars": {}, "environment": {}, "metadata": {},
}  # fmt: skip


class Mode(StrEnum):
    process = "process"
    worker = "worker"


app = typer.Typer(no_args_is_help=True)
app.command()(quarantine.quarantine)
app.command()(quarantine.release)


# -- how well it isolates


@dataclass(frozen=True, slots=True)
class _Tried:
    """What was found of one mode. `problem`: why no code runs; `took_ms`: a run that does nothing."""

    isolation: Isolation | None
    problem: str | None
    took_ms: float | None = None

    def as_json(self) -> dict[str, Json]:
        told: dict[str, Json] = {} if self.isolation is None else self.isolation.told()
        return {"level": None} | told | {"problem": self.problem, "durationMs": self.took_ms}


@app.command()
def selftest(as_json: JsonFlag = False) -> None:
    """Try to get out of the sandbox, in both modes, and tell how well this machine isolates code.

    It needs no daemon, and reads the settings that `stackd dev` would read. Exit 1 where isolation does not reach
    STACKD_SANDBOX_REQUIRE_LEVEL: then no code runs here, and what is missing is told with its remedy. What a daemon
    under systemd found of itself, `stackd health --verbose` tells.
    """
    options = _options(_settings())
    with waiting("trying to get out of the sandbox"):
        found = anyio.run(_try_all, options)
    levels = [one.isolation.level for one in found.values() if one.isolation is not None]
    level = min(levels) if len(levels) == len(found) else None
    is_ok = all(one.problem is None for one in found.values())
    if as_json:
        print_json(
            {
                "ok": is_ok,
                "level": level,
                "required": options.required_level,
                "mode": options.mode,
                "modes": {mode: one.as_json() for mode, one in found.items()},
            }
        )
    else:
        _tell(found, level, options)
    sys.exit(0 if is_ok else 1)


async def _try_all(options: SandboxOptions) -> dict[str, _Tried]:
    return {mode.value: await _try(replace(options, mode=mode.value)) for mode in Mode}


async def _try(options: SandboxOptions) -> _Tried:
    from stackd.sandbox.errors import SandboxError
    from stackd.sandbox.run import Job
    from stackd.sandbox.sandbox import Sandbox

    async with Sandbox(options, clock=SystemClock()) as sandbox:
        try:
            isolation = await sandbox.check()
            if (problem := sandbox.problem()) is not None:
                return _Tried(isolation, problem)
            outcome = await sandbox.run(Job(HELLO, {}, {}))
        except SandboxError as error:
            return _Tried(sandbox.isolation, error.message)
    if outcome.error is not None:
        return _Tried(isolation, f"a run that does nothing failed: {outcome.error.message}")
    return _Tried(isolation, None, outcome.duration_ms)


def _tell(found: Mapping[str, _Tried], level: int | None, options: SandboxOptions) -> None:
    from stackd.sandbox.levels import NAMES

    facts = [_facts(one) for one in found.values()]
    print_table(
        (Column(""), *(Column(mode) for mode in found)),
        [
            [words, *(one.get(words, "-") for one in facts)]
            for words in dict.fromkeys(words for one in facts for words in one)
        ],
        empty="",
    )
    isolations = [one.isolation for one in found.values() if one.isolation is not None]
    for missing in dict.fromkeys(words for one in isolations for words in one.missing):
        say(f"missing: {missing}")
    required = options.required_level
    if level is not None:
        say(f"level {level} ({NAMES[level]}); required is {required} ({NAMES[required]})")
    problems = {mode: one.problem for mode, one in found.items() if one.problem is not None}
    for mode, problem in problems.items():
        say(f"no code runs in mode {mode}: {problem}")
    if not problems:
        say(f"code runs here, in mode {options.mode} by the settings")


def _facts(tried: _Tried) -> dict[str, str]:
    """What was found, in words: layers, what bounds a run, and what came of each try to get out."""
    from stackd.sandbox.levels import PROBES

    told: dict[str, str] = {}
    if (isolation := tried.isolation) is not None:
        told["level"] = f"{isolation.level} {isolation.name}"
        told |= {name: _word(value) for name, value in isolation.layers.items()}
        told |= {f"{what} bounded by": by for what, by in isolation.limits.items()}
        odd = {name: name for name in isolation.failed if name not in PROBES}
        for name, words in (PROBES | odd).items():
            out = isolation.failed.get(name)
            told[words] = "denied" if out is None else f"GOT OUT: {out}"
    told["a run that does nothing"] = seconds(tried.took_ms) or "-"
    return told


def _word(value: Json) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


# -- running code


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The code, a Python module; - is standard input.")],
    params: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help="What it gets as `params`, a map.")
    ] = "{}",
    context: Annotated[
        str,
        typer.Option(metavar="JSON|@FILE", help="Members of `context`, in place of empty ones."),
    ] = "{}",
    entry: Annotated[str, typer.Option(help="The function that is called.")] = "run",
    mode: Annotated[Mode | None, typer.Option(help="Default: SANDBOX_EXECUTOR.")] = None,
    timeout_ms: Annotated[
        int | None, typer.Option(min=1, help="Default: STACKD_SANDBOX_TIMEOUT_MS.")
    ] = None,
    cpu_ms: Annotated[int | None, typer.Option(min=1, help="Default: SANDBOX_MAX_CPU_MS.")] = None,
    memory_mb: Annotated[
        int | None, typer.Option(min=16, help="Default: SANDBOX_MAX_MEMORY_MB.")
    ] = None,
    scratch_mb: Annotated[
        int | None,
        typer.Option(min=1, help="A folder /tmp of that size to write to. Default: none."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print all that is told of the run, also where it failed."),
    ] = False,
) -> None:
    """Run code in the sandbox, as a node `action.code.run` would, without a daemon.

    Its result is printed as JSON; what it logs goes to standard error, and so does what it raises, with its own lines
    of the traceback: exit 1. Limits cannot go over those of the settings, which are read as `stackd dev` would read
    them. It can send no requests.

    stackd sandbox run price.py --params '{"qty": 3}'
    """
    if str(file) == "-" and "@-" in (params, context):
        raise InputError("standard input can be only one of FILE, --params and --context")
    settings = _settings()
    options = _options(settings)
    if mode is not None:
        options = replace(options, mode=mode.value)
    limits = _limits(options, timeout_ms, cpu_ms, memory_mb, scratch_mb)
    job = _job(_code_in(file), file, params, context, entry, limits)
    isolation, outcome = anyio.run(_ran, options, job)
    if as_json:
        print_json(_as_json(options.mode, isolation, outcome))
    for line in () if as_json else outcome.logs:
        complain(f"{line['level']}: {line['message']}")
    if outcome.is_truncated and not as_json:
        complain(f"what else it logged is left out: {limits.output_bytes:,} bytes are kept")
    if outcome.error is None:
        if not as_json:
            print_json(outcome.result)
        return
    if not as_json:
        _explain(outcome)
    sys.exit(1)


async def _ran(options: SandboxOptions, job: Job) -> tuple[Isolation | None, Outcome]:
    from stackd.sandbox.sandbox import Sandbox

    async with Sandbox(options, clock=SystemClock()) as sandbox:
        outcome = await sandbox.run(job)
        return sandbox.isolation, outcome


async def _no_fetch(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "error": "`stackd sandbox run` sends no requests; run the workflow for that",
        "code": "fetch.off",
    }


def _code_in(file: Path) -> str:
    content = files.read(file)
    try:
        code = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{files.name_of(file)} is not UTF-8 text (line {line})", code="code.encoding"
        ) from None
    if len(code) > LONGEST_CODE:
        raise InputError(
            f"{files.name_of(file)} has {len(code):,} characters; the code of a node has {LONGEST_CODE:,} at most",
            code="code.too_large",
        )
    return code


def _map_of(option: str, given: str) -> dict[str, Json]:
    """The map that was given as JSON, or as a file of it."""
    if given.startswith("@"):
        file = Path(given[1:])
        try:
            value = loads_strict(files.read(file))
        except InputError as error:
            if error.code.startswith("file."):
                raise
            raise InputError(
                f"{option} {files.name_of(file)}: {error.message}", code=error.code
            ) from None
    else:
        value = json_of(option, given)
    if not isinstance(value, dict):
        raise InputError(f'{option} must be a map, such as {{"qty": 3}}', code="json.not_a_map")
    return value


def _job(code: str, file: Path, params: str, context: str, entry: str, limits: Limits) -> Job:
    from stackd.sandbox.run import Job

    given, around = _map_of("--params", params), _map_of("--context", context)
    return Job(
        code,
        given,
        {**CONTEXT, **around},
        entry_point=entry,
        filename="<stdin>" if str(file) == "-" else plain(str(file)),
        fetch=_no_fetch,
        limits=limits,
    )


def _limits(
    options: SandboxOptions,
    timeout_ms: int | None,
    cpu_ms: int | None,
    memory_mb: int | None,
    scratch_mb: int | None,
) -> Limits:
    """The limits of the settings, with those that were asked for.

    Raises:
        InputError: one is over that of the settings.
    """
    own = options.limits
    for option, wanted, most, setting in (
        ("--timeout-ms", timeout_ms, round(own.timeout * 1000), "STACKD_SANDBOX_MAX_TIMEOUT_MS"),
        ("--cpu-ms", cpu_ms, own.cpu_ms, "SANDBOX_MAX_CPU_MS"),
        ("--memory-mb", memory_mb, own.memory_mb, "SANDBOX_MAX_MEMORY_MB"),
        ("--scratch-mb", scratch_mb, own.scratch_mb, "STACKD_SANDBOX_MAX_SCRATCH_MB"),
    ):
        if wanted is not None and wanted > most:
            raise InputError(
                f"{option} {wanted} is over what the settings allow, {most}",
                code="sandbox.limit",
                hint=f"set {setting} to more",
            )
    timeout = options.timeout if timeout_ms is None else timeout_ms / 1000
    tightened = own.tightened(timeout=timeout, cpu_ms=cpu_ms, memory_mb=memory_mb)
    return replace(tightened, scratch_mb=scratch_mb or 0)


def _as_json(mode: str, isolation: Isolation | None, outcome: Outcome) -> dict[str, Json]:
    error = outcome.error
    return {
        "ok": error is None,
        "result": outcome.result,
        "error": None
        if error is None
        else {"code": error.code, "name": error.name, "message": error.message, **error.facts},
        "verdict": outcome.verdict,
        "logs": list(outcome.logs),
        "logsTruncated": outcome.is_truncated,
        "violations": list(outcome.violations),
        "durationMs": outcome.duration_ms,
        "usage": {"cpuMs": outcome.cpu_ms, "maxRssBytes": outcome.max_rss_bytes},
        "isolation": {"mode": mode, **({} if isolation is None else isolation.told())},
    }


def _explain(outcome: Outcome) -> None:
    """What it raised, with its own lines; each as it is, for a caret stands below what it means."""
    from stackd.sandbox.errors import SandboxCodeError

    error = outcome.error
    assert error is not None  # noqa: S101  # else there is nothing to explain
    complain(f"error: {error.message}".partition("\n")[0])
    trace = error.trace if isinstance(error, SandboxCodeError) else ""
    for line in trace.splitlines():
        complain(line.expandtabs(4)[:LONGEST_LINE])
    for line in error.message.split("\n")[1:]:
        complain(f"  {line}")


# -- the settings


def _settings() -> Settings:
    settings = load_settings("dev")
    for warning in settings.warnings:
        if "SANDBOX" in warning:
            complain(f"warning: {warning}")
    return settings


def _options(settings: Settings) -> SandboxOptions:
    with loading():
        from stackd.sandbox.options import options_of

    return replace(options_of(settings), parked=0)  # nothing comes after the one run
