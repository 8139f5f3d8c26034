"""Handles to objects of an engine: connections, streams, sockets.

Using a handle whose object is gone raises HandleGoneError, and EngineClosedError if the whole engine is stopped.
Methods may be called from any thread unless stated otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any

from asport_sync.errors import AsportError
from asport_sync.forked import no_fork
from asport_sync.hidden import HiddenBytes

from .binding import SocketAddress, ffi, from_address, lib, nanoseconds, to_address
from .values import (
    STREAM_REFUSED,
    Balance,
    BucketInfo,
    Carrier,
    ConnectionInfo,
    Direction,
    StreamResult,
    Transport,
    VisitorLimits,
    fill_transport,
    stream_result,
    visitor_limits,
)

if TYPE_CHECKING:
    from .engine import Engine

_NO_CODE = 2**64 - 1  # of aq_connection_close


def _address_or_null(address: SocketAddress | None) -> Any:
    return ffi.NULL if address is None else to_address(address)


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """Identifies an object of an engine."""

    engine: Engine = dataclasses.field(repr=False)  # compared too: ids are unique within an engine only
    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials(Handle):
    """Certificates, key and trust anchors of one side, usable for any number of endpoints and connections."""

    def free(self) -> None:
        """Releases the handle. Endpoints and connections that use the credentials keep them."""
        self.engine.call(lib.aq_credentials_free, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint(Handle):
    """A QUIC server socket."""

    def close(self, *, close_connections: bool = True) -> None:
        """Stops accepting, and by default closes its connections."""
        self.engine.call(lib.aq_endpoint_close, self.id, int(close_connections))

    def set_credentials(self, credentials: Credentials) -> None:
        """Uses other credentials for new handshakes."""
        self.engine.call(lib.aq_endpoint_set_credentials, self.id, credentials.id)

    def set_transport(self, transport: Transport) -> None:
        """Uses other settings for new connections."""
        options = ffi.new("aq_transport_options *")
        fill_transport(options, transport)
        self.engine.call(lib.aq_endpoint_set_transport, self.id, options)

    def limit(self, max_connections: int) -> None:
        """Changes the maximum of connections. Existing connections stay."""
        self.engine.call(lib.aq_endpoint_limit, self.id, max_connections)


@dataclasses.dataclass(frozen=True, slots=True)
class Stream(Handle):
    """A bidirectional stream that carries one TCP connection."""

    def relay(self, sock: socket.socket) -> StreamResult:
        """Relays until both directions have ended. Blocks; the socket remains the caller's.

        Raises:
            GoneError: The stream no longer exists, or the engine is stopped.
        """
        result = ffi.new("aq_stream_result *")
        self.engine.call(lib.aq_stream_relay, self.id, sock.fileno(), result)
        return stream_result(result)

    def attach(self, sock: socket.socket) -> None:
        """Lets the engine thread relay. Takes ownership of the socket, even if this raises."""
        with no_fork:
            descriptor = sock.detach()
            try:
                self.engine.check()
            except AsportError:
                os.close(descriptor)
                raise
            self.engine.call(lib.aq_stream_attach, self.id, descriptor)

    def reset(self, code: int = 1) -> None:
        """Sends RESET_STREAM and STOP_SENDING (RFC 9000 sections 19.4 and 19.5)."""
        self.engine.call(lib.aq_stream_reset, self.id, code)

    def refuse(self) -> None:
        """Resets a stream on which nothing will be relayed, with the error code that tells the peer so."""
        self.reset(STREAM_REFUSED)


@dataclasses.dataclass(frozen=True, slots=True)
class Listener(Handle):
    """A listening TCP socket whose connections become streams."""

    def close(self) -> None:
        """Stops accepting before it returns. Accepted connections continue."""
        self.engine.call(lib.aq_listener_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket(Handle):
    """A token bucket: limits the payload of all connections that use it, together."""

    def set_rate(self, rate: int) -> None:
        """Changes the rate, in bytes per second; 0: no limit."""
        self.engine.call(lib.aq_bucket_rate, self.id, rate)

    def info(self) -> BucketInfo:
        """Returns its rate, and how much it has held back."""
        raw = ffi.new("aq_bucket_info *")
        self.engine.call(lib.aq_bucket_info_get, self.id, raw)
        return BucketInfo(raw.rate, raw.waits, raw.dropped)

    def close(self) -> None:
        """Releases the handle. Connections that use the bucket keep it."""
        self.engine.call(lib.aq_bucket_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Group(Handle):
    """Connections that share a public port: visitors are spread over them."""

    def set_balance(self, balance: Balance) -> None:
        """Changes how new visitors are spread."""
        self.engine.call(lib.aq_group_balance, self.id, balance)

    def close(self) -> None:
        """Releases the handle. The connections of the group keep it."""
        self.engine.call(lib.aq_group_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class UdpSocket(Handle):
    """A UDP socket that belongs to a connection. All methods: pump thread only."""

    def receive(self) -> int:
        """Forwards a batch of datagrams from a socket that UdpLargeTransfer handed over; returns their number."""
        return self.engine.call(lib.aq_udp_receive, self.id)

    def give_back(self) -> None:
        """Lets the engine read the socket again.

        Raises:
            EngineError: It cannot, and the caller has to continue reading.
        """
        self.engine.call(lib.aq_udp_return, self.id)

    def refuse(self, source: SocketAddress, local: SocketAddress | None = None) -> None:
        """Refuses an association to a source; its waiting datagrams are dropped.

        Its next datagram causes another SourceUnknown.

        Args:
            source: As in SourceUnknown.
            local: As in SourceUnknown.
        """
        self.engine.call(lib.aq_udp_refuse, self.id, to_address(source), _address_or_null(local))

    def add_association(
        self, association: int, peer: SocketAddress, prefix: bytes = b"", local: SocketAddress | None = None
    ) -> None:
        """Adds an association; datagrams that waited for it are forwarded at once.

        Args:
            association: ASSOC_ID.
            peer: Public socket: the source as in SourceUnknown. Local socket: the address in the Packet.
            prefix: Bytes to prepend to every datagram sent to the socket, at most 64.
            local: Public socket: the address to answer from, as in SourceUnknown.

        Raises:
            EngineError: The ID or the source already has an association, or ``Connection.limit`` does not permit the
                visitor.
        """
        self.engine.call(
            lib.aq_association_add, self.id, association, to_address(peer), _address_or_null(local), prefix, len(prefix)
        )

    def move(self, sock: socket.socket, prefix: bytes = b"") -> None:
        """Moves the association of a local socket to another socket, connected to another address of the service.

        Datagrams sent within the last second to a service that has never answered are sent again.

        Args:
            sock: Replaces the previous socket; remains the caller's.
            prefix: As for ``add_association``.

        Raises:
            EngineError: Out of descriptors or memory.
        """
        self.engine.call(lib.aq_udp_move, self.id, sock.fileno(), prefix, len(prefix))

    def close(self) -> None:
        """Removes the socket and its associations. The Python socket remains the caller's."""
        self.engine.call(lib.aq_udp_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Connection(Handle):
    """A QUIC connection of either side."""

    def close(self, code: int | None = 0, *, linger: float = 0.0) -> None:
        """Closes with an application error code. Closed follows.

        Args:
            code: Application error code (RFC 9000 section 20.2); None: the transport error code NO_ERROR instead.
            linger: Maximum seconds to wait until everything sent with ``send`` is acknowledged.
        """
        self.engine.call(lib.aq_connection_close, self.id, _NO_CODE if code is None else code, nanoseconds(linger))

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """Exports keying material from TLS (RFC 8446 section 7.5).

        Raises:
            EngineError: The handshake is not complete.
        """
        out = ffi.new("uint8_t[]", length)
        self.engine.call(lib.aq_connection_export, self.id, label, len(label), context, len(context), out, length)
        return HiddenBytes(ffi.buffer(out, length))

    def peer_chain(self) -> bytes:
        """Returns the certificates that the peer sent, as DER one after the other, its own first; empty: none.

        They are untrusted unless the credentials verify.

        Raises:
            EngineError: The handshake is not complete.
        """
        room, length = 0, 4096
        while room < length:
            room = length
            out = ffi.new("uint8_t[]", room)
            length = self.engine.call(lib.aq_connection_peer_chain, self.id, out, room)
        return bytes(ffi.buffer(out, length))

    def send(self, command: bytes) -> None:
        """Sends one command, at most 256 bytes, on its own unidirectional stream."""
        self.engine.call(lib.aq_connection_send, self.id, command, len(command))

    def heartbeat(self, command: bytes, interval: float) -> None:
        """Sends a command of at most 16 bytes as a DATAGRAM every ``interval`` seconds; 0 stops it."""
        self.engine.call(lib.aq_connection_heartbeat, self.id, command, len(command), nanoseconds(interval))

    def set_joined(self, carrier: Carrier | None, *, ask: bool = False) -> None:
        """Lifts the limits of an unauthenticated peer.

        Args:
            carrier: Carrier of outgoing Packets; None: no UDP, Packets from the peer are dropped and counted.
            ask: Servers only: determine the carrier that the client accepts instead of using ``carrier``, by a Packet
                on a stream that is never completed. Outgoing Packets wait for the result.
        """
        chosen = int(Carrier.DATAGRAM if carrier is None else carrier)
        self.engine.call(
            lib.aq_connection_set_joined, self.id, lib.AQ_CARRIER_UNKNOWN if ask else chosen, int(carrier is not None)
        )

    def probe(self, timeout: float, grace_period: float = 0.0) -> None:
        """Sends keep-alive probes until the peer answers. Probed follows.

        Args:
            timeout: Seconds until the peer counts as dead.
            grace_period: Seconds before ``timeout`` starts, if there is no hint that the peer has lost the connection
                or a full congestion window delays the first PING.
        """
        self.engine.call(lib.aq_connection_probe, self.id, nanoseconds(timeout), nanoseconds(grace_period))

    def migrate(self, sock: socket.socket) -> bool:
        """Migrates a client's connection to the local address that the kernel now chooses towards the server.

        Streams and associations continue (RFC 9000 section 9).

        Args:
            sock: UDP socket of the server's address family, not connected. Remains the caller's and may be closed
                immediately.

        Returns:
            Whether it migrated; False if it already has that address.

        Raises:
            EngineError: There is no route to the server, or the server disables migration. The connection keeps its
                path.
        """
        return self.engine.call(lib.aq_connection_migrate, self.id, sock.fileno()) == 1

    def info(self) -> ConnectionInfo:
        """Returns current statistics of the connection."""
        raw = ffi.new("aq_connection_info *")
        self.engine.call(lib.aq_connection_info_get, self.id, raw)
        return ConnectionInfo(
            peer=from_address(raw.peer),
            smoothed_rtt=raw.smoothed_rtt / 1e9,
            min_rtt=raw.min_rtt / 1e9,
            latest_rtt=raw.latest_rtt / 1e9,
            congestion_window=raw.congestion_window,
            bytes_in_flight=raw.bytes_in_flight,
            packets_sent=raw.totals.packets_sent,
            packets_received=raw.totals.packets_received,
            packets_lost=raw.totals.packets_lost,
            bytes_sent=raw.totals.bytes_sent,
            bytes_received=raw.totals.bytes_received,
            bytes_lost=raw.totals.bytes_lost,
            path_payload=raw.path_payload,
            datagram_limit=raw.datagram_limit,
            silence=raw.silence / 1e9,
            idle_timeout=raw.idle_timeout / 1e9,
            keep_alive=raw.keep_alive / 1e9,
            streams=raw.streams,
            relays=raw.relays,
            streams_total=raw.totals.streams_total,
            associations=raw.associations,
            datagrams_queued=raw.datagrams_queued,
            payload_sent=raw.totals.payload_sent,
            payload_received=raw.totals.payload_received,
        )

    def use_bucket(self, bucket: Bucket, direction: Direction) -> None:
        """Limits the payload in one direction, from now on and until the end of the connection.

        Args:
            bucket: Shared with any other connections.
            direction: Which payload.

        Raises:
            EngineError: It uses two other buckets in this direction already.
        """
        self.engine.call(lib.aq_connection_bucket, self.id, bucket.id, direction)

    def limit(self, limits: VisitorLimits) -> None:
        """Sets what visitors are granted, from now on. VisitorsRefused reports those that are refused.

        TCP connections of visitors that are no longer permitted are reset. Their associations stay until they are
        removed: see ``refused_associations``.

        Raises:
            EngineError: ``limits.permitted`` is not as described there.
        """
        raw, _ranges = visitor_limits(limits)
        self.engine.call(lib.aq_connection_limit, self.id, raw)

    def join(self, group: Group) -> None:
        """Makes the connection a member of a group until its end. Before ``accept`` and ``open_udp``.

        The other members accept on the same sockets. ``limit`` applies to all members together.

        Raises:
            EngineError: It is in a group already.
        """
        self.engine.call(lib.aq_connection_join, self.id, group.id)

    def open_stream(self, header: bytes) -> Stream:
        """Opens a bidirectional stream that begins with ``header`` (at most 64 bytes).

        Raises:
            EngineError: Too many streams wait for the peer's credit.
        """
        return Stream(self.engine, self.engine.call(lib.aq_stream_open, self.id, header, len(header)))

    def accept(self, listener: socket.socket, *, for_workers: bool = False) -> Listener:
        """Accepts on a listening TCP socket, which remains the caller's.

        Each connection becomes a stream that begins with Connect and its visitor's address, and is attached at once.

        Args:
            listener: The socket.
            for_workers: StreamLargeTransfer hands each stream to a worker at once, as long as one is free.

        Raises:
            EngineError: Out of descriptors or memory.
        """
        return Listener(
            self.engine, self.engine.call(lib.aq_listener_open, self.id, listener.fileno(), int(for_workers))
        )

    def dial(self, address: SocketAddress | None, timeout: float = 0.0, valid: float = float("inf")) -> None:
        """Lets the engine dial this address for streams that the peer opens, and attach them.

        Streams whose connection fails, and all streams after ``valid``, are reported by StreamOpened as without this
        call.

        Args:
            address: None: stop dialling.
            timeout: Seconds per TCP connection.
            valid: Seconds until it expires.
        """
        to = _address_or_null(address)
        self.engine.call(lib.aq_connection_dial, self.id, to, nanoseconds(timeout), nanoseconds(valid))

    def open_udp(self, sock: socket.socket, *, public: bool, for_pump: bool = False) -> UdpSocket:
        """Adds a UDP socket to the connection; the socket remains the caller's. Pump thread only.

        Args:
            sock: The socket.
            public: Whether it has many sources, as a public port, or one association.
            for_pump: The engine never reads it: ``UdpSocket.receive`` has to be called from the beginning.
        """
        options = int(public), int(for_pump)
        return UdpSocket(self.engine, self.engine.call(lib.aq_udp_open, self.id, sock.fileno(), *options))

    def remove_association(self, association: int) -> None:
        """Removes an association, or refuses one that AssociationWanted asked for. Pump thread only."""
        self.engine.call(lib.aq_association_remove, self.id, association)

    def refuse_associations(self, source: SocketAddress | None, lasts: float) -> None:
        """Refuses new associations for some time. Pump thread only.

        Neither SourceUnknown nor AssociationWanted is reported; packets that would cause one are dropped and counted.

        Args:
            source: Only from this address, any port; None: from all addresses.
            lasts: Seconds.
        """
        self.engine.call(lib.aq_associations_refuse, self.id, _address_or_null(source), nanoseconds(lasts))

    def idle_associations(self, idle: float, maximum: int = 1024, host: SocketAddress | None = None) -> list[int]:
        """Returns associations without traffic for ``idle`` seconds, in order of eviction. Pump thread only.

        The longest idle of those with one or two answered questions come first, then the longest idle of all others.

        Args:
            idle: Seconds.
            maximum: Number of associations.
            host: Only those of this address, any port; None: of all addresses.
        """
        out = ffi.new("uint16_t[]", maximum)
        address = ffi.NULL if host is None else to_address(host)
        count = self.engine.call(lib.aq_associations_idle, self.id, address, nanoseconds(idle), out, maximum)
        return list(ffi.unpack(out, count))

    def refused_associations(self, maximum: int = 1024) -> list[int]:
        """Returns associations of visitors that ``limit`` does not permit any more. Pump thread only."""
        out = ffi.new("uint16_t[]", maximum)
        count = self.engine.call(lib.aq_associations_refused, self.id, out, maximum)
        return list(ffi.unpack(out, count))

    def unanswered_associations(self, silence: float, recent: float, maximum: int = 1024) -> list[int]:
        """Returns associations that wait for an answer of the local service. Pump thread only.

        Their visitor has sent within ``recent`` seconds and has waited longer than ``silence`` seconds.
        """
        out = ffi.new("uint16_t[]", maximum)
        count = self.engine.call(
            lib.aq_associations_unanswered, self.id, nanoseconds(silence), nanoseconds(recent), out, maximum
        )
        return list(ffi.unpack(out, count))
