"""A server that turns against its client: what it can make the client hold is bounded, and counted beyond."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator

import pytest

from asport_sync import Client
from asport_sync.client.shared import max_associations
from asport_sync.engine import Carrier, CommandReceived, Connected, Connection
from asport_sync.runtime import descriptors
from asport_sync.wire import Address, Dissociate, Packet, ServerHello, ServerHelloCode, encode
from tests.e2e.tunnels import READY_TIMEOUT, client_options, counter
from tests.engine.pair import Side, listen
from tests.support.certificates import Certificate
from tests.support.services import UdpSink
from tests.support.waiting import wait_until

PORT = 4711  # which it claims to have opened
REASONS = ("limit", "share", "local_service")  # the last: other programs hold what the sockets need


@dataclasses.dataclass
class Betrayal:
    """A client that believes it has joined, and the server's end of its connection."""

    server: Side
    client: Client
    connection: Connection

    def engine_counter(self, name: str) -> int:
        return self.client.stats().engine[name]

    def streams(self) -> int:
        return sum(connection.streams for connection in self.client.stats().connections)


@pytest.fixture
def betrayal(certificate: Certificate) -> Iterator[Betrayal]:
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(UdpSink())
        server = stack.enter_context(Side("server"))
        _, address = listen(server, certificate)
        client = stack.enter_context(Client(**client_options(certificate, address, service.address)))
        connection = server.expect(Connected).connection
        server.expect(CommandReceived)  # its ClientHello; whoever it is
        connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))
        connection.set_joined(Carrier.STREAM)
        client.wait_ready(READY_TIMEOUT)
        yield Betrayal(server, client, connection)


def test_associations_are_no_more_than_the_client_can_afford(betrayal: Betrayal) -> None:
    most = max_associations(descriptors.limit())
    peers = [Address.from_text(f"198.51.100.{number}", 4711) for number in range(3)]
    for association in range(1, 8001):
        betrayal.connection.send(encode(Packet(association, 0, 1, 0, peers[association % 3], b"x" * 100)))

    def settled() -> bool:
        made, refused = (
            counter(betrayal.client, "udp_associations"),
            sum(counter(betrayal.client, f"udp_associations_refused_{why}") for why in REASONS),
        )
        dropped = betrayal.engine_counter("packet_drop_waiting_full")
        return made + refused + dropped == 8000

    def figures() -> str:
        ours, peers_ = betrayal.client.stats(), betrayal.server.engine.counters()
        return f"client {ours.counters} {ours.engine}\nserver {peers_}"

    wait_until(settled, READY_TIMEOUT, "each was looked at, or dropped and counted", detail=figures)
    # Associations that are idle for a second make room, so a slow machine makes more of them than there are places.
    made, evicted = (counter(betrayal.client, f"udp_associations{what}") for what in ("", "_evicted"))
    assert 0 < made - evicted <= most


def test_streams_that_never_say_what_they_are_end_with_the_time_for_it(betrayal: Betrayal) -> None:
    for _ in range(1000):
        betrayal.connection.open_stream(b"\0\2")
    wait_until(lambda: betrayal.engine_counter("commands_late") == 1000, READY_TIMEOUT, "all are given up")
    wait_until(lambda: betrayal.streams() == 0, READY_TIMEOUT, "none is left")


def test_commands_that_mean_nothing_cost_nothing(betrayal: Betrayal) -> None:
    commands = [encode(Dissociate(number)) for number in range(2000)]
    commands += [encode(ServerHello(ServerHelloCode.AUTH_FAILED))] * 500
    commands += [encode(ServerHello(ServerHelloCode.SUCCESS, 1))] * 500
    for command in commands:
        betrayal.connection.send(command)
    wait_until(lambda: betrayal.engine_counter("commands_received") > len(commands), READY_TIMEOUT, "all have come")
    # The first ServerHello counts.
    assert betrayal.client.wait_ready(READY_TIMEOUT)[1] == PORT
    assert betrayal.connection.info().silence < READY_TIMEOUT


def test_its_own_local_service_is_all_that_it_can_reach(betrayal: Betrayal) -> None:
    """A Packet names who sent it, never where it goes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.setblocking(False)
        named = Address.from_text(*elsewhere.getsockname())
        for association in range(1, 50):
            betrayal.connection.send(encode(Packet(association, 0, 1, 0, named, b"not for you")))
        wait_until(lambda: counter(betrayal.client, "udp_associations") == 49, READY_TIMEOUT, "all are made")
        with pytest.raises(BlockingIOError):
            elsewhere.recv(100)
