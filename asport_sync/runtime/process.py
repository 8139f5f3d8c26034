"""What a process may have (getrlimit(2)), and what a command asks of its own.

A program that uses the library decides for itself what its process is like; only commands call ``prepare``.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
from pathlib import Path

# Bytes of address space for each thread, instead of the 8 MiB that are usual; the deepest of them, the system's
# resolver, needs about a tenth of it.
_STACK = 1 << 20

# What /proc/self/limits calls them.
_NAMES = {resource.RLIMIT_NOFILE: "Max open files", resource.RLIMIT_AS: "Max address space"}


def limits(kind: int) -> tuple[int, int] | None:
    """Soft and hard limit of RLIMIT_NOFILE or RLIMIT_AS, RLIM_INFINITY where there is none; None: not to be learned.

    A container's filter may refuse the system call; the kernel says the same in /proc.
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
    """Whether RLIMIT_AS says how much memory may be mapped, used or not."""
    return (limits(resource.RLIMIT_AS) or (resource.RLIM_INFINITY,))[0] != resource.RLIM_INFINITY


def prepare() -> None:
    """Makes this process fit for a command. Before it has threads."""
    threading.stack_size(_STACK)
    if os.getpid() == 1:
        # In a container without an init of its own what loses its parent becomes a child of this process, which has no
        # other children. Ignored, the kernel leaves no zombies of them.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
