"""Probes and metrics: live says the process turns, ready says each part works, started says that the parts once did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Final

from aiohttp import web

from stackd import __version__
from stackd.access.tokens import Scope
from stackd.client.models import (
    CheckView,
    HealthView,
    ProductionView,
    QueueHealthView,
    QueueStateView,
)
from stackd.core.clock import rfc3339
from stackd.core.errors import MalformedError, NotFoundError
from stackd.core.json import dumps
from stackd.core.text import shown
from stackd.integrations import circuits
from stackd.queue import verbs
from stackd.sandbox import quarantine
from stackd.store import space
from stackd.supervisor.supervisor import Report, ServiceState
from stackd.web.context import Context, of
from stackd.web.readiness import GOOD, Found, Status, fail
from stackd.web.route import Content, Query, Route
from stackd.web.views import service_view
from stackd.workflows import blobs, history

_VERBOSE: Final = Query("verbose", {}, "list every check")
_EXCLUDE: Final = Query(
    "exclude", {"type": "array", "items": {"type": "string"}}, "checks that do not count; may be given again"
)  # fmt: skip

_PROBE: Final = (
    Content(("text/plain",), {"type": "string"}),
    Content(("application/health+json",), HealthView),  # where details are asked for
)

TURNS_WITHIN: Final = (
    5.0  # seconds without a turn of the loop or a look of the supervisor; then it is not live
)


class Health:
    """Answers probes from what the supervisor and the checks of this process say."""

    @property
    def routes(self) -> tuple[Route, ...]:
        probe = dict.fromkeys((200, 503), _PROBE)
        return (
            Route("GET", "/livez", self._live, None, "Whether the process turns", probe, query=(_VERBOSE,)),
            Route(
                "GET", "/readyz", self._ready, None, "Whether each part works", probe,
                query=(_VERBOSE, _EXCLUDE),
            ),
            Route("GET", "/readyz/{check}", self._one, None, "One check of readyz", probe, query=(_VERBOSE,)),
            Route("GET", "/startupz", self._started, None, "Whether it once did", probe, query=(_VERBOSE,)),
            Route(
                "GET", "/api/health/queue", self._queue, None, "Whether the queue is durable and works",
                {200: QueueHealthView},
            ),
            Route(
                "GET", "/api/production/ready", self._production, None, "As readyz, by part",
                dict.fromkeys((200, 503), ProductionView),
            ),
            Route(
                "GET", "/metrics", self._metrics, Scope.READ, "Figures in Prometheus' text form",
                {200: Content(("text/plain",), {"type": "string"})},
            ),
        )  # fmt: skip

    async def _live(self, request: web.Request) -> web.Response:
        """Looks at nothing but this process: a restart mends nothing else."""
        context = of(request)
        silent = max(
            context.lag.silent_for, context.clock.monotonic() - context.supervisor.looked_at
        )
        turns = GOOD if silent < TURNS_WITHIN else fail(f"has not turned for {silent:.0f} s")
        ends = fail("a service does not end") if context.supervisor.is_stuck else GOOD
        return answer(request, {"loop": _view(turns), "services": _view(ends)})

    async def _ready(self, request: web.Request) -> web.Response:
        checks = await _checks(of(request))
        excluded = request.query.getall("exclude", [])
        for name in excluded:
            if name not in checks:
                raise MalformedError(
                    f"there is no check {shown(name)!r}",
                    code="health.unknown_check",
                    hint=f"known: {', '.join(checks)}",
                )
        left = {
            name: CheckView(status="excluded") if name in excluded else check
            for name, check in checks.items()
        }
        return answer(request, left, services=of(request).supervisor.reports())

    async def _one(self, request: web.Request) -> web.Response:
        checks = await _checks(of(request))
        name = request.match_info["check"]
        if name not in checks:
            raise NotFoundError(
                f"there is no check {shown(name)!r}",
                code="health.unknown_check",
                hint=f"known: {', '.join(checks)}",
            )
        return answer(request, {name: checks[name]})

    async def _started(self, request: web.Request) -> web.Response:
        context = of(request)
        services = GOOD if context.supervisor.has_started else fail("not every service was ready")
        checks = GOOD
        if not context.readiness.has_passed:
            await context.readiness.told()
        if not context.readiness.has_passed:
            checks = fail("not every check has passed")
        return answer(request, {"services": _view(services), "checks": _view(checks)})

    async def _queue(self, request: web.Request) -> web.Response:
        """200 whatever it says, as callers of it expect; what counts is in it."""
        view = QueueHealthView(success=True, health=await _queue_state(of(request)))
        return web.Response(body=dumps(view.as_json()), content_type="application/json")

    async def _production(self, request: web.Request) -> web.Response:
        context = of(request)
        checks = await _checks(context)
        ok = _is_good(checks)
        view = ProductionView(
            success=ok,
            status="ready" if ok else "not_ready",
            checks={name: check.status != Status.FAIL for name, check in checks.items()},
            queue_details=await _queue_state(context),
        )
        return web.Response(
            status=200 if ok else 503,
            body=dumps(view.as_json()),
            content_type="application/json",
            headers=_headers(ok=ok),
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        context = of(request)
        counts, kept, ended, used, free, resting, quarantined = await context.store.read(
            lambda tx: (
                verbs.live_counts(tx),
                blobs.totals(tx),
                history.count(tx),
                space.used_bytes(tx),
                space.free_bytes(tx),
                circuits.all_of(tx),
                quarantine.quarantined(tx),
            )
        )
        now = context.clock.time()
        states = Counter(one.state(now) for one in resting)
        for state in ("open", "half_open"):
            context.metrics.circuits.labels(state).set(states[state])
        for state, count in counts.items():
            context.metrics.queue_depth.labels(state).set(count)
        for name, check in (await _checks(context)).items():
            context.metrics.checks.labels(name).set(check.status != Status.FAIL)
        lags = context.lag.over(10.0)
        for quantile, late in (("0.5", lags.p50), ("0.99", lags.p99), ("1", lags.most)):
            context.metrics.loop_lag.labels(quantile).set(late)
        context.metrics.sandbox_quarantined.set(len(quarantined))
        if context.sandbox is not None:
            context.metrics.tell_of(context.sandbox)
        context.metrics.event_streams.set(context.stream.readers)
        context.metrics.blobs.set(kept.count)
        context.metrics.blob_bytes.set(kept.bytes)
        context.metrics.history.set(ended)
        context.metrics.store_bytes.labels("used").set(used)
        context.metrics.store_bytes.labels("free").set(free)
        return web.Response(
            body=context.metrics.render(), content_type="text/plain", charset="utf-8"
        )


def is_local(remote: str | None) -> bool:
    """Whether a caller at the address `remote` is on this machine; over the Unix socket it has none."""
    if not remote:
        return True
    try:
        address = ip_address(remote)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


async def _checks(context: Context) -> dict[str, CheckView]:
    told = await context.readiness.told()
    checks = {
        name: CheckView(
            status=one.status,
            reason=one.reason,
            age_seconds=round(one.age, 3),
            latency_ms=round(one.latency * 1000, 2),
            details=one.details,
        )
        for name, one in told.items()
    }
    for report in context.supervisor.reports():
        checks[f"service.{report.name}"] = _service_check(report)
    return checks


def _service_check(report: Report) -> CheckView:
    words = f"{report.state.value}{f': {report.reason}' if report.reason else ''}"
    if report.state is ServiceState.READY:
        return CheckView(status=Status.PASS)
    return CheckView(status=Status.WARN if report.is_good else Status.FAIL, reason=words)


def _view(found: Found) -> CheckView:
    return CheckView(status=found.status, reason=found.reason)


async def _queue_state(context: Context) -> QueueStateView:
    """`durable` only where what is accepted is on disk and more can be written."""
    told = await context.readiness.told()
    names = ("store.write", "store.space", "queue.work")
    parts = [told[name] for name in names if name in told]
    bad = next((one for one in parts if one.status is Status.FAIL), None)
    is_file = context.settings.queue_driver == "sqlite"
    writes = all(one.status is not Status.FAIL for one in parts[:2])
    return QueueStateView(
        status=Status.PASS if bad is None else Status.FAIL,
        durable=is_file and writes,
        message="the queue works" if bad is None else bad.reason or "the queue does not work",
        latency_ms=round(max(one.latency for one in parts) * 1000, 2),
        checked_at=rfc3339(context.clock.time() - max(one.age for one in parts)) or "",
        error=None if bad is None else bad.reason,
    )


def _is_good(checks: Mapping[str, CheckView]) -> bool:
    return all(check.status != Status.FAIL for check in checks.values())


def _words_only(view: HealthView) -> HealthView:
    """What others may see: which check passes, but no version, reason or timing."""
    checks = {name: CheckView(status=check.status) for name, check in view.checks.items()}
    return HealthView(status=view.status, checks=checks)


def _headers(*, ok: bool) -> dict[str, str]:
    return {"Cache-Control": "no-store"} | ({} if ok else {"Retry-After": "1"})


def answer(
    request: web.Request, checks: dict[str, CheckView], *, services: Iterable[Report] = ()
) -> web.Response:
    """A probe's answer: 503 if a check fails; in words, or with all of it where details are asked for."""
    ok = _is_good(checks)
    wants_detail = "verbose" in request.query or "health+json" in request.headers.get("Accept", "")
    status = 200 if ok else 503
    if not wants_detail:
        words = "ok\n" if ok else "not ready\n"
        return web.Response(status=status, text=words, headers=_headers(ok=ok))
    view = HealthView(
        status=Status.PASS if ok else Status.FAIL,
        version=__version__,
        checks=checks,
        services=[service_view(report) for report in services],
    )
    if not is_local(request.remote):
        view = _words_only(view)
    return web.Response(
        status=status,
        body=dumps(view.as_json()),
        content_type="application/health+json",
        headers=_headers(ok=ok),
    )
