"""What of stored texts is not shown: the values of headers that carry secrets."""

from __future__ import annotations

import re
from typing import Final

SHOWN: Final = b'"(redacted)"'

_NAME: Final = b'"headers"'
_TEXT: Final = rb'"(?:[^"\\]++|\\.)*+"'
_LIST: Final = rb'\[(?:[^\]"]++|' + _TEXT + rb")*+\]"
_HEADERS: Final = re.compile(rb'"headers"\s*+:\s*+\{(?:[^"{}]++|' + _TEXT + rb")*+\}", re.DOTALL)
_MEMBER: Final = re.compile(
    rb"(" + _TEXT + rb")(?:(\s*+:\s*+)(?:" + _TEXT + rb"|" + _LIST + rb"))?+", re.DOTALL
)
_SECRET: Final = re.compile(
    rb"authorization|cookie|token|secret|api-?key|password|session", re.IGNORECASE
)


def without_secrets(text: bytes) -> bytes:
    """`text`, which is JSON, with the values of such headers replaced, in each map named `headers`.

    The text is not read as a value: it may be large, and what else stands in it stays as it is.
    """
    parts: list[bytes] = []
    done = at = 0
    while (at := text.find(_NAME, at)) >= 0:
        headers = None if text[at - 1 : at] == b"\\" else _HEADERS.match(text, at)
        if headers is None:
            at += len(_NAME)
            continue
        parts += [text[done:at], _NAME, _MEMBER.sub(_shown, headers[0][len(_NAME) :])]
        done = at = headers.end()
    return b"".join([*parts, text[done:]]) if parts else text


def _shown(member: re.Match[bytes]) -> bytes:
    if member[2] is None or not _SECRET.search(member[1]):
        return member[0]
    return member[1] + member[2] + SHOWN
