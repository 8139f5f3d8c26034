"""The engine's events, and the conversion of its records to objects."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from asport_sync.forked import new_socket, no_fork
from asport_sync.hidden import HiddenBytes

from . import reasons
from .binding import SocketAddress, ffi, from_address, lib
from .handles import Connection, Endpoint, Listener, Stream, UdpSocket
from .values import Carrier, CloseCause, ConnectionTotals, RefusedBy, StreamResult, connection_totals, stream_result

if TYPE_CHECKING:
    from .engine import Engine


@dataclasses.dataclass(frozen=True, slots=True)
class Connected:
    """The QUIC handshake is complete. ``endpoint`` is None on a client."""

    connection: Connection
    endpoint: Endpoint | None
    peer: SocketAddress
    alpn: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The last event of a connection, even if it never became Connected.

    Attributes:
        code: Application or transport error code, or TLS alert, depending on the cause.
        reason: Reason phrase of the peer or of this side; untrusted if from the peer.
        totals: What it has moved.
    """

    connection: Connection
    endpoint: Endpoint | None
    peer: SocketAddress
    cause: CloseCause
    code: int
    reason: str
    totals: ConnectionTotals

    def describe(self) -> str:
        """Describes the end for a log line: what happened, the code as on the wire, and what to do."""
        here, other = ("client", "server") if self.endpoint is None else ("server", "client")
        if self.cause is CloseCause.INTERNAL:
            return f"internal error on this side (ngtcp2 error {self.code:#x})"
        if self.cause is CloseCause.PEER_TRANSPORT:
            return reasons.describe(self.code, here=here, sender=other)
        if self.cause is CloseCause.PEER_FAULT:
            return reasons.describe(self.code, here=here, sender=here)
        if self.cause in (CloseCause.TLS, CloseCause.CERTIFICATE):
            return reasons.describe(reasons.CRYPTO_ERROR + self.code, here=here, sender=here)
        if self.cause is CloseCause.PEER_APPLICATION:
            foreign = ", which ASPORT does not define" if self.code else ""
            return f"closed by the {other} with code {self.code:#x}{foreign}"
        return {
            CloseCause.LOCAL: f"closed by this {here}",
            CloseCause.IDLE: f"no packets from the {other} (idle timeout)",
            CloseCause.HANDSHAKE_TIMEOUT: f"the {other} did not complete the QUIC handshake in time",
            CloseCause.STATELESS_RESET: f"the {other} has restarted (stateless reset)",
            CloseCause.VERSION: "no QUIC version in common",
            CloseCause.UNREACHABLE: (
                "server unreachable (ICMP error): check that it is running and that UDP to its port is allowed"
            ),
        }[self.cause]

    @property
    def cure(self) -> str:
        """What to do if the cause is TLS or a certificate that this side rejected."""
        return reasons.meaning_of(reasons.CRYPTO_ERROR + self.code).cure

    @property
    def setting_at_fault(self) -> bool:
        """Whether the handshake failed because of a setting or certificate of the server or of both sides.

        True for a few codes only, whatever a peer sends.
        """
        tls = self.cause in (CloseCause.TLS, CloseCause.CERTIFICATE)
        if not tls and self.cause is not CloseCause.PEER_TRANSPORT:
            return False
        meaning = reasons.meaning_of(self.code + (reasons.CRYPTO_ERROR if tls else 0))
        return meaning.fault in (reasons.Fault.SERVER, reasons.Fault.BOTH)


@dataclasses.dataclass(frozen=True, slots=True)
class CommandReceived:
    """A complete command without payload, from a unidirectional stream or a DATAGRAM.

    Attributes:
        data: Not shown by ``repr``, because a ClientHello contains a token. After a ClientHello, the next byte of its
            stream if there is one.
    """

    connection: Connection
    data: bytes
    carrier: Carrier


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """The peer violated the framing rules; its bytes were dropped. The connection stays open."""

    connection: Connection
    problem: str


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a bidirectional stream; ``header`` is its complete Connect command."""

    connection: Connection
    stream: Stream
    header: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnded:
    """An attached stream has ended. Only if enabled by ``Engine.report_streams``.

    Attributes:
        peer: The visitor of the TCP connection, as in its Connect; None: the Connect names none.
        lasted: Seconds.
        left_out: Streams that ended since the previous event of this type and were not reported because of the rate
            limit.
    """

    connection: Connection
    stream: Stream
    peer: SocketAddress | None
    lasted: float
    result: StreamResult
    left_out: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class StreamBegun:
    """The engine accepted a TCP connection, or one that it dialled is established. Only if enabled.

    Attributes:
        peer: As in StreamEnded.
    """

    connection: Connection
    peer: SocketAddress | None


@dataclasses.dataclass(frozen=True, slots=True)
class StreamLargeTransfer:
    """A worker should relay this stream: it is a large transfer.

    Attributes:
        peer: As in StreamEnded.
        lasted: Seconds so far.
        sock: Owned by the receiver of the event.
    """

    connection: Connection
    stream: Stream
    peer: SocketAddress | None
    lasted: float
    sock: socket.socket


@dataclasses.dataclass(frozen=True, slots=True)
class AcceptFailed:
    """A listener failed and backs off for a moment.

    Attributes:
        error: The errno; 0: connections were dropped because too many streams wait for the peer's stream credit;
            EDQUOT: the port has used up its fair share of descriptors.
    """

    connection: Connection
    listener: Listener
    error: int


@dataclasses.dataclass(frozen=True, slots=True)
class SourceUnknown:
    """A public UDP socket has datagrams from a new source. They wait for ``add_association`` or ``refuse``.

    Attributes:
        local: The local address that they were sent to, with port 0, if the socket is bound to the unspecified address;
            else None. The same remote host and port with another local address is another source.
    """

    connection: Connection
    udp: UdpSocket
    source: SocketAddress
    local: SocketAddress | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class UdpLargeTransfer:
    """The pump should read this UDP socket, which has much traffic, until it gives it back."""

    connection: Connection
    udp: UdpSocket


@dataclasses.dataclass(frozen=True, slots=True)
class UdpRefused:
    """The service behind a local UDP socket rejects datagrams; at most once per second until ``UdpSocket.move``.

    Attributes:
        error: The errno that tells why.
        answered: Whether it has answered before, from its current address.
    """

    connection: Connection
    udp: UdpSocket
    error: int
    answered: bool


@dataclasses.dataclass(frozen=True, slots=True)
class AssociationWanted:
    """A Packet for an unknown association; it waits for ``UdpSocket.add_association`` or ``remove_association``."""

    connection: Connection
    association: int
    peer: SocketAddress


@dataclasses.dataclass(frozen=True, slots=True)
class AssociationEnded:
    """A UDP association has ended. Only if enabled by ``Engine.report_associations``.

    Attributes:
        peer: The visitor.
        lasted: Seconds.
        result: Bytes of payload each way; ``end`` is FINISHED, or CONNECTION if the QUIC connection has ended.
    """

    connection: Connection
    association: int
    peer: SocketAddress
    lasted: float
    result: StreamResult


@dataclasses.dataclass(frozen=True, slots=True)
class VisitorsRefused:
    """Visitors were refused because of ``Connection.limit``; once a second for each connection or group, and reason.

    Attributes:
        count: Their number since the previous event; with UDP_RULES, the number of datagrams or Packets.
        peer: The latest of them; None: the peer did not tell the address.
    """

    connection: Connection
    reason: RefusedBy
    count: int
    peer: SocketAddress | None


@dataclasses.dataclass(frozen=True, slots=True)
class Probed:
    """The result of ``Connection.probe``."""

    connection: Connection
    alive: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Silence:
    """The peer became silent, or packets arrive from it again.

    Attributes:
        silent: True: nothing was received for ``Transport.silence`` plus a probe timeout (RFC 9002), or there is a hint
            that the peer is gone. False: packets arrive again.
    """

    connection: Connection
    silent: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of the engine's log; ``level`` as in the logging module."""

    level: int
    message: str


Event: TypeAlias = (
    Connected
    | Closed
    | CommandReceived
    | Violation
    | StreamOpened
    | StreamBegun
    | StreamEnded
    | StreamLargeTransfer
    | AcceptFailed
    | AssociationWanted
    | AssociationEnded
    | SourceUnknown
    | UdpLargeTransfer
    | UdpRefused
    | VisitorsRefused
    | Probed
    | Silence
    | LogRecord
)


def _taken(descriptor: int) -> socket.socket:
    """The socket of a descriptor that the engine hands over. The engine's mark goes once it is registered here."""
    with no_fork:
        sock = new_socket(fileno=descriptor)
        lib.aq_descriptor_taken(descriptor)
    return sock


def _data(raw: Any) -> bytes:
    return bytes(ffi.buffer(raw.data, raw.length))


def _text(raw: Any) -> str:
    return _data(raw).decode("utf-8", "replace")


def _address(raw: Any) -> SocketAddress | None:
    """Converts an address that may be missing."""
    return from_address(raw) if raw.family else None


def _connected(engine: Engine, raw: Any) -> Event:
    endpoint = Endpoint(engine, raw.endpoint) if raw.endpoint else None
    return Connected(Connection(engine, raw.connection), endpoint, from_address(raw.peer), _data(raw))


def _closed(engine: Engine, raw: Any) -> Event:
    endpoint = Endpoint(engine, raw.endpoint) if raw.endpoint else None
    connection, cause = Connection(engine, raw.connection), CloseCause(raw.code)
    totals = connection_totals(raw.totals)
    return Closed(connection, endpoint, from_address(raw.peer), cause, raw.value, _text(raw), totals)


def _command_received(engine: Engine, raw: Any) -> Event:
    return CommandReceived(Connection(engine, raw.connection), HiddenBytes(_data(raw)), Carrier(raw.value))


def _violation(engine: Engine, raw: Any) -> Event:
    return Violation(Connection(engine, raw.connection), _text(raw))


def _stream_opened(engine: Engine, raw: Any) -> Event:
    return StreamOpened(Connection(engine, raw.connection), Stream(engine, raw.stream), _data(raw))


def _stream_begun(engine: Engine, raw: Any) -> Event:
    return StreamBegun(Connection(engine, raw.connection), _address(raw.peer))


def _stream_ended(engine: Engine, raw: Any) -> Event:
    return StreamEnded(
        Connection(engine, raw.connection),
        Stream(engine, raw.stream),
        _address(raw.peer),
        raw.code / 1e9,
        stream_result(ffi.addressof(raw, "result")),
        raw.value,
    )


def _stream_large_transfer(engine: Engine, raw: Any) -> Event:
    return StreamLargeTransfer(
        Connection(engine, raw.connection),
        Stream(engine, raw.stream),
        _address(raw.peer),
        raw.code / 1e9,
        _taken(raw.value),
    )


def _accept_failed(engine: Engine, raw: Any) -> Event:
    return AcceptFailed(Connection(engine, raw.connection), Listener(engine, raw.socket), raw.code)


def _association_wanted(engine: Engine, raw: Any) -> Event:
    return AssociationWanted(Connection(engine, raw.connection), raw.value, from_address(raw.peer))


def _association_ended(engine: Engine, raw: Any) -> Event:
    result = stream_result(ffi.addressof(raw, "result"))
    return AssociationEnded(
        Connection(engine, raw.connection), raw.value, from_address(raw.peer), raw.code / 1e9, result
    )


def _source_unknown(engine: Engine, raw: Any) -> Event:
    connection, udp = Connection(engine, raw.connection), UdpSocket(engine, raw.socket)
    return SourceUnknown(connection, udp, from_address(raw.peer), _address(raw.local))


def _udp_large_transfer(engine: Engine, raw: Any) -> Event:
    return UdpLargeTransfer(Connection(engine, raw.connection), UdpSocket(engine, raw.socket))


def _udp_refused(engine: Engine, raw: Any) -> Event:
    return UdpRefused(Connection(engine, raw.connection), UdpSocket(engine, raw.socket), raw.code, bool(raw.value))


def _visitors_refused(engine: Engine, raw: Any) -> Event:
    return VisitorsRefused(Connection(engine, raw.connection), RefusedBy(raw.code), raw.value, _address(raw.peer))


def _probed(engine: Engine, raw: Any) -> Event:
    return Probed(Connection(engine, raw.connection), bool(raw.value))


def _silence(engine: Engine, raw: Any) -> Event:
    return Silence(Connection(engine, raw.connection), bool(raw.value))


def _log_record(engine: Engine, raw: Any) -> Event:
    return LogRecord(raw.code, _text(raw))


_CONVERSIONS: dict[int, Callable[[Engine, Any], Event]] = {
    lib.AQ_EVENT_CONNECTED: _connected,
    lib.AQ_EVENT_CLOSED: _closed,
    lib.AQ_EVENT_COMMAND_RECEIVED: _command_received,
    lib.AQ_EVENT_VIOLATION: _violation,
    lib.AQ_EVENT_STREAM_OPENED: _stream_opened,
    lib.AQ_EVENT_STREAM_BEGUN: _stream_begun,
    lib.AQ_EVENT_STREAM_ENDED: _stream_ended,
    lib.AQ_EVENT_STREAM_LARGE_TRANSFER: _stream_large_transfer,
    lib.AQ_EVENT_ACCEPT_FAILED: _accept_failed,
    lib.AQ_EVENT_ASSOCIATION_WANTED: _association_wanted,
    lib.AQ_EVENT_ASSOCIATION_ENDED: _association_ended,
    lib.AQ_EVENT_SOURCE_UNKNOWN: _source_unknown,
    lib.AQ_EVENT_UDP_LARGE_TRANSFER: _udp_large_transfer,
    lib.AQ_EVENT_UDP_REFUSED: _udp_refused,
    lib.AQ_EVENT_VISITORS_REFUSED: _visitors_refused,
    lib.AQ_EVENT_PROBED: _probed,
    lib.AQ_EVENT_SILENCE: _silence,
    lib.AQ_EVENT_LOG_RECORD: _log_record,
}


def event_of(engine: Engine, raw: Any) -> Event:
    """Returns the object for one record of the engine."""
    return _CONVERSIONS[raw.type](engine, raw)
