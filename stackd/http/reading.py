"""What an answer says: how its body is read, when to come again, and what went wrong in its own words."""

from __future__ import annotations

import re
import warnings
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Literal

import aiohttp

from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict
from stackd.core.redact import cut
from stackd.core.text import codec
from stackd.http.message import Response

RETRY_AFTER_LONGEST: Final = 24 * 3600.0  # seconds; a far side that asks for more is not believed
LONGEST_DATE: Final = 100  # characters; an HTTP date has 29
LONGEST_DISPOSITION: Final = 2_000  # characters of a header
LONGEST_NAME: Final = (
    200  # characters of a file's name; the last ones are kept, where its ending is
)
LONGEST_WORDS: Final = 200  # characters of a far side's own words that are told

Kind = Literal["json", "text", "blob"]

# The class a retry policy looks at, by status; others from 500 are `server_error`, from 400 `rejected`.
KINDS: Final = {
    429: "rate_limit",
    408: "timeout",
    502: "service_unavailable",
    503: "service_unavailable",
    504: "service_unavailable",
}


def kind_of_status(status: int) -> str:
    return KINDS.get(status, "server_error" if status >= 500 else "rejected")


def is_declined(response: Response, retry_after: float | None) -> bool:
    """Whether the answer says that the action was not done and may be tried again.

    After a redirect the first far side may have done it, whatever the last one says.
    """
    status = response.status
    return response.redirects == 0 and (
        status == 429 or (status == 503 and retry_after is not None)
    )


def retry_after(response: Response, *, now: float) -> float | None:
    """Seconds asked for by Retry-After, as a number or as a date (RFC 9110, 10.2.3)."""
    return waited(response.headers.get("retry-after", ""), now=now)


def waited(value: str, *, now: float) -> float | None:
    """Seconds that `value` asks for, a number of them or a date."""
    value = value.strip()
    if value.isdecimal() and value.isascii():
        return min(float(value[:LONGEST_DATE]), RETRY_AFTER_LONGEST)
    try:
        at = parsedate_to_datetime(value[:LONGEST_DATE])
        wait = at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):  # as it meets dates that are none
        return None
    return min(max(wait, 0.0), RETRY_AFTER_LONGEST)


def words_of(response: Response) -> str | None:
    """The far side's own words of what went wrong, if it sent some that are short and text."""
    content_type = (response.content_type or "").lower()
    if len(response.body) > 64 * 1024 or "html" in content_type:
        return None
    if is_json(content_type):
        words = _message_in(response.body)
        if words is not None:
            return cut(words, LONGEST_WORDS)
    elif not is_text(content_type):
        return None
    words = response.body.decode("utf-8", "replace").strip()
    return cut(words, LONGEST_WORDS) or None


def _message_in(body: bytes) -> str | None:
    try:
        document = loads_strict(body)
    except InputError:
        return None
    return message_in(document)


def message_in(document: Json) -> str | None:
    """Where JSON APIs put their words: a member of the document, or of its `error`."""
    if not isinstance(document, dict):
        return None
    names = ("detail", "message", "error", "title")
    found = next((document[name] for name in names if document.get(name)), None)
    if isinstance(found, dict):
        found = found.get("message")
    return found if isinstance(found, str) else None


def kind_of(content_type: str | None, wanted: str) -> str:
    """How a body is read, as `wanted` or, for `auto`, as its type says: as `json`, `text` or `blob`."""
    if wanted != "auto":
        return wanted
    given = (content_type or "").lower()
    return "json" if is_json(given) else "text" if is_text(given) else "blob"


def is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def is_text(content_type: str) -> bool:
    return (
        not content_type
        or content_type.startswith("text/")
        or content_type.split(";")[0] in {"application/xml", "application/x-www-form-urlencoded"}
        or content_type.endswith("+xml")
    )


def filename_of(response: Response) -> str | None:
    """What an answer calls its content (RFC 6266): a name without a way to it; None if it has none."""
    given = response.headers.get("content-disposition")
    if given is None:
        return None
    with warnings.catch_warnings(action="ignore"):  # of what is malformed: it has no name then
        _, params = aiohttp.parse_content_disposition(given[:LONGEST_DISPOSITION])
        name = aiohttp.content_disposition_filename(params) or ""
    name = "".join(one for one in re.split(r"[/\\]", name)[-1] if one.isprintable()).strip()
    return name[-LONGEST_NAME:] if name.strip(".") else None


def text_of(response: Response) -> str:
    """The body in the charset it names; in UTF-8 if that is none."""
    return response.body.decode(codec(response.charset) or "utf-8", "replace")
