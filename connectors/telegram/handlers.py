"""Telegram: texts of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from stackd.core.errors import NodeError
from stackd.integrations.manager import HandlerContext

LONGEST: Final = 4096  # characters of one message, as Telegram counts them: UTF-16 units
MOST: Final = 20  # messages of one text


async def send_message(params: dict[str, Any], ctx: HandlerContext) -> Any:
    """Sends a text, in pieces where it is too long for one message; the last one is the answer.

    Only the first piece answers another message, and only the last has a keyboard. What is marked up is not
    split: a piece could end inside a mark. If a piece is refused, those before it are sent all the same.
    """
    pieces = list(_pieces(params["text"]))
    if len(pieces) > 1 and params.get("parse_mode"):
        raise _too_long(f"a marked-up text has at most {LONGEST} characters")
    if len(pieces) > MOST:
        raise _too_long(f"a text has at most {MOST} messages of {LONGEST} characters")
    shared = {
        name: value
        for name, value in params.items()
        if name not in ("text", "reply_parameters", "reply_markup")
    }
    message: Any = {}
    ids = []
    for number, piece in enumerate(pieces):
        body = {**shared, "text": piece}
        if number == 0 and "reply_parameters" in params:
            body["reply_parameters"] = params["reply_parameters"]
        if number == len(pieces) - 1 and "reply_markup" in params:
            body["reply_markup"] = params["reply_markup"]
        answer = await ctx.http.post("/sendMessage", json=body)
        message = answer.body["result"]
        ids.append(message["message_id"])
    return {**message, "message_ids": ids}


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that fit, each ending with a line, or with a word where a line is too long."""
    while _units(text) > LONGEST:
        end = _fitting(text)
        cut = max(text.rfind("\n", 1, end), 0) or max(text.rfind(" ", 1, end), 0) or end
        piece = text[:cut].rstrip()
        if piece:
            yield piece
        text = text[cut:].lstrip()
    if text:
        yield text


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _fitting(text: str) -> int:
    """How many characters from the beginning fit into one message."""
    end = min(len(text), LONGEST)
    while _units(text[:end]) > LONGEST:
        end -= max((_units(text[:end]) - LONGEST) // 2, 1)
    return end


def _too_long(words: str) -> NodeError:
    return NodeError(words, kind="invalid", code="telegram.too_long")
