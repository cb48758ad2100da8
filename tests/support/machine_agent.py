"""Runs in a virtual machine of the tests: its commands come in over a virtio port, what they print goes back at once.

Both ways a line is an object of JSON. In: `run` (a number) with `words`; for one that runs, `of` its number and `put`
(text for its standard input), `end` (of that) or `kill`. Out: `booted`, then `of` a number and `out` or `err` (what was
printed), at last `ended` (as Popen.returncode has it).
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Any

PORT = "stackd.tests"
PORTS = Path("/sys/class/virtio-ports")  # of which each has its name in a file


class Agent:
    def __init__(self, port: Path) -> None:
        descriptor = os.open(port, os.O_RDWR)  # a port can be opened once only
        self._to = os.fdopen(descriptor, "w", encoding="utf-8")
        self._from = os.fdopen(os.dup(descriptor), encoding="utf-8")
        self._one_at_a_time = threading.Lock()
        self._running: dict[int, subprocess.Popen[str]] = {}

    def serve(self) -> None:
        """Do what is asked for, until the port closes."""
        self._say(booted=Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        for line in self._from:
            asked = json.loads(line)
            if "run" in asked:
                self._run(asked["run"], asked["words"])
            elif running := self._running.get(asked["of"]):
                self._act(running, asked)

    def _run(self, number: int, words: list[str]) -> None:
        pipe = subprocess.PIPE
        try:
            running = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace"
            )
        except OSError as error:
            self._say(of=number, err=str(error))
            self._say(of=number, ended=127)
            return
        self._running[number] = running
        threading.Thread(target=self._tell, args=(number, running), daemon=True).start()

    def _act(self, running: subprocess.Popen[str], asked: dict[str, Any]) -> None:
        assert running.stdin is not None
        try:
            if "put" in asked:
                running.stdin.write(asked["put"])
                running.stdin.flush()
            elif "end" in asked:
                running.stdin.close()
            else:
                running.kill()
        except OSError:  # it has ended, or closed its input
            pass

    def _tell(self, number: int, running: subprocess.Popen[str]) -> None:
        """What it prints, line by line, and how it ends."""
        streams = {"out": running.stdout, "err": running.stderr}
        tellers = [
            threading.Thread(target=self._pass_on, args=(number, name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for teller in tellers:
            teller.start()
        for teller in tellers:
            teller.join()
        ended = running.wait()
        del self._running[number]
        self._say(of=number, ended=ended)

    def _pass_on(self, number: int, name: str, stream: IO[str]) -> None:
        for line in stream:
            self._say(of=number, **{name: line})

    def _say(self, **told: object) -> None:
        with self._one_at_a_time:
            self._to.write(json.dumps(told) + "\n")
            self._to.flush()


def port() -> Path | None:
    """The device of our port, once the kernel has found it."""
    for name in PORTS.glob("*/name"):
        if name.read_text().strip() == PORT:
            return Path("/dev", name.parent.name)
    return None


def main() -> None:
    os.chdir("/root")
    while (found := port()) is None:
        time.sleep(0.05)
    Agent(found).serve()


if __name__ == "__main__":
    main()
