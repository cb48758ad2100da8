"""The names of apps and operations, read alike wherever they stand: in documents, definitions and by clients."""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

import orjson

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN: Final = re.compile(r"[\s.:/_-]+")

# Names an app goes by besides its own; read at import, before there is a loop to hold up.
ALIASES: Final[dict[str, str]] = orjson.loads(
    (resources.files(__package__) / "app_ids.json").read_bytes()
)


def folded(app: str) -> str:
    """`app` as it is compared: without case, edges, and the difference of blank, `_` and `-`."""
    return re.sub(r"[\s_]+", "-", app.strip().lower())


def normal_app(app: str) -> str:
    """The app meant by `app`, one of the names it goes by (`app_ids.json`)."""
    name = folded(app)
    return ALIASES.get(name, name)


def normal_operation(operation: str) -> str:
    """`operation` as it is compared: `sendMessage`, `send-message` and `send.message` are `send_message`."""
    return _BETWEEN.sub("_", _CAMEL.sub("_", operation.strip())).lower()
