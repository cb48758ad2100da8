"""What came otherwise than it is recorded, place by place. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from stackd.core.json import Json, dumps
from stackd.core.redact import REDACTED, Redactor
from stackd.core.secret_names import is_secret

LONGEST: Final = 200  # characters of a text that are shown
BEFORE: Final = 40  # of them, what is the same before the first that is not

HEADER: Final = "header "
_NOTHING: Final = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place. `recorded`, `came`: JSON, or words; None: nothing."""

    place: str
    recorded: str | None
    came: str | None

    def within(self, place: str) -> Difference:
        return Difference(f"{place}{self.place}", self.recorded, self.came)

    def without(self, secrets: Redactor) -> Difference:
        """As it is shown: cut to where it differs, and no secret in it.

        Where one of the two holds a secret, the other is taken for another one.
        """
        recorded, came = (one and secrets.text(one) for one in (self.recorded, self.came))
        hides = (recorded != self.recorded, came != self.came)
        _, is_header, name = self.place.rpartition(HEADER)
        if not any(hides) and is_header and is_secret(name):
            recorded, came = recorded and REDACTED, came and REDACTED
        elif hides == (True, False):
            came = came and REDACTED
        elif hides == (False, True):
            recorded = recorded and REDACTED
        if recorded == came:
            came = f"{came}, another"
        return Difference(secrets.text(self.place), *_cut(recorded, came))


def differences(came: Json, recorded: Json) -> Iterator[Difference]:
    """The places where two values differ, in the order of the recorded one. `true` is no 1."""
    if isinstance(came, dict) and isinstance(recorded, dict):
        for name in [*recorded, *(name for name in came if name not in recorded)]:
            inner = came.get(name, _NOTHING), recorded.get(name, _NOTHING)
            yield from _within(f".{name}", *inner)
    elif isinstance(came, list) and isinstance(recorded, list):
        both = zip_longest(came, recorded, fillvalue=_NOTHING)
        for index, inner in enumerate(both):
            yield from _within(f"[{index}]", *inner)
    elif came != recorded or isinstance(came, bool) != isinstance(recorded, bool):
        yield Difference("", as_text(recorded), as_text(came))


def _within(place: str, came: object, recorded: object) -> Iterator[Difference]:
    if came is _NOTHING or recorded is _NOTHING:
        yield Difference(
            place, *(None if one is _NOTHING else as_text(one) for one in (recorded, came))
        )
    else:
        for one in differences(came, recorded):
            yield one.within(place)


def as_text(value: Json) -> str:
    return dumps(value).decode()


def _cut(recorded: str | None, came: str | None) -> tuple[str | None, str | None]:
    """Both from shortly before where they part."""
    texts = recorded or "", came or ""
    both = enumerate(zip(*texts, strict=False))
    shortest, longest = sorted(map(len, texts))
    parts = next((at for at, (one, other) in both if one != other), shortest)
    start = max(parts - BEFORE, 0) if longest > LONGEST else 0
    return _piece(recorded, start), _piece(came, start)


def _piece(text: str | None, start: int) -> str | None:
    if text is None:
        return None
    end = start + LONGEST
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"
