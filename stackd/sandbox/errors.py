"""How a run fails, by the origin's names."""

from __future__ import annotations

from typing import Any

from stackd.core.errors import NodeError


class SandboxError(NodeError):
    """A run failed. `name` is what the node's error is called; `facts` its numbers, as JSON."""

    name = "SandboxError"

    def __init__(self, message: str, *, code: str, kind: str = "rejected", **facts: Any) -> None:
        super().__init__(message, kind=kind, code=code, answered=True)
        self.facts = facts


class SandboxCodeError(SandboxError):
    """The code raised something, or cannot be run at all. `trace`: its own lines of the traceback."""

    name = "SandboxCodeError"

    def __init__(self, name: str, message: str, trace: str = "") -> None:
        super().__init__(
            f"{name}: {message}" if message else name, code="code.failed", error=name, trace=trace
        )
        self.trace = trace


class SandboxTimeoutError(SandboxError):
    name = "SandboxTimeoutError"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"Sandbox execution timed out after {seconds * 1000:.0f}ms",
            code="sandbox.timeout",
            kind="timeout",
            timeoutMs=round(seconds * 1000),
        )


class SandboxAbortError(SandboxError):
    name = "SandboxAbortError"

    def __init__(self) -> None:
        super().__init__("Sandbox execution was aborted", code="sandbox.aborted")


class SandboxHeartbeatTimeoutError(SandboxError):
    name = "SandboxHeartbeatTimeoutError"

    def __init__(self, silent: float, allowed: float) -> None:
        super().__init__(
            f"Sandbox heartbeat missed for {silent * 1000:.0f}ms (timeout={allowed * 1000:.0f}ms): "
            "it did not answer, used no CPU and had no request open",
            code="sandbox.heartbeat",
            kind="timeout",
            silentMs=round(silent * 1000),
            timeoutMs=round(allowed * 1000),
        )


class SandboxPolicyViolationError(SandboxError):
    """`violation`: the event that says what was tried."""

    name = "SandboxPolicyViolationError"

    def __init__(
        self, message: str, violation: dict[str, Any], *, code: str = "sandbox.policy"
    ) -> None:
        super().__init__(message, code=code, violation=violation)
        self.violation = violation


class SandboxResourceLimitError(SandboxPolicyViolationError):
    """`resource`: cpu, memory or output; `usage` and `limit` in its unit (ms, bytes)."""

    name = "SandboxResourceLimitError"

    def __init__(self, resource: str, usage: float, limit: float, source: str) -> None:
        unit = " ms" if resource == "cpu" else " bytes"
        super().__init__(
            f"the code took more {resource} than it may: {usage:,.0f}{unit} of {limit:,.0f}{unit} ({source})",
            {
                "type": "resource-limit",
                "resource": resource,
                "usage": usage,
                "limit": limit,
                "source": source,
            },
            code=f"sandbox.{resource}",
        )
        self.resource, self.usage, self.limit, self.source = resource, usage, limit, source


class SandboxLostError(SandboxError):
    """The sandbox ended under the run: what it was about to do is not known, and that was not its fault."""

    name = "SandboxLostError"

    def __init__(self) -> None:
        super().__init__(
            "the sandbox ended while the code ran", code="sandbox.lost", kind="service_unavailable"
        )


class SandboxUnavailableError(SandboxError):
    """This host does not isolate as well as it must, or nothing runs at all: no code was run."""

    name = "SandboxUnavailableError"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="sandbox.unavailable", kind="internal")
