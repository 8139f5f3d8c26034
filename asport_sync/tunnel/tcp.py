"""TCP: public listeners on the server, the local service on the client, and who relays a stream."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from dataclasses import dataclass

from asport_sync.engine import Connection, Stream, StreamResult
from asport_sync.errors import EngineClosed, EngineError, LifecycleError, LocalProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import Slots, StopSignal, WorkerPool
from asport_sync.wire import Address, Connect, encode, proxy_header

_ACCEPTS_PER_TURN = 64  # then the other listeners have their turn
_PAUSE_WITHOUT_RESOURCES = 0.1  # seconds until accept() is tried again when descriptors or memory have run out
_PAUSE_AFTER_ERROR = 1.0  # seconds after an error that says nothing about when it will be over


class Relays:
    """Gives each stream and its TCP socket to a worker, or to the engine's own loop where no worker is free.

    Any thread.

    Args:
        workers: Where relaying threads come from.
        most: Streams relayed by workers at the same time. Each costs a thread; when thousands of them end at once, they
            queue for the interpreter lock.
        counters: Where endings are counted.
        log: Gets one line for each stream.
    """

    def __init__(self, workers: WorkerPool, most: int, counters: Counters, log: logging.Logger) -> None:
        self._workers = workers
        self._slots = Slots(most)
        self._counters = counters
        self._log = log
        self._limit = RateLimit()
        self._lock = threading.Lock()  # guards _attached
        self._attached: dict[int, tuple[str, float]] = {}  # stream id -> what to call it, when it began

    def hand_over(self, stream: Stream, sock: socket.socket, label: str) -> None:
        """Relays in the background. The socket is taken over."""
        if not self._slots.take():
            self._attach(stream, sock, label)
            return
        try:
            self._workers.submit(self._relay, stream, sock, label)
        except (LifecycleError, RuntimeError):
            # Stopped, or the system has no thread to spare: the engine can do without one.
            self._slots.give_back()
            self._attach(stream, sock, label)

    def run(self, stream: Stream, sock: socket.socket, label: str) -> None:
        """Relays in this worker, until the end or until the engine has taken over. The socket is taken over."""
        if self._slots.take():
            self._relay(stream, sock, label)
        else:
            self._attach(stream, sock, label)

    def ended(self, stream: Stream, result: StreamResult) -> None:
        """The engine is done with a stream that it relayed."""
        with self._lock:
            label, began = self._attached.pop(stream.id, ("stream", time.monotonic()))
        self._report(label, began, result)

    def _relay(self, stream: Stream, sock: socket.socket, label: str) -> None:
        # A worker, which has taken a place.
        began = time.monotonic()
        try:
            result = stream.relay(sock)
        except EngineClosed:
            sock.close()
            self._gone(label)
        except EngineError as problem:
            # Most likely no descriptor is left to wake this thread with. The engine's own loop needs none.
            self._counters.add("relays_without_worker")
            self._limit.warning(self._log, "%s: no worker can relay it: %s", label, problem)
            self._attach(stream, sock, label)
        except BaseException:
            sock.close()
            raise
        else:
            sock.close()
            self._report(label, began, result)
        finally:
            self._slots.give_back()

    def _attach(self, stream: Stream, sock: socket.socket, label: str) -> None:
        with self._lock:
            self._attached[stream.id] = (label, time.monotonic())
        try:
            stream.attach(sock)
        except EngineError as problem:
            sock.close()  # the engine has done that already, but for what it did not come to
            with self._lock:
                self._attached.pop(stream.id, None)
            if isinstance(problem, EngineClosed):
                self._gone(label)
            else:
                self._drop(stream, label, problem)

    def _drop(self, stream: Stream, label: str, problem: EngineError) -> None:
        """Nobody can relay the stream: whoever waits at its other end must not wait for ever."""
        self._counters.add("streams_dropped_no_relay")
        self._limit.warning(self._log, "%s dropped: %s", label, problem)
        with contextlib.suppress(EngineClosed):
            stream.reset()

    def _gone(self, label: str) -> None:
        self._counters.add("streams_gone_before_relay")
        self._log.info("%s: the QUIC connection ended before the relay began", label)

    def _report(self, label: str, began: float, result: StreamResult) -> None:
        self._counters.add(f"streams_{result.end.name.lower()}")
        self._log.info(
            "%s: %s after %.1f s, %d bytes to the tunnel, %d bytes from it",
            label,
            result.describe(),
            time.monotonic() - began,
            result.sent,
            result.received,
        )


class PublicListener:
    """The TCP side of a client's public port: each connection becomes a stream. All methods: the acceptor thread.

    Args:
        acceptor: The thread.
        relays: Who gets the connections.
        connection: The client's.
        sock: Listens already; stays the caller's.
        counters: Where drops are counted.
        log: Gets the errors.
        limit: Keeps repeated errors from filling the log; shared by all listeners.
    """

    def __init__(
        self,
        acceptor: SelectorThread,
        relays: Relays,
        connection: Connection,
        sock: socket.socket,
        counters: Counters,
        log: logging.Logger,
        limit: RateLimit,
    ) -> None:
        self._acceptor = acceptor
        self._relays = relays
        self._connection = connection
        self._sock = sock
        self._port = sockets.local_address(sock)[1]
        self._counters = counters
        self._log = log
        self._limit = limit

    def open(self) -> None:
        """Begins to accept."""
        self._acceptor.watch(self._sock, self._readable)

    def close(self) -> None:
        """Accepts no more. Connections that were accepted live on."""
        self._acceptor.unwatch(self._sock)

    def _readable(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                accepted = sockets.accept(self._sock)
            except OSError as problem:
                self._failed(problem)
                return
            if accepted is None or not self._take(*accepted):
                return

    def _failed(self, problem: OSError) -> None:
        # Never the end of a listener: the tunnel would stay up and look well, and nobody could reach it.
        self._counters.add("accept_errors")
        self._limit.warning(self._log, "port %d: accept failed: %s", self._port, problem.strerror)
        short = problem.errno in sockets.OUT_OF_RESOURCES
        self._acceptor.pause(self._sock, _PAUSE_WITHOUT_RESOURCES if short else _PAUSE_AFTER_ERROR)

    def _take(self, sock: socket.socket, peer: sockets.SocketAddress) -> bool:
        """Opens a stream for a connection; returns whether the next may be accepted."""
        try:
            stream = self._connection.open_stream(encode(Connect(Address.from_text(*peer))))
        except EngineClosed:
            sock.close()
            self._acceptor.unwatch(self._sock)
            return False
        except EngineError as problem:
            sock.close()
            self._counters.add("connections_dropped_stream_limit")
            self._limit.warning(
                self._log, "port %d: connection from %s dropped: %s", self._port, sockets.text(peer), problem
            )
            return True
        self._counters.add("connections_accepted")
        self._relays.hand_over(stream, sock, f"port {self._port}: connection from {sockets.text(peer)}")
        return True


@dataclass(frozen=True)
class LocalService:
    """The TCP service that a client makes public. Any number of workers.

    Attributes:
        host: Name or IP literal; a name is resolved for every connection.
        port: Its port.
        dial_timeout: Seconds for each address.
        proxy_version: Version of the PROXY header in front of the data; None: none.
        relays: Who gets the connections.
        stop: Ends dialling.
        counters: Where failures are counted.
        log: Gets one line for each failure.
    """

    host: str
    port: int
    dial_timeout: float
    proxy_version: int | None
    relays: Relays
    stop: StopSignal
    counters: Counters
    log: logging.Logger

    def serve(self, stream: Stream, source: Address | None) -> None:
        """Connects to the service and relays. Where that fails the public peer sees an orderly end without data."""
        label = f"connection from {source or 'an unnamed peer'}"
        try:
            sock = self._connect(source)
        except sockets.Stopped:
            return
        except LocalProtocolError as problem:
            self.counters.add("connections_dropped_no_source")
            self._refuse(stream, label, str(problem))
        except OSError as problem:
            self.counters.add("connections_dropped_local_service")
            target = sockets.text((self.host, self.port))
            self._refuse(stream, label, f"{target} can't be reached: {problem.strerror or problem}")
        else:
            self.relays.run(stream, sock, label)

    def _connect(self, source: Address | None) -> socket.socket:
        addresses = sockets.resolve(self.host, self.port, socket.SOCK_STREAM)
        sock = sockets.dial_tcp(addresses, self.dial_timeout, self.stop)
        try:
            if self.proxy_version is not None:
                target = Address.from_text(*sockets.remote_address(sock))
                sock.sendall(proxy_header.tcp_header(self.proxy_version, source, target))
        except BaseException:
            sock.close()
            raise
        return sock

    def _refuse(self, stream: Stream, label: str, why: str) -> None:
        self.log.warning("%s dropped: %s", label, why)
        try:
            stream.refuse()
        except EngineClosed:
            self.log.debug("%s: was over already", label)
