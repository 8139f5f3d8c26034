"""The identity of this machine, and watches for changes of its addresses and routes and for suspend.

Both watches run in a ``SelectorThread`` and need no thread of their own.
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

from asport_sync.forked import new_socket
from asport_sync.hidden import HiddenBytes
from asport_sync.runtime import sockets
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.sockets import SocketAddress

_log = logging.getLogger("asport_sync.runtime")

# linux/rtnetlink.h: links, and addresses and routes of both families.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# Seconds: an interface that comes up causes a dozen messages; any number of messages costs at most ten checks per
# second.
_SETTLE = 0.1
_READ = 65536  # bytes at a time; the content of the messages is ignored

_JUMP = 2.0  # seconds that count as suspend: well above the delay between two readings on a busy machine


# machine-id(5), and D-Bus's copy on systems without systemd.
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_MACHINE_ID = re.compile(rb"[0-9a-f]{32}\n?")


def machine_id() -> bytes | None:
    """Returns this machine's unique ID as 32 hexadecimal digits; constant as long as the system is installed.

    machine-id(5) requires that it stays confidential: only a keyed hash of it may leave the program.

    Returns:
        None if the system has none. An empty file, and "uninitialized" during the first boot, count as none.
    """
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError), path.open("rb") as file:
            found = file.read(64)
            if _MACHINE_ID.fullmatch(found):
                return HiddenBytes(found.rstrip(b"\n"))
    return None


class _Route:
    """A server, and the local address that the kernel last chose towards it."""

    __slots__ = ("before", "changed", "server")

    def __init__(self, server: SocketAddress, before: str | None, changed: Callable[[], object]) -> None:
        self.server = server
        self.before = before
        self.changed = changed


class NetworkWatch:
    """Reports when this machine's local address towards a server changes.

    The kernel is asked for that address whenever rtnetlink(7) reports a change, so changes of unrelated networks are
    ignored. All methods except ``close`` must be called in ``thread``.

    Args:
        thread: The thread it runs in.
    """

    def __init__(self, thread: SelectorThread) -> None:
        self._thread = thread
        self._socket: socket.socket | None = None
        self._routes: dict[object, _Route] = {}  # by owner

    def open(self) -> None:
        """Starts watching. If the system does not support it, logs that at level debug and reports nothing."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = new_socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except (OSError, AttributeError) as problem:
            _log.debug("network changes cannot be detected: %s", problem)
            self.close()
            return
        self._thread.watch(self._socket, self._told)

    def watch_route(self, owner: object, server: SocketAddress, changed: Callable[[], object]) -> None:
        """Records the address towards a server that is new or has changed. Later changes are compared with it.

        Must be called for each new server before its path can have changed.

        Args:
            owner: Whose server it is; replaces the owner's previous one.
            server: The server.
            changed: Called in the thread. There is a route to the server at that time; it may be lost again soon.
        """
        route = self._routes.get(owner)
        if route is None or route.server != server:
            self._routes[owner] = _Route(server, _address_towards(server), changed)

    def unwatch_route(self, owner: object) -> None:
        """Forgets the owner's server, if it has one."""
        self._routes.pop(owner, None)

    def close(self) -> None:
        """Closes the socket. The thread must have ended, or never have watched it."""
        if self._socket is not None:
            self._socket.close()

    def _told(self) -> None:
        assert self._socket is not None
        # ENOBUFS: messages were lost, which also means that there was a change.
        with contextlib.suppress(OSError):
            while self._socket.recv(_READ):
                pass
        self._thread.pause(self._socket, _SETTLE)
        self._thread.after(_SETTLE, self._check)

    def _check(self) -> None:
        addresses = {server: _address_towards(server) for server in {route.server for route in self._routes.values()}}
        for route in list(self._routes.values()):
            now = addresses[route.server]
            if now != route.before:
                route.before = now
                _log.debug("this machine's address towards the server is %s", now)
                if now is not None:
                    route.changed()


def _address_towards(server: SocketAddress) -> str | None:
    """Returns the source address that the kernel would choose; None if there is no route."""
    try:
        with sockets.connected_udp(server) as sock:
            return sockets.local_address(sock)[0]
    except OSError:
        return None


class SleepWatch:
    """Reports when this machine was suspended: CLOCK_BOOTTIME advances then, CLOCK_MONOTONIC does not.

    All methods except ``close`` must be called in ``thread``.

    Args:
        thread: The thread it runs in.
        descriptor: Readable when the clocks should be compared; reading may fail. Owned by this object.
        resumed: Called in the thread.
        asleep: Seconds that this machine has been suspended since some fixed moment.
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
        """Returns the descriptor."""
        return self._descriptor

    def open(self) -> None:
        """Starts watching."""
        self._before = self._asleep()
        self._thread.watch(self, self._look)

    def close(self) -> None:
        """Closes the descriptor. The thread must have ended, or never have watched it."""
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
    """Returns the seconds that this machine was suspended since boot; 0 if the system does not report it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    monotonic = time.monotonic()  # read first, so that the difference is never negative
    return 0.0 if clock is None else time.clock_gettime(clock) - monotonic
