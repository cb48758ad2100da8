"""Large JSON, read piece by piece: no step keeps the interpreter to itself for more than some milliseconds.

The text is cut about every `PIECE` bytes, at a comma outside strings, wherever in the nest that is. Each piece
is read by itself, inside brackets that stand for the containers open around it; what it then adds to them is
given to them. That every piece reads well inside its brackets is the proof of the whole: a wrong guess about
what is open would make a piece that does not read.

For a thread: between pieces, and while it looks at brackets, others have their turn.
"""

from __future__ import annotations

import gc
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import orjson

from stackd.core.errors import InputError
from stackd.core.json import (
    MAX_DEPTH,
    Json,
    duplicate_key,
    has_long_number,
    loads,
    loads_strict,
    malformed,
    not_utf8,
    parse_strict,
    too_deep,
)

PIECE = 64 * 1024  # bytes; reading one takes one to three milliseconds

_MARKS: Final = b'"\\[]{}:'
_PLAIN: Final = bytes(sorted(set(range(256)) - set(_MARKS)))
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# In steps, or a string of ten million characters would be one.
_STRING_PART: Final = re.compile(rb'(?:[^"\\]{1,1000}+|\\.){0,1000}+', re.DOTALL)
_ESCAPES: Final = re.compile(rb"\\++.?", re.DOTALL)
_QUOTE_OR_COMMA: Final = re.compile(rb'[",]')
_BLANKS: Final = re.compile(rb"[ \t\n\r]{1,65536}+")
_SCALAR: Final = re.compile(rb"[^,\]} \t\n\r]++")
# What a list or map may hold, but for those that hold something themselves.
_LEAVES: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"|\[\]|\{\})*+', re.DOTALL)
_OPENED: Final = re.compile(rb"[\[{]++")
_CLOSED: Final = re.compile(rb"[\]}]++")
_OPENING: Final = b"[{"
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_BACKSLASH: Final = ord("\\")
_QUOTE: Final = ord('"')

Bytes = bytes | bytearray
_Container = list[Json] | dict[str, Json]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A large value. `spine`: the containers in it that may be large themselves."""

    value: Json
    spine: list[_Container]

    def take_apart(self) -> None:
        """Free it in small steps: left to itself, Python frees it all in one."""
        for container in self.spine:
            while container:
                if isinstance(container, list):
                    container.pop()
                else:
                    container.popitem()
        _forget()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece, and the brackets it is read in: `before + content + after` is JSON if the piece is well.

    Attributes:
        whole: the text it was cut from, where `content` begins at `start`.
        colons: how many stand outside strings, all in all.
    """

    whole: Bytes
    start: int
    before: bytes
    content: Bytes
    after: bytes
    colons: int

    @property
    def text(self) -> bytes:
        return b"".join((self.before, self.content, self.after))


def check(text: Bytes, *, piece: int = PIECE) -> None:
    """Read JSON from outside and forget it. Afterwards `text` is known to be JSON, by our rules.

    Raises:
        InputError: as `loads_strict`.
    """
    if len(text) <= piece:
        loads_strict(text)
        return
    with _collector_off():
        _Reader(text, _read_strictly, piece, keeps=False).read()


def read_strictly(text: Bytes, *, piece: int = PIECE) -> Json:
    """The JSON value in `text` from outside; for what is no larger than a node's output.

    Raises:
        InputError: as `loads_strict`.
    """
    with _collector_off():
        return _Reader(text, _read_strictly, piece, keeps=True).read()


def load(text: Bytes, *, piece: int = PIECE) -> Loaded:
    """Read JSON that was checked before, or that stackd wrote itself."""
    reader = _Reader(text, _read_trusting, piece, keeps=True)
    with _collector_off():
        loaded = Loaded(reader.read(), reader.spine)
        _hide()
        return loaded


# The garbage collector goes through everything that lives, with the interpreter to itself: a few million lists
# take it 200 ms, again and again. A JSON value holds no cycles, so it never needs to look at one. It is told
# so by freezing all there is once a large value has been read, until the last of them is gone.
_hidden = 0  # large values that live; changed only by the one thread of `aside`


def _hide() -> None:
    global _hidden  # as the collector is
    gc.freeze()
    _hidden += 1


def _forget() -> None:
    global _hidden  # as the collector is
    _hidden -= 1
    if _hidden == 0:
        gc.unfreeze()  # with what was hidden beside them: the next full collection goes through it


@contextmanager
def _collector_off() -> Iterator[None]:
    """While a text is read, or the collector would follow every piece."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def members(text: Bytes) -> dict[str, bytes]:
    """The members of an object that was checked before, each as its own text."""
    found: dict[str, bytes] = {}
    at = past_blanks(text, past_blanks(text, 0) + 1)
    while text[at : at + 1] == b'"':
        end = _string_end(text, at + 1)
        key = loads(bytes(text[at:end]))
        start = past_blanks(text, past_blanks(text, end) + 1)
        end = _value_end(text, start)
        found[key] = bytes(text[start:end])
        at = past_blanks(text, past_blanks(text, end) + 1)
    return found


def past_blanks(text: Bytes, at: int) -> int:
    """Where what comes next begins, from `at` on; found in steps."""
    while (blanks := _BLANKS.match(text, at)) is not None:
        at = blanks.end()
    return at


def _value_end(text: Bytes, at: int) -> int:
    """Where the value ends that begins at `at`."""
    if text[at] == _QUOTE:
        return _string_end(text, at + 1)
    if text[at] in _OPENING:
        return container_end(text, at)
    return _SCALAR.match(text, at).end()  # type: ignore[union-attr]  # there is a value


def container_end(text: Bytes, at: int, *, piece: int = PIECE) -> int:
    """Where the list or map ends that begins at `at`, found in steps; -1 if it does not end."""
    depth = 0
    while 0 <= at < len(text):
        start = at
        if text[at] == _QUOTE:  # of a string that does not end in the piece
            at = _string_end(text, at + 1)
        elif text[at] in _OPENING:
            at = _end(_OPENED, text, at, at + piece)
            depth += at - start
        elif text[at] in b"]}":
            at = _end(_CLOSED, text, at, min(at + piece, at + depth))
            depth -= at - start
            if depth == 0:
                return at
        else:
            at = _end(_LEAVES, text, at, at + piece)
    return -1


def _end(pattern: re.Pattern[bytes], text: Bytes, start: int, most: int) -> int:
    return pattern.match(text, start, most).end()  # type: ignore[union-attr]  # it matches there


class _Reader:
    """Goes through `text` once. `keeps`: the value is wanted; else only what later pieces are checked with.

    Around each piece the containers that are open there are written anew. They get one member in front, for
    all they hold already, and where the text was cut one more behind: so each comma we cut at still stands
    between two members, or the piece does not read.
    """

    def __init__(
        self, text: Bytes, read: Callable[[_Piece], Json], piece: int, *, keeps: bool
    ) -> None:
        self.spine: list[_Container] = []
        self._text = text
        self._read = read
        self._piece_bytes = piece
        self._keeps = keeps
        self._open: list[_Container] = []  # at the last cut, outer ones first
        # Keys of the members in front and behind; no text from outside can hold them.
        self._held, self._next = secrets.token_hex(16), secrets.token_hex(16)

    def read(self) -> Json:
        value: Json = None
        for start, end in _cuts(self._text, self._piece_bytes):
            is_last = end == len(self._text)
            content = self._text[start:end]
            marks = _marks(content)
            closes, opens = _nesting(marks, outside=len(self._open))
            piece = self._piece(start, content, marks, closes, opens, is_last=is_last)
            found = self._read(piece)
            if self._keeps and start == 0:
                value = found
            self._take(found, closes, len(opens), is_last=is_last)
        return value

    def _piece(
        self, start: int, content: Bytes, marks: bytes, closes: int, opens: bytes, *, is_last: bool
    ) -> _Piece:
        around = b"".join(b"[" if isinstance(one, list) else b"{" for one in self._open)
        before = around.replace(b"{", b'{"%b":' % self._held.encode())
        if start:
            before += b"0,"
        after = b""
        if not is_last:
            left = around[: len(around) - closes] + opens
            after = b',"%b":0' % self._next.encode() if left[-1:] == b"{" else b",0"
            after += left.translate(_CLOSING)[::-1]
        colons = marks.count(b":") + before.count(b":") + after.count(b":")
        return _Piece(self._text, start, before, content, after, colons)

    def _take(self, found: Json, closes: int, opens: int, *, is_last: bool) -> None:
        """Give the open containers what the piece adds to them, and note which are open now."""
        added = self._added(found)
        left = self._open[: len(self._open) - closes]
        inside = added[len(left) - 1] if left else None
        opened: list[_Container] = []
        for _ in range(opens):
            inside = found if inside is None else _last_of(inside)
            opened.append(inside)
        if not is_last and inside is not None:
            inside.pop() if isinstance(inside, list) else inside.popitem()
        for container, more in zip(self._open, added, strict=True):
            self._give(container, more)
        self._open = left + (opened if self._keeps else [_keys_of(one) for one in opened])
        if self._keeps:
            self.spine += opened

    def _added(self, found: Json) -> list[_Container]:
        """What the piece holds of each container open at its start."""
        added = []
        for container in self._open:
            added.append(found)
            found = found[0] if isinstance(container, list) else found[self._held]
        return added

    def _give(self, container: _Container, more: Json) -> None:
        if isinstance(container, list):
            if self._keeps:
                container += more[1:]
            return
        del more[self._held]
        repeated = container.keys() & more.keys()
        if repeated:
            raise duplicate_key(repeated.pop())
        container |= more if self._keeps else dict.fromkeys(more)


def _last_of(container: _Container) -> Json:
    return container[-1] if isinstance(container, list) else next(reversed(container.values()))


def _keys_of(container: _Container) -> _Container:
    """As much of it as is needed to see that no key comes twice."""
    return [] if isinstance(container, list) else dict.fromkeys(container)


def _cuts(text: Bytes, piece: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each piece, in order. What lies between two is one comma."""
    start = 0
    while len(text) - start > piece:
        end = _comma(text, start, start + piece)
        if end < 0:
            break
        yield start, end
        start = end + 1
    yield start, len(text)


def _comma(text: Bytes, start: int, at: int) -> int:
    """The first comma outside strings from `at` on, or -1; at `start` no string is open."""
    if text[at - 1] == _BACKSLASH:  # part no escape
        at = _ESCAPES.match(text, at - 1).end()  # type: ignore[union-attr]  # it matches there
    window = text[start:at].replace(b"\\\\", b"").replace(b'\\"', b"")
    if window.count(b'"') % 2:
        at = _string_end(text, at)
    while at >= 0:
        found = _QUOTE_OR_COMMA.search(text, at)
        if found is None:
            return -1
        if found[0] == b",":
            return found.start()
        at = _string_end(text, found.end())
    return -1


def _string_end(text: Bytes, at: int) -> int:
    """Where the string ends in which `at` is; -1 if it does not."""
    while at < len(text):
        at = _STRING_PART.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too
        if text[at : at + 1] == b'"':
            return at + 1
        if text[at : at + 2] in (b"", b"\\"):
            return -1
    return -1


def _marks(content: Bytes) -> bytes:
    """The brackets and colons in `content` that stand outside strings."""
    marks = content.translate(None, _PLAIN).replace(b'""', b"")
    if b'"' not in marks:  # as is usual: no string holds any
        return bytes(marks)
    if len(content) <= 2 * PIECE:
        return bytes(_STRING.sub(b"", content).translate(None, _PLAIN))
    outside, at = [], 0
    while (quote := content.find(b'"', at)) >= 0:
        outside.append(content[at:quote])
        at = _string_end(content, quote + 1)
        if at < 0:
            return b"".join(outside)
    return b"".join([*outside, content[at:]]).translate(None, _PLAIN)


def _nesting(marks: bytes, *, outside: int) -> tuple[int, bytes]:
    """How many of `outside` open containers are closed among `marks`, and which brackets stay open."""
    brackets = marks.translate(None, b":")
    # Most containers hold no others. Without those the walk is short, and at most two levels off: `{[]}`.
    closes, opens, deepest = _walk(brackets.replace(b"[]", b"").replace(b"{}", b""), outside)
    if deepest >= MAX_DEPTH - 1:
        closes, opens, deepest = _walk(brackets, outside)
        if deepest > MAX_DEPTH:
            raise too_deep()
    return closes, opens


def _walk(brackets: bytes, outside: int) -> tuple[int, bytes, int]:
    """As `_nesting`, and how deep it goes; no further than one level too deep."""
    closes, opens = 0, bytearray()
    deepest = outside
    for bracket in brackets:
        if bracket in _OPENING:
            opens.append(bracket)
            depth = outside - closes + len(opens)
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    break
        elif opens:
            opens.pop()
        elif closes < outside:
            closes += 1
    return closes, bytes(opens), deepest


# -- reading one piece


def _read_trusting(piece: _Piece) -> Json:
    return loads(piece.text)


def _read_strictly(piece: _Piece) -> Json:
    """The value of a piece from outside. orjson reads it several times faster, but does not see all we refuse."""
    text = piece.text
    try:
        if not has_long_number(text):
            value = orjson.loads(text)
            if _keys_in(value) == piece.colons:
                return value
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # what is refused gets its words below; what is only too deep for it does not
    try:
        return parse_strict(text)
    except UnicodeDecodeError as error:
        raise not_utf8(piece.start + error.start - len(piece.before)) from None
    except json.JSONDecodeError as error:
        raise _malformed(piece, error) from None


def _keys_in(value: Json) -> int:
    """How many keys the maps in `value` hold; -1: not known, as a key or a text holds what looks like the end of one."""
    text = orjson.dumps(value)
    return -1 if b'\\":' in text else text.count(b'":')


def _malformed(piece: _Piece, error: json.JSONDecodeError) -> InputError:
    """`error`, with its place in the whole text."""
    inside = len(error.doc[: error.pos].encode()) - len(piece.before)
    at = piece.start + min(max(inside, 0), len(piece.content))
    before = piece.whole[:at]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
    return malformed(line, column, error.msg)
