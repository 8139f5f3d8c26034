"""Run a program that may not open ports below 1024, whoever runs the tests.

As a script, ``python tests/support/unprivileged.py PROGRAM ARGUMENT...``, it becomes that program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

PR_CAPBSET_DROP = 24  # <linux/prctl.h>
CAP_NET_BIND_SERVICE = 10  # <linux/capability.h>
FIRST_OF_ALL = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def unprivileged(argv: list[str]) -> list[str]:
    """The arguments with which the program runs without that capability."""
    return [sys.executable, str(Path(__file__)), *argv]


def first_port_of_all() -> int:
    """From here on ports are anybody's."""
    return int(FIRST_OF_ALL.read_text())


def main() -> None:
    """Becomes the program. What leaves the bounding set is not gained by exec(), for root neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Who may not drop it does not have it either.
    if libc.prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EPERM:
        raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
