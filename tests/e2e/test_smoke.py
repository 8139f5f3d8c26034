"""The quickest proof that the whole thing works; also run against the distribution's ngtcp2."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from asport_sync import AuthenticationError, Client, Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_options,
    client_process,
    public_port,
    server_address,
    server_options,
    server_process,
    tunnel,
)
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.services import TcpEcho, TcpSink, UdpEcho, sink_answer
from tests.support.traffic import UdpPeer, echo, upload


def test_tcp(certificate: Certificate) -> None:
    with TcpEcho() as service, tunnel(certificate, service.address) as opened:
        data = seeded_bytes(1, 1 << 20)
        assert echo(opened.public, data) == data


def test_half_close(certificate: Certificate) -> None:
    with TcpSink() as service, tunnel(certificate, service.address) as opened:
        data = seeded_bytes(2, 1 << 20)
        assert upload(opened.public, data) == sink_answer(data)


@pytest.mark.parametrize("mode", ["native", "quic"])
def test_udp(certificate: Certificate, mode: str) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address, client={"udp_forward_mode": mode}) as opened:
        with UdpPeer(opened.public) as user:
            for size in (0, 1, 1200, 9000):
                payload = seeded_bytes(size, size)
                user.ask(payload, payload)


def test_wrong_password(certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        with Client(**client_options(certificate, server.address, ("127.0.0.1", 9), password="wrong")) as client:
            with pytest.raises(AuthenticationError):
                client.wait_ready(READY_TIMEOUT)


def test_commands(certificate: Certificate, tmp_path: Path) -> None:
    with TcpEcho() as service, server_process(tmp_path, certificate) as server:
        with client_process(tmp_path, certificate, server_address(server), service.address) as client:
            public = ("127.0.0.1", public_port(client))
            assert echo(public, b"hello") == b"hello"
            for process in (client, server):
                process.send_signal(signal.SIGTERM)
                assert process.wait(READY_TIMEOUT) == 0
