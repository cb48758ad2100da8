"""GitHub: what takes more than one request, or is better told where it fails."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from stackd.core.errors import NodeError
from stackd.integrations.manager import HandlerContext

FOLLOWED = (
    "name",
    "path",
    "sha",
    "size",
    "html_url",
)  # of a file, as the answer to a commit has it


async def create_issue(params: dict[str, Any], ctx: HandlerContext) -> Any:
    """Opens an issue; what is not given is not sent."""
    answer = await ctx.http.post(
        f"{_repository(params)}/issues", json=_without(params, "owner", "repo")
    )
    return answer.body


async def create_or_update_file(params: dict[str, Any], ctx: HandlerContext) -> Any:
    """Commits a file on top of the version that is there now.

    GitHub takes the blob that is replaced as proof that nobody else was faster. Content that is there already is
    not committed again, so that a second try after a lost answer makes no empty commit.
    """
    path = f"{_repository(params)}/contents/{quote(params['path'].strip('/'), safe='/')}"
    content = _content(params)
    sha = params.get("sha")
    if sha is None:
        found = await _file(path, params, ctx)
        if found is not None and _has(found, content):
            return {"content": {name: found.get(name) for name in FOLLOWED}, "commit": None}
        sha = None if found is None else found["sha"]
    body = {
        "message": params["message"],
        "content": base64.b64encode(content).decode(),
        "branch": params.get("branch"),
        "sha": sha,
    }
    answer = await ctx.http.put(path, json=_without(body))
    return answer.body


async def _file(path: str, params: Mapping[str, Any], ctx: HandlerContext) -> dict[str, Any] | None:
    """The file as it is on the branch; None if there is none."""
    query = {"ref": params["branch"]} if params.get("branch") else None
    try:
        found = (await ctx.http.get(path, query=query)).body
    except NodeError as error:
        if error.http_status == 404:
            return None
        raise
    if not isinstance(found, dict) or found.get("type") != "file":
        raise NodeError(
            f"{params['path']} is no file", kind="rejected", code="github.not_a_file", answered=True
        )
    return found


def _has(found: Mapping[str, Any], content: bytes) -> bool:
    """Whether a file has that content; of one over 1 MB GitHub does not tell."""
    if found.get("encoding") != "base64":
        return False
    return base64.b64decode(str(found.get("content", ""))) == content


def _content(params: Mapping[str, Any]) -> bytes:
    text = str(params["content"])
    if params.get("encoding", "utf-8") == "utf-8":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise NodeError("content is no Base64", kind="invalid", code="validation_error") from None


def _repository(params: Mapping[str, Any]) -> str:
    return f"/repos/{quote(params['owner'], safe='')}/{quote(params['repo'], safe='')}"


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What is sent of `values`: neither these names nor what was left out."""
    return {
        name: value for name, value in values.items() if name not in names and value is not None
    }
