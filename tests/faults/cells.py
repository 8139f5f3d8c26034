"""One cell of the matrix: a tunnel whose path has a fault, and one kind of traffic through it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from asport_sync import Client, Server
from asport_sync.testing import UdpRelay
from tests.e2e.tunnels import client_options, server_options
from tests.faults import datagrams, transfers
from tests.faults.injected import Fault
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, UdpEcho
from tests.support.traffic import UdpPeer

MIB = 1 << 20
# Seconds until a client has joined, through a handshake that loses a third of its packets; only a failure takes them.
JOIN_LIMIT = 90.0
# Connections of the short ones at the same time.
CONNECTIONS_AT_ONCE = 16


@dataclass(frozen=True)
class Scale:
    """How much traffic a cell gets.

    Attributes:
        name: For the table.
        streams: Of the bulk transfer.
        stream_size: Bytes each way in each of them.
        connections: Short ones.
        datagrams: Each way.
        joins: Of clients, where the handshake suffers.
        heartbeat: Seconds after which a client that has nothing to say says so. Then at the latest the server learns
            that the client has another port.
    """

    name: str
    streams: int
    stream_size: int
    connections: int
    datagrams: int
    joins: int
    heartbeat: float


LONG = Scale("long", streams=4, stream_size=16 * MIB, connections=1000, datagrams=4000, joins=20, heartbeat=3.0)
QUICK = Scale("quick", streams=4, stream_size=MIB, connections=100, datagrams=300, joins=2, heartbeat=0.5)


@dataclass
class Outcome:
    """What came of a cell.

    Attributes:
        figure: For the table.
        problems: Broken promises.
        seconds: That it took, all in all.
        joined_after: Seconds from the client's start until it was ready.
    """

    figure: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    joined_after: float = 0.0


@dataclass
class Bad:
    """A tunnel with a relay in the middle of its QUIC path."""

    server: Server
    client: Client
    relay: UdpRelay
    public: Address
    joined_after: float

    def alive(self) -> bool:
        """Whether one connection has lasted from the beginning."""
        stats = self.client.stats()
        return stats.counters["joined"] == 1 and stats.public is not None

    def stop_rebinding(self) -> None:
        """The NAT stays as it is, so that what is late can still come."""
        self.relay.rebind_every = None

    def change(self, fault: Fault) -> None:
        """The fault that comes later, if there is one."""
        if fault.later is not None:
            self.relay.set_faults(fault.later)


@contextlib.contextmanager
def bad_tunnel(certificate: Certificate, local: Address, fault: Fault, scale: Scale, **client: Any) -> Iterator[Bad]:
    """A tunnel that is ready, in this process, with the fault between its client and its server."""
    with Server(**server_options(certificate, **fault.options)) as server, fault.make_relay(server.address) as relay:
        options = client_options(certificate, relay.address, local, **fault.options, **client)
        options |= {"expected_port_range": free_port(), "heartbeat": scale.heartbeat}
        start = time.monotonic()
        with Client(**options) as joined:
            public = joined.wait_ready(JOIN_LIMIT)
            # The client names the relay's address as the server's; the public port is on the server itself.
            yield Bad(server, joined, relay, ("127.0.0.1", public[1]), time.monotonic() - start)


def _bulk(fault: Fault, scale: Scale, certificate: Certificate) -> Outcome:
    sizes = [scale.stream_size] * scale.streams
    with (
        transfers.ExchangeService() as service,
        bad_tunnel(certificate, service.address, fault, scale, network="tcp") as bad,
    ):
        moved = transfers.run(
            service,
            bad.public,
            sizes,
            scale.streams,
            least_time=fault.least_time,
            begun=lambda: bad.change(fault),
        )
        rate = moved.received * 8 / moved.seconds / 1e6
        figure = f"{rate:,.0f} Mbit/s"
        return _transferred(moved, bad, fault, figure)


def _connections(fault: Fault, scale: Scale, certificate: Certificate) -> Outcome:
    sizes = [number * 37 % 20_000 for number in range(scale.connections)]
    with (
        transfers.ExchangeService() as service,
        bad_tunnel(certificate, service.address, fault, scale, network="tcp") as bad,
    ):
        moved = transfers.run(
            service,
            bad.public,
            sizes,
            CONNECTIONS_AT_ONCE,
            least_time=fault.least_time,
            begun=lambda: bad.change(fault),
        )
        return _transferred(moved, bad, fault, f"{moved.connections / moved.seconds:,.0f}/s")


def _transferred(moved: transfers.Moved, bad: Bad, fault: Fault, figure: str) -> Outcome:
    problems = list(dict.fromkeys(moved.problems))
    if moved.reset:
        figure += f", {moved.reset:,} of {moved.connections:,} reset"
        if fault.lasts:
            problems.append(f"{moved.reset} connections were reset")
    if fault.lasts and not bad.alive():
        problems.append("the tunnel did not last")
    return Outcome(figure, problems, joined_after=bad.joined_after)


def _udp(mode: str) -> Callable[[Fault, Scale, Certificate], Outcome]:
    def run(fault: Fault, scale: Scale, certificate: Certificate) -> Outcome:
        count = max(scale.datagrams, int(fault.least_time * datagrams.RATE))
        with (
            datagrams.Recorder() as service,
            bad_tunnel(certificate, service.address, fault, scale, network="udp", udp_forward_mode=mode) as bad,
        ):

            def settled(sent: int, received: int) -> bool:
                return sent == received == len(service.kept)

            done = datagrams.run(
                service,
                bad.public,
                count,
                begun=lambda: bad.change(fault),
                ended=bad.stop_rebinding,
                settled=settled,
                quiet=(scale.heartbeat if mode == "quic" or fault.relay else 0.0) + 1.0 + 2 * fault.faults.down_time,
            )
            alive, path = bad.alive(), bad.relay.counters
            server, client = (side.stats().engine for side in (bad.server, bad.client))
            causes, problems = datagrams.account(done, server, client, path, lossless=mode == "quic", alive=alive)
        # In quic mode what is sent again comes late, as the draft has it: each datagram is a stream of its own. The
        # last packets of a handshake may carry some, too.
        repeats = fault.loses or fault.handshake or datagrams.spilled(server, client, path) > 0
        may_overtake = fault.reorders or (mode == "quic" and repeats)
        if fault.lasts and not alive:
            problems.append("the tunnel did not last")
        for name, arrived in (("there", done.there), ("back", done.back)):
            problems += [f"{name}: {problem}" for problem in arrived.problems]
            if not (arrived.in_order or may_overtake):
                problems.append(f"{name}: out of order")
        sent = done.sent + done.answered
        share = (done.there.count + done.back.count) / sent if sent else 0.0
        named = ", ".join(f"{count:,} {name}" for name, count in causes.items())
        figure = f"{share:.1%}".replace("%", " %") + (f" ({named})" if named else "")
        return Outcome(figure, problems, joined_after=bad.joined_after)

    return run


def _joins(fault: Fault, scale: Scale, certificate: Certificate) -> Outcome:
    """Client after client joins, and each has to work."""
    times = []
    with (
        UdpEcho() as service,
        Server(**server_options(certificate, **fault.options)) as server,
        fault.make_relay(server.address) as relay,
    ):
        port = free_port()
        for number in range(scale.joins):
            options = client_options(certificate, relay.address, service.address, **fault.options)
            start = time.monotonic()
            with Client(**options, expected_port_range=port) as client:
                client.wait_ready(JOIN_LIMIT)
                times.append(time.monotonic() - start)
                with UdpPeer(("127.0.0.1", port)) as user:
                    user.ask(b"%d" % number, b"%d" % number)
    times.sort()
    median, longest = times[len(times) // 2], times[-1]
    figure = f"{len(times)} joins, median {median * 1e3:,.0f} ms, longest {longest * 1e3:,.0f} ms"
    return Outcome(figure, joined_after=times[-1])


TRAFFIC: dict[str, Callable[[Fault, Scale, Certificate], Outcome]] = {
    "TCP": _bulk,
    "connections": _connections,
    "UDP native": _udp("native"),
    "UDP quic": _udp("quic"),
    "joins": _joins,
}
"""What crosses the tunnel, by name."""


def cells(faults: list[Fault], *, short: bool = False) -> list[tuple[Fault, str]]:
    """Which traffic each fault meets: all kinds, and clients that join where the fault is in the handshake.

    Args:
        faults: The rows.
        short: Where the fault is in the handshake, clients join, and that is all.
    """
    return [
        (fault, traffic)
        for fault in faults
        for traffic in TRAFFIC
        if (fault.handshake or fault.name == "none" if traffic == "joins" else not (short and fault.handshake))
    ]


def run_cell(fault: Fault, traffic: str, scale: Scale, certificate: Certificate) -> Outcome:
    """Runs one cell. A tunnel that doesn't come about is a broken promise as well."""
    start = time.monotonic()
    outcome = TRAFFIC[traffic](fault, scale, certificate)
    outcome.seconds = time.monotonic() - start
    return outcome
