"""What may happen to datagrams in one direction: the settings, and the decisions, without sockets, threads or a clock.

The decisions depend on the seed and on the packets, in the order in which they come, and on nothing else: a run with
the same packets repeats. What depends on time (outages, delays, how long a packet is held back) depends on the times
that the caller passes.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from asport_sync.testing.checks import check_flag, check_seconds, check_share, check_whole

Route = TypeVar("Route")

# Seconds after which a packet that was held back goes on also where nothing has overtaken it: otherwise the last packet
# of an exchange would be lost, not late.
HELD_AT_MOST = 0.1

# Set in the first byte of every packet of a QUIC handshake, and of no later one (RFC 9000 section 17).
LONG_HEADER = 0x80


@dataclass(frozen=True)
class Faults:
    """What happens to the datagrams of one direction. The default is nothing.

    Attributes:
        loss: Share of datagrams that vanish, 0 to 1; default 0.
        duplication: Share that arrives twice, 0 to 1; default 0.
        reordering: Share that is held back until others have overtaken it, 0 to 1; default 0.
        reordering_depth: How many overtake one that is held back, at least 1; default 3. After 0.1 s it goes on anyway.
        corruption: Share in which bits are flipped, 0 to 1; default 0.
        corrupted_bits: Bits flipped in each of these, at least 1; default 1.
        delay: Seconds that each spends on the way; default 0.
        jitter: Seconds; each spends up to so many more, evenly distributed; default 0. The order stays: who wants that
            to change asks for ``reordering``.
        mtu: Bytes of the largest UDP payload that gets through, at least 1; larger ones vanish. Default None: no limit.
        drop_packets: Numbers of datagrams that vanish, counted from 1 since the relay was started; default none.
        drop_every: Every n-th datagram vanishes, n at least 1; default None: none does.
        black_hole: Nothing gets through; default False.
        up_time: Seconds that the path works before each outage; default 0. Counted from the moment from which these
            faults hold.
        down_time: Seconds that each outage lasts, in which nothing gets through; default 0: no outages. Either both
            times are above 0 or none.
        handshake_only: Only packets with a long header suffer, as those of a QUIC handshake have; default False.
        first_packets: Only so many datagrams suffer, counted since the relay was started, at least 0; default None:
            all.

    Raises:
        ValueError: A value is impossible; the text names the field and what was expected.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    reordering_depth: int = 3
    corruption: float = 0.0
    corrupted_bits: int = 1
    delay: float = 0.0
    jitter: float = 0.0
    mtu: int | None = None
    drop_packets: tuple[int, ...] = ()
    drop_every: int | None = None
    black_hole: bool = False
    up_time: float = 0.0
    down_time: float = 0.0
    handshake_only: bool = False
    first_packets: int | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering", "corruption"):
            check_share(name, getattr(self, name))
        for name in ("delay", "jitter", "up_time", "down_time"):
            check_seconds(name, getattr(self, name))
        if (self.up_time > 0) != (self.down_time > 0):
            raise ValueError(
                f"up_time and down_time must be both above 0 or both 0, not {self.up_time!r} and {self.down_time!r}"
            )
        check_whole("reordering_depth", self.reordering_depth, 1)
        check_whole("corrupted_bits", self.corrupted_bits, 1)
        for name, least in (("mtu", 1), ("drop_every", 1), ("first_packets", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
        for name in ("black_hole", "handshake_only"):
            check_flag(name, getattr(self, name))
        if not isinstance(self.drop_packets, tuple):
            raise ValueError(f"drop_packets must be a tuple of whole numbers, not {self.drop_packets!r}")
        for number in self.drop_packets:
            check_whole("each of drop_packets", number, 1)


@dataclass
class DirectionCounters:
    """What became of the datagrams of one direction.

    Nothing is left out: ``received + duplicated == delivered + dropped + in_flight``.

    Attributes:
        received: Read by the relay.
        delivered: Sent on, second copies and falsified ones included.
        delivered_bytes: The same in bytes.
        duplicated: Second copies made.
        corrupted: Falsified; they were sent on unless another cause took them.
        reordered: Held back.
        lost: Dropped by ``loss``.
        dropped_by_number: Dropped by ``drop_packets`` or ``drop_every``.
        too_big: Dropped by ``mtu``.
        black_holed: Dropped by ``black_hole`` or in an outage.
        forgotten: Came to a port that the NAT has forgotten, after a rebinding.
        refused: The kernel did not take them. That nobody listens at the target may show here, too.
        abandoned: On their way when the relay was closed.
        in_flight: On their way now.
        overflowed: Dropped by the kernel before the relay could read them, as it was too slow; not in ``received``.
    """

    received: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    lost: int = 0
    dropped_by_number: int = 0
    too_big: int = 0
    black_holed: int = 0
    forgotten: int = 0
    refused: int = 0
    abandoned: int = 0
    in_flight: int = 0
    overflowed: int = 0

    @property
    def dropped(self) -> int:
        """Datagrams that the relay has read and that went nowhere, for whatever cause."""
        return (
            self.lost
            + self.dropped_by_number
            + self.too_big
            + self.black_holed
            + self.forgotten
            + self.refused
            + self.abandoned
        )


@dataclass
class _Held(Generic[Route]):
    """A packet that waits to be overtaken."""

    packet: bytes
    route: Route
    overtakers: int  # how many more have to go first
    deadline: float


class Direction(Generic[Route]):
    """One direction of a path. Used by one thread at a time; times in seconds are arguments and never go back.

    Args:
        faults: What happens to its packets.
        seed: Decides which ones suffer.
        now: The time.
    """

    def __init__(self, faults: Faults, seed: str, now: float) -> None:
        self.counters = DirectionCounters()
        self._random = random.Random(f"{seed} packets")
        # Apart, so that the number of bits to flip does not change which packets suffer from then on.
        self._bits = random.Random(f"{seed} bits")
        # (time of arrival, order, packet, where to); the order keeps packets of the same time in line.
        self._on_the_way: list[tuple[float, int, bytes, Route]] = []
        self._order = 0
        self._latest = now  # arrival of the packet that is last in line
        self._held: list[_Held[Route]] = []
        self.change(faults, now)

    @property
    def faults(self) -> Faults:
        """What happens to the packets."""
        return self._faults

    def change(self, faults: Faults, now: float) -> None:
        """Sets what happens to packets from now on. Those on their way keep their times."""
        self._faults = faults
        self._drop_packets = frozenset(faults.drop_packets)
        self._since = now

    def offer(self, packet: bytes, route: Route, now: float) -> None:
        """Takes a packet that reaches the path; ``due`` hands it out."""
        faults, counters = self._faults, self.counters
        counters.received += 1
        # As many for each packet, whatever the faults are: a change to one of them leaves the others' choices alone.
        lost, doubled, held, falsified, late = (self._random.random() for _ in range(5))
        if not self._suffers(packet):
            self._send(packet, route, now)
            return
        if self._is_dark(now):
            counters.black_holed += 1
            return
        if faults.mtu is not None and len(packet) > faults.mtu:
            counters.too_big += 1
            return
        number = counters.received
        if number in self._drop_packets or (faults.drop_every is not None and number % faults.drop_every == 0):
            counters.dropped_by_number += 1
            return
        if lost < faults.loss:
            counters.lost += 1
            return
        if falsified < faults.corruption:
            packet = self._falsify(packet, faults.corrupted_bits)
            counters.corrupted += 1
        arrival = now + faults.delay + late * faults.jitter
        if doubled < faults.duplication:
            counters.duplicated += 1
            self._send(packet, route, arrival)
        if held < faults.reordering:
            counters.reordered += 1
            self._held.append(_Held(packet, route, faults.reordering_depth, now + HELD_AT_MOST))
        else:
            self._send(packet, route, arrival)
            self._overtake(arrival)

    def next_time(self) -> float | None:
        """When the next packet is due, or None where none is on its way."""
        times = [held.deadline for held in self._held]
        if self._on_the_way:
            times.append(self._on_the_way[0][0])
        return min(times) if times else None

    def due(self, now: float) -> Iterator[tuple[bytes, Route]]:
        """Takes off the path what reaches its end until ``now``, in that order."""
        if self._held:
            for held in [held for held in self._held if held.deadline <= now]:
                self._held.remove(held)
                self._send(held.packet, held.route, held.deadline)
        while self._on_the_way and self._on_the_way[0][0] <= now:
            _, _, packet, route = heapq.heappop(self._on_the_way)
            yield packet, route

    def abandon(self) -> None:
        """Gives up what is on its way."""
        self.counters.abandoned += len(self._on_the_way) + len(self._held)
        self._on_the_way.clear()
        self._held.clear()

    def snapshot(self) -> DirectionCounters:
        """The counters as they are now."""
        return dataclasses.replace(self.counters, in_flight=len(self._on_the_way) + len(self._held))

    def _suffers(self, packet: bytes) -> bool:
        faults = self._faults
        if faults.first_packets is not None and self.counters.received > faults.first_packets:
            return False
        return not faults.handshake_only or (len(packet) > 0 and packet[0] & LONG_HEADER != 0)

    def _is_dark(self, now: float) -> bool:
        faults = self._faults
        if faults.black_hole or faults.down_time == 0:
            return faults.black_hole
        return (now - self._since) % (faults.up_time + faults.down_time) >= faults.up_time

    def _falsify(self, packet: bytes, bits: int) -> bytes:
        falsified = bytearray(packet)
        size = 8 * len(packet)
        # Different ones: the same bit twice would change nothing.
        for position in self._bits.sample(range(size), min(bits, size)):
            falsified[position // 8] ^= 1 << position % 8
        return bytes(falsified)

    def _send(self, packet: bytes, route: Route, arrival: float) -> None:
        self._latest = max(self._latest, arrival)
        self._order += 1
        heapq.heappush(self._on_the_way, (self._latest, self._order, packet, route))

    def _overtake(self, arrival: float) -> None:
        """A packet has gone past those that are held back."""
        for held in list(self._held):
            held.overtakers -= 1
            if held.overtakers == 0:
                self._held.remove(held)
                self._send(held.packet, held.route, arrival)
