"""What one node run's expressions see: values by name, the time, and ids of its own.

Pure: a `Scope` made again with the same roots, time and seed gives the same results after a crash.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.values import MISSING, Budget


class Scope:
    """What one node run's expressions see. Made once per node run: `uuid()` counts in it.

    Args:
        roots: node ids and the fixed names, each with its JSON value; never changed here.
        now: seconds since 1970, what `now()` tells.
        seed: makes `uuid()` this node run's own; the same seed gives the same ones, in the order of calls.
        link: what `resumeUrl()` gives of a node that waits for a call; raises ExpressionError of any other.
            None: there are no links here.
    """

    __slots__ = ("budget", "link", "now", "outer", "roots", "seed", "uuids")

    def __init__(
        self,
        roots: Mapping[str, Json],
        *,
        now: float,
        seed: str,
        link: Callable[[str], str] | None = None,
    ) -> None:
        self.roots = roots
        self.link = link
        self.now = now
        self.seed = seed
        self.uuids = 0
        self.budget = Budget()
        self.outer: Scope | None = None  # whose roots are seen where `roots` has none of that name

    def child(self, roots: Mapping[str, Json], seed: str) -> Scope:
        """A scope for one of many: `roots` over those seen here, the same `now`, `uuid()` and budget of its own.

        Costs the same however many roots are seen here: nothing is copied. `seed` tells it from its brothers;
        together with the one here it is its own.
        """
        inner = Scope(roots, now=self.now, seed=f"{self.seed}{seed}", link=self.link)
        inner.outer = self
        return inner

    def find(self, root: str) -> Json:
        """The value of `root`, or MISSING."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.roots.get(root, MISSING)
            if value is not MISSING:
                return value
            scope = scope.outer
        return MISSING

    def names(self) -> set[str]:
        return {*self.roots, *(self.outer.names() if self.outer else ())}


Run = Callable[[Scope], Json]
Path = tuple[str | int, ...]
Position = tuple[int, int]  # line and column, from 1


def _now(scope: Scope) -> Json:
    try:
        at = datetime.fromtimestamp(scope.now, UTC)
    except (ValueError, OSError):
        raise ExpressionError("now: the time is out of range") from None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _uuid(scope: Scope) -> Json:
    digest = hashlib.sha256(f"{scope.seed}:{scope.uuids}".encode("utf-8", "surrogatepass")).digest()
    scope.uuids += 1
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _resume_url(node_id: str) -> Run:
    def run(scope: Scope) -> Json:
        if scope.link is None:
            raise ExpressionError("resumeUrl: only the parameters of a node can read a link")
        scope.budget.spend(LINK_STEPS)
        return scope.link(node_id)

    return run


LINK_STEPS = 100  # of the budget: two signatures take some microseconds

FUNCTIONS: Final[dict[str, Run]] = {"now": _now, "uuid": _uuid}
# Those of a node, whose id is written out: what makes the function of it.
NODE_FUNCTIONS: Final[dict[str, Callable[[str], Run]]] = {"resumeUrl": _resume_url}


# --- paths and places, as messages show them -----------------------------------------------------------

_PLAIN_KEY = re.compile(r"[^\W\d]\w*")


def path_text(keys: Path) -> str:
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{short(str(key) if key.bit_length() < 99 else '…')}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{short(key)}"
        else:
            text += f'["{short(key)}"]'
    return text.removeprefix(".")


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def moved(at: Position, text: str, start: int, end: int) -> Position:
    """Where `end` stands if `start` stands `at`."""
    lines = text.count("\n", start, end)
    if not lines:
        return at[0], at[1] + end - start
    return at[0] + lines, end - text.rfind("\n", start, end)
