"""Probes and metrics: live says the loop turns, ready says each part works, started says it once did."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from stackd import __version__
from stackd.client.models import CheckView, HealthView
from stackd.core.errors import StackdError
from stackd.core.json import dumps
from stackd.queue import verbs
from stackd.supervisor.supervisor import ServiceState
from stackd.web.context import Context, of

WRITE_LIMIT = 1.0  # seconds a commit may take before the store counts as not working
WRITE_FRESH = 5.0  # seconds a good write check stays good: probes cause no storm of syncs


@dataclass(slots=True)
class _WriteCheck:
    at: float = float("-inf")
    seconds: float = 0.0
    reason: str | None = None


class Health:
    """Answers probes from what the services and the store say now."""

    def __init__(self) -> None:
        self._write = _WriteCheck()
        self._has_started = False

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/startupz", self._started)
        app.router.add_get("/metrics", self._metrics)

    async def _live(self, request: web.Request) -> web.Response:
        return _answer(request, ok=True, checks={"loop": CheckView(status="pass")})

    async def _ready(self, request: web.Request) -> web.Response:
        checks = await self._checks(of(request))
        ok = all(check.status == "pass" for check in checks.values())
        self._has_started |= ok
        return _answer(request, ok=ok, checks=checks)

    async def _started(self, request: web.Request) -> web.Response:
        if not self._has_started:
            checks = await self._checks(of(request))
            self._has_started = all(check.status == "pass" for check in checks.values())
        return _answer(
            request,
            ok=self._has_started,
            checks={"started": CheckView(status="pass" if self._has_started else "fail")},
        )

    async def _checks(self, context: Context) -> dict[str, CheckView]:
        checks = {"store.write": await self._check_write(context)}
        for name, (state, reason) in context.supervisor.states().items():
            good = state is ServiceState.READY
            checks[f"service.{name}"] = CheckView(
                status="pass" if good else "fail",
                reason=None if good else f"{state.value}{f': {reason}' if reason else ''}",
            )
        return checks

    async def _check_write(self, context: Context) -> CheckView:
        now = context.clock.monotonic()
        if now - self._write.at > WRITE_FRESH or self._write.reason is not None:
            try:
                await context.store.write(verbs.touch, deadline=WRITE_LIMIT)
                reason = None
            except StackdError as error:
                reason = error.message
            after = context.clock.monotonic()
            if reason is None and after - now > WRITE_LIMIT:
                reason = f"a commit took {after - now:.1f} s"
            self._write = _WriteCheck(after, after - now, reason)
        check = self._write
        return CheckView(
            status="fail" if check.reason else "pass",
            reason=check.reason,
            age_seconds=round(context.clock.monotonic() - check.at, 3),
            latency_ms=round(check.seconds * 1000, 2),
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        context = of(request)
        now = context.clock.time()
        status = await context.store.read(lambda tx: verbs.status(tx, now=now))
        for state, count in status.counts.items():
            context.metrics.queue_depth.labels(state).set(count)
        return web.Response(
            body=context.metrics.render(), content_type="text/plain", charset="utf-8"
        )


def _answer(request: web.Request, *, ok: bool, checks: dict[str, CheckView]) -> web.Response:
    wants_detail = "verbose" in request.query or "health+json" in request.headers.get("Accept", "")
    headers = {"Cache-Control": "no-store"} | ({} if ok else {"Retry-After": "1"})
    status = 200 if ok else 503
    if not wants_detail:
        return web.Response(status=status, text="ok\n" if ok else "not ready\n", headers=headers)
    view = HealthView(status="pass" if ok else "fail", version=__version__, checks=checks)
    return web.Response(
        status=status,
        body=dumps(view.as_json()),
        content_type="application/health+json",
        headers=headers,
    )
