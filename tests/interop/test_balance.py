"""Clients of the reference and ours behind one public port of our server."""

from __future__ import annotations

import collections
import contextlib
import socket
from pathlib import Path

import pytest

from tests.interop.conftest import Pairing
from tests.interop.endpoints import (
    OURS,
    READY_TIMEOUT,
    REFERENCE_0_1_2,
    REFERENCE_0_4_0,
    OurServer,
    ReferenceClient,
    Tunnel,
    UdpMode,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, TcpService, UdpService
from tests.support.traffic import UdpPeer, connect, receive_exactly
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
NAMES = b"A", b"B", b"C"  # two clients of the reference, and ours


class Named(TcpService):
    """Answers each byte with a name."""

    def __init__(self, name: bytes, port: int) -> None:
        super().__init__(HOST, port)
        self._name = name

    def handle(self, connection: socket.socket) -> None:
        while connection.recv(1):
            connection.sendall(self._name)


def service(stack: contextlib.ExitStack, name: bytes) -> Address:
    """A local service over TCP and UDP whose answers are its name."""
    port = free_port()
    stack.enter_context(Named(name, port))
    stack.enter_context(UdpService(lambda _: name, HOST, port))
    return HOST, port


def visits(stack: contextlib.ExitStack, address: Address, count: int) -> list[tuple[bytes, socket.socket]]:
    """Connections that stay open, and who answers each."""
    found = []
    for _ in range(count):
        visitor = stack.enter_context(connect(address))
        visitor.settimeout(READY_TIMEOUT)
        visitor.sendall(b"?")
        found.append((receive_exactly(visitor, 1), visitor))
    return found


def answer(source: UdpPeer) -> bytes:
    """The answer to a datagram, which is sent until there is one."""
    for _ in range(int(READY_TIMEOUT)):
        source.send(b"?")
        if (got := source.receive(1.0)) is not None:
            return got
    raise AssertionError("no answer")


@pytest.mark.parametrize("mode", ["native", "quic"])
@pytest.mark.parametrize(
    "pairing",
    [Pairing(REFERENCE_0_1_2, OURS), Pairing(REFERENCE_0_4_0, OURS)],
    ids=lambda pairing: pairing.client.name,
    indirect=True,
)
def test_two_of_theirs_and_one_of_ours(
    pairing: Pairing, mode: UdpMode, certificate: Certificate, tmp_path: Path
) -> None:
    tunnel = Tunnel("both", udp_mode=mode, balance="round_robin")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(OURS.server(tunnel, pairing.client, certificate, tmp_path))
        assert isinstance(server, OurServer)
        clients = []
        for number, side in enumerate((pairing.client, pairing.client, OURS)):
            directory = tmp_path / str(number)
            directory.mkdir()
            local = service(stack, NAMES[number])
            of = side.client(tunnel, pairing.client, server.address, local, certificate, directory)
            clients.append(stack.enter_context(of))
            assert clients[-1].wait_ready() == tunnel.port
        address = (HOST, tunnel.port)

        begun = visits(stack, address, 12)
        assert collections.Counter(name for name, _ in begun) == {b"A": 4, b"B": 4, b"C": 4}
        sources = [stack.enter_context(UdpPeer(address)) for _ in range(6)]
        owners = [answer(source) for source in sources]
        assert collections.Counter(owners) == {b"A": 2, b"B": 2, b"C": 2}
        for _ in range(5):
            assert [answer(source) for source in sources] == owners

        # The reference does not say that it ends, so its connection ends with the idle timeout.
        dead = clients[0]
        assert isinstance(dead, ReferenceClient)
        dead.process.kill()
        wait_until(lambda: len(server.server.stats().connections) == 2, READY_TIMEOUT, "the server knows of its end")
        for name, visitor in begun:
            if name == b"A":
                with pytest.raises(ConnectionResetError):
                    visitor.recv(1)
            else:
                visitor.sendall(b"?")
                assert receive_exactly(visitor, 1) == name
        assert collections.Counter(name for name, _ in visits(stack, address, 4)) == {b"B": 2, b"C": 2}
        moved = [answer(source) for source in sources]
        assert [new for new, owner in zip(moved, owners, strict=True) if owner != b"A"] == [
            owner for owner in owners if owner != b"A"
        ]
        assert b"A" not in moved
