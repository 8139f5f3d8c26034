"""Which command is allowed when: the ASPORT handshake of both sides, as tables.

Each side has a table from state and event to the next state; events not listed are forbidden. The kind of event
determines the error: a received command is the peer's fault (RemoteProtocolError), an action is this side's
(LocalProtocolError). A forbidden event changes nothing.

A handshake has one owner at a time; it has no lock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire.commands import (
    ClientHello,
    Command,
    CommandType,
    ServerHello,
    ServerHelloCode,
)


class Received(enum.Enum):
    """A command from the peer. ServerHello counts as two, because its code determines the next state."""

    CLIENT_HELLO = "ClientHello"
    SERVER_HELLO_SUCCESS = "ServerHello success"
    SERVER_HELLO_FAILURE = "ServerHello failure"
    CONNECT = "Connect"
    PACKET = "Packet"
    DISSOCIATE = "Dissociate"
    HEARTBEAT = "Heartbeat"


class Action(enum.Enum):
    """An action of this side."""

    SEND_HELLO = "send_hello()"
    ACCEPT = "accept()"
    REFUSE = "refuse()"
    CLOSE = "close()"


class ServerState(enum.Enum):
    """The server's view of one connection."""

    AWAITING_HELLO = "awaiting ClientHello"
    DECIDING = "deciding on ClientHello"
    AUTHENTICATED = "authenticated"
    REFUSED = "refused"
    CLOSED = "closed"


class ClientState(enum.Enum):
    """The client's view of its connection."""

    IDLE = "idle"
    AWAITING_HELLO = "awaiting ServerHello"
    AUTHENTICATED = "authenticated"
    REFUSED = "refused"
    CLOSED = "closed"


Event: TypeAlias = Received | Action
_State = TypeVar("_State", bound=enum.Enum)
Table: TypeAlias = Mapping[_State, Mapping[Event, _State]]

# A Heartbeat is a datagram: it may overtake the ClientHello, and it continues during a refusal. It is allowed in every
# open state and changes none. DECIDING is a separate state so that a second ClientHello cannot start a second bind.
SERVER_TABLE: Table[ServerState] = {
    ServerState.AWAITING_HELLO: {
        Received.CLIENT_HELLO: ServerState.DECIDING,
        Received.HEARTBEAT: ServerState.AWAITING_HELLO,
        Action.CLOSE: ServerState.CLOSED,
    },
    ServerState.DECIDING: {
        Received.HEARTBEAT: ServerState.DECIDING,
        Action.ACCEPT: ServerState.AUTHENTICATED,
        Action.REFUSE: ServerState.REFUSED,
        Action.CLOSE: ServerState.CLOSED,
    },
    ServerState.AUTHENTICATED: {
        Received.PACKET: ServerState.AUTHENTICATED,
        Received.HEARTBEAT: ServerState.AUTHENTICATED,
        Action.CLOSE: ServerState.CLOSED,
    },
    ServerState.REFUSED: {
        Received.HEARTBEAT: ServerState.REFUSED,
        Action.CLOSE: ServerState.CLOSED,
    },
    ServerState.CLOSED: {
        Action.CLOSE: ServerState.CLOSED,
    },
}

# Streams and datagrams are independent, so commands that the server sends after its ServerHello may arrive before it. A
# second ServerHello, whatever its code, changes nothing: the first one counts.
CLIENT_TABLE: Table[ClientState] = {
    ClientState.IDLE: {
        Action.SEND_HELLO: ClientState.AWAITING_HELLO,
        Action.CLOSE: ClientState.CLOSED,
    },
    ClientState.AWAITING_HELLO: {
        Received.SERVER_HELLO_SUCCESS: ClientState.AUTHENTICATED,
        Received.SERVER_HELLO_FAILURE: ClientState.REFUSED,
        Received.CONNECT: ClientState.AWAITING_HELLO,
        Received.PACKET: ClientState.AWAITING_HELLO,
        Received.DISSOCIATE: ClientState.AWAITING_HELLO,
        Action.CLOSE: ClientState.CLOSED,
    },
    ClientState.AUTHENTICATED: {
        Received.SERVER_HELLO_SUCCESS: ClientState.AUTHENTICATED,
        Received.SERVER_HELLO_FAILURE: ClientState.AUTHENTICATED,
        Received.CONNECT: ClientState.AUTHENTICATED,
        Received.PACKET: ClientState.AUTHENTICATED,
        Received.DISSOCIATE: ClientState.AUTHENTICATED,
        Action.CLOSE: ClientState.CLOSED,
    },
    ClientState.REFUSED: {
        Received.SERVER_HELLO_SUCCESS: ClientState.REFUSED,
        Received.SERVER_HELLO_FAILURE: ClientState.REFUSED,
        Action.CLOSE: ClientState.CLOSED,
    },
    ClientState.CLOSED: {
        Action.CLOSE: ClientState.CLOSED,
    },
}

_RECEIVED = {
    CommandType.CLIENT_HELLO: Received.CLIENT_HELLO,
    CommandType.CONNECT: Received.CONNECT,
    CommandType.PACKET: Received.PACKET,
    CommandType.DISSOCIATE: Received.DISSOCIATE,
    CommandType.HEARTBEAT: Received.HEARTBEAT,
}


def _received(command: Command) -> Received:
    if isinstance(command, ServerHello):
        success = command.code is ServerHelloCode.SUCCESS
        return Received.SERVER_HELLO_SUCCESS if success else Received.SERVER_HELLO_FAILURE
    return _RECEIVED[command.command_type]


class _Handshake(Generic[_State]):
    """A state and its transition table."""

    def __init__(self, table: Table[_State], state: _State) -> None:
        self._table = table
        self._state = state

    @property
    def state(self) -> _State:
        """The current state."""
        return self._state

    def close(self) -> None:
        """Records that the connection is closed or about to be. Allowed in every state, and repeatedly."""
        self._advance(Action.CLOSE)

    def _advance(self, event: Event) -> None:
        allowed = self._table[self._state]
        if event in allowed:
            self._state = allowed[event]
            return
        expected = " or ".join(other.value for other in allowed if type(other) is type(event)) or "nothing"
        problem = f"{event.value} while {self._state.value}, expected {expected}"
        raise RemoteProtocolError(problem) if isinstance(event, Received) else LocalProtocolError(problem)


class ServerHandshake(_Handshake[ServerState]):
    """The server's side of one connection. Every RemoteProtocolError is a reason to close the connection."""

    def __init__(self) -> None:
        super().__init__(SERVER_TABLE, ServerState.AWAITING_HELLO)
        self._expected_ports = range(0)

    def receive(self, command: Command) -> None:
        """Records a command from the client. Answer a ClientHello with ``accept``, ``refuse`` or ``close``.

        Raises:
            RemoteProtocolError: The client may not send this command, or not now.
        """
        self._advance(_received(command))
        if isinstance(command, ClientHello):
            self._expected_ports = range(command.port_start, command.port_end + 1)

    def accept(self, port: int) -> None:
        """Records that the client is authenticated and ``port`` bound.

        The caller sends ServerHello success now, before any other command.

        Raises:
            LocalProtocolError: No ClientHello awaits an answer, or the port is outside the range that it expects.
        """
        if self._state is ServerState.DECIDING and port not in self._expected_ports:
            first, last = self._expected_ports.start, self._expected_ports.stop - 1
            raise LocalProtocolError(f"ServerHello with port {port}, expected {first} to {last} as in ClientHello")
        self._advance(Action.ACCEPT)

    def refuse(self, code: ServerHelloCode) -> None:
        """Records a refusal: the caller sends ServerHello with this code now, and calls ``close`` once it has arrived.

        To refuse silently, call ``close`` instead.

        Raises:
            LocalProtocolError: No ClientHello awaits an answer, or ``code`` is SUCCESS.
        """
        if code is ServerHelloCode.SUCCESS:
            raise LocalProtocolError("refuse() with code SUCCESS, expected a failure")
        self._advance(Action.REFUSE)


class ClientHandshake(_Handshake[ClientState]):
    """The client's side of its connection.

    A client does not close because of a RemoteProtocolError: the caller logs it and drops the stream or datagram.
    """

    def __init__(self) -> None:
        super().__init__(CLIENT_TABLE, ClientState.IDLE)
        self._server_hello: ServerHello | None = None

    @property
    def server_hello(self) -> ServerHello | None:
        """The server's answer: the first ServerHello, or None before it arrives."""
        return self._server_hello

    def send_hello(self) -> None:
        """Records that the caller sends ClientHello now; the QUIC handshake must be complete.

        Raises:
            LocalProtocolError: It was sent before, or the connection is closed.
        """
        self._advance(Action.SEND_HELLO)

    def receive(self, command: Command) -> None:
        """Records a command from the server.

        In state AWAITING_HELLO, Connect, Packet and Dissociate are allowed; the caller holds them back until
        AUTHENTICATED.

        Raises:
            RemoteProtocolError: The server may not send this command, or not now.
        """
        self._advance(_received(command))
        if isinstance(command, ServerHello) and self._server_hello is None:
            self._server_hello = command
