"""`/api/workflows`: import, list, show, versions, rollback, lint, run; the schema of documents."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Final

import anyio
from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    ExecutionView,
    ImportedWorkflow,
    LintView,
    NewRun,
    RollbackRequest,
    StartedExecution,
    VersionList,
    VersionView,
    WorkflowList,
    WorkflowView,
)
from stackd.core.aside import aside_if
from stackd.core.errors import InputError, OverloadedError
from stackd.core.json import LARGE, dumps, loads
from stackd.core.large_json import check, members
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.integrations.definition_schema import schema_named
from stackd.store.connection import Tx
from stackd.vault import envelope, inline
from stackd.web.activation import FORCE, uncovered
from stackd.web.addresses import addresses
from stackd.web.answers import accepted, rested, started
from stackd.web.bodies import Body
from stackd.web.connections import connection_of
from stackd.web.context import (
    Context,
    header_text,
    is_number,
    limit_of,
    of,
    seconds_of,
    switch_of,
    usable_key,
)
from stackd.web.route import CURSOR, IDEMPOTENCY_KEY, JSON, LIMIT, Content, Query, Route
from stackd.web.views import finding_view, version_view, workflow_view
from stackd.workflows import catalogue, executions
from stackd.workflows.catalogue import (
    Imported,
    NewVersion,
    VersionRow,
    WebhookNode,
    WorkflowRow,
)
from stackd.workflows.code import SyntaxOf
from stackd.workflows.coverage import CoverageOf
from stackd.workflows.document import Document, findings_in, read_document
from stackd.workflows.executions import NewExecution
from stackd.workflows.findings import Finding

WAIT: Final = Query(
    "wait", {"type": "number", "minimum": 0}, "seconds to wait for the execution, at most 300"
)
LONGEST_WAIT = 300.0  # seconds `?wait` may hold a connection
_NEWEST = 2**62


async def import_workflow(request: web.Request) -> web.Response:
    context = of(request)
    name, limit = request.query.get("name", "document"), context.settings.max_document_bytes
    activate_now, by_force = switch_of(request, "activate"), switch_of(request, "force")
    with context.bodies.of(request) as body:
        text = await _document_in(body)
        document = await anyio.to_thread.run_sync(
            partial(
                read_document,
                text,
                name=name,
                max_bytes=limit,
                coverage=context.coverage,
                syntax=context.syntax,
            )
        )
    done = await _stored(context, document, name, activate=activate_now, by_force=by_force)
    return _imported(request, document, done)


async def _stored(
    context: Context, document: Document, name: str, *, activate: bool, by_force: bool
) -> Imported:
    """The document as the current version of its workflow, and what is secret in it sealed."""
    now, vault = context.clock.time(), context.vault
    await anyio.to_thread.run_sync(envelope.load)

    def change(tx: Tx) -> Imported:
        sealed = inline.without_secrets(tx, vault, document)
        new = new_version(sealed.document)
        done = catalogue.import_version(
            tx,
            new,
            activate=activate,
            now=now,
            findings=() if by_force else document.warnings,
            name=name,
        )
        inline.put(tx, vault, sealed, now=now)
        return done

    return await context.store.write(change, size_bytes=len(document.text))


async def _document_in(body: Body) -> bytes:
    body.must_be(*_DOCUMENT.types, "application/x-yaml", "text/yaml", "text/x-yaml")
    return bytes(await body.read())


def _imported(request: web.Request, document: Document, done: Imported) -> web.Response:
    view = ImportedWorkflow(
        id=done.row.id,
        version=done.row.version,
        active=done.row.active,
        warnings=[finding_view(finding) for finding in document.warnings],
        webhooks=addresses(request, list(done.webhooks)),
    )
    return web.Response(
        status=201 if done.created else 200,
        body=dumps(view.as_json()),
        content_type="application/json",
    )


async def lint_document(request: web.Request) -> web.Response:
    """Say all there is to say of the document in the body; nothing is stored."""
    context = of(request)
    with context.bodies.of(request) as body:
        text = await _document_in(body)
    return await _linted(
        text,
        name=request.query.get("name", "document"),
        max_bytes=context.settings.max_document_bytes,
        coverage=context.coverage,
        syntax=context.syntax,
    )


async def lint_workflow(request: web.Request) -> web.Response:
    """Say what today's rules say of a workflow's current version."""
    context, workflow_id = of(request), request.match_info["id"]
    text = await context.store.read(
        lambda tx: catalogue.document(tx, workflow_id, catalogue.get(tx, workflow_id).version)
    )
    return await _linted(
        text,
        name=workflow_id,
        max_bytes=len(text),
        coverage=context.coverage,
        syntax=context.syntax,
    )


async def _linted(
    text: bytes, *, name: str, max_bytes: int, coverage: CoverageOf, syntax: SyntaxOf | None
) -> web.Response:
    findings: list[Finding] = await anyio.to_thread.run_sync(
        partial(findings_in, text, name=name, max_bytes=max_bytes, coverage=coverage, syntax=syntax)
    )
    view = LintView(
        ok=all(finding.severity != "error" for finding in findings),
        findings=[finding_view(finding) for finding in findings],
    )
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


async def list_versions(request: web.Request) -> web.Response:
    workflow_id, limit = request.match_info["id"], limit_of(request)
    cursor = request.query.get("cursor")
    before = _NEWEST if cursor is None else _version_in(cursor, "cursor")
    rows = await of(request).store.read(
        lambda tx: catalogue.versions(tx, workflow_id, before=before, limit=limit + 1)
    )
    page = VersionList(
        items=[version_view(row) for row in rows[:limit]],
        next_cursor=str(rows[limit - 1].version) if len(rows) > limit else None,
    )
    return web.Response(body=dumps(page.as_json()), content_type="application/json")


async def show_version(request: web.Request) -> web.Response:
    workflow_id = request.match_info["id"]
    number = _version_in(request.match_info["version"], "version")

    def query(tx: Tx) -> tuple[VersionRow, bytes]:
        row = catalogue.version(tx, workflow_id, number)
        return row, catalogue.document(tx, workflow_id, number)

    row, document = await of(request).store.read(query)
    view = version_view(row, loads(document))
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


def _version_in(text: str, name: str) -> int:
    if not is_number(text, most=_NEWEST):
        raise InputError(f"{name} {shown(text)!r} is no version", code=f"query.{name}")
    return int(text)


async def rollback(request: web.Request) -> web.Response:
    """Make an earlier version the current one, as if it were imported again: by today's rules."""
    context, workflow_id = of(request), request.match_info["id"]
    by_force = switch_of(request, "force")
    with context.bodies.of(request) as body:
        given = await members_of(body, "version")
    wanted = loads(given.get("version", b"null"))
    if wanted is not None and (type(wanted) is not int or not 0 <= wanted <= _NEWEST):
        raise InputError("version must be the number of a version", code="input.version")

    def query(tx: Tx) -> tuple[int, bytes]:
        number = catalogue.version_before(tx, workflow_id) if wanted is None else wanted
        catalogue.get(tx, workflow_id)
        return number, catalogue.document(tx, workflow_id, number)

    number, text = await context.store.read(query)
    name = f"version {number} of {workflow_id}"
    document = await anyio.to_thread.run_sync(
        partial(
            read_document,
            text,
            name=name,
            max_bytes=len(text),
            coverage=context.coverage,
            syntax=context.syntax,
        )
    )
    done = await _stored(context, document, name, activate=False, by_force=by_force)
    return _imported(request, document, done)


async def show_schema(request: web.Request) -> web.Response:
    """The JSON Schema of what people write."""
    schema = schema_named(request.match_info["name"])
    return web.Response(body=dumps(schema), content_type="application/schema+json")


def new_version(document: Document) -> NewVersion:
    """What the store needs of a validated document."""
    workflow = document.workflow
    return NewVersion(
        workflow_id=document.id,
        name=workflow.name or document.id,
        content_hash=document.content_hash,
        document=document.text,
        concurrency=workflow.concurrency,
        webhooks=[
            WebhookNode(node.id, node.params.get("path"))
            for node in workflow.nodes
            if node.type == "trigger.webhook.inbound"
        ],
    )


async def list_workflows(request: web.Request) -> web.Response:
    limit, after = limit_of(request), request.query.get("cursor", "")

    def query(tx: Tx) -> tuple[list[WorkflowRow], dict[str, list[tuple[str, str]]]]:
        rows = catalogue.listed(tx, after=after, limit=limit + 1)
        return rows, catalogue.webhooks_between(tx, rows[0].id, rows[-1].id) if rows else {}

    rows, webhooks = await of(request).store.read(query)
    page = WorkflowList(
        items=[
            workflow_view(row, addresses(request, webhooks.get(row.id, []))) for row in rows[:limit]
        ],
        next_cursor=rows[limit - 1].id if len(rows) > limit else None,
    )
    return web.Response(body=dumps(page.as_json()), content_type="application/json")


async def show_workflow(request: web.Request) -> web.Response:
    workflow_id = request.match_info["id"]

    def query(tx: Tx) -> tuple[WorkflowRow, list[tuple[str, str]], bytes]:
        row = catalogue.get(tx, workflow_id)
        return (
            row,
            catalogue.webhooks(tx, workflow_id),
            catalogue.document(tx, workflow_id, row.version),
        )

    row, webhooks, document = await of(request).store.read(query)
    warnings = await uncovered(of(request), row)
    view = workflow_view(row, addresses(request, webhooks), loads(document), warnings)
    return web.Response(body=dumps(view.as_json()), content_type="application/json")


async def run_workflow(request: web.Request) -> web.StreamResponse:
    """Start an execution by hand; with `?wait` answer with the execution once it rests."""
    workflow_id, wait = request.match_info["id"], wait_of(request)
    with of(request).bodies.of(request) as body:
        given = await members_of(body, "input")
        execution_id = await start_by_hand(request, workflow_id, given.pop("input", b"null"))
    return await started_by_hand(request, workflow_id, execution_id, wait)


def wait_of(request: web.Request) -> float | None:
    """Seconds the caller waits for an execution, to be read before it is started; None: it does not."""
    return seconds_of(request, "wait", longest=LONGEST_WAIT)


async def members_of(body: Body, *known: str) -> dict[str, bytes]:
    """The members of the JSON object in `body`, each as its own text; none if there is no body.

    Raises:
        UnsupportedError: it says that it is no JSON.
        InputError: it is no JSON object, or has others than the `known`.
    """
    body.must_be(JSON)
    raw = await body.read()
    given = await aside_if(len(raw) > LARGE, _members, raw)
    foreign = next((name for name in given if name not in known), None)
    if foreign is not None:
        meant = nearest(foreign, known)
        hint = f"known here: {', '.join(known)}" if meant is None else f"did you mean {meant!r}?"
        raise InputError(
            f"{shown(foreign)!r} is not known here", code="input.unknown_key", hint=hint
        )
    return given


def _members(raw: bytearray) -> dict[str, bytes]:
    start = raw.lstrip()[:1]
    if not start:
        return {}
    check(raw)
    if start != b"{":
        raise InputError("the body must be a JSON object", code="json.not_object")
    return members(raw)


async def start_by_hand(request: web.Request, workflow_id: str, given: bytes) -> str:
    """Start an execution with `given`, JSON text that was checked, as its input; its id."""
    context = of(request)
    row = await context.store.read(lambda tx: catalogue.get(tx, workflow_id))
    graph = await context.versions.graph(workflow_id, row.version)
    new = NewExecution(
        workflow_id=workflow_id,
        version=row.version,
        trigger_type="trigger.time.manual",
        trigger_node=graph.trigger_by_hand,
        input=given,
        concurrency=graph.workflow.concurrency,
    )
    key = usable_key(header_text(request.headers.get("Idempotency-Key", ""))) or None
    return await _start_once(context, new, key=key)


async def started_by_hand(
    request: web.Request, workflow_id: str, execution_id: str, wait: float | None
) -> web.StreamResponse:
    """The answer to a start: the execution itself if the caller waits and it rests in time."""
    if wait is not None and await of(request).waiting.until_rested(
        execution_id, timeout=wait, client=connection_of(request)
    ):
        with contextlib.suppress(OverloadedError):  # it is started all the same
            return await rested(request, execution_id)
    return accepted(started(execution_id, workflow_id))


async def _start_once(context: Context, new: NewExecution, *, key: str | None) -> str:
    now = context.clock.time()

    def change(tx: Tx) -> str:
        if key is not None:
            known = executions.find_duplicate(tx, new, key=key, now=now)
            if known is not None:
                executions.refuse_other_input(tx, known, new.input)
                return known
        context.admission.admit(tx, now=now)
        execution_id = executions.start(tx, new, now=now)
        if key is not None:
            executions.remember_key(
                tx,
                new,
                key=key,
                execution_id=execution_id,
                now=now,
                window=context.settings.webhook_dedupe_window,
            )
        return execution_id

    return await context.store.write(change, size_bytes=len(new.input))


_DOCUMENT: Final = Content(("application/yaml", JSON, "text/plain"), {"type": "string"})
_NAME: Final = Query("name", {"type": "string"}, "what messages call the document")

ROUTES: Final = (
    Route(
        "POST", "/api/workflows", import_workflow, Scope.WRITE,
        "Store a document as the current version of its workflow",
        {201: ImportedWorkflow, 200: ImportedWorkflow}, takes=_DOCUMENT,
        query=(Query("activate", {"type": "boolean"}, "let its triggers start it"), FORCE, _NAME),
    ),
    Route(
        "GET", "/api/workflows", list_workflows, Scope.READ, "All workflows, by id",
        {200: WorkflowList}, query=(LIMIT, CURSOR),
    ),
    Route(
        "POST", "/api/workflows/lint", lint_document, Scope.READ,
        "All there is to say of a document; nothing is stored",
        {200: LintView}, takes=_DOCUMENT, query=(_NAME,),
    ),
    Route(
        "GET", "/api/workflows/{id}", show_workflow, Scope.READ, "A workflow with its document",
        {200: WorkflowView},
    ),
    Route(
        "GET", "/api/workflows/{id}/versions", list_versions, Scope.READ,
        "The versions of a workflow, the newest first", {200: VersionList}, query=(LIMIT, CURSOR),
    ),
    Route(
        "GET", "/api/workflows/{id}/versions/{version}", show_version, Scope.READ,
        "One version with its document", {200: VersionView},
    ),
    Route(
        "POST", "/api/workflows/{id}/rollback", rollback, Scope.WRITE,
        "Make an earlier version the current one, by today's rules",
        {200: ImportedWorkflow}, takes=RollbackRequest, takes_nothing=True, query=(FORCE,),
    ),
    Route(
        "POST", "/api/workflows/{id}/lint", lint_workflow, Scope.READ,
        "What today's rules say of the current version", {200: LintView},
    ),
    Route(
        "POST", "/api/workflows/{id}/run", run_workflow, Scope.RUN,
        "Start an execution by hand; with `wait`, 200 and the execution if it rests in time",
        {202: StartedExecution, 200: ExecutionView},
        takes=NewRun, takes_nothing=True, query=(WAIT,), headers=(IDEMPOTENCY_KEY,),
    ),
    Route(
        "GET", "/api/schema/{name}", show_schema, Scope.READ, "The JSON Schema of what people write",
        {200: Content(("application/schema+json",), {"type": "object"})},
    ),
)  # fmt: skip
