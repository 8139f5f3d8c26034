"""A session: one client tunnel, or one server. Any number of sessions share a host."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable

from asport_sync.engine import Connection, Event
from asport_sync.errors import HandleGoneError
from asport_sync.host.host import Host
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import Log, RateLimit


def is_busy(connection: Connection) -> bool:
    """Returns whether a TCP connection or a UDP association is open on a connection. Any thread.

    Raises:
        GoneError: The connection is over, or the host stopped.
    """
    info = connection.info()
    return bool(info.relays or info.streams or info.associations)


class Session(abc.ABC):
    """Base of ``ClientSession`` and ``ServerSession``.

    The host calls ``prepare`` and ``open`` once each, in this order, and ``close`` once its threads have ended, or once
    the session has ended after ``end``.

    Args:
        host: The host that it belongs to.
        log: Receives its log lines.
        counters: Counts what it does; None: the counters of the host.
        limit: Rate limit of its log lines; None: that of the host.
    """

    def __init__(self, host: Host, log: Log, counters: Counters | None = None, limit: RateLimit | None = None) -> None:
        self.host = host
        self.log = log
        self.counters = host.counters if counters is None else counters
        self.limit = host.limit if limit is None else limit

    @property
    @abc.abstractmethod
    def status(self) -> str:
        """The current state in one line, for the service manager. Any thread."""

    @property
    def ready(self) -> bool:
        """Whether it does what it was started for. Any thread."""
        return True

    @abc.abstractmethod
    def prepare(self) -> None:
        """Reads files. The starting thread; may block.

        Raises:
            ConfigError: A file isn't usable.
        """

    @abc.abstractmethod
    def open(self) -> None:
        """Opens what is visible from outside. The events thread.

        Raises:
            ConfigError: It can't be opened.
        """

    @abc.abstractmethod
    def handle(self, event: Event) -> None:
        """Handles an event of one of its connections. The events thread; must not block."""

    def stream_label(self, connection: Connection) -> str:
        """Returns the prefix of log lines about streams of a connection. The events thread."""
        return ""

    @abc.abstractmethod
    def drain(self) -> None:
        """Stops accepting anything new; what is open goes on. The events thread. May be called again."""

    @abc.abstractmethod
    def connections(self) -> list[Connection]:
        """Returns its QUIC connections. Any thread."""

    def is_idle(self) -> bool:
        """Returns whether no TCP connection is open and no UDP association is left. Any thread.

        Raises:
            EngineClosedError: The host is stopped.
        """
        for connection in self.connections():
            with contextlib.suppress(HandleGoneError):
                if is_busy(connection):
                    return False
        return True

    @abc.abstractmethod
    def end(self, grace_period: float, ended: Callable[[], object]) -> None:
        """Closes its connections and begins nothing new. The events thread; must not block. Called at most once.

        Args:
            grace_period: Seconds that what is open gets to end by itself.
            ended: Called in the events thread as soon as there are no connections left, which may be now.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what it opened. The events thread and the pump have ended, or its connections have."""
