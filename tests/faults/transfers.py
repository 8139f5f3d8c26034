"""TCP through the tunnel, in both directions at the same time, where each byte and each ending is looked at."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.support.data import seeded_bytes
from tests.support.services import Address, SocketFactory, TcpService, new_socket
from tests.support.traffic import connect, receive_exactly

# Seconds without a byte either way after which a transfer counts as stalled. Longer than any outage, and than the idle
# timeout after which a dead tunnel resets its connections.
STALL_LIMIT = 45.0
CHUNK = 1 << 18

# Number of the connection, bytes each way. What the user says first.
_HEADER = struct.Struct(">II")


@dataclass(frozen=True)
class Ending:
    """How one end of a connection has seen it end.

    Attributes:
        received: Bytes that came, all of them as they were sent.
        whole: Everything was sent and everything came, and then the end of the stream.
        reset: The connection was reset, or could not be made.
        problem: How the promise was broken, or empty.
    """

    received: int
    whole: bool = False
    reset: bool = False
    problem: str = ""


def data_of(number: int, size: int, *, of_service: bool) -> memoryview:
    """What one side of a connection sends: a part of 1 MiB that goes round, from a place that the number decides."""
    block = _BLOCKS[of_service]
    start = number * 7919 % len(block)
    repeated = block[start:] + block * (size // len(block) + 1)
    return memoryview(repeated)[:size]


_BLOCKS = (seeded_bytes(71, 1 << 20), seeded_bytes(72, 1 << 20))


def exchange(sock: socket.socket, outgoing: memoryview, expected: memoryview) -> Ending:
    """Sends and receives at the same time, until both have ended or the connection is reset."""
    sock.setblocking(False)
    sent = received = 0
    ended = False
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        try:
            while not ended or sent <= len(outgoing):
                if not (ready := selector.select(STALL_LIMIT)):
                    return Ending(received, problem=f"stalled after {sent} bytes sent and {received} received")
                events = ready[0][1]
                if events & selectors.EVENT_READ and not ended:
                    data = sock.recv(CHUNK)
                    if not data:
                        ended = True
                        if received < len(expected):
                            return Ending(received, problem=f"a clean end after {received} of {len(expected)} bytes")
                    elif data != expected[received : received + len(data)]:
                        return Ending(received, problem=f"wrong bytes behind the first {received}")
                    received += len(data)
                if events & selectors.EVENT_WRITE and sent <= len(outgoing):
                    if sent < len(outgoing):
                        sent += sock.send(outgoing[sent : sent + CHUNK])
                    else:
                        sock.shutdown(socket.SHUT_WR)
                        sent += 1  # once
                left = 0 if ended else selectors.EVENT_READ
                left |= selectors.EVENT_WRITE if sent <= len(outgoing) else 0
                if left:
                    selector.modify(sock, left)
        except OSError:
            return Ending(received, reset=True)
    return Ending(received, whole=True)


class ExchangeService(TcpService):
    """The service behind the tunnel: reads which connection it is, and does its part."""

    def __init__(self, port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(port=port, create_socket=create_socket)
        self.endings: list[Ending] = []  # under the guard

    def handle(self, connection: socket.socket) -> None:
        """Serves one connection."""
        connection.settimeout(STALL_LIMIT)
        try:
            header = receive_exactly(connection, _HEADER.size)
        except OSError:
            ending = Ending(0, reset=True)
        else:
            if len(header) < _HEADER.size:
                ending = Ending(0, problem=f"a clean end after {len(header)} bytes of the header")
            else:
                number, size = _HEADER.unpack(header)
                ending = exchange(
                    connection, data_of(number, size, of_service=True), data_of(number, size, of_service=False)
                )
        with self._guard:
            self.endings.append(ending)


def first_words(number: int, size: int) -> bytes:
    """What a user says first; the service then expects so many bytes of that connection, and sends as many."""
    return _HEADER.pack(number, size)


def use(public: Address, number: int, size: int, create_socket: SocketFactory = new_socket) -> Ending:
    """One connection of a user."""
    try:
        with connect(public, create_socket=create_socket) as user:
            user.sendall(first_words(number, size))
            return exchange(user, data_of(number, size, of_service=False), data_of(number, size, of_service=True))
    except OSError:
        return Ending(0, reset=True)


@dataclass(frozen=True)
class Moved:
    """What a run of connections has moved.

    Attributes:
        connections: How many there were.
        whole: Users' ends that got everything.
        reset: Users' ends that were reset.
        received: Bytes that users and service have received, unchanged.
        seconds: How long it took.
        problems: Broken promises, of either end.
    """

    connections: int
    whole: int
    reset: int
    received: int
    seconds: float
    problems: tuple[str, ...]


def run(
    service: ExchangeService,
    public: Address,
    sizes: Iterable[int],
    at_once: int,
    *,
    least_time: float = 0.0,
    begun: Callable[[], None] = lambda: None,
    create_socket: SocketFactory = new_socket,
) -> Moved:
    """Makes a connection of each size, so many at a time, and all of them again until the time is over.

    Args:
        service: Behind the tunnel.
        public: Where to connect to.
        sizes: Bytes each way of each connection.
        at_once: Connections at the same time.
        least_time: Seconds.
        begun: Called when a third of that time is over; by a thread of its own.
        create_socket: Makes the users' sockets.
    """
    sizes = list(sizes)
    start = time.monotonic()
    endings: list[Ending] = []
    timer = threading.Timer(least_time / 3 or 1e-3, begun)
    timer.start()
    try:
        with ThreadPoolExecutor(at_once) as pool:
            while True:
                first = len(endings)
                numbers = range(first, first + len(sizes))
                endings += pool.map(use, [public] * len(sizes), numbers, sizes, [create_socket] * len(sizes))
                if time.monotonic() - start >= least_time or any(ending.problem for ending in endings):
                    break
    finally:
        timer.cancel()
        timer.join()
    seconds = time.monotonic() - start
    _wait_for(service, sum(ending.whole for ending in endings))
    with service._guard:
        theirs = list(service.endings)
    problems = [f"user: {ending.problem}" for ending in endings if ending.problem]
    problems += [f"service: {ending.problem}" for ending in theirs if ending.problem]
    return Moved(
        connections=len(endings),
        whole=sum(ending.whole for ending in endings),
        reset=sum(ending.reset for ending in endings),
        received=sum(ending.received for ending in (*endings, *theirs)),
        seconds=seconds,
        problems=tuple(problems),
    )


def _wait_for(service: ExchangeService, whole: int) -> None:
    """Until the service has seen the ends that the users have; at most as long as a stall takes."""
    deadline = time.monotonic() + STALL_LIMIT
    while time.monotonic() < deadline:
        with service._guard:
            if len(service.endings) >= whole and not service._connections:
                return
        time.sleep(0.01)
