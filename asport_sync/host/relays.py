"""Relays of TCP connections: by the engine, or by workers for large transfers or for all; their ends are logged."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable

from asport_sync.engine import (
    Connection,
    Engine,
    SocketAddress,
    Stream,
    StreamBegun,
    StreamEnded,
    StreamLargeTransfer,
    StreamResult,
)
from asport_sync.errors import EngineClosedError, EngineError, GoneError
from asport_sync.host.visits import Visits
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.threads import Slots, WorkerPool

# Maximum log lines per second about ended streams, at level info. Logging many short connections must not cost more
# than serving them: a line takes Python about as long as the engine takes for two connections.
_LINES_PER_SECOND = 200
_EVERY_LINE = 0xFFFFFFFF  # at level debug


class Relays:
    """Logs the ends of streams, and provides workers: for large transfers, or for every stream. Any thread.

    Args:
        engine: Relays the streams.
        workers: Provides the relaying threads.
        max_workers: Maximum number of streams relayed by workers at the same time.
        counters: Counts drops.
        log: Receives one line for each stream: at level info for at most 200 per second, at level debug for all, and
            for their beginnings.
        place: Returns the prefix of such a line, for streams of a connection.
        visits: The access log; None: there is none.
        takes_all: Whether every stream has a worker from its first byte to its last, as long as one is free.
    """

    def __init__(
        self,
        engine: Engine,
        workers: WorkerPool,
        max_workers: int,
        counters: Counters,
        log: logging.Logger,
        place: Callable[[Connection], str],
        *,
        takes_all: bool = False,
        visits: Visits | None = None,
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._max_workers = max_workers
        self._counters = counters
        self._log = log
        self._place = place
        self._limit = RateLimit()
        self._lines = RateLimit(
            _LINES_PER_SECOND, 1.0, max_per_source=_LINES_PER_SECOND
        )  # of streams that workers relay
        self._free = Slots(max_workers)  # for streams that a worker dials itself
        self._visits = visits
        self.takes_all = takes_all

    def begin(self) -> None:
        """Tells the engine how many workers there are, and which streams to report."""
        self.level_changed()
        if self._max_workers > 0:
            self._engine.share_streams(self._max_workers)

    def level_changed(self) -> None:
        """Tells the engine which beginnings and ends of streams to report at the current log level. Any thread.

        Raises:
            EngineClosedError: The engine is stopped.
        """
        lines = _LINES_PER_SECOND if self._log.isEnabledFor(logging.INFO) else 0
        every = self._log.isEnabledFor(logging.DEBUG)
        self._engine.report_streams(_EVERY_LINE if every or self._visits is not None else lines, begins=every)

    def attach(self, stream: Stream, sock: socket.socket, label: str) -> None:
        """Lets the engine relay. Takes ownership of the socket."""
        try:
            stream.attach(sock)
        except GoneError:
            sock.close()
            self._counters.add("streams_gone_before_relay")
            self._log.info("%s: the QUIC connection ended before the relay started", label)
        except EngineError as problem:
            # Nothing can relay the stream, and its peer must not wait forever.
            sock.close()  # no effect if ``attach`` has already taken the descriptor
            self._counters.add("streams_dropped_no_relay")
            self._limit.warning(self._log, "%s dropped: %s", label, problem)
            with contextlib.suppress(GoneError):
                stream.reset()

    def relay_here(
        self, connection: Connection, visitor: SocketAddress | None, stream: Stream, sock: socket.socket, label: str
    ) -> None:
        """Relays in the calling worker until the end, if a worker is free for that; otherwise lets the engine relay.

        Takes ownership of the socket.
        """
        if not self._free.take():
            self._counters.add("relays_all_workers_busy")
            self.attach(stream, sock, label)
            return
        try:
            self._relay(connection, visitor, stream, sock, label, time.monotonic())
        finally:
            self._free.give_back()

    def stream_large_transfer(self, event: StreamLargeTransfer) -> None:
        """Hands a stream to a worker, which relays it from here on."""
        label = self._label(event)
        began = time.monotonic() - event.lasted
        if not self._workers.offer(self._work, event, label, began):
            # The stream is not relayed now, so it must not wait until a worker that dials is free.
            self.attach(event.stream, event.sock, label)
            self._share_one()

    def stream_begun(self, event: StreamBegun) -> None:
        """Logs that the engine relays a stream from now on."""
        self._log.debug("%s: relay started", self._label(event))

    def stream_ended(self, event: StreamEnded) -> None:
        """Logs that a stream has ended."""
        if self._visits is None:
            if event.left_out:
                self._log.info("%d more connections closed (log rate limit)", event.left_out)
            self._report(self._label(event), event.lasted, event.result)
            return
        if event.left_out:
            self._visits.left_out(event.left_out)
        self._visits.stream_ended(event.connection, event.peer, event.lasted, event.result)
        if self._log.isEnabledFor(logging.INFO):
            self._report(self._label(event), event.lasted, event.result, self._log_line)

    def _work(self, event: StreamLargeTransfer, label: str, began: float) -> None:
        # Worker thread.
        try:
            self._relay(event.connection, event.peer, event.stream, event.sock, label, began)
        finally:
            self._share_one()

    def _relay(
        self,
        connection: Connection,
        visitor: SocketAddress | None,
        stream: Stream,
        sock: socket.socket,
        label: str,
        began: float,
    ) -> None:
        try:
            result = stream.relay(sock)
        except GoneError:
            sock.close()
        except EngineError as problem:
            # Most likely no descriptor is left to wake this thread with. The engine's own loop needs none.
            self._counters.add("relays_without_worker")
            self._limit.warning(self._log, "%s: no worker can relay it: %s; the engine relays it", label, problem)
            self.attach(stream, sock, label)
        except BaseException:
            sock.close()
            raise
        else:
            sock.close()
            lasted = time.monotonic() - began
            if self._visits is not None:
                self._visits.stream_ended(connection, visitor, lasted, result)
            self._report(label, lasted, result, self._log_line)

    def _share_one(self) -> None:
        with contextlib.suppress(EngineClosedError):
            self._engine.share_streams(1)

    def _label(self, event: StreamBegun | StreamLargeTransfer | StreamEnded) -> str:
        peer = sockets.text(event.peer) if event.peer else "an unknown address"
        return f"{self._place(event.connection)}connection from {peer}"

    def _log_line(self, text: str, *arguments: object) -> None:
        """Logs the end of a stream that a worker has relayed, as often as the engine reports those of its own."""
        if self._log.isEnabledFor(logging.DEBUG):
            self._log.info(text, *arguments)
        else:
            self._lines.log(logging.INFO, self._log, text, *arguments)

    def _report(
        self, label: str, lasted: float, result: StreamResult, log: Callable[..., object] | None = None
    ) -> None:
        (log or self._log.info)(
            "%s: %s after %.1f s, %d bytes to the tunnel, %d bytes from it",
            label,
            result.describe(),
            lasted,
            result.sent,
            result.received,
        )
