"""An engine without a network: the methods of the real one, recording what is asked for; the test plays the peer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

from asport_sync import engine as real
from asport_sync.errors import EngineClosedError, EngineError, HandleGoneError
from asport_sync.wire import token

LIMIT = -5  # AQ_ERR_LIMIT
GONE = -2  # AQ_ERR_GONE
PEER = ("192.0.2.7", 40000)
_WAKE = object()  # ends a wait without an event


def gone() -> HandleGoneError:
    return HandleGoneError(GONE, "gone")


class FakeStream:
    """A stream; ``relay`` lasts until ``finish``."""

    _ids = itertools.count(1)

    def __init__(self, header: bytes) -> None:
        self.id = next(self._ids)
        self.header = header
        self.said: list[str] = []  # what was done with it, in order
        self.result = real.StreamResult(3, 4, real.StreamEnd.FINISHED)
        self.attached: socket.socket | None = None
        self.relay_problem: Exception | None = None
        self.attach_problem: EngineError | None = None
        self._over = threading.Event()

    def finish(self) -> None:
        self._over.set()

    def relay(self, sock: socket.socket) -> real.StreamResult:
        self.said.append("relay")
        if self.relay_problem is not None:
            raise self.relay_problem
        assert self._over.wait(30)
        return self.result

    def attach(self, sock: socket.socket) -> None:
        self.said.append("attach")
        taken = socket.socket(fileno=sock.detach())
        if self.attach_problem is not None:
            taken.close()
            raise self.attach_problem
        self.attached = taken

    def refuse(self) -> None:
        self.said.append("refuse")

    def reset(self, code: int = 1) -> None:
        self.said.append("reset")


class FakeListener:
    """A listening socket in a connection's service."""

    _ids = itertools.count(1)

    def __init__(self, sock: socket.socket) -> None:
        self.id = next(self._ids)
        self.sock = sock
        self.closed = False

    def close(self) -> None:
        if self.closed:
            raise gone()
        self.closed = True


class FakeBucket:
    """A token bucket: its rates, and what the test says that it has dropped."""

    def __init__(self, rate: int) -> None:
        self.rates = [rate]  # as they were set
        self.dropped = 0
        self.closed = False

    def set_rate(self, rate: int) -> None:
        assert not self.closed
        self.rates.append(rate)

    def info(self) -> real.BucketInfo:
        if self.closed:
            raise gone()
        return real.BucketInfo(self.rates[-1], 0, self.dropped)

    def close(self) -> None:
        if self.closed:
            raise gone()
        self.closed = True


class FakeGroup:
    """Connections that share a public port."""

    def __init__(self, balance: real.Balance) -> None:
        self.balances = [balance]  # as they were set
        self.members: list[FakeConnection] = []  # in the order in which they joined
        self.closed = False

    def set_balance(self, balance: real.Balance) -> None:
        assert not self.closed
        self.balances.append(balance)

    def close(self) -> None:
        if self.closed:
            raise gone()
        self.closed = True


class FakeUdpSocket:
    """A UDP socket in a connection's service. The engine's part of reading it is the test's."""

    _ids = itertools.count(1)

    def __init__(self, connection: FakeConnection, sock: socket.socket, public: bool) -> None:
        self.id = next(self._ids)
        self.connection = connection
        self.sock = sock
        self.public = public
        self.associations: dict[int, tuple[real.SocketAddress, bytes]] = {}
        self.locals: dict[int, real.SocketAddress | None] = {}
        self.refused: list[real.SocketAddress] = []
        self.refused_at: list[real.SocketAddress | None] = []
        self.reads = 0
        self.given_back = 0
        self.give_back_problem: EngineError | None = None
        self.refuses_associations = False
        self.moved: list[tuple[real.SocketAddress, bytes]] = []  # to where, with which prefix
        self.move_problem: EngineError | None = None
        self.closed = False

    def _check(self) -> None:
        if self.closed or self.connection.is_gone:
            raise gone()

    def receive(self) -> int:
        """Take what the socket holds."""
        self._check()
        self.reads += 1
        received = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.recv(65535, socket.MSG_DONTWAIT)
                received += 1
        return received

    def give_back(self) -> None:
        self._check()
        self.given_back += 1
        if self.give_back_problem is not None:
            raise self.give_back_problem

    def refuse(self, source: real.SocketAddress, local: real.SocketAddress | None = None) -> None:
        self._check()
        self.refused.append(source)
        self.refused_at.append(local)

    def add_association(
        self,
        association: int,
        peer: real.SocketAddress,
        prefix: bytes = b"",
        local: real.SocketAddress | None = None,
    ) -> None:
        self._check()
        if self.refuses_associations:
            raise EngineError(LIMIT, "the id or the source has an association already")
        self.associations[association] = (peer, prefix)
        self.locals[association] = local

    def move(self, sock: socket.socket, prefix: bytes = b"") -> None:
        self._check()
        if self.move_problem is not None:
            raise self.move_problem
        self.sock = sock
        self.moved.append((sock.getpeername(), prefix))

    def close(self) -> None:
        self._check()
        self.closed = True


class FakeConnection:
    """A connection. What is asked of it is kept in attributes of that name."""

    def __init__(self, engine: FakeEngine, number: int, peer: real.SocketAddress = PEER) -> None:
        self.engine = engine
        self.id = number
        self.peer = peer
        self.secret = f"secret {number}".encode()
        self.chain = b""
        self.sent: list[bytes] = []
        self.closed: tuple[int | None, float] | None = None
        self.joined: list[real.Carrier | None] = []
        self.asked = False  # which carrier it takes
        self.heartbeats: list[tuple[bytes, float]] = []
        self.probes: list[float] = []
        self.packets_received = 0
        self.datagram_limit = 1200  # 0: the peer takes no DATAGRAM frames
        self.silence = 60.0  # seconds
        self.migrations = 0
        self.migration_problem: EngineError | None = None
        self.exports = 0
        self.removed: list[int] = []
        self.refused_for_now: list[real.SocketAddress | None] = []
        self.idle: list[int] = []
        self.idle_asked: list[float] = []
        self.idle_hosts: list[str | None] = []  # of whom they had to be
        self.idle_max: list[int] = []
        self.unanswered: list[int] = []
        self.unanswered_asked: list[tuple[float, float]] = []
        self.streams: list[FakeStream] = []
        self.udp: list[FakeUdpSocket] = []
        self.listeners: list[FakeListener] = []
        self.dials: list[tuple[real.SocketAddress | None, float, float]] = []
        self.open_streams = 0
        self.buckets: list[tuple[FakeBucket, real.Direction]] = []
        self.limits: list[real.VisitorLimits] = []
        self.refused: list[int] = []  # associations that the rules do not permit any more
        self.keep_alive = 0.75  # seconds
        self.idle_timeout = 10.0
        self.is_gone = False

    def _check(self) -> None:
        if self.is_gone:
            raise gone()

    def close(self, code: int | None = 0, *, linger: float = 0.0) -> None:
        self._check()
        self.closed = (code, linger)
        if self.engine.closes_at_once:
            self.engine.post(closed(self, real.CloseCause.LOCAL))

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        self._check()
        self.exports += 1
        return exported(self.secret, label, context, length)

    def peer_chain(self) -> bytes:
        self._check()
        return self.chain

    def send(self, command: bytes) -> None:
        self._check()
        self.sent.append(command)

    def heartbeat(self, command: bytes, interval: float) -> None:
        self._check()
        self.heartbeats.append((command, interval))

    def set_joined(self, carrier: real.Carrier | None, *, ask: bool = False) -> None:
        self._check()
        self.joined.append(carrier)
        self.asked |= ask

    def probe(self, timeout: float, grace_period: float = 0.0) -> None:
        self._check()
        self.probes.append(timeout + grace_period)

    def migrate(self, sock: socket.socket) -> bool:
        self._check()
        assert sock.family is socket.AF_INET
        if self.migration_problem is not None:
            raise self.migration_problem
        self.migrations += 1
        return True

    def info(self) -> real.ConnectionInfo:
        self._check()
        figures: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(real.ConnectionInfo)}
        return real.ConnectionInfo(
            **{
                **figures,
                "peer": self.peer,
                "smoothed_rtt": 0.1,
                "packets_received": self.packets_received,
                "datagram_limit": self.datagram_limit,
                "streams": self.open_streams,
                "silence": self.silence,
                "keep_alive": self.keep_alive,
                "idle_timeout": self.idle_timeout,
            }
        )

    def use_bucket(self, bucket: FakeBucket, direction: real.Direction) -> None:
        self._check()
        self.buckets.append((bucket, direction))

    def accept(self, listener: socket.socket, *, for_workers: bool = False) -> FakeListener:
        self._check()
        self.listeners.append(FakeListener(listener))
        return self.listeners[-1]

    def dial(self, address: real.SocketAddress | None, timeout: float = 0.0, valid: float = float("inf")) -> None:
        self._check()
        self.dials.append((address, timeout, valid))

    def open_udp(self, sock: socket.socket, *, public: bool, for_pump: bool = False) -> FakeUdpSocket:
        self._check()
        self.udp.append(FakeUdpSocket(self, sock, public))
        return self.udp[-1]

    def remove_association(self, association: int) -> None:
        self._check()
        self.removed.append(association)

    def refuse_associations(self, source: real.SocketAddress | None, lasts: float) -> None:
        self._check()
        assert lasts > 0
        self.refused_for_now.append(source)

    def join(self, group: FakeGroup) -> None:
        self._check()
        assert not group.closed
        assert not self.listeners
        assert not self.udp
        group.members.append(self)

    def limit(self, limits: real.VisitorLimits) -> None:
        self._check()
        self.limits.append(limits)

    def refused_associations(self, maximum: int = 1024) -> list[int]:
        self._check()
        found, self.refused = self.refused[:maximum], self.refused[maximum:]
        return found

    def unanswered_associations(self, silence: float, recent: float, maximum: int = 1024) -> list[int]:
        self._check()
        self.unanswered_asked.append((silence, recent))
        return self.unanswered[:maximum]

    def idle_associations(self, idle: float, maximum: int = 1024, host: real.SocketAddress | None = None) -> list[int]:
        self._check()
        self.idle_asked.append(idle)
        self.idle_hosts.append(None if host is None else host[0])
        self.idle_max.append(maximum)
        found, self.idle = self.idle[:maximum], self.idle[maximum:]
        return found


def exported(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """What the exporter of both ends of a connection yields."""
    return hmac.digest(secret, label + b"|" + context, hashlib.sha512)[:length]


def token_of(connection: FakeConnection, user: Any, password: str) -> bytes:
    """The token that a client with this password would send."""
    return exported(connection.secret, token.label(user), token.context(password), token.TOKEN_LENGTH)


class FakeCredentials:
    """Credentials, and whether they were freed."""

    def __init__(self) -> None:
        self.freed = False

    def free(self) -> None:
        assert not self.freed
        self.freed = True


class FakeEndpoint(str):
    """The server's socket: equal to the text that events have."""

    def __init__(self, text: str) -> None:
        self.credentials: list[FakeCredentials] = []
        self.transports: list[real.Transport] = []
        self.transport_problem: EngineError | None = None
        self.limits: list[int] = []  # maximums of connections
        self.closed: bool | None = None  # with its connections or without

    def set_credentials(self, credentials: FakeCredentials) -> None:
        if self.closed is not None:
            raise gone()
        self.credentials.append(credentials)

    def set_transport(self, transport: real.Transport) -> None:
        if self.closed is not None:
            raise gone()
        if self.transport_problem is not None:
            raise self.transport_problem
        self.transports.append(transport)

    def limit(self, max_connections: int) -> None:
        if self.closed is not None:
            raise gone()
        self.limits.append(max_connections)

    def close(self, *, close_connections: bool = True) -> None:
        if self.closed is not None:
            raise gone()
        self.closed = close_connections


class FakeEngine:
    """The engine. ``post`` is the peer's way in; ``on_connect`` is called for each connection that a client opens."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.on_connect: Callable[[FakeConnection], None] = lambda connection: None
        self.started = 0
        self.closed = 0
        self.pings = 0
        self.reports_streams: int | None = None
        self.reports_begins = False
        self.reports_associations = False
        self.keepalive: float | None = None
        self.buckets: list[FakeBucket] = []
        self.groups: list[FakeGroup] = []
        self.shared: list[int] = []  # workers, as they were offered
        self.shares_udp: bool | None = None
        self.listening: list[dict[str, Any]] = []
        self.connecting: list[dict[str, Any]] = []
        self.credentials: list[dict[str, Any]] = []
        self.credentials_made: list[FakeCredentials] = []
        self.endpoints: list[FakeEndpoint] = []
        self.memory: int | None = None  # the receive budget
        self.credentials_problem: EngineError | None = None
        self.closes_at_once = False  # whether Closed follows the call that closes a connection
        self.certificates_found: list[real.Certificate] = []  # in whatever is looked at
        self.listen_problem: EngineError | None = None
        self.connect_problem: EngineError | OSError | None = None
        self._events: queue.SimpleQueue[real.Event | object | None] = queue.SimpleQueue()
        self._stopped = False

    def as_real(self) -> real.Engine:
        return cast(real.Engine, self)

    # --- what the tunnel calls ---

    def start(self) -> None:
        self.started += 1

    def ping(self) -> None:
        if self._stopped:
            raise EngineClosedError(-1, "stopped")
        self.pings += 1

    def report_streams(self, maximum: int, *, begins: bool = False) -> None:
        self.reports_streams, self.reports_begins = maximum, begins

    def report_associations(self, on: bool) -> None:
        self.reports_associations = on

    def receive_memory(self, maximum: int) -> None:
        self.memory = maximum

    def keep_streams_alive(self, idle: float) -> None:
        self.keepalive = idle

    def share_streams(self, workers: int) -> None:
        if self._stopped:
            raise EngineClosedError(-1, "stopped")
        self.shared.append(workers)

    def share_udp(self, on: bool) -> None:
        self.shares_udp = on

    def new_bucket(self, rate: int) -> FakeBucket:
        self.buckets.append(FakeBucket(rate))
        return self.buckets[-1]

    def new_group(self, balance: real.Balance) -> FakeGroup:
        self.groups.append(FakeGroup(balance))
        return self.groups[-1]

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            for connection in self.connections:
                if not connection.is_gone:
                    connection.is_gone = True
                    for stream in connection.streams:
                        stream.finish()
            self._events.put(None)

    def close(self) -> None:
        self.stop()
        self.closed += 1

    def wait(self, timeout: float | None = None) -> list[real.Event]:
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return []
        if event is None:
            raise EngineClosedError(-1, "stopped")
        return [] if event is _WAKE else [cast(real.Event, event)]

    def wake(self) -> None:
        self._events.put(_WAKE)

    def counters(self) -> dict[str, int]:
        return {**{each.name: 0 for each in real.COUNTERS}, "packets_sent": 1}

    def server_credentials(self, **options: Any) -> FakeCredentials:
        return self._credentials(options)

    def client_credentials(self, **options: Any) -> FakeCredentials:
        return self._credentials(options)

    def _credentials(self, options: dict[str, Any]) -> FakeCredentials:
        if self.credentials_problem is not None:
            raise self.credentials_problem
        self.credentials.append(options)
        self.credentials_made.append(FakeCredentials())
        return self.credentials_made[-1]

    def certificates(self, content: bytes) -> list[real.Certificate]:
        return self.certificates_found

    def listen(
        self, sock: socket.socket, credentials: FakeCredentials, transport: real.Transport, **options: Any
    ) -> FakeEndpoint:
        if self.listen_problem is not None:
            raise self.listen_problem
        self.listening.append({"address": sock.getsockname(), "transport": transport, **options})
        self.endpoints.append(FakeEndpoint("endpoint"))
        return self.endpoints[-1]

    def connect(
        self, sock: socket.socket, credentials: FakeCredentials, transport: real.Transport, **options: Any
    ) -> FakeConnection:
        if self._stopped:
            raise EngineClosedError(-1, "stopped")
        if self.connect_problem is not None:
            raise self.connect_problem
        self.connecting.append({"family": sock.family, "transport": transport, **options})
        connection = self.new_connection(options["remote"])
        self.on_connect(connection)
        return connection

    # --- what the test does ---

    def new_connection(self, peer: real.SocketAddress = PEER) -> FakeConnection:
        connection = FakeConnection(self, len(self.connections) + 1, peer)
        self.connections.append(connection)
        return connection

    def post(self, event: real.Event) -> None:
        self._events.put(event)


def connected(connection: FakeConnection, *, server: bool = True) -> real.Connected:
    return real.Connected(cast(Any, connection), cast(Any, "endpoint") if server else None, connection.peer, b"asport")


def closed(
    connection: FakeConnection,
    cause: real.CloseCause = real.CloseCause.LOCAL,
    code: int = 0,
    reason: str = "",
    endpoint: str | None = None,
    totals: real.ConnectionTotals | None = None,
) -> real.Closed:
    connection.is_gone = True
    moved = real.ConnectionTotals() if totals is None else totals
    return real.Closed(cast(Any, connection), cast(Any, endpoint), connection.peer, cause, code, reason, moved)


def command(
    connection: FakeConnection, data: bytes, carrier: real.Carrier = real.Carrier.STREAM
) -> real.CommandReceived:
    return real.CommandReceived(cast(Any, connection), data, carrier)


def violation(connection: FakeConnection, problem: str) -> real.Violation:
    return real.Violation(cast(Any, connection), problem)


def stream_opened(connection: FakeConnection, stream: FakeStream) -> real.StreamOpened:
    return real.StreamOpened(cast(Any, connection), cast(Any, stream), stream.header)


def stream_ended(
    connection: FakeConnection,
    stream: FakeStream,
    peer: real.SocketAddress | None = PEER,
    lasted: float = 1.5,
    left_out: int = 0,
) -> real.StreamEnded:
    return real.StreamEnded(cast(Any, connection), cast(Any, stream), peer, lasted, stream.result, left_out)


def stream_large_transfer(
    connection: FakeConnection,
    stream: FakeStream,
    sock: socket.socket,
    peer: real.SocketAddress | None = PEER,
    lasted: float = 1.5,
) -> real.StreamLargeTransfer:
    return real.StreamLargeTransfer(cast(Any, connection), cast(Any, stream), peer, lasted, sock)


def accept_failed(connection: FakeConnection, listener: FakeListener, error: int) -> real.AcceptFailed:
    return real.AcceptFailed(cast(Any, connection), cast(Any, listener), error)


def source_unknown(
    connection: FakeConnection,
    udp: FakeUdpSocket,
    source: real.SocketAddress = PEER,
    local: real.SocketAddress | None = None,
) -> real.SourceUnknown:
    return real.SourceUnknown(cast(Any, connection), cast(Any, udp), source, local)


def udp_large_transfer(connection: FakeConnection, udp: FakeUdpSocket) -> real.UdpLargeTransfer:
    return real.UdpLargeTransfer(cast(Any, connection), cast(Any, udp))


def udp_refused(
    connection: FakeConnection, udp: FakeUdpSocket, error: int, *, answered: bool = False
) -> real.UdpRefused:
    return real.UdpRefused(cast(Any, connection), cast(Any, udp), error, answered)


def association_wanted(
    connection: FakeConnection, association: int, peer: real.SocketAddress = PEER
) -> real.AssociationWanted:
    return real.AssociationWanted(cast(Any, connection), association, peer)


def probed(connection: FakeConnection, *, alive: bool) -> real.Probed:
    return real.Probed(cast(Any, connection), alive)


def silence(connection: FakeConnection, *, silent: bool) -> real.Silence:
    return real.Silence(cast(Any, connection), silent)
