"""Times as people type them: 90s, 30m, 12h, 30d, 8w."""

from __future__ import annotations

import re

from stackd.core.errors import InputError

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def seconds_in(option: str, given: str, *, code: str) -> int:
    """The seconds that `given` with `option` lasts.

    Raises:
        InputError: it is no such time; with `code`.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", given.strip())
    if found is None:
        raise no_time(option, given, code=code)
    return int(found[1]) * _SECONDS[found[2]]


def no_time(option: str, given: str, *, code: str) -> InputError:
    return InputError(
        f"{option} {given!r} is no time that we know",
        code=code,
        hint=f"say a number and s, m, h, d or w: {option} 30d",
    )
