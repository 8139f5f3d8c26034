"""Picking port numbers that nobody uses."""

from __future__ import annotations

import os
import random
import socket
import threading


def _slice(first: int, last: int) -> tuple[int, int]:
    """The part of a range that belongs to this process, of those that run tests side by side."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = max(number + 1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    size = (last - first + 1) // count
    return first + number * size, first + (number + 1) * size - 1


# Below Linux's default ephemeral range (32768-60999), so that no outgoing connection of another process is given one of
# these numbers between the pick and its use, and below the ports of a server that `init` has made (30000-32767). Other
# servers under test open ports of the same range, so that no server of another process takes one meanwhile.
FIRST_PORT, LAST_PORT = _slice(20000, 29999)

_guard = threading.Lock()
_picked: set[int] = set()
# Unseeded on purpose: two test runs on one machine should not walk through the same numbers.
_random = random.SystemRandom()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of ``host`` that is free for TCP and for UDP, and that this process has not picked before.

    Nothing holds the port afterwards. Use it only for programs that can't be told to choose a port and report it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(200):
        port = _random.randint(FIRST_PORT, LAST_PORT)
        with _guard:
            if port in _picked:
                continue
            _picked.add(port)
        if _is_free(family, socket.SOCK_STREAM, host, port) and _is_free(family, socket.SOCK_DGRAM, host, port):
            return port
    raise RuntimeError(f"no free port found on {host} between {FIRST_PORT} and {LAST_PORT}")


def _is_free(family: socket.AddressFamily, kind: socket.SocketKind, host: str, port: int) -> bool:
    with socket.socket(family, kind) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
