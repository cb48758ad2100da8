"""Tries hostile cases in a process of its own, and tells what became of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parents[2]
ORDINARY: Final = (
    65_533  # a user without privileges, and not the one that a daemon as root runs code as
)


def tried(mode: str, *off: str, uid: int = ORDINARY, named: str | None = None) -> dict[str, Any]:
    """What became of the cases. Where the suite is not root, they are tried as who it is."""
    asked = {"mode": mode, "off": off, "uid": uid, "named": named}
    done = subprocess.run(
        [sys.executable, "-m", "support.hostile.alone", json.dumps(asked)],
        cwd=TESTS, env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
