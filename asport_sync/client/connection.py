"""One connection of a client to its server."""

from __future__ import annotations

import collections
import dataclasses

from asport_sync.client.backend import Associations
from asport_sync.engine import CloseCause, Closed, Connection, SocketAddress, Stream
from asport_sync.errors import AsportError, CertificateError, ConnectError, HandshakeTimeoutError, RefusedError
from asport_sync.host.calls import Subject
from asport_sync.wire import Address, ClientHandshake, ClientState


@dataclasses.dataclass(eq=False)
class ServerConnection:
    """One connection to the server. The events thread only, unless a field says otherwise.

    Attributes:
        held: Streams that arrived before the ServerHello.
        public: The public address and port, once the client has joined; see ``public_address``.
        same_port: Only the port that the client had before was requested.
        given_up: It was closed by this side: further events are ignored.
        subject: What calls of the program's callables are about.
    """

    connection: Connection
    remote: SocketAddress
    associations: Associations  # pump thread only
    handshake: ClientHandshake = dataclasses.field(default_factory=ClientHandshake)
    held: collections.deque[tuple[Stream, Address | None]] = dataclasses.field(default_factory=collections.deque)
    public: Address | None = None
    same_port: bool = False
    given_up: bool = False
    subject: Subject = dataclasses.field(default_factory=Subject)

    def public_address(self, port: int) -> Address:
        """Returns the public address and port, as far as a client can know them.

        ASPORT transmits no address: this is the server address of the QUIC connection, with the port that was opened.
        """
        host = self.remote[0].partition("%")[0]  # a zone is meaningful on this machine only
        return Address.from_text(host, port)


def is_steady(event: Closed, state: ClientState) -> bool:
    """Whether the server did not answer, or ended the connection itself, or it was lost after the client had joined."""
    silent = (CloseCause.HANDSHAKE_TIMEOUT, CloseCause.IDLE, CloseCause.UNREACHABLE, CloseCause.STATELESS_RESET)
    return state is ClientState.AUTHENTICATED or event.cause in silent or _is_without_error(event)


def _is_without_error(event: Closed) -> bool:
    """Whether the server ended the connection for a reason of its own: it is stopped, drained or reloaded."""
    return event.cause is CloseCause.PEER_TRANSPORT and event.code == 0


def why_closed(event: Closed, state: ClientState, asked: str = "") -> AsportError:
    """Returns the end of a connection as an exception, given the handshake's state and what was requested."""
    cause, detail = event.cause, f", {event.reason!r}" if event.reason else ""
    if cause is CloseCause.CERTIFICATE:
        said = f": {event.reason.rstrip('.')}" if event.reason else ""
        return CertificateError(f"server certificate rejected{said}; what to do: {event.cure}")
    if cause is CloseCause.PEER_APPLICATION and state in (ClientState.AWAITING_HELLO, ClientState.REFUSED):
        # A refusal by the reference looks like this: it closes before the reason has been sent. A server whose dialect
        # lacks the mode byte does the same.
        return RefusedError(
            f"refused: the server closed the connection without giving a reason (code {event.code}{detail})"
            f"{'; ' if asked else ''}{asked}"
        )
    if cause is CloseCause.HANDSHAKE_TIMEOUT or (cause is CloseCause.IDLE and state is ClientState.IDLE):
        return HandshakeTimeoutError("no answer from the server")
    if _is_without_error(event):
        return ConnectError(
            "connection lost: closed by the server, which was stopped, drained or reloaded, or by its operator"
        )
    if state is ClientState.AUTHENTICATED:
        causes = {
            CloseCause.PEER_APPLICATION: f"closed by the server with code {event.code:#x}",
            CloseCause.IDLE: "no packets from the server (idle timeout)",
            CloseCause.STATELESS_RESET: "the server has restarted (stateless reset)",
        }
        return ConnectError(f"connection lost: {causes.get(cause, event.describe())}{detail}")
    if cause in (CloseCause.UNREACHABLE, CloseCause.VERSION):
        return ConnectError(event.describe())
    return ConnectError(f"connection failed: {event.describe()}{detail}")
