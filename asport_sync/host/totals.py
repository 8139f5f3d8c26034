"""What the connections of each tunnel or user have moved since the start, also those that have ended."""

from __future__ import annotations

import threading
from typing import TypeAlias

from asport_sync.engine import Connection, ConnectionTotals

MAX_NAMES = 16384
"""Tunnels or users that are remembered: more than clients of a server, by default. Each costs about 650 bytes."""


Name: TypeAlias = tuple[str, str]
"""Whose connections are counted together: the client's tunnel, empty if it has no name and on a server; and the UUID of
the user."""

OTHERS: Name = ("other", "other")
"""All those together that are not remembered any more."""


class Totals:
    """Totals that only increase. Any thread.

    Beyond ``max_names`` the totals of those whose latest connection ended first become part of ``OTHERS``.

    Args:
        max_names: Maximum of names, unless more have open connections.
    """

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._lock = threading.Lock()  # guards everything below
        # Connections that have ended, by name; the name whose latest connection began or ended last comes last.
        self._ended: dict[Name, ConnectionTotals] = {}
        # Open connections, with the latest figures that anyone has read: one that has just ended is in no statistics
        # until its last event is handled, and must not be missing meanwhile.
        self._open: dict[Connection, tuple[Name, ConnectionTotals]] = {}

    def begin(self, connection: Connection, name: Name) -> None:
        """A connection of a tunnel or user is open."""
        with self._lock:
            self._add(name, ConnectionTotals())
            self._open[connection] = (name, ConnectionTotals())
            self._forget_some()

    def read(self, connection: Connection, totals: ConnectionTotals) -> None:
        """These are current figures of a connection."""
        with self._lock:
            if connection in self._open:
                name, latest = self._open[connection]
                self._open[connection] = (name, latest.maximum(totals))  # another thread may have read later ones

    def end(self, connection: Connection, totals: ConnectionTotals) -> None:
        """A connection has ended with these figures. Does nothing about one that was not begun."""
        with self._lock:
            name, _ = self._open.pop(connection, (None, None))
            if name is not None:
                self._add(name, totals)

    def snapshot(self) -> dict[Name, ConnectionTotals]:
        """Returns the totals of all names."""
        with self._lock:
            found = dict(self._ended)
            for name, latest in self._open.values():
                found[name] += latest
            return found

    def of(self, name: Name) -> ConnectionTotals:
        """Returns the totals of one name."""
        with self._lock:
            found = self._ended.get(name, ConnectionTotals())
            for each, latest in self._open.values():
                if each == name:
                    found += latest
            return found

    def _add(self, name: Name, totals: ConnectionTotals) -> None:
        """Adds to what a name has, which becomes the last one. The lock is held, as in the next one."""
        self._ended[name] = self._ended.pop(name, ConnectionTotals()) + totals

    def _forget_some(self) -> None:
        if len(self._ended) <= self._max_names:
            return
        in_use = {name for name, _ in self._open.values()}
        for name in [each for each in self._ended if each not in in_use and each != OTHERS]:
            if len(self._ended) <= self._max_names:
                return
            self._add(OTHERS, self._ended.pop(name))
