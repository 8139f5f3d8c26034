"""A local service inside this process for the doctor's own connection: it returns what the doctor sends, and no more.

Visitors of the public port may meet it while the doctor is at work. Only connections and datagrams that begin with a
random key are answered, so that it can't be misused.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from types import TracebackType

_LENGTH = 16  # bytes of the key
_READ = 262144
_LARGEST = 65535
_TRIES = 20  # to find a number that is free for TCP and UDP
_SILENCE = 10.0  # seconds after which a connection is given up
_MAX_CONNECTIONS = 64
_BUFFER = 1 << 20  # bytes that the kernel may hold for the UDP socket
_JOIN_TIMEOUT = 2.0


class Echo:
    """Returns bytes and datagrams, on one port of 127.0.0.1 for TCP and UDP. A context manager.

    Attributes:
        key: What a connection or a datagram has to begin with. It is returned too.
        port: The port.
    """

    def __init__(self) -> None:
        self.key = os.urandom(_LENGTH)
        self.port = 0
        self._tcp: socket.socket
        self._udp: socket.socket
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards the two fields below
        self._connections: set[socket.socket] = set()
        self._closed = False

    def __enter__(self) -> Echo:
        self._tcp, self._udp = _bound_pair()
        self.port = self._tcp.getsockname()[1]
        self._start(self._accept)
        self._start(self._datagrams)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            left = [self._tcp, self._udp, *self._connections]
        for sock in left:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # ends blocking calls, also of a socket that is not connected
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT)
        self._tcp.close()
        self._udp.close()

    def _start(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name="asport-doctor", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._tcp.accept()[0]
                with self._lock:
                    if self._closed or len(self._connections) >= _MAX_CONNECTIONS:
                        connection.close()
                        continue
                    self._connections.add(connection)
                self._start(self._return, connection)

    def _return(self, connection: socket.socket) -> None:
        connection.settimeout(_SILENCE)
        buffer = memoryview(bytearray(_READ))
        with connection, contextlib.suppress(OSError):
            begin = connection.recv(_LENGTH, socket.MSG_WAITALL)
            if begin == self.key:
                connection.sendall(begin)
                while count := connection.recv_into(buffer):
                    connection.sendall(buffer[:count])
        with self._lock:
            self._connections.discard(connection)

    def _datagrams(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                data, source = self._udp.recvfrom(_LARGEST)
                if data.startswith(self.key):
                    self._udp.sendto(data, source)


def _bound_pair() -> tuple[socket.socket, socket.socket]:
    """Returns a listening TCP socket and a UDP socket with the same number.

    Raises:
        OSError: None is free.
    """
    for tried in range(1, _TRIES + 1):
        tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            tcp.bind(("127.0.0.1", 0))
            udp.bind(tcp.getsockname())
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            tcp.listen()
            return tcp, udp
        except OSError:
            tcp.close()
            udp.close()
            if tried == _TRIES:
                raise
    raise AssertionError
