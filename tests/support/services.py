"""Local services that stand behind the tunnel: threaded, on a port of their own, gone when the ``with`` block ends.

Every service takes ``create_socket``, so that it can live in another network namespace than the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from tests.support.data import digest, seeded_bytes

SocketFactory = Callable[[int, int], socket.socket]
Address = tuple[str, int]
Self = TypeVar("Self", bound="Service")

CHUNK = 65536
LARGEST_DATAGRAM = 65507
# Seconds a connection may be silent before its service gives it up: no test waits longer than this for anything.
SILENCE_LIMIT = 60.0
# Seconds the threads of a service get to end once their sockets are shut down.
JOIN_TIMEOUT = 10.0
# What SpeaksFirst says.
GREETING = b"220 the server speaks first\r\n"


def host_and_port(address: Address) -> str:
    """Return the address as configuration files write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def new_socket(family: int, kind: int) -> socket.socket:
    """Create a socket in the namespace of the test."""
    return socket.socket(family, kind)


class Service:
    """A socket, one thread that serves it, and a way to end that thread without waiting for a timeout."""

    kind = socket.SOCK_STREAM

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._wanted: Address = (host, port)
        self._create_socket = create_socket
        # Guards what the service's threads write and the test reads.
        self._guard = threading.Lock()
        # Errors that the service met and no test expects, in the order met.
        self.errors: list[str] = []

    def __enter__(self: Self) -> Self:
        self._socket = self._create_socket(self._family, self.kind)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(self._wanted)
            if self.kind == socket.SOCK_STREAM:
                self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise
        self._stopping, self._stop_signal = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=type(self).__name__)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_signal.close()  # the other end becomes readable
        self._thread.join(JOIN_TIMEOUT)
        self._end_connections()
        self._socket.close()
        self._stopping.close()
        assert not self._thread.is_alive(), f"{self._thread.name} did not end"

    @property
    def address(self) -> Address:
        """Host and port the service answers on."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._stopping, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._stopping in ready:
                    return
                self._readable()

    def _readable(self) -> None:
        """Take one connection or datagram from the socket."""
        raise NotImplementedError

    def _end_connections(self) -> None:
        """End what the service thread started."""


class TcpService(Service):
    """Serves each connection in a thread of its own."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(host, port, create_socket=create_socket)
        # Both under the guard. A connection stays listed until its thread has closed it.
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._accepted = 0

    @property
    def accepted(self) -> int:
        """Connections accepted so far."""
        with self._guard:
            return self._accepted

    def handle(self, connection: socket.socket) -> None:
        """Serve one connection, in its own thread; the caller closes it."""
        raise NotImplementedError

    def _readable(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(SILENCE_LIMIT)
        thread = threading.Thread(
            target=self._handle_and_close, args=(connection,), name=f"{type(self).__name__} connection"
        )
        with self._guard:
            self._accepted += 1
            self._connections[thread] = connection
        thread.start()

    def _handle_and_close(self, connection: socket.socket) -> None:
        try:
            self.handle(connection)
        except OSError as error:
            with self._guard:
                self.errors.append(repr(error))
        finally:
            with self._guard:
                del self._connections[threading.current_thread()]
                connection.close()

    def _end_connections(self) -> None:
        with self._guard:
            threads = list(self._connections)
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # where the peer has reset it already
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(JOIN_TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} did not end"


class TcpEcho(TcpService):
    """Sends back what it receives, and its own end of stream after the peer's."""

    def handle(self, connection: socket.socket) -> None:
        while chunk := connection.recv(CHUNK):
            connection.sendall(chunk)
        connection.shutdown(socket.SHUT_WR)


class SpeaksFirst(TcpEcho):
    """Sends ``GREETING`` before it has received anything, then echoes."""

    def handle(self, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        super().handle(connection)


class TcpSink(TcpService):
    """Counts and hashes all it receives, and answers only after the peer's end of stream: ``COUNT SHA256 LF``."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(host, port, create_socket=create_socket)
        self._received: list[bytes] = []

    @property
    def received(self) -> list[bytes]:
        """The answers given so far, one for each connection that reached its end of stream, in that order."""
        with self._guard:
            return list(self._received)

    def handle(self, connection: socket.socket) -> None:
        answer = summarise(connection)
        with self._guard:
            self._received.append(answer)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)


class TcpSource(TcpService):
    """Sends ``size`` seeded bytes and its end of stream at once, and then takes what the peer sends until it ends.

    Thus the service's direction is closed first, while the other one is still used.
    """

    def __init__(
        self,
        size: int,
        seed: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        create_socket: SocketFactory = new_socket,
    ) -> None:
        super().__init__(host, port, create_socket=create_socket)
        self.data = seeded_bytes(seed, size)
        self._received: list[bytes] = []

    @property
    def received(self) -> list[bytes]:
        """What the peers sent, as ``sink_answer()`` puts it, one for each that has ended."""
        with self._guard:
            return list(self._received)

    def handle(self, connection: socket.socket) -> None:
        connection.sendall(self.data)
        connection.shutdown(socket.SHUT_WR)
        received = summarise(connection)
        with self._guard:
            self._received.append(received)


class UdpService(Service):
    """Answers each datagram with what ``answer`` makes of it, and records who sent how much."""

    kind = socket.SOCK_DGRAM

    def __init__(
        self,
        answer: Callable[[bytes], bytes],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        create_socket: SocketFactory = new_socket,
    ) -> None:
        super().__init__(host, port, create_socket=create_socket)
        self._answer = answer
        # Source address -> datagrams received from it; under the guard.
        self._sources: dict[Address, int] = {}

    @property
    def sources(self) -> dict[Address, int]:
        """Each source seen so far, with the number of its datagrams."""
        with self._guard:
            return dict(self._sources)

    @property
    def received(self) -> int:
        """Datagrams received so far."""
        return sum(self.sources.values())

    def _readable(self) -> None:
        payload, source = self._socket.recvfrom(LARGEST_DATAGRAM)
        with self._guard:
            key = (source[0], source[1])
            self._sources[key] = self._sources.get(key, 0) + 1
        try:
            self._socket.sendto(self._answer(payload), source)
        except OSError as error:
            with self._guard:
                self.errors.append(repr(error))


class UdpEcho(UdpService):
    """Sends each datagram back to its source."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(lambda payload: payload, host, port, create_socket=create_socket)


class UdpSink(UdpService):
    """Answers with ``COUNT SHA256 LF`` of each datagram, so that only the way in carries its size."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(sink_answer, host, port, create_socket=create_socket)


class UdpSource(UdpService):
    """Takes ``SEED SIZE`` as text and answers with that many seeded bytes, so that only the way out carries them."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(self._seeded, host, port, create_socket=create_socket)

    @staticmethod
    def request(seed: int, size: int) -> bytes:
        """Return the datagram that asks for these bytes."""
        return f"{seed} {size}".encode("ascii")

    @staticmethod
    def _seeded(payload: bytes) -> bytes:
        seed, size = payload.split()
        return seeded_bytes(int(seed), int(size))


def sink_answer(data: bytes) -> bytes:
    """Return what a sink answers after having received exactly ``data``."""
    return f"{len(data)} {digest(data)}\n".encode("ascii")


def summarise(connection: socket.socket) -> bytes:
    """Receive until the end of the stream and return what ``sink_answer()`` would say of it, without keeping it."""
    count = 0
    state = hashlib.sha256()
    while chunk := connection.recv(CHUNK):
        count += len(chunk)
        state.update(chunk)
    return f"{count} {state.hexdigest()}\n".encode("ascii")
