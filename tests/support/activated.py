"""Hands sockets to a command as a service manager does: `activated.py FD,FD NAME:NAME COMMAND…`.

Without names none are told. The sockets become the descriptors 3 and on; the command has this process's pid.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    given, names, *command = sys.argv[1:]
    high = [os.dup2(int(fd), 100 + number) for number, fd in enumerate(given.split(","))]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, 3 + number)
        os.close(descriptor)
    os.environ |= {"LISTEN_FDS": str(len(high)), "LISTEN_PID": str(os.getpid())}
    if names:
        os.environ["LISTEN_FDNAMES"] = names
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
