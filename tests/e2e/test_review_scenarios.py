"""Hostile or unlucky surroundings: what answers is no ASPORT server, an address is dead, a predecessor is busy."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server
from asport_sync.errors import BindFailed, HandshakeTimeout
from tests.e2e.tunnels import READY_TIMEOUT, client_options, client_process, public_port, server_options, tunnel
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, TcpEcho, TcpService, UdpEcho
from tests.support.waiting import wait_until

TIMEOUT = 20.0


class Garbler(UdpEcho):
    """Answers each datagram with bytes that are almost QUIC."""

    def _readable(self) -> None:
        data, peer = self._socket.recvfrom(65535)
        head = data[:1] + b"\0\0\0\0" + data[5:6]  # a Version Negotiation packet that names no version
        for answer in (b"", b"\0", os.urandom(1200), data[:200], head + data[6:60]):
            self._socket.sendto(answer, peer)


class Torrent(TcpService):
    """Sends without end."""

    def handle(self, connection: socket.socket) -> None:
        block = bytes(1 << 20)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(block)


@pytest.mark.parametrize("kind", [UdpEcho, Garbler])
def test_what_answers_is_no_server(certificate: Certificate, kind: type[UdpEcho]) -> None:
    with kind() as stranger:
        options = client_options(certificate, stranger.address, ("127.0.0.1", free_port()), timeout=2.0)
        with Client(**options) as client:
            with pytest.raises(HandshakeTimeout):
                client.wait_ready(2.0)
            assert client.port is None


def test_a_dead_first_address_costs_its_own_time_only(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def two_addresses(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host != "two.test":
            return list(resolve(host, port, *arguments, **options))
        return [
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    with TcpEcho() as service, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))  # takes everything, answers nothing
        port = silent.getsockname()[1]
        with Server(**server_options(certificate, server=f"[::1]:{port}", only_v6=True)) as server:
            options = client_options(certificate, server.address, service.address, timeout=4.0)
            options.update(server=f"two.test:{port}", server_name="localhost")
            with Client(**options) as client:
                assert client.wait_ready(READY_TIMEOUT)[0] == "::1"
                stats: dict[str, Any] = client.stats()
                assert stats["counters"]["attempts"] == 2
                assert "attempts_failed" not in stats["counters"]


@contextlib.contextmanager
def downloads(public: Address, count: int) -> Iterator[list[int]]:
    """Takes what comes over so many connections; yields the sizes of the pieces."""
    over = threading.Event()
    pieces: list[int] = []

    def take() -> None:
        with socket.create_connection(public, timeout=TIMEOUT) as connection:
            while not over.is_set():
                pieces.append(len(connection.recv(1 << 20)))

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield pieces
    finally:
        over.set()
        for thread in threads:
            thread.join(TIMEOUT)


def test_a_busy_predecessor_keeps_its_port(certificate: Certificate, tmp_path: Path) -> None:
    port = free_port()
    with Torrent() as service, Server(**server_options(certificate)) as server:
        arguments = (certificate, server.address, service.address)
        with client_process(tmp_path, *arguments, expected_port_range=port) as predecessor:
            public = ("127.0.0.1", public_port(predecessor))
            with downloads(public, 3) as pieces:
                wait_until(lambda: sum(pieces) > 1 << 22, TIMEOUT, "4 MiB have come")
                for _ in range(3):
                    with Client(**client_options(*arguments, expected_port_range=port)) as newcomer:
                        with pytest.raises(BindFailed):
                            newcomer.wait_ready(TIMEOUT)
                before = len(pieces)
                wait_until(lambda: len(pieces) > before + 10, TIMEOUT, "the downloads go on")
            assert 0 not in pieces  # no end of stream in between
            assert "connection lost" not in predecessor.output()


class Deaf(TcpService):
    """Accepts, and reads nothing until its peer or the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def handle(self, connection: socket.socket) -> None:
        self.over.wait(TIMEOUT)


def test_a_service_that_never_reads_holds_nobody_up(certificate: Certificate) -> None:
    with Deaf() as service:
        try:
            with tunnel(certificate, service.address) as joined, contextlib.ExitStack() as senders:
                for _ in range(5):
                    sender = senders.enter_context(socket.create_connection(joined.public, timeout=TIMEOUT))
                    sender.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            sender.send(bytes(65536))
                wait_until(lambda: service.accepted == 5, TIMEOUT, "all of them are held")
                fresh = senders.enter_context(socket.create_connection(joined.public, timeout=TIMEOUT))
                fresh.sendall(b"x")
                wait_until(lambda: service.accepted == 6, TIMEOUT, "another gets through")
                # Leaving stops client and server while all of this is stuck.
        finally:
            service.over.set()
        assert not joined.server.running
        assert not joined.client.running
