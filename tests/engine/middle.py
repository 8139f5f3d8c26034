"""A NAT between a client and a server on loopback, that can forget and fail."""

from __future__ import annotations

import contextlib
import socket
import threading


def new_socket() -> socket.socket:
    """A UDP socket on loopback that waits for a moment only."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(0.05)
    return sock


class Middle:
    """Carries the datagrams of one connection, until it is cut."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.front, self._back = new_socket(), new_socket()
        self.client: tuple[str, int] | None = None  # where it was last heard from
        self.from_client: bytes = b""  # the last short-header packet
        self.cut = False
        self._over = False
        self._old: list[socket.socket] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._up, self._down)]

    def __enter__(self) -> Middle:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        for sock in (self.front, self._back, *self._old):
            sock.close()

    def rebind(self) -> None:
        """From here on the client's packets come from another port, as after a NAT has forgotten it."""
        old, self._back = self._back, new_socket()
        self._old.append(old)

    def _up(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data, self.client = self.front.recvfrom(65536)
                if not data[0] & 0x80:
                    self.from_client = data
                if not self.cut:
                    self._back.sendto(data, self._server)

    def _down(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data = self._back.recv(65536)
                if not self.cut and self.client is not None:
                    self.front.sendto(data, self.client)
