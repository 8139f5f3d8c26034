"""Names for what an engine owns: connections, streams, sockets.

A name that has outlived its object raises EngineClosed. All methods may be called from any thread unless they say
otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any

from asport_sync.errors import AsportError
from asport_sync.hidden import HiddenBytes

from .binding import SocketAddress, ffi, from_address, lib, nanoseconds, to_address
from .values import STREAM_REFUSED, Carrier, ConnectionInfo, StreamResult, stream_result

if TYPE_CHECKING:
    from .engine import Engine


def _address_or_null(address: SocketAddress | None) -> Any:
    return ffi.NULL if address is None else to_address(address)


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """An object of an engine."""

    engine: Engine = dataclasses.field(repr=False, compare=False)
    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials(Handle):
    """Certificates, key and trust of one side, usable for any number of endpoints and connections."""

    def free(self) -> None:
        """Ends the name. Endpoints and connections that use the credentials keep them."""
        self.engine.call(lib.aq_credentials_free, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint(Handle):
    """A QUIC server socket."""

    def close(self, *, close_connections: bool = True) -> None:
        """Stops accepting, and closes the connections it has unless told otherwise."""
        self.engine.call(lib.aq_endpoint_close, self.id, int(close_connections))

    def set_credentials(self, credentials: Credentials) -> None:
        """Uses other credentials for every new handshake."""
        self.engine.call(lib.aq_endpoint_set_credentials, self.id, credentials.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Stream(Handle):
    """A bidirectional stream that carries one TCP connection."""

    def relay(self, sock: socket.socket) -> StreamResult:
        """Relays until both directions have ended. Blocks; the socket stays the caller's.

        Raises:
            EngineClosed: The stream or the engine is gone.
        """
        result = ffi.new("aq_stream_result *")
        self.engine.call(lib.aq_stream_relay, self.id, sock.fileno(), result)
        return stream_result(result)

    def attach(self, sock: socket.socket) -> None:
        """Lets the engine thread relay. The socket is taken over, also when this raises."""
        descriptor = sock.detach()
        try:
            self.engine.check()
        except AsportError:
            os.close(descriptor)
            raise
        self.engine.call(lib.aq_stream_attach, self.id, descriptor)

    def reset(self, code: int = 1) -> None:
        """RESET_STREAM and STOP_SENDING (RFC 9000 sections 19.4 and 19.5)."""
        self.engine.call(lib.aq_stream_reset, self.id, code)

    def refuse(self) -> None:
        """Resets a stream that nothing will be relayed on, with the code that says so to the peer."""
        self.reset(STREAM_REFUSED)


@dataclasses.dataclass(frozen=True, slots=True)
class Listener(Handle):
    """A listening TCP socket whose connections become streams."""

    def close(self) -> None:
        """Accepts no more once this has returned. Connections that were accepted live on."""
        self.engine.call(lib.aq_listener_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class UdpSocket(Handle):
    """A UDP socket in the service of a connection. All methods: the pump thread."""

    def receive(self) -> int:
        """Reads and forwards a batch of datagrams from a socket that UdpBulk handed over; returns how many."""
        return self.engine.call(lib.aq_udp_receive, self.id)

    def give_back(self) -> None:
        """The engine reads the socket again.

        Raises:
            EngineError: It can't, and the caller has to go on.
        """
        self.engine.call(lib.aq_udp_return, self.id)

    def refuse(self, source: SocketAddress, local: SocketAddress | None = None) -> None:
        """The source gets no association: what waits is dropped. Its next datagram asks again.

        Args:
            source: As SourceUnknown gave it.
            local: Likewise.
        """
        self.engine.call(lib.aq_udp_refuse, self.id, to_address(source), _address_or_null(local))

    def add_flow(
        self, association: int, peer: SocketAddress, prefix: bytes = b"", local: SocketAddress | None = None
    ) -> None:
        """Adds an association; datagrams that waited for it follow at once.

        Args:
            association: The ASPORT associate ID.
            peer: Public socket: the source as the socket reports it. Local socket: the address the Packet carried.
            prefix: Bytes in front of every datagram sent to the socket, at most 64.
            local: Public socket: the address that answers leave from, as SourceUnknown gave it.

        Raises:
            EngineError: The ID or the source has an association already.
        """
        self.engine.call(
            lib.aq_flow_add, self.id, association, to_address(peer), _address_or_null(local), prefix, len(prefix)
        )

    def move(self, sock: socket.socket, prefix: bytes = b"") -> None:
        """The association of a local socket goes on with another one, connected to another address of the service.

        What was sent within the last second to a service that has never answered is sent again.

        Args:
            sock: Stays the caller's, in place of the former.
            prefix: As for ``add_flow``.

        Raises:
            EngineError: No descriptors or memory for it now.
        """
        self.engine.call(lib.aq_udp_move, self.id, sock.fileno(), prefix, len(prefix))

    def close(self) -> None:
        """Forgets the socket and its associations. The Python socket stays the caller's."""
        self.engine.call(lib.aq_udp_close, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Connection(Handle):
    """A QUIC connection, of either side."""

    def close(self, code: int = 0, *, linger: float = 0.0) -> None:
        """Closes with an application error code. Closed follows.

        Args:
            code: Application error code (RFC 9000 section 20.2).
            linger: Seconds to wait, at most, until everything sent with ``send`` is acknowledged.
        """
        self.engine.call(lib.aq_connection_close, self.id, code, nanoseconds(linger))

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """TLS keying-material exporter (RFC 8446 section 7.5).

        Raises:
            EngineError: The handshake isn't complete.
        """
        out = ffi.new("uint8_t[]", length)
        self.engine.call(lib.aq_connection_export, self.id, label, len(label), context, len(context), out, length)
        return HiddenBytes(ffi.buffer(out, length))

    def send(self, command: bytes) -> None:
        """Sends one command, at most 256 bytes, on a unidirectional stream of its own."""
        self.engine.call(lib.aq_connection_send, self.id, command, len(command))

    def heartbeat(self, command: bytes, interval: float) -> None:
        """Sends a command of at most 16 bytes as a DATAGRAM every ``interval`` seconds; 0 ends it."""
        self.engine.call(lib.aq_connection_heartbeat, self.id, command, len(command), nanoseconds(interval))

    def admit(self, carrier: Carrier | None, *, ask: bool = False) -> None:
        """Lifts the limits of an unauthenticated peer.

        Args:
            carrier: How outgoing Packets travel; None: no UDP, Packets from the peer are dropped and counted.
            ask: Of a server: whether to find out what the client takes, in place of ``carrier``: it is asked by a
                Packet on a stream that it never gets whole. What is for it waits until that is answered.
        """
        chosen = int(Carrier.DATAGRAM if carrier is None else carrier)
        self.engine.call(
            lib.aq_connection_admit, self.id, lib.AQ_CARRIER_UNKNOWN if ask else chosen, int(carrier is not None)
        )

    def probe(self, timeout: float, patience: float = 0.0) -> None:
        """Sends PINGs until the peer answers. Probed follows.

        Args:
            timeout: Seconds that the answer may take.
            patience: Seconds more where nothing hints that the peer has forgotten the connection, or until the first
                PING leaves where a full congestion window holds it back.
        """
        self.engine.call(lib.aq_connection_probe, self.id, nanoseconds(timeout), nanoseconds(patience))

    def migrate(self, sock: socket.socket) -> bool:
        """Moves a client's connection to the local address that the kernel now chooses towards the server.

        Streams and associations go on (RFC 9000 section 9).

        Args:
            sock: UDP socket of the server's address family, not connected. Stays the caller's and may be closed at
                once.

        Returns:
            Whether it has moved; it has not where it has that address already.

        Raises:
            EngineError: There is no way to the server, or the server allows no migration. The connection stays where it
                is.
        """
        return self.engine.call(lib.aq_connection_migrate, self.id, sock.fileno()) == 1

    def info(self) -> ConnectionInfo:
        """Figures of the connection now."""
        raw = ffi.new("aq_connection_info *")
        self.engine.call(lib.aq_connection_info_get, self.id, raw)
        return ConnectionInfo(
            peer=from_address(raw.peer),
            smoothed_rtt=raw.smoothed_rtt / 1e9,
            min_rtt=raw.min_rtt / 1e9,
            latest_rtt=raw.latest_rtt / 1e9,
            congestion_window=raw.congestion_window,
            bytes_in_flight=raw.bytes_in_flight,
            packets_sent=raw.packets_sent,
            packets_received=raw.packets_received,
            packets_lost=raw.packets_lost,
            bytes_sent=raw.bytes_sent,
            bytes_received=raw.bytes_received,
            bytes_lost=raw.bytes_lost,
            path_payload=raw.path_payload,
            datagram_limit=raw.datagram_limit,
            silence=raw.silence / 1e9,
            streams=raw.streams,
            flows=raw.flows,
            datagrams_queued=raw.datagrams_queued,
        )

    def open_stream(self, header: bytes) -> Stream:
        """Opens a bidirectional stream that begins with ``header`` (at most 64 bytes).

        Raises:
            EngineError: Too many streams wait for the peer's credit.
        """
        return Stream(self.engine, self.engine.call(lib.aq_stream_open, self.id, header, len(header)))

    def accept(self, listener: socket.socket) -> Listener:
        """Accepts on a listening TCP socket, which stays the caller's.

        Each connection becomes a stream that begins with Connect and its peer's address, and is attached at once.

        Raises:
            EngineError: No descriptors or memory for it now.
        """
        return Listener(self.engine, self.engine.call(lib.aq_listener_open, self.id, listener.fileno()))

    def dial(self, address: SocketAddress | None, timeout: float = 0.0, valid: float = float("inf")) -> None:
        """Lets the engine dial this address for the streams that the peer opens, and attach them.

        What does not connect, and everything once the time is over, is reported by StreamOpened as without this call.

        Args:
            address: None: it dials no more.
            timeout: Seconds for each connection.
            valid: Seconds until it is over.
        """
        to = _address_or_null(address)
        self.engine.call(lib.aq_connection_dial, self.id, to, nanoseconds(timeout), nanoseconds(valid))

    def open_udp(self, sock: socket.socket, *, public: bool) -> UdpSocket:
        """Takes a UDP socket into the connection's service; the socket stays the caller's."""
        return UdpSocket(self.engine, self.engine.call(lib.aq_udp_open, self.id, sock.fileno(), int(public)))

    def remove_flow(self, association: int) -> None:
        """Forgets an association, or refuses one that a FlowWanted asked for."""
        self.engine.call(lib.aq_flow_remove, self.id, association)

    def refuse_flows(self, source: SocketAddress | None, lasts: float) -> None:
        """No new associations for some time: neither SourceUnknown nor FlowWanted comes; what asks is dropped, counted.

        Args:
            source: For this address, whatever its port; None: for none at all.
            lasts: Seconds.
        """
        self.engine.call(lib.aq_flows_refuse, self.id, _address_or_null(source), nanoseconds(lasts))

    def idle_flows(self, idle: float, most: int = 1024, host: SocketAddress | None = None) -> list[int]:
        """Associations without traffic for ``idle`` seconds, in the order in which they should make room for others.

        First the longest idle of those that were a question or two and have been answered, then of all others.

        Args:
            idle: Seconds.
            most: How many at most.
            host: Only those of this address, whatever the port; None: of any.
        """
        out = ffi.new("uint16_t[]", most)
        address = ffi.NULL if host is None else to_address(host)
        count = self.engine.call(lib.aq_flows_idle, self.id, address, nanoseconds(idle), out, most)
        return list(ffi.unpack(out, count))

    def unanswered_flows(self, silence: float, recent: float, most: int = 1024) -> list[int]:
        """Associations whose user has sent within ``recent`` seconds and has waited for an answer for ``silence``."""
        out = ffi.new("uint16_t[]", most)
        count = self.engine.call(lib.aq_flows_unanswered, self.id, nanoseconds(silence), nanoseconds(recent), out, most)
        return list(ffi.unpack(out, count))
