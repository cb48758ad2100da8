"""Client of the HTTP API for programs with an event loop: one daemon, by nouns.

    async with Client(socket_path=state / "stackd.sock") as stackd:
        execution = await stackd.workflows.run("hello", {"name": "Ada"})

What is asked for comes back as the models of the API. Every method raises as `Channel.request` does:
UnreachableError where nothing was asked, NoAnswerError where it may have been done, ApiError with the daemon's code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Self

from stackd.client.capabilities import Capabilities, CapabilityCache
from stackd.client.channel import Channel
from stackd.client.models import (
    ConnectorDetail,
    ConnectorList,
    ConnectorView,
    CredentialList,
    CredentialView,
    DeletedWorkflow,
    ExecutionList,
    ExecutionSummaryView,
    ExecutionView,
    HealthView,
    ImportedWorkflow,
    LintView,
    MovedExecution,
    StartedExecution,
    VersionList,
    VersionView,
    WhyView,
    WorkflowList,
    WorkflowView,
)
from stackd.client.wire import TIMEOUT, Address, Answer, ServerEvent
from stackd.core.clock import Clock, SystemClock
from stackd.core.text import segment

LONGEST_WAIT: Final = 300.0  # seconds the API holds a request; whoever waits longer asks again
POLL: Final = 1.0  # seconds between these questions
RESTED: Final = frozenset({"completed", "failed", "cancelled", "uncertain"})


class Client:
    """One daemon. Entered once, used by any number of tasks; at its end all of its connections are closed.

    Args:
        url, token: over TCP; else `socket_path`, the Unix socket, where no token is needed.
        timeout: seconds without a byte of an answer.

    Raises:
        InputError: these name no daemon that can be asked.
    """

    def __init__(
        self,
        *,
        socket_path: Path | str | None = None,
        url: str | None = None,
        token: str | None = None,
        timeout: float = TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        path = None if socket_path is None else Path(socket_path)
        self._channel = Channel(Address(socket_path=path, url=url, token=token), timeout=timeout)
        clock = clock or SystemClock()
        self.workflows = Workflows(self._channel, clock)
        self.executions = Executions(self._channel)
        self.credentials = Credentials(self._channel)
        self.registry = Registry(self._channel, clock)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.__aexit__(*error)

    async def health(self) -> HealthView:
        """How each part works; `status` is `fail` where one does not, which is no error here."""
        query = {"verbose": "true"}
        return await self._channel.ask(
            HealthView, "GET", "/readyz", query=query, allow=frozenset({503})
        )

    async def why(self, subject: str) -> WhyView:
        """What holds an execution, a workflow or the `queue` now, and what has befallen it."""
        return await self._channel.ask(WhyView, "GET", f"/api/why/{segment(subject)}")

    async def request(self, method: str, path: str, **how: Any) -> Answer:
        """Any other request of the API. Arguments as of `Channel.request`."""
        return await self._channel.request(method, path, **how)


class _Noun:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel


class Workflows(_Noun):
    """`/api/workflows`."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        super().__init__(channel)
        self._clock = clock

    async def import_(
        self,
        document: bytes | str,
        *,
        activate: bool = False,
        force: bool = False,
        name: str = "document",
    ) -> ImportedWorkflow:
        """Store a document, YAML or JSON, as the current version of its workflow.

        `force`: activate it though nothing can run some operation of it. `name`: what messages call it.
        """
        body = document.encode() if isinstance(document, str) else document
        query = {"activate": _switch(activate), "force": _switch(force), "name": name}
        return await self._channel.ask(
            ImportedWorkflow, "POST", "/api/workflows", body=body, query=query
        )

    async def lint(self, document: bytes | str, *, name: str = "document") -> LintView:
        """All there is to say of a document; nothing is stored."""
        body = document.encode() if isinstance(document, str) else document
        return await self._channel.ask(
            LintView, "POST", "/api/workflows/lint", body=body, query={"name": name}
        )

    def list(self) -> AsyncIterator[WorkflowView]:
        """All of them, by id, without their documents."""
        return self._channel.items(WorkflowList, "/api/workflows")

    async def get(self, workflow_id: str) -> WorkflowView:
        """One, with its document."""
        return await self._channel.ask(
            WorkflowView, "GET", f"/api/workflows/{segment(workflow_id)}"
        )

    def versions(self, workflow_id: str) -> AsyncIterator[VersionView]:
        """All versions of one, the newest first."""
        return self._channel.items(VersionList, f"/api/workflows/{segment(workflow_id)}/versions")

    async def activate(self, workflow_id: str, *, force: bool = False) -> WorkflowView:
        """Let its triggers start executions. `force`: though nothing can run some operation of it."""
        return await self._channel.ask(
            WorkflowView, "POST", f"/api/workflows/{segment(workflow_id)}/activate",
            query={"force": _switch(force)},
        )  # fmt: skip

    async def deactivate(self, workflow_id: str) -> WorkflowView:
        """Stop its triggers; executions under way go on."""
        return await self._channel.ask(
            WorkflowView, "POST", f"/api/workflows/{segment(workflow_id)}/deactivate"
        )

    async def delete(self, workflow_id: str) -> int:
        """Delete it with all that belongs to it; how many executions that were."""
        executions, more = 0, True
        while more:
            part = await self._channel.ask(
                DeletedWorkflow, "DELETE", f"/api/workflows/{segment(workflow_id)}"
            )
            executions, more = executions + part.executions, part.more
        return executions

    async def start(
        self, workflow_id: str, given: Any = None, *, idempotency_key: str | None = None
    ) -> StartedExecution:
        """Start an execution with `given` as its input. The same key starts one, however often it is sent."""
        path, headers = f"/api/workflows/{segment(workflow_id)}/run", _keyed(idempotency_key)
        return await self._channel.ask(
            StartedExecution, "POST", path, body={"input": given}, headers=headers
        )

    async def run(
        self,
        workflow_id: str,
        given: Any = None,
        *,
        wait: float = LONGEST_WAIT,
        idempotency_key: str | None = None,
    ) -> ExecutionView:
        """Start an execution and wait for it: as it is once it rests, or after `wait` seconds.

        Who is cancelled waits no more; the execution goes on.
        """
        give_up_at, held = self._clock.monotonic() + wait, min(wait, LONGEST_WAIT)
        answer = await self._channel.request(
            "POST",
            f"/api/workflows/{segment(workflow_id)}/run",
            body={"input": given},
            query={"wait": held},
            headers=_keyed(idempotency_key),
            timeout=held + self._channel.timeout,
        )
        if answer.status != 202:
            return self._channel.address.read(answer, ExecutionView)
        started = self._channel.address.read(answer, StartedExecution)
        while True:
            path = f"/api/executions/{segment(started.execution_id)}"
            view = await self._channel.ask(ExecutionView, "GET", path)
            left = give_up_at - self._clock.monotonic()
            if view.status in RESTED or left <= 0:
                return view
            await self._clock.sleep(min(POLL, left))


class Executions(_Noun):
    """`/api/executions`, and the events of them."""

    def list(
        self, *, workflow_id: str | None = None, status: str | None = None
    ) -> AsyncIterator[ExecutionSummaryView]:
        """Those of a workflow, in a state, or all of them, the newest first."""
        return self._channel.items(
            ExecutionList, "/api/executions", workflowId=workflow_id, status=status
        )

    async def get(self, execution_id: str) -> ExecutionView:
        """One, with its node runs."""
        return await self._channel.ask(
            ExecutionView, "GET", f"/api/executions/{segment(execution_id)}"
        )

    async def cancel(self, execution_id: str) -> MovedExecution:
        """End it, or ask whoever runs it to."""
        return await self._channel.ask(
            MovedExecution, "POST", f"/api/executions/{segment(execution_id)}/cancel"
        )

    async def retry(self, execution_id: str, *, start: str | None = None) -> MovedExecution:
        """Let one that has ended go on: at what failed, or with the node `start` and all that follows it."""
        body = None if start is None else {"from": start}
        return await self._channel.ask(
            MovedExecution, "POST", f"/api/executions/{segment(execution_id)}/retry", body=body
        )

    def events(
        self,
        execution_id: str | None = None,
        *,
        workflow_id: str | None = None,
        types: Sequence[str] = (),
        last_id: str | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[ServerEvent]]:
        """What happens in that daemon, as it happens, until it ends; all of it unless narrowed.

            async with stackd.executions.events(workflow_id="orders") as events:
                async for event in events: ...

        Inside the block nothing is missed. `last_id`: go on after that event.
        """
        query = {
            "executionId": execution_id,
            "workflowId": workflow_id,
            "types": ",".join(types) or None,
        }
        return self._channel.events("/api/events", last_id=last_id, query=query)


class Credentials(_Noun):
    """`/api/credentials`. No secret ever comes back."""

    def list(self) -> AsyncIterator[CredentialView]:
        """All of them, by id."""
        return self._channel.items(CredentialList, "/api/credentials")

    async def create(
        self,
        credential_id: str,
        *,
        connector: str,
        fields: Mapping[str, str],
        auth: str | None = None,
        public: Sequence[str] = (),
    ) -> CredentialView:
        """Store one. `public`: the fields of it that are no secret."""
        body: dict[str, Any] = {
            "id": credential_id,
            "connector": connector,
            "fields": dict(fields),
            "public": list(public),
        }
        if auth is not None:
            body["auth"] = auth
        return await self._channel.ask(CredentialView, "POST", "/api/credentials", body=body)

    async def delete(self, credential_id: str) -> None:
        """Remove it for good."""
        await self._channel.request("DELETE", f"/api/credentials/{segment(credential_id)}")


class Registry(_Noun):
    """`/api/registry`: what can run, which is kept for a minute, and the connectors there are."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        super().__init__(channel)
        self._kept = CapabilityCache(self._fetch, clock=clock)

    async def capabilities(self, *, refresh: bool = False) -> Capabilities:
        """What can run, and why the rest cannot: as of the last minute, or with `refresh` as of now."""
        return await self._kept.get(refresh=refresh)

    async def _fetch(self, etag: str | None) -> Answer:
        answer = await self._channel.request(
            "GET",
            "/api/registry/capabilities",
            query={"include": "unavailable"},
            headers={} if etag is None else {"If-None-Match": etag},
        )
        if answer.status != 304 and "capabilities" not in answer.body:
            raise self._channel.address.foreign(answer.status)
        return answer

    def connectors(self) -> AsyncIterator[ConnectorView]:
        """All of them, by id, also those that cannot be used."""
        return self._channel.items(ConnectorList, "/api/registry/connectors")

    async def connector(self, connector_id: str) -> ConnectorDetail:
        """One, with its operations."""
        path = f"/api/registry/connectors/{segment(connector_id)}"
        return await self._channel.ask(ConnectorDetail, "GET", path)


def _switch(value: bool) -> str | None:  # noqa: FBT001  # that is what it is about
    return "true" if value else None


def _keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}
