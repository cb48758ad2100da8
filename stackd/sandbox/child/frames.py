"""What the daemon and a run tell each other: JSON texts, each with its length in four bytes before it."""

from __future__ import annotations

import _json
import os
import struct
from typing import Any, Final, NoReturn

CONTROL: Final = 3  # the file descriptor of the zygote's socket
LENGTH: Final = struct.Struct(">I")


class _Rules:
    """How json reads by default, in the names that its C part looks for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


# Made here, for the rest of json, with `re` and `enum`, takes a fresh interpreter longer to load than all else.
_read = _json.make_scanner(_Rules)  # type: ignore[arg-type]  # it has what it takes


def text(value: Any, colon: str = ": ", comma: str = ", ") -> str:
    """`value` as JSON. Raises ValueError for NaN, TypeError for what JSON has no word for."""
    sorts = skips = takes_nan = False
    write = _json.make_encoder(
        {}, _refuse, _json.encode_basestring, None, colon, comma, sorts, skips, takes_nan
    )
    return "".join(write(value, 0))


def packed(message: Any) -> bytes:
    """One frame. Raises as `text`, and ValueError for half a character."""
    content = text(message, ":", ",").encode()
    return LENGTH.pack(len(content)) + content


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"{type(value).__name__} has no JSON")


def read_exactly(number: int, size: int) -> bytes:
    """That many bytes of a file descriptor. Raises EOFError if it ends before."""
    found = bytearray()
    while len(found) < size:
        chunk = os.read(number, min(size - len(found), 1 << 20))
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)


def read(number: int) -> Any:
    """The next message, from the daemon, which is trusted. Raises EOFError."""
    (size,) = LENGTH.unpack(read_exactly(number, LENGTH.size))
    return parsed(read_exactly(number, size))


def parsed(content: bytes) -> Any:
    """The value that `content`, JSON as the daemon writes it, stands for."""
    found, _ = _read(content.decode(), 0)
    return found


def write(number: int, frame: bytes) -> None:
    """All of a frame. Raises OSError."""
    view = memoryview(frame)
    while view:
        view = view[os.write(number, view) :]
