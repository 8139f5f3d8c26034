"""Every combination of networks, with a server of ours at its default settings, and with a client of ours.

Mode bytes 1 and 2 mean something else in each dialect. Nobody tells our server which one its client speaks.
"""

from __future__ import annotations

import pytest

from tests.interop.conftest import Pairing, TunnelOpener
from tests.interop.endpoints import Network, OurServer, Tunnel, UdpMode
from tests.support.ports import free_port
from tests.support.services import TcpEcho, UdpEcho
from tests.support.traffic import UdpPeer, echo

MODES: list[tuple[Network, UdpMode]] = [
    ("tcp", "native"),
    ("udp", "native"),
    ("udp", "quic"),
    ("both", "native"),
    ("both", "quic"),
]


@pytest.mark.parametrize(("network", "mode"), MODES)
def test_every_mode(pairing: Pairing, open_tunnel: TunnelOpener, network: Network, mode: UdpMode) -> None:
    with (
        TcpEcho(port=free_port()) as tcp,
        UdpEcho(port=tcp.address[1]) as udp,
        open_tunnel(Tunnel(network, udp_mode=mode), tcp.address) as tunnel,
    ):
        address = tunnel.public_address()
        if network != "udp":
            assert echo(address, b"by TCP") == b"by TCP"
        if network != "tcp":
            with UdpPeer(address) as user:
                for number in range(20):
                    user.ask(b"by UDP %d" % number, b"by UDP %d" % number)
            assert udp.received == 20 + user.resent
        if isinstance(tunnel.server, OurServer):
            ambiguous = _is_ambiguous(pairing, network, mode)
            assert any("ambiguous mode byte" in line for line in tunnel.server.log.lines) == ambiguous


def _is_ambiguous(pairing: Pairing, network: Network, mode: UdpMode) -> bool:
    if pairing.client.dialect == "draft":
        return network == "udp"
    return network == "tcp" or (network == "udp" and mode == "native")
