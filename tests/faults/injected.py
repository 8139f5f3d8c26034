"""The faults of the matrix: how each is injected, and what it may do to the order of what arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asport_sync.engine import versions
from asport_sync.testing import Faults, UdpRelay

# Bytes of the largest QUIC packet where a fault is about packets of usual size: on loopback they would be 32 KB.
ETHERNET = {"max_udp_payload": 1452}


# Whether the library was changed so that it bears paths that get narrower, or are away half of the time; see
# vendor/adjustments.py.
_ADJUSTED = "adjusted" in versions()["ngtcp2_origin"]


@dataclass(frozen=True)
class Fault:
    """One row of the matrix.

    Attributes:
        name: Fault and strength, as it stands in the table.
        injected: How, in words, for the table.
        faults: Of both directions of the QUIC path.
        relay: More arguments of the relay.
        options: Options of both client and server.
        loses: Whether packets are lost, so that datagrams are in native mode, and overtake each other in quic mode.
        reorders: Whether packets overtake each other.
        least_time: Seconds that traffic must last for the fault to have happened twice.
        later: Faults that take the place of the first ones in the middle of the traffic.
        quick: Whether it belongs to the fast half.
        handshake: Whether only handshakes suffer, so that the fault is in joining.
        lasts: Whether the tunnel must bear it without connecting again, and so no connection may be reset.
    """

    name: str
    injected: str
    faults: Faults = field(default_factory=Faults)
    relay: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: dict(ETHERNET))
    loses: bool = False
    reorders: bool = False
    least_time: float = 0.0
    later: Faults | None = None
    quick: bool = False
    handshake: bool = False
    lasts: bool = True

    def make_relay(self, target: tuple[str, int]) -> UdpRelay:
        """The relay between client and server, not started yet."""
        return UdpRelay(target, to_target=self.faults, to_client=self.faults, seed=20, **self.relay)


def _losses() -> list[Fault]:
    each_way = "of the packets each way"
    return [
        Fault("none", "nothing, for comparison", quick=True),
        Fault("loss 0.5 %", f"0.5 % {each_way} vanish", Faults(loss=0.005), loses=True),
        Fault("loss 2 %", f"2 % {each_way} vanish", Faults(loss=0.02), loses=True, quick=True),
        Fault("duplication 1 %", f"1 % {each_way} arrive twice", Faults(duplication=0.01)),
        Fault("duplication 20 %", f"20 % {each_way} arrive twice", Faults(duplication=0.2), quick=True),
        Fault(
            "reordering 1 %",
            f"1 % {each_way} are overtaken by 3",
            Faults(reordering=0.01, reordering_depth=3),
            reorders=True,
        ),
        Fault(
            "reordering 10 %",
            f"10 % {each_way} are overtaken by 10",
            Faults(reordering=0.1, reordering_depth=10),
            reorders=True,
            quick=True,
        ),
        Fault("corruption 0.2 %", f"a bit is flipped in 0.2 % {each_way}", Faults(corruption=0.002), loses=True),
        Fault(
            "corruption 2 %",
            f"8 bits are flipped in 2 % {each_way}",
            Faults(corruption=0.02, corrupted_bits=8),
            loses=True,
            quick=True,
        ),
        Fault("delay 5 ms, jitter 5 ms", "each packet takes 5 to 10 ms each way", Faults(delay=0.005, jitter=0.005)),
        Fault(
            "delay 40 ms, jitter 20 ms",
            "each packet takes 40 to 60 ms each way",
            Faults(delay=0.04, jitter=0.02),
        ),
        Fault(
            "delay 5 ms, jitter 10 ms",
            "each packet takes 5 to 15 ms each way",
            Faults(delay=0.005, jitter=0.01),
            quick=True,
        ),
        Fault("every 100th packet", "every 100th packet each way vanishes", Faults(drop_every=100), loses=True),
        Fault(
            "packet 2 and every 20th",
            "the second packet each way vanishes, and every 20th",
            Faults(drop_packets=(2,), drop_every=20),
            loses=True,
        ),
        Fault(
            "every 20th packet", "every 20th packet each way vanishes", Faults(drop_every=20), loses=True, quick=True
        ),
    ]


def _sizes() -> list[Fault]:
    unlimited: dict[str, Any] = {}
    return [
        Fault("MTU 1,400", "UDP payloads above 1,400 bytes vanish", Faults(mtu=1400), options=unlimited),
        Fault("MTU 1,250", "UDP payloads above 1,250 bytes vanish", Faults(mtu=1250), options=unlimited, quick=True),
        Fault(
            "MTU shrinks to 1,250",
            "UDP payloads above 1,250 bytes vanish from the middle of the traffic on",
            later=Faults(mtu=1250),
            loses=True,
            least_time=6.0,
            lasts=_ADJUSTED,
        ),
        Fault(
            "MTU shrinks to 1,250 soon",
            "UDP payloads above 1,250 bytes vanish after a while",
            later=Faults(mtu=1250),
            loses=True,
            least_time=1.0,
            lasts=_ADJUSTED,
            quick=True,
        ),
    ]


def _handshakes() -> list[Fault]:
    return [
        Fault(
            "handshake loss 30 %",
            "30 % of the handshake's packets each way vanish",
            Faults(loss=0.3, handshake_only=True),
            handshake=True,
            quick=True,
        ),
        Fault(
            "handshake corruption 30 %",
            "a bit is flipped in 30 % of the handshake's packets each way",
            Faults(corruption=0.3, handshake_only=True),
            handshake=True,
            quick=True,
        ),
    ]


def _timed() -> list[Fault]:
    return [
        Fault(
            "outages of 0.3 s",
            "nothing gets through for 0.3 s after every 0.3 s",
            Faults(up_time=0.3, down_time=0.3),
            loses=True,
            least_time=1.2,
            lasts=_ADJUSTED,
            quick=True,
        ),
        Fault(
            "outages of 2 s",
            "nothing gets through for 2 s after every 5 s",
            Faults(up_time=5.0, down_time=2.0),
            loses=True,
            least_time=15.0,
        ),
        Fault(
            "another port every 5 s",
            "the NAT gives the client another port every 5 s",
            relay={"rebind_every": 5.0},
            loses=True,
            least_time=12.0,
        ),
        Fault(
            "another port every second",
            "the NAT gives the client another port every second",
            relay={"rebind_every": 1.0},
            loses=True,
            least_time=5.0,
        ),
        Fault(
            "another port every 0.4 s",
            "the NAT gives the client another port every 0.4 s",
            relay={"rebind_every": 0.4},
            loses=True,
            least_time=1.0,
            quick=True,
        ),
        Fault(
            "another address every 5 s",
            "the NAT gives the client another address and port every 5 s",
            relay={"rebind_every": 5.0, "rebind_address": True},
            loses=True,
            least_time=12.0,
        ),
        Fault(
            "another address every 0.4 s",
            "the NAT gives the client another address and port every 0.4 s",
            relay={"rebind_every": 0.4, "rebind_address": True},
            loses=True,
            least_time=1.0,
            quick=True,
        ),
    ]


def all_faults() -> list[Fault]:
    """Every row, in the order of the table."""
    makers: list[Callable[[], list[Fault]]] = [_losses, _sizes, _handshakes, _timed]
    return [fault for make in makers for fault in make()]


FAULTS = all_faults()
QUICK = [fault for fault in FAULTS if fault.quick]
# Those that exist for the fast half alone are left out: the long one has their like at full length.
LONG = [
    fault
    for fault in FAULTS
    if fault.name
    not in {
        "delay 5 ms, jitter 10 ms",
        "every 20th packet",
        "MTU shrinks to 1,250 soon",
        "outages of 0.3 s",
        "another port every 0.4 s",
        "another address every 0.4 s",
    }
]
