"""The shape of a workflow document, as people write it: camelCase keys, unknown ones refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel

ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # of workflows
NODE_ID = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"

LOOP = "logic.foreach"
CODE = "action.code.run"
WAIT = "action.wait.webhook"
BODY = frozenset({"nodes", "edges"})
SEALED = "$sealed"  # in place of the fields of credentials: their id, in documents that were stored

# What an expression reads besides node ids, or could not tell from an operator.
RESERVED_IDS = frozenset(
    [
        "trigger",
        "execution",
        "workflow",
        "vars",
        "item",
        "index",
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


def with_body(given: Any) -> Any:
    """`given`, a node as written, with the body of a loop beside its params, wherever it stood."""
    if not isinstance(given, dict) or given.get("type") != LOOP:
        return given
    params = given.get("params")
    if not isinstance(params, dict) or not (BODY & params.keys()):
        return given
    body = {key: params[key] for key in BODY & params.keys()}
    return {**given, "params": {k: v for k, v in params.items() if k not in BODY}, **body}


def _when(value: object) -> object:
    if value is None or isinstance(value, str | bool):
        return value
    raise ValueError("must be an expression, true or false")


def _case(value: object) -> object:
    return str(value).lower() if isinstance(value, bool | int) else value


class Retry(_Part):
    """How often a node is tried, all in all, and the waits between, in milliseconds."""

    max_attempts: Annotated[int, Field(ge=1, le=100)]
    initial_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_000
    max_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 30_000


class Sandboxed(_Part):
    """What code may take, in ms and MiB: of a whole workflow or one node. It can only be less than the operator allows.

    `max_cpu_ms`: of all threads together; `cpu_quota_ms`: in each 100 ms.
    """

    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    max_cpu_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    cpu_quota_ms: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_memory_mb: Annotated[int, Field(ge=16, le=1_048_576)] | None = None


class FetchRules(_Part):
    """Where code may send requests: to hosts, those below them with `*.`, none of `deny`; empty `allow`: wherever the operator lets it."""

    allow: Annotated[tuple[str, ...], Field(strict=False)] = ()
    deny: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Code(Sandboxed):
    """What a code node runs. `code`: the text of a module, in which no expression is read.

    `entry_point`: the function that is called; `fetch`: whether it may send requests; `imports`: the only modules
    it may import; `scratch_mb`: of a folder /tmp that it may write; `environment`: texts in `context["environment"]`.
    """

    code: Annotated[str, Field(min_length=1, max_length=262_144)]
    entry_point: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] = "run"
    fetch: bool | FetchRules = False
    imports: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    scratch_mb: Annotated[int, Field(ge=1, le=1_024)] | None = None
    environment: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_requirements(cls, given: Any) -> Any:
        if isinstance(given, dict) and "requirements" in given:
            raise ValueError(
                "cannot have requirements: nothing is installed while workflows run. Install packages into a folder "
                "once (pip install --target DIR …) and let STACKD_SANDBOX_PACKAGES name it"
            )
        return given


class Edge(_Part):
    """Taken when its source ended as `on` says and `when`, if given, is true.

    `on`: success, error, or a case of a branch or switch; YAML reads a branch's as true and false.
    """

    source: Annotated[str, Field(alias="from", min_length=1)]
    target: Annotated[str, Field(alias="to", min_length=1)]
    when: Annotated[str | bool | None, PlainValidator(_when)] = None
    on: Annotated[str, BeforeValidator(_case), Field(min_length=1, max_length=200)] = "success"


class Node(_Part):
    """One node. `connection`: the credential that an operation of a connector acts with. `pinned`: test data that becomes the output instead of running it.

    `credentials`: the fields of one, in place of a connection; they are sealed with the workflow.
    `runtime`: the code of a code node. `nodes`, `edges`: the body of a loop; they may also stand among its params.
    """

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
    connection: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    credentials: Annotated[dict[str, str] | None, Field(repr=False)] = None
    runtime: Code | None = None
    disabled: bool = False
    pinned: Any = None
    nodes: Annotated[tuple[Node, ...], Field(strict=False)] = ()
    edges: Annotated[tuple[Edge, ...], Field(strict=False)] = ()

    @model_validator(mode="before")
    @classmethod
    def _take_body(cls, given: Any) -> Any:
        return with_body(given)

    @property
    def is_pinned(self) -> bool:
        return "pinned" in self.model_fields_set


class Workflow(_Part):
    """A whole document.

    `concurrency`: executions of it that may run at once; `timeout_ms`: from the first start to the end of one,
    its waits included. None: no bound of its own. `runtime`: what code in it may take.
    """

    id: Annotated[str, Field(pattern=ID)]
    name: Annotated[str, Field(max_length=200)] | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None
    nodes: Annotated[tuple[Node, ...], Field(strict=False)]
    edges: Annotated[tuple[Edge, ...], Field(strict=False)] = ()
    vars: dict[str, Any] = {}
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=31_536_000_000)] | None = None
    runtime: Sandboxed | None = None
