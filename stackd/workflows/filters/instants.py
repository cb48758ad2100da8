"""Filters over instants: a text in RFC 3339, or a number of seconds since 1970; what comes out is one of these.

Days are of 24 hours. Names of days and months are English wherever this runs, and zones are those of the
tzdata package, so that two machines say the same.
"""

from __future__ import annotations

import functools
import io
import pkgutil
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter, Parameter
from stackd.workflows.filters.values import (
    NULL,
    NUMBER,
    TEXT,
    Budget,
    bounded,
    guess,
    over_limit,
)

MAX_FORMAT = 200  # characters
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS = 1_000_000  # in a second
_ZONES_KEPT = 64
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ](?:[01][0-9]|2[0-3]):[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)? ?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS: Final = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def instant(value: Json, where: str) -> datetime:
    """The instant that a text or a number is; a text that names no offset is in UTC."""
    if type(value) is not str:
        try:
            return _EPOCH + _seconds(value)
        except OverflowError:
            raise _out_of_range(where) from None
    if not _INSTANT.fullmatch(value):
        raise ExpressionError(
            f"{where}: the text is no instant; write it as 2030-12-31T23:59:59Z, 2030-12-31 23:59 or 2030-12-31"
        )
    try:
        at = datetime.fromisoformat(value.upper().replace(" +", "+").replace(" -", "-"))
    except ValueError:
        raise ExpressionError(f"{where}: there is no such date, time or offset") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds(number: int | float) -> timedelta:
    """Raises OverflowError for more than a timedelta holds."""
    if type(number) is int:
        return timedelta(seconds=number)
    return timedelta(microseconds=round(number * _MICROSECONDS))


def _out_of_range(where: str) -> ExpressionError:
    return over_limit(f"{where}: the instant is not in the years 1 to 9999; a number means seconds")


def _rfc3339(at: datetime) -> str:
    """As `now()` writes it, so that two of one offset are in order as texts."""
    offset = at.utcoffset() or timedelta()
    if offset % timedelta(minutes=1):  # local mean time, before there were zones
        at = at.astimezone(timezone(timedelta(minutes=offset // timedelta(minutes=1))))
    text = at.isoformat(timespec="milliseconds")
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


@functools.lru_cache(maxsize=_ZONES_KEPT)
def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    data = pkgutil.get_data("tzdata", f"zoneinfo/{name}") or b""
    return ZoneInfo.from_file(io.BytesIO(data), key=name)


@functools.cache
def _zone_names() -> dict[str, None]:
    return dict.fromkeys((pkgutil.get_data("tzdata", "zones") or b"").decode().split())


def _refuse_zone(name: str | None) -> str | None:
    if name is None or name in _zone_names():
        return None
    return f'must be a time zone like "Europe/Berlin"{guess(name, _zone_names())}'


def _date(_: Budget, value: Json, form: Json, zone: Json) -> Json:
    at = instant(value, "date")
    try:
        at = at.astimezone(_zone(zone)) if zone is not None else at
        return _rfc3339(at) if form is None else _formatted(at, form)
    except OverflowError:
        raise _out_of_range("date") from None


def _epoch(_: Budget, value: Json) -> Json:
    microseconds = (instant(value, "epoch") - _EPOCH) // timedelta(microseconds=1)
    whole, rest = divmod(microseconds, _MICROSECONDS)
    return microseconds / _MICROSECONDS if rest else whole


def _add(
    _: Budget, value: Json, seconds: Json, minutes: Json, hours: Json, days: Json, weeks: Json
) -> Json:
    """In the form that `value` has, and at its offset."""
    total = seconds + 60 * (minutes + 60 * (hours + 24 * (days + 7 * weeks)))
    if type(value) is not str:
        return bounded(value + bounded(total, "add"), "add")
    at = instant(value, "add")
    try:
        return _rfc3339(at + _seconds(total))
    except OverflowError:
        raise _out_of_range("add") from None


# --- formats ------------------------------------------------------------------------------------------


def _offset(at: datetime, separator: str) -> str:
    minutes = (at.utcoffset() or timedelta()) // timedelta(minutes=1)
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}{separator}{rest:02}"


DIRECTIVES: Final[dict[str, Callable[[datetime], str]]] = {
    "%Y": lambda at: f"{at.year:04}",
    "%y": lambda at: f"{at.year % 100:02}",
    "%m": lambda at: f"{at.month:02}",
    "%d": lambda at: f"{at.day:02}",
    "%H": lambda at: f"{at.hour:02}",
    "%I": lambda at: f"{at.hour % 12 or 12:02}",
    "%M": lambda at: f"{at.minute:02}",
    "%S": lambda at: f"{at.second:02}",
    "%f": lambda at: f"{at.microsecond:06}",
    "%p": lambda at: "AM" if at.hour < 12 else "PM",
    "%A": lambda at: _DAYS[at.weekday()],
    "%a": lambda at: _DAYS[at.weekday()][:3],
    "%B": lambda at: _MONTHS[at.month - 1],
    "%b": lambda at: _MONTHS[at.month - 1][:3],
    "%j": lambda at: f"{at.timetuple().tm_yday:03}",
    "%u": lambda at: str(at.isoweekday()),
    "%G": lambda at: f"{at.isocalendar().year:04}",
    "%V": lambda at: f"{at.isocalendar().week:02}",
    "%z": lambda at: _offset(at, ""),
    "%:z": lambda at: _offset(at, ":"),
    "%s": lambda at: str((at - _EPOCH) // timedelta(seconds=1)),
    "%%": lambda _: "%",
}
_DIRECTIVE = re.compile("%:?.?", re.DOTALL)


def _formatted(at: datetime, form: str) -> str:
    return _DIRECTIVE.sub(lambda found: DIRECTIVES[found[0]](at), form)


def _refuse_form(form: str | None) -> str | None:
    if form is None:
        return None
    if not form or len(form) > MAX_FORMAT:
        return f"must have 1 to {MAX_FORMAT} characters"
    unknown = [found for found in _DIRECTIVE.findall(form) if found not in DIRECTIVES]
    return (
        f'has an unknown part "{unknown[0]}" (known: {" ".join(DIRECTIVES)})' if unknown else None
    )


_INSTANTS: Final = TEXT | NUMBER

FILTERS: Final[dict[str, Filter]] = {
    "date": Filter(
        _date,
        _INSTANTS,
        (
            Parameter("format", TEXT | NULL, default=None, refuse=_refuse_form),
            Parameter("timezone", TEXT | NULL, default=None, refuse=_refuse_zone),
        ),
    ),
    "epoch": Filter(_epoch, _INSTANTS),
    "add": Filter(
        _add,
        _INSTANTS,
        tuple(
            Parameter(unit, NUMBER, default=0)
            for unit in ("seconds", "minutes", "hours", "days", "weeks")
        ),
        named=True,
    ),
}
