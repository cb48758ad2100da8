"""Code nodes: what the code is given, what it may ask for, and what is told of the run."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from yarl import URL

from stackd.core.aside import aside_if
from stackd.core.errors import NodeError, StackdError
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.http.egress import EgressDeniedError, matches, normal_host
from stackd.http.message import RawBody, Request, Response
from stackd.integrations.plan import Parts
from stackd.runtime.context import NodeContext
from stackd.runtime.frame import Frame
from stackd.runtime.journal import Journal
from stackd.runtime.tools import Tools
from stackd.sandbox import quarantine
from stackd.sandbox.errors import (
    SandboxLostError,
    SandboxPolicyViolationError,
    SandboxResourceLimitError,
    SandboxUnavailableError,
)
from stackd.sandbox.limits import Limits
from stackd.sandbox.quarantine import Key
from stackd.sandbox.run import Job, Outcome
from stackd.sandbox.sandbox import Sandbox
from stackd.workflows.executions import NodeRow
from stackd.workflows.graph import GraphNode
from stackd.workflows.model import RESERVED_IDS, Code, FetchRules, Sandboxed

PLACE_TIMEOUT: Final = 30.0  # seconds besides, to wait for a place
MOST_FETCHES: Final = 100  # of one run
FETCH_BYTES: Final = 1024 * 1024  # of one answer
ITERATION: Final = re.compile(r"\[[0-9]+\]")
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class CodeRun:
    """Runs the code nodes of one claim."""

    def __init__(self, tools: Tools, execution_id: str, journal: Journal) -> None:
        self._tools = tools
        self._execution_id = execution_id
        self._journal = journal
        self._secrets = journal.secrets

    async def run(
        self,
        frame: Frame,
        node: GraphNode,
        row: NodeRow,
        params: dict[str, Json],
        context: NodeContext,
    ) -> Json:
        """What the code returned; `context.metadata` tells of the run, also where it failed.

        Raises:
            SandboxError: it failed, by its name.
        """
        sandbox, code = self._tools.sandbox, node.runtime
        assert code is not None  # noqa: S101  # as the node was checked
        if sandbox is None:
            raise SandboxUnavailableError("no code is run by this process")
        version = frame.roots["workflow"]["version"]
        key: Key = (frame.graph.workflow.id, version, _place(row.key))
        known = await self._tools.store.read(lambda tx: quarantine.get(tx, key))
        if known is not None and known.quarantined_at is not None:
            raise quarantine.SandboxQuarantinedError(known)
        fetch = _Fetch(self._tools, self._audit(row), code, context)
        job = Job(
            code.code,
            params,
            self._context(frame, node, row, code),
            entry_point=code.entry_point,
            filename=f"<{node.id}>",
            imports=code.imports,
            fetch=fetch.answer if code.fetch is not False else None,
            limits=limits_of(sandbox, frame, node, code),
            is_large=context.is_large,
        )
        outcome = await _run(sandbox, job)
        if outcome.verdict == "lost" and not context.sent:
            outcome = await sandbox.run(job)
        context.metadata = self._told(sandbox, outcome)
        self._count(key, outcome, is_known=known is not None)
        if outcome.error is not None:
            error = outcome.error
            error.sent = context.sent
            error.answered = not (outcome.is_calling or fetch.is_unknown)
            error.message = self._secrets.words(error.message)
            raise error
        return outcome.result

    def _count(self, key: Key, outcome: Outcome, *, is_known: bool) -> None:
        """Let it be written with the node run whether the code kept the rules."""
        now, error = self._tools.clock.time(), outcome.error
        broken: dict[str, Json] | None = None
        if isinstance(error, SandboxPolicyViolationError):
            broken = error.violation
        elif outcome.violations:
            broken = outcome.violations[-1]
        if broken is not None:
            at_once = isinstance(error, SandboxResourceLimitError)
            self._journal.add(
                lambda tx: quarantine.violated(tx, key, broken, at_once=at_once, now=now)
            )
        elif is_known and error is None:
            self._journal.add(lambda tx: quarantine.behaved(tx, key))

    def _context(self, frame: Frame, node: GraphNode, row: NodeRow, code: Code) -> dict[str, Json]:
        """`context`, by the origin's names. No credential is in it."""
        roots = frame.roots
        before = {edge.source: roots[edge.source] for edge in node.in_edges if edge.source in roots}
        given: dict[str, Json] = {
            "workflowId": frame.graph.workflow.id,
            "executionId": self._execution_id,
            "nodeId": node.id,
            "userId": None,
            "prevOutput": next(iter(before.values())) if len(before) == 1 else (before or None),
            "nodeOutputs": {key: one for key, one in roots.items() if key not in RESERVED_IDS},
            "trigger": roots.get("trigger"),
            "vars": roots.get("vars"),
            "environment": dict(code.environment),
            "metadata": {"attempt": row.attempt, "key": row.key, "nodeType": node.type},
        }
        return given | {key: roots[key] for key in ("item", "index") if key in roots}

    def _audit(self, row: NodeRow) -> dict[str, Json]:
        return {
            "organizationId": None,
            "executionId": self._execution_id,
            "nodeId": row.key,
            "connectionId": None,
            "userId": None,
        }

    def _told(self, sandbox: Sandbox, outcome: Outcome) -> dict[str, Json]:
        """What the node run tells of it, without the secrets that its logs may quote."""
        isolation = sandbox.isolation
        told: dict[str, Json] = {
            "executor": "sandbox",
            "verdict": outcome.verdict,
            "executionTimeMs": outcome.duration_ms,
            "usage": {"cpuMs": outcome.cpu_ms, "maxRssBytes": outcome.max_rss_bytes},
            "isolation": {
                "mode": sandbox.options.mode,
                **({} if isolation is None else isolation.told()),
                **({"notEnforced": list(outcome.not_enforced)} if outcome.not_enforced else {}),
            },
            "logs": list(outcome.logs),
        }
        if outcome.is_truncated:
            told["logsTruncated"] = True
        if outcome.fetches:
            told["fetches"] = outcome.fetches
        if outcome.violations:
            told["violations"] = list(outcome.violations)
        if outcome.error is not None:
            told["error"] = {"name": outcome.error.name, **outcome.error.facts}
        shown: dict[str, Json] = loads(self._secrets.redacted(dumps(told)))
        return shown


async def _run(sandbox: Sandbox, job: Job) -> Outcome:
    """As `sandbox.run`; a sandbox that ends is lost, in a fork too: no fault of the code, which has done nothing."""
    try:
        return await sandbox.run(job)
    except SandboxLostError as error:
        return Outcome(error=error, verdict="lost")


def _place(key: str) -> str:
    """Where the node stands in its workflow, whichever iteration it is: `each.price` of `each[3].price`."""
    return ITERATION.sub("", key)


def patience_of(sandbox: Sandbox | None, frame: Frame, node: GraphNode, code: Code) -> float:
    """Seconds for a run, with the wait for a place. Its own time begins when it has one."""
    own = 0.0 if sandbox is None else limits_of(sandbox, frame, node, code).timeout
    return own + PLACE_TIMEOUT


def limits_of(sandbox: Sandbox, frame: Frame, node: GraphNode, code: Code) -> Limits:
    """The operator's limits, tightened by the workflow and then by the node; the time is theirs, else the operator's default."""
    limits = sandbox.options.limits
    around = frame.graph.workflow.runtime
    asked = [one.timeout_ms / 1000 for one in (around, code) if one is not None and one.timeout_ms]
    asked += [node.timeout] if node.timeout is not None else []
    limits = limits.tightened(timeout=min(asked, default=sandbox.options.timeout))
    for one in (around, code):
        if one is not None:
            limits = limits.tightened(**_wanted(one))
    return replace(limits, scratch_mb=min(code.scratch_mb or 0, limits.scratch_mb))


def _wanted(one: Sandboxed) -> dict[str, int | None]:
    return {
        "cpu_ms": one.max_cpu_ms,
        "cpu_quota_ms": one.cpu_quota_ms,
        "memory_mb": one.max_memory_mb,
    }


class _Fetch:
    """Makes the requests of one run, under the rules of the operator and of the node."""

    def __init__(
        self, tools: Tools, audit: dict[str, Json], code: Code, context: NodeContext
    ) -> None:
        self._tools = tools
        self._audit = audit
        self._rules = code.fetch if isinstance(code.fetch, FetchRules) else FetchRules()
        self._context = context
        self._count = self._writes = 0
        self.is_unknown = False  # whether one was sent of which nobody knows what became

    async def answer(self, call: dict[str, Any]) -> dict[str, Any]:
        """What the code is told: an answer, or why there is none. Never raises what the code can be told."""
        self._count += 1
        try:
            if self._count > MOST_FETCHES:
                raise NodeError(
                    f"more than {MOST_FETCHES} requests", kind="limit", code="fetch.too_many"
                )
            response = await self._sent(call)
        except EgressDeniedError as error:
            return {
                "error": f"Network request blocked: {error.message}",
                "code": error.code,
                "violation": self._violation(error.host, call, "host_denied"),
            }
        except _DeniedError as error:
            return {
                "error": f"Network request blocked: {error}",
                "code": "egress.denied",
                "violation": self._violation(error.host, call, error.reason),
            }
        except StackdError as error:
            if isinstance(error, NodeError) and error.sent and not error.answered:
                self.is_unknown |= call.get("method") not in SAFE
            return {"error": error.message, "code": error.code}
        body = await aside_if(len(response.body) > LARGE, base64.b64encode, response.body)
        return {
            "status": response.status,
            "headers": dict(response.headers),
            "url": response.url,
            "body": body.decode(),
        }

    async def _sent(self, call: Mapping[str, Any]) -> Response:
        url, method, headers = str(call.get("url")), str(call.get("method")), _headers(call)
        self._judge(url)
        try:
            body = None if call.get("body") is None else base64.b64decode(call["body"])
        except (binascii.Error, TypeError, ValueError):
            raise NodeError(
                "its body is not base64", kind="invalid", code="fetch.invalid"
            ) from None
        wanted = call.get("timeout")
        own = float(wanted) if isinstance(wanted, int | float) and wanted > 0 else 30.0
        timeout = min(own, self._context.timeout)
        key = self._context.idempotency_key
        if key is not None and method not in SAFE:
            self._writes += 1
            if "idempotency-key" not in {name.lower() for name in headers}:
                headers["Idempotency-Key"] = key if self._writes == 1 else f"{key}:{self._writes}"
        credential = call.get("credential")
        if credential is not None:
            parts = Parts(method, url, headers=headers)
            if body is not None:
                parts.body, parts.has_body = body.decode("utf-8", "surrogateescape"), True
            return await self._tools.connectors.send_as(
                str(credential), parts, self._context, timeout=timeout
            )
        return await self._tools.http.request(
            Request(
                method=method,
                url=url,
                headers=headers,
                body=None if body is None else RawBody(body, None),
                timeout=timeout,
                follow_redirects=self._rules == FetchRules(),  # else another host could be reached
                max_response_bytes=min(FETCH_BYTES, self._context.max_bytes),
                fresh_connection=method not in SAFE,
            ),
            on_sent=self._context.on_sent if method not in SAFE else None,
        )

    def _judge(self, url: str) -> None:
        """Refuse what the node's own lists do not let pass."""
        try:
            host = normal_host(URL(url).raw_host or "")
        except ValueError:
            return  # refused as no URL in a moment
        for rule in self._rules.deny:
            if matches(rule, host):
                raise _DeniedError(host, f"{host} is explicitly denied by {rule}", "host_denied")
        if self._rules.allow and not any(matches(rule, host) for rule in self._rules.allow):
            raise _DeniedError(
                host, f"{host} is not allowlisted for this node", "host_not_allowlisted"
            )

    def _violation(self, host: str, call: Mapping[str, Any], reason: str) -> dict[str, Json]:
        return {
            "type": "network-denied",
            "host": host,
            "url": str(call.get("url"))[:500].partition("?")[0],
            "reason": reason,
            "allowlist": list(self._rules.allow),
            "denylist": list(self._rules.deny),
            "required": [],
            "audit": self._audit,
        }


class _DeniedError(Exception):
    def __init__(self, host: str, message: str, reason: str) -> None:
        super().__init__(message)
        self.host = host
        self.reason = reason


def _headers(call: Mapping[str, Any]) -> dict[str, str]:
    given = call.get("headers")
    return {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
