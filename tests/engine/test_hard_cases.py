"""Ends and stalls that come at a bad moment: nothing spins, nothing hangs, nothing is freed too early."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync.engine import (
    STREAM_REFUSED,
    Carrier,
    CommandReceived,
    Connected,
    Connection,
    Probed,
    SourceUnknown,
    StreamEnd,
    StreamEnded,
    StreamOpened,
    StreamResult,
    Transport,
)
from asport_sync.engine.binding import lib
from asport_sync.errors import EngineError
from tests.engine.middle import Middle
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    HEADER,
    Pair,
    Relay,
    Side,
    client_credentials,
    connect,
    connected,
    expect_closed,
    expect_reset,
    listen,
    tcp_pair,
)
from tests.support.certificates import Certificate
from tests.support.traffic import fill
from tests.support.waiting import wait_until

# Seconds of processor time in a second of waiting from which on a thread counts as spinning.
SPINNING = 0.5


def processor_share() -> float:
    """How much of the coming second this process computes."""
    before = time.process_time()
    time.sleep(1.0)
    return time.process_time() - before


@contextlib.contextmanager
def relayed(pair: Pair) -> Iterator[tuple[Relay, Relay, socket.socket, socket.socket]]:
    """Yields the server's and the client's relay, the user and the service."""
    stream = pair.server_connection.open_stream(HEADER)
    opened = pair.client.expect(StreamOpened)
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    relays = Relay(stream, public), Relay(opened.stream, local)
    for relay in relays:
        relay.start()
    with visitor, service:
        yield *relays, visitor, service
    for side in (pair.server, pair.client):
        side.close()
    for relay in relays:
        relay.finish()


def test_a_datagram_for_a_connection_that_is_gone(certificate: Certificate) -> None:
    """The caller still holds its socket, so the kernel goes on delivering to the engine's duplicate of it."""
    with Side("server") as server, Side("client") as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        endpoint, address = listen(server, certificate)
        connection = client.engine.connect(
            sock,
            client_credentials(client.engine, certificate),
            CLIENT_TRANSPORT,
            remote=address,
            server_name="localhost",
        )
        client.expect(Connected)
        connection.close()
        expect_closed(client, connection)
        expect_closed(server, server.expect(Connected).connection)
        endpoint.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:

            def rebound() -> bool:
                with contextlib.suppress(OSError):
                    late.bind(address)
                    return True
                return False

            wait_until(rebound, 15, "the server's port is free")
            for _ in range(20):
                late.sendto(bytes(100), sock.getsockname())
                time.sleep(0.02)
        assert processor_share() < SPINNING
        assert client.counter("connections_closed") == 1


def test_a_connection_ends_under_a_user_who_reads_slowly(certificate: Certificate) -> None:
    with connected(certificate) as pair, relayed(pair) as (relay, _, visitor, service):
        fill(service)
        pair.client_connection.close()
        expect_closed(pair.server, pair.server_connection)
        visitor.sendall(b"!")  # readable, but there is nobody left to send it to
        assert processor_share() < SPINNING
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := visitor.recv(1 << 20):
                received += len(chunk)
        assert received > 0
        result = relay.finish()
        assert isinstance(result, StreamResult)
        assert result.end is StreamEnd.CONNECTION


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_service_leaves_while_its_answer_is_stuck(certificate: Certificate, ending: str) -> None:
    narrow = Transport(max_streams_bidi=64, send_window=262144)
    with connected(certificate, client_transport=narrow) as pair, relayed(pair) as (_, relay, visitor, service):
        visitor.sendall(b"GET")
        visitor.shutdown(socket.SHUT_WR)
        assert service.recv(10) == b"GET"
        assert service.recv(10) == b""
        fill(service)
        if ending == "reset":
            service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        service.close()
        assert processor_share() < SPINNING
        assert relay.is_alive()


def test_a_refused_stream_is_reset_under_a_silent_user(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        stream = pair.server_connection.open_stream(HEADER)
        public, visitor = tcp_pair()
        with visitor:
            relay = Relay(stream, public)
            relay.start()
            pair.client.expect(StreamOpened).stream.refuse()
            expect_reset(visitor)
            assert relay.finish() == StreamResult(0, 0, StreamEnd.PEER_RESET, error=STREAM_REFUSED)


def test_a_stream_is_reset_after_its_answer_has_ended(certificate: Certificate) -> None:
    with connected(certificate) as pair, relayed(pair) as (relay, _, visitor, service):
        service.sendall(b"all")
        service.shutdown(socket.SHUT_WR)
        assert visitor.recv(10) == b"all"
        assert visitor.recv(10) == b""
        relay.stream.reset()
        result = relay.finish()
        assert isinstance(result, StreamResult)
        assert result.end is StreamEnd.LOCAL_RESET


def test_a_socket_that_can_not_be_attached_is_reported(certificate: Certificate, tmp_path: Path) -> None:
    with connected(certificate) as pair:
        pair.server.engine.report_streams(100)
        stream = pair.server_connection.open_stream(HEADER)
        descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)  # epoll takes no files
        assert lib.aq_stream_attach(pair.server.engine._pointer, stream.id, descriptor) == 0
        ended = pair.server.expect(StreamEnded)
        assert (ended.stream, ended.result.end) == (stream, StreamEnd.SOCKET_ERROR)


@contextlib.contextmanager
def through_middle(
    certificate: Certificate, server_transport: Transport
) -> Iterator[tuple[Side, Connection, Connection, Middle, tuple[str, int]]]:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, server_transport)
        with Middle(address) as middle:
            client_connection = connect(client, certificate, middle.front.getsockname())
            client.expect(Connected)
            yield server, server.expect(Connected).connection, client_connection, middle, address


def test_rubbish_is_no_sign_of_life(certificate: Certificate) -> None:
    """Whoever has seen a connection ID can send packets with it, from anywhere; none of them decrypts."""
    with through_middle(certificate, Transport()) as (server, connection, client, middle, address):
        client.heartbeat(b"\0\5", 0.05)
        wait_until(lambda: middle.from_client, 15, "a packet with the server's connection ID")
        peer = connection.info().peer
        middle.cut = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
            raw_socket.bind(("127.0.0.2", 0))
            connection.probe(0.5)
            raw_socket.sendto(b"\x40" + middle.from_client[1:17] + os.urandom(40), address)
            assert not server.expect(Probed).alive
        assert connection.info().peer == peer


def test_a_stalled_path_drops_the_oldest_datagrams(certificate: Certificate) -> None:
    narrow = Transport(datagram_queue=65536, idle_timeout=30.0)
    with through_middle(certificate, narrow) as (server, connection, client, middle, _):
        connection.set_joined(Carrier.DATAGRAM)
        client.set_joined(Carrier.DATAGRAM)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as public,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor,
        ):
            for sock in (public, visitor):
                sock.bind(("127.0.0.1", 0))
            udp = connection.open_udp(public, public=True)
            visitor.sendto(b"first", public.getsockname())
            assert server.expect(SourceUnknown).source == visitor.getsockname()
            udp.add_association(1, visitor.getsockname())
            middle.cut = True
            for number in range(1500):
                visitor.sendto(b"%04d" % number + bytes(996), public.getsockname())
                if number % 16 == 15:
                    connection.info()  # the engine has had a turn
            wait_until(lambda: server.counter("packet_drop_queue_full") > 1000, 15, "the oldest are dropped")
            assert connection.info().datagrams_queued <= 65536
            assert server.counter("packet_drop_ring_full") == 0
            udp.close()


def test_values_that_would_wrap_are_refused(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        with pytest.raises(EngineError):
            pair.client_connection.close(linger=2.0**60)
        with pytest.raises(EngineError):
            pair.client_connection.heartbeat(b"\0\5", 1e-6)
        assert pair.client_connection.info().streams == 0


def test_what_overtakes_the_handshake_is_heard_after_it(certificate: Certificate) -> None:
    """The client is done first, and what it says then may come before its last handshake packet, which was lost."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            middle.one_flight = True
            connection = connect(client, certificate, middle.front.getsockname())
            client.expect(Connected)
            connection.send(b"\0\5")
            wait_until(lambda: middle.from_client, 15, "the command is on its way")
            middle.one_flight = middle.lose_handshake = False
            wait_until(lambda: len(server.seen()) == 2, 15, "the server has heard both")
            assert [type(event) for event in server.seen()] == [Connected, CommandReceived]
