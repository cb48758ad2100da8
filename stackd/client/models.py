"""What the HTTP API answers, for both sides of it: camelCase JSON, instants RFC 3339 in UTC."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    def as_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return self.model_dump(by_alias=True, mode="json")


class WebhookAddress(Model):
    """Where a webhook trigger answers."""

    node: str
    url: str


class FindingView(Model):
    """A remark on a document: where, what, and the nearest valid name. `severity`: error or warning."""

    severity: str = "error"
    code: str
    message: str
    line: int | None = None
    column: int | None = None
    hint: str | None = None


class ImportedWorkflow(Model):
    id: str
    version: int
    active: bool
    warnings: list[FindingView]
    webhooks: list[WebhookAddress]


class WorkflowView(Model):
    """A workflow. `document`: only where one is asked for; `warnings`, of what cannot run as it should: also where it is activated."""

    id: str
    name: str
    version: int
    active: bool
    content_hash: str
    created_at: str
    updated_at: str
    webhooks: list[WebhookAddress] = []
    warnings: list[FindingView] | None = None
    document: dict[str, Any] | None = None


class WorkflowList(Model):
    items: list[WorkflowView]
    next_cursor: str | None


class LintView(Model):
    """What there is to say of a document. `ok`: there is no error."""

    ok: bool
    findings: list[FindingView]


class VersionView(Model):
    """One version of a workflow. `document`: only where one is asked for."""

    version: int
    created_at: str
    content_hash: str
    current: bool
    document: dict[str, Any] | None = None


class VersionList(Model):
    items: list[VersionView]
    next_cursor: str | None


class ErrorView(Model):
    code: str
    message: str
    node_id: str | None = None


class TriggerView(Model):
    type: str
    node_id: str


class ParentView(Model):
    """The execution that started this one, and its node run that waits for the end, if one does."""

    execution_id: str
    node: str | None


class NodeRunView(Model):
    id: str
    type: str
    status: str
    attempt: int
    started_at: str | None
    duration_ms: float | None
    output: Any
    error: ErrorView | None
    logs: list[dict[str, Any]]
    metadata: dict[str, Any]


class ExecutionSummaryView(Model):
    id: str
    workflow_id: str
    version: int
    status: str
    trigger: TriggerView
    error: ErrorView | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class NodeRunList(Model):
    items: list[NodeRunView]
    next_cursor: str | None


class ExecutionView(ExecutionSummaryView):
    """An execution with its node runs in the order they began.

    `more_nodes`: there are others; `/api/executions/{id}/nodes` lists all of them by id.
    """

    parent: ParentView | None
    input: Any
    output: Any
    more_nodes: bool
    nodes: list[NodeRunView]


class NewRun(Model):
    """`input`: what the trigger gives."""

    input: Any = None


class NewExecutionRequest(NewRun):
    workflow_id: str


class DecisionRequest(Model):
    """`node`: its key; may be left out if just one node run is uncertain."""

    decision: Literal["retry", "skip", "fail"]
    node: str | None = None


class RetryRequest(Model):
    """`from`: a node to begin again at, with all that follows it; null: at what failed."""

    start: Annotated[str | None, Field(alias="from")] = None


class PruneRequest(Model):
    """Which executions that have ended shall go; at least one of the first four. `keep`: the newest of them stay.

    `dry_run`: they are only counted. `cursor`: nextCursor of the answer before, to the same request.
    """

    older_than_seconds: Annotated[float, Field(ge=0)] | None = None
    keep: Annotated[int, Field(ge=0)] | None = None
    status: Literal["completed", "failed", "cancelled"] | None = None
    workflow_id: str | None = None
    dry_run: bool = False
    cursor: str | None = None


class PrunedExecutions(Model):
    """`executions`: how many are gone, or would be, those that they had called included. `next_cursor`: go on there."""

    executions: int
    dry_run: bool
    next_cursor: str | None


class DeletedWorkflow(Model):
    """`executions`: how many of it are gone by this request. `more`: the workflow is still there; ask again."""

    workflow_id: str
    executions: int
    more: bool


class RollbackRequest(Model):
    """`version`: null for the one before the current one."""

    version: Annotated[int, Field(ge=0)] | None = None


class NewToken(Model):
    name: str
    scopes: list[str]
    expires_at: str | None = None


class SecretField(Model):
    """A field of a credential that is set, and never shown."""

    secret: Literal[True] = True
    is_set: Literal[True] = True


class PublicField(Model):
    """A field of a credential that is no secret."""

    secret: Literal[False] = False
    is_set: Literal[True] = True
    value: str


class CredentialError(Model):
    """Why a credential does not work, without a secret."""

    code: str
    message: str


class CredentialTest(Model):
    """What came of a test. `status`: of the app's answer; `label`: whose credential it is, as the app says."""

    ok: bool
    tested_at: str
    status: int | None
    error: CredentialError | None
    label: str | None


class CredentialView(Model):
    """A credential without its secrets. `version` grows by one at each change.

    `reconnect`: why its app takes it no more, so that it is not shown there again until it is changed.
    `test`: what came of the last test since a person changed it.
    """

    id: str
    connector: str
    auth: str | None
    fields: dict[str, SecretField | PublicField]
    created_at: str
    updated_at: str
    version: int
    reconnect: str | None
    test: CredentialTest | None


class CredentialList(Model):
    items: list[CredentialView]
    next_cursor: str | None


class NewCredential(Model):
    """`fields`: name and text of each. `public`: which of them the caller takes for no secret; refused if wrong."""

    id: str
    connector: str
    auth: str | None = None
    fields: dict[str, str]
    public: list[str] = []


class CredentialChange(Model):
    """What shall be otherwise.

    `fields`: those that are named get that text, null removes one, all others stay. `auth`: stays if not named.
    `version`: the one this was made from; the credential stays as it is (409) if it has another by now.
    """

    fields: dict[str, str | None] = {}
    public: list[str] = []
    auth: str | None = None
    version: int | None = None


class StartedExecution(Model):
    success: bool
    execution_id: str
    workflow_id: str


class MovedExecution(Model):
    """What a cancel or a decision led to."""

    success: bool
    execution_id: str
    status: str


class ExecutionList(Model):
    items: list[ExecutionSummaryView]
    next_cursor: str | None


class ProcessView(Model):
    """A process on this state directory, whatever its role. Not `alive`: it ended without saying so."""

    pid: int
    role: str
    started_at: str
    heartbeat_at: str
    alive: bool


class QueueView(Model):
    """Jobs by state; `oldest_wait_seconds`: how long the oldest due job has waited."""

    counts: dict[str, int]
    paused: bool
    oldest_wait_seconds: float
    processes: list[ProcessView]


class QueueFindingView(Model):
    """Something in the store that does not fit together.

    `ids`: of what, fifty at most; `count`: how many in all. `repair`: `itself`, at the next reconciliation at the
    latest; `repair`, when somebody asks for it; `none`, a person must look.
    """

    code: str
    about: str
    count: int
    ids: list[str]
    repair: Literal["itself", "repair", "none"]


class QueueCheckView(Model):
    """`sound`: there are no findings."""

    sound: bool
    checked_at: str
    duration_ms: float
    findings: list[QueueFindingView]


class QueueRepairRequest(Model):
    """`dry_run`: only look."""

    dry_run: bool = False


class RepairedView(Model):
    code: str
    count: int


class QueueRepairView(QueueCheckView):
    """What was mended, and what is left."""

    dry_run: bool
    repaired: list[RepairedView]


class TokenView(Model):
    """A token without its secret. `state`: usable, expired or revoked."""

    id: str
    name: str
    scopes: list[str]
    state: str
    created_at: str
    last_used_at: str | None
    expires_at: str | None
    revoked_at: str | None


class NewTokenView(TokenView):
    """A token as its maker sees it, once. `token`: what its holder sends."""

    token: str


class TokenList(Model):
    items: list[TokenView]
    next_cursor: str | None


class SettingView(Model):
    """A setting as people write it. `source`: where the value came from."""

    name: str
    value: Any
    source: str


class ConfigView(Model):
    settings: list[SettingView]
    warnings: list[str]
    problems: list[str]


class ChangeView(Model):
    """A setting that is read as another value than before; secrets are masked."""

    name: str
    before: Any
    after: Any


class OverruledView(Model):
    """A setting of the config file that another source wins over."""

    name: str
    source: str


class RuntimesView(Model):
    """Which runtimes there are, by the names clients look for."""

    python: bool
    http: bool
    node: bool
    apps_script: bool
    cloud_worker: bool


class IssueView(Model):
    """Why an operation runs otherwise than by a handler, or not at all."""

    severity: Literal["error", "warning"]
    code: str
    message: str


class CircuitView(Model):
    """Whether an operation is asked for: `closed`, `open` until then, or `half_open`: one may try.

    Attributes:
        credential: of which that is so; null: without one.
        failures: in a row.
    """

    credential: str | None
    state: Literal["closed", "open", "half_open"]
    failures: int
    open_until: str | None
    failed_at: str
    failure: ErrorView


class EvidenceView(Model):
    """How an operation has gone.

    Attributes:
        circuit: the worst of its circuits, which are listed unless well.
        tested_at: when a credential of its app was last tested.
    """

    calls: int
    failures: int
    fallbacks: int
    last_success_at: str | None
    last_failure_at: str | None
    last_failure: ErrorView | None
    circuit: Literal["closed", "open", "half_open"]
    circuits: list[CircuitView]
    credential_present: bool
    tested_at: str | None


class OperationEvidenceView(EvidenceView):
    """The same, with the operation's name."""

    app: str
    id: str
    kind: Literal["action", "trigger"]


class EvidenceList(Model):
    items: list[OperationEvidenceView]
    next_cursor: str | None


class ResetBody(Model):
    """Which operation; none: all of the connector."""

    operation: str | None = None


class ResetView(Model):
    """How many circuits were closed."""

    closed: int


class QuarantinedView(Model):
    """A code node that runs no more. `reason`: what it did last, `{type, …}`."""

    workflow_id: str
    version: int
    node: str
    violations: int
    quarantined_at: str
    reason: dict[str, Any]


class QuarantineList(Model):
    items: list[QuarantinedView]


class ReleaseBody(Model):
    """Which node; none: all of the workflow."""

    node: str | None = None


class ReleaseView(Model):
    """How many code nodes run again."""

    released: int


class CapabilityView(Model):
    """What is known of one operation."""

    id: str
    normalized_id: str
    kind: Literal["action", "trigger"]
    native_runtimes: list[str]
    fallback_runtimes: list[str]
    resolved_runtime: str | None
    availability: Literal["native", "fallback", "unavailable"]
    enabled_native_runtimes: list[str]
    enabled_fallback_runtimes: list[str]
    disabled_native_runtimes: list[str]
    disabled_fallback_runtimes: list[str]
    issues: list[IssueView]
    evidence: EvidenceView | None = None


class AppCapabilitiesView(Model):
    app: str
    normalized_app_id: str
    actions: list[str]
    triggers: list[str]
    action_details: dict[str, CapabilityView]
    trigger_details: dict[str, CapabilityView]


class CapabilitiesView(Model):
    """What can run, by app."""

    success: bool
    capabilities: list[AppCapabilitiesView]
    runtimes: RuntimesView
    runtime_flags: dict[str, Any]
    environment: dict[str, Any]


class ConnectorView(Model):
    """A connector in a list. `problems`: what is wrong with it."""

    id: str
    normalized_id: str
    name: str
    description: str
    category: str | None
    version: str
    actions: list[str]
    triggers: list[str]
    has_handlers: bool
    problems: list[str]


class ConnectorList(Model):
    items: list[ConnectorView]
    next_cursor: str | None


class OperationView(CapabilityView):
    """An operation of a connector, as its definition has it too."""

    title: str | None = None
    description: str | None = None
    method: str | None = None
    endpoint: str | None = None
    parameters: dict[str, Any] | None = None
    effect: str | None = None


class ConnectorDetail(ConnectorView):
    """A connector in full. `authentication`: its ways of signing in by name; `fields`: of its credentials."""

    docs: str | None
    base_url: str | None
    authentication: dict[str, str]
    fields: dict[str, Any]
    operations: list[OperationView]


class ReloadView(Model):
    """What came of reading the settings again. `needs_restart`: read, and not applied."""

    changed: list[ChangeView]
    needs_restart: list[ChangeView]
    overruled: list[OverruledView]
    warnings: list[str]


class ProblemView(Model):
    """An RFC 9457 problem. `code` is stable; `detail` is for people; `hint`: what to do next.

    `problems`: of settings that cannot be used, all that is wrong with them.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    findings: list[FindingView] | None = None
    problems: list[str] | None = None


class CheckView(Model):
    """What a check says. `details`: what else it found, where there is more to tell."""

    status: str
    reason: str | None = None
    age_seconds: float | None = None
    latency_ms: float | None = None
    details: dict[str, Any] | None = None


class MoveView(Model):
    """One change of a service's state."""

    at: str
    was: str
    state: str
    reason: str | None = None


class ServiceView(Model):
    """How one service is, with the last changes of its state, the oldest first."""

    name: str
    state: str
    reason: str | None = None
    since: str
    silent_seconds: float | None = None
    restarts: int
    moves: list[MoveView]


class HealthView(Model):
    """What a probe says. Callers from other machines see status words only."""

    status: str
    version: str | None = None
    checks: dict[str, CheckView]
    services: list[ServiceView] = []


class QueueStateView(Model):
    """`durable`: what is accepted is on disk, and more can be."""

    status: str
    durable: bool
    message: str
    latency_ms: float
    checked_at: str
    error: str | None = None


class QueueHealthView(Model):
    success: bool
    health: QueueStateView


class ProductionView(Model):
    success: bool
    status: str
    checks: dict[str, bool]
    queue_details: QueueStateView


class ReasonView(Model):
    """What holds something now. `hint`: what a person may do about it."""

    code: str
    message: str
    hint: str | None = None


class NoteView(Model):
    """What has befallen something, `count` times."""

    code: str
    message: str
    first_at: str
    last_at: str
    count: int


class WhyView(Model):
    subject: str
    kind: str
    state: str
    reasons: list[ReasonView]
    notes: list[NoteView]
