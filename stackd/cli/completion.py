"""What a shell completes words with: ids that the running daemon knows. Quick, and silent where there is none."""

from __future__ import annotations

import re
from typing import Any

from stackd.cli.context import daemon
from stackd.core.errors import StackdError

PATIENCE = 1.0  # seconds; who has pressed a key waits
OFFERED = 500  # ids at most

_PLAIN = re.compile(r"[A-Za-z0-9._-]+")  # nothing a shell could take for more than a word


def workflow_id(incomplete: str) -> list[str]:
    """The ids of workflows that begin so."""
    # The list goes on after its cursor: after all but the last letter comes whatever begins with all of them.
    return _ids("/api/workflows", incomplete, cursor=incomplete[:-1])


def execution_id(incomplete: str) -> list[str]:
    """The ids of the newest executions that begin so."""
    return _ids("/api/executions", incomplete)


def token_id(incomplete: str) -> list[str]:
    """The ids of tokens that begin so."""
    return _ids("/api/tokens", incomplete)


def credential_id(incomplete: str) -> list[str]:
    """The ids of credentials that begin so."""
    return _ids("/api/credentials", incomplete, cursor=incomplete[:-1])  # as of workflows


def _ids(path: str, incomplete: str, **query: Any) -> list[str]:
    try:
        asked = {"limit": OFFERED, **query}
        page = daemon().request("GET", path, query=asked, timeout=PATIENCE).body
    except StackdError:
        return []
    ids = [str(item.get("id")) for item in page.get("items", [])]
    return [one for one in ids if one.startswith(incomplete) and _PLAIN.fullmatch(one)]
