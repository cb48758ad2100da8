"""Which headers and query parameters carry secrets, by their names."""

from __future__ import annotations

import re
from typing import Final

LONGEST_HARMLESS: Final = 100  # characters of a name; a longer one is none of those we know

# Where a name is cut into words: before capitals, as in `keyId` and `AWSKey`.
_HUMP: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECRET: Final = re.compile(
    r"token|secret|cookie|passw|passphrase|passcode|session|credential|jwt|assertion|signature"
    r"|auth(?!or(?!i[sz]))"  # not author, nor authority; but authorization, spelt either way
    r"|keys?(?![a-z])"  # the end of a word: apikey, but not keyword
    r"|(?<![a-z])(?:pwd|sig|hmac|bearer)(?![a-z])"
)
_HARMLESS: Final = re.compile(
    r"(?:x-)?(?:idempotency-key|cache-key|surrogate-key|sec-websocket-key"
    r"|(?:www|proxy)-authenticate"  # what the far side asks for, not what it is given
    r"|access-control-allow-credentials|(?:[a-z]+-)*ratelimit-(?:[a-z]+-)*tokens(?:-[a-z]+)*)"
)


def is_secret(name: str) -> bool:
    """Whether the value of a header or query parameter of that name is not to be shown."""
    small = name.lower()
    words = small if small == name else _HUMP.sub("-", name).lower()
    if _SECRET.search(small) or _SECRET.search(words):
        return len(name) > LONGEST_HARMLESS or not _HARMLESS.fullmatch(words.replace("_", "-"))
    return False
