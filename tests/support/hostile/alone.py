"""The hostile cases in a process of their own: as a user without privileges, where the suite is root.

    python -m support.hostile.alone '{"mode": "worker", "off": [], "uid": 65534}'

`named`: only the cases that name this layer, judged as where nothing is off. Prints one JSON map: the level, the
cases tried, those that are red and why, the growth of memory in bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio


def open_up(places: list[Path]) -> None:
    """In a view of the mounts of our own, let anybody reach these folders, whoever may enter those above them."""
    from stackd.sandbox.child import linux

    linux.unshare(linux.NEWNS)
    linux.keep_mounts_private()
    for place in places:
        closed = [one for one in place.parents if not one.stat().st_mode & 0o001]
        if not closed:
            continue
        opened = os.open(place, os.O_PATH)
        linux.mount("open", str(closed[-1]), "tmpfs", 0, "size=1m,mode=755")
        place.mkdir(parents=True)
        linux.bind(f"/proc/self/fd/{opened}", str(place))
        os.close(opened)


async def main(asked: dict[str, Any]) -> None:
    from support.hostile.ground import ground, rss

    named = asked.get("named")
    async with ground(asked["mode"], off=asked["off"], judged_as=2 if named else None) as made:
        cases = [one for one in made.offered() if named is None or named in one.layers]
        await made.canary()
        before = rss()
        red = await made.tried(cases)
        tried = [one.id for one in cases]
        told = {"level": made.level, "tried": tried, "red": red, "grown": rss() - before}
    print(json.dumps(told))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if os.geteuid() == 0:
        open_up([Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[3]])
        if asked["uid"]:
            os.setgroups([])
            os.setresgid(asked["uid"], asked["uid"], asked["uid"])
            os.setresuid(asked["uid"], asked["uid"], asked["uid"])
    anyio.run(main, asked)
