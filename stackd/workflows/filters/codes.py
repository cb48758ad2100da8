"""Filters between texts and the forms in which other places want them: percent, base64, hex, SHA-256."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final
from urllib.parse import quote, quote_plus

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import Filter
from stackd.workflows.filters.values import (
    MAP,
    MAX_RESULT_BYTES,
    SCALAR,
    TEXT,
    Budget,
    text_of,
    too_large,
    utf8,
)

_HASHED_BYTES_PER_STEP = 50
_QUOTED_BYTES_PER_STEP = 4  # urllib goes through them one by one
_STEPS_PER_PAIR = 5
_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"


def _urlencode(budget: Budget, value: Json) -> Json:
    """A text for any place in a URL, `/` encoded too; a map as a query, where a list repeats its key."""
    if type(value) is not dict:
        return quote(_measured(budget, value, MAX_RESULT_BYTES)[0], safe="")
    pairs: list[str] = []
    room = MAX_RESULT_BYTES
    for key, member in value.items():
        elements = member if type(member) is list else [member]
        budget.spend(_STEPS_PER_PAIR * (1 + len(elements)))
        for element in elements:
            name, room = _measured(budget, key, room)
            text, room = _measured(budget, element, room - 2)
            pairs.append(f"{quote_plus(name)}={quote_plus(text)}")
    return "&".join(pairs)


def _measured(budget: Budget, value: Json, room: int) -> tuple[bytes, int]:
    """`value` in UTF-8, and what is left of `room` once it is percent-encoded."""
    raw = utf8(text_of(value, "urlencode", budget), "urlencode")
    budget.spend(1 + len(raw) // _QUOTED_BYTES_PER_STEP)
    room -= len(raw) + 2 * len(raw.translate(None, _UNRESERVED))
    if room < 0:
        raise too_large()
    return raw, room


def _base64(budget: Budget, value: Json) -> Json:
    raw = utf8(value, "base64")
    budget.spend_reading(value)
    if (len(raw) + 2) // 3 * 4 > MAX_RESULT_BYTES:
        raise too_large()
    return base64.b64encode(raw).decode()


def _unbase64(budget: Budget, value: Json) -> Json:
    """Either alphabet, with or without `=` at the end."""
    raw = utf8(value, "unbase64").rstrip(b"=")
    budget.spend_reading(value)
    whole = raw.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(raw) % 4)
    try:
        return binascii.a2b_base64(whole, strict_mode=True).decode()
    except binascii.Error:
        raise ExpressionError("unbase64: the text is not base64") from None
    except UnicodeDecodeError:
        raise ExpressionError("unbase64: what the text holds is not text in UTF-8") from None


def _hex(budget: Budget, value: Json) -> Json:
    raw = utf8(value, "hex")
    budget.spend_reading(value)
    if 2 * len(raw) > MAX_RESULT_BYTES:
        raise too_large()
    return raw.hex()


def _sha256(budget: Budget, value: Json) -> Json:
    raw = utf8(value, "sha256")
    budget.spend(len(raw) // _HASHED_BYTES_PER_STEP)
    return hashlib.sha256(raw).hexdigest()


FILTERS: Final[dict[str, Filter]] = {
    "urlencode": Filter(_urlencode, SCALAR | MAP),
    "base64": Filter(_base64, TEXT),
    "unbase64": Filter(_unbase64, TEXT),
    "hex": Filter(_hex, TEXT),
    "sha256": Filter(_sha256, TEXT),
}
