"""Signatures that we make, judged by the libraries and the program that others judge them with."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.connectors import action
from support.desk import Desk, account
from support.foreign import Foreign, needs_module, needs_program, running
from support.servers import Seen

from stackd.core.errors import NodeError

KEY = "made-up-key-of-32-characters-00!"
VALUES = {"text": "ä & = \u2028", "n": 1}


async def sent(desk: Desk, options: dict[str, Any], **headers: str) -> Seen:
    return await desk.sends(
        action("a", "POST", "/x", send={"headers": headers}), VALUES, as_=account(secret=KEY),
        authentication={"type": "signer", "signer": "hmac", "options": options},
    )  # fmt: skip


@needs_module("standardwebhooks")
async def test_standard_webhooks_takes_our_signature(desk: Desk) -> None:
    from standardwebhooks import Webhook

    options = {
        "text": "msg_1.{{ timestamp }}.{{ body }}", "encoding": "base64", "prefix": "v1,",
        "header": "webhook-signature", "timestampHeader": "webhook-timestamp",
    }  # fmt: skip
    seen = await sent(desk, options, **{"webhook-id": "msg_1"})

    verified = Webhook(base64.b64encode(KEY.encode()).decode()).verify(seen.body, seen.headers)

    assert verified == VALUES


@needs_module("slack_sdk")
async def test_slack_takes_our_signature(desk: Desk) -> None:
    from slack_sdk.signature import SignatureVerifier

    options = {
        "text": "v0:{{ timestamp }}:{{ body }}", "prefix": "v0=", "header": "X-Slack-Signature",
        "timestampHeader": "X-Slack-Request-Timestamp",
    }  # fmt: skip
    seen = await sent(desk, options)
    verifier = SignatureVerifier(KEY)

    assert verifier.is_valid_request(seen.body, dict(seen.headers))
    assert not verifier.is_valid_request(seen.body + b" ", dict(seen.headers))


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """A hook that answers only what was signed as GitHub signs."""
    folder = Path(tmp_path_factory.mktemp("hook"))
    rule = {
        "match": {
            "type": "payload-hmac-sha256", "secret": KEY,
            "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
        }
    }  # fmt: skip
    hook = {
        "id": "signed", "execute-command": "/bin/true", "response-message": "it is yours",
        "trigger-rule": rule,
    }  # fmt: skip
    (folder / "hooks.json").write_text(json.dumps([hook]))
    words = ("webhook", "-hooks", "hooks.json", "-ip", "127.0.0.1", "-port", "{port}")
    with running(folder / "log", *words) as server:
        yield server


@needs_program("webhook", "Debian's package `webhook`")
@pytest.mark.parametrize("key", [KEY, "another"], ids=["its key", "another key"])
async def test_the_program_webhook_takes_our_signature(desk: Desk, hook: Foreign, key: str) -> None:
    options = {"prefix": "sha256=", "header": "X-Hub-Signature-256"}
    asked = desk.ask(
        hook.url, action("a", "POST", "/hooks/signed", response="text"), VALUES,
        as_=account(secret=key),
        authentication={"type": "signer", "signer": "hmac", "options": options},
    )  # fmt: skip

    if key == KEY:
        assert await asked == "it is yours"
    else:
        with pytest.raises(NodeError) as caught:
            await asked
        assert caught.value.http_status is not None
