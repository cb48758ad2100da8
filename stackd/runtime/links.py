"""The links by which a call from outside ends the wait of a node run.

A link is derived from the master key, the execution and the node run. So it is known before the node waits, is the
same after a crash, and stands nowhere in the store.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from urllib.parse import quote

_LABEL = b"stackd/resume-link/1"


class Links:
    """Makes links, and knows those it made. Another master key makes others.

    Attributes:
        base: what they begin with: how this daemon is reached from outside, without a slash at the end.
    """

    def __init__(self, master_key: str, base: str) -> None:
        self.base = base
        self._key = hmac.digest(master_key.encode(), _LABEL, "sha256")

    def url(self, execution_id: str, key: str) -> str:
        """The link of the node run `key`. It is a secret: who has it can end the wait, once."""
        token = self._sign("token", execution_id, key)
        signature = self._sign("signature", execution_id, key, token)
        place = f"/api/runs/{execution_id}/nodes/{quote(key, safe='')}/resume"
        return f"{self.base}{place}?token={token}&signature={signature}"

    def is_good(self, execution_id: str, key: str, *, token: str, signature: str) -> bool:
        """Whether `token` and `signature` are those of the node run's link; takes as long for any."""
        ours = self._sign("token", execution_id, key)
        ours += "\n" + self._sign("signature", execution_id, key, ours)
        given = f"{token}\n{signature}"
        return hmac.compare_digest(given.encode(errors="replace"), ours.encode())

    def _sign(self, *parts: str) -> str:
        text = "\n".join(parts).encode(errors="surrogatepass")
        return urlsafe_b64encode(hmac.digest(self._key, text, "sha256")).rstrip(b"=").decode()
