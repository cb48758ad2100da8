"""How long to wait before the next try: pure arithmetic, the random number comes in as an argument."""

from __future__ import annotations

JITTER = 0.2  # of the delay; spreads retries that failed together


def backoff(attempt: int, *, base: float, cap: float, roll: float) -> float:
    """Seconds before try `attempt + 1`: 2^(attempt-1)·base plus up to 20 % jitter, at most `cap`.

    Args:
        attempt: failures so far, from 1.
        base: seconds.
        cap: seconds; also bounds the jittered value.
        roll: uniform in [0, 1).
    """
    exponent = min(max(attempt, 1) - 1, 62)  # beyond this the cap rules anyway; avoids overflow
    plain = min(base * 2.0**exponent, cap)
    return min(plain * (1.0 + JITTER * roll), cap)
