"""The engine's events, and the conversion of its records to objects."""

from __future__ import annotations

import dataclasses
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from asport_sync.forked import new_socket, no_fork
from asport_sync.hidden import HiddenBytes

from . import reasons
from .binding import SocketAddress, ffi, from_address, lib
from .handles import Connection, Endpoint, Listener, Stream, UdpSocket
from .values import Carrier, CloseCause, StreamResult, stream_result

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
    """

    connection: Connection
    endpoint: Endpoint | None
    peer: SocketAddress
    cause: CloseCause
    code: int
    reason: str

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
    | SourceUnknown
    | UdpLargeTransfer
    | UdpRefused
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


def event_of(engine: Engine, raw: Any) -> Event:
    """Returns the object for one record of the engine."""
    kind = raw.type
    if kind == lib.AQ_EVENT_STREAM_ENDED:
        return StreamEnded(
            Connection(engine, raw.connection),
            Stream(engine, raw.stream),
            from_address(raw.peer) if raw.peer.family else None,
            raw.code / 1e9,
            stream_result(ffi.addressof(raw, "result")),
            raw.value,
        )
    if kind == lib.AQ_EVENT_STREAM_BEGUN:
        return StreamBegun(Connection(engine, raw.connection), from_address(raw.peer) if raw.peer.family else None)
    data = bytes(ffi.buffer(raw.data, raw.length))
    if kind == lib.AQ_EVENT_LOG_RECORD:
        return LogRecord(raw.code, data.decode("utf-8", "replace"))
    connection = Connection(engine, raw.connection)
    if kind == lib.AQ_EVENT_STREAM_OPENED:
        return StreamOpened(connection, Stream(engine, raw.stream), data)
    if kind == lib.AQ_EVENT_COMMAND_RECEIVED:
        return CommandReceived(connection, HiddenBytes(data), Carrier(raw.value))
    if kind == lib.AQ_EVENT_ASSOCIATION_WANTED:
        return AssociationWanted(connection, raw.value, from_address(raw.peer))
    if kind == lib.AQ_EVENT_SOURCE_UNKNOWN:
        return SourceUnknown(
            connection,
            UdpSocket(engine, raw.socket),
            from_address(raw.peer),
            from_address(raw.local) if raw.local.family else None,
        )
    if kind == lib.AQ_EVENT_UDP_LARGE_TRANSFER:
        return UdpLargeTransfer(connection, UdpSocket(engine, raw.socket))
    if kind == lib.AQ_EVENT_UDP_REFUSED:
        return UdpRefused(connection, UdpSocket(engine, raw.socket), raw.code, bool(raw.value))
    if kind == lib.AQ_EVENT_STREAM_LARGE_TRANSFER:
        return StreamLargeTransfer(
            connection,
            Stream(engine, raw.stream),
            from_address(raw.peer) if raw.peer.family else None,
            raw.code / 1e9,
            _taken(raw.value),
        )
    if kind == lib.AQ_EVENT_ACCEPT_FAILED:
        return AcceptFailed(connection, Listener(engine, raw.socket), raw.code)
    if kind == lib.AQ_EVENT_VIOLATION:
        return Violation(connection, data.decode("utf-8", "replace"))
    if kind == lib.AQ_EVENT_PROBED:
        return Probed(connection, bool(raw.value))
    if kind == lib.AQ_EVENT_SILENCE:
        return Silence(connection, bool(raw.value))
    endpoint = Endpoint(engine, raw.endpoint) if raw.endpoint else None
    if kind == lib.AQ_EVENT_CONNECTED:
        return Connected(connection, endpoint, from_address(raw.peer), data)
    return Closed(
        connection,
        endpoint,
        from_address(raw.peer),
        CloseCause(raw.code),
        raw.value,
        data.decode("utf-8", "replace"),
    )
