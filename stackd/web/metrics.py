"""Counts every event; `/metrics` shows the counts in Prometheus' text form."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stackd.core.events import Event, EventBus
from stackd.integrations.evidence import OperationEnded
from stackd.queue.job import JobEnqueued, JobRescued, JobSettled
from stackd.runtime.events import NodeRetried
from stackd.supervisor.supervisor import ServiceMoved, ServiceState
from stackd.workflows.executions import ExecutionFinished, ExecutionQueued, NodeFinished
from stackd.workflows.history import HistoryPruned

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
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def count_webhook(self, outcome: str) -> None:
        """Count a delivery that was `accepted`, a `duplicate`, or `refused`."""
        self._labelled(self._webhooks, outcome).inc()

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
