"""`/api/runs/{execution}/nodes/{node}/resume`: a call to its link ends the wait of a node run.

A person may have been given the link, and mail programs look at links before people do. So GET changes nothing,
unless the node takes it: it shows a page whose button sends the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from aiohttp import hdrs, web

from stackd.client.models import StartedExecution
from stackd.core.errors import GoneError, LinkError, MalformedError, TooLargeError
from stackd.core.json import Json
from stackd.store.connection import Tx
from stackd.web.answers import accepted, started
from stackd.web.context import Context, of
from stackd.web.deliveries import delivery_of, head_of
from stackd.web.route import Content, Query, Route
from stackd.workflows import resume
from stackd.workflows.executions import ExecutionRow
from stackd.workflows.graph import GraphNode

TOKEN, SIGNATURE = "token", "signature"
TOKEN_HEADER, SIGNATURE_HEADER = "x-resume-token", "x-resume-signature"

_LOOKS: Final = (hdrs.METH_GET, hdrs.METH_HEAD)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address of the page is the link
    "X-Robots-Tag": "noindex",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
}
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 15vh auto; padding: 0 1rem; }}
p {{ white-space: pre-line; overflow-wrap: anywhere; }}
button {{ font: inherit; padding: .4rem 1.6rem; }}
</style>
<h1>{title}</h1>
<p>{text}</p>
{form}
</html>
"""
_FORM: Final = '<form method="post"><button autofocus>Continue</button></form>'


async def resume_node(request: web.Request) -> web.StreamResponse:
    try:
        return await _resume(request)
    except GoneError as error:
        words = f"a call to its link was refused: {error.message}"
        of(request).notes.add(error.code, request.match_info["execution"], words)
        if not _is_browser(request):
            raise
        return _page(
            error.status, "Nothing to do", f"{error.message[0].upper()}{error.message[1:]}."
        )


async def _resume(request: web.Request) -> web.StreamResponse:
    context = of(request)
    execution_id, key = request.match_info["execution"], request.match_info["node"]
    _check_link(context, request, execution_id, key)
    row = await context.store.read(
        lambda tx: resume.callable_execution(tx, execution_id, key, now=context.clock.time())
    )
    node = await _node(context, row, key)
    methods = [str(method).upper() for method in node.settings.get("methods") or [hdrs.METH_POST]]
    if request.method not in methods:
        if request.method in _LOOKS and hdrs.METH_POST in methods and _is_browser(request):
            said = [f"{name}: {value}" for name, value in _added(request.query).items()]
            about = f"The workflow {row.workflow_id} waits for you at its step {node.id}."
            return _page(200, "Continue?", "\n".join([about, *said]), asks=True)
        raise web.HTTPMethodNotAllowed(request.method, methods)
    async with delivery_of(request, _around(request)) as delivery:
        text, limit = delivery.text, context.settings.max_output_bytes
        if len(text) > limit:
            raise TooLargeError(
                f"the call is {len(text)} bytes as JSON, over the limit of {limit} for an output",
                code="node.too_large",
            )

        def change(tx: Tx) -> ExecutionRow:
            return resume.resume(tx, execution_id, key, text, now=context.clock.time())

        delivery.is_offered = True
        await context.store.write(change, size_bytes=len(text))
    if _is_browser(request):
        return _page(202, "Thank you", f"The workflow {row.workflow_id} goes on.")
    return accepted(started(execution_id, row.workflow_id))


def _check_link(context: Context, request: web.Request, execution_id: str, key: str) -> None:
    given = [
        request.query.get(name) or request.headers.get(header)
        for name, header in ((TOKEN, TOKEN_HEADER), (SIGNATURE, SIGNATURE_HEADER))
    ]
    token, signature = given
    if not (token and signature):
        raise MalformedError(
            f"a link has {TOKEN} and {SIGNATURE} in its query, "
            f"or {TOKEN_HEADER} and {SIGNATURE_HEADER} come as headers",
            code="link.incomplete",
        )
    if not context.links.is_good(execution_id, key, token=token, signature=signature):
        raise LinkError("nobody here has given this link away", hint="copy the whole link")


async def _node(context: Context, row: ExecutionRow, key: str) -> GraphNode:
    """The node of the node run `key`, which there is: its link is good."""
    graph = await context.versions.graph(row.workflow_id, row.version)
    *_, node = graph.way_to(key)
    return node


def _around(request: web.Request) -> dict[str, Json]:
    """What the node gives of the call besides its body; the link itself is left out."""
    head = head_of(request)
    for name, secrets in (
        ("headers", (TOKEN_HEADER, SIGNATURE_HEADER)),
        ("query", (TOKEN, SIGNATURE)),
    ):
        head[name] = {key: value for key, value in head[name].items() if key not in secrets}
    return head


def _added(query: Mapping[str, str]) -> dict[str, str]:
    """What a link says besides being one."""
    return {name: value for name, value in query.items() if name not in (TOKEN, SIGNATURE)}


def _is_browser(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def _page(status: int, title: str, text: str, *, asks: bool = False) -> web.Response:
    body = _PAGE.format(title=escape(title), text=escape(text), form=_FORM if asks else "")
    return web.Response(status=status, text=body, content_type="text/html", headers=_HEADERS)


_PAGE_OR: Final = Content(("text/html",), {"type": "string"})

ROUTES: Final = (
    Route(
        "*", "/api/runs/{execution}/nodes/{node}/resume", resume_node, None,
        "A call to the link of a node run that waits for it; 200: a page that asks",
        {202: (Content(("application/json",), StartedExecution), _PAGE_OR), 200: _PAGE_OR},
        takes=Content(("*/*",)), takes_nothing=True,
        query=(
            Query(TOKEN, {"type": "string"}, "of the link"),
            Query(SIGNATURE, {"type": "string"}, "of the link"),
        ),
        headers=(
            Query(TOKEN_HEADER, {"type": "string"}, "in place of `token`"),
            Query(SIGNATURE_HEADER, {"type": "string"}, "in place of `signature`"),
        ),
    ),
)  # fmt: skip
