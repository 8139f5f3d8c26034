"""The bandwidth limits of a server's users and of its entries of ``proxies``. The events thread."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import NamedTuple

from asport_sync.config import Bandwidth
from asport_sync.engine import Connection, Direction
from asport_sync.host.bandwidth import BandwidthLimit
from asport_sync.host.host import Host
from asport_sync.runtime.log import Log
from asport_sync.server.policy import User


class _Limited(NamedTuple):
    """A connection's user, and the limits that it has until its end."""

    user: uuid.UUID
    own: BandwidthLimit
    of_entry: BandwidthLimit


class Bandwidths:
    """All limits that open connections have. A user or entry without a limit has one that may be set later.

    Args:
        host: The session's host.
        log: Receives the log lines of the limits.
    """

    def __init__(self, host: Host, log: Log) -> None:
        self._host = host
        self._log = log
        self._open: dict[Connection, _Limited] = {}
        self._users: dict[uuid.UUID, BandwidthLimit] = {}  # those with open connections, as is the next one
        self._entries: dict[int, BandwidthLimit] = {}  # by their number

    def enter(self, connection: Connection, user: User) -> None:
        """Applies the limits of a user and of their entry to a connection of theirs.

        Raises:
            GoneError: The connection is over.
        """
        if user.uuid not in self._users:
            self._users[user.uuid] = self._limit(f"user {user.label}", user.bandwidth)
        if user.entry not in self._entries:
            self._entries[user.entry] = self._limit(f"proxies[{user.entry}]", user.entry_bandwidth)
        limited = _Limited(user.uuid, self._users[user.uuid], self._entries[user.entry])
        self._open[connection] = limited
        limited.own.enter(connection)
        limited.of_entry.enter(connection)

    def _limit(self, label: str, bandwidth: Bandwidth | None) -> BandwidthLimit:
        limit = BandwidthLimit(self._host, self._log, label, Direction.SENT)
        limit.set(bandwidth)
        return limit

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that is over. Idempotent."""
        limited = self._open.pop(connection, None)
        if limited is None:
            return
        limited.own.leave(connection)
        limited.of_entry.leave(connection)
        if limited.own.is_unused:
            limited.own.close()
            del self._users[limited.user]
        if limited.of_entry.is_unused:
            limited.of_entry.close()
            self._entries = {entry: limit for entry, limit in self._entries.items() if limit is not limited.of_entry}

    def update(self, users: Mapping[uuid.UUID, User]) -> None:
        """Changes the limits of open connections to what their users and entries have now.

        The number of an entry may have changed. If its users are in several entries now, the limit that their open
        connections share becomes that of the first. If several entries are one now, open connections keep the limits
        that they have, each with the rates of that entry; new ones get the first.
        """
        self._entries = {}
        updated: set[BandwidthLimit] = set()
        for limited in self._open.values():
            user = users.get(limited.user)
            if user is None:
                continue
            limited.own.set(user.bandwidth)
            if limited.of_entry not in updated:
                updated.add(limited.of_entry)
                limited.of_entry.set(user.entry_bandwidth)
                self._entries.setdefault(user.entry, limited.of_entry)

    def close(self) -> None:
        """Frees what the engine has of the limits."""
        for limited in self._open.values():
            limited.own.close()
            limited.of_entry.close()
        self._open.clear()
