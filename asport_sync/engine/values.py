"""Parameters and results of engine calls other than bytes: settings, outcomes, statistics."""

from __future__ import annotations

import dataclasses
import enum
import operator
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

from .binding import SocketAddress, ffi, nanoseconds


class CongestionControl(enum.IntEnum):
    """Congestion control algorithms of the engine."""

    CUBIC = 0
    RENO = 1
    BBR = 2


class Carrier(enum.IntEnum):
    """How UDP payloads are carried: QUIC DATAGRAM frames (RFC 9221) or one unidirectional stream each."""

    DATAGRAM = 0
    STREAM = 1


class Direction(enum.IntEnum):
    """Direction of payload as this side sees it: from its sockets to the peer, or from the peer to its sockets."""

    SENT = 0
    RECEIVED = 1

    @property
    def opposite(self) -> Direction:
        """The other direction."""
        return Direction(1 - self)


class Balance(enum.IntEnum):
    """Which connection of a group a visitor is given to: one that was given none for longest, or that has the fewest.

    With ``LEAST_CONNECTIONS``, TCP connections count for TCP, and sources for UDP.
    """

    ROUND_ROBIN = 0
    LEAST_CONNECTIONS = 1


class CloseCause(enum.IntEnum):
    """Why a connection ended."""

    LOCAL = 1
    PEER_APPLICATION = 2
    PEER_TRANSPORT = 3
    IDLE = 4
    HANDSHAKE_TIMEOUT = 5
    STATELESS_RESET = 6
    TLS = 7
    CERTIFICATE = 8
    INTERNAL = 9
    VERSION = 10
    UNREACHABLE = 11
    PEER_FAULT = 12


class RefusedBy(enum.IntEnum):
    """Why visitors are refused."""

    TCP_RULES = 0
    UDP_RULES = 1
    MAX_CONNECTIONS = 2
    RATE = 3


class StreamEnd(enum.IntEnum):
    """How the relay of a stream ended."""

    FINISHED = 0
    PEER_RESET = 1
    SOCKET_ERROR = 2
    CONNECTION = 3
    LOCAL_RESET = 4
    STOPPED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Transport:
    """QUIC transport settings of a connection. Times in seconds, sizes in bytes."""

    congestion: CongestionControl = CongestionControl.BBR
    max_udp_payload: int = 65527
    idle_timeout: float = 10.0
    keep_alive: float = 0.0
    silence: float = 0.0
    handshake_timeout: float = 8.0
    command_timeout: float = 3.0
    send_window: int = 16 * 1024 * 1024
    receive_window: int = 8 * 1024 * 1024
    # The streams may hold three quarters of it together: 16,384 of them with their initial windows, plus their growth.
    # The peer may learn of the last quarter late.
    connection_window: int = 6 * 1024 * 1024 * 1024
    datagram_queue: int = 2 * 1024 * 1024
    fragment_lifetime: float = 15.0
    max_streams_bidi: int = 0
    max_streams_uni: int = 1024
    max_pending_streams: int = 4096
    gso: bool = True
    datagrams: bool = True


STREAM_REFUSED = 2
"""Stream error code of a stream on which nothing was relayed (AQ_STREAM_REFUSED)."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamResult:
    """The outcome of a relay.

    Attributes:
        sent: Bytes read from the TCP socket.
        received: Bytes written to it.
        end: How it ended.
        error: errno with SOCKET_ERROR, the peer's stream error code with PEER_RESET, else 0.
    """

    sent: int
    received: int
    end: StreamEnd
    error: int = 0

    def describe(self) -> str:
        """Describes the end for a log line."""
        if self.end is StreamEnd.SOCKET_ERROR:
            return f"local socket error: {os.strerror(self.error)}"
        if self.end is StreamEnd.PEER_RESET and self.error == STREAM_REFUSED:
            return "refused by the peer (see its log)"
        return {
            StreamEnd.FINISHED: "finished",
            StreamEnd.PEER_RESET: "reset by the peer",
            StreamEnd.CONNECTION: "the QUIC connection ended",
            StreamEnd.LOCAL_RESET: "reset by this side",
            StreamEnd.STOPPED: "stopped",
        }[self.end]


@dataclasses.dataclass(frozen=True, slots=True)
class CounterDescription:
    """What a counter of the engine counts.

    Attributes:
        name: Its name.
        unit: "bytes", "datagrams", "packets", "fragments", or "" for what ``help`` names.
        help: One sentence.
        counts_drops: Whether it counts what was not passed on, or was refused.
    """

    name: str
    unit: str
    help: str
    counts_drops: bool


@dataclasses.dataclass(frozen=True, slots=True)
class BucketInfo:
    """State of a token bucket.

    Attributes:
        rate: Bytes per second; 0: no limit.
        waits: How often a stream has waited for it.
        dropped: Datagrams dropped.
    """

    rate: int
    waits: int
    dropped: int


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionTotals:
    """What a connection has moved since its beginning, or several connections together.

    Attributes:
        packets_sent: UDP datagrams sent.
        packets_received: UDP datagrams received.
        packets_lost: QUIC packets declared lost (RFC 9002 section 6); 0 with ngtcp2 before 1.16, which does not count.
        bytes_sent: Bytes of UDP payload sent.
        bytes_received: Bytes of UDP payload received.
        bytes_lost: Bytes of QUIC packets declared lost, as ``packets_lost``.
        streams_total: TCP connections of visitors, without refused ones.
        payload_sent: Bytes of TCP and UDP payload taken from sockets.
        payload_received: Bytes of TCP and UDP payload handed to sockets, until the end of the connection.
    """

    packets_sent: int = 0
    packets_received: int = 0
    packets_lost: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_lost: int = 0
    streams_total: int = 0
    payload_sent: int = 0
    payload_received: int = 0

    def __add__(self, other: ConnectionTotals) -> ConnectionTotals:
        return self._combined(operator.add, other)

    def maximum(self, other: ConnectionTotals) -> ConnectionTotals:
        """Returns the later figures of the same connection, which are the larger ones."""
        return self._combined(max, other)

    def _combined(self, combine: Callable[[int, int], int], other: ConnectionTotals) -> ConnectionTotals:
        return ConnectionTotals(*map(combine, _all_totals(self), _all_totals(other)))


_all_totals = operator.attrgetter(*(field.name for field in dataclasses.fields(ConnectionTotals)))


def connection_totals(raw: Any) -> ConnectionTotals:
    """Returns the object for an ``aq_connection_totals``."""
    return ConnectionTotals(*_all_totals(raw))


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """Statistics of a connection at one moment.

    Attributes:
        peer: The peer's current address: IP address and port.
        smoothed_rtt: Smoothed round-trip time in seconds (RFC 9002 section 5.3).
        min_rtt: The minimum round-trip time in seconds.
        latest_rtt: The latest sample of the round-trip time in seconds.
        congestion_window: The congestion window in bytes.
        bytes_in_flight: Bytes sent that are neither acknowledged nor lost.
        packets_sent: UDP datagrams sent.
        packets_received: UDP datagrams received.
        packets_lost: QUIC packets declared lost (RFC 9002 section 6); 0 with ngtcp2 before 1.16, which does not count.
        bytes_sent: Bytes of UDP payload sent.
        bytes_received: Bytes of UDP payload received.
        bytes_lost: Bytes of QUIC packets declared lost, as ``packets_lost``.
        path_payload: The current maximum UDP payload in bytes.
        datagram_limit: The current maximum payload of a DATAGRAM frame in bytes; 0: the peer accepts none.
        silence: Seconds since the latest packet from the peer.
        idle_timeout: The idle timeout in seconds, the minimum of both sides (RFC 9000 section 10.1); 0.0: none.
        keep_alive: Seconds without packets after which a keep-alive probe is sent; 0.0: never.
        streams: Open bidirectional streams.
        relays: The same, and those whose data is received but not yet written to the TCP connection.
        streams_total: TCP connections of visitors so far, without refused ones.
        associations: UDP associations.
        datagrams_queued: Bytes of UDP packets that wait to be sent.
        payload_sent: Bytes of TCP and UDP payload taken from sockets so far.
        payload_received: Bytes of TCP and UDP payload handed to sockets so far.
    """

    peer: SocketAddress
    smoothed_rtt: float
    min_rtt: float
    latest_rtt: float
    congestion_window: int
    bytes_in_flight: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    bytes_sent: int
    bytes_received: int
    bytes_lost: int
    path_payload: int
    datagram_limit: int
    silence: float
    idle_timeout: float
    keep_alive: float
    streams: int
    relays: int
    streams_total: int
    associations: int
    datagrams_queued: int
    payload_sent: int
    payload_received: int

    @property
    def totals(self) -> ConnectionTotals:
        """What it has moved so far."""
        return ConnectionTotals(*_all_totals(self))


_RANGE = struct.Struct("B16s16s")  # aq_address_range


def packed_ranges(ranges: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns ranges of IP addresses, first and last included, in the form of ``VisitorLimits.permitted``.

    Args:
        ranges: Addresses in network byte order, 4 or 16 bytes. IPv4 comes first; those of a family are ascending and do
            not overlap.
    """
    return b"".join(_RANGE.pack(4 if len(first) == 4 else 6, first, last) for first, last in ranges)


@dataclasses.dataclass(frozen=True, slots=True)
class VisitorLimits:
    """What a public port (server) or a tunnel (client) grants its visitors. The default is everything.

    Attributes:
        permitted: Addresses that are served, from ``packed_ranges``; None: all.
        unknown_permitted: Whether visitors are served whose address the peer does not tell.
        max_connections: Maximum open TCP connections; 0: no limit.
        max_new: Maximum new TCP connections per second, and at once; 0: no limit.
    """

    permitted: bytes | None = None
    unknown_permitted: bool = True
    max_connections: int = 0
    max_new: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """The properties of a certificate that decide whether peers accept it from a server.

    Attributes:
        not_before: Seconds since 1970, as ``time.time``.
        not_after: The same.
        names: Whether its subjectAltName has a DNS name or an IP address.
        signs: Whether its key may sign a handshake: no keyUsage, or one with digitalSignature.
        serves: Whether TLS servers may use it: no extendedKeyUsage, or one with serverAuth.
        strong: Whether its key is long enough for asport-sync peers.
        sealed: Whether its issuer signed it with an algorithm that asport-sync peers accept, or it is its own issuer.
    """

    not_before: int
    not_after: int
    names: bool = True
    signs: bool = True
    serves: bool = True
    strong: bool = True
    sealed: bool = True


def fill_transport(raw: Any, transport: Transport) -> None:
    """Copies settings into an ``aq_transport_options``."""
    for field in dataclasses.fields(transport):
        value = getattr(transport, field.name)
        # Fields declared float in Transport are times in seconds; the C API takes nanoseconds.
        setattr(raw, field.name, nanoseconds(value) if field.type == "float" else int(value))


def visitor_limits(limits: VisitorLimits) -> tuple[Any, Any]:
    """Returns an ``aq_visitor_limits *``, and what must stay alive as long as it is used."""
    raw = ffi.new("aq_visitor_limits *")
    raw.max_connections, raw.max_new = limits.max_connections, limits.max_new
    raw.unknown_permitted = int(limits.unknown_permitted)
    if limits.permitted is None:
        return raw, None
    raw.restricted = 1
    ranges = ffi.from_buffer("aq_address_range[]", limits.permitted)
    raw.permitted, raw.permitted_length = ranges, len(ranges)
    return raw, ranges


def stream_result(raw: Any) -> StreamResult:
    """Returns the object for an ``aq_stream_result``."""
    return StreamResult(raw.sent, raw.received, StreamEnd(raw.end), raw.error)
