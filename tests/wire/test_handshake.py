"""The handshake of both sides: every state against every event, and whole conversations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import (
    ClientHandshake,
    ClientHello,
    ClientState,
    Command,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHandshake,
    ServerHello,
    ServerHelloCode,
    ServerState,
    decode,
)
from asport_sync.wire.handshake import CLIENT_TABLE, SERVER_TABLE, Action, Received

from .strategies import commands, wire_bytes
from .vectors import PEER_IPV4, TOKEN, USER

HELLO = ClientHello(USER, TOKEN, 3, 2000, 3000)
SUCCESS = ServerHello(ServerHelloCode.SUCCESS, 2024)
FAILURE = ServerHello(ServerHelloCode.AUTH_FAILED)
CONNECT = Connect(PEER_IPV4)
PACKET = Packet(1, 0, 1, 0, PEER_IPV4, b"x")
DISSOCIATE = Dissociate(1)
HEARTBEAT = Heartbeat()
EVERY_COMMAND: list[Command] = [HELLO, SUCCESS, FAILURE, CONNECT, PACKET, DISSOCIATE, HEARTBEAT]


def server_in(state: ServerState) -> ServerHandshake:
    """A server's handshake led to a state the way a connection leads it."""
    handshake = ServerHandshake()
    if state is ServerState.AWAITING_HELLO:
        return handshake
    if state is ServerState.CLOSED:
        handshake.close()
        return handshake
    handshake.receive(HELLO)
    if state is ServerState.AUTHENTICATED:
        handshake.accept(2024)
    elif state is ServerState.REFUSED:
        handshake.refuse(ServerHelloCode.AUTH_FAILED)
    return handshake


def client_in(state: ClientState) -> ClientHandshake:
    """A client's handshake led to a state the way a connection leads it."""
    handshake = ClientHandshake()
    if state is ClientState.IDLE:
        return handshake
    if state is ClientState.CLOSED:
        handshake.close()
        return handshake
    handshake.send_hello()
    if state is ClientState.AUTHENTICATED:
        handshake.receive(SUCCESS)
    elif state is ClientState.REFUSED:
        handshake.receive(FAILURE)
    return handshake


# --- tables ----------------------------------------------------------------------------------------------------------


def test_tables_know_every_state() -> None:
    assert set(SERVER_TABLE) == set(ServerState)
    assert set(CLIENT_TABLE) == set(ClientState)


def test_helpers_lead_where_they_say() -> None:
    assert [server_in(state).state for state in ServerState] == list(ServerState)
    assert [client_in(state).state for state in ClientState] == list(ClientState)


def test_nothing_leads_out_of_closed() -> None:
    assert set(SERVER_TABLE[ServerState.CLOSED].values()) == {ServerState.CLOSED}
    assert set(CLIENT_TABLE[ClientState.CLOSED].values()) == {ClientState.CLOSED}


def test_each_side_has_only_its_own_events() -> None:
    server = {event for row in SERVER_TABLE.values() for event in row}
    client = {event for row in CLIENT_TABLE.values() for event in row}
    assert server & set(Received) == {Received.CLIENT_HELLO, Received.PACKET, Received.HEARTBEAT}
    assert client & set(Received) == set(Received) - {Received.CLIENT_HELLO, Received.HEARTBEAT}
    assert server & set(Action) == {Action.ACCEPT, Action.REFUSE, Action.CLOSE}
    assert client & set(Action) == {Action.SEND_HELLO, Action.CLOSE}


# --- server ----------------------------------------------------------------------------------------------------------

SERVER_RECEIVES: dict[ServerState, dict[Command, ServerState]] = {
    ServerState.AWAITING_HELLO: {HELLO: ServerState.DECIDING, HEARTBEAT: ServerState.AWAITING_HELLO},
    ServerState.DECIDING: {HEARTBEAT: ServerState.DECIDING},
    ServerState.AUTHENTICATED: {PACKET: ServerState.AUTHENTICATED, HEARTBEAT: ServerState.AUTHENTICATED},
    ServerState.REFUSED: {HEARTBEAT: ServerState.REFUSED},
    ServerState.CLOSED: {},
}


@pytest.mark.parametrize("state", ServerState)
@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_server_receives(state: ServerState, command: Command) -> None:
    handshake = server_in(state)
    following = SERVER_RECEIVES[state].get(command)
    if following is None:
        with pytest.raises(RemoteProtocolError, match=f"while {state.value}, expected"):
            handshake.receive(command)
        assert handshake.state is state
    else:
        handshake.receive(command)
        assert handshake.state is following


@pytest.mark.parametrize("port", [2000, 2024, 3000])
def test_server_accepts_any_port_of_the_expected_range(port: int) -> None:
    handshake = server_in(ServerState.DECIDING)
    handshake.accept(port)
    assert handshake.state is ServerState.AUTHENTICATED


@pytest.mark.parametrize("code", [code for code in ServerHelloCode if code is not ServerHelloCode.SUCCESS])
def test_server_refuses_with_any_failure(code: ServerHelloCode) -> None:
    handshake = server_in(ServerState.DECIDING)
    handshake.refuse(code)
    assert handshake.state is ServerState.REFUSED


@pytest.mark.parametrize("state", [state for state in ServerState if state is not ServerState.DECIDING])
def test_server_answers_only_a_waiting_hello(state: ServerState) -> None:
    handshake = server_in(state)
    with pytest.raises(LocalProtocolError, match=rf"accept\(\) while {state.value}"):
        handshake.accept(2024)
    with pytest.raises(LocalProtocolError, match=rf"refuse\(\) while {state.value}"):
        handshake.refuse(ServerHelloCode.BIND_FAILED)
    assert handshake.state is state


@pytest.mark.parametrize("port", [0, 1999, 3001])
def test_server_accepts_no_port_outside_the_expected_range(port: int) -> None:
    handshake = server_in(ServerState.DECIDING)
    with pytest.raises(LocalProtocolError, match=f"port {port}, expected 2000 to 3000"):
        handshake.accept(port)
    assert handshake.state is ServerState.DECIDING


def test_server_accepts_no_port_of_an_empty_range() -> None:
    handshake = ServerHandshake()
    handshake.receive(ClientHello(USER, TOKEN, 3, 3000, 2000))
    for port in (2000, 2500, 3000):
        with pytest.raises(LocalProtocolError, match="expected 3000 to 2000"):
            handshake.accept(port)


def test_server_refuses_with_a_failure_only() -> None:
    handshake = server_in(ServerState.DECIDING)
    with pytest.raises(LocalProtocolError, match="expected a failure"):
        handshake.refuse(ServerHelloCode.SUCCESS)
    assert handshake.state is ServerState.DECIDING


def test_error_text_says_what_is_expected() -> None:
    with pytest.raises(RemoteProtocolError) as fault_of_peer:
        ServerHandshake().receive(PACKET)
    assert str(fault_of_peer.value) == "Packet while awaiting ClientHello, expected ClientHello or Heartbeat"
    with pytest.raises(RemoteProtocolError) as fault_of_peer:
        server_in(ServerState.CLOSED).receive(PACKET)
    assert str(fault_of_peer.value) == "Packet while closed, expected nothing"
    with pytest.raises(LocalProtocolError) as own_fault:
        ServerHandshake().accept(2024)
    assert str(own_fault.value) == "accept() while awaiting ClientHello, expected close()"


@pytest.mark.parametrize("state", ServerState)
def test_server_may_close_at_any_time(state: ServerState) -> None:
    handshake = server_in(state)
    handshake.close()
    handshake.close()
    assert handshake.state is ServerState.CLOSED


# --- client ----------------------------------------------------------------------------------------------------------

CLIENT_RECEIVES: dict[ClientState, dict[Command, ClientState]] = {
    ClientState.IDLE: {},
    ClientState.AWAITING_HELLO: {
        SUCCESS: ClientState.AUTHENTICATED,
        FAILURE: ClientState.REFUSED,
        CONNECT: ClientState.AWAITING_HELLO,
        PACKET: ClientState.AWAITING_HELLO,
        DISSOCIATE: ClientState.AWAITING_HELLO,
    },
    ClientState.AUTHENTICATED: dict.fromkeys(
        [SUCCESS, FAILURE, CONNECT, PACKET, DISSOCIATE], ClientState.AUTHENTICATED
    ),
    ClientState.REFUSED: dict.fromkeys([SUCCESS, FAILURE], ClientState.REFUSED),
    ClientState.CLOSED: {},
}


@pytest.mark.parametrize("state", ClientState)
@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_client_receives(state: ClientState, command: Command) -> None:
    handshake = client_in(state)
    following = CLIENT_RECEIVES[state].get(command)
    if following is None:
        with pytest.raises(RemoteProtocolError, match=f"while {state.value}, expected"):
            handshake.receive(command)
        assert handshake.state is state
    else:
        handshake.receive(command)
        assert handshake.state is following


@pytest.mark.parametrize("state", ClientState)
def test_client_sends_one_hello(state: ClientState) -> None:
    handshake = client_in(state)
    if state is ClientState.IDLE:
        handshake.send_hello()
        assert handshake.state is ClientState.AWAITING_HELLO
    else:
        with pytest.raises(LocalProtocolError, match=rf"send_hello\(\) while {state.value}"):
            handshake.send_hello()
        assert handshake.state is state


@pytest.mark.parametrize("first", [SUCCESS, FAILURE])
@pytest.mark.parametrize("second", [SUCCESS, FAILURE, ServerHello(ServerHelloCode.SUCCESS, 9)])
def test_client_keeps_the_first_server_hello(first: ServerHello, second: ServerHello) -> None:
    handshake = client_in(ClientState.AWAITING_HELLO)
    assert handshake.server_hello is None
    handshake.receive(first)
    state = handshake.state
    handshake.receive(second)
    assert handshake.server_hello is first
    assert handshake.state is state


def test_unasked_server_hello_is_not_kept() -> None:
    handshake = ClientHandshake()
    with pytest.raises(RemoteProtocolError):
        handshake.receive(SUCCESS)
    assert handshake.server_hello is None


@pytest.mark.parametrize("state", ClientState)
def test_client_may_close_at_any_time(state: ClientState) -> None:
    handshake = client_in(state)
    handshake.close()
    handshake.close()
    assert handshake.state is ClientState.CLOSED


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(ServerState), st.lists(commands, max_size=8))
def test_no_sequence_of_commands_breaks_the_server(state: ServerState, received: list[Command]) -> None:
    handshake = server_in(state)
    hellos = 0 if state is ServerState.AWAITING_HELLO else 1
    for command in received:
        try:
            handshake.receive(command)
        except RemoteProtocolError:
            continue
        hellos += isinstance(command, ClientHello)
    assert hellos <= 1
    assert handshake.state in (state, ServerState.DECIDING)


@settings(deadline=None)
@given(st.sampled_from(ClientState), st.lists(commands, max_size=8))
def test_no_sequence_of_commands_breaks_the_client(state: ClientState, received: list[Command]) -> None:
    handshake = client_in(state)
    for command in received:
        try:
            handshake.receive(command)
        except RemoteProtocolError:
            continue
    answers = {ClientState.AUTHENTICATED, ClientState.REFUSED} if state is ClientState.AWAITING_HELLO else set()
    assert handshake.state in {state} | answers
    assert (handshake.server_hello is not None) == (handshake.state in (ClientState.AUTHENTICATED, ClientState.REFUSED))


@settings(deadline=None)
@given(st.sampled_from(ServerState), st.sampled_from(ClientState), wire_bytes)
def test_bytes_from_outside_raise_remote_errors_only(
    server_state: ServerState, client_state: ClientState, data: bytes
) -> None:
    for handshake in (server_in(server_state), client_in(client_state)):
        before = handshake.state
        try:
            handshake.receive(decode(data)[0])
        except RemoteProtocolError:
            assert handshake.state is before
