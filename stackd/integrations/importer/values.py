"""What is read out of a document whatever stands there: texts, names, and values cut to a bound."""

from __future__ import annotations

import json
import re
import unicodedata
from html import unescape
from typing import Any, Final

from stackd.core.json import Json

LONGEST_TEXT: Final = 4_000  # characters of a text that is a value
LONGEST_ABOUT: Final = 1_000  # characters of a description
LONGEST_TITLE: Final = 120
LONGEST_NAME: Final = 64

NOTHING: Final = object()  # no value: null is one

# Of HTML; what else stands in angles is a name to be filled in, as `<image>`.
_TAG: Final = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|br|center|code|dd|del|details|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|kbd|li|mark|ol"
    r"|p|pre|s|section|small|span|strike|strong|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul)"
    r"(?:\s[^<>]{0,500})?/?>|<!--.{0,500}?-->",
    re.IGNORECASE | re.DOTALL,
)
_LINK: Final = re.compile(r"!?\[([^\[\]]{0,300})\]\([^()\s]{0,500}[^()]{0,100}\)")
_ROW: Final = re.compile(r"^\s*(?:\|.*|[-=:| ]{3,})$", re.MULTILINE)
_HEADING: Final = re.compile(r"^\s{0,3}(?:#{1,6}\s+|>\s?)", re.MULTILINE)
_EMPHASIS: Final = re.compile(r"(\*\*|__)(?=\S)(.{1,300}?)(?<=\S)\1|`([^`]{1,300})`")
_SENTENCE: Final = re.compile(r".+?[.!?](?=\s+[A-Z\"'(\[]|\s*$)", re.DOTALL)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def mapping(value: Any) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Json]:
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """A text, or what may stand for one; empty if it is none."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return ""


def texts(value: Any) -> list[str]:
    """The texts in a list, each once."""
    return list(dict.fromkeys(one for one in map(text, listing(value)) if one))


def plain(value: Any) -> str:
    """A text without HTML, Markdown links, emphasis, headings and tables."""
    found = text(value)[: LONGEST_TEXT * 4]
    if not found:
        return ""
    found = _ROW.sub(" ", _TAG.sub(" ", found))
    found = _HEADING.sub("", _LINK.sub(r"\1", found))
    found = _EMPHASIS.sub(lambda one: one[2] or one[3], found)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\r]+", " ", unescape(found))).strip()


def about(value: Any) -> str:
    """A description as people read it, cut where it is long."""
    return cut(plain(value), LONGEST_ABOUT)


def first_sentence(value: Any) -> str:
    paragraph = plain(value).partition("\n\n")[0]
    line = " ".join(paragraph.split())
    found = _SENTENCE.match(line)
    return cut(found[0] if found else line, 300)


def cut(given: str, longest: int) -> str:
    return given if len(given) <= longest else given[: longest - 1].rstrip() + "…"


def snake(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` as operations are named: lower case, digits and `_`; empty if nothing is left of it."""
    plain_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "_", _CAMEL.sub("_", plain_name)).lower()
    return words.strip("_")[:longest].rstrip("_")


def member(name: str) -> str:
    """`name` as it can stand in an expression after a dot; empty if nothing is left of it."""
    plain_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    found = re.sub(r"[^A-Za-z0-9_]+", "_", plain_name).strip("_")[:LONGEST_NAME]
    return f"_{found}" if found[:1].isdigit() else found


def unused(name: str, taken: Any, longest: int = LONGEST_NAME) -> str:
    """`name`, or `name` with the first number from 2 that makes it new to `taken`."""
    found, number = name[:longest], 1
    while found in taken:
        number += 1
        end = f"_{number}"
        found = name[: longest - len(end)].rstrip("_") + end
    return found


def bounded(value: Json, *, nodes: int = 1_000, depth: int = 20) -> Any:
    """A copy of `value`; NOTHING if it is larger than that."""
    left = nodes

    def copy(one: Json, level: int) -> Json:
        nonlocal left
        left -= 1
        if left < 0 or level > depth or (isinstance(one, str) and len(one) > LONGEST_TEXT):
            raise OverflowError
        if isinstance(one, dict):
            return {key: copy(inner, level + 1) for key, inner in one.items()}
        if isinstance(one, list):
            return [copy(inner, level + 1) for inner in one]
        return one

    try:
        return copy(value, 0)
    except OverflowError:
        return NOTHING


def trimmed(value: Json, *, nodes: int = 400, depth: int = 12, items: int = 3) -> Json:
    """A copy of `value` that is no larger than that: what is beyond is left out."""
    left = nodes

    def copy(one: Json, level: int) -> Json:
        nonlocal left
        left -= 1
        if isinstance(one, dict):
            found: dict[str, Json] = {}
            for key, inner in one.items():
                if left <= 0 or level >= depth:
                    break
                found[key] = copy(inner, level + 1)
            return found
        if isinstance(one, list):
            return [copy(inner, level + 1) for inner in one[:items] if left > 0 and level < depth]
        return cut(one, LONGEST_TEXT) if isinstance(one, str) else one

    return copy(value, 0)


def number(value: Any) -> float | None:
    """A number, also one written as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", value.strip()):
        return float(value) if "." in value else int(value)
    return None


def same(one: Json, other: Json) -> bool:
    """Whether two bounded values are one in JSON, where true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
