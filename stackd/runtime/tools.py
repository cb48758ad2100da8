"""What every run of a process shares."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.clock import Clock
from stackd.core.events import EventBus
from stackd.http.exchange import Blobs, Http
from stackd.queue.admission import Admission
from stackd.queue.job import RetryPolicy
from stackd.runtime.connectors import Connectors
from stackd.runtime.links import Links
from stackd.sandbox.sandbox import Sandbox
from stackd.store.database import Database
from stackd.vault.records import Vault

FLUSH_AFTER = 0.2  # seconds a pure result may stay in memory only
INLINE_WAIT = 1.0  # seconds; a longer delay or retry wait is a timer and holds no worker slot
STORE_RETRY = 0.5  # seconds between tries while the store is full or locked


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes."""

    output: int
    execution: int


@dataclass(frozen=True, slots=True)
class Tools:
    """The store, the outside world, time, and what bounds a run.

    `admission`: of executions that nobody waits for. `sandbox`: None where no code is run.
    """

    store: Database
    http: Http
    blobs: Blobs
    clock: Clock
    events: EventBus
    limits: Limits
    admission: Admission
    links: Links
    job_retry: RetryPolicy
    connectors: Connectors
    vault: Vault
    sandbox: Sandbox | None
    send_within: float  # seconds after its intent was written; later, another may own the execution
    flush_after: float = FLUSH_AFTER
