"""The path itself: a program that carries whole IP packets between two TUN devices.

Started by ``tests.path.network`` with the descriptors of the two devices and of a control socket; ends when the other
end of the control socket is closed, so it can't outlive the test. A process of its own, so that the interpreter lock of
a busy test does not add delay. Only the standard library, no import of this package.

A packet's way in one direction: read from the sender's device, dropped if the direction is a black hole, dropped at the
tail if the queue is full, sent at the bottleneck's rate, lost at random after that, or falsified, doubled or held back,
delayed, written to the receiver's device.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

# Packets taken from one device before the other gets its turn.
BATCH = 64
# Longer than any MTU a TUN device can have.
LARGEST_PACKET = 65535
# Milliseconds that a packet is held back for others to overtake it: more than a packet's time on a path of 10 Mbit/s.
REORDERING_MS = 3.0
# Bytes of the shortest IPv4 header; what is behind belongs to TCP or UDP.
IP_HEADER = 20
# Bytes of one control message; the requests and the answers are a few hundred.
CONTROL_SIZE = 65536


@dataclass(frozen=True)
class LinkSettings:
    """One direction of the path. Every field can be changed while it runs.

    Attributes:
        delay_ms: Time each packet spends on the way, one way.
        loss: Share of packets lost at random, 0 to 1.
        rate_mbit: Rate of the bottleneck in 10^6 bit/s, counting whole IP packets.
        queue_ms: Length of the drop-tail queue before the bottleneck, as time at that rate.
        black_hole: Take every packet and deliver none.
        corruption: Share of packets with a flipped bit, 0 to 1. The bit is behind the IP header, and TCP's and UDP's
            checksums don't fit any more, as on a link whose own checks have failed; the receiving kernel drops them.
        duplication: Share of packets delivered twice, 0 to 1.
        reordering: Share of packets held back by ``REORDERING_MS``, 0 to 1, so that others overtake them.
    """

    delay_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 100.0
    queue_ms: float = 100.0
    black_hole: bool = False
    corruption: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0

    def __post_init__(self) -> None:
        for name, value, good, expected in (
            ("delay_ms", self.delay_ms, self.delay_ms >= 0, "0 or more"),
            ("loss", self.loss, 0 <= self.loss <= 1, "between 0 and 1"),
            ("rate_mbit", self.rate_mbit, self.rate_mbit > 0, "more than 0"),
            ("queue_ms", self.queue_ms, self.queue_ms >= 0, "0 or more"),
            ("corruption", self.corruption, 0 <= self.corruption <= 1, "between 0 and 1"),
            ("duplication", self.duplication, 0 <= self.duplication <= 1, "between 0 and 1"),
            ("reordering", self.reordering, 0 <= self.reordering <= 1, "between 0 and 1"),
        ):
            if not good:
                raise ValueError(f"{name} must be {expected}, not {value}")


@dataclass
class LinkCounters:
    """What became of the packets of one direction.

    ``received`` and ``duplicated`` are the sum of ``delivered``, the four kinds of drops and ``in_flight``; those that
    were ``corrupted`` or ``reordered`` are among them.
    """

    received: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    corrupted: int = 0
    duplicated: int = 0
    reordered: int = 0
    lost: int = 0
    queue_full: int = 0
    black_holed: int = 0
    refused_by_device: int = 0
    in_flight: int = 0


class Link:
    """One direction, as a queue that knows no clock and no socket: times in seconds are arguments."""

    def __init__(self, settings: LinkSettings, seed: int) -> None:
        self.settings = settings
        self.counters = LinkCounters()
        self._random = random.Random(seed)
        # For the rarer faults, apart from the losses: which packets are lost is the same with and without them.
        self._others = random.Random(~seed)
        # When the bottleneck has sent all it was given.
        self._idle_at = 0.0
        # (time of delivery, order of arrival, packet); the order keeps packets with the same time in line.
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._order = 0

    def offer(self, packet: bytes, now: float) -> None:
        """Take a packet that reaches the path at ``now``."""
        settings = self.settings
        self.counters.received += 1
        if settings.black_hole:
            self.counters.black_holed += 1
            return
        start = max(now, self._idle_at)
        if start - now > settings.queue_ms / 1e3:
            self.counters.queue_full += 1
            return
        self._idle_at = start + len(packet) * 8 / (settings.rate_mbit * 1e6)
        # One number for each packet that was queued, lost or not: then which ones are lost depends on the seed alone.
        if self._random.random() < settings.loss:
            self.counters.lost += 1
            return
        arrival = self._idle_at + settings.delay_ms / 1e3
        if self._others.random() < settings.corruption and len(packet) > IP_HEADER:
            self.counters.corrupted += 1
            packet = self._corrupt(packet)
        if self._others.random() < settings.duplication:
            self.counters.duplicated += 1
            self._send(packet, arrival)
        if self._others.random() < settings.reordering:
            self.counters.reordered += 1
            arrival += REORDERING_MS / 1e3
        self._send(packet, arrival)

    def _corrupt(self, packet: bytes) -> bytes:
        falsified = bytearray(packet)
        falsified[self._others.randrange(IP_HEADER, len(packet))] ^= 1 << self._others.randrange(8)
        return bytes(falsified)

    def _send(self, packet: bytes, arrival: float) -> None:
        self._order += 1
        heapq.heappush(self._in_flight, (arrival, self._order, packet))

    def next_delivery(self) -> float | None:
        """Return when the next packet is due, or None where none is on its way."""
        return self._in_flight[0][0] if self._in_flight else None

    def due(self, now: float) -> Iterator[bytes]:
        """Take the packets off the path that reach its end until ``now``, in the order of their times."""
        while self._in_flight and self._in_flight[0][0] <= now:
            yield heapq.heappop(self._in_flight)[2]

    def snapshot(self) -> dict[str, int]:
        """Return the counters as they are now."""
        self.counters.in_flight = len(self._in_flight)
        return asdict(self.counters)


class Forwarder:
    """Two devices, a link for each direction, and the control socket."""

    def __init__(self, devices: tuple[int, int], control: socket.socket, links: tuple[Link, Link]) -> None:
        self._devices = devices
        self._control = control
        # links[0] carries from devices[0] to devices[1], links[1] the other way.
        self._links = links

    def run(self) -> None:
        """Carry packets until the control socket is closed."""
        control = self._control.fileno()
        readers = [control, *self._devices]
        while True:
            # select() takes microseconds where epoll would round up to milliseconds.
            ready, _, _ = select.select(readers, [], [], self._time_to_next_delivery())
            if control in ready and not self._obey():
                return
            for sender, link in zip(self._devices, self._links, strict=True):
                if sender in ready:
                    self._take(sender, link)
            for receiver, link in zip(reversed(self._devices), self._links, strict=True):
                self._hand_over(receiver, link)

    def _time_to_next_delivery(self) -> float | None:
        times = [due for due in (link.next_delivery() for link in self._links) if due is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    @staticmethod
    def _take(device: int, link: Link) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(device, LARGEST_PACKET)
            except BlockingIOError:
                return
            # The clock after the read: a packet is never delivered earlier than its delay after it was sent.
            link.offer(packet, time.monotonic())

    @staticmethod
    def _hand_over(device: int, link: Link) -> None:
        for packet in link.due(time.monotonic()):
            try:
                os.write(device, packet)
            except OSError:  # the device is down, or has no room
                link.counters.refused_by_device += 1
            else:
                link.counters.delivered += 1
                link.counters.delivered_bytes += len(packet)

    def _obey(self) -> bool:
        """Carry out one request and answer with the counters; return False where no more will come."""
        message = self._control.recv(CONTROL_SIZE)
        if not message:
            return False
        # {"0": {"loss": 0.1}}: the fields to change in each direction. An empty request only asks for the counters.
        for number, changes in json.loads(message).items():
            link = self._links[int(number)]
            link.settings = replace(link.settings, **changes)
        self._control.send(json.dumps([link.snapshot() for link in self._links]).encode())
        return True


def main() -> int:
    """Run as a program; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs=2, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    for field in fields(LinkSettings):
        parser.add_argument(f"--{field.name}", type=json.loads, required=True)
    arguments = parser.parse_args()
    settings = LinkSettings(**{field.name: getattr(arguments, field.name) for field in fields(LinkSettings)})
    # Seeds differ, or both directions would lose the same packets.
    links = (Link(settings, 2 * arguments.seed), Link(settings, 2 * arguments.seed + 1))
    with socket.socket(fileno=arguments.control) as control:
        Forwarder((arguments.devices[0], arguments.devices[1]), control, links).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
