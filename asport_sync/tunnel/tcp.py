"""TCP: public listeners on the server, the local service on the client, and the workers that relay large transfers.

The engine accepts, dials and relays. Python decides where a listener and the local service are, dials when that takes
more than one known address, and lends threads.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from asport_sync.engine import (
    Connection,
    Engine,
    Listener,
    Stream,
    StreamBegun,
    StreamEnded,
    StreamLargeTransfer,
    StreamResult,
)
from asport_sync.errors import EngineClosed, EngineError, LocalProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import Timer, Timers
from asport_sync.wire import Address, proxy_header

_OPEN_TRIES = 60  # maximum number of attempts to open a listener
_LINE_PERIOD = 60.0  # seconds between two log lines about connections dropped for the same reason
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, after which a lack of descriptors or memory counts as permanent
_ENGINE_DIAL_TIMEOUT = 1.0  # seconds for the engine to connect; then a worker tries, with the full timeout
# Maximum log lines per second about ended streams, at level info. Logging many short connections must not cost more
# than serving them: a line takes Python about as long as the engine takes for two connections.
_LINES_PER_SECOND = 200
_EVERY_LINE = 0xFFFFFFFF  # at level debug
_NAME_LASTS = 10.0  # seconds for which the address that a name resolved to is dialled without another look-up


class Relays:
    """Logs the ends of streams, and provides workers for large transfers. Any thread.

    Args:
        engine: Relays the streams.
        workers: Provides the relaying threads.
        most: Maximum number of streams relayed by workers at the same time.
        counters: Counts drops.
        log: Receives one line for each stream: at level info for at most 200 per second, at level debug for all, and
            for their beginnings.
        place: Returns the prefix of such a line, for streams of a connection.
    """

    def __init__(
        self,
        engine: Engine,
        workers: WorkerPool,
        most: int,
        counters: Counters,
        log: logging.Logger,
        place: Callable[[Connection], str],
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._most = most
        self._counters = counters
        self._log = log
        self._place = place
        self._limit = RateLimit()

    def begin(self) -> None:
        """Tells the engine how many workers there are, and which ends of streams to report."""
        most = _LINES_PER_SECOND if self._log.isEnabledFor(logging.INFO) else 0
        every = self._log.isEnabledFor(logging.DEBUG)
        self._engine.report_streams(_EVERY_LINE if every else most, begins=every)
        if self._most > 0:
            self._engine.share_streams(self._most)

    def attach(self, stream: Stream, sock: socket.socket, label: str) -> None:
        """Lets the engine relay. Takes ownership of the socket."""
        try:
            stream.attach(sock)
        except EngineClosed:
            sock.close()
            self._counters.add("streams_gone_before_relay")
            self._log.info("%s: the QUIC connection ended before the relay started", label)
        except EngineError as problem:
            # Nothing can relay the stream, and its peer must not wait forever.
            sock.close()  # no effect if ``attach`` has already taken the descriptor
            self._counters.add("streams_dropped_no_relay")
            self._limit.warning(self._log, "%s dropped: %s", label, problem)
            with contextlib.suppress(EngineClosed):
                stream.reset()

    def large_transfer(self, event: StreamLargeTransfer) -> None:
        """Hands a large transfer to a worker, which relays it from here on."""
        label = self._label(event)
        began = time.monotonic() - event.lasted
        if not self._workers.offer(self._work, event.stream, event.sock, label, began):
            # The stream is not relayed now, so it must not wait until a worker that dials is free.
            self.attach(event.stream, event.sock, label)
            self._share_one()

    def begun(self, event: StreamBegun) -> None:
        """Logs that the engine relays a stream from now on."""
        self._log.debug("%s: relay started", self._label(event))

    def ended(self, event: StreamEnded) -> None:
        """Logs that a stream has ended."""
        if event.left_out:
            self._log.info("%d more connections closed (log rate limit)", event.left_out)
        self._report(self._label(event), event.lasted, event.result)

    def _work(self, stream: Stream, sock: socket.socket, label: str, began: float) -> None:
        # Worker thread.
        try:
            self._relay(stream, sock, label, began)
        finally:
            self._share_one()

    def _relay(self, stream: Stream, sock: socket.socket, label: str, began: float) -> None:
        try:
            result = stream.relay(sock)
        except EngineClosed:
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
            self._report(label, time.monotonic() - began, result)

    def _share_one(self) -> None:
        with contextlib.suppress(EngineClosed):
            self._engine.share_streams(1)

    def _label(self, event: StreamBegun | StreamLargeTransfer | StreamEnded) -> str:
        peer = sockets.text(event.peer) if event.peer else "an unknown address"
        return f"{self._place(event.connection)}connection from {peer}"

    def _report(self, label: str, lasted: float, result: StreamResult) -> None:
        self._log.info(
            "%s: %s after %.1f s, %d bytes to the tunnel, %d bytes from it",
            label,
            result.describe(),
            lasted,
            result.sent,
            result.received,
        )


class PublicListener:
    """The TCP side of a client's public port. The events thread.

    Args:
        connection: The client's.
        sock: Already listening; stays the caller's.
        timers: The events thread's.
        counters: Counts failures.
        log: Receives the errors.
        limit: Rate limit of repeated errors; shared by all listeners.
    """

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        timers: Timers,
        counters: Counters,
        log: logging.Logger,
        limit: RateLimit,
    ) -> None:
        self._connection = connection
        self._sock = sock
        self._timers = timers
        self._port = sockets.local_address(sock)[1]
        self._counters = counters
        self._log = log
        self._limit = limit
        self._listener: Listener | None = None
        self._opening: Timer | None = None  # the next attempt to open
        self._failures = 0  # failed attempts to open

    def open(self) -> None:
        """Begins to accept, now or as soon as the engine has the resources."""
        try:
            self._listener = self._connection.accept(self._sock)
        except EngineClosed:
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
            with contextlib.suppress(EngineClosed):
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


@dataclass
class LocalService:
    """The TCP service that a client makes public. Any number of workers.

    Without a PROXY header, the engine dials alone if that takes one known address: at once if the configuration names
    one, and for a while after a worker has found the address that a name resolves to. Everything else is done here.

    Attributes:
        host: Name or IP literal; a name is looked up again after 10 s.
        port: Its port.
        dial_timeout: Seconds for each address.
        proxy_version: Version of the PROXY header before the data; None: no header.
        relays: Takes the connections.
        stop: Ends dialling.
        counters: Counts failures.
        log: Receives one line per minute for each kind of failure, with the number of failures; at level debug one for
            each.
    """

    host: str
    port: int
    dial_timeout: float
    proxy_version: int | None
    relays: Relays
    stop: StopSignal
    counters: Counters
    log: logging.Logger
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards _told
    _told: dict[int, float] = field(default_factory=dict, repr=False)  # connection -> when the engine's knowledge ends
    _limit: RateLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._limit = RateLimit(1, _LINE_PERIOD, self.clock)

    def announce(self, connection: Connection) -> None:
        """Lets the engine dial, if it can: streams may arrive on the connection from now on."""
        if sockets.is_literal(self.host):
            self._tell(connection, (self.host, self.port), float("inf"))

    def forget(self, connection: Connection) -> None:
        """Forgets a connection that is over."""
        with self._lock:
            self._told.pop(connection.id, None)

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        """Connects to the service and relays. If that fails, the visitor's connection is reset.

        Args:
            connection: To the server.
            stream: Its new stream.
            source: The visitor, as reported by the server.
            public: The public address and port, for the PROXY header.
        """
        label = f"connection from {source or 'an unknown address'}"
        try:
            sock, address = self._connect(source, public)
        except sockets.Stopped:
            return
        except LocalProtocolError as problem:
            self.counters.add("connections_dropped_no_source")
            self._refuse(stream, label, str(problem), "no source")
        except OSError as problem:
            self.counters.add("connections_dropped_local_service")
            target = sockets.text((self.host, self.port))
            self._refuse(stream, label, f"cannot reach {target}: {problem.strerror or problem}", problem.errno)
        else:
            self.log.debug("%s: relay started", label)
            self.relays.attach(stream, sock, label)
            self._tell(connection, address, _NAME_LASTS)

    def _tell(self, connection: Connection, address: sockets.SocketAddress, lasts: float) -> None:
        if self.proxy_version is not None:
            return
        now = self.clock()
        with self._lock:
            # One call is enough for many streams; once it has expired, the next worker repeats it.
            if now < self._told.get(connection.id, now):
                return
            self._told[connection.id] = now + lasts
        try:
            connection.dial(address, min(self.dial_timeout, _ENGINE_DIAL_TIMEOUT), lasts)
        except EngineClosed:
            self.forget(connection)  # again, in case the connection ended before this worker added it

    def _connect(self, source: Address | None, public: Address) -> tuple[socket.socket, sockets.SocketAddress]:
        addresses = sockets.resolve(self.host, self.port, socket.SOCK_STREAM)
        sock, address = sockets.dial_tcp(addresses, self.dial_timeout, self.stop)
        try:
            if self.proxy_version is not None:
                sock.sendall(proxy_header.tcp_header(self.proxy_version, source, public))
        except BaseException:
            sock.close()
            raise
        return sock, address

    def _refuse(self, stream: Stream, label: str, why: str, kind: Hashable) -> None:
        if not self._limit.warning(self.log, "%s dropped: %s", label, why, kind=kind):
            self.log.debug("%s dropped: %s", label, why)
        try:
            stream.refuse()
        except EngineClosed:
            self.log.debug("%s: stream already closed", label)
