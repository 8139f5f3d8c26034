"""Programs that may have few descriptors."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Client, Server
from tests.bounds.old_work import descriptors_of
from tests.e2e.test_balance_load import named
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_options,
    command,
    counter,
    public_port,
    send_from_many,
    server_address,
    server_options,
    server_process,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.sanitized import needs_speed
from tests.support.services import Address, TcpEcho
from tests.support.waiting import wait_until

TIMEOUT = 20.0


def limited(argv: list[str], descriptors: int, name: str, limits: str = "") -> Process:
    """A program that may have so many descriptors. ``limits``: "-S" for the soft limit alone."""
    return Process(["/bin/sh", "-c", f'ulimit {limits} -n {descriptors} && exec "$@"', "sh", *argv], name=name)


def answers(public: Address, timeout: float = 2.0) -> bool:
    """Whether an echo comes back over a new connection."""
    try:
        with socket.create_connection(public, timeout=timeout) as connection:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except OSError:
        return False


@needs_speed
def test_a_server_without_descriptors_recovers_and_leaves_no_stream(certificate: Certificate, tmp_path: Path) -> None:
    path = write_config(tmp_path, "server", server_options(certificate))
    with TcpEcho() as service, limited(command("server", "run", "-c", str(path), "-v"), 60, "server") as server:
        options = client_options(certificate, server_address(server), service.address)
        with Client(**options) as client, contextlib.ExitStack() as crowd:
            public = client.wait_ready(READY_TIMEOUT)
            for _ in range(100):
                with contextlib.suppress(ConnectionError):  # a reset may come before connect() has returned
                    connection = crowd.enter_context(socket.create_connection(public, timeout=TIMEOUT))
                    connection.sendall(b"x")
            server.wait_for("Too many open files|share of descriptors", TIMEOUT)
            crowd.close()
            wait_until(lambda: answers(public), TIMEOUT, "the listener serves again")

            def streams() -> int:
                return sum(connection.streams for connection in client.stats().connections)

            wait_until(lambda: streams() == 0, TIMEOUT, "no stream is left", detail=lambda: f"{streams()} are")


@needs_speed
def test_udp_sources_leave_descriptors_for_tcp(certificate: Certificate, tmp_path: Path) -> None:
    with both_echoes() as (service, _), Server(**server_options(certificate)) as server:
        path = write_config(tmp_path, "client", client_options(certificate, server.address, service.address))
        with limited(command("client", "run", "-c", str(path), "-v"), 256, "client") as client:
            public = ("127.0.0.1", public_port(client))
            sent = send_from_many(public, 400)
            wait_until(lambda: counter(server, "udp_associations") == sent, TIMEOUT, "every source has come")
            client.wait_for("association .* refused", TIMEOUT)
            assert answers(public), client.description()


@needs_speed
def test_a_command_takes_the_descriptors_it_may_have(certificate: Certificate, tmp_path: Path) -> None:
    path = write_config(tmp_path, "server", server_options(certificate))
    with limited(command("server", "run", "-c", str(path), "-v"), 60, "server", "-S") as server:
        server_address(server)
        limits = Path(f"/proc/{server.pid}/limits").read_text()
    found = re.search(r"^Max open files +(\d+) +(\w+)", limits, re.MULTILINE)
    assert found is not None
    hard = 1 << 20 if found[2] == "unlimited" else min(int(found[2]), 1 << 20)
    assert int(found[1]) == hard > 60


ANSWERS = 5  # of a port that is not flooded
MAX_DESCRIPTORS = 1000  # descriptors of the server


@contextlib.contextmanager
def deaf_service() -> Iterator[Address]:
    """A service that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener.getsockname()


def flood(stack: contextlib.ExitStack, public: Address, connections: int) -> None:
    """Opens connections that say nothing."""
    for _ in range(connections):
        user = stack.enter_context(socket.socket())
        user.setblocking(False)
        user.connect_ex(public)


@pytest.mark.parametrize("ports", [2, 3, 50])
def test_flooded_ports_leave_their_share_to_others(certificate: Certificate, tmp_path: Path, ports: int) -> None:
    """A port that was there before the flood is served, and so is one that comes later."""
    with (
        TcpEcho() as echo,
        deaf_service() as deaf,
        server_process(tmp_path, certificate) as server,
        contextlib.ExitStack() as stack,
    ):
        address = server_address(server)
        # Not from the start: a sanitizer needs more by itself.
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))

        def join(service: Address) -> Address:
            options = client_options(certificate, address, service)
            return stack.enter_context(Client(**options)).wait_ready(READY_TIMEOUT)

        idle = join(echo.address)
        flooded = [join(deaf) for _ in range(ports)]
        for public in flooded:
            flood(stack, public, 2 * MAX_DESCRIPTORS // ports)
        server.wait_for("its fair share of descriptors is used up and few are free", TIMEOUT)
        wait_until(lambda: descriptors_of(server.pid) > MAX_DESCRIPTORS * 0.6, TIMEOUT, "most descriptors are in use")
        assert [answers(idle, TIMEOUT) for _ in range(ANSWERS)] == [True] * ANSWERS, server.description()
        for _ in range(3):
            late = join(echo.address)
            assert [answers(late, TIMEOUT) for _ in range(ANSWERS)] == [True] * ANSWERS, server.description()


@needs_speed
def test_a_client_with_its_fair_share_leaves_visitors_to_others_of_its_port(
    certificate: Certificate, tmp_path: Path
) -> None:
    """Visitors of one client stay and those of the other leave: the first one's share is used up, the port is not."""
    port = free_port()
    options = server_options(certificate, proxy={"balance": "round_robin", "allow_ports": port})
    path = write_config(tmp_path, "server", options)
    owners: list[bytes] = []
    with (
        limited(command("server", "run", "-c", str(path), "-v"), 100, "server") as server,
        contextlib.ExitStack() as stack,
    ):
        for name in (b"A", b"B"):
            local = stack.enter_context(named(name))
            client = Client(**client_options(certificate, server_address(server), local, port=port))
            stack.enter_context(client)
            client.wait_ready(READY_TIMEOUT)
        while owners[-20:] != [b"B"] * 20:
            assert len(owners) < 300
            visitor = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
            owners.append(visitor.recv(1))
            if owners[-1] == b"B":
                visitor.close()
        assert owners.count(b"A") >= 10
