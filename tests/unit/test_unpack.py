"""Compressed bodies, cut into pieces in every way a network may."""

from __future__ import annotations

import gzip
import zlib

import pytest

from stackd.core.unpack import STEP, Unpacker

TEXT = b"a body that is said twice, a body that is said twice"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def unpacked(encoding: str, packed: bytes, *, cut: int = 1) -> tuple[bytes, bool]:
    """(what `packed` unpacks to when it comes `cut` bytes at a time, whether it may end there)."""
    unpacker = Unpacker(encoding)
    pieces = [
        piece
        for start in range(0, len(packed), cut)
        for piece in unpacker.feed(packed[start : start + cut])
    ]
    return b"".join(pieces), unpacker.is_whole


@pytest.mark.parametrize("cut", [1, 2, 7, 10_000])
@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip", gzip.compress(TEXT[:10]) + gzip.compress(b"") + gzip.compress(TEXT[10:])),
        ("gzip", gzip.compress(TEXT) + b"\0\0\0\0"),
    ],
    ids=["gzip", "x-gzip", "deflate", "raw deflate", "several members", "padding behind"],
)
def test_a_body_is_unpacked_however_it_is_cut(encoding, packed, cut):
    assert unpacked(encoding, packed, cut=cut) == (TEXT, True)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
    ],
    ids=["gzip", "second member", "deflate", "raw deflate"],
)
def test_a_body_without_its_last_byte_is_not_whole(encoding, packed):
    assert unpacked(encoding, packed[:-1])[1] is False


def test_a_body_that_is_not_in_its_encoding_is_an_error():
    with pytest.raises(zlib.error):
        unpacked("gzip", TEXT)


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, STEP + 257, 2 * STEP + 5])
def test_what_waits_inside_the_decoder_behind_a_full_piece_is_not_lost(size):
    body = bytes(size)

    assert unpacked("deflate", raw_deflate(body), cut=10_000) == (body, True)


def test_no_piece_is_larger_than_a_step():
    packed = gzip.compress(bytes(10 * STEP))

    pieces = list(Unpacker("gzip").feed(packed))

    assert max(map(len, pieces)) == STEP
    assert sum(map(len, pieces)) == 10 * STEP
