"""Faults of the datagrams in one direction: settings and decisions, without sockets, threads or a clock.

The decisions depend only on the seed and on the packets in order of arrival: a run with the same packets is
reproducible. Time-dependent faults (outages, delays, how long a packet is held back) depend on the times that the
caller passes.
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

# Seconds after which a held-back packet is sent even if none has overtaken it: otherwise the last packet of an exchange
# would be lost, not late.
MAX_HOLD = 0.1

# Set in the first byte of every packet of a QUIC handshake, and of no later packet (RFC 9000 section 17).
LONG_HEADER = 0x80


@dataclass(frozen=True)
class Faults:
    """The faults of the datagrams in one direction. The default is none.

    Attributes:
        loss: Fraction of datagrams that are dropped, 0 to 1; default 0.
        duplication: Fraction that arrives twice, 0 to 1; default 0.
        reordering: Fraction that is held back until others have overtaken it, 0 to 1; default 0.
        reordering_depth: How many overtake a held-back datagram, at least 1; default 3. After 0.1 s it is sent anyway.
        corruption: Fraction in which bits are flipped, 0 to 1; default 0.
        corrupted_bits: Bits flipped in each of these, at least 1; default 1.
        delay: One-way delay in seconds; default 0.
        jitter: Maximum additional delay in seconds, evenly distributed; default 0. The order is preserved; for
            reordering, use ``reordering``.
        mtu: Maximum UDP payload in bytes, at least 1; larger datagrams are dropped. Default None: no limit.
        drop_packets: Numbers of datagrams to drop, counted from 1 since the relay was started; default none.
        drop_every: Drop every n-th datagram, n at least 1; default None: drop none.
        black_hole: Drop everything; default False.
        up_time: Seconds that the path works before each outage; default 0. Counted from when these faults take effect.
        down_time: Seconds of each outage, in which everything is dropped; default 0: no outages. Both times must be
            above 0, or both 0.
        handshake_only: Affect only packets with a long header, as in a QUIC handshake; default False.
        first_packets: Affect only this many datagrams, counted since the relay was started, at least 0; default None:
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
    """Counters of the datagrams in one direction.

    Every datagram is accounted for: ``received + duplicated == delivered + dropped + in_flight``.

    Attributes:
        received: Read by the relay.
        delivered: Sent, including second copies and corrupted ones.
        delivered_bytes: The same in bytes.
        duplicated: Second copies made.
        corrupted: Corrupted; they were sent unless dropped for another reason.
        reordered: Held back.
        lost: Dropped by ``loss``.
        dropped_by_number: Dropped by ``drop_packets`` or ``drop_every``.
        too_big: Dropped by ``mtu``.
        black_holed: Dropped by ``black_hole`` or in an outage.
        forgotten: Came to a port whose NAT mapping was removed by a rebinding.
        refused: Rejected by the kernel. May include that no process listens at the target.
        abandoned: In flight when the relay was closed.
        in_flight: In flight now.
        overflowed: Dropped by the kernel before the relay could read them, because it was too slow; not in
            ``received``.
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
        """Datagrams that the relay read and did not deliver, for any reason."""
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
    overtakers: int  # how many more packets have to overtake it
    deadline: float


class Direction(Generic[Route]):
    """One direction of a path. Used by one thread at a time; times are arguments in seconds and never decrease.

    Args:
        faults: Faults of its packets.
        seed: Determines which packets are affected.
        now: The time.
    """

    def __init__(self, faults: Faults, seed: str, now: float) -> None:
        self.counters = DirectionCounters()
        self._random = random.Random(f"{seed} packets")
        # A separate generator, so that the number of flipped bits does not change which later packets are affected.
        self._bits = random.Random(f"{seed} bits")
        # (time of arrival, order, packet, destination); the order breaks ties between packets of the same time.
        self._on_the_way: list[tuple[float, int, bytes, Route]] = []
        self._order = 0
        self._latest = now  # arrival of the last queued packet
        self._held: list[_Held[Route]] = []
        self.change(faults, now)

    @property
    def faults(self) -> Faults:
        """The faults of the packets."""
        return self._faults

    def change(self, faults: Faults, now: float) -> None:
        """Sets the faults of packets from now on. Packets in flight keep their times."""
        self._faults = faults
        self._drop_packets = frozenset(faults.drop_packets)
        self._since = now

    def offer(self, packet: bytes, route: Route, now: float) -> None:
        """Takes a packet that enters the path; ``due`` returns it."""
        faults, counters = self._faults, self.counters
        counters.received += 1
        # The same number of random values per packet, whatever the faults: changing one fault does not affect the
        # decisions of the others.
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
            self._held.append(_Held(packet, route, faults.reordering_depth, now + MAX_HOLD))
        else:
            self._send(packet, route, arrival)
            self._overtake(arrival)

    def next_time(self) -> float | None:
        """Returns when the next packet is due, or None if none is in flight."""
        times = [held.deadline for held in self._held]
        if self._on_the_way:
            times.append(self._on_the_way[0][0])
        return min(times) if times else None

    def due(self, now: float) -> Iterator[tuple[bytes, Route]]:
        """Removes and yields the packets that arrive until ``now``, in order of arrival."""
        if self._held:
            for held in [held for held in self._held if held.deadline <= now]:
                self._held.remove(held)
                self._send(held.packet, held.route, held.deadline)
        while self._on_the_way and self._on_the_way[0][0] <= now:
            _, _, packet, route = heapq.heappop(self._on_the_way)
            yield packet, route

    def abandon(self) -> None:
        """Discards the packets in flight."""
        self.counters.abandoned += len(self._on_the_way) + len(self._held)
        self._on_the_way.clear()
        self._held.clear()

    def snapshot(self) -> DirectionCounters:
        """Returns a copy of the current counters."""
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
        # Distinct bits: flipping the same bit twice would change nothing.
        for position in self._bits.sample(range(size), min(bits, size)):
            falsified[position // 8] ^= 1 << position % 8
        return bytes(falsified)

    def _send(self, packet: bytes, route: Route, arrival: float) -> None:
        self._latest = max(self._latest, arrival)
        self._order += 1
        heapq.heappush(self._on_the_way, (self._latest, self._order, packet, route))

    def _overtake(self, arrival: float) -> None:
        """Records that a packet has overtaken those that are held back."""
        for held in list(self._held):
            held.overtakers -= 1
            if held.overtakers == 0:
                self._held.remove(held)
                self._send(held.packet, held.route, arrival)
