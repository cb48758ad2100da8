"""How the operations of connectors have gone, as counted with the tries themselves: what is told is what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stackd.core.errors import NodeError
from stackd.core.events import Event
from stackd.core.json import Json, dumps, loads
from stackd.integrations import statements as sql
from stackd.store.connection import Tx


@dataclass(frozen=True, slots=True)
class OperationEnded(Event):
    """A try of an operation of a connector has ended, and that is on disk.

    Attributes:
        executor: integration, generic, or none: it was not asked.
        ok: whether it gave an output.
        fell_back: whether generic HTTP was asked in place of a handler that there is.
    """

    connector: str
    operation: str
    executor: str
    ok: bool
    fell_back: bool


class Evidence(NamedTuple):
    """What is known of one action since its store was made."""

    connector: str
    operation: str
    calls: int
    failures: int
    fallbacks: int
    last_success_at: float | None
    last_failure_at: float | None
    failure: bytes | None

    @property
    def last_failure(self) -> dict[str, Json] | None:
        return None if self.failure is None else loads(self.failure)


def record(tx: Tx, ended: OperationEnded, error: NodeError | None, *, now: float) -> None:
    """Count a try. The message of `error` holds no secret."""
    failure = None
    if error is not None:
        failure = dumps({"code": error.code, "message": error.message[:300]})
    tx.execute(
        sql.PUT_EVIDENCE,
        (
            ended.connector,
            ended.operation,
            int(error is not None),
            int(ended.fell_back),
            now if error is None else None,
            None if error is None else now,
            failure,
        ),
    )
    tx.emit(ended)


def page(tx: Tx, *, after: tuple[str, str], limit: int, connector: str | None) -> list[Evidence]:
    """Up to `limit` of those after `after`, by connector and operation; `connector`: of that one only."""
    if connector is None:
        rows = tx.rows(sql.LIST_EVIDENCE, (*after, limit))
    else:
        rows = tx.rows(sql.LIST_EVIDENCE_OF, (connector, after[1], limit))
    return [Evidence(*row) for row in rows]
