"""The shape of a workflow document, as people write it: camelCase keys, unknown ones refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic.alias_generators import to_camel

ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # of workflows
NODE_ID = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"

# What an expression reads besides node ids, or could not tell from an operator.
RESERVED_IDS = frozenset(
    [
        "trigger",
        "execution",
        "workflow",
        "vars",
        "item",
        "index",
        "loop",
        "now",
        "uuid",
        "and",
        "or",
        "not",
        "in",
        "is",
        "if",
        "else",
        "true",
        "false",
        "none",
        "null",
        "True",
        "False",
        "None",
    ]
)


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, populate_by_name=False
    )


class Retry(_Part):
    """How often a node is tried, all in all, and the waits between, in milliseconds."""

    max_attempts: Annotated[int, Field(ge=1, le=100)]
    initial_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_000
    max_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 30_000


class Node(_Part):
    """One node. `pinned`: test data that becomes the output instead of running it."""

    id: Annotated[str, Field(pattern=NODE_ID)]
    type: Annotated[str, Field(min_length=1, max_length=200)]
    name: str | None = None
    description: str | None = None
    params: dict[str, Any] = {}
    retry: Retry | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None
    on_error: Literal["fail", "continue", "route"] = "fail"
    effect: Literal["read", "idempotent", "keyed", "unsafe"] | None = None
    idempotency_key: str | None = None
    disabled: bool = False
    pinned: Any = None

    @property
    def is_pinned(self) -> bool:
        return "pinned" in self.model_fields_set


def _when(value: object) -> object:
    if value is None or isinstance(value, str | bool):
        return value
    raise ValueError("must be an expression, true or false")


class Edge(_Part):
    """Taken when its source ended as `on` says and `when`, if given, is true."""

    source: Annotated[str, Field(alias="from", min_length=1)]
    target: Annotated[str, Field(alias="to", min_length=1)]
    when: Annotated[str | bool | None, PlainValidator(_when)] = None
    on: Annotated[str, Field(min_length=1)] = "success"


class Workflow(_Part):
    """A whole document. `concurrency`: executions of it that may run at once; None: no bound of its own."""

    id: Annotated[str, Field(pattern=ID)]
    name: Annotated[str, Field(max_length=200)] | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None
    nodes: Annotated[tuple[Node, ...], Field(strict=False)]
    edges: Annotated[tuple[Edge, ...], Field(strict=False)] = ()
    vars: dict[str, Any] = {}
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
