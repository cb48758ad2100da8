"""Dies at each step of a story about blobs, in a process of its own, and looks at what is left each time.

`python -m support.blobs_killed FOLDER`; the last word printed is the number of steps.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.core.json import dumps
from stackd.runtime.blobs import FOLDERS_SWEPT, STEP, BlobFolder, BlobLimits
from stackd.store.database import Database, open_database
from stackd.workflows import blobs as known_blobs
from stackd.workflows import executions
from stackd.workflows.executions import NewExecution
from support.blobs import content_of, files

EVER = 1e12
STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove"})
LIMITS = BlobLimits(one=2**23, all=2**26)


def blobs_of(folder: Path, store: Database) -> BlobFolder:
    return BlobFolder(folder / "blobs", store, clock=SystemClock(), limits=LIMITS)


async def refer(store: Database, blob_id: str) -> None:
    new = NewExecution("w", 1, "t", "t", dumps({"$blob": blob_id}), None)
    await store.write(lambda tx: executions.start(tx, new, now=0.0))


async def story(folder: Path) -> None:
    """Puts, references, a stream, a drop, a collection of two in one change."""
    async with open_database(
        folder / "s.db", clock=SystemClock(), events=EventBus(), readers=1
    ) as store:
        blobs = blobs_of(folder, store)
        await refer(store, await blobs.put(b"put and referred to"))
        for content in (b"put for nothing", b"and another"):
            await blobs.put(content)
        async with aclosing(blobs.receive()) as incoming:
            incoming.add(b"streamed" * STEP)
            await incoming.spill()
            await refer(store, await incoming.keep())
        async with aclosing(blobs.receive()) as incoming:
            incoming.add(b"given up" * STEP)
            await incoming.spill()
        await blobs.drop([await blobs.put(b"dropped")])
        await blobs.collect(before=EVER, limit=10)
        await blobs.put(b"put for nothing")


async def prepare(folder: Path) -> None:
    async with open_database(folder / "s.db", clock=SystemClock(), events=EventBus()) as store:
        await store.write(
            lambda tx: (
                tx.execute(
                    "INSERT INTO workflows (id, name, version, active, created_at, updated_at) VALUES ('w', 'w', 1, 1, 0, 0)"
                ),
                tx.execute(
                    "INSERT INTO workflow_versions (workflow_id, version, content_hash, document, created_at) VALUES ('w', 1, 'h', x'', 0)"
                ),
            )
        )


async def look(folder: Path) -> None:
    """What is referred to is whole; after upkeep, nothing else is there."""
    async with open_database(folder / "s.db", clock=SystemClock(), events=EventBus()) as store:
        blobs = blobs_of(folder, store)
        rows = await store.read(lambda tx: tx.rows("SELECT DISTINCT blob FROM blob_refs"))
        referred = {row[0] for row in rows}
        await blobs.collect(before=EVER, limit=100)
        for _ in range(-(-257 // FOLDERS_SWEPT)):
            await blobs.sweep(before=EVER)
        for blob_id in referred:
            content = await content_of(blobs, blob_id)
            assert hashlib.sha256(content).hexdigest() == blob_id
        assert {path.name for path in files(folder / "blobs")} == referred
        assert (await store.read(known_blobs.totals)).count == len(referred)


def die_at(step: int, folder: Path) -> None:
    """From now on, die before the file operation number `step` on a blob."""
    seen = count(1)
    place = f"{folder / 'blobs'}"

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and str(arguments[0]).startswith(place) and next(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def in_a_child(work: Any, *arguments: Any) -> int:
    """How it ended, as `os.waitpid` has it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def tell(step: int, folder: Path) -> None:
    die_at(step, folder)
    anyio.run(story, folder)


def main(top: Path) -> int:
    assert in_a_child(anyio.run, prepare, top) == 0
    for step in count(1):
        folder = top / str(step)
        folder.mkdir()
        shutil.copy(top / "s.db", folder)
        ended = in_a_child(tell, step, folder)
        assert ended in (0, signal.SIGKILL), ended
        if in_a_child(anyio.run, look, folder) != 0:
            print(f"not whole after a kill at step {step}")
            return 1
        if ended == 0:
            print("steps:", step - 1)
            return 0
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
