"""The local TCP service: dialled by the engine where one known address suffices, else by workers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from asport_sync.engine import Connection, Stream
from asport_sync.errors import GoneError, LocalProtocolError
from asport_sync.host.relays import Relays
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import Log, RateLimit
from asport_sync.runtime.threads import StopSignal
from asport_sync.wire import Address, proxy_header

_LINE_PERIOD = 60.0  # seconds between two log lines about connections dropped for the same reason
_ENGINE_DIAL_TIMEOUT = 1.0  # seconds for the engine to connect; then a worker tries, with the full timeout
_NAME_LASTS = 10.0  # seconds for which the address that a name resolved to is dialled without another look-up


@dataclass
class LocalService:
    """The TCP service that a client makes public. Any number of workers.

    Without a PROXY header, the engine dials alone if that takes one known address: at once if the configuration names
    one, and for a while after a worker has found the address that a name resolves to. Everything else is done here.
    With workers for all streams, the worker that dials relays as well.

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
        place: Prefix of the log lines of relays, which do not know the tunnel.
    """

    host: str
    port: int
    dial_timeout: float
    proxy_version: int | None
    relays: Relays
    stop: StopSignal
    counters: Counters
    log: Log
    place: str = ""
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards _dialling_until
    _dialling_until: dict[int, float] = field(
        default_factory=dict, repr=False
    )  # connection -> when the engine's knowledge ends
    _limit: RateLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._limit = RateLimit(1, _LINE_PERIOD, self.clock)

    def announce(self, connection: Connection) -> None:
        """Lets the engine dial, if it can: streams may arrive on the connection from now on."""
        if sockets.is_literal(self.host):
            self._let_engine_dial(connection, (self.host, self.port), float("inf"))

    def forget(self, connection: Connection) -> None:
        """Forgets a connection that is over."""
        with self._lock:
            self._dialling_until.pop(connection.id, None)

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
            label = self.place + label
            if self.relays.takes_all:
                self.relays.relay_here(stream, sock, label)
                return
            self.relays.attach(stream, sock, label)
            self._let_engine_dial(connection, address, _NAME_LASTS)

    def _let_engine_dial(self, connection: Connection, address: sockets.SocketAddress, lasts: float) -> None:
        if self.proxy_version is not None or self.relays.takes_all:
            return
        now = self.clock()
        with self._lock:
            # One call is enough for many streams; once it has expired, the next worker repeats it.
            if now < self._dialling_until.get(connection.id, now):
                return
            self._dialling_until[connection.id] = now + lasts
        try:
            connection.dial(address, min(self.dial_timeout, _ENGINE_DIAL_TIMEOUT), lasts)
        except GoneError:
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
        except GoneError:
            self.log.debug("%s: stream already closed", label)
