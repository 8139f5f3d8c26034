"""What an endpoint answers to strangers and to old acquaintances, and a client that changes its address."""

from __future__ import annotations

import os
import select
import socket

import pytest

from asport_sync.engine import CloseCause, Connected, StreamOpened, Transport
from tests.engine.middle import Middle
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    EVENT_TIMEOUT,
    HEADER,
    SERVER_TRANSPORT,
    Relay,
    Side,
    client_credentials,
    connect,
    connected,
    echo,
    expect_closed,
    listen,
    server_credentials,
    tcp_pair,
)
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until


def long_header(version: int, length: int) -> bytes:
    """The beginning of a long-header packet (RFC 8999 section 5.1) with 8-byte IDs, filled up with noise."""
    head = b"\xc0" + version.to_bytes(4, "big") + b"\x08" + b"D" * 8 + b"\x08" + b"S" * 8
    return head + os.urandom(length - len(head))


def test_retry_proves_the_clients_address(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, retry_threshold=0)
        connect(client, certificate, address)
        client.expect(Connected)
        server.expect(Connected)
        assert server.counter("retries_sent") == 1
        assert server.counter("retry_tokens_invalid") == 0
        assert server.counter("connections_accepted") == 1


def test_beyond_the_limit_connections_are_refused(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, max_connections=1)
        connect(client, certificate, address)
        client.expect(Connected)
        refused = connect(client, certificate, address)
        closed = expect_closed(client, refused)
        assert (closed.cause, closed.code) == (CloseCause.PEER_TRANSPORT, 2)  # CONNECTION_REFUSED
        assert server.counter("connections_refused") == 1


@pytest.mark.parametrize(
    ("bound", "server"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")],
    ids=["IPv4", "any IPv4", "IPv4 to any IPv6", "IPv6"],
)
def test_who_calls_before_the_server_listens_gets_in(certificate: Certificate, bound: str, server: str) -> None:
    """A client that waits for a server to come back has its first packet there before the socket is set up."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with Side("server") as side, Side("client") as client, socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bound == "::1"))
        sock.bind((bound, 0))
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as own:
            client.engine.connect(
                own,
                client_credentials(client.engine, certificate),
                CLIENT_TRANSPORT,
                remote=(server, sock.getsockname()[1]),
                server_name="localhost",
            )
        assert select.select([sock], [], [], EVENT_TIMEOUT)[0], "the client's first packet"
        side.engine.listen(
            sock, server_credentials(side.engine, certificate), SERVER_TRANSPORT, reset_key=bytes(range(32))
        )
        client.expect(Connected)
        side.expect(Connected)
        assert side.counter("connections_accepted") == 1


def test_version_negotiation(certificate: Certificate) -> None:
    with Side("server") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
        _, address = listen(server, certificate)
        raw_socket.settimeout(15)
        raw_socket.sendto(long_header(0x1A2A3A4A, 1200), address)
        answer = raw_socket.recv(2000)
        assert answer[0] & 0x80
        assert answer[1:5] == bytes(4)  # version 0
        assert answer[5:23] == b"\x08" + b"S" * 8 + b"\x08" + b"D" * 8
        assert bytes((0, 0, 0, 1)) in [answer[at : at + 4] for at in range(23, len(answer), 4)]
        # What is too short for an Initial is not answered, or a spoofed source would be hit by more than was sent.
        raw_socket.settimeout(0.3)
        raw_socket.sendto(long_header(0x1A2A3A4A, 100), address)
        with pytest.raises(TimeoutError):
            raw_socket.recv(2000)


@pytest.mark.parametrize("length", [0, 1, 20, 21, 60, 1200, 1500])
def test_noise_is_dropped_and_counted(certificate: Certificate, length: int) -> None:
    with Side("server") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
        _, address = listen(server, certificate)
        raw_socket.sendto((b"\x40" + os.urandom(length))[:length], address)
        name = "quic_drop_short" if length < 21 else "quic_drop_unknown_connection"
        wait_until(lambda: server.counter(name) == 1, 15, name)


def test_a_restarted_server_resets_its_old_clients(certificate: Certificate) -> None:
    """The new server has the old one's reset key, and its port."""
    with Side("client") as client:
        with Side("old server") as old:
            _, address = listen(old, certificate)
            with Middle(address) as middle:
                connection = connect(client, certificate, middle.front.getsockname(), Transport(max_streams_bidi=1))
                client.expect(Connected)
                old.expect(Connected)
                middle.cut = True  # the old server's farewell does not arrive
                old.close()
                with Side("new server") as new:
                    listen(new, certificate, address=address)
                    middle.restore()
                    connection.heartbeat(b"\0\5" + bytes(14), 0.05)
                    assert expect_closed(client, connection).cause is CloseCause.STATELESS_RESET
                    assert new.counter("stateless_resets_sent") >= 1


def test_a_client_whose_nat_forgets_it_keeps_its_streams(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            connection = connect(client, certificate, middle.front.getsockname())
            client.expect(Connected)
            accepted = server.expect(Connected).connection
            stream = accepted.open_stream(HEADER)
            public, visitor = tcp_pair()
            local, service = tcp_pair()
            relays = [Relay(stream, public), Relay(client.expect(StreamOpened).stream, local)]
            for relay in relays:
                relay.start()
            with visitor, service:
                before = accepted.info().peer
                for _ in range(3):
                    middle.rebind()
                    service.sendall(b"!" * 1000)
                    received = b""
                    while len(received) < 1000:
                        received += visitor.recv(1000)
                    visitor.sendall(b"?")
                    assert service.recv(1) == b"?"
                wait_until(lambda: accepted.info().peer != before, 15, "the server has taken the new address")
            connection.close()
            expect_closed(server, accepted)
            for relay in relays:
                relay.finish()


def test_two_endpoints_of_one_engine_do_not_mix(certificate: Certificate) -> None:
    with connected(certificate, one_engine=True) as first:
        _, address = listen(first.server, certificate)
        connect(first.server, certificate, address)
        first.server.expect(Connected, lambda event: event.endpoint is None)
        second = first.server.expect(Connected, lambda event: event.endpoint is not None)
        assert second.endpoint != first.endpoint
        echo(first, 10_000)
