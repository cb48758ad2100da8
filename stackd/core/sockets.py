"""Unix sockets at a path of any length: what is too long for an address is named through its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS_BYTES = 107  # an address holds 108, a zero at their end; unix(7)


@contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """What `bind` and `connect` take for `path`; good inside the block only."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
