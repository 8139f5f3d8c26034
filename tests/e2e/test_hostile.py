"""Peers of the tunnel that keep no rules, over a real QUIC connection: what they break off is theirs alone."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from asport_sync import Client, Server
from asport_sync.engine import CloseCause, CommandReceived, Connected, Connection, Transport
from asport_sync.errors import HandleGoneError
from asport_sync.wire import (
    TOKEN_LENGTH,
    ClientHello,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHello,
    ServerHelloCode,
    decode,
    encode,
    token,
)
from tests.e2e.tunnels import PASSWORD, READY_TIMEOUT, USER, client_options, server_options
from tests.engine.pair import Side, connect, expect_closed, listen
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

WRONG_DIRECTION = {
    "ServerHello": encode(ServerHello(ServerHelloCode.SUCCESS, 2024)),
    "Connect": encode(Connect(None)),
    "Dissociate": encode(Dissociate(1)),
}
MALFORMED = {
    "version": b"\x01\x05",
    "type": b"\x00\x09",
    "code": b"\x00\x01\x09",
    "mode": b"\x00\x00" + bytes(48) + b"\x09" + bytes(4),
    "truncated": b"\x00\x00" + bytes(20),
}


def hello(connection: Connection, port: int) -> bytes:
    """The ClientHello of the user that the server knows."""
    user = uuid.UUID(USER)
    proof = connection.export(token.label(user), token.context(PASSWORD), TOKEN_LENGTH)
    return encode(ClientHello(user, proof, 3, port, port))


def counter(side: Server | Client, group: str, name: str) -> int:
    """A counter of the group ``engine`` or ``counters``."""
    return int(side.stats().as_dict()[group][name])


@contextlib.contextmanager
def guest(certificate: Certificate, *, joins: bool) -> Iterator[tuple[Server, Side, Connection]]:
    """A server, and a client of ours that has joined it or only connected. In the end the server serves others."""
    with Server(**server_options(certificate)) as server, Side("guest") as side:
        connection = connect(side, certificate, server.address)
        side.expect(Connected)
        if joins:
            port = free_port()
            connection.send(hello(connection, port))
            answer = side.expect(CommandReceived)
            assert decode(answer.data)[0] == ServerHello(ServerHelloCode.SUCCESS, port)
        yield server, side, connection
        with TcpEcho() as service, Client(**client_options(certificate, server.address, service.address)) as client:
            assert echo(client.wait_ready(READY_TIMEOUT), b"all is well") == b"all is well"


@pytest.mark.parametrize("joins", [False, True], ids=["before joining", "joined"])
@pytest.mark.parametrize("data", [*WRONG_DIRECTION.values(), *MALFORMED.values()], ids=[*WRONG_DIRECTION, *MALFORMED])
def test_a_client_that_breaks_a_rule_loses_its_connection(certificate: Certificate, data: bytes, joins: bool) -> None:
    with guest(certificate, joins=joins) as (server, side, connection):
        connection.send(data)
        closed = expect_closed(side, connection)
        assert (closed.cause, closed.code) == (CloseCause.PEER_APPLICATION, 0)
        assert counter(server, "counters", "connections_broken_off") == 1


def test_a_second_hello(certificate: Certificate) -> None:
    with guest(certificate, joins=True) as (server, side, connection):
        connection.send(hello(connection, free_port()))
        assert expect_closed(side, connection).cause is CloseCause.PEER_APPLICATION
        assert counter(server, "counters", "clients_joined") == 1


def test_a_token_of_another_connection(certificate: Certificate) -> None:
    """Recorded or stolen, it is good for nothing."""
    with guest(certificate, joins=False) as (server, side, first):
        second = connect(side, certificate, server.address)
        side.expect(Connected)
        second.send(hello(first, free_port()))
        answer = side.expect(CommandReceived)
        assert decode(answer.data)[0] == ServerHello(ServerHelloCode.AUTH_FAILED)
        expect_closed(side, second)


def test_heartbeats_may_overtake_a_hello(certificate: Certificate) -> None:
    with guest(certificate, joins=False) as (server, side, connection):
        connection.heartbeat(encode(Heartbeat()), 0.01)
        wait_until(lambda: counter(server, "engine", "commands_received") > 3, 15, "heartbeats are counted")
        connection.heartbeat(b"", 0.0)
        port = free_port()
        connection.send(hello(connection, port))
        answer = side.expect(CommandReceived)
        assert decode(answer.data)[0] == ServerHello(ServerHelloCode.SUCCESS, port)


def test_a_packet_may_not(certificate: Certificate) -> None:
    with guest(certificate, joins=False) as (server, side, connection):
        connection.send(encode(Packet(1, 1, 1, 0, None, b"x")))
        expect_closed(side, connection)
        assert counter(server, "engine", "packets_received") == 0


def test_a_server_that_breaks_every_rule_is_borne(certificate: Certificate) -> None:
    with Side("server") as side, TcpEcho() as service:
        _, address = listen(side, certificate, Transport())
        options = client_options(certificate, address, service.address, expected_port_range=2024)
        with Client(**options) as client:
            connection = side.expect(Connected).connection
            asked, _ = decode(side.expect(CommandReceived).data)
            assert isinstance(asked, ClientHello)
            connection.set_joined(None)
            for data in MALFORMED.values():
                connection.send(data)
            connection.send(encode(asked))
            connection.send(encode(Heartbeat()))
            connection.send(encode(Dissociate(7)))
            connection.send(encode(Packet(7, 1, 3, 2, None, b"x")))
            connection.open_stream(b"\x00\x05 no Connect").reset()
            connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, 2024)))
            assert client.wait_ready(READY_TIMEOUT)[1] == 2024
            assert counter(client, "engine", "violations") >= len(MALFORMED)
            connection.close()


# As in engine.py: clients of one address that have not joined.
MAX_OF_ONE_ADDRESS = 200


def test_who_guesses_passwords_holds_up_newcomers_of_his_address_alone(certificate: Certificate) -> None:
    """Who has joined goes on, others come in from elsewhere, and behind that address once places are forgotten."""
    with (
        TcpEcho() as service,
        Server(**server_options(certificate)) as server,
        Client(**client_options(certificate, server.address, service.address)) as before,
        Side("guesser") as guesser,
        Side("elsewhere") as elsewhere,
    ):
        public = before.wait_ready(READY_TIMEOUT)
        wrong = encode(ClientHello(uuid.UUID(USER), bytes(TOKEN_LENGTH), 3, 1, 65535))
        for _ in range(MAX_OF_ONE_ADDRESS):
            connect(guesser, certificate, server.address)
        for _ in range(MAX_OF_ONE_ADDRESS):
            guess = guesser.expect(Connected).connection
            with contextlib.suppress(HandleGoneError):  # the server may have waited long enough
                guess.send(wrong)

        def refused() -> bool:
            connect(guesser, certificate, server.address)
            return counter(server, "engine", "connections_refused_source") > 0

        wait_until(refused, READY_TIMEOUT, "there is no place left for the guesser's address")
        port = free_port()
        newcomer = connect(elsewhere, certificate, server.address, host="127.0.0.2")
        elsewhere.expect(Connected)
        newcomer.send(hello(newcomer, port))
        answer = elsewhere.expect(CommandReceived)
        assert decode(answer.data)[0] == ServerHello(ServerHelloCode.SUCCESS, port)
        assert echo(public, b"all is well") == b"all is well"
        with Client(**client_options(certificate, server.address, service.address)) as behind:
            assert echo(behind.wait_ready(3 * READY_TIMEOUT), b"at last") == b"at last"
        assert counter(before, "counters", "joined") == 1
        assert counter(server, "counters", "refused_auth_failed") > 0
        assert counter(server, "counters", "refusals_delayed") > 0
