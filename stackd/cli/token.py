"""`stackd token …`."""

from __future__ import annotations

from typing import Annotated

import typer

from stackd.cli import completion
from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, complain, daemon, print_json, print_table, say
from stackd.cli.lasting import no_time, seconds_in
from stackd.client.models import NewTokenView, TokenList, TokenView
from stackd.core.clock import SystemClock, is_instant, rfc3339
from stackd.core.text import segment

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, as the list will show it.")],
    scope: Annotated[
        list[str],
        typer.Option(help="read, run, write or admin; each includes those before it."),
    ],
    expires: Annotated[
        str | None, typer.Option(help="How long it can be used: 90s, 30m, 12h, 30d, 8w.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token and print it, this once; remarks go to standard error."""
    wanted = {
        "name": name,
        "scopes": scope,
        "expiresAt": None if expires is None else _instant(expires),
    }
    made = daemon().post("/api/tokens", wanted, NewTokenView)
    if as_json:
        print_json(made)
        return
    say(made["token"])
    until = f"until {made['expiresAt']}" if made["expiresAt"] else "until it is revoked"
    complain(f"{made['name']}: {' '.join(made['scopes'])}, {until}; it is not shown again")
    complain(f"revoke it with: stackd token revoke {made['id']}")


def _instant(lasts: str) -> str | None:
    """When something ends that lasts from now for a time like `30d`."""
    code = "token.expiry"
    at = SystemClock().time() + seconds_in("--expires", lasts, code=code)
    if not is_instant(at):
        raise no_time("--expires", lasts, code=code)
    return rfc3339(at)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """Every token, newest first, without its secret."""
    items = daemon().all("/api/tokens", TokenList)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("id"),
            Column("name", "cut", goes=4),
            Column("scopes", goes=3),
            Column("state"),
            Column("last used", goes=1),
            Column("expires", goes=2),
        ),
        (
            (
                token["id"],
                token["name"],
                " ".join(token["scopes"]),
                token["state"],
                token["lastUsedAt"] or "never",
                token["expiresAt"] or "never",
            )
            for token in items
        ),
        empty="no tokens yet; make one with `stackd token create NAME --scope SCOPE`",
    )


@app.command()
def revoke(
    token_id: Annotated[
        str, typer.Argument(help="The token's id.", autocompletion=completion.token_id)
    ],
    as_json: JsonFlag = False,
) -> None:
    """End a token, at once and for good."""
    view = daemon().delete(f"/api/tokens/{segment(token_id)}", TokenView)
    if as_json:
        print_json(view)
    else:
        say(f"{view['id']} ({view['name']}) is revoked")
