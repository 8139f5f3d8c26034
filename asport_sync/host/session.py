"""A session: one client tunnel, or one server. Any number of sessions share a host."""

from __future__ import annotations

import abc
import logging

from asport_sync.engine import Connection, Event
from asport_sync.host.host import Host
from asport_sync.host.stats import Stats


class Session(abc.ABC):
    """Base of ``ClientSession`` and ``ServerSession``.

    The host calls ``prepare`` and ``open`` once each, in this order, and ``close`` once its threads have ended.

    Args:
        host: The host that it belongs to.
        log: Receives its log lines.
    """

    def __init__(self, host: Host, log: logging.Logger) -> None:
        self.host = host
        self.log = log

    @property
    @abc.abstractmethod
    def status(self) -> str:
        """The current state in one line, for the service manager. Any thread."""

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
    def close(self) -> None:
        """Frees what it opened. The events thread and the pump have ended."""

    @abc.abstractmethod
    def stats(self) -> Stats:
        """Returns its statistics and those of its host. Any thread.

        Raises:
            EngineClosedError: The host is stopped.
        """
