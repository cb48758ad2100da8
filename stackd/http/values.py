"""What JSON values become in a request: query, form, parts, and the files that they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stackd.core.json import Json, dumps
from stackd.http.message import FilePart, MultipartBody, Source


def scalar(value: Json) -> str:
    """`value` as the text that stands for it; lists and maps as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return dumps(value).decode()
    return str(value)


def listed(item: Json) -> list[Json]:
    """What a name stands for: a list repeats it, null is left out."""
    return [one for one in (item if isinstance(item, list) else [item]) if one is not None]


def query_of(value: Json) -> dict[str, str | list[str]] | None:
    """A map of scalars and lists of them as the query of a request."""
    if not value:
        return None
    return {
        key: [scalar(one) for one in listed(item)] if isinstance(item, list) else scalar(item)
        for key, item in value.items()
        if item is not None
    }


def pairs_of(form: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    return tuple((name, scalar(value)) for name, item in form.items() for value in listed(item))


def blob_in(value: Json) -> str | None:
    """The id of the blob that `value` stands for: `{"$blob": id}`, and whatever else is said of it."""
    found = value.get("$blob") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def blobs_in(values: Iterable[Json]) -> set[str]:
    """The blobs that `values` and parts among them name."""
    found = set()
    for value in values:
        for part in listed(value):
            inner = part.get("content") if isinstance(part, dict) else None
            found |= {blob_in(part), blob_in(inner)}
    return {one for one in found if one is not None}


def multipart_of(parts: Mapping[str, Json], files: Mapping[str, Source]) -> MultipartBody:
    """Plain members are fields; `{content, filename?, contentType?}` is a file, and so is a blob."""
    return MultipartBody(
        tuple(_part(name, value, files) for name, item in parts.items() for value in listed(item))
    )


def _part(name: str, value: Json, files: Mapping[str, Source]) -> FilePart:
    content = value
    if blob_in(value) is None:
        if not (isinstance(value, dict) and "content" in value):
            return FilePart(name=name, content=scalar(value).encode())
        content = value["content"]
    return FilePart(
        name=name,
        content=content_of(content, files),
        filename=str(value.get("filename") or name),
        content_type=str(value.get("contentType") or "application/octet-stream"),
    )


def content_of(value: Json, files: Mapping[str, Source]) -> bytes | Source:
    """What `value` holds: a blob's content, a text, or JSON."""
    if (blob_id := blob_in(value)) is not None:
        return files[blob_id]
    return value.encode() if isinstance(value, str) else dumps(value)
