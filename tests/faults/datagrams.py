"""UDP through the tunnel with numbers, and the account of where each datagram has gone."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asport_sync.testing import RelayCounters
from asport_sync.testing.udp import kernel_drops
from tests.support.data import seeded_bytes
from tests.support.services import LARGEST_DATAGRAM, Address, SocketFactory, UdpService, new_socket

# Datagrams per second. Few enough that no buffer on loopback overflows, which nothing would account for.
RATE = 1000
# Bytes. Two QUIC packets hold no three of the usual ones, and each tenth has to travel in fragments.
USUAL, LARGE = 1000, 3000
# A QUIC packet holds the last fragment of one datagram and the first of the next, or less.
PER_PACKET = 2
# Seconds that a run may take at most until what is missing has come, after the last was sent.
SETTLE_LIMIT = 20.0
# Bytes. A machine that is busy with something else must not be what loses datagrams at the ends.
END_BUFFER = 4 << 20

_NUMBER = struct.Struct(">I")
_BASE = seeded_bytes(73, LARGE + 1000)

# Dropped before they were handed to QUIC, by either engine; and after they came out of it.
BEFORE = (
    "packet_drop_queue_full",
    "packet_drop_ring_full",
    "packet_drop_too_big",
    "packet_drop_carrier",
    "udp_drop_no_association",
)
BEHIND = (
    "packet_drop_not_joined",
    "packet_drop_unknown_association",
    "packet_drop_wrong_address",
    "packet_drop_association_refused",
)
# Counted as received as well, when the kernel refuses it.
AT_THE_SOCKET = "packet_drop_socket"
# Before or behind, according to the side: on a server they wait for their source's association, on a client for that
# which a Packet names; and what waits when a connection ends was on its way out on a server, and may be either here.
EITHER = ("packet_drop_waiting_full", "packet_drop_connection_closed")


def datagram(number: int) -> bytes:
    """The datagram of this number."""
    size = LARGE if number % 10 == 9 else USUAL
    start = number % 997
    return _NUMBER.pack(number) + _BASE[start : start + size - _NUMBER.size]


@dataclass(frozen=True)
class Arrived:
    """What one end has received.

    Attributes:
        count: Datagrams.
        problems: Those that were changed or came twice.
        in_order: Whether each had a higher number than the one before.
    """

    count: int
    problems: tuple[str, ...]
    in_order: bool


def judge(received: list[bytes]) -> Arrived:
    """Looks at what came, in the order in which it came."""
    problems = []
    numbers = []
    for payload in received:
        number = _NUMBER.unpack_from(payload)[0] if len(payload) >= _NUMBER.size else -1
        if number < 0 or payload != datagram(number):
            problems.append(f"a datagram of {len(payload)} bytes that was never sent")
        else:
            numbers.append(number)
    doubled = len(numbers) - len(set(numbers))
    if doubled:
        problems.append(f"{doubled} datagrams came twice")
    return Arrived(len(received), tuple(problems), numbers == sorted(numbers))


class Recorder(UdpService):
    """The service behind the tunnel: keeps each datagram, and sends it back."""

    def __init__(self, port: int = 0, *, create_socket: SocketFactory = new_socket) -> None:
        super().__init__(self._keep, port=port, create_socket=create_socket)
        self.kept: list[bytes] = []  # the service's thread appends

    def __enter__(self) -> Recorder:
        super().__enter__()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, END_BUFFER)
        return self

    def overflowed(self) -> int:
        """Datagrams that found the socket's buffer full."""
        return kernel_drops(self._socket)

    def _keep(self, payload: bytes) -> bytes:
        self.kept.append(payload)
        return payload


@dataclass(frozen=True)
class Exchanged:
    """What became of the datagrams of a user.

    Attributes:
        sent: By the user.
        refused: Not sent, because the kernel said that the port is closed.
        there: What came to the service.
        answered: Answers that the service has sent.
        back: What came to the user.
        overflowed: Datagrams that found a full buffer at the user's socket or at the service's.
        seconds: From the first to the last that was sent.
    """

    sent: int
    refused: int
    there: Arrived
    answered: int
    back: Arrived
    overflowed: int
    seconds: float


def run(
    service: Recorder,
    public: Address,
    count: int,
    *,
    begun: Callable[[], None] = lambda: None,
    ended: Callable[[], None] = lambda: None,
    settled: Callable[[int, int], bool],
    quiet: float,
    create_socket: SocketFactory = new_socket,
) -> Exchanged:
    """Sends so many datagrams at a steady rate while the answers come, and waits until no more do.

    Args:
        service: Behind the tunnel.
        public: Where to send.
        count: Datagrams.
        begun: Called after a third of them.
        ended: Called after the last.
        settled: Whether nothing is missing, given how many the user has sent and received.
        quiet: Seconds without a change after which what is missing does not come any more.
        create_socket: Makes the user's socket.
    """
    received: list[bytes] = []
    over = threading.Event()
    with create_socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        user.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, END_BUFFER)
        user.settimeout(0.1)
        user.connect(public)

        def receive() -> None:
            while not over.is_set():
                try:
                    received.append(user.recv(LARGEST_DATAGRAM))
                except OSError:  # nothing came, or the port is closed
                    continue

        receiver = threading.Thread(target=receive, name="udp user")
        receiver.start()
        try:
            refused = 0
            start = time.monotonic()
            for number in range(count):
                if number == count // 3:
                    begun()
                delay = start + number / RATE - time.monotonic()
                if delay > 0:
                    time.sleep(delay)
                try:
                    user.send(datagram(number))
                except ConnectionRefusedError:
                    refused += 1
            seconds = time.monotonic() - start
            ended()
            _settle(lambda: (len(service.kept), len(received)), lambda: settled(count - refused, len(received)), quiet)
        finally:
            over.set()
            receiver.join()
        overflowed = kernel_drops(user) + service.overflowed()
    kept = list(service.kept)
    answered = len(kept) - len(service.errors)
    return Exchanged(count - refused, refused, judge(kept), answered, judge(received), overflowed, seconds)


def _settle(figures: Callable[[], tuple[int, int]], complete: Callable[[], bool], quiet: float) -> None:
    deadline = time.monotonic() + SETTLE_LIMIT
    before, since = figures(), time.monotonic()
    while not complete() and time.monotonic() < deadline:
        time.sleep(0.05)
        now = figures()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > quiet:
            return


def account(
    done: Exchanged,
    server: Mapping[str, int],
    client: Mapping[str, int],
    path: RelayCounters,
    *,
    lossless: bool,
    alive: bool,
) -> tuple[dict[str, int], list[str]]:
    """Says where the datagrams of both directions are that did not arrive.

    Args:
        done: What was sent and received.
        server: Counters of the server's engine.
        client: Counters of the client's engine.
        path: Counters of the relay between both.
        lossless: Whether QUIC repeats what the path loses, as in quic mode.
        alive: Whether one connection has lasted all the time.

    Returns:
        Datagrams by cause, and what does not add up.
    """
    causes = {
        "not taken by the tunnel's sockets": done.sent
        - server["udp_received"]
        + done.answered
        - client["udp_received"],
        "full buffers at the ends": done.overflowed,
    }
    for name in (*BEFORE, *BEHIND, *EITHER, AT_THE_SOCKET):
        causes[name] = server[name] + client[name]
    # Handed to QUIC, and never come out of it.
    causes["the path"] = 0
    for sender, receiver in ((server, client), (client, server)):
        arrived = receiver["packets_received"] + sum(receiver[name] for name in BEHIND)
        causes["the path"] += sender["packets_sent"] - arrived
    # On a client these were counted as sent by the server.
    causes["the path"] -= client["packet_drop_waiting_full"]
    problems = []
    missing = done.sent + done.answered - done.there.count - done.back.count
    # What a client's connection takes along may have come out of QUIC, or was on its way into it.
    surplus = sum(causes.values()) - missing
    if not 0 <= surplus <= client["packet_drop_connection_closed"]:
        problems.append(f"{missing} are missing and the counters name {causes}")
    # Each that the path took was in a packet which vanished, was falsified, or found a full buffer.
    taken = spilled(server, client, path) + sum(way.dropped + way.corrupted for way in (path.to_target, path.to_client))
    if causes["the path"] < 0:
        problems.append(f"more came out of QUIC than was handed to it: {causes}")
    if alive:
        most = 0 if lossless else PER_PACKET * taken
        if causes["the path"] > most:
            problems.append(f"the path has taken {taken} packets, and {causes['the path']} datagrams are missing on it")
    return {name: count for name, count in causes.items() if count}, problems


def spilled(server: Mapping[str, int], client: Mapping[str, int], path: RelayCounters) -> int:
    """QUIC packets that found a full buffer, of the relay or behind it: the machine was too busy, not the path bad."""
    return sum(
        way.overflowed + max(0, way.delivered - engine["quic_datagrams_received"])
        for way, engine in ((path.to_target, server), (path.to_client, client))
    )
