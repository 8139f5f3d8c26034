"""Two sides of a QUIC connection on loopback, each an engine whose events a thread collects.

The test's main thread plays the pump: it alone makes the UDP calls.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from asport_sync.engine import (
    Carrier,
    Closed,
    Connected,
    Connection,
    Credentials,
    Endpoint,
    Engine,
    Stream,
    StreamEnd,
    StreamOpened,
    StreamResult,
    Transport,
)
from asport_sync.errors import EngineClosedError, EngineError
from asport_sync.wire import Address as WireAddress
from asport_sync.wire import Connect, encode
from tests.support.certificates import Certificate
from tests.support.services import Address
from tests.support.waiting import wait_until

EventType = TypeVar("EventType")

ALPN = (b"asport",)
# What every stream of these tests begins with.
HEADER = encode(Connect(WireAddress.from_text("203.0.113.7", 54321)))
# Seconds until an event that must come has come. Only a failure waits so long.
EVENT_TIMEOUT = 15.0
# What a server lets a client do; the client's side grants streams.
SERVER_TRANSPORT = Transport(max_streams_bidi=0)
CLIENT_TRANSPORT = Transport(max_streams_bidi=64)


class Side:
    """An engine and the thread that collects its events."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = Engine()
        # Guards the events that nobody has asked for yet.
        self._condition = threading.Condition()
        self._events: collections.deque[object] = collections.deque()
        self._thread = threading.Thread(target=self._collect, name=f"{name} events", daemon=True)

    def __enter__(self) -> Side:
        self.engine.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine and the thread. Idempotent."""
        self.engine.stop()
        self._thread.join()
        self.engine.close()

    def expect(self, kind: type[EventType], condition: Callable[[EventType], bool] = lambda event: True) -> EventType:
        """Waits for an event of a type and takes it; others stay for later."""

        def take() -> EventType | None:
            with self._condition:
                for event in self._events:
                    if isinstance(event, kind) and condition(event):
                        self._events.remove(event)
                        return event
            return None

        found = wait_until(
            take, EVENT_TIMEOUT, f"{kind.__name__} at {self.name}", detail=lambda: f"instead: {self.seen()}"
        )
        assert found is not None
        return found

    def seen(self) -> list[object]:
        """The events that nobody has taken."""
        with self._condition:
            return list(self._events)

    def counter(self, name: str) -> int:
        """One counter now."""
        return self.engine.counters()[name]

    def _collect(self) -> None:
        with contextlib.suppress(EngineClosedError):
            while True:
                events = self.engine.wait()
                with self._condition:
                    self._events.extend(events)


@dataclasses.dataclass
class Pair:
    """A client and a server that are connected. Both sides are one object where one engine plays both parts."""

    server: Side
    client: Side
    endpoint: Endpoint
    server_connection: Connection
    client_connection: Connection

    def set_joined(self, carrier: Carrier | None) -> None:
        """Both sides trust each other from here on."""
        self.server_connection.set_joined(carrier)
        self.client_connection.set_joined(carrier)


def server_credentials(engine: Engine, certificate: Certificate) -> Credentials:
    """Credentials of the test server."""
    return engine.server_credentials(
        certificate=certificate.certificate.read_bytes(), private_key=certificate.private_key.read_bytes(), alpn=ALPN
    )


def client_credentials(engine: Engine, certificate: Certificate) -> Credentials:
    """Credentials that trust the test server and nobody else."""
    return engine.client_credentials(alpn=ALPN, trust=certificate.trusted.read_bytes(), system_trust=False)


def listen(
    side: Side,
    certificate: Certificate,
    transport: Transport = SERVER_TRANSPORT,
    *,
    address: Address = ("127.0.0.1", 0),
    retry_threshold: int = 100,
    max_half_open_per_source: int = 200,
    max_connections: int = 100,
) -> tuple[Endpoint, Address]:
    """Accepts on a loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        bound = sock.getsockname()
        credentials = server_credentials(side.engine, certificate)
        endpoint = side.engine.listen(
            sock,
            credentials,
            transport,
            reset_key=bytes(range(32)),
            retry_threshold=retry_threshold,
            max_half_open_per_source=max_half_open_per_source,
            max_connections=max_connections,
        )
        return endpoint, bound


def connect(
    side: Side,
    certificate: Certificate,
    remote: Address,
    transport: Transport = CLIENT_TRANSPORT,
    *,
    server_name: str = "localhost",
    credentials: Credentials | None = None,
    host: str | None = None,
) -> Connection:
    """Begins a handshake with a server on loopback, from an address that the system or ``host`` chooses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if host is not None:
            sock.bind((host, 0))
        return side.engine.connect(
            sock,
            credentials or client_credentials(side.engine, certificate),
            transport,
            remote=remote,
            server_name=server_name,
        )


@contextlib.contextmanager
def connected(
    certificate: Certificate,
    *,
    one_engine: bool = False,
    server_transport: Transport = SERVER_TRANSPORT,
    client_transport: Transport = CLIENT_TRANSPORT,
    joined: bool = True,
) -> Iterator[Pair]:
    """Two connected sides, with an engine each or with one engine for both.

    Args:
        certificate: The server's.
        one_engine: One for both sides.
        server_transport: Settings of the server's side.
        client_transport: Settings of the client's side.
        joined: The server takes more from the client than a ClientHello, though no UDP yet.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Side("server"))
        client = server if one_engine else stack.enter_context(Side("client"))
        endpoint, address = listen(server, certificate, server_transport)
        client_connection = connect(client, certificate, address, client_transport)
        client.expect(Connected, lambda event: event.connection == client_connection)
        server_connection = server.expect(Connected, lambda event: event.endpoint is not None).connection
        if joined:
            server_connection.set_joined(None)
        yield Pair(server, client, endpoint, server_connection, client_connection)


def expect_closed(side: Side, connection: Connection) -> Closed:
    """Waits for the last event of a connection."""
    return side.expect(Closed, lambda event: event.connection == connection)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    for end in (first, second):
        end.settimeout(EVENT_TIMEOUT)
    return first, second


def expect_reset(sock: socket.socket) -> None:
    """The peer has reset the connection, and said nothing before."""
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


class Relay(threading.Thread):
    """A relay in a thread of its own, and how it ended. Closes its socket at the end, as workers do."""

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        super().__init__(name="relay", daemon=True)
        self.stream = stream
        self._socket = sock
        self.outcome: StreamResult | EngineError | None = None

    def run(self) -> None:
        with self._socket:
            try:
                self.outcome = self.stream.relay(self._socket)
            except EngineError as problem:
                self.outcome = problem

    def finish(self) -> StreamResult | EngineError:
        self.join(EVENT_TIMEOUT)
        assert self.outcome is not None, "the relay still runs"
        return self.outcome


def open_stream(pair: Pair) -> tuple[Stream, Stream]:
    """A stream that the server has opened, as each side knows it."""
    stream = pair.server_connection.open_stream(HEADER)
    opened = pair.client.expect(StreamOpened)
    assert opened.header == HEADER
    return stream, opened.stream


def echo(pair: Pair, size: int) -> None:
    """Sends bytes through one stream and back."""
    stream, opened = open_stream(pair)
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    with visitor, service:
        relays = [Relay(stream, public), Relay(opened, local)]
        for relay in relays:
            relay.start()
        data = os.urandom(size)
        sender = threading.Thread(target=visitor.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < size:
            chunk = service.recv(65536)
            assert chunk
            received += chunk
            service.sendall(chunk)
            returned = b""
            while len(returned) < len(chunk):
                returned += visitor.recv(len(chunk) - len(returned))
            assert returned == chunk
        sender.join()
        assert received == data
        visitor.shutdown(socket.SHUT_WR)
        assert service.recv(1) == b""
        service.shutdown(socket.SHUT_WR)
        assert visitor.recv(1) == b""
        for relay in relays:
            result = relay.finish()
            assert isinstance(result, StreamResult)
            assert (result.end, result.sent, result.received) == (StreamEnd.FINISHED, size, size)


@contextlib.contextmanager
def running_relays(pair: Pair) -> Iterator[tuple[list[Relay], socket.socket, socket.socket]]:
    """A stream with a relay at either end, through which a byte has passed each way.

    Yields the server's and the client's relay, the socket of the public user, and that of the local service.
    """
    stream, opened = open_stream(pair)
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    relays = [Relay(stream, public), Relay(opened, local)]
    for relay in relays:
        relay.start()
    with visitor, service:
        visitor.sendall(b"?")
        assert service.recv(1) == b"?"
        service.sendall(b"!")
        assert visitor.recv(1) == b"!"
        yield relays, visitor, service
    for relay in relays:
        relay.finish()
