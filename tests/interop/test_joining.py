"""How a client joins a server, and how it is sent away, with the reference on one side."""

from __future__ import annotations

import socket

import pytest

from tests.interop.conftest import Pairing, TunnelOpener
from tests.interop.endpoints import Refusal, Tunnel, UdpMode
from tests.support.ports import free_port
from tests.support.services import TcpEcho, UdpEcho
from tests.support.traffic import UdpPeer, echo

NOBODY = ("127.0.0.1", 9)


@pytest.mark.parametrize("mode", ["native", "quic"])
@pytest.mark.parametrize("bind_ip", ["127.0.0.1", "::1"])
def test_both_networks(open_tunnel: TunnelOpener, mode: UdpMode, bind_ip: str) -> None:
    """TCP and UDP on one port, with a mode byte that means the same to everybody or shows its dialect."""
    if not _has_address(bind_ip):
        pytest.skip(f"this machine has no {bind_ip}")
    settings = Tunnel("both", udp_mode=mode, bind_ip=bind_ip)
    with (
        TcpEcho(port=free_port()) as tcp,
        UdpEcho(port=tcp.address[1]),
        open_tunnel(settings, tcp.address) as tunnel,
    ):
        address = tunnel.public_address()
        assert echo(address, b"by TCP") == b"by TCP"
        with UdpPeer(address) as user:
            user.ask(b"by UDP", b"by UDP")


def _has_address(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def test_refused_authentication(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    _check_refused(pairing, open_tunnel, Tunnel(password="wrong", server_password="right"), Refusal.AUTHENTICATION)


def test_refused_port(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    _check_refused(pairing, open_tunnel, Tunnel(expected_port=free_port()), Refusal.PORT)


def test_refused_network(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    # Without its dialect a client of the draft that asks for UDP native would be taken for one of flags that asks for
    # TCP, as that is all that is allowed.
    settings = Tunnel("udp", allow_network="tcp", told_dialect=True)
    _check_refused(pairing, open_tunnel, settings, Refusal.NETWORK)


def test_refused_bind(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    with TcpEcho() as occupant:
        _check_refused(pairing, open_tunnel, Tunnel(port=occupant.address[1]), Refusal.BIND)


def _check_refused(pairing: Pairing, open_tunnel: TunnelOpener, settings: Tunnel, refusal: Refusal) -> None:
    """Both sides know of the refusal and say why.

    The reference's server closes the connection in the same moment in which it queues its answer, so the code arrives
    only now and then: there our client has to take a bare close for a refusal.
    """
    with open_tunnel(settings, NOBODY) as tunnel:
        tunnel.client.check_refused(refusal, told=pairing.server.delivers_refusals)
        tunnel.server.check_refused(refusal)
