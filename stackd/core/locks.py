"""Lock files: what of a state directory only one process may do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stackd.core.errors import LockedError, StoreError, StoreFullError

LOCKED_ROLES: Final = frozenset({"api", "scheduler", "timers", "rotation"})  # at most one of each


@contextmanager
def role_locks(state_dir: Path, roles: Iterable[str]) -> Iterator[None]:
    """Hold the lock files of `roles` in `state_dir`, which is made if it is missing.

    Raises:
        LockedError: another process holds one; names it.
        StoreError: the state directory cannot be used.
    """
    with contextlib.ExitStack() as held:
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for role in roles:
                held.enter_context(_lock(state_dir / f"{role}.lock", role))
        except OSError as error:
            raise unusable(state_dir, error) from error
        yield


def unusable(state_dir: Path, error: OSError) -> StoreError:
    """What `error`, met while something was made in `state_dir`, means for it."""
    if error.errno == errno.ENOSPC:
        return StoreFullError(f"no space left in {state_dir}", hint="free disk space")
    return StoreError(
        f"state directory {state_dir} cannot be used: {error.strerror}",
        code="store.read_only",
        hint="check its owner, mode and mount, or set STACKD_STATE_DIR",
    )


@contextmanager
def _lock(path: Path, role: str) -> Iterator[None]:
    with path.open("a+") as file:
        path.chmod(0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LockedError(
                f"role {role} already runs on {path.parent} (pid {holder})",
                hint="stop that process, or use another STACKD_STATE_DIR",
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
