"""What the daemon and a run tell each other: JSON texts, each with its length in four bytes before it."""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Final

CONTROL: Final = 3  # the file descriptor of the zygote's socket
LENGTH: Final = struct.Struct(">I")


def packed(message: Any) -> bytes:
    """One frame. Raises ValueError for NaN, half a character, and what JSON has no word for."""
    text = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    content = text.encode()
    return LENGTH.pack(len(content)) + content


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
    return json.loads(read_exactly(number, size))


def write(number: int, frame: bytes) -> None:
    """All of a frame. Raises OSError."""
    view = memoryview(frame)
    while view:
        view = view[os.write(number, view) :]
