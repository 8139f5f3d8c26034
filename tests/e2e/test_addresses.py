"""Addresses that a server is told to use and that are not there: none of IPv6, and those that come later."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Client
from asport_sync.runtime import machine
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_options,
    command,
    public_port,
    server_address,
    server_options,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.refusing import IPV6_SOCKETS, numbers, refused
from tests.support.services import TcpEcho
from tests.support.traffic import connect, receive_exactly
from tests.support.waiting import wait_until

NOT_HERE = "192.0.2.7"  # TEST-NET-1 (RFC 5737)
NOT_HERE_V6 = "2001:db8::7"  # RFC 3849


@pytest.mark.skipif(not numbers(), reason="the numbers of the system calls of this machine are not known here")
@pytest.mark.parametrize("host", ["[::]", "127.0.0.1"])
def test_a_server_on_a_system_without_ipv6(certificate: Certificate, tmp_path: Path, host: str) -> None:
    """The default of ``bind_ip`` and an address as in the documentation's example do."""
    options = server_options(certificate, server=f"{host}:0")
    del options["proxies"][0]["bind_ip"]
    argv = command("server", "run", "-c", str(write_config(tmp_path, "server", options)), "-v")
    argv = refused([IPV6_SOCKETS], errno.EAFNOSUPPORT, argv)
    with TcpEcho() as service, Process(argv, name="server") as server:
        server.wait_for("this system has no IPv6: using 0.0.0.0", READY_TIMEOUT)
        address = ("127.0.0.1", server_address(server)[1])
        with Client(**client_options(certificate, address, service.address)) as client:
            _, port = client.wait_ready(READY_TIMEOUT)
            with connect(("127.0.0.1", port)) as user:
                user.sendall(b"x")
                assert receive_exactly(user, 1) == b"x"
        assert server.output().count("no IPv6") == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6 sockets that take IPv4")
def test_ipv4_addresses_are_logged_as_such(certificate: Certificate, tmp_path: Path) -> None:
    """Also where they come through sockets that are bound to all addresses of both kinds."""
    options = server_options(certificate, server="[::]:0")
    del options["proxies"][0]["bind_ip"]
    argv = command("server", "run", "-c", str(write_config(tmp_path, "server", options)), "-vv")
    with both_echoes() as (tcp, _), Process(argv, name="server") as server:
        address = ("127.0.0.1", server_address(server)[1])
        options = client_options(certificate, address, tcp.address)
        argv = command("client", "run", "-c", str(write_config(tmp_path, "client", options)), "-vv")
        with Process(argv, name="client") as client:
            public = ("127.0.0.1", public_port(client))
            with connect(public) as user:
                user.sendall(b"x")
                assert receive_exactly(user, 1) == b"x"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
                source.sendto(b"x", public)
                for process in (server, client):
                    process.wait_for(r"association \d+: packets from 127\.0\.0\.1:\d+", READY_TIMEOUT)
            for process in (server, client):
                process.wait_for(r"connection from 127\.0\.0\.1:\d+", READY_TIMEOUT)
        server.wait_for(r"client 127\.0\.0\.1:\d+: connection ended", READY_TIMEOUT)
        assert "::ffff:" not in server.output() + client.output()


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    if why := unavailable():
        pytest.skip(why)
    with Namespace() as made:
        yield made


@pytest.mark.parametrize(
    ("address", "adding"), [(NOT_HERE, [f"{NOT_HERE}/32"]), (NOT_HERE_V6, [f"{NOT_HERE_V6}/128", "nodad"])]
)
def test_an_address_that_comes_later(certificate: Certificate, tmp_path: Path, address: str, adding: list[str]) -> None:
    """The QUIC socket and a public port are opened before the machine has their address, and work once it has."""
    host = f"[{address}]" if ":" in address else address
    quic = free_port()
    options = server_options(certificate, server=f"{host}:{quic}", proxy={"bind_ip": address})
    server_file = write_config(tmp_path, "server", options)
    with namespace() as inside:

        def run(*arguments: str) -> Process:
            return Process(inside.argv(command(*arguments)), name=arguments[0])

        with (
            TcpEcho(create_socket=inside.socket) as service,
            run("server", "run", "-c", str(server_file), "-v") as server,
        ):
            server.wait_for(f"{address} is not an address of this machine yet", READY_TIMEOUT)
            server_address(server)
            joining = client_options(certificate, (address, quic), service.address, server_name="localhost")
            client_file = write_config(tmp_path, "client", joining)
            inside.configure(["address", "add", *adding, "dev", "lo"])
            with run("client", "run", "-c", str(client_file), "-v") as client:
                port = public_port(client)
                with inside.call(lambda: connect((address, port))) as user:
                    user.sendall(b"x")
                    assert receive_exactly(user, 1) == b"x"


def test_a_public_address_that_comes_later(certificate: Certificate, tmp_path: Path) -> None:
    """A client is not refused where only its port's address is missing."""
    options = server_options(certificate, proxy={"bind_ip": NOT_HERE})
    server_file = write_config(tmp_path, "server", options)
    with (
        namespace() as inside,
        TcpEcho(create_socket=inside.socket) as service,
        Process(inside.argv(command("server", "run", "-c", str(server_file), "-v")), name="server") as server,
    ):
        client_file = write_config(
            tmp_path, "client", client_options(certificate, server_address(server), service.address)
        )
        with Process(inside.argv(command("client", "run", "-c", str(client_file), "-v")), name="client") as client:
            port = public_port(client)
            server.wait_for(f"port {port} is on {NOT_HERE}, which is not an address of this machine yet", READY_TIMEOUT)
            inside.configure(["address", "add", f"{NOT_HERE}/32", "dev", "lo"])

            def works() -> bool:
                with inside.call(lambda: connect((NOT_HERE, port))) as user:
                    user.sendall(b"x")
                    return receive_exactly(user, 1) == b"x"

            wait_until(works, READY_TIMEOUT, "the port answers")


def test_other_networks_are_no_change_of_address(certificate: Certificate, tmp_path: Path) -> None:
    """Not even the first that the kernel tells after the server's name was looked up; the first real change is."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    changed = "address towards the server has changed"
    with Namespace() as namespace, TcpEcho() as service:
        run = command("server", "run", "-c", str(write_config(tmp_path, "server", server_options(certificate))), "-v")
        with Process(namespace.argv(run), name="server") as server:
            keys = client_options(certificate, ("localhost", server_address(server)[1]), service.address)
            run = command("client", "run", "-c", str(write_config(tmp_path, "client", keys)), "-v")
            with Process(namespace.argv(run), name="client") as client:
                public_port(client)
                namespace.configure(["link", "add", "one", "type", "veth", "peer", "name", "other"])
                namespace.configure(["link", "set", "one", "up"])
                namespace.configure(["address", "add", "10.77.0.1/24", "dev", "one"])
                time.sleep(5 * machine._SETTLE)
                assert changed not in client.output()
                real = ["127.0.0.1", "dev", "lo", "table", "local", "src", "127.0.0.2"]
                namespace.configure(["route", "replace", "local", *real])
                client.wait_for(changed, READY_TIMEOUT)
