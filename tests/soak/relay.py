"""A UDP relay in front of a server that can fall silent, which is how a connection is lost while both its ends live."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType

from tests.support.services import Address

LARGEST = 65536
# Seconds between looks at whether it is over.
LOOK = 0.2
BUFFER = 4 << 20


class Relay:
    """Forwards datagrams between one client at a time and a server, in a thread, until ``__exit__``."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._over = threading.Event()
        self._silent = threading.Event()
        self._front = self._socket()
        self._front.bind(("127.0.0.1", 0))
        self._back = self._socket()
        self._back.connect(server)
        self._client: Address | None = None  # its thread only
        self._thread = threading.Thread(target=self._run, name="soak relay")

    @property
    def address(self) -> Address:
        """Where clients send to."""
        host, port = self._front.getsockname()
        return str(host), int(port)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._front.close()
        self._back.close()

    def silence(self, on: bool) -> None:
        """From now on nothing passes, or everything again."""
        if on:
            self._silent.set()
        else:
            self._silent.clear()

    @staticmethod
    def _socket() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        return made

    def _run(self) -> None:
        while not self._over.is_set():
            for ready in select.select([self._front, self._back], [], [], LOOK)[0]:
                with contextlib.suppress(OSError):  # nothing there, a full buffer, or a server that is not there
                    self._forward(ready)

    def _forward(self, ready: socket.socket) -> None:
        for _ in range(32):
            data, source = ready.recvfrom(LARGEST)
            if ready is self._front:
                self._client = source
            if self._silent.is_set():
                continue
            if ready is self._front:
                self._back.send(data)
            elif self._client is not None:
                self._front.sendto(data, self._client)
