"""Counts every event; `/metrics` shows the counts in Prometheus' text form."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stackd.core.events import Event, EventBus
from stackd.integrations.evidence import OperationEnded
from stackd.queue.job import JobEnqueued, JobRescued, JobSettled
from stackd.runtime.events import NodeRetried
from stackd.sandbox.events import CodeRan
from stackd.sandbox.sandbox import Sandbox
from stackd.supervisor.supervisor import ServiceMoved, ServiceState
from stackd.workflows.executions import ExecutionFinished, ExecutionQueued, NodeFinished
from stackd.workflows.history import HistoryPruned

_RUNS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 300)  # seconds
_LATENCIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000)  # milliseconds


class Metrics:
    """The figures of this process. The origin's names where the thing exists."""

    def __init__(self, events: EventBus) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self._queued = self._counter(
            "executions_queued_total", "executions made durable", "workflow"
        )
        self._finished = self._counter(
            "executions_finished_total", "executions that ended", "workflow", "status"
        )
        self._jobs = self._counter("jobs_total", "moves of jobs", "move")
        self._retries = self._counter("node_retries_total", "tries of nodes repeated", "code")
        self._operations = self._counter(
            "stackd_operations_total", "tries of operations of connectors",
            "app", "operation", "executor", "outcome",
        )  # fmt: skip
        self._fallbacks = self._counter(
            "stackd_operation_fallbacks_total", "tries by generic HTTP in place of a handler",
            "app", "operation",
        )  # fmt: skip
        self.circuits = Gauge(
            "stackd_circuits", "circuits of operations that are not closed", ("state",),
            registry=self.registry,
        )  # fmt: skip
        self._services = Gauge(
            "stackd_service_state", "1 for the state a service is in", ("service", "state"),
            registry=self.registry,
        )  # fmt: skip
        self._restarts = self._counter(
            "stackd_service_restarts_total", "lives of services after the first", "service"
        )
        self._moves = self._counter(
            "stackd_service_moves_total", "changes of state of services", "service", "state"
        )
        self._latency = Histogram(
            "workflow_node_latency_ms", "how long node runs took", ("type", "status"),
            buckets=_LATENCIES, registry=self.registry,
        )  # fmt: skip
        self._webhooks = self._counter(
            "webhook_requests_total", "webhook deliveries by answer", "outcome"
        )
        self.event_streams = Gauge(
            "stackd_event_streams", "open streams of /api/events", registry=self.registry
        )
        self.queue_depth = Gauge(
            "workflow_queue_depth", "jobs by state", ("state",), registry=self.registry
        )
        self.checks = Gauge(
            "stackd_check", "1 while a check of readyz is good", ("check",), registry=self.registry
        )
        self.loop_lag = Gauge(
            "stackd_loop_lag_seconds", "how late the event loop was in the last ten seconds",
            ("quantile",), registry=self.registry,
        )  # fmt: skip
        self.blobs = Gauge("stackd_blobs", "blobs that are kept", registry=self.registry)
        self.blob_bytes = Gauge(
            "stackd_blob_bytes", "bytes that all blobs take together", registry=self.registry
        )
        self.history = Gauge(
            "stackd_history_executions", "executions that have ended and are kept",
            registry=self.registry,
        )  # fmt: skip
        self.store_bytes = Gauge(
            "stackd_store_bytes", "bytes of the store's file", ("part",), registry=self.registry
        )
        self._removed = self._counter(
            "stackd_executions_removed_total", "executions removed from the history", "bound"
        )
        self._code_runs = self._counter(
            "stackd_sandbox_runs_total", "runs of code, by how they ended", "mode", "verdict"
        )
        self._code_seconds = Histogram(
            "stackd_sandbox_run_seconds", "how long runs of code took", ("mode",),
            buckets=_RUNS, registry=self.registry,
        )  # fmt: skip
        self._broken = self._counter(
            "sandbox_policy_violations_total", "rules that code broke", "type"
        )
        self._silent = self._counter(
            "sandbox_heartbeat_timeouts_total", "runs of code ended for their silence"
        )
        self._code_running = Gauge(
            "sandbox_active", "runs of code under way", registry=self.registry
        )
        self._code_waiting = Gauge(
            "stackd_sandbox_waiting", "runs of code that wait for a place", registry=self.registry
        )
        self._code_parked = Gauge(
            "stackd_sandbox_parked",
            "processes that wait for code in advance",
            registry=self.registry,
        )
        self._unparked = self._counter(
            "stackd_sandbox_unparked_total", "runs of code for which no process waited in advance"
        )
        self._level = Gauge(
            "stackd_sandbox_level", "how well code is isolated: 3 to 0; none while that is not known",
            ("mode",), registry=self.registry,
        )  # fmt: skip
        self._runs_code = Gauge(
            "stackd_sandbox_available", "1 while code is run", ("mode",), registry=self.registry
        )
        self.sandbox_quarantined = Gauge(
            "sandbox_quarantined", "code nodes that run no more", registry=self.registry
        )
        events.subscribe(
            self._hear,
            NodeFinished,
            JobSettled,
            JobEnqueued,
            JobRescued,
            ExecutionQueued,
            ExecutionFinished,
            NodeRetried,
            OperationEnded,
            ServiceMoved,
            HistoryPruned,
            CodeRan,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def count_webhook(self, outcome: str) -> None:
        """Count a delivery that was `accepted`, a `duplicate`, or `refused`."""
        self._labelled(self._webhooks, outcome).inc()

    def tell_of(self, sandbox: Sandbox) -> None:
        """Let the gauges be what is so of `sandbox` now."""
        self._code_running.set(sandbox.running)
        self._code_waiting.set(sandbox.waiting)
        self._code_parked.set(sandbox.parked)
        self._runs_code.labels(sandbox.options.mode).set(sandbox.problem() is None)
        self._level.clear()
        if sandbox.isolation is not None and sandbox.trouble is None:
            self._level.labels(sandbox.options.mode).set(sandbox.isolation.level)

    def _hear(self, event: Event) -> None:
        match event:
            case NodeFinished():
                if event.seconds is not None:
                    took = self._labelled(self._latency, event.type, event.status)
                    took.observe(event.seconds * 1000)
            case JobEnqueued():
                self._labelled(self._jobs, "enqueued").inc()
            case JobSettled():
                self._labelled(self._jobs, event.state.value).inc()
            case JobRescued():
                self._labelled(self._jobs, "rescued").inc()
            case ExecutionQueued():
                self._labelled(self._queued, event.workflow_id).inc()
            case ExecutionFinished():
                self._labelled(self._finished, event.workflow_id, event.status).inc()
            case HistoryPruned():
                for bound, count in asdict(event).items():
                    self._labelled(self._removed, bound.removeprefix("by_")).inc(count)
            case CodeRan():
                self._labelled(self._code_runs, event.mode, event.verdict).inc()
                if event.verdict not in ("unavailable", "aborted"):
                    self._labelled(self._code_seconds, event.mode).observe(event.seconds)
                    if not event.was_parked:
                        self._unparked.inc()
                if event.verdict == "heartbeat":
                    self._silent.inc()
                for kind in event.broken:
                    self._labelled(self._broken, kind).inc()
            case NodeRetried():
                self._labelled(self._retries, event.code).inc()
            case OperationEnded():
                outcome = "ok" if event.ok else "failed"
                names = event.connector, event.operation
                self._labelled(self._operations, *names, event.executor, outcome).inc()
                if event.fell_back:
                    self._labelled(self._fallbacks, *names).inc()
            case ServiceMoved():
                self._services.labels(event.service, event.was).set(0)
                self._services.labels(event.service, event.state).set(1)
                self._labelled(self._moves, event.service, event.state).inc()
                if event.state == ServiceState.STARTING:  # its first life begins in that state
                    self._labelled(self._restarts, event.service).inc()
            case _:
                pass

    def _labelled(self, metric: Any, *labels: str) -> Any:
        """The child of `metric` with `labels`, kept: the library's own look-up costs more than counting."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def render(self) -> bytes:
        return generate_latest(self.registry)
