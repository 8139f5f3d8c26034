"""Servers and clients for the tests of this folder: in the test's process, or as the commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asport_sync import Client, Server
from tests.support.certificates import Certificate, write_private
from tests.support.ports import FIRST_PORT, LAST_PORT, free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho, host_and_port
from tests.support.traffic import connect
from tests.support.waiting import wait_until

USER = "00112233-4455-6677-8899-aabbccddeeff"
PASSWORD = "correct horse battery staple"

# Seconds until what must happen has happened. Only a failure waits so long, or a start on a busy machine: Python needs
# half a second of a processor for it, of which it may get a fiftieth.
READY_TIMEOUT = 40.0

# What relays in tests that do not choose: the suite of this folder runs with each, see the Makefile.
RELAY: dict[str, Any] = {"relay": os.environ["ASPORT_TEST_RELAY"]} if "ASPORT_TEST_RELAY" in os.environ else {}

# What the commands log, at level info, when they are ready. Documented in docs/logs.md.
SERVER_READY = r"accepting clients on (\S+):(\d+)"
CLIENT_READY = r"is public on port (\d+) for (.+)$"


# What users may open in tests that do not choose.
ALLOWED_PORTS = {"start": FIRST_PORT, "end": LAST_PORT}


def server_options(certificate: Certificate, /, **changes: Any) -> dict[str, Any]:
    """Options of a server for one user on loopback. ``proxy`` among the changes changes its entry of ``proxies``."""
    proxy = {"users": {USER: PASSWORD}, "bind_ip": "127.0.0.1", "allow_ports": [ALLOWED_PORTS]}
    proxy.update(changes.pop("proxy", {}))
    return {
        "server": "127.0.0.1:0",
        "certificate": str(certificate.certificate),
        "private_key": str(certificate.private_key),
        "proxies": [proxy],
        **RELAY,
        **changes,
    }


def client_options(certificate: Certificate, server: Address, local: Address, /, **changes: Any) -> dict[str, Any]:
    """Options of the client that goes with it."""
    return {
        "server": host_and_port(server),
        "local": host_and_port(local),
        "uuid": USER,
        "password": PASSWORD,
        "certificates": {"paths": [str(certificate.trusted)], "disable_native": True},
        **RELAY,
        **changes,
    }


@dataclass
class Tunnel:
    """A server and a client of it, both in this process."""

    server: Server
    client: Client
    public: Address

    def engine_counter(self, side: str, name: str) -> int:
        """A counter of the engine of ``server`` or ``client``."""
        end: Server | Client = getattr(self, side)
        return end.stats().engine[name]


@contextlib.contextmanager
def tunnel(
    certificate: Certificate,
    local: Address,
    *,
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
) -> Iterator[Tunnel]:
    """A tunnel that is ready, in this process.

    Args:
        certificate: The server's.
        local: The service behind it.
        server: Changes to the server's options.
        client: Changes to the client's options.
    """
    with Server(**server_options(certificate, **(server or {}))) as running:
        options = client_options(certificate, running.address, local, **(client or {}))
        # A port picked anew for every tunnel: one that an earlier test used may have connections in TIME_WAIT.
        options.setdefault("expected_port_range", free_port())
        with Client(**options) as joined:
            yield Tunnel(running, joined, joined.wait_ready(READY_TIMEOUT))


@contextlib.contextmanager
def both_echoes() -> Iterator[tuple[TcpEcho, UdpEcho]]:
    """Echo services for TCP and UDP on one number, as a client has one ``local`` for both."""
    port = free_port()
    with TcpEcho(port=port) as stream, UdpEcho(port=port) as datagrams:
        yield stream, datagrams


def write_config(directory: Path, name: str, options: dict[str, Any]) -> Path:
    """Writes a configuration file that only its owner can read."""
    path = directory / f"{name}.json"
    path.unlink(missing_ok=True)
    write_private(path, json.dumps(options, indent=2).encode())
    return path


def command(*arguments: str) -> list[str]:
    """The command line of ``asport-sync``."""
    return [sys.executable, "-m", "asport_sync", *arguments]


def server_process(directory: Path, certificate: Certificate, /, **changes: Any) -> Process:
    """``asport-sync server run``, not started yet."""
    path = write_config(directory, "server", server_options(certificate, **changes))
    return Process(command("server", "run", "-c", str(path), "-v"), name="server")


def client_process(
    directory: Path, certificate: Certificate, server: Address, local: Address, /, **changes: Any
) -> Process:
    """``asport-sync client run``, not started yet."""
    path = write_config(directory, "client", client_options(certificate, server, local, **changes))
    return Process(command("client", "run", "-c", str(path), "-v"), name="client")


def server_address(process: Process) -> Address:
    """Waits until a server process accepts clients; where."""
    found = process.wait_for(SERVER_READY, READY_TIMEOUT)
    return found[1], int(found[2])


def public_port(process: Process) -> int:
    """Waits until a client process has its port; which."""
    return int(process.wait_for(CLIENT_READY, READY_TIMEOUT)[1])


@contextlib.contextmanager
def traffic(address: Address, pause: float = 0.0) -> Iterator[None]:
    """Bytes run both ways through four connections, as fast as they can.

    Args:
        address: Where.
        pause: Seconds between two blocks of 64 KiB on a connection.
    """
    users = [connect(address) for _ in range(4)]
    moved = threading.Semaphore(0)

    def send(user: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                user.sendall(bytes(65536))
                time.sleep(pause)

    def receive(user: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while user.recv(65536):
                moved.release()

    threads = [threading.Thread(target=work, args=(user,)) for user in users for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert moved.acquire(timeout=READY_TIMEOUT), "nothing moves"
        yield
    finally:
        for user in users:
            with contextlib.suppress(OSError):
                user.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for user in users:
            user.close()


def counter(end: Client | Server, name: str) -> int:
    """A counter of the decisions of one end."""
    return end.stats().counters[name]


def wait_for_counter(end: Client | Server, name: str, value: int) -> None:
    """Waits until a counter has reached a value."""
    wait_until(lambda: counter(end, name) >= value, READY_TIMEOUT, f"{name} is {value}")


def send_from_many(public: Address, count: int, ports: range = range(1024, 65536)) -> int:
    """One datagram from each of at most so many sources on 127.0.0.2; returns how many there were."""
    sent = 0
    for port in ports:
        if sent == count:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            try:
                source.bind(("127.0.0.2", port))
            except OSError:
                continue
            source.sendto(b"x", public)
            sent += 1
    return sent
