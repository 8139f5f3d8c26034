"""The local TCP service: dialled by the engine where one known IP address suffices, else by workers."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from asport_sync.client.address_order import AddressOrder, dial
from asport_sync.config import HostPort
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
# Seconds for which the engine dials an address without another look-up of its name, or another choice among several.
_CHOICE_LASTS = 10.0


@dataclass
class LocalService:
    """The TCP service that a client makes public. Any number of workers.

    Without a PROXY header, the engine dials alone if that takes one known IP address: at once if the configuration
    names one, and for a while after a worker has found which of several addresses, or of those that a name resolves to,
    answers. Everything else is done here, also connections to unix sockets. With workers for all streams, the worker
    that dials relays as well.

    Attributes:
        order: Where the service is; a name is looked up again after 10 s.
        dial_timeout: Seconds for each address.
        proxy_version: Version of the PROXY header before the data; None: no header.
        relays: Takes the connections.
        stop: Ends dialling.
        counters: Counts failures.
        log: Receives one line per minute for each kind of failure, with the number of failures; at level debug one for
            each.
        place: Prefix of the log lines of relays, which do not know the tunnel.
        failed: Called by a worker with the reason why a connection was dropped.
    """

    order: AddressOrder
    dial_timeout: float
    proxy_version: int | None
    relays: Relays
    stop: StopSignal
    counters: Counters
    log: Log
    place: str = ""
    failed: Callable[[str], object] = lambda why: None
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards _engine_dials
    # By connection: the address that the engine dials, and until when; no address: it is to dial no more.
    _engine_dials: dict[int, tuple[sockets.SocketAddress | None, float]] = field(default_factory=dict, repr=False)
    _limit: RateLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._limit = RateLimit(1, _LINE_PERIOD, self.clock)

    def announce(self, connection: Connection) -> None:
        """Lets the engine dial, if it can: streams may arrive on the connection from now on."""
        first = self.order.in_order()[0]
        if isinstance(first, HostPort) and sockets.is_literal(first.host):
            self._let_engine_dial(connection, first)

    def forget(self, connection: Connection) -> None:
        """Forgets a connection that is over."""
        with self._lock:
            self._engine_dials.pop(connection.id, None)

    def drain(self, connection: Connection) -> None:
        """Lets the engine dial no more.

        Raises:
            GoneError: The connection is over.
        """
        with self._lock:
            self._engine_dials[connection.id] = None, math.inf
            connection.dial(None)

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
            why = f"cannot reach {self.order.local}: {problem.strerror or problem}"
            self._refuse(stream, label, why, problem.errno)
        else:
            self.log.debug("%s: relay started", label)
            label = self.place + label
            if self.relays.takes_all:
                visitor = None if source is None else (str(source.ip), source.port)
                self.relays.relay_here(connection, visitor, stream, sock, label)
                return
            self.relays.attach(stream, sock, label)
            if address is not None:
                self._let_engine_dial(connection, address)

    def _let_engine_dial(self, connection: Connection, address: sockets.SocketAddress) -> None:
        if self.proxy_version is not None or self.relays.takes_all:
            return
        # Nothing else can be chosen if this is all that the configuration names.
        lasts = float("inf") if self.order.local.addresses == (address,) else _CHOICE_LASTS
        now = self.clock()
        with self._lock:
            # One call is enough for many streams; once it has expired, the next worker repeats it.
            known, until = self._engine_dials.get(connection.id, (address, now))
            if now < until and known in (address, None):
                return
            self._engine_dials[connection.id] = address, now + lasts
            try:
                connection.dial(address, min(self.dial_timeout, _ENGINE_DIAL_TIMEOUT), lasts)
            except GoneError:
                del self._engine_dials[connection.id]  # the connection may have ended before this worker added it

    def _connect(self, source: Address | None, public: Address) -> tuple[socket.socket, sockets.SocketAddress | None]:
        sock, address = self._dial()
        try:
            if self.proxy_version is not None:
                sock.sendall(proxy_header.tcp_header(self.proxy_version, source, public))
        except BaseException:
            sock.close()
            raise
        return sock, address

    def _dial(self) -> tuple[socket.socket, sockets.SocketAddress | None]:
        problem = OSError()
        for address in self.order.in_order():
            try:
                dialled = dial(address, self.dial_timeout, self.stop)
            except OSError as error:
                problem = error
            else:
                self.order.answered(address)
                return dialled
        raise problem

    def _refuse(self, stream: Stream, label: str, why: str, kind: Hashable) -> None:
        self.failed(why)
        if not self._limit.warning(self.log, "%s dropped: %s", label, why, kind=kind):
            self.log.debug("%s dropped: %s", label, why)
        try:
            stream.refuse()
        except GoneError:
            self.log.debug("%s: stream already closed", label)
