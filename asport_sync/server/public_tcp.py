"""The TCP side of a public port. The events thread.

The engine accepts (``_native/engine/tcp.c``). Python decides when it begins and ends, and what becomes of failures.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket

from asport_sync.engine import Connection, Listener
from asport_sync.errors import EngineError, GoneError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.timers import Timer, Timers

_OPEN_TRIES = 60  # maximum number of attempts to open a listener
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, after which a lack of descriptors or memory counts as permanent


class PublicListener:
    """The TCP side of a client's public port.

    Args:
        connection: The client's.
        sock: Already listening; stays the caller's.
        timers: The events thread's.
        counters: Counts failures.
        log: Receives the errors.
        limit: Rate limit of repeated errors; shared by all listeners.
        for_workers: Whether its streams have workers from their beginning.
    """

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        timers: Timers,
        counters: Counters,
        log: logging.Logger,
        limit: RateLimit,
        *,
        for_workers: bool = False,
    ) -> None:
        self._connection = connection
        self._sock = sock
        self._timers = timers
        self._port = sockets.local_address(sock)[1]
        self._counters = counters
        self._log = log
        self._limit = limit
        self._for_workers = for_workers
        self._listener: Listener | None = None
        self._opening: Timer | None = None  # the next attempt to open
        self._failures = 0  # failed attempts to open

    def open(self) -> None:
        """Begins to accept, now or as soon as the engine has the resources."""
        try:
            self._listener = self._connection.accept(self._sock, for_workers=self._for_workers)
        except GoneError:
            return
        except EngineError as problem:
            self._not_opened(problem)
        else:
            if self._failures:
                self._log.info("port %d: accepting connections now", self._port)

    def close(self) -> None:
        """Stops accepting. Accepted connections continue. Idempotent."""
        if self._opening is not None:
            self._opening.cancel()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(GoneError):
                listener.close()

    def failed(self, error: int) -> None:
        """Logs an error that the engine reports for the listener."""
        if error == 0:
            what = "connections dropped: too many are waiting for the client"
        elif error == errno.EDQUOT:
            what = (
                "its fair share of descriptors is used up and few are free; further connections wait in the backlog "
                "(LimitNOFILE, ulimit -n)"
            )
        else:
            what = f"accept failed: {os.strerror(error)}"
        self._limit.warning(self._log, "port %d: %s", self._port, what, kind=error, source=self._port)

    def _not_opened(self, problem: EngineError) -> None:
        self._counters.add("listener_open_errors")
        self._failures += 1
        if self._failures == _OPEN_TRIES:
            self._log.error("port %d: cannot accept connections: %s", self._port, problem)
            return
        if self._failures == 1:
            self._log.warning("port %d: cannot accept connections yet: %s; retrying", self._port, problem)
        self._opening = self._timers.after(_PAUSE_BETWEEN_OPENS, self.open)
