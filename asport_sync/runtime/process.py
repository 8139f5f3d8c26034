"""Resource limits of this process (getrlimit(2)), and the process settings that a command makes.

A program that uses the library configures its process itself; only commands call ``prepare``.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
from pathlib import Path

# Bytes of address space per thread, instead of the usual 8 MiB; the deepest stack, that of the system's resolver, uses
# about a tenth of this.
_STACK = 1 << 20

# Their names in /proc/self/limits.
_NAMES = {resource.RLIMIT_NOFILE: "Max open files", resource.RLIMIT_AS: "Max address space"}


def limits(kind: int) -> tuple[int, int] | None:
    """Returns the soft and hard limit of RLIMIT_NOFILE or RLIMIT_AS, RLIM_INFINITY if unlimited; None if unknown.

    A container's seccomp filter may refuse the system call; /proc has the same values.
    """
    try:
        return resource.getrlimit(kind)
    except OSError:
        pass
    try:
        text = Path("/proc/self/limits").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{_NAMES[kind]} +(\w+) +(\w+)", text, re.MULTILINE)
    if found is None:
        return None
    soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in found.groups())
    return soft, hard


def address_space_is_limited() -> bool:
    """Returns whether RLIMIT_AS limits how much memory may be mapped, used or not."""
    return (limits(resource.RLIMIT_AS) or (resource.RLIM_INFINITY,))[0] != resource.RLIM_INFINITY


def prepare() -> None:
    """Sets this process up for a command. Must be called before it has other threads."""
    threading.stack_size(_STACK)
    if os.getpid() == 1:
        # As PID 1 of a container without an init, this process inherits orphans and has no other children. With SIGCHLD
        # ignored the kernel leaves no zombies.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
