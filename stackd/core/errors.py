"""Every error stackd raises on purpose.

    StackdError
    ├── SettingsError        the operator must fix settings; lists all problems at once (exit 78)
    ├── InputError           a person or a far side sent something unusable (422 unless it says other)
    │   ├── NotFoundError    the named thing does not exist (404)
    │   ├── ConflictError    the named thing is not in a state that allows this (409)
    │   ├── GoneError        the named thing was there, and will not be again (410)
    │   ├── LinkError        a link that nobody here has given away (403)
    │   ├── TooLargeError    over a stated limit (413)
    │   ├── MalformedError   a request or a form that is none (400)
    │   ├── UnsupportedError  a request comes in a form that is not known here (415)
    │   ├── SlowClientError  what was to come did not come in good time (408)
    │   └── ExpressionError  an expression does not parse, or cannot be evaluated
    ├── AuthError            the caller does not say who it is, or is nobody that is known (401)
    │   └── ScopeError       the caller may do less than what it asks for (403)
    ├── BusyError            a stated limit of load is reached; retry later (429)
    │   ├── OverloadedError    what this process can hold or serve at a time is taken (503)
    │   └── BlobBudgetError    all blobs together take as much as they may (507)
    ├── StoreError
    │   ├── StoreBusyError     the write lock or a place in the writer was not free in time; retryable
    │   ├── StoreFullError     no space left; nothing of the change was kept (507)
    │   ├── StoreFailedError   an I/O error: writing has stopped, the process must restart (exit 75)
    │   │   └── StoreReplacedError  its files were removed or replaced in use: as above (exit 75)
    │   ├── StoreCorruptError  the file is not a sound database: writing has stopped (exit 78)
    │   └── SchemaError        the file's schema is newer or other than the code's (exit 78)
    ├── MasterKeyError       the master key is not the one that the store was made with (exit 78)
    ├── SealError            a sealed value was altered, or stands where it does not belong
    ├── BackupError          a file is no whole backup of a store, or not one of ours
    ├── LockedError          another process holds this role on this state directory (exit 78)
    ├── LeaseLostError       the job belongs to a newer claim; whoever sees this stops at once
    ├── NodeError            a node failed; says whether a retry may help and what is known of the effect
    ├── ApiError             the daemon answered with a problem, or what answered is no daemon of ours
    ├── UnreachableError     no connection to the daemon, so nothing was asked (exit 3)
    └── NoAnswerError        the daemon was asked and gave no whole answer: it may have done it

Messages are lower case, name the thing and the fact, hold no secret, and are fit to show.
"""

from __future__ import annotations

from typing import ClassVar


class StackdError(Exception):
    """Base of the tree.

    `code` is stable and documented; `hint` says what to do next.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500  # the HTTP status the API answers with

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code  # type: ignore[misc]  # an instance may be more precise than its class


def first_error(error: BaseException) -> BaseException:
    """What a task group wrapped: the first of its errors; any other error is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class SettingsError(StackdError):
    """The settings cannot be used. `problems` holds one line per finding, all of them."""

    code = "settings.invalid"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("settings cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = problems


class InputError(StackdError):
    code = "input.invalid"
    status = 422


class NotFoundError(InputError):
    code = "not_found"
    status = 404


class ConflictError(InputError):
    code = "conflict"
    status = 409


class GoneError(InputError):
    code = "gone"
    status = 410


class LinkError(InputError):
    code = "link.invalid"
    status = 403


class TooLargeError(InputError):
    code = "too_large"
    status = 413


class MalformedError(InputError):
    code = "malformed"
    status = 400


class UnsupportedError(InputError):
    code = "unsupported"
    status = 415


class SlowClientError(InputError):
    code = "client.too_slow"
    status = 408


class ExpressionError(InputError):
    """An expression does not parse or cannot be evaluated.

    `line` and `column` are 1-based inside the expression's own text; None when not known.
    """

    code = "expression.invalid"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.line = line
        self.column = column


class AuthError(StackdError):
    """The caller does not say who it is, or is nobody that is known. `challenge`: as RFC 6750 tells it."""

    code = "auth.required"
    status = 401

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        challenge: str = "Bearer",
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.challenge = challenge


class ScopeError(AuthError):
    """The caller may do less than what it asks for."""

    code = "auth.scope"
    status = 403

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(
            message,
            hint=f"use a token with the scope {scope}, or the Unix socket as the daemon's user",
            challenge=f'Bearer error="insufficient_scope", scope="{scope}"',
        )


class BusyError(StackdError):
    """A stated limit of load is reached. `retry_after`: seconds."""

    code = "busy"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class OverloadedError(BusyError):
    """As much is in hand as this process may hold at a time."""

    code = "overloaded"
    status = 503


class BlobBudgetError(BusyError):
    """All blobs together take as much as they may; room comes when executions that refer to them go."""

    code = "blob.budget"
    status = 507

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=60.0)


class StoreError(StackdError):
    """The store could not do it."""

    code = "store.error"
    status = 503


class StoreBusyError(StoreError):
    code = "store.busy"


class StoreFullError(StoreError):
    code = "store.full"
    status = 507


class StoreFailedError(StoreError):
    code = "store.failed"


class StoreReplacedError(StoreFailedError):
    code = "store.replaced"


class StoreCorruptError(StoreError):
    code = "store.corrupt"


class SchemaError(StoreError):
    code = "store.schema"


class MasterKeyError(StackdError):
    code = "vault.master_key"


class SealError(StackdError):
    code = "vault.seal"


class BackupError(StackdError):
    code = "backup.unusable"


class LockedError(StackdError):
    code = "role.locked"


class LeaseLostError(StackdError):
    code = "job.lease_lost"


class NodeError(StackdError):
    """A node failed.

    Attributes:
        kind: the class a retry policy looks at: timeout, rate_limit, network, service_unavailable,
            server_error, rejected, invalid, limit, internal.
        sent: True when the far side may have seen the request. An `unsafe` node that was sent and got
            no answer is uncertain.
        answered: True when the far side answered: the outcome is known, if not liked.
        declined: True when that answer says the action was not done and may be tried again (429, or 503
            with Retry-After).
        retry_after: seconds the far side asked us to wait; None: use the policy's backoff.
        http_status: of its answer, where that is what failed the node.
    """

    code = "node.failed"

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        code: str | None = None,
        sent: bool = False,
        answered: bool = False,
        declined: bool = False,
        retry_after: float | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.kind = kind
        self.sent = sent
        self.answered = answered
        self.declined = declined
        self.retry_after = retry_after
        self.http_status = http_status


class ApiError(StackdError):
    """The daemon answered with an RFC 9457 problem, or what answered is no daemon of ours."""

    code = "api.problem"

    def __init__(
        self, message: str, *, code: str, http_status: int, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.http_status = http_status


class UnreachableError(StackdError):
    """No connection to the daemon: nothing was asked."""

    code = "daemon.unreachable"


class NoAnswerError(StackdError):
    """The daemon was asked and gave no whole answer: it may have done it."""

    code = "daemon.no_answer"
