"""Probes and metrics: live says the loop turns, ready says each part works, started says that the parts once did."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Final

import anyio
from aiohttp import web

from stackd import __version__
from stackd.access.tokens import Scope
from stackd.client.models import CheckView, HealthView
from stackd.core.errors import StackdError
from stackd.core.json import dumps
from stackd.queue import processes, verbs
from stackd.web.context import Context, of
from stackd.web.route import Content, Query, Route
from stackd.workflows import blobs

_VERBOSE: Final = Query("verbose", {}, "list every check")

_PROBE: Final = (
    Content(("text/plain",), {"type": "string"}),
    Content(("application/health+json",), HealthView),  # where details are asked for
)

WRITE_LIMIT = 1.0  # seconds a commit may take before the store counts as not working
WRITE_FRESH = 5.0  # seconds a commit stays good as evidence: probes cause no storm of syncs


class Health:
    """Answers probes from what the services and the store say now."""

    @property
    def routes(self) -> tuple[Route, ...]:
        probe = dict.fromkeys((200, 503), _PROBE)
        return (
            Route("GET", "/livez", self._live, None, "Whether the loop turns", probe, query=(_VERBOSE,)),
            Route("GET", "/readyz", self._ready, None, "Whether each part works", probe, query=(_VERBOSE,)),
            Route("GET", "/startupz", self._started, None, "Whether it once did", probe, query=(_VERBOSE,)),
            Route(
                "GET", "/metrics", self._metrics, Scope.READ, "Figures in Prometheus' text form",
                {200: Content(("text/plain",), {"type": "string"})},
            ),
        )  # fmt: skip

    async def _live(self, request: web.Request) -> web.Response:
        return _answer(request, ok=True, checks={"loop": CheckView(status="pass")})

    async def _ready(self, request: web.Request) -> web.Response:
        checks = await self._checks(of(request))
        ok = all(check.status == "pass" for check in checks.values())
        return _answer(request, ok=ok, checks=checks)

    async def _started(self, request: web.Request) -> web.Response:
        ok = of(request).supervisor.has_started
        checks = {"started": CheckView(status="pass" if ok else "fail")}
        return _answer(request, ok=ok, checks=checks)

    async def _checks(self, context: Context) -> dict[str, CheckView]:
        full = context.store.reserve.is_spent
        checks = {
            "store.write": await self._check_write(context),
            "store.space": CheckView(
                status="fail" if full else "pass",
                reason="the disk is full; nothing new is taken in" if full else None,
            ),
        }
        for report in context.supervisor.reports():
            good = report.is_good
            words = f"{report.state.value}{f': {report.reason}' if report.reason else ''}"
            checks[f"service.{report.name}"] = CheckView(
                status="pass" if good else "fail", reason=None if good else words
            )
        return checks

    async def _check_write(self, context: Context) -> CheckView:
        """A commit of the last seconds says it, whoever made it; else one is made and timed.

        It is a heartbeat: where nothing changes, SQLite writes nothing.
        """
        store, clock = context.store, context.clock
        now = clock.monotonic()
        if store.failure is not None:
            return CheckView(status="fail", reason=store.failure.message)
        age = now - store.synced_at
        if age <= WRITE_FRESH and not store.is_behind(WRITE_LIMIT):
            return CheckView(status="pass", age_seconds=round(age, 3))
        reason = None
        try:
            with anyio.fail_after(WRITE_LIMIT):
                await store.write(lambda tx: processes.beat(tx, context.identity, now=clock.time()))
        except TimeoutError:
            reason = f"no commit within {WRITE_LIMIT:g} s"
        except StackdError as error:
            reason = error.message
        return CheckView(
            status="fail" if reason else "pass",
            reason=reason,
            age_seconds=0.0,
            latency_ms=round((clock.monotonic() - now) * 1000, 2),
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        context = of(request)
        counts, kept = await context.store.read(
            lambda tx: (verbs.live_counts(tx), blobs.totals(tx))
        )
        for state, count in counts.items():
            context.metrics.queue_depth.labels(state).set(count)
        context.metrics.event_streams.set(context.stream.readers)
        context.metrics.blobs.set(kept.count)
        context.metrics.blob_bytes.set(kept.bytes)
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


def _words_only(view: HealthView) -> HealthView:
    """What others may see: which check passes, but no version, reason or timing."""
    checks = {name: CheckView(status=check.status) for name, check in view.checks.items()}
    return HealthView(status=view.status, checks=checks)


def _answer(request: web.Request, *, ok: bool, checks: dict[str, CheckView]) -> web.Response:
    wants_detail = "verbose" in request.query or "health+json" in request.headers.get("Accept", "")
    headers = {"Cache-Control": "no-store"} | ({} if ok else {"Retry-After": "1"})
    status = 200 if ok else 503
    if not wants_detail:
        return web.Response(status=status, text="ok\n" if ok else "not ready\n", headers=headers)
    view = HealthView(status="pass" if ok else "fail", version=__version__, checks=checks)
    if not is_local(request.remote):
        view = _words_only(view)
    return web.Response(
        status=status,
        body=dumps(view.as_json()),
        content_type="application/health+json",
        headers=headers,
    )
