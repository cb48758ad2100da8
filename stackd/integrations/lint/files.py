"""What stands beside a definition: handlers, cases, and secrets that nobody meant to write down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stackd.core.errors import InputError
from stackd.integrations.cases import FOLDER, Recorded, read_cases
from stackd.integrations.catalogue import HANDLERS, Connector
from stackd.integrations.lint.level import Definition, Told, told

Cases = Recorded

# Libraries that reach the network by themselves, so that nobody can count what they have sent.
NETWORK: Final = frozenset(
    [
        "aiohttp",
        "aioftp",
        "aiosmtplib",
        "asyncpg",
        "asyncssh",
        "boto3",
        "botocore",
        "ftplib",
        "grpc",
        "http.client",
        "httpx",
        "imaplib",
        "motor",
        "nntplib",
        "paho",
        "paramiko",
        "poplib",
        "psycopg",
        "pycurl",
        "pymongo",
        "redis",
        "requests",
        "smtplib",
        "socket",
        "ssl",
        "telnetlib",
        "urllib.request",
        "urllib3",
        "websocket",
        "websockets",
        "xmlrpc",
    ]
)
# Tokens of services that are known by how they begin, and keys.
SECRET: Final = re.compile(
    r"xox[abp]-\w|gh[pousr]_\w{8}|github_pat_|glpat-\w|sk_(?:live|test)_\w|rk_live|sk-[A-Za-z0-9]{8}"
    r"|AKIA[A-Z0-9]{8}|whsec_\w|ntn_\w|secret_\w{16}|tk_[a-z0-9]{12}|-----BEGIN|eyJ[A-Za-z0-9_-]{12}"
)


def recorded(folder: Path, others: list[Told]) -> Recorded | None:
    """The cases of the connector; None if a file of them cannot be used, which is noted."""
    try:
        return read_cases(folder)
    except (InputError, OSError) as error:
        words = getattr(error, "message", str(error)).removeprefix(f"{folder}/")
        name, _, rest = words.partition(": ")
        others.append(told(name if rest else FOLDER, "cases.invalid", rest or words))
        return None


def cases(definition: Definition, connector: Connector, found: Recorded) -> Iterator[Told]:
    """What is lacking among the cases."""
    known = {one.id: one for one in definition.actions}
    for name in found.by_operation:
        if name not in known:
            yield told(f"{FOLDER}/{name}.json", "cases.invalid", f"there is no action {name!r}")
    for name, one in known.items():
        own, file = found.by_operation.get(name, ()), f"{FOLDER}/{name}.json"
        # What a handler speaks by itself cannot be recorded.
        may_succeed = connector.handlers.transport != "own"
        if may_succeed and not any(case.error is None for case in own):
            yield told(file, "cases.success", f"no case of {name} succeeds")
        if not any(case.error is not None for case in own):
            yield told(file, "cases.failure", f"no case of {name} fails as the service fails")
        paginate = None if one.read is None else one.read.paginate
        is_paged = paginate is not None and paginate.type != "none"
        if is_paged and not any(
            isinstance(case.output, dict) and case.output.get("items") == [] for case in own
        ):
            yield told(file, "cases.empty", f"no case of {name} shows an empty page")


def statuses(found: Recorded | None) -> set[int]:
    """All that is answered in cases."""
    if found is None:
        return set()
    return {
        exchange.response.status
        for own in found.by_operation.values()
        for case in own
        for exchange in case.exchanges
    }


def handlers(connector: Connector, path: Path) -> Iterator[Told]:
    """What is wrong with the handlers."""
    if connector.handlers.problem:
        words = connector.handlers.problem.removeprefix(f"{HANDLERS} ")
        yield told(HANDLERS, "handlers.load", words)
    for name in connector.handlers.by_name:
        if name not in connector.actions:
            yield told(
                HANDLERS, "handlers.load", f"there is no action {name!r}; a helper begins with _"
            )
    if connector.handlers.transport == "own" or not path.is_file():
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # it does not load, which is told
    for node in ast.walk(tree):
        for name in _imported(node):
            if name in NETWORK or name.partition(".")[0] in NETWORK:
                yield told(
                    HANDLERS,
                    "handlers.network",
                    f"{name} reaches the network by itself",
                    getattr(node, "lineno", 1),
                    hint='ask by ctx.http, or say TRANSPORT = "own"',
                )


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for one in node.names:
            yield one.name
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        for one in node.names:
            yield f"{node.module}.{one.name}"


def secrets(folder: Path, name: str) -> Iterator[Told]:
    """What looks like a secret of somebody. It is not quoted."""
    paths = [folder / name, *sorted((folder / FOLDER).glob("*.json"))]
    for path in paths:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            if SECRET.search(line):
                words = "this looks like a secret of somebody; write one that is made up"
                file = str(path.relative_to(folder))
                yield told(file, "connector.secret", words, number)
