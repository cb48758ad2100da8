"""Bodies that come compressed, unpacked step by step so that a small bomb stays small. Pure: bytes in and out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final

STEP = 64 * 1024  # bytes unpacked at a time

ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})


class Unpacker:
    """Unpacks one body of `encoding`, one of ENCODINGS. Holds at most STEP bytes of it unpacked."""

    def __init__(self, encoding: str) -> None:
        self._is_gzip = encoding != "deflate"
        self._decoder: Any = None
        self._members = 0  # that have ended: a gzip body may be several, one behind the other

    @property
    def is_whole(self) -> bool:
        """Whether the body may end here."""
        return self._decoder is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces that `data` unpacks to, made as they are taken.

        Raises:
            zlib.error: it is not in the encoding it claims.
        """
        piece = b""
        while data or len(piece) == STEP:  # a full piece: more may wait inside the decoder
            if self._decoder is None:
                if self._is_over(data):
                    return
                self._decoder = zlib.decompressobj(self._window(data))
            piece = self._decoder.decompress(data, STEP)
            data = self._decoder.unconsumed_tail
            if self._decoder.eof:
                data, self._decoder = self._decoder.unused_data, None
                self._members += 1
            yield piece

    def _is_over(self, rest: bytes) -> bool:
        """Whether `rest` is no further member but padding, which is ignored."""
        return not rest or (self._members > 0 and not (self._is_gzip and rest[0] == 0x1F))

    def _window(self, first: bytes) -> int:
        """What zlib needs: for gzip; for its own frame; for the bare deflate some servers send instead."""
        if self._is_gzip:
            return 16 + zlib.MAX_WBITS
        return zlib.MAX_WBITS if first[0] & 0x0F == 8 else -zlib.MAX_WBITS
