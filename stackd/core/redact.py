r"""Finds secrets in what is about to get out, in every form that they take on the way, and puts `[REDACTED]` there.

A secret is looked for as it is, percent-encoded, as a JSON text holds it (also one inside another), as HTML does, in
hexadecimal digits, and in Base64, wherever in the encoded text it stands, as in the pair of a Basic header, and in lines
of 60 to 76 characters. Pure, and linear in the text: every fourth
place of it is looked up in one table of all secrets, and a form that seems to begin somewhere is searched for once
from there on.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import product
from typing import Final
from urllib.parse import quote

from stackd.core.json import Json

REDACTED: Final = "[REDACTED]"
SHORTEST: Final = 8  # characters; what is shorter stands in texts by chance
LONGEST: Final = 64 * 1024  # characters of a secret
MAX_SECRETS: Final = 10_000  # each takes some 5 KiB; how many there are costs no time

_STEP: Final = 4  # places from one look to the next
_WINDOW: Final = SHORTEST - _STEP + 1  # characters; each form has one that begins at such a place

# What encoders leave as it is, beside letters, digits and `-._~`: most, those of paths, of forms, and two of browsers.
_KEPT: Final = ("", "/", "*", "!'()*", ";,/?:@&=+$!'()*#")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]*+")  # no encoder changes it
_ESCAPED: Final = re.compile(r"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}")
# What follows the word Basic, also inside a URL.
_BASIC: Final = re.compile(
    r"\bbasic(?: |\+|%20)+((?:[A-Za-z0-9+/_-]|\\/|%2B|%2F)++(?:=|%3D){0,2})", re.IGNORECASE
)


# What knows the secrets that are in use here, by this task and those it begins: for the log.
LIVE: Final[ContextVar[Redactor | None]] = ContextVar("live", default=None)

# Base64 in lines, as MIME (76) and PEM (64) have it, also inside a JSON text; it begins where none stands before.
_BREAK: Final = r"(?:\r?\n|(?:\\r)?\\n)"
_LINES: Final = re.compile(
    rf"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{{60,76}}+{_BREAK})++[A-Za-z0-9+/]*+={{0,2}}"
)
_BREAKS: Final = re.compile(_BREAK)


def cut(text: str, length: int) -> str:
    """The beginning of `text`, without the secrets that are in use here: one that is cut through is not found later."""
    live = LIVE.get()
    return (text if live is None else live.text(text))[:length]


@dataclass(frozen=True, slots=True)
class _Form:
    """A text that a secret may read as. `before`, `after`: characters beside it that hold a part of it."""

    text: str
    before: int = 0
    after: int = 0
    is_base64: bool = False


class Redactor:
    """Knows some secrets, and shows none of them. Those of less than eight characters are not looked for.

    Raises:
        ValueError: there are more than MAX_SECRETS, or one is over LONGEST.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        wanted = {one for one in secrets if len(one) >= SHORTEST and one not in REDACTED}
        if len(wanted) > MAX_SECRETS:
            raise ValueError(f"more than {MAX_SECRETS:,} secrets")
        if any(len(one) > LONGEST for one in wanted):
            raise ValueError(f"a secret is over {LONGEST:,} characters")
        forms = {form.text: form for secret in sorted(wanted) for form in _forms(secret)}
        self._windows: dict[str, list[tuple[_Form, int]]] = {}
        for form in forms.values():
            middle = (len(form.text) - SHORTEST) // 2  # beginnings are alike: `sk_live_…`
            for at in reversed(range(middle, middle + _STEP)):  # what begins first comes first
                window = form.text[at : at + _WINDOW]
                self._windows.setdefault(window, []).append((form, at))

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, text: str) -> str:
        """`text` without the secrets."""
        parts, done = [], 0
        for start, end in self._spans(text):
            parts += [text[done:start], REDACTED]
            done = end
        return "".join([*parts, text[done:]])

    def json(self, value: Json) -> Json:
        """`value` without the secrets, in keys too, and in whole numbers; what it was given stays as it is."""
        if not self._windows:
            return value
        root: list[Json] = [value]
        open_values: list[list[Json] | dict[str, Json]] = [root]
        while open_values:
            holder = open_values.pop()
            places = holder.items() if isinstance(holder, dict) else enumerate(holder)
            for place, inner in list(places):
                holder[place] = copy = self._copy(inner)  # type: ignore[call-overload, index]  # a key of its own
                if isinstance(copy, dict | list):
                    open_values.append(copy)
        return root[0]

    def finds(self, text: str | bytes) -> bool:
        """Whether a secret is in `text`; bytes are read as UTF-8."""
        looked_at = text.decode(errors="surrogateescape") if isinstance(text, bytes) else text
        return next(self._found(looked_at), None) is not None

    def _copy(self, value: Json) -> Json:
        """`value`, of which what is in it is still as it was."""
        match value:
            case str():
                return self.text(value)
            case bool():
                return value
            case int() if value.bit_length() < 64 * SHORTEST:
                return REDACTED if self.finds(str(value)) else value
            case float():
                return REDACTED if self.finds(json.dumps(value)) else value
            case list():
                return list(value)
            case dict():
                return self._copy_of_map(value)
            case _:
                return value

    def _copy_of_map(self, value: dict[str, Json]) -> dict[str, Json]:
        copy: dict[str, Json] = {}
        for key, inner in value.items():
            name = shown = self.text(key)
            number = len(copy)
            while name in copy:  # two keys do not become one
                number += 1
                name = f"{shown} {number}"
            copy[name] = inner
        return copy

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where secrets stand, in order, none in another."""
        spans: list[tuple[int, int]] = []
        for start, end in sorted(self._found(text)):
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each form in `text`; the credentials of a Basic header, and lines of Base64, as a whole."""
        yield from self._found_on_a_line(text)
        if self._windows and ("\n" in text or "\\n" in text):
            for lines in _LINES.finditer(text):
                if next(self._found_on_a_line(_BREAKS.sub("", lines[0])), None) is not None:
                    yield lines.span()

    def _found_on_a_line(self, text: str) -> Iterator[tuple[int, int]]:
        windows, nearest = self._windows, dict[str, int]()  # where each form stands next
        pairs: list[tuple[int, int]] | None = None
        for at in range(0, len(text) - _WINDOW + 1 if windows else 0, _STEP):
            for form, offset in windows.get(text[at : at + _WINDOW], ()):
                start = at - offset
                if start < 0:
                    continue
                if nearest.get(form.text, -1) < start:
                    nearest[form.text] = _find(text, form, start)
                if nearest[form.text] != start:
                    continue
                nearest[form.text] = _find(text, form, start + len(form.text))
                if form.is_base64:
                    pairs = [m.span(1) for m in _BASIC.finditer(text)] if pairs is None else pairs
                    yield _widened(form, start, pairs)
                else:
                    yield start, start + len(form.text)


def _find(text: str, form: _Form, start: int) -> int:
    """Where `form` stands in `text` from `start` on; its end, if nowhere."""
    found = text.find(form.text, start)
    return found if found >= 0 else len(text)


def _widened(form: _Form, start: int, pairs: list[tuple[int, int]]) -> tuple[int, int]:
    """From where to where to hide what stands at `start`: all of the pair that it is in, if it is in one."""
    end = start + len(form.text)
    place = bisect_right(pairs, (start, end)) - 1
    for first, last in pairs[max(place, 0) : place + 2]:
        if first <= start and end <= last:
            return first, last
    return max(start - form.before, 0), end + form.after


def _forms(secret: str) -> Iterator[_Form]:
    yield _Form(secret)
    if not _PLAIN.fullmatch(secret):
        others = {*_percent_encoded(secret), *_in_json(secret), *_in_html(secret)}
        yield from map(_Form, others - {secret})
    digits = secret.encode(errors="surrogatepass").hex()
    yield from map(_Form, {digits, digits.upper()})
    yield from _in_base64(secret)


def _percent_encoded(text: str) -> Iterator[str]:
    for kept, tilde, blank in product(_KEPT, ("~", "%7E"), ("%20", "+")):
        encoded = quote(text, safe=kept, errors="surrogatepass").replace("~", tilde)
        yield from _both_cases(encoded.replace("%20", blank))
    yield from _both_cases(quote(quote(text, safe="", errors="surrogatepass"), safe=""))


def _in_json(text: str) -> Iterator[str]:
    for is_ascii in (True, False):
        plain = json.dumps(text, ensure_ascii=is_ascii)[1:-1]
        for_pages = re.sub("[<>&']", lambda found: f"\\u{ord(found[0]):04x}", plain)
        for one in {plain, for_pages}:
            for escaped in (one, one.replace("/", "\\/")):
                for cased in _both_cases(escaped):
                    yield cased
                    yield cased.replace("\\", "\\\\").replace('"', '\\"')  # inside another


def _in_html(text: str) -> Iterator[str]:
    quoted = html.escape(text)
    yield html.escape(text, quote=False)
    for single in ("&#x27;", "&#39;", "&apos;", "'"):
        for double in ("&quot;", "&#34;"):
            yield quoted.replace("&#x27;", single).replace("&quot;", double)


def _in_base64(text: str) -> Iterator[_Form]:
    """What of it is the same whatever stands beside the secret, for each way in which three bytes may fall."""
    raw = text.encode(errors="surrogatepass")
    for ahead in range(3):
        whole = b64encode(bytes(ahead) + raw).decode()
        first, end = -(-8 * ahead // 6), 8 * (ahead + len(raw)) // 6
        usual = whole[first:end]
        texts = {usual}
        if not _PLAIN.fullmatch(usual):
            texts |= {usual.translate({43: "-", 47: "_"}), usual.replace("/", "\\/")}
            texts |= set(_both_cases(quote(usual, safe="")))
        before, after = int(ahead > 0), int(8 * (ahead + len(raw)) % 6 > 0)
        for one in texts:
            yield _Form(one, before, after, is_base64=True)


def _both_cases(text: str) -> Iterator[str]:
    r"""`text` with its `\u00e9` and `%C3` in capitals, and in small letters."""
    yield _ESCAPED.sub(lambda found: found[0].upper().replace("U", "u"), text)
    yield _ESCAPED.sub(lambda found: found[0].lower(), text)
