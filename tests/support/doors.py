"""Doors opened aside of the loop of a test: the daemon opens them before it has one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from stackd.web.doors import Doors, open_doors


def doors_at(**where: Any) -> Doors:
    """What `open_doors` gives."""
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(partial(open_doors, **where)).result()
