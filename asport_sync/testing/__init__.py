"""A bad network for your own tests: relays that drop, delay, corrupt and cut, on loopback and without privileges.

Put one between a client and its server, or between a visitor and a service, and see how your program copes::

    from asport_sync.testing import Faults, UdpRelay

    with UdpRelay(("127.0.0.1", 4433), to_target=Faults(loss=0.02), to_client=Faults(loss=0.02), seed=7) as relay:
        ...  # a QUIC client that connects to relay.address
        relay.rebind()  # from now on its packets come from another port, as after a NAT has lost its mapping
        print(relay.counters)

Pure Python on the standard library; no other part of this package imports it, and it needs no compiled extension.
"""

from __future__ import annotations

from asport_sync.testing.faults import DirectionCounters, Faults
from asport_sync.testing.tcp import TcpCounters, TcpFaults, TcpRelay, TcpRelayCounters
from asport_sync.testing.udp import RelayCounters, UdpRelay

__all__ = [
    "DirectionCounters",
    "Faults",
    "RelayCounters",
    "TcpCounters",
    "TcpFaults",
    "TcpRelay",
    "TcpRelayCounters",
    "UdpRelay",
]
