"""How QUIC connections come about and how they end, and what both sides learn of it."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from asport_sync.engine import CloseCause, Connected, Connection, Transport
from asport_sync.errors import EngineError, HandleGoneError
from tests.engine.pair import (
    ALPN,
    SERVER_TRANSPORT,
    Side,
    connect,
    connected,
    echo,
    expect_closed,
    listen,
)
from tests.support.certificates import Certificate, self_signed


@pytest.mark.parametrize("one_engine", [False, True], ids=["two engines", "one engine"])
def test_both_sides_export_the_same_token(certificate: Certificate, one_engine: bool) -> None:
    label = bytes(range(0, 32, 2))  # with a zero byte: the label is not text
    with connected(certificate, one_engine=one_engine) as pair:
        token = pair.client_connection.export(label, b"password", 32)
        assert len(token) == 32
        assert token == pair.server_connection.export(label, b"password", 32)
        assert token != pair.client_connection.export(label, b"passwore", 32)
        assert token != pair.client_connection.export(label[:-1] + b"\1", b"password", 32)


def test_alpn_is_reported(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        connect(client, certificate, address)
        assert client.expect(Connected).alpn == b"asport"
        event = server.expect(Connected)
        assert event.alpn == b"asport"
        assert event.peer[0] == "127.0.0.1"


def test_no_common_alpn(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        credentials = client.engine.client_credentials(
            alpn=(b"other",), trust=certificate.trusted.read_bytes(), system_trust=False
        )
        connection = connect(client, certificate, address, credentials=credentials)
        closed = expect_closed(client, connection)
        # RFC 9001 section 4.8: a TLS alert is transport error 0x100 + alert; 120 is no_application_protocol.
        assert closed.cause is CloseCause.PEER_TRANSPORT
        assert closed.code == 0x178


@pytest.mark.parametrize("fault", ["unknown authority", "wrong name"])
def test_certificate_refused(certificate: Certificate, tmp_path: Path, fault: str) -> None:
    trusted = self_signed(tmp_path) if fault == "unknown authority" else certificate
    name = "localhost" if fault == "unknown authority" else "example.org"
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        connection = connect(client, trusted, address, server_name=name)
        closed = expect_closed(client, connection)
        assert closed.cause is CloseCause.CERTIFICATE
        assert closed.reason
        assert not [event for event in client.seen() if isinstance(event, Connected)]


def test_the_certificate_that_the_server_has_sent(certificate: Certificate) -> None:
    expected = load_pem_x509_certificate(certificate.certificate.read_bytes()).public_bytes(Encoding.DER)
    with connected(certificate) as pair:
        assert pair.client_connection.peer_chain() == expected
        assert pair.server_connection.peer_chain() == b""  # clients send none
    with Side("client") as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError):
            connect(client, certificate, silent.getsockname()).peer_chain()


def test_certificate_not_asked_for(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        credentials = client.engine.client_credentials(alpn=ALPN, system_trust=False, verify=False)
        connect(client, certificate, address, credentials=credentials, server_name="example.org")
        client.expect(Connected)


def test_an_ip_address_as_server_name(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        connect(client, certificate, address, server_name="127.0.0.1")
        client.expect(Connected)


def test_nobody_answers(certificate: Certificate) -> None:
    with Side("client") as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        connection = connect(client, certificate, silent.getsockname(), Transport(handshake_timeout=0.5))
        assert expect_closed(client, connection).cause is CloseCause.HANDSHAKE_TIMEOUT


def test_nobody_listens(certificate: Certificate) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    with Side("client") as client:
        connection = connect(client, certificate, address)
        assert expect_closed(client, connection).cause is CloseCause.UNREACHABLE


def test_close_carries_its_code(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.close(7)
        assert expect_closed(pair.client, pair.client_connection).cause is CloseCause.LOCAL
        closed = expect_closed(pair.server, pair.server_connection)
        assert (closed.cause, closed.code) == (CloseCause.PEER_APPLICATION, 7)
        assert closed.endpoint is not None


def expect_no_error(side: Side, connection: Connection) -> None:
    """The server ended the connection, and an application code does not say that the client was refused."""
    closed = expect_closed(side, connection)
    assert (closed.cause, closed.code) == (CloseCause.PEER_TRANSPORT, 0)


@pytest.mark.parametrize("linger", [0.0, 0.1])
def test_close_without_a_code(certificate: Certificate, linger: float) -> None:
    with connected(certificate) as pair:
        pair.server_connection.close(None, linger=linger)
        assert expect_closed(pair.server, pair.server_connection).cause is CloseCause.LOCAL
        expect_no_error(pair.client, pair.client_connection)


def test_close_of_the_endpoint_closes_its_connections(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.endpoint.close()
        expect_no_error(pair.client, pair.client_connection)
        assert expect_closed(pair.server, pair.server_connection).cause is CloseCause.LOCAL
        with pytest.raises(HandleGoneError):
            pair.endpoint.close()


def test_close_of_the_endpoint_may_spare_its_connections(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.endpoint.close(close_connections=False)
        assert pair.client_connection.export(b"l", b"", 32) == pair.server_connection.export(b"l", b"", 32)
        echo(pair, 100_000)


def test_stop_says_goodbye(certificate: Certificate) -> None:
    """The peer learns of an orderly end at once, not by its idle timeout."""
    with connected(certificate, client_transport=Transport(max_streams_bidi=8, idle_timeout=600)) as pair:
        pair.server.close()
        expect_no_error(pair.client, pair.client_connection)


def test_new_credentials_serve_new_connections(certificate: Certificate, tmp_path: Path) -> None:
    renewed = self_signed(tmp_path)
    with connected(certificate) as pair:
        pair.endpoint.set_credentials(
            pair.server.engine.server_credentials(
                certificate=renewed.certificate.read_bytes(), private_key=renewed.private_key.read_bytes(), alpn=ALPN
            )
        )
        address = pair.client_connection.info().peer
        second = connect(pair.client, renewed, address)
        pair.client.expect(Connected, lambda event: event.connection == second)
        third = connect(pair.client, certificate, address)
        assert expect_closed(pair.client, third).cause is CloseCause.CERTIFICATE
        echo(pair, 1000)  # the first connection doesn't notice


def test_new_settings_serve_new_connections(certificate: Certificate) -> None:
    """What the server advertises: how long a connection may be idle."""
    with connected(certificate, server_transport=dataclasses.replace(SERVER_TRANSPORT, idle_timeout=600)) as pair:
        pair.endpoint.set_transport(dataclasses.replace(SERVER_TRANSPORT, idle_timeout=0.2))
        second = connect(pair.client, certificate, pair.client_connection.info().peer)
        pair.client.expect(Connected, lambda event: event.connection == second)
        assert expect_closed(pair.client, second).cause is CloseCause.IDLE
        echo(pair, 1000)  # the first connection keeps its own


def test_settings_that_make_no_sense_are_refused(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        with pytest.raises(EngineError, match="out of range"):
            pair.endpoint.set_transport(dataclasses.replace(SERVER_TRANSPORT, send_window=1))
        echo(pair, 1000)
