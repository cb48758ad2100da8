"""What happens to the sandbox, and what becomes of the code that runs in it."""

from __future__ import annotations

from dataclasses import dataclass

from stackd.core.events import Event


@dataclass(frozen=True, slots=True)
class SandboxTried(Event):
    """How well code is isolated was found out, with each new zygote. `isolation_level` None: not at all; `problem`: why none is run."""

    mode: str
    isolation_level: int | None
    required: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class CodeRan(Event):
    """A run of code ended, or could not begin (`unavailable`). `was_parked`: a process waited for it; `broken`: the types of the rules that it broke."""

    mode: str
    verdict: str
    seconds: float
    cpu_seconds: float
    was_parked: bool
    broken: tuple[str, ...]
