"""Whether a signature is that of a text (HMAC-SHA256 in hex), compared in constant time.

params: {"text": "hello", "signature": "sha256=88aab3ede8d3adf94d26ab90d3bafd4a2083070c3bcce9c014ee04a443847c0b", "key": "secret"}
result: {"ok": true}
"""

import hashlib
import hmac


def run(params, context):
    wanted = hmac.new(params["key"].encode(), params["text"].encode(), hashlib.sha256).hexdigest()
    given = params["signature"].removeprefix("sha256=")
    return {"ok": hmac.compare_digest(wanted, given)}
