"""Users and local services that are gone without a word, as behind a failed link, give back what they held."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tunnels import READY_TIMEOUT, client_process, public_port, server_process
from tests.path.network import NetworkPath
from tests.support.certificates import Certificate
from tests.support.namespaces import unavailable
from tests.support.process import Process
from tests.support.traffic import receive_exactly
from tests.support.waiting import wait_until

QUIC_PORT = 4433
PUBLIC_PORT = 20000
CONNECTIONS = 25
# Seconds for what takes four, on a machine that has much else to do. Without keepalive it would be for ever, and a
# quarter of an hour where data waits.
GRACE_PERIOD = 60.0


@pytest.fixture
def path() -> Iterator[NetworkPath]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with NetworkPath() as found:
        yield found


def descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@contextlib.contextmanager
def running(
    directory: Path, certificate: Certificate, path: NetworkPath, local: str, watching: str
) -> Iterator[tuple[Process, Process]]:
    """Server and client as commands in namespace ``a``; one of them probes TCP peers, after one second."""
    proxy = {"bind_ip": "0.0.0.0", "allow_ports": PUBLIC_PORT}
    keepalive = {side: {"tcp_keepalive": "1s" if side == watching else "off"} for side in ("server", "client")}
    quic = ("127.0.0.1", QUIC_PORT)
    server = server_process(directory, certificate, server=f"127.0.0.1:{QUIC_PORT}", proxy=proxy, **keepalive["server"])
    client = client_process(directory, certificate, quic, (local, 8080), **keepalive["client"])
    for process in (server, client):
        process.argv[:] = path.a.argv(process.argv)
    with server, client:
        assert public_port(client) == PUBLIC_PORT
        yield server, client


@pytest.mark.parametrize("data_waits", [False, True], ids=["idle", "data waits"])
@pytest.mark.parametrize("gone", ["users", "services"])
def test_what_has_vanished_gives_back_its_connections(
    certificate: Certificate, tmp_path: Path, path: NetworkPath, gone: str, data_waits: bool
) -> None:
    """On the side of the vanished, which alone has keepalive, and through it on the other one."""
    users, services = (path.b, path.a) if gone == "users" else (path.a, path.b)
    address = {path.a: path.address_a, path.b: path.address_b}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(services.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[services], 8080))
        listener.listen(CONNECTIONS)
        listener.settimeout(READY_TIMEOUT)
        watching = "server" if gone == "users" else "client"
        server, client = stack.enter_context(running(tmp_path, certificate, path, address[services], watching))
        pairs = []
        for _ in range(CONNECTIONS):
            user = stack.enter_context(users.socket())
            user.settimeout(GRACE_PERIOD)
            user.connect((path.address_a, PUBLIC_PORT))
            user.sendall(b"here")
            service, _ = listener.accept()
            stack.enter_context(service)
            service.settimeout(GRACE_PERIOD)
            assert receive_exactly(service, 4) == b"here"
            service.sendall(b"there")
            assert receive_exactly(user, 5) == b"there"
            pairs.append((user, service))
        # Not before the first connection: the port is announced a moment before the engine has its listener.
        with_all = {process: descriptors(process) for process in (server, client)}
        path.change(black_hole=True)
        for user, service in pairs:
            left = service if gone == "users" else user
            if data_waits:
                left.sendall(bytes(1000))
        for user, service in pairs:
            left = service if gone == "users" else user
            with pytest.raises(ConnectionResetError):
                left.recv(1)
        for process, count in with_all.items():
            wait_until(
                lambda process=process, count=count: descriptors(process) <= count - CONNECTIONS,  # type: ignore[misc]
                GRACE_PERIOD,
                f"{process.name} has its descriptors back",
                detail=process.description,
            )
        side = server if gone == "users" else client
        side.wait_for("Connection timed out|No route to host", READY_TIMEOUT)


def test_urgent_bytes_through_the_tunnel(certificate: Certificate, tmp_path: Path, path: NetworkPath) -> None:
    """Both ways, between the commands, across a link."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(path.b.socket())
        listener.bind((path.address_b, 8080))
        listener.listen()
        listener.settimeout(READY_TIMEOUT)
        stack.enter_context(running(tmp_path, certificate, path, path.address_b, "server"))
        user = stack.enter_context(path.b.socket())
        user.settimeout(READY_TIMEOUT)
        user.connect((path.address_a, PUBLIC_PORT))
        user.send(b"1", socket.MSG_OOB)
        service, _ = listener.accept()
        stack.enter_context(service)
        service.settimeout(READY_TIMEOUT)
        for source, target, said in ((user, service, b"1"), (service, user, b"")):
            for number in range(100):
                before, urgent = b"%d before " % number, b"!"
                source.sendall(before)
                source.send(urgent, socket.MSG_OOB)
                said += before + urgent
            assert receive_exactly(target, len(said)) == said
