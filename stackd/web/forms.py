"""Forms as clients send them: fields and files, in the order sent.

For a thread: a body of ten megabytes takes its time. It is gone through in steps, between which others have
their turn; only copies of what it holds are made in one.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp.helpers import parse_mimetype

from stackd.core.errors import MalformedError, TooLargeError
from stackd.core.text import codec, decoded

MOST_FIELDS = 1000
MOST_HEADERS = 8 * 1024  # bytes before one part's content
MOST_PARAMETERS = 16  # of one Content-Disposition; two have a meaning

STEP = 64 * 1024  # bytes; going through them takes a millisecond at most

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
    for number, part in enumerate(_split(body), 1):
        _refuse_many(number)
        key, _, value = part.partition(b"=")
        try:
            fields.append((decoded(_unescaped(key), name), decoded(_unescaped(value), name)))
        except UnicodeError:
            raise _malformed(f"field {number} is not {name}") from None
    return fields


def _split(body: Bytes) -> Iterator[Bytes]:
    """What stands between ampersands, wherever that is something; but for blanks at the end."""
    at, last = 0, _end_without_blanks(body)
    while at < last:
        separators = _AMPERSANDS.match(body, at, last)
        if separators is not None:
            at = separators.end()
            continue
        end = body.find(b"&", at, last)
        end = last if end < 0 else end
        yield body[at:end]
        at = end


_AMPERSANDS: Final = re.compile(rb"&{1,65536}+")


def _end_without_blanks(body: Bytes) -> int:
    end = len(body)
    while end:
        start = max(end - STEP, 0)
        end = start + len(body[start:end].rstrip())
        if end > start:
            break
    return end


def _unescaped(part: Bytes) -> Bytes:
    if b"%" not in part and b"+" not in part:
        return part
    unescaped = bytearray()
    at = 0
    while at < len(part):
        end = at + STEP
        escape = part.rfind(b"%", end - 2, end)  # it may go on behind the step
        if escape >= 0:
            end = escape
        unescaped += _ESCAPE.sub(_byte, part[at:end].replace(b"+", b" "))
        at = end
    return unescaped


_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def _byte(escape: re.Match[bytes]) -> bytes:
    return binascii.unhexlify(escape[1])


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
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("Content-Type names a boundary that is none")
    fields: list[Field] = []
    charset = "utf-8"
    for number, (start, end) in enumerate(_parts(body, b"--" + boundary.encode()), 1):
        _refuse_many(number)
        try:
            name, value = _read_part(body, start, end, charset)
        except _PartError as error:
            raise _malformed(f"part {number} {error}") from None
        if name == "_charset_" and number == 1 and isinstance(value, str):
            charset = _charset(value)  # RFC 7578, 4.6: of the parts that name none
        else:
            fields.append((name, value))
    return fields


_BOUNDARY: Final = re.compile(r"[ -~]{1,70}")  # RFC 2046, 5.1.1


class _PartError(Exception):
    """What is wrong with a part, to follow its number."""


def _parts(body: Bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Where each part between two delimiter lines begins, with its headers, and ends."""
    start = -1
    number = 0
    for end, rest in _delimiters(body, delimiter):
        if start >= 0:
            number += 1
            yield start, end
        if rest[1]:
            return
        start = rest.end()
    if start < 0:
        raise _malformed("there is no boundary in the body")
    raise _malformed(f"it breaks off in part {number + 1}")


def _delimiters(body: Bytes, delimiter: bytes) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Of each line that is a delimiter: where what stands before it ends, and what follows the boundary."""
    if body.startswith(delimiter):
        rest = _REST_OF_LINE.match(body, len(delimiter))
        if rest is not None:
            yield 0, rest
    line = b"\n" + delimiter
    at = _found(body, line, 0)
    while at >= 0:
        after = at + len(line)
        rest = _REST_OF_LINE.match(body, after)
        if rest is not None:  # the line end before it is part of it
            yield (at - 1 if body[at - 1 : at] == b"\r" else at), rest
        at = _found(body, line, after)


# As much padding as nobody sends, or looking for its end would hold the interpreter.
_REST_OF_LINE: Final = re.compile(rb"(--)?+[ \t]{0,1000}+(?:\r?\n|\Z)")


def _found(body: Bytes, sought: bytes, start: int) -> int:
    """As `body.find`, in steps."""
    for at in range(start, len(body), STEP):
        found = body.find(sought, at, at + STEP + len(sought) - 1)
        if found >= 0:
            return found
    return -1


def _read_part(body: Bytes, start: int, end: int, charset: str) -> Field:
    headers, start = _headers_and_content(body, start, end)
    name, filename = _names(headers.get("content-disposition", ""))
    mimetype = parse_mimetype(headers.get("content-type", ""))
    if mimetype.type == "multipart":
        raise _PartError(f"({name!r}) holds further parts")
    encoding = headers.get("content-transfer-encoding", "binary")
    content = _transferred(bytes(memoryview(body)[start:end]), encoding, name)
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


def _headers_and_content(body: Bytes, start: int, end: int) -> tuple[dict[str, str], int]:
    """The headers of a part, and where its content begins: behind its first empty line."""
    head = body[start : min(end, start + MOST_HEADERS)]
    empty_line = _EMPTY_LINE.search(head)
    if empty_line is None:
        raise _PartError(f"has no empty line after its headers, within {MOST_HEADERS} bytes")
    return _headers(head[: empty_line.start()]), start + empty_line.end()


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


def _names(disposition: str) -> tuple[str, str | None]:
    """The name in a part's Content-Disposition, and the filename if it has one (RFC 7578, 4.2)."""
    parameters = _parameters(disposition)
    name = parameters.get("name*", parameters.get("name"))
    if name is None:
        raise _PartError("has no name in its Content-Disposition")
    return name, parameters.get("filename*", parameters.get("filename"))


def _parameters(disposition: str) -> dict[str, str]:
    """Its parameters, names in small letters. Of `filename*` and its like, what they stand for."""
    kind = _KIND.match(disposition)
    if kind is None:
        raise _PartError("has no name in its Content-Disposition")
    found: dict[str, str] = {}
    at = kind.end()
    while at < len(disposition):
        parameter = _PARAMETER.match(disposition, at)
        if parameter is None or len(found) == MOST_PARAMETERS or parameter[1].lower() in found:
            raise _PartError("has a Content-Disposition that is none")
        key, escaped, quoted, token = parameter.groups()
        if key.endswith("*"):
            value = _extended(token or "")
        elif escaped is not None:
            value = _LINE_OR_QUOTE.sub(_unquoted, _BACKSLASH.sub(r"\1", escaped))
        else:
            value = token if quoted is None else _LINE_OR_QUOTE.sub(_unquoted, quoted)
        found[key.lower()] = value
        at = parameter.end()
    return found


_KIND: Final = re.compile(r"form-data[ \t]*+(?:;[ \t;]*+|\Z)", re.ASCII | re.IGNORECASE)
# Libraries write a quote in a value behind a backslash; browsers write none, and a backslash as it is.
_PARAMETER: Final = re.compile(
    r"""([!#$&'*+.^_`|~0-9a-z-]++)[ \t]*+=[ \t]*+"""
    r"""(?:"((?:[^"\\]|\\.)*+)"(?=[ \t]*+(?:;|\Z))|"([^"]*+)"(?=[ \t]*+(?:;|\Z))"""
    r"""|([!#$%&'*+.^_`|~0-9a-z-]++))[ \t]*+(?:;[ \t;]*+|\Z)""",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_BACKSLASH: Final = re.compile(r'\\(["\\])')
_LINE_OR_QUOTE: Final = re.compile("%(0A|0D|22)", re.IGNORECASE)  # nothing else is written so


def _unquoted(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))


def _extended(value: str) -> str:
    """What `UTF-8''%e2%82%ac` and its like stand for (RFC 8187)."""
    charset, _, rest = value.partition("'")
    _, quote, text = rest.partition("'")
    if quote and charset.lower() in ("utf-8", "iso-8859-1"):
        try:
            return unquote_to_bytes(text).decode(charset)
        except UnicodeError:
            pass
    raise _PartError("has a Content-Disposition that is none")


def _transferred(content: Bytes, encoding: str, name: str) -> Bytes:
    match encoding.lower():
        case "binary" | "8bit" | "7bit":
            return content
        case "quoted-printable":
            return _from_quoted_printable(content, name)
        case "base64":
            try:
                return _from_base64(content)
            except ValueError:
                raise _PartError(f"({name!r}) is not base64") from None
        case _:
            raise _PartError(f"({name!r}) has an unknown Content-Transfer-Encoding")


def _from_quoted_printable(content: Bytes, name: str) -> Bytes:
    plain = bytearray()
    at = 0
    while at < len(content):
        end = len(content)
        if end - at > STEP:
            end = content.rfind(b"\n", at, at + STEP) + 1  # no escape goes beyond its line
        if end == 0:
            raise _PartError(f"({name!r}) has a line of more than {STEP} bytes")
        plain += binascii.a2b_qp(content[at:end])
        at = end
    return plain


def _from_base64(content: Bytes) -> Bytes:
    """What it stands for; bytes that are none of base64 do not count (RFC 2045, 6.8). Raises ValueError."""
    plain = bytearray()
    rest = b""
    for at in range(0, len(content), STEP):
        rest += content[at : at + STEP].translate(None, _NO_BASE64)
        whole = max(len(rest) - 1, 0) // 4 * 4  # the last four may be the end
        if b"=" in rest[:whole]:
            raise ValueError
        plain += binascii.a2b_base64(rest[:whole])
        rest = rest[whole:]
    return plain + binascii.a2b_base64(rest, strict_mode=True)


_NO_BASE64: Final = re.sub(rb"[A-Za-z0-9+/=]", b"", bytes(range(256)))


def _charset(named: str | None) -> str:
    name = codec(named)
    if name is None:
        raise _malformed(f"there is no charset {(named or '')[:50]!r}")
    return name


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the form cannot be read: {why}", code="form.malformed")


def _refuse_many(number: int) -> None:
    if number > MOST_FIELDS:
        raise TooLargeError(
            f"the form has more than {MOST_FIELDS:,} fields", code="form.too_many_fields"
        )
