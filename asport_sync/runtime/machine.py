"""Which machine this is, and what happens to it: its addresses and routes change, or it was asleep.

Both watches belong to a ``SelectorThread``, whose calls they are made of, and cost no thread of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from asport_sync.forked import kept_from_children
from asport_sync.hidden import HiddenBytes
from asport_sync.runtime import sockets
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.sockets import SocketAddress

_log = logging.getLogger("asport_sync.runtime")

# linux/rtnetlink.h: links, and addresses and routes of both families.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# Seconds: an interface that comes up says so in a dozen messages; and however many come, they cost ten looks a second.
_SETTLE = 0.1
_READ = 65536  # bytes at a time; what the messages say does not matter

_JUMP = 2.0  # seconds that count as sleep: well above what a busy machine puts between two readings


# machine-id(5), and where D-Bus keeps the same on systems without systemd.
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_MACHINE_ID = re.compile(rb"[0-9a-f]{32}\n?")


def machine_id() -> bytes | None:
    """What tells this machine, as 32 hexadecimal digits, from all others; the same as long as it is installed.

    To be kept from others, says machine-id(5): only what is made of it by a keyed hash may leave the program.

    Returns:
        None where the system has none. An empty file, and "uninitialized" while a machine starts for the first time,
        are none.
    """
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError), path.open("rb") as file:
            found = file.read(64)
            if _MACHINE_ID.fullmatch(found):
                return HiddenBytes(found.rstrip(b"\n"))
    return None


class NetworkWatch:
    """Says when the address that this machine has towards a server has become another one.

    That is asked of the kernel whenever rtnetlink(7) tells of a change, so that what has to do with other networks is
    nobody's concern. All methods but ``close``: the thread.

    Args:
        thread: Where it lives.
        towards: The server; None: not known yet.
        changed: Called in the thread. There is a way to the server then, which need not be true for long.
    """

    def __init__(
        self, thread: SelectorThread, towards: Callable[[], SocketAddress | None], changed: Callable[[], None]
    ) -> None:
        self._thread = thread
        self._towards = towards
        self._changed = changed
        self._socket: socket.socket | None = None
        self._server: SocketAddress | None = None  # that _before is the address towards
        self._before: str | None = None

    def open(self) -> None:
        """Begins to watch. Where the system has no such thing a line at level debug says so, and nothing follows."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = kept_from_children(socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE))
            self._socket.bind((0, _GROUPS))
        except (OSError, AttributeError) as problem:
            _log.debug("changes of the network are not noticed: %s", problem)
            self.close()
            return
        self.look_again()
        self._thread.watch(self._socket, self._told)

    def look_again(self) -> None:
        """Takes note of the address towards a server that has become known, or become another one.

        Later changes are compared with that one. To be called for each new server before its path can have changed.
        """
        server = self._towards()
        if server != self._server:
            self._server, self._before = server, _address_towards(server)

    def close(self) -> None:
        """Frees the socket. The thread has ended, or never watched it."""
        if self._socket is not None:
            self._socket.close()

    def _told(self) -> None:
        assert self._socket is not None
        # ENOBUFS: there was more than the kernel keeps, which says as much.
        with contextlib.suppress(OSError):
            while self._socket.recv(_READ):
                pass
        self._thread.pause(self._socket, _SETTLE)
        self._thread.after(_SETTLE, self._look)

    def _look(self) -> None:
        self.look_again()
        now = _address_towards(self._server)
        if now == self._before:
            return
        self._before = now
        _log.debug("this machine's address towards the server is %s", now)
        if now is not None:
            self._changed()


def _address_towards(server: SocketAddress | None) -> str | None:
    """The address that the kernel would send from; None: there is no way."""
    if server is None:
        return None
    try:
        with sockets.connected_udp(server) as sock:
            return sockets.local_address(sock)[0]
    except OSError:
        return None


class SleepWatch:
    """Says when this machine was asleep: CLOCK_BOOTTIME goes on then, and CLOCK_MONOTONIC does not.

    All methods but ``close``: the thread.

    Args:
        thread: Where it lives.
        descriptor: Readable when it is time to look at the clocks; reading may fail. Belongs to this object.
        resumed: Called in the thread.
        asleep: Seconds that this machine has been asleep since some moment.
    """

    def __init__(
        self, thread: SelectorThread, descriptor: int, resumed: Callable[[], None], asleep: Callable[[], float]
    ) -> None:
        self._thread = thread
        self._descriptor = descriptor
        self._resumed = resumed
        self._asleep = asleep
        self._before = 0.0

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def open(self) -> None:
        """Begins to watch."""
        self._before = self._asleep()
        self._thread.watch(self, self._look)

    def close(self) -> None:
        """Frees the descriptor. The thread has ended, or never watched it."""
        os.close(self._descriptor)

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self._descriptor, 8)
        now = self._asleep()
        before, self._before = self._before, now
        if now - before > _JUMP:
            _log.debug("this machine was asleep for %.1f s", now - before)
            self._resumed()


def asleep_since_boot() -> float:
    """Seconds that this machine has been asleep; 0 where the system does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    monotonic = time.monotonic()  # first, so that the difference is never negative
    return 0.0 if clock is None else time.clock_gettime(clock) - monotonic
