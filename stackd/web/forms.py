"""Forms as clients send them: fields and files, in the order sent.

For a thread: a body of ten megabytes takes its time.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aiohttp import content_disposition_filename, parse_content_disposition
from aiohttp.helpers import parse_mimetype

from stackd.core.errors import MalformedError, TooLargeError
from stackd.core.text import codec, decoded

MOST_FIELDS = 1000
MOST_HEADERS = 8 * 1024  # bytes before one part's content

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BYTES: Final = {f"{n:02x}".encode(): bytes([n]) for n in range(256)}
_FILE_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form."""

    filename: str
    content_type: str
    content: bytes


Field = tuple[str, str | FormFile]
Bytes = bytes | bytearray


def read_urlencoded(body: Bytes, charset: str | None) -> list[Field]:
    """The fields of an `application/x-www-form-urlencoded` body.

    Raises:
        MalformedError: names the field and what is wrong with it.
        TooLargeError: there are too many.
    """
    name = _charset(charset)
    fields: list[Field] = []
    number = 0
    for part in _split(body.rstrip(), b"&"):
        if not part:
            continue
        number += 1
        _refuse_many(number)
        key, _, value = part.partition(b"=")
        try:
            fields.append((decoded(_unescaped(key), name), decoded(_unescaped(value), name)))
        except UnicodeError:
            raise _malformed(f"field {number} is not {name}") from None
    return fields


def _split(body: Bytes, separator: bytes) -> Iterator[Bytes]:
    start = 0
    while (end := body.find(separator, start)) >= 0:
        yield body[start:end]
        start = end + len(separator)
    yield body[start:]


def _unescaped(part: Bytes) -> Bytes:
    part = part.replace(b"+", b" ")
    if b"%" not in part:
        return part
    return _ESCAPE.sub(lambda escape: _BYTES[bytes(escape[1]).lower()], part)


def read_multipart(body: Bytes, content_type: str) -> list[Field]:
    """The fields and files of a `multipart/form-data` body.

    Args:
        content_type: the whole header; it names the boundary.

    Raises:
        MalformedError: names the part and what is wrong with it.
        TooLargeError: there are too many.
    """
    boundary = parse_mimetype(content_type).parameters.get("boundary", "")
    if not boundary:
        raise _malformed("Content-Type names no boundary")
    fields: list[Field] = []
    charset = "utf-8"
    for number, part in enumerate(_parts(body, b"--" + boundary.encode()), 1):
        _refuse_many(number)
        try:
            name, value = _read_part(part, charset)
        except _PartError as error:
            raise _malformed(f"part {number} {error}") from None
        if name == "_charset_" and number == 1 and isinstance(value, str):
            charset = _charset(value)  # RFC 7578, 4.6: of the parts that name none
        else:
            fields.append((name, value))
    return fields


class _PartError(Exception):
    """What is wrong with a part, to follow its number."""


def _parts(body: Bytes, delimiter: bytes) -> Iterator[Bytes]:
    """Each part between two delimiter lines, its headers first."""
    start = -1
    number = 0
    for end, rest in _delimiters(body, delimiter):
        if start >= 0:
            number += 1
            yield body[start:end]
        if rest[1]:
            return
        start = rest.end()
    if start < 0:
        raise _malformed("there is no boundary in the body")
    raise _malformed(f"it breaks off in part {number + 1}")


def _delimiters(body: Bytes, delimiter: bytes) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Of each line that is a delimiter: where what stands before it ends, and what follows the boundary."""
    at = body.find(delimiter)
    while at >= 0:
        after = at + len(delimiter)
        rest = _REST_OF_LINE.match(body, after)
        if rest is not None and (at == 0 or body[at - 1 : at] == b"\n"):
            end = max(at - 1, 0)  # the line end before it is part of it
            yield (end - 1 if body[max(end - 1, 0) : end] == b"\r" else end), rest
        at = body.find(delimiter, after)


_REST_OF_LINE: Final = re.compile(rb"(--)?[ \t]*(?:\r?\n|\Z)")


def _read_part(part: Bytes, charset: str) -> Field:
    head, content = _head_and_content(part)
    headers = _headers(head)
    kind, parameters = parse_content_disposition(headers.get("content-disposition"))
    name = content_disposition_filename(parameters, "name")
    if kind is None or name is None:
        raise _PartError("has no name in its Content-Disposition")
    mimetype = parse_mimetype(headers.get("content-type", ""))
    if mimetype.type == "multipart":
        raise _PartError(f"({name!r}) holds further parts")
    content = _transferred(content, headers.get("content-transfer-encoding", "binary"), name)
    filename = content_disposition_filename(parameters, "filename")
    if filename:
        plain_type = f"{mimetype.type}/{mimetype.subtype}" if mimetype.type else _FILE_TYPE
        return name, FormFile(filename, plain_type, bytes(content))
    if mimetype.type not in ("", "text"):
        return name, decoded(content, "utf-8", errors="replace")
    named = mimetype.parameters.get("charset", charset)
    try:
        return name, decoded(content, _charset(named))
    except UnicodeError:
        raise _PartError(f"({name!r}) is not {named}") from None


def _head_and_content(part: Bytes) -> tuple[Bytes, Bytes]:
    """A part at its first empty line."""
    found = _EMPTY_LINE.search(part, 0, MOST_HEADERS)
    if found is None:
        raise _PartError(f"has no empty line after its headers, within {MOST_HEADERS} bytes")
    return part[: found.start()], part[found.end() :]


_EMPTY_LINE: Final = re.compile(rb"(?:\A|\n)\r?\n")


def _headers(head: Bytes) -> dict[str, str]:
    headers = {}
    for line in head.splitlines():
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _PartError("has a header line that is none")
        headers[name.decode().lower()] = value.strip().decode("utf-8", "replace")
    return headers


_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _transferred(content: Bytes, encoding: str, name: str) -> Bytes:
    match encoding.lower():
        case "binary" | "8bit" | "7bit":
            return content
        case "quoted-printable":
            return binascii.a2b_qp(content)
        case "base64":
            try:
                return base64.b64decode(content)
            except ValueError:
                raise _PartError(f"({name!r}) is not base64") from None
        case _:
            raise _PartError(f"({name!r}) has an unknown Content-Transfer-Encoding")


def _charset(named: str | None) -> str:
    name = codec(named)
    if name is None:
        raise _malformed(f"there is no charset {named!r}")
    return name


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the form cannot be read: {why}", code="form.malformed")


def _refuse_many(number: int) -> None:
    if number > MOST_FIELDS:
        raise TooLargeError(
            f"the form has more than {MOST_FIELDS:,} fields", code="form.too_many_fields"
        )
