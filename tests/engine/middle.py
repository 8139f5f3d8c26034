"""A NAT between a client and a server on loopback, that can forget and fail."""

from __future__ import annotations

import contextlib
import os
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
        self.widest = 65536  # bytes of the largest datagram that gets through
        self.largest = 0  # bytes of the largest datagram that came
        self.lose_handshake = False  # the client's long-header packets are lost
        self.one_flight = False  # which they are after the first of them
        self.lose_every = 0  # of so many datagrams one is lost; 0: none
        self.lost = 0  # for that reason
        self._passed = 0
        self._over = False
        self._marker = os.urandom(16)  # a datagram of our own, behind everything that came before it
        self._marked = threading.Semaphore(0)  # released for each marker that was read
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

    def restore(self) -> None:
        """End a cut. What was sent before is lost, even where it has not been read yet."""
        with new_socket() as sock:
            for each in (self.front, self._back):
                sock.sendto(self._marker, each.getsockname())
            for _ in range(2):
                assert self._marked.acquire(timeout=60)
        self.cut = False

    def rebind(self) -> None:
        """From here on the client's packets come from another port, as after a NAT has forgotten it."""
        old, self._back = self._back, new_socket()
        self._old.append(old)

    def flap(self) -> None:
        """From here on the client's packets come from the port before the last rebind, as when a NAT remembers."""
        self._old.append(self._back)
        self._back = self._old.pop(0)

    def to_client(self, data: bytes) -> None:
        """A datagram of our own for the client, as if the server had sent it."""
        assert self.client is not None
        self.front.sendto(data, self.client)

    def _is_marker(self, data: bytes) -> bool:
        if data == self._marker:
            self._marked.release()
        return data == self._marker

    def _passes(self, data: bytes) -> bool:
        # Both threads count here; a number that is lost between them is none that anybody needs.
        self._passed += 1
        self.largest = max(self.largest, len(data))
        if self.lose_every and self._passed % self.lose_every == 0:
            self.lost += 1
            return False
        return not self.cut and len(data) <= self.widest

    def _up(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data, sender = self.front.recvfrom(65536)
                if self._is_marker(data):
                    continue
                self.client = sender
                if data and not data[0] & 0x80:
                    self.from_client = data
                if data and data[0] & 0x80:
                    if self.lose_handshake:
                        continue
                    self.lose_handshake = self.one_flight
                if self._passes(data):
                    self._back.sendto(data, self._server)

    def _down(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data = self._back.recv(65536)
                if self._is_marker(data):
                    continue
                if self._passes(data) and self.client is not None:
                    self.front.sendto(data, self.client)
