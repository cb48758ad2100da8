"""The fields of a credential: what the connector it is for has to say of them, and what fits it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from stackd.core.errors import InputError, TooLargeError
from stackd.core.names import nearest
from stackd.core.text import shown

MAX_FIELDS: Final = 64
LONGEST_VALUE: Final = 64 * 1024  # bytes, as UTF-8
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What a connector says of a field. `title`: as people call it."""

    is_secret: bool = True
    required: bool = False
    title: str = ""


class FieldSchemas(Protocol):
    """What connectors say of the fields of their credentials."""

    def fields_of(self, connector: str) -> Mapping[str, FieldSpec] | None:
        """The fields by name; None: nothing is known of that connector. Also called on the store's threads."""
        ...


class NoSchemas:
    """Knows no connector."""

    def fields_of(self, connector: str) -> None:  # noqa: ARG002  # as the protocol has it
        return None


def is_secret(specs: Mapping[str, FieldSpec] | None, name: str) -> bool:
    """Whether the field is one: what nobody has called public is."""
    spec = None if specs is None else specs.get(name)
    return spec is None or spec.is_secret


def refuse_unfit_names(
    specs: Mapping[str, FieldSpec] | None, names: Collection[str], *, connector: str
) -> None:
    """Return if a credential for `connector` may have fields of these names.

    Raises:
        InputError: one cannot be a name, or the connector has none of it.
    """
    for name in names:
        if not NAME.fullmatch(name):  # it may be a value, so it is not shown
            raise InputError(
                "the name of a field has 1 to 64 letters, digits, dots, dashes and underscores, "
                "and begins with a letter or an underscore",
                code="credential.field_name",
            )
        if specs is not None and name not in specs:
            meant = nearest(name, specs)
            known = f"known: {', '.join(specs)}" if specs else "it has none"
            raise InputError(
                f"a credential of {connector!r} has no field {name!r}",
                code="credential.unknown_field",
                hint=known if meant is None else f"did you mean {meant!r}?",
            )


def refuse_unfit_values(fields: Mapping[str, str]) -> None:
    """Return if these values can be kept.

    Raises:
        InputError: a value is no text, or an empty one.
        TooLargeError: one is over LONGEST_VALUE.
    """
    for name, value in fields.items():
        try:
            size = len(value.encode())
        except UnicodeEncodeError:  # its text holds the value
            size = -1
        if size <= 0:
            problem = "is no text that UTF-8 can hold" if size < 0 else "is empty"
            raise InputError(
                f"the value of field {shown(name)!r} {problem}", code="credential.field_value"
            )
        if size > LONGEST_VALUE:
            raise TooLargeError(
                f"the value of field {shown(name)!r} is over the limit of {LONGEST_VALUE} bytes",
                code="credential.value_too_large",
            )


def refuse_unfit_whole(
    specs: Mapping[str, FieldSpec] | None, set_names: Collection[str], *, connector: str
) -> None:
    """Return if a credential with just these fields can be used.

    Raises:
        InputError: there is none, or there are too many, or one is missing.
    """
    if not set_names:
        raise InputError("a credential has a field at least", code="credential.no_fields")
    if len(set_names) > MAX_FIELDS:
        raise InputError(
            f"a credential has {MAX_FIELDS} fields at most", code="credential.too_many_fields"
        )
    wanted = [name for name, spec in (specs or {}).items() if spec.required]
    missing = [name for name in wanted if name not in set_names]
    if missing:
        raise InputError(
            f"a credential of {connector!r} needs the field {missing[0]!r}",
            code="credential.missing_field",
            hint=f"all that it needs: {', '.join(wanted)}",
        )


def refuse_unfit_fields(
    specs: Mapping[str, FieldSpec] | None,
    fields: Mapping[str, str],
    public: Collection[str],
    *,
    connector: str,
) -> None:
    """Return if a credential for `connector` may be given these; `public`: those taken for no secret.

    Raises:
        InputError: or TooLargeError: it may not.
    """
    refuse_unfit_names(specs, [*fields, *public], connector=connector)
    for name in public:
        if is_secret(specs, name):
            raise InputError(
                f"field {name!r} of {connector!r} is secret"
                if specs is not None
                else f"connector {connector!r} is not known here, so that each of its fields is secret",
                code="credential.field_secret",
                hint=f"give it by `--secret {name}`, which asks for it, `--secret-file {name}=PATH` or `--stdin`; "
                "one that stood on the command line is known to others now",
            )
    refuse_unfit_values(fields)


def refuse_unknown(names: Collection[str], there: Collection[str], credential_id: str) -> None:
    """Return if all `names` are among the fields that are there to be removed."""
    for name in names:
        if name not in there:
            meant = nearest(name, sorted(there))
            raise InputError(
                f"credential {credential_id!r} has no field {shown(name)!r}",
                code="credential.unknown_field",
                hint=f"it has {', '.join(sorted(there))}"
                if meant is None
                else f"did you mean {meant!r}?",
            )
