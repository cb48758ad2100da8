"""What one run may take: the operator's limits, which a workflow and then a node can only tighten."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take.

    Attributes:
        timeout: seconds from the job's sending to its answer.
        cpu_ms: of all threads together.
    cpu_quota_ms: of CPU time in 100 ms, by a cgroup; None: as much as there is.
        memory_mb: of memory; by a cgroup where there is one, else of address space.
    threads: besides the first one.
        scratch_mb: of a folder that can be written, the run's own; 0: there is none.
    output_bytes: of what is logged and printed that is kept.
        result_bytes: of the result as JSON.
    """

    timeout: float = 15.0
    cpu_ms: int = 10_000
    cpu_quota_ms: int | None = None
    memory_mb: int = 256
    threads: int = 16
    scratch_mb: int = 0
    output_bytes: int = 64 * 1024
    result_bytes: int = MIB

    def tightened(self, **wanted: Any) -> Limits:
        """These, with each of `wanted` that is given and lower in its place."""
        lower = {}
        for one in fields(self):
            own, given = getattr(self, one.name), wanted.get(one.name)
            if given is not None and (own is None or given < own):
                lower[one.name] = given
        return replace(self, **lower)
