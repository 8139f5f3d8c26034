"""Bandwidth limits of users, entries of ``proxies`` and tunnels, with real visitors and services.

A limit is a lower bound of a time. How close a transfer comes to it, ``python -m tests.bounds.bandwidth`` measures.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server
from tests.e2e.tunnels import PASSWORD, USER, client_options, server_options, tunnel
from tests.support.certificates import Certificate
from tests.support.services import TcpEcho, UdpEcho
from tests.support.waiting import wait_until

RATE = 500000  # bytes per second: 4mbit
BURST = 16384
SIZE = 300000
READY = 20.0  # seconds

LIMITED: list[Any] = [
    pytest.param({"proxy": {"bandwidth": {"in": "4mbit"}}}, {}, "server", id="entry-in"),
    pytest.param({"proxy": {"bandwidth": {"out": "4mbit"}}}, {}, "server", id="entry-out"),
    pytest.param(
        {"proxy": {"users": {USER: {"password": PASSWORD, "bandwidth": {"in": "500kbyte"}}}}}, {}, "server", id="user"
    ),
    pytest.param({}, {"bandwidth": {"in": "4mbit"}}, "client", id="tunnel-in"),
    pytest.param({}, {"bandwidth": {"out": "4mbit"}}, "client", id="tunnel-out"),
]


def echoed(address: tuple[str, int], data: bytes) -> bytes:
    """What an echo service returns, from the first byte to its end."""
    with socket.create_connection(address, 60.0) as visitor:

        def send() -> None:
            visitor.sendall(data)
            visitor.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while chunk := visitor.recv(65536):
            received += chunk
        sender.join()
    return bytes(received)


@pytest.mark.parametrize(("server", "client", "limiting"), LIMITED)
def test_a_transfer_is_not_faster_than_its_limit(
    certificate: Certificate, server: dict[str, Any], client: dict[str, Any], limiting: str
) -> None:
    data = os.urandom(SIZE)
    with TcpEcho() as echo, tunnel(certificate, echo.address, server=server, client=client) as made:
        began = time.monotonic()
        assert echoed(made.public, data) == data
        assert time.monotonic() - began >= (SIZE - BURST) / RATE
        assert made.engine_counter(limiting, "bandwidth_waits") > 0
        assert made.engine_counter("client" if limiting == "server" else "server", "bandwidth_waits") == 0


def test_clients_of_an_entry_share_its_limit(certificate: Certificate) -> None:
    data = os.urandom(SIZE // 2)
    options = server_options(certificate, proxy={"bandwidth": {"in": "4mbit"}})
    with TcpEcho() as echo, Server(**options) as server:
        given = client_options(certificate, server.address, echo.address)
        with Client(**given) as first, Client(**given) as second:
            addresses = [each.wait_ready(READY) for each in (first, second)]
            began = time.monotonic()
            results: list[bytes] = []
            visitors = [
                threading.Thread(target=lambda address=address: results.append(echoed(address, data)))
                for address in addresses
            ]
            for visitor in visitors:
                visitor.start()
            for visitor in visitors:
                visitor.join()
            assert results == [data, data]
            assert time.monotonic() - began >= (SIZE - BURST) / RATE


def test_datagrams_beyond_the_limit_are_dropped(certificate: Certificate) -> None:
    with UdpEcho() as echo, tunnel(certificate, echo.address, client={"bandwidth": {"in": "64kbit"}}) as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.connect(made.public)
            visitor.settimeout(0.05)
            for _ in range(100):
                visitor.send(bytes(1000))
            wait_until(lambda: made.engine_counter("client", "udp_drop_bandwidth") > 0, READY, "some are dropped")
            answered = 0
            while answered == 0:  # and others are not
                visitor.send(bytes(100))
                try:
                    while visitor.recv(2000):
                        answered += 1
                except TimeoutError:
                    pass


def test_curl_gets_the_whole_file_at_the_limit(certificate: Certificate, tmp_path: Path) -> None:
    """A peer nobody here wrote, against the interpreter's own web server."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().split(" port ")[1].split()[0])
            with tunnel(certificate, ("127.0.0.1", port), client={"bandwidth": {"out": "4mbit"}}) as made:
                url = f"http://{made.public[0]}:{made.public[1]}/file"
                began = time.monotonic()
                done = subprocess.run(["curl", "-sS", "--max-time", "60", url], capture_output=True, check=True)
                assert time.monotonic() - began >= (SIZE - BURST) / RATE
                assert done.stdout == content
        finally:
            service.terminate()
