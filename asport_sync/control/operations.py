"""What the control socket and the status address can ask of a client or a server, and do to it."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import time
from typing import Any, Generic, Protocol, TypeVar

from asport_sync._version import __version__
from asport_sync.control.status import DRAINING, Row, Status, drops_of
from asport_sync.errors import AsportError, EngineClosedError, LifecycleError
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import Lifecycle
from asport_sync.host.reload import Reloaded
from asport_sync.host.stats import Side, Stats
from asport_sync.runtime import log

_log = log.logger("control")

HEALTH_TIMEOUT = 2.0
"""Seconds that the engine and the events thread get to answer; both need microseconds unless they hang."""

SHORTEST_PREFIX = 8
"""Characters of a UUID that the table shows, and that are accepted in its place."""


class UnknownNameError(AsportError):
    """There is no tunnel or user of this name."""


class Operations(Protocol):
    """One client or one server. Any thread; every method may block for a moment.

    Attributes:
        side: Which of the two.
    """

    side: Side

    def snapshot(self) -> tuple[Status, Stats]:
        """Returns the current state and the statistics, of one moment; without figures unless it is running."""

    def reload(self) -> dict[str, Any]:
        """Reads the configuration again; returns what has changed and what needs a restart.

        Raises:
            ConfigError: Something in it is wrong, and nothing has changed.
            EngineError: The engine lacks memory.
            LifecycleError: It is not running or cannot reload now, or no file has its configuration.
        """

    def drain(self) -> int:
        """Stops accepting connections; returns how many are open.

        Raises:
            LifecycleError: It is not running.
        """

    def disconnect(self, name: str) -> int:
        """Closes the QUIC connections of a tunnel (client) or user (server), who may connect again.

        Args:
            name: The tunnel's name; the user's UUID, a beginning of it that no other has, or the user's name.

        Returns:
            How many there were.

        Raises:
            LifecycleError: It is not running, or the tunnel was removed at this moment.
            UnknownNameError: There is no such tunnel, or no such user is connected.
        """

    def log_level(self, level: str | None = None) -> str:
        """Sets the level of the log unless it is None; returns the current one.

        Raises:
            UnknownNameError: There is no such level.
        """

    def problem(self) -> str | None:
        """Returns what does not answer within ``HEALTH_TIMEOUT``; None: everything does."""

    def unready(self) -> str | None:
        """Returns what is missing until visitors can connect (client) or clients can (server); None: nothing.

        "draining" while nothing new is accepted.
        """

    def count_refusal(self) -> None:
        """Counts a request that was refused."""


AnyEnd = TypeVar("AnyEnd", bound="Lifecycle[Any, Any]")


class LifecycleOperations(abc.ABC, Generic[AnyEnd]):
    """What a client and a server have in common.

    Args:
        end: The client or the server; need not be started.
        side: Which of the two.
    """

    def __init__(self, end: AnyEnd, side: Side) -> None:
        self._end = end
        self.side = side

    def snapshot(self) -> tuple[Status, Stats]:
        """See ``Operations``."""
        stats: Stats = self._end.stats()
        fields: dict[str, Any] = {}
        if stats.uptime is not None:
            fields = {"uptime": stats.uptime, **self._fields(stats)}
            fields["drops"] = drops_of(self.side, engine=stats.engine, counters=stats.counters)
            fields |= self._draining(fields.get("tunnels", ()))
        status = Status(
            side=self.side.value,
            version=__version__,
            pid=os.getpid(),
            running=stats.running,
            time=time.monotonic(),
            summary=self._summary(),
            file=None if self._end._file is None else str(self._end._file.resolve()),
            **fields,
        )
        return status, stats

    def _draining(self, rows: tuple[Row, ...]) -> dict[str, Any]:
        """Returns the fields of ``Status`` that differ while it drains, given the rows without that."""
        try:
            since = self._host().draining_since
        except LifecycleError:
            return {}
        if since is None:
            return {}
        draining = (dataclasses.replace(row, state=DRAINING, since=since) for row in rows)
        return {"draining": True, "tunnels": tuple(draining)}

    @abc.abstractmethod
    def _fields(self, stats: Any) -> dict[str, Any]:
        """Returns the fields of ``Status`` that depend on the side, above all the rows."""

    def reload(self) -> dict[str, Any]:
        """See ``Operations``."""
        done: Reloaded = self._end.reload()
        return {"changes": list(done.changes), "needs_restart": list(done.needs_restart)}

    def drain(self) -> int:
        """See ``Operations``."""
        self._end.drain()
        return sum(row.connections + row.associations for row in self.snapshot()[0].tunnels)

    @abc.abstractmethod
    def disconnect(self, name: str) -> int:
        """See ``Operations``."""

    def log_level(self, level: str | None = None) -> str:
        """See ``Operations``."""
        if level is not None:
            if level not in log.LEVELS:
                raise UnknownNameError(f"no such log level: {level}; expected one of {', '.join(log.LEVELS)}")
            log.set_level(level)
            with contextlib.suppress(LifecycleError, EngineClosedError):
                self._host().relays.level_changed()
        return log.level()

    def problem(self) -> str | None:
        """See ``Operations``."""
        try:
            return self._host().unresponsive(HEALTH_TIMEOUT)
        except (LifecycleError, EngineClosedError):
            return "not running"

    def unready(self) -> str | None:
        """See ``Operations``."""
        status, _ = self.snapshot()
        if not status.running:
            return "not running"
        if status.draining:
            return DRAINING
        missing = [row for row in status.tunnels if self.side is Side.CLIENT and row.public is None]
        return f"{len(missing)} of {len(status.tunnels)} tunnels are not public" if missing else None

    def count_refusal(self) -> None:
        """See ``Operations``."""
        with contextlib.suppress(LifecycleError):
            self._host().count_refused_request()

    def _host(self) -> Host:
        """Returns the host.

        Raises:
            LifecycleError: Not running.
        """
        host: Host = self._end._running().host
        return host

    def _summary(self) -> str:
        try:
            return self._host().status
        except (LifecycleError, EngineClosedError):
            return "not running"


def user_named(name: str, rows: tuple[Row, ...]) -> str:
    """Returns the UUID of the connected user that a UUID, a beginning of one, or a name means.

    Raises:
        UnknownNameError: There is none, or there are several.
    """
    users = {row.user: row.user_name for row in rows if row.user is not None}
    found = [user for user, its_name in users.items() if user == name.lower() or its_name == name]
    if not found and len(name) >= SHORTEST_PREFIX:
        found = [user for user in users if user.startswith(name.lower())]
    if len(found) > 1:
        raise UnknownNameError(f"several users begin with {name}")
    if not found:
        raise UnknownNameError(f"no connected user: {name}")
    return found[0]
