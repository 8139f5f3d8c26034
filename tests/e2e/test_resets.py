"""Stateless resets of servers that have one certificate: who may end whose connections (RFC 9000 section 21.11)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Server
from asport_sync.engine import CloseCause, Closed, CommandReceived, Connected, Connection, Probed, Transport
from asport_sync.runtime import machine
from asport_sync.wire import ServerHello, ServerHelloCode, decode
from tests.e2e.test_hostile import hello
from tests.e2e.tunnels import READY_TIMEOUT, server_options
from tests.engine.middle import Middle
from tests.engine.pair import Side, connect
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.services import Address, host_and_port
from tests.support.waiting import wait_until

SHARED = {"reset_key": "a secret that these servers share on purpose"}

# Sets the id of the machine that servers start on from here on; None: it has none.
MachineId = Callable[[str | None], None]


@pytest.fixture
def machine_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MachineId:
    path = tmp_path / "machine-id"
    monkeypatch.setattr(machine, "_MACHINE_IDS", (path,))

    def change(identity: str | None) -> None:
        path.unlink(missing_ok=True)
        if identity is not None:
            path.write_text(identity * 32 + "\n")

    change("a")
    return change


@dataclass
class Joined:
    """A client that has joined a server, and what carries its packets."""

    side: Side
    connection: Connection
    middle: Middle

    def lives(self) -> None:
        """Asks the server for a sign of life, which comes."""
        self.connection.probe(READY_TIMEOUT)
        assert self.side.expect(Probed).alive
        self.stands()

    def stands(self) -> None:
        """Nothing has ended the connection."""
        assert [event for event in self.side.seen() if isinstance(event, Closed)] == []

    def has_received(self, before: int) -> None:
        """Waits until more packets have come for it than ``before``; whatever they were."""
        wait_until(lambda: self.connection.info().packets_received > before, READY_TIMEOUT, "a packet is there")

    def is_reset(self) -> None:
        """Waits until a stateless reset has ended the connection."""
        assert self.side.expect(Closed).cause is CloseCause.STATELESS_RESET


@contextlib.contextmanager
def joined(certificate: Certificate, server: Address) -> Iterator[Joined]:
    with Side("client") as side, Middle(server) as middle:
        transport = Transport(max_streams_bidi=1, idle_timeout=60.0, silence=1000.0)
        connection = connect(side, certificate, middle.front.getsockname(), transport)
        side.expect(Connected)
        port = free_port()
        connection.send(hello(connection, port))
        answer = decode(side.expect(CommandReceived).data)[0]
        assert answer == ServerHello(ServerHelloCode.SUCCESS, port)
        yield Joined(side, connection, middle)


def server_at(certificate: Certificate, address: Address, **changes: Any) -> Server:
    """A server that keeps a silent client for longer than a test takes."""
    return Server(**server_options(certificate, server=host_and_port(address), max_idle_time=60.0, **changes))


def what_it_answers(client: Joined, other: Server) -> bytes:
    """What another server says to a packet of the client's connection."""
    wait_until(lambda: client.middle.from_client, READY_TIMEOUT, "the client has sent a packet to show")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.settimeout(READY_TIMEOUT)
        attacker.sendto(client.middle.from_client, other.address)
        answer = attacker.recv(65536)
    assert resets_sent(other) == 1
    return answer


def resets_sent(server: Server) -> int:
    return server.stats().engine["stateless_resets_sent"]


@pytest.mark.parametrize("where", ["another port", "another address"])
def test_no_server_ends_the_connections_of_another(certificate: Certificate, machine_id: MachineId, where: str) -> None:
    """They have one certificate and key, as those behind one name do, or those of one wildcard certificate."""
    with server_at(certificate, ("127.0.0.1", 0)) as first, joined(certificate, first.address) as client:
        host, port = ("127.0.0.2", first.address[1]) if where == "another address" else ("127.0.0.1", 0)
        with server_at(certificate, (host, port)) as second:
            answer = what_it_answers(client, second)
            before = client.connection.info().packets_received
            client.middle.to_client(answer)
            client.has_received(before)
            client.lives()


def test_servers_that_share_a_reset_key_do(certificate: Certificate, machine_id: MachineId, tmp_path: Path) -> None:
    """On purpose: where one takes over from another, on whatever machine and with whatever certificate."""
    with server_at(certificate, ("127.0.0.1", 0), **SHARED) as first, joined(certificate, first.address) as client:
        machine_id("b")
        with server_at(self_signed(tmp_path / "other"), ("127.0.0.1", 0), **SHARED) as second:
            client.middle.to_client(what_it_answers(client, second))
            client.is_reset()


@contextlib.contextmanager
def replaced(certificate: Certificate, move: Callable[[], None], **changes: str) -> Iterator[tuple[Joined, int]]:
    """A client of a server that has vanished without a word; another one has its address, and answers the client.

    Args:
        certificate: Of both servers.
        move: Called between the two.
        changes: Options of both.

    Yields:
        The client, and how many packets it had received before.
    """
    with contextlib.ExitStack() as stack:
        with server_at(certificate, ("127.0.0.1", 0), **changes) as first:
            address = first.address
            client = stack.enter_context(joined(certificate, address))
            client.middle.cut = True
        move()
        second = stack.enter_context(server_at(certificate, address, **changes))
        before = client.connection.info().packets_received
        client.middle.restore()
        client.connection.heartbeat(b"\0\5" + bytes(14), 0.05)
        wait_until(lambda: resets_sent(second) > 0, READY_TIMEOUT, "the new server has answered")
        yield client, before


def test_a_server_that_comes_back_ends_its_old_connections(certificate: Certificate, machine_id: MachineId) -> None:
    with replaced(certificate, lambda: machine_id("a")) as (client, _):
        client.is_reset()


def test_with_a_shared_reset_key_so_does_one_on_another_machine(
    certificate: Certificate, machine_id: MachineId
) -> None:
    with replaced(certificate, lambda: machine_id("b"), **SHARED) as (client, _):
        client.is_reset()


@pytest.mark.parametrize(("first", "second"), [("a", "b"), (None, None)])
def test_a_server_on_another_machine_does_not(
    certificate: Certificate, machine_id: MachineId, first: str | None, second: str | None
) -> None:
    """Nor one on a system without a machine id, where the key lasts no longer than the process."""
    machine_id(first)
    with replaced(certificate, lambda: machine_id(second)) as (client, before):
        client.has_received(before)
        client.stands()
