"""Users and services that do not read, and what it costs the processes between them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bounds.old_work import memory_of
from tests.e2e.tunnels import client_process, public_port, server_address, server_process
from tests.support.certificates import Certificate
from tests.support.process import Process
from tests.support.services import CHUNK, Address, TcpService

HOST = "127.0.0.1"
# What the first byte of a connection asks the service for.
ECHO, FLOOD, STREAM, DEAF, GIVE = b"e", b"f", b"s", b"d", b"g"
# Bytes that GIVE gives, and its end of stream.
GIVEN = 1 << 20
# Of a stalled user's socket: a small one, so that the bytes are in the tunnel's memory and not in the kernel's.
SMALL_BUFFER = 4096
# Of the socket of FLOOD, for the same reason, and because many of them would use up the memory that all TCP connections
# of the machine share (net.ipv4.tcp_mem). The kernel takes twice as much. STREAM measures throughput
# and has no limit.
_FLOOD_BUFFER = 32768
_PERIOD = 256
_BLOCK = bytes(range(_PERIOD)) * 256
_VIEW = memoryview(_BLOCK)


class Moods(TcpService):
    """A service that echoes, sends without end, never reads, or sends ``GIVEN`` bytes: as the first byte says."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port=port)
        self._sent = 0  # under the guard: bytes that floods have got rid of
        self.over = threading.Event()  # lets those go that do not read

    @property
    def sent(self) -> int:
        """Bytes that the kernel has taken of all floods so far."""
        with self._guard:
            return self._sent

    def handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # users leave as they like here
            mood = connection.recv(1)
            if mood in (FLOOD, STREAM):
                if mood == FLOOD:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _FLOOD_BUFFER)
                sent = 0
                while True:
                    # The kernel takes a part; what arrives has its period all the same.
                    sent += self._flood(connection, sent % _PERIOD)
            elif mood == DEAF:
                self.over.wait()
            elif mood == GIVE:
                for start in range(0, GIVEN, len(_BLOCK)):
                    connection.sendall(_BLOCK[: GIVEN - start])
                connection.shutdown(socket.SHUT_WR)
                # Where the machine is short of memory for TCP, closing before the peer has everything is a reset.
                while connection.recv(CHUNK):
                    pass
            else:
                while chunk := connection.recv(CHUNK):
                    connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)

    def _flood(self, connection: socket.socket, start: int) -> int:
        taken = connection.send(_VIEW[start:])
        with self._guard:
            self._sent += taken
        return taken


def is_given(data: bytes) -> bool:
    """Whether these are the bytes of GIVE."""
    return data == _BLOCK * (GIVEN // len(_BLOCK))


class Ends:
    """A server and a client as processes."""

    def __init__(self, server: Process, client: Process, public: Address) -> None:
        self.server = server
        self.client = client
        self.public = public

    def memory(self) -> tuple[int, int]:
        """Resident bytes of server and client."""
        return memory_of(self.server.pid), memory_of(self.client.pid)


@contextlib.contextmanager
def ends(
    directory: Path, certificate: Certificate, local: Address, *, server: Mapping[str, Any] | None = None, **client: Any
) -> Iterator[Ends]:
    """A tunnel of two processes that is ready.

    Args:
        directory: For their configurations.
        certificate: The server's.
        local: The service behind it.
        server: Changes to the server's options.
        client: Changes to the client's options.
    """
    with (
        server_process(directory, certificate, **(server or {})) as server_end,
        client_process(directory, certificate, server_address(server_end), local, **client) as client_end,
    ):
        yield Ends(server_end, client_end, (HOST, public_port(client_end)))


def ask(public: Address, mood: bytes, *, receive_buffer: int | None = None) -> socket.socket:
    """A new connection whose service is in a mood.

    Args:
        public: The public port.
        mood: ECHO, FLOOD, STREAM, DEAF or GIVE.
        receive_buffer: Bytes that the kernel may keep for it, so that less is on its way.
    """
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30.0)
        connection.connect(public)
        connection.sendall(mood)
    except BaseException:
        connection.close()
        raise
    return connection
