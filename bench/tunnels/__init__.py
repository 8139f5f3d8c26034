"""The tunnels that are compared, all behind one interface, and the rulers beside them."""

from __future__ import annotations

from bench.tunnels.asport import Asport, AsportSync
from bench.tunnels.base import Carrier, CongestionControl, Place, Running, Tunnel, TunnelFailed
from bench.tunnels.go_peers import Chisel, Frp
from bench.tunnels.rathole import Rathole
from bench.tunnels.rulers import Direct, Gtls

__all__ = [
    "TUNNELS",
    "VARIANTS",
    "Carrier",
    "CongestionControl",
    "Direct",
    "Gtls",
    "Place",
    "Running",
    "Tunnel",
    "TunnelFailed",
]

# In the order of the tables.
TUNNELS: tuple[Tunnel, ...] = (
    AsportSync(),
    Asport(),
    Frp("tls"),
    Frp("quic"),
    Rathole("tls"),
    Rathole("noise"),
    Rathole("plain"),
    Chisel(),
)

# Of this project: measured only if they are named.
VARIANTS: tuple[Tunnel, ...] = (AsportSync("engine"), AsportSync("workers"))
