"""Recorded cases of connectors: parameters in, what was asked and answered, and what must come of it.

`connectors/<id>/cases/<operation>.json` holds those of one operation; connectors/README.md shows the form, and
`replay` runs them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from yarl import URL

from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict
from stackd.integrations.catalogue import first_problem

FOLDER: Final = "cases"
CONNECTION: Final = "_connection.json"  # the credential of cases that name none
LONGEST_FIELD: Final = 64 * 1024  # characters of a field of a credential, as of one that is stored
LONGEST: Final = 4 * 1024 * 1024  # bytes of one file
BASE64: Final = "$base64"  # the only member of a body that is bytes

M = TypeVar("M", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, populate_by_name=True, extra="forbid"
    )


class CaseConnection(_Part):
    """A made-up credential. `auth`: which of the connector's ways in it is for."""

    fields: dict[str, Annotated[str, Field(max_length=LONGEST_FIELD)]] = {}
    auth: str | None = None


class CasePart(_Part):
    """A part of a multipart body."""

    name: str
    content: str
    filename: str | None = None
    content_type: str | None = None


class CaseRequest(_Part):
    """What must be asked. What is not named of `query` and body must not be there; other headers may.

    Attributes:
        url: without its query, encoded as it is sent; `path`: the same without scheme and host.
        body: as JSON; `form`, `multipart` and `text` take its place.
    """

    method: str
    url: str | None = None
    path: str | None = None
    query: dict[str, str | list[str]] = {}
    headers: dict[str, str] = {}
    body: Json = None
    form: dict[str, str | list[str]] | None = None
    multipart: tuple[CasePart, ...] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("must name one of url and path")
        _check_address(self.url, self.path)
        given = ("body", "form", "multipart", "text")
        if sum(name in self.model_fields_set for name in given) > 1:
            raise ValueError(f"must name one of {', '.join(given)} at most")
        return self


def _check_address(url: str | None, path: str | None) -> None:
    if path is not None and not path.startswith("/"):
        raise ValueError("path must begin with /")
    if url is not None:
        try:
            URL(url).origin()
        except ValueError:
            raise ValueError("url must be whole, as https://api.example.com/items") from None


class CaseResponse(_Part):
    """What is answered. `body`: JSON; a text where `content-type` says that it is another thing; or bytes in Base64."""

    status: Annotated[int, Field(ge=100, le=599)] = 200
    headers: dict[str, str] = {}
    body: Json = None

    @property
    def raw(self) -> bytes | None:
        """The body that is given in Base64."""
        if isinstance(self.body, dict) and set(self.body) == {BASE64}:
            return base64.b64decode(str(self.body[BASE64]), validate=True)
        return None

    @model_validator(mode="after")
    def _is_bytes(self) -> Self:
        try:
            _ = self.raw
        except (binascii.Error, ValueError):
            raise ValueError(f"body/{BASE64} must be Base64") from None
        return self


class Exchange(_Part):
    request: CaseRequest
    response: CaseResponse


class CaseError(_Part):
    """How it must fail. `contains`: a piece of what it says."""

    code: str
    contains: str = ""


class Case(_Part):
    """One run of an operation.

    Attributes:
        runtime: `http`: by generic HTTP, though there may be a handler; None: as a workflow would.
        connection: None: that of the folder.
        blobs: what blobs among the parameters hold, by their ids.
    """

    name: Annotated[str, Field(min_length=1)]
    runtime: Literal["python", "http"] | None = None
    params: dict[str, Json] = {}
    connection: CaseConnection | None = None
    blobs: dict[str, str] = {}
    exchanges: tuple[Exchange, ...] = ()
    output: Json = None
    error: CaseError | None = None

    @model_validator(mode="after")
    def _ends_one_way(self) -> Self:
        if ("output" in self.model_fields_set) == (self.error is not None):
            raise ValueError("must name one of output and error")
        return self


class _Cases(BaseModel):
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is recorded of one connector. `by_operation`: by the names of the files."""

    connection: CaseConnection
    by_operation: Mapping[str, tuple[Case, ...]]


def read_cases(folder: Path) -> Recorded:
    """The cases of the connector in `folder`; none if it has no folder of cases.

    Raises:
        InputError: a file cannot be used; names it and the place.
    """
    place = folder / FOLDER
    own = place / CONNECTION
    connection = _read(own, CaseConnection, _json_in(own)) if own.is_file() else CaseConnection()
    found = {
        path.stem: _read(path, _Cases, {"cases": _json_in(path)}).cases
        for path in sorted(place.glob("*.json"))
        if path.name != CONNECTION
    }
    return Recorded(connection, found)


def _json_in(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", code="cases.invalid"
        ) from None
    if len(text) > LONGEST:
        raise InputError(f"{path}: over {LONGEST:,} bytes", code="cases.invalid")
    try:
        return loads_strict(text)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", code="cases.invalid") from None


def _read(path: Path, model: type[M], value: Json) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, '')}", code="cases.invalid") from None
