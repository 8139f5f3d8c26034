"""What a client may do before it is admitted, as the engine sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import CloseCause, CommandReceived, Connected, Transport
from asport_sync.wire import Dissociate, encode
from tests.engine.middle import Middle
from tests.engine.pair import CLIENT_TRANSPORT, Side, connect, connected, expect_closed, listen
from tests.engine.test_endpoints import long_header
from tests.hostile.initials import initials
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

COMMAND = encode(Dissociate(1))
# As in conn.h.
EVENTS_BEFORE_JOIN = 4
PACKETS_BEFORE_JOIN = 512


def test_only_the_first_commands_are_heard_before_admission(certificate: Certificate) -> None:
    with connected(certificate, joined=False) as pair:
        for _ in range(50):
            pair.client_connection.send(COMMAND)
        wait_until(lambda: pair.server.counter("commands_received") == 50, 15, "all have come")
        pair.server_connection.info()  # the engine has had a turn
        assert len(pair.server.seen()) == EVENTS_BEFORE_JOIN
        assert pair.server.counter("events_dropped") == 50 - EVENTS_BEFORE_JOIN
        pair.server_connection.set_joined(None)
        pair.client_connection.send(COMMAND)
        wait_until(lambda: len(pair.server.seen()) == EVENTS_BEFORE_JOIN + 1, 15, "from here on all are heard")


def test_commands_need_the_window_that_comes_with_admission(certificate: Certificate) -> None:
    """A window of 16 KiB is there before, and is not given back; with admission all of it is."""
    large = COMMAND + bytes(252)  # what follows a command on its stream is ignored, and counts
    with connected(certificate, joined=False) as pair:
        for _ in range(200):
            pair.client_connection.send(large)
        wait_until(lambda: pair.server.counter("commands_received") == 64, 15, "16 KiB of commands")
        pair.client_connection.send(large)
        pair.server_connection.info()
        assert pair.server.counter("commands_received") == 64
        pair.server_connection.set_joined(None)
        wait_until(lambda: pair.server.counter("commands_received") == 201, 15, "the rest")
        assert pair.server.expect(CommandReceived).data == COMMAND


def test_a_client_that_sends_much_and_does_not_join_is_cut_off(certificate: Certificate) -> None:
    with connected(certificate, joined=False) as pair:
        pair.client_connection.heartbeat(b"\0\5", 0.001)
        closed = expect_closed(pair.server, pair.server_connection)
        assert closed.cause is CloseCause.LOCAL
        assert pair.server.counter("connections_flooding") == 1
        expect_closed(pair.client, pair.client_connection)
    with connected(certificate) as pair:
        pair.client_connection.heartbeat(b"\0\5", 0.001)
        wait_until(lambda: pair.server_connection.info().packets_received > 2 * PACKETS_BEFORE_JOIN, 30, "many packets")
        assert pair.server.counter("connections_flooding") == 0


def test_a_first_packet_that_is_none_leaves_nothing(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, max_connections=1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
            for number, packet in enumerate(initials(5), start=1):
                raw_socket.sendto(packet[:-1] + bytes([packet[-1] ^ 1]), address)
                wait_until(lambda: server.counter("initials_dropped") == number, 15, "dropped")  # noqa: B023
        connect(client, certificate, address)
        client.expect(Connected)


def test_a_client_that_has_joined_counts_no_more(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, retry_threshold=2)
        for _ in range(4):
            connect(client, certificate, address, CLIENT_TRANSPORT)
            client.expect(Connected)
            server.expect(Connected).connection.set_joined(None)
        assert server.counter("retries_sent") == 0
        # Those that are connected and not admitted do count.
        for _ in range(3):
            connect(client, certificate, address, CLIENT_TRANSPORT)
            client.expect(Connected)
            server.expect(Connected)
        assert server.counter("retries_sent") == 1


@pytest.mark.parametrize("joins", [False, True])
def test_handshakes_for_nothing_use_up_what_a_source_has(certificate: Certificate, joins: bool) -> None:
    """Who joins and leaves may come as often as he likes; others keep their place for a tenth of a second each."""
    crowd = 30
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, max_half_open_per_source=crowd)

        def come_and_go() -> None:
            before = server.counter("quic_handshakes_completed"), server.counter("connections_refused_source")
            for _ in range(crowd):
                connect(client, certificate, address)
            wait_until(
                lambda: (
                    server.counter("quic_handshakes_completed") + server.counter("connections_refused_source")
                    >= sum(before) + crowd
                ),
                15,
                "all are served or refused",
            )
            for _ in range(server.counter("quic_handshakes_completed") - before[0]):
                connection = server.expect(Connected).connection
                if joins:
                    connection.set_joined(None)
                connection.close()

        come_and_go()
        assert server.counter("connections_refused_source") == 0
        time.sleep(1.5)  # those that are closed have had their last second
        come_and_go()
        assert (server.counter("connections_refused_source") == 0) is joins


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """A socket on a port below 1,024; receiving does not wait."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        try:
            service.bind(("127.0.0.9", 53))
        except PermissionError:
            pytest.skip("only root may bind port 53")
        except OSError:
            pytest.skip("port 53 is in use")
        service.setblocking(False)
        yield service


def test_nothing_goes_to_ports_of_services(certificate: Certificate, service: socket.socket) -> None:
    """A made-up source must not make the server talk to an echo or a name service."""
    with Side("server") as server:
        _, address = listen(server, certificate, retry_threshold=0)
        packets = [initials(1)[0], long_header(0x1A2A3A4A, 1200), b"\x40" + os.urandom(100)]
        for packet in packets:
            service.sendto(packet, address)
        wait_until(lambda: server.counter("quic_drop_source_port") == len(packets), 15, "all are dropped")
        with pytest.raises(BlockingIOError):
            service.recv(2000)
        assert server.counter("quic_datagrams_sent") == 0


def test_no_client_can_move_to_the_port_of_a_service(certificate: Certificate, service: socket.socket) -> None:
    """A packet of a connection that comes from there is not answered with the question whether its client has moved."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            connection = connect(client, certificate, middle.front.getsockname())
            client.expect(Connected)
            accepted = server.expect(Connected).connection
            before = accepted.info().peer
            connection.heartbeat(b"\0\5", 0.05)
            middle.cut = True
            passed: set[bytes] = set()
            while len(passed) < 5:
                latest = middle.from_client
                wait_until(lambda latest=latest: middle.from_client != latest, 15, "another packet of the client")  # type: ignore[misc]
                passed.add(packet := middle.from_client)
                service.sendto(packet, address)
            wait_until(lambda: server.counter("quic_drop_source_port") == len(passed), 15, "all are dropped")
            accepted.info()  # the engine has had a turn
            with pytest.raises(BlockingIOError):
                service.recv(2000)
            middle.restore()
            heard = server.counter("quic_datagrams_received")
            wait_until(lambda: server.counter("quic_datagrams_received") >= heard + 5, 15, "the client is heard again")
            assert accepted.info().peer == before
            connection.close()
            expect_closed(server, accepted)


def test_a_half_open_connection_ends_with_the_time_for_its_handshake(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client, contextlib.ExitStack() as stack:
        _, address = listen(server, certificate, Transport(handshake_timeout=0.5), max_connections=2)
        raw_socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for packet in initials(2):
            raw_socket.sendto(packet, address)
        wait_until(lambda: server.counter("connections_accepted") == 2, 15, "two are half-open")
        connection = connect(client, certificate, address)
        assert expect_closed(client, connection).cause is CloseCause.PEER_TRANSPORT
        wait_until(lambda: server.counter("quic_handshakes_failed") == 2, 15, "both have timed out")

        def gets_in() -> bool:
            connect(client, certificate, address)
            wait_until(lambda: client.seen(), 15, "an outcome")
            return any(isinstance(event, Connected) for event in client.seen())

        wait_until(gets_in, 15, "their places are free")


@pytest.mark.parametrize("length", [21, 22, 23, 24, 43, 44, 60, 1200])
def test_a_reset_is_shorter_than_what_it_answers(certificate: Certificate, length: int) -> None:
    """So two servers that are made to talk to each other come to an end (RFC 9000 section 10.3.3)."""
    with Side("server") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
        _, address = listen(server, certificate)
        raw_socket.settimeout(15)
        raw_socket.sendto(b"\x40" + os.urandom(length - 1), address)
        wait_until(lambda: server.counter("quic_drop_unknown_connection") == 1, 15, "it is nobody's")
        if length <= 22:
            assert server.counter("stateless_resets_sent") == 0
        else:
            answer = raw_socket.recv(2000)
            assert 22 <= len(answer) < length
            assert answer[0] & 0xC0 == 0x40
