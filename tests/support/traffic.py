"""What a user of the public port does: connect, send, receive, close; and the same by datagrams."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence

from tests.support.process import Process
from tests.support.services import CHUNK, LARGEST_DATAGRAM, Address, SocketFactory, new_socket, sink_answer
from tests.support.waiting import NeverHappened, wait_until

# Seconds without any progress after which a transfer has failed. A stalled transfer is never worth waiting longer for.
STALL_LIMIT = 30.0
# Seconds after which a datagram counts as lost and is sent again.
RESEND_AFTER = 1.0
# Seconds without any progress after which nothing more is under way, on a busy machine too.
STUCK_FOR = 1.0


def connect(address: Address, *, create_socket: SocketFactory = new_socket) -> socket.socket:
    """Connect to ``address``; the socket gives up after ``STALL_LIMIT`` seconds of silence."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    connection = create_socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(STALL_LIMIT)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def wait_for_port(
    address: Address,
    timeout: float = 20.0,
    *,
    processes: Sequence[Process] = (),
    create_socket: SocketFactory = new_socket,
) -> None:
    """Wait until somebody accepts connections on ``address``.

    Args:
        address: Host and port; a connection is made and closed at once.
        timeout: Seconds.
        processes: Those without which it can't happen; if one of them ends, so does the waiting.
        create_socket: Makes the socket to connect with.
    """

    def accepts() -> bool:
        for process in processes:
            process.check_running()
        try:
            connect(address, create_socket=create_socket).close()
        except ConnectionRefusedError:
            return False
        except ConnectionResetError:  # accepted, and reset before connect() has returned
            pass
        return True

    wait_until(accepts, timeout, f"{address[0]} port {address[1]} accepts connections")


def expect_reset(address: Address) -> None:
    """Connects, and fails unless the connection is reset before anything is said: during ``connect`` at the earliest.

    Raises:
        AssertionError: It ended in another way.
    """
    try:
        with connect(address) as connection:
            said = connection.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"not reset: {said!r} was received")


def receive_to_end(connection: socket.socket) -> bytes:
    """Receive until the peer's end of stream."""
    chunks = []
    while chunk := connection.recv(CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes, or fewer where the peer's end of stream comes before."""
    chunks = []
    while size and (chunk := connection.recv(min(CHUNK, size))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def echo(address: Address, data: bytes, *, create_socket: SocketFactory = new_socket) -> bytes:
    """Send ``data`` while receiving as many bytes; then close. Returns what came back."""
    with connect(address, create_socket=create_socket) as connection:
        sender = threading.Thread(target=_send, args=(connection, data), name="echo sender")
        sender.start()
        try:
            return receive_exactly(connection, len(data))
        finally:
            # Lets a sender go whose receiver has failed; a reset by the peer, the error here, lets it go as well.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the receiving side sees the same end, and reports it
        connection.sendall(data)


def upload(address: Address, data: bytes, *, create_socket: SocketFactory = new_socket) -> bytes:
    """Send ``data`` and the end of the stream; return everything the peer answers until its own end."""
    with connect(address, create_socket=create_socket) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return receive_to_end(connection)


class UdpPeer:
    """A UDP user of the public port, with one socket. Used by one thread."""

    def __init__(self, address: Address, *, create_socket: SocketFactory = new_socket) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = create_socket(family, socket.SOCK_DGRAM)
        self._socket.connect(address)
        # Datagrams sent again because no answer came in time.
        self.resent = 0
        # Answers to questions that were sent again, or that nobody waited for; each may still come.
        self._late_answers: set[bytes] = set()

    def __enter__(self) -> UdpPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, payload: bytes) -> None:
        """Send one datagram."""
        self._socket.send(payload)

    def expect_late(self, answer: bytes) -> None:
        """From now on this answer may come at any time: ``send`` asked for it, and nobody waited."""
        self._late_answers.add(answer)

    def receive(self, timeout: float) -> bytes | None:
        """Return the next datagram, or None where none came within ``timeout`` seconds."""
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(LARGEST_DATAGRAM)
        except TimeoutError:
            return None

    def ask(self, payload: bytes, answer: bytes, attempts: int = 5) -> None:
        """Send ``payload`` until ``answer`` comes back, at most ``attempts`` times.

        Datagrams may be lost; a wrong one may not come.

        Raises:
            NeverHappened: No answer to any attempt.
            AssertionError: A datagram came that answers neither this question nor an earlier one.
        """
        for attempt in range(attempts):
            if attempt:
                self.resent += 1
                self._late_answers.add(answer)
            self.send(payload)
            deadline = time.monotonic() + RESEND_AFTER
            while (left := deadline - time.monotonic()) > 0:
                received = self.receive(left)
                if received is None:
                    break
                if received == answer:
                    return
                assert received in self._late_answers, (
                    f"expected {sink_answer(answer)!r} and received {sink_answer(received)!r}"
                )
        raise NeverHappened(f"no answer to {attempts} datagrams of {len(payload)} bytes")


def fill(sock: socket.socket) -> None:
    """Send until everything between here and a reader that does not read is full: nothing has moved for STUCK_FOR."""
    piece = bytes(1 << 20)
    sock.settimeout(STUCK_FOR)  # of each call; that of sendall() is for all of its calls together
    with contextlib.suppress(TimeoutError):
        while True:
            sock.send(piece)


def send_and_end(connection: socket.socket, data: bytes) -> None:
    """Send everything, then end this direction. For a thread of its own."""
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
