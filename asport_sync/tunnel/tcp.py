"""TCP: public listeners on the server, the local service on the client, and the workers that relay what moves much.

Connections and bytes are the engine's: it accepts, dials and relays. Python decides where a listener and the local
service are, dials where that takes more than one known address, and lends threads.
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

from asport_sync.engine import Connection, Engine, Listener, Stream, StreamBegun, StreamBulk, StreamEnded, StreamResult
from asport_sync.errors import EngineClosed, EngineError, LocalProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import Timer, Timers
from asport_sync.wire import Address, proxy_header

_OPEN_TRIES = 60  # times that a listener is tried to be taken into service
_LINE_PERIOD = 60.0  # seconds between two lines on connections that the local service does not take for one reason
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, by which descriptors or memory are there again or never
_ENGINE_DIAL_TIMEOUT = 1.0  # seconds for the engine to connect; then a worker tries, with all the time there is
# Lines a second about streams that have ended, at level info. A crowd of short connections must not cost more to be
# written down than to be served: a line takes Python about as long as the engine takes for two connections.
_LINES_PER_SECOND = 200
_EVERY_LINE = 0xFFFFFFFF  # at level debug
_NAME_LASTS = 10.0  # seconds that the address which a name led to is dialled without looking the name up again


class Relays:
    """Knows what becomes of streams: reports their ends, and finds workers for those that move much. Any thread.

    Args:
        engine: Relays.
        workers: Where relaying threads come from.
        most: Streams relayed by workers at the same time.
        counters: Where drops are counted.
        log: Gets one line for each stream: at level info of 200 a second at most, at level debug of all, and of
            their beginnings.
        place: What such a line begins with, for streams of a connection.
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
        """Tells the engine how many workers there are, and whether anybody reads of ends."""
        most = _LINES_PER_SECOND if self._log.isEnabledFor(logging.INFO) else 0
        every = self._log.isEnabledFor(logging.DEBUG)
        self._engine.report_streams(_EVERY_LINE if every else most, begins=every)
        if self._most > 0:
            self._engine.share_streams(self._most)

    def attach(self, stream: Stream, sock: socket.socket, label: str) -> None:
        """Has the engine relay. The socket is taken over."""
        try:
            stream.attach(sock)
        except EngineClosed:
            sock.close()
            self._counters.add("streams_gone_before_relay")
            self._log.info("%s: the QUIC connection ended before the relay began", label)
        except EngineError as problem:
            # Nobody can relay the stream: whoever waits at its other end must not wait for ever.
            sock.close()  # the engine has done that already, but for what it did not come to
            self._counters.add("streams_dropped_no_relay")
            self._limit.warning(self._log, "%s dropped: %s", label, problem)
            with contextlib.suppress(EngineClosed):
                stream.reset()

    def bulk(self, event: StreamBulk) -> None:
        """A stream that moves much: a worker relays it from here on."""
        label = self._label(event)
        began = time.monotonic() - event.lasted
        if not self._workers.offer(self._work, event.stream, event.sock, label, began):
            # Nobody relays the stream now, so it must not wait until one of those that dial is back.
            self.attach(event.stream, event.sock, label)
            self._share_one()

    def begun(self, event: StreamBegun) -> None:
        """The engine relays a stream from now on."""
        self._log.debug("%s: begins", self._label(event))

    def ended(self, event: StreamEnded) -> None:
        """The engine is done with a stream."""
        if event.left_out:
            self._log.info("%d connections more have ended, too many for a line each", event.left_out)
        self._report(self._label(event), event.lasted, event.result)

    def _work(self, stream: Stream, sock: socket.socket, label: str, began: float) -> None:
        # A worker.
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
            self._limit.warning(self._log, "%s: no worker can relay it: %s", label, problem)
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

    def _label(self, event: StreamBegun | StreamBulk | StreamEnded) -> str:
        peer = sockets.text(event.peer) if event.peer else "an unnamed peer"
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
        sock: Listens already; stays the caller's.
        timers: Of the events thread.
        counters: Where failures are counted.
        log: Gets the errors.
        limit: Keeps repeated errors from filling the log; shared by all listeners.
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
        self._opening: Timer | None = None  # the next try to open
        self._failures = 0  # to open

    def open(self) -> None:
        """Begins to accept, now or as soon as the engine has the means."""
        try:
            self._listener = self._connection.accept(self._sock)
        except EngineClosed:
            return
        except EngineError as problem:
            self._not_opened(problem)
        else:
            if self._failures:
                self._log.info("port %d accepts now", self._port)

    def close(self) -> None:
        """Accepts no more. Connections that were accepted live on. Idempotent."""
        if self._opening is not None:
            self._opening.cancel()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(EngineClosed):
                listener.close()

    def failed(self, error: int) -> None:
        """The engine has trouble with it."""
        if error == 0:
            what = "connections dropped: too many wait for the client"
        elif error == errno.EDQUOT:
            what = "has its share of the descriptors and few are free; more connections wait (LimitNOFILE, ulimit -n)"
        else:
            what = f"accept failed: {os.strerror(error)}"
        self._limit.warning(self._log, "port %d: %s", self._port, what, kind=error, source=self._port)

    def _not_opened(self, problem: EngineError) -> None:
        self._counters.add("listener_open_errors")
        self._failures += 1
        if self._failures == _OPEN_TRIES:
            self._log.error("port %d does not accept: %s", self._port, problem)
            return
        if self._failures == 1:
            self._log.warning("port %d does not accept yet: %s; trying again", self._port, problem)
        self._opening = self._timers.after(_PAUSE_BETWEEN_OPENS, self.open)


@dataclass
class LocalService:
    """The TCP service that a client makes public. Any number of workers.

    The engine dials it alone where that takes one known address: at once where the configuration names one, and for a
    while after a worker has found which one a name leads to. Everything else is done here.

    Attributes:
        host: Name or IP literal; a name is looked up again after 10 s.
        port: Its port.
        dial_timeout: Seconds for each address.
        proxy_version: Version of the PROXY header in front of the data; None: none.
        relays: Who gets the connections.
        stop: Ends dialling.
        counters: Where failures are counted.
        log: Gets one line a minute for each kind of failure, with how many there were; at level debug one for each.
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
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards the next line
    _told: dict[int, float] = field(default_factory=dict, repr=False)  # connection -> until when the engine knows
    _limit: RateLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._limit = RateLimit(1, _LINE_PERIOD, self.clock)

    def announce(self, connection: Connection) -> None:
        """Lets the engine dial, where it can: the connection may bring streams from now on."""
        if sockets.is_literal(self.host):
            self._tell(connection, (self.host, self.port), float("inf"))

    def forget(self, connection: Connection) -> None:
        """The connection is over."""
        with self._lock:
            self._told.pop(connection.id, None)

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        """Connects to the service and relays. Where that fails the public peer's connection is reset.

        Args:
            connection: To the server.
            stream: Its new stream.
            source: The public peer, as the server says it.
            public: The public address and port, for the PROXY header.
        """
        label = f"connection from {source or 'an unnamed peer'}"
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
            self._refuse(stream, label, f"{target} can't be reached: {problem.strerror or problem}", problem.errno)
        else:
            self.log.debug("%s: begins", label)
            self.relays.attach(stream, sock, label)
            self._tell(connection, address, _NAME_LASTS)

    def _tell(self, connection: Connection, address: sockets.SocketAddress, lasts: float) -> None:
        if self.proxy_version is not None:
            return
        now = self.clock()
        with self._lock:
            # Once is enough for a crowd of streams; and once it is over the next worker tells again.
            if now < self._told.get(connection.id, now):
                return
            self._told[connection.id] = now + lasts
        try:
            connection.dial(address, min(self.dial_timeout, _ENGINE_DIAL_TIMEOUT), lasts)
        except EngineClosed:
            self.forget(connection)  # once more, for a worker that came after its end

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
            self.log.debug("%s: was over already", label)
