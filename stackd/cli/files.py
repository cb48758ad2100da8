"""The documents that commands are given: files, folders of them, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from stackd.core.errors import InputError, TooLargeError
from stackd.core.text import plain

LONGEST_FILE = 64 * 1024 * 1024  # bytes; what STACKD_MAX_DOCUMENT_BYTES may be at most
ENDINGS = frozenset({".yaml", ".yml", ".json"})


def documents(given: Iterable[Path]) -> list[Path]:
    """The files in `given`; of a folder all below it that end as documents do, hidden ones not.

    Raises:
        InputError: a folder holds none.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in ENDINGS and not _is_hidden(file, path) and file.is_file()
        )
        if not below:
            raise InputError(
                f"{name_of(path)} holds no document: no file ending in {', '.join(sorted(ENDINGS))}",
                code="file.none",
            )
        found += below
    return found


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def name_of(file: Path) -> str:
    """The file as messages name it."""
    return "standard input" if str(file) == "-" else plain(str(file))


def read(file: Path) -> bytes:
    """What is in `file`; `-` is standard input.

    Raises:
        InputError: it cannot be read.
        TooLargeError: it is over LONGEST_FILE.
    """
    try:
        if str(file) != "-":
            with file.open("rb") as opened:
                content = opened.read(LONGEST_FILE + 1)
        elif sys.stdin is not None:
            content = sys.stdin.buffer.read(LONGEST_FILE + 1)
        else:
            raise InputError("standard input is closed", code="file.unreadable")
    except OSError as error:
        raise InputError(f"{name_of(file)}: {error.strerror}", code="file.unreadable") from None
    if len(content) > LONGEST_FILE:
        raise TooLargeError(
            f"{name_of(file)} is over {LONGEST_FILE:,} bytes", code="document.too_large"
        )
    return content
