"""Silence, and a client's connection that moves to another address, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import Connected, Connection, Probed, Silence, Transport
from asport_sync.engine.binding import ffi, lib
from asport_sync.errors import EngineError
from tests.engine.middle import Middle
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    Pair,
    Side,
    connect,
    connected,
    echo,
    expect_closed,
    listen,
    running_relays,
)
from tests.support.certificates import Certificate
from tests.support.namespaces import Namespace, unavailable
from tests.support.waiting import wait_until

WATCHFUL = Transport(max_streams_bidi=64, keep_alive=0.05, silence=0.2)


def test_silence_is_told_and_so_is_its_end(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            connection = connect(client, certificate, middle.front.getsockname(), WATCHFUL)
            client.expect(Connected)
            accepted = server.expect(Connected).connection
            for _ in range(2):
                middle.cut = True
                assert client.expect(Silence).silent
                middle.restore()
                assert not client.expect(Silence).silent
            # PINGs keep it from being silent although nothing is said.
            received = connection.info().packets_received
            wait_until(lambda: connection.info().packets_received > received + 10, 15, "PINGs are answered")
            assert not [event for event in client.seen() if isinstance(event, Silence)]
            connection.close()
            expect_closed(server, accepted)


def test_the_networks_word_that_nobody_is_there_makes_silence(certificate: Certificate) -> None:
    """It does not end the connection: anybody could forge it."""
    with Side("client") as client:
        with Side("server") as server:
            _, address = listen(server, certificate)
            middle = Middle(address)
            with middle:
                connection = connect(
                    client,
                    certificate,
                    middle.front.getsockname(),
                    Transport(max_streams_bidi=1, idle_timeout=3.0, keep_alive=0.2, silence=1000.0),
                )
                client.expect(Connected)
            # Its socket is closed: port unreachable.
            assert client.expect(Silence).silent
            assert connection.info().packets_sent > 0
            expect_closed(client, connection)


@contextlib.contextmanager
def silence_only_by_a_hint(certificate: Certificate) -> Iterator[tuple[Side, Connection, Middle]]:
    """A client, its connection, which reports silence only where something hints at it, and the path."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            connection = connect(
                client, certificate, middle.front.getsockname(), Transport(max_streams_bidi=1, silence=1000.0)
            )
            client.expect(Connected)
            accepted = server.expect(Connected).connection
            yield client, connection, middle
            connection.close()
            expect_closed(server, accepted)


def test_noise_is_a_hint_but_not_again_and_again(certificate: Certificate) -> None:
    """It may be the stateless reset of a server with another key, and may be forged."""
    with silence_only_by_a_hint(certificate) as (client, connection, middle):

        def noise_after_a_moment() -> None:
            wait_until(lambda: connection.info().silence > 0.15, 15, "the handshake is long over")
            before = connection.info().packets_received
            assert middle.client is not None
            middle.front.sendto(b"\x40" + bytes(42), middle.client)
            wait_until(lambda: connection.info().packets_received > before, 15, "the noise is there")

        noise_after_a_moment()
        assert client.expect(Silence).silent
        connection.probe(15.0)
        assert client.expect(Probed).alive
        assert not client.expect(Silence).silent
        noise_after_a_moment()
        assert not [event for event in client.seen() if isinstance(event, Silence)]


def test_a_question_that_can_not_leave_is_waited_for(certificate: Certificate) -> None:
    """With a full congestion window the next packet is that of the probe timeout, which an outage has made long."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            connection = connect(client, certificate, middle.front.getsockname(), CLIENT_TRANSPORT)
            client.expect(Connected)
            accepted = server.expect(Connected)
            accepted.connection.set_joined(None)
            assert accepted.endpoint is not None
            pair = Pair(server, client, accepted.endpoint, accepted.connection, connection)
            with running_relays(pair) as (_, _, service):
                middle.cut = True
                service.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        service.send(bytes(65536))
                wait_until(lambda: connection.info().silence > 1.3, 15, "probe timeouts have become long")
                middle.restore()
                connection.probe(0.05, 10.0)
                assert client.expect(Probed).alive
            connection.close()
            expect_closed(server, accepted.connection)


@pytest.mark.parametrize("hint", [False, True], ids=["silence", "a hint"])
def test_a_question_outlasts_an_outage_unless_something_hints_that_the_peer_is_gone(
    certificate: Certificate, hint: bool
) -> None:
    with silence_only_by_a_hint(certificate) as (client, connection, middle):
        wait_until(lambda: connection.info().silence > 0.15, 15, "the handshake is long over")
        middle.cut = True
        if hint:
            middle.to_client(b"\x40" + bytes(42))
            assert client.expect(Silence).silent
        connection.probe(0.05, 1000.0 if hint else 15.0)
        time.sleep(0.5)
        middle.cut = hint
        assert client.expect(Probed).alive is not hint
        middle.restore()


def test_without_being_asked_nobody_tells_of_silence(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, Transport(idle_timeout=1.0))
        with Middle(address) as middle:
            connection = connect(client, certificate, middle.front.getsockname())
            client.expect(Connected)
            middle.cut = True
            expect_closed(client, connection)
            assert not [event for event in client.seen() if isinstance(event, Silence)]


# --- another address --------------------------------------------------------------------------------------------------


def udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def test_a_connection_that_has_the_right_address_stays(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        for _ in range(3):
            with udp_socket() as sock:
                assert not pair.client_connection.migrate(sock)
        assert pair.client.counter("connections_migrated") == 0
        echo(pair, 10_000)


def test_a_server_does_not_migrate(certificate: Certificate) -> None:
    with connected(certificate) as pair, udp_socket() as sock, pytest.raises(EngineError):
        pair.server_connection.migrate(sock)


def test_an_attempt_does_not_migrate(certificate: Certificate) -> None:
    with Side("client") as client, udp_socket() as silent, udp_socket() as sock:
        silent.bind(("127.0.0.1", 0))
        connection = connect(client, certificate, silent.getsockname())
        assert not connection.migrate(sock)  # it has the right address
        connection.close()


def test_a_connection_follows_its_address(certificate: Certificate) -> None:
    """Loopback in a namespace: which address packets to the server come from is a matter of the route."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    # A server with another library than ours takes sixteen connection ids of a client (compat.h), and a move costs one.
    moves = 24 if ffi.string(lib.aq_ngtcp2_origin()) == b"bundled, adjusted" else 9
    server_address = "10.9.0.1"
    with Namespace() as namespace, Side("server") as server, Side("client") as client:
        namespace.configure(["address", "add", f"{server_address}/32", "dev", "lo"])
        mine = [f"10.9.1.{number}" for number in range(1, 4)]
        for address in mine:
            namespace.configure(["address", "add", f"{address}/32", "dev", "lo"])

        def come_from(address: str) -> None:
            route = ["local", server_address, "dev", "lo", "table", "local"]
            namespace.configure(["route", "replace", *route, "src", address])

        come_from(mine[0])
        endpoint, remote = namespace.call(lambda: listen(server, certificate, address=(server_address, 0)))
        connection = namespace.call(lambda: connect(client, certificate, remote, CLIENT_TRANSPORT))
        client.expect(Connected)
        accepted = server.expect(Connected).connection
        accepted.set_joined(None)
        assert accepted.info().peer[0] == mine[0]
        pair = Pair(server, client, endpoint, accepted, connection)
        with running_relays(pair) as (relays, visitor, service):
            for turn in range(1, moves + 1):
                come_from(mine[turn % 3])
                wait_until(lambda: moved(namespace, connection), 15, "it has a connection id to spare, and moves")
                data = bytes((turn,)) * 5000
                visitor.sendall(data)
                received = b""
                while len(received) < len(data):
                    received += service.recv(len(data))
                assert received == data
                service.sendall(data)
                received = b""
                while len(received) < len(data):
                    received += visitor.recv(len(data))
                assert received == data
                connection.probe(15.0)
                assert client.expect(Probed).alive
                assert accepted.info().peer[0] == mine[turn % 3]
            assert client.counter("connections_migrated") == moves
            assert len(relays) == 2
            # Without a way it stays where it is.
            namespace.configure(["route", "delete", "local", server_address, "table", "local"])
            with pytest.raises(EngineError):
                moved(namespace, connection)
            come_from(mine[0])
            visitor.sendall(b"!")
            assert service.recv(1) == b"!"
            connection.close()
            expect_closed(server, accepted)


def moved(namespace: Namespace, connection: Connection) -> bool:
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return connection.migrate(sock)
