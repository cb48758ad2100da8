"""What is said and kept of an error: of one that was foreseen, and of a fault of ours. Keeps nothing itself."""

from __future__ import annotations

import secrets

import structlog

from stackd.core.errors import NodeError, StackdError
from stackd.core.json import dumps

LONGEST_MESSAGE = 2_000  # characters of an error that are kept
CUT_OFF = "the process ended while this was in flight"

_log = structlog.get_logger(__name__)


def foreseen(error: Exception, where: str) -> StackdError:
    """`error` if it is one of ours; else a fault of ours, which the log has in full under the id that is named."""
    if isinstance(error, StackdError):
        return error
    fault = secrets.token_hex(4)
    _log.error("a fault of stackd", fault=fault, where=where, exc_info=error)
    return NodeError(
        f"a fault of stackd ({type(error).__name__}); the log has it as {fault}",
        kind="internal",
        code="node.internal",
    )


def stored(error: StackdError) -> bytes:
    """`error` as a node run has it; JSON."""
    return dumps({"code": error.code, "message": kept(error.message)})


def kept(message: str) -> str:
    """`message` as it can be stored, whatever text it quotes."""
    short = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"
    return short.encode(errors="backslashreplace").decode()


def unusable(node_id: str, error: TypeError) -> NodeError:
    return NodeError(
        f"the output of {node_id} cannot be kept as JSON: {error}",
        kind="invalid",
        code="node.bad_output",
        answered=True,
    )


def too_large(node_id: str, what: str, size: int, limit: int) -> NodeError:
    return NodeError(
        f"{what} of {node_id} is {size} bytes, over the limit of {limit}",
        kind="limit",
        code=f"{'node' if what == 'output' else 'execution'}.too_large",
        answered=True,
    )
