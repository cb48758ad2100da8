"""`stackd credentials …`. Secrets come from a hidden prompt, a file or standard input, and are never printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stackd.cli import completion
from stackd.cli.columns import Column
from stackd.cli.context import (
    JsonFlag,
    YesFlag,
    ask_hidden,
    confirm,
    daemon,
    print_json,
    print_table,
    say,
    short_error,
)
from stackd.cli.files import read
from stackd.client.models import CredentialList, CredentialTest, CredentialView
from stackd.core.errors import InputError
from stackd.core.json import Json, dumps, loads_strict
from stackd.core.text import plain, segment

# Words that belong to no option may be a secret that somebody took for its value: click would repeat them.
WORDS: Final = {"allow_extra_args": True}
BY_OTHER_WAYS: Final = "`--secret NAME` asks for one; else use --secret-file NAME=PATH or --stdin"

app = typer.Typer(no_args_is_help=True)

IdArgument = Annotated[
    str, typer.Argument(help="The credential's id.", autocompletion=completion.credential_id)
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option("--field", metavar="NAME=VALUE", help="A field that is no secret."),
]
SecretOption = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME", help="A field to ask for, without showing it."),
]
FileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--secret-file",
        metavar="NAME=PATH",
        help="A field that stands in a file; a line end at its end does not count.",
    ),
]
StdinFlag = Annotated[
    bool,
    typer.Option(
        "--stdin", help="Read fields from standard input: a JSON object, or NAME=VALUE lines."
    ),
]


@app.command(context_settings=WORDS)
def add(
    context: typer.Context,
    credential_id: Annotated[str, typer.Argument(help="What workflows refer to it by.")],
    connector: Annotated[str, typer.Option(help="The app that it is for.")],
    auth: Annotated[str | None, typer.Option(help="Which kind, if the app knows several.")] = None,
    field: FieldOption = None,
    secret: SecretOption = None,
    secret_file: FileOption = None,
    stdin: StdinFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a credential. Secrets are asked for, or read from files or standard input."""
    fields, public = _fields(context, field, secret, secret_file, stdin=stdin)
    body = {
        "id": credential_id,
        "connector": connector,
        "auth": auth,
        "fields": fields,
        "public": public,
    }
    view = daemon().post("/api/credentials", body, CredentialView)
    _tell(view, f"{view['id']} is kept, with its secrets sealed", as_json=as_json)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All credentials, without their secrets."""
    items = daemon().all("/api/credentials", CredentialList)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("id"),
            Column("connector"),
            Column("auth", goes=2),
            Column("fields", "cut", goes=4),
            Column("version", goes=3),
            Column("updated", goes=1),
            Column("state"),
        ),
        (
            (
                one["id"],
                one["connector"],
                one["auth"] or "",
                " ".join(one["fields"]),
                str(one["version"]),
                one["updatedAt"],
                _state(one),
            )
            for one in items
        ),
        empty="no credentials yet; make one with `stackd credentials add ID --connector APP --secret NAME`",
    )


@app.command()
def show(credential_id: IdArgument, as_json: JsonFlag = False) -> None:
    """One credential, without its secrets."""
    view = daemon().get(f"/api/credentials/{segment(credential_id)}", CredentialView)
    if as_json:
        print_json(view)
        return
    kind = f" ({view['auth']})" if view["auth"] else ""
    say(f"{view['id']}  {view['connector']}{kind}  version {view['version']}  {view['updatedAt']}")
    if view["reconnect"]:
        say(f"  has to be connected again: {view['reconnect']}")
        say(f"  give it new tokens: `stackd credentials set {view['id']} --secret refreshToken …`")
    if view["test"]:
        say(f"  {_told(view['test'])}, tested {view['test']['testedAt']}")
    for name, field in view["fields"].items():
        say(f"  {name}: {'(secret, set)' if field['secret'] else field['value']}")


@app.command("set", context_settings=WORDS)
def set_(
    context: typer.Context,
    credential_id: IdArgument,
    auth: Annotated[
        str | None, typer.Option(help="Another kind; an empty one: that which its app has.")
    ] = None,
    field: FieldOption = None,
    secret: SecretOption = None,
    secret_file: FileOption = None,
    stdin: StdinFlag = False,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="NAME", help="A field to remove.")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Only if it still is this one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change fields of a credential; those that are not named stay."""
    fields, public = _fields(context, field, secret, secret_file, stdin=stdin, unset=unset)
    body: dict[str, Json] = {"fields": fields, "public": public, "version": version}
    if auth is not None:
        body["auth"] = auth or None
    if not fields and auth is None:
        raise InputError("nothing to change was named", code="input.empty", hint=BY_OTHER_WAYS)
    view = daemon().patch(f"/api/credentials/{segment(credential_id)}", body, CredentialView)
    _tell(view, f"{view['id']} is changed, version {view['version']}", as_json=as_json)


@app.command("test")
def try_(credential_id: IdArgument, as_json: JsonFlag = False) -> None:
    """Show a credential to its app; exit 1 if that does not take it."""
    show_to_app(credential_id, as_json=as_json)


def show_to_app(
    credential_id: str, *, as_json: bool, operation: str | None = None, writes: bool = False
) -> None:
    """Show a credential to its app, by the request for that or by an action; exit 1 if that does not take it."""
    result = daemon().post(
        f"/api/credentials/{segment(credential_id)}/test", None, CredentialTest,
        operation=operation, writes="true" if writes else None,
    )  # fmt: skip
    if as_json:
        print_json(result)
    else:
        say(f"{credential_id} {_told(result)}")
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def remove(credential_id: IdArgument, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove a credential with its secrets."""
    if not yes:
        daemon().get(f"/api/credentials/{segment(credential_id)}", CredentialView)
    confirm(f"remove {credential_id} with its secrets for good?", yes=yes)
    daemon().delete(f"/api/credentials/{segment(credential_id)}")
    if as_json:
        print_json({"id": credential_id, "removed": True})
    else:
        say(f"{credential_id} is removed")


@app.command()
def reset(yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Where the master key is lost: drop what it has sealed, keep the rest. With stackd stopped."""
    from stackd.cli import lost_key  # it loads the store

    lost_key.reset(yes=yes, as_json=as_json)


def _state(view: dict[str, Any]) -> str:
    if view["reconnect"]:
        return "reconnect"
    return "" if view["test"] is None else "works" if view["test"]["ok"] else "fails"


def _told(result: dict[str, Any]) -> str:
    if not result["ok"]:
        if result["error"]["code"] == "credential.untestable":
            return f"was not tested: {result['error']['message']}"
        return f"does not work: {short_error(result['error'])}"
    return f"works: {result['label']}" if result["label"] else "works"


def _tell(view: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        say(words)


# -- fields; no message shows a value, or what may be one


def _fields(
    context: typer.Context,
    public: list[str] | None,
    asked: list[str] | None,
    files: list[str] | None,
    *,
    stdin: bool,
    unset: list[str] | None = None,
) -> tuple[dict[str, Json], list[str]]:
    """All fields that were given, in whichever way, and the names of those given as no secret.

    Raises:
        InputError: one cannot be read, or is given twice.
    """
    if context.args:
        raise InputError(
            "there is a word too many, which belongs to no option; a secret may be none",
            code="input.extra",
            hint=BY_OTHER_WAYS,
        )
    shown = dict(_pair("--field", given) for given in public or [])
    given = [
        *shown.items(),
        *(_read(*_pair("--secret-file", one)) for one in files or []),
        *(_stdin() if stdin else ()),
        *((_name("--unset", one), None) for one in unset or []),
    ]
    names = [name for name, _ in given] + [_name("--secret", one) for one in asked or []]
    if len(names) > len(set(names)) or len(shown) < len(public or []):
        raise InputError("a field is given more than once", code="input.repeated")
    return {**dict(given), **{name: ask_hidden(name) for name in asked or []}}, list(shown)


def _pair(option: str, given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals and value):
        what = "NAME=PATH" if option == "--secret-file" else "NAME=VALUE"
        raise InputError(f"{option} takes {what}", code="input.pair")
    return name, value


def _name(option: str, given: str) -> str:
    if "=" in given:
        raise InputError(
            f"{option} takes the name of a field, and nothing else",
            code="input.name",
            hint="what stood behind the name is known to others now; " + BY_OTHER_WAYS,
        )
    return given


def _read(name: str, path: str) -> tuple[str, str]:
    """The field that stands in a file. No message names that: somebody may have given the secret in its place."""
    reason = "it is not text in UTF-8"
    try:
        content = read(Path(path))
    except InputError as error:
        content, reason = (
            None,
            "there is no such file, or none to be read"
            if error.code == "file.unreadable"
            else "it is too large",
        )
    if content is not None:
        with suppress(UnicodeDecodeError):  # its text holds what it could not read
            return name, content.decode().removesuffix("\n").removesuffix("\r")
    raise InputError(
        f"the file for {plain(name)!r} cannot be used: {reason}", code="file.unreadable"
    )


def _stdin() -> Iterator[tuple[str, Json]]:
    content = read(Path("-"))
    if content.lstrip()[:1] == b"{":
        for name, value in loads_strict(content).items():
            # Of structured ones the text is kept, so that nobody has to write JSON in JSON.
            yield name, dumps(value).decode() if isinstance(value, dict | list) else value
        return
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        lines = None
    if lines is None:
        raise InputError("standard input is not text in UTF-8", code="file.unreadable")
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.partition("=")
            if not name.strip() or not equals or value in ("", "="):  # Base64 ends so
                raise InputError(
                    f"line {number} of standard input is no NAME=VALUE",
                    code="input.pair",
                    hint="give a value with line ends as JSON",
                )
            yield name.strip(), value
