"""What the operator's settings say of the sandbox."""

from __future__ import annotations

from stackd.sandbox.limits import MIB, Limits
from stackd.sandbox.process import ZygoteOptions
from stackd.sandbox.sandbox import SandboxOptions
from stackd.settings import Settings, user_and_group


def options_of(settings: Settings) -> SandboxOptions:
    """The sandbox as `settings` want it. Its result is as large as an output may be."""
    uid, gid = user_and_group(settings.sandbox_user)
    return SandboxOptions(
        mode=settings.sandbox_executor,
        required_level=settings.sandbox_level,
        at_once=settings.sandbox_concurrency,
        parked=settings.sandbox_parked,
        timeout=settings.sandbox_timeout,
        limits=Limits(
            timeout=settings.sandbox_max_timeout,
            cpu_ms=round(settings.sandbox_max_cpu * 1000),
            cpu_quota_ms=settings.sandbox_cpu_quota or None,
            memory_mb=settings.sandbox_max_memory // MIB,
            scratch_mb=settings.sandbox_max_scratch // MIB,
            result_bytes=settings.max_output_bytes,
        ),
        beat=settings.sandbox_beat,
        silence=settings.sandbox_silence,
        cgroup_root=settings.sandbox_cgroup_root,
        zygote=ZygoteOptions(uid=uid, gid=gid, packages=settings.sandbox_packages),
    )
