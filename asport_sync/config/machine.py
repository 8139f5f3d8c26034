"""Defaults that depend on this machine: its processors, its memory and its ephemeral ports."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

from asport_sync.config.ports import PortSet

SMALLEST_RECEIVE_MEMORY: Final = 64 << 20
_LARGEST_DEFAULT_MEMORY: Final = 1 << 30

WORKERS = 256
"""Default of max_workers with ``relay: workers``: 15 KiB and a thread each, and more run in turns on few processors."""


def spare_workers() -> int:
    """Returns the default of max_workers with ``relay: auto``.

    Threads that relay in addition to the engine's are worthwhile only with spare processors.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except OSError:  # refused, for example by a container's seccomp filter
        processors = os.cpu_count() or 1
    return processors if processors > 2 else 0


def memory_to_receive() -> int:
    """Returns the default of receive_memory: a quarter of the memory available to the process, from 64 MiB to 1 GiB."""
    available = [_LARGEST_DEFAULT_MEMORY * 4]
    with contextlib.suppress(OSError, ValueError):
        available.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            available.append(limit)
    with contextlib.suppress(OSError, ValueError):  # "max" means no limit
        available.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return max(SMALLEST_RECEIVE_MEMORY, min(available) // 4)


def ephemeral_ports() -> PortSet:
    """Returns the ports that the system assigns to outgoing connections: those that a server allows by default.

    On Linux from ``net.ipv4.ip_local_port_range``, with its default if that cannot be read; elsewhere 49152 to 65535.
    """
    if not sys.platform.startswith("linux"):
        return PortSet([(49152, 65535)])
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    return PortSet([(low, high)])
