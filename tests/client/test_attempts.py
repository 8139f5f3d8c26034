"""Attempts beside each other, and beside a connection that is silent. The test plays the server."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator

import pytest

from asport_sync.client.calls import ConnectedTunnel
from asport_sync.client.connector import Happened, Report
from asport_sync.config import ServerConfig
from asport_sync.engine import CloseCause, ConnectionInfo
from asport_sync.errors import EngineError
from asport_sync.runtime import sockets
from asport_sync.wire import ClientHello, ServerHello, ServerHelloCode, decode, encode
from tests.client.scene import (
    PORT,
    SERVER,
    TIMEOUT,
    Scene,
    accept,
    close_with,
    nothing,
    refuse_with,
    scene_of,
    silent_after_handshake,
)
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeConnection
from tests.host.scene import NotedCalls
from tests.support.waiting import wait_until

# Seconds that a server gives a client that does not authenticate, where its configuration says nothing else.
SERVER_GRACE_PERIOD = float(
    next(str(field.default) for field in dataclasses.fields(ServerConfig) if field.name == "handshake_timeout")
)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts join each other after a hundredth of a second."""
    monkeypatch.setattr("tests.client.scene.NoDelay.parallel", lambda self: 0.01)


def hello_of(connection: FakeConnection) -> ClientHello:
    commands = [decode(data)[0] for data in connection.sent]
    assert len(commands) == 1
    assert isinstance(commands[0], ClientHello)
    return commands[0]


def let_in(scene: Scene, connection: FakeConnection) -> None:
    wait_until(lambda: connection.sent, TIMEOUT, "the hello is sent")
    scene.post_command(connection, encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))


class Names:
    """What the resolver answers, in turn; the last answer stays."""

    def __init__(self) -> None:
        self.answers: list[list[sockets.SocketAddress] | OSError] = []

    def resolve(self, host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        if host != "name.example":
            return [(host, port)]
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(sockets, "resolve", names.resolve)
    return names


# --- a race -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("brisk")
def test_while_nothing_comes_back_attempts_join_each_other_and_the_first_answer_wins() -> None:
    with scene_of(nothing) as scene:
        scene.attempts(4)
        first, second = scene.engine.connections[:2]
        scene.engine.post(fake.connected(second, server=False))
        let_in(scene, second)
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        others = [connection for connection in scene.engine.connections if connection is not second]
        wait_until(lambda: all(each.closed == (0, 0.0) for each in others), TIMEOUT, "the others are closed")
        assert second.closed is None
        scene.engine.post(fake.connected(first, server=False))
        scene.engine.post(fake.closed(first))
        wait_until(
            lambda: len(scene.session._connections) == len(scene.engine.connections) - 1, TIMEOUT, "it is forgotten"
        )
        assert first.sent == []  # a loser says nothing, however late
        assert scene.backoff.slow == []


@pytest.mark.usefixtures("brisk")
def test_a_server_that_answers_slowly_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = True
    asked = threading.Semaphore(0)

    def info(connection: FakeConnection) -> ConnectionInfo:
        connection.packets_received += answering
        asked.release()
        return real_info(connection)

    real_info = FakeConnection.info
    monkeypatch.setattr(FakeConnection, "info", info)
    with scene_of(nothing) as scene:
        for _ in range(10):
            assert asked.acquire(timeout=TIMEOUT)
        assert len(scene.engine.connections) == 1
        answering = False
        scene.attempts(3)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("brisk")
def test_a_second_address_need_not_wait_for_the_first(names: Names) -> None:
    names.answers.append([("2001:db8::1", 443), ("192.0.2.2", 443)])
    with scene_of(nothing, accept, server="name.example:443") as scene:
        assert scene.session.wait_ready(TIMEOUT) == ("192.0.2.2", PORT)
        first, second = scene.engine.connections
        wait_until(lambda: first.closed == (0, 0.0), TIMEOUT, "the one that was not needed is closed")
        assert second.closed is None


# --- beside what stands -----------------------------------------------------------------------------------------------


@pytest.fixture
def standing() -> Iterator[tuple[Scene, FakeConnection]]:
    """A client whose server has become silent; the next attempt gets as far as the QUIC handshake."""
    with scene_of(accept, silent_after_handshake) as scene:
        first = scene.ready()
        wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the connector knows")
        scene.engine.post(fake.silence(first, silent=True))
        scene.attempts(2)
        wait_until(lambda: first.probes, TIMEOUT, "the open connection is probed once more")
        # The next one does not authenticate meanwhile, and a server closes it after this time.
        assert first.probes[0] < SERVER_GRACE_PERIOD
        yield scene, first


def test_a_silent_connection_keeps_its_place_until_the_server_answers_another(
    standing: tuple[Scene, FakeConnection],
) -> None:
    scene, first = standing
    second = scene.engine.connections[1]
    assert scene.session.public == (SERVER[0], PORT)
    assert (first.closed, second.sent) == (None, [])
    scene.engine.post(fake.probed(first, alive=False))
    let_in(scene, second)
    wait_until(lambda: scene.backoff.successes == 2, TIMEOUT, "the second has joined")
    assert first.closed == (0, 0.0)
    assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
    assert scene.backoff.slow == []


def test_a_connection_that_was_reset_makes_way(standing: tuple[Scene, FakeConnection]) -> None:
    scene, first = standing
    scene.engine.post(fake.closed(first, CloseCause.STATELESS_RESET))
    let_in(scene, scene.engine.connections[1])
    wait_until(lambda: scene.backoff.successes == 2, TIMEOUT, "the second has joined")


def test_a_connection_that_lives_after_all_stays(standing: tuple[Scene, FakeConnection]) -> None:
    scene, first = standing
    second = scene.engine.connections[1]
    scene.engine.post(fake.probed(first, alive=True))
    wait_until(lambda: second.closed == (0, 0.0), TIMEOUT, "the other is closed")
    assert second.sent == []
    assert (first.closed, scene.session.public) == (None, (SERVER[0], PORT))
    # And is replaced when it is lost in the end.
    scene.behaviours[:] = [accept]
    scene.engine.post(fake.closed(first, CloseCause.IDLE))
    wait_until(lambda: len(scene.engine.connections) == 3 and scene.session.public, TIMEOUT, "a third has joined")


def test_callables_learn_of_the_connection_that_is_used_and_of_no_other() -> None:
    calls = NotedCalls()
    with scene_of(accept, silent_after_handshake, calls=calls) as scene:
        first = scene.ready()
        wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the connector knows")
        # One that is not needed after all.
        scene.engine.post(fake.silence(first, silent=True))
        scene.attempts(2)
        wait_until(lambda: first.probes, TIMEOUT, "the open connection is probed once more")
        scene.engine.post(fake.probed(first, alive=True))
        wait_until(lambda: scene.engine.connections[1].closed is not None, TIMEOUT, "the other is closed")
        # One that replaces it.
        scene.engine.post(fake.silence(first, silent=True))
        scene.attempts(3)
        wait_until(lambda: len(first.probes) == 2, TIMEOUT, "the open connection is probed once more")
        scene.engine.post(fake.probed(first, alive=False))
        let_in(scene, scene.engine.connections[2])
        wait_until(lambda: scene.counter("joined") == 2, TIMEOUT, "another has joined")
        scene.engine.post(fake.closed(first))
    connected, ready = ConnectedTunnel("", SERVER), ConnectedTunnel("", SERVER, (SERVER[0], PORT))
    (*once, (name, lost, why)), twice = (calls.noted()[:3], calls.noted()[3:])
    assert once == [("on_connect", connected), ("on_ready", ready)]
    assert (name, lost, str(why)) == ("on_disconnect", ready, "connection lost: no answer from the server")
    assert twice == [("on_connect", connected), ("on_ready", ready), ("on_disconnect", ready, None)]


def test_callables_learn_why_a_connection_ended() -> None:
    calls = NotedCalls()
    behaviours = (
        refuse_with(ServerHelloCode.AUTH_FAILED),
        silent_after_handshake,
        close_with(CloseCause.PEER_TRANSPORT, 7, handshake=True),
        nothing,
    )
    with scene_of(*behaviours, calls=calls, handshake_timeout=0.05) as scene:
        scene.attempts(4)
    assert [name for name, *_ in calls.noted()] == ["on_connect", "on_disconnect"] * 3
    assert [str(why).partition(":")[0] for name, _, *more in calls.noted() for why in more] == [
        "authentication failed",
        "no ServerHello within 0.05 s",
        "connection failed",
    ]


@pytest.mark.usefixtures("brisk")
def test_what_is_heard_again_ends_the_attempts() -> None:
    with scene_of(accept, nothing) as scene:
        first = scene.ready()
        wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the connector knows")
        scene.engine.post(fake.silence(first, silent=True))
        scene.attempts(3)
        scene.engine.post(fake.silence(first, silent=False))
        wait_until(lambda: scene.backoff.successes == 2, TIMEOUT, "the connector knows")
        assert all(each.closed == (0, 0.0) for each in scene.engine.connections[1:])
        assert (first.closed, scene.session.public) == (None, (SERVER[0], PORT))


def test_a_connection_is_lost_while_attempts_are_made_beside_it() -> None:
    with scene_of(accept, nothing) as scene:
        first = scene.ready()
        wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the connector knows")
        scene.engine.post(fake.silence(first, silent=True))
        scene.attempts(2)
        scene.engine.post(fake.closed(first, CloseCause.IDLE))
        scene.expect_counter("attempts_failed")
        assert scene.session.public is None
        scene.engine.post(fake.connected(scene.engine.connections[1], server=False))
        let_in(scene, scene.engine.connections[1])
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        assert scene.backoff.slow == []


# --- the port of before -----------------------------------------------------------------------------------------------


def test_who_comes_back_asks_for_the_port_of_before_and_then_for_any() -> None:
    with scene_of(accept, refuse_with(ServerHelloCode.BIND_FAILED), accept, expected_port_range=(2000, 3000)) as scene:
        scene.engine.post(fake.closed(scene.ready(), CloseCause.STATELESS_RESET))
        wait_until(lambda: scene.backoff.successes == 2, TIMEOUT, "the client has joined again")
        asked = [(hello.port_start, hello.port_end) for hello in map(hello_of, scene.engine.connections)]
        assert asked == [(2000, 3000), (PORT, PORT), (2000, 3000)]
        assert scene.backoff.slow == [False, False]


# --- this machine -----------------------------------------------------------------------------------------------------


HAPPENED = {Happened.ADDRESS_CHANGED: "_address_changed", Happened.RESUMED: "_resumed"}


def happened(scene: Scene, what: Happened) -> None:
    scene.host.pump.call_and_wait(getattr(scene.session, HAPPENED[what]))


def joined(scene: Scene) -> FakeConnection:
    connection = scene.ready()
    wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the connector knows")
    return connection


def test_a_connection_follows_the_address_of_this_machine() -> None:
    with scene_of() as scene:
        connection = joined(scene)
        happened(scene, Happened.ADDRESS_CHANGED)
        scene.expect_counter("migrations")
        wait_until(lambda: connection.probes == [1.0], TIMEOUT, "it is asked whether that was good")
        scene.engine.post(fake.probed(connection, alive=True))
        happened(scene, Happened.RESUMED)
        wait_until(lambda: connection.probes == [1.0, 1.0], TIMEOUT, "it is asked again")
        assert (connection.migrations, len(scene.engine.connections)) == (1, 1)


@pytest.mark.parametrize("what", [Happened.ADDRESS_CHANGED, Happened.RESUMED])
def test_a_server_that_does_not_answer_then_is_called_anew(what: Happened) -> None:
    with scene_of() as scene:
        connection = joined(scene)
        connection.migration_problem = EngineError(-6, "not allowed in this state")
        happened(scene, what)
        wait_until(lambda: connection.probes, TIMEOUT, "it is asked")
        scene.engine.post(fake.probed(connection, alive=False))
        scene.attempts(2)
        assert scene.session.public == (SERVER[0], PORT)


@pytest.mark.parametrize("what", [Happened.ADDRESS_CHANGED, Happened.RESUMED])
def test_a_pause_is_over_at_once(what: Happened) -> None:
    with scene_of(close_with(CloseCause.CERTIFICATE), accept, attempts=1) as scene:
        scene.expect_counter("attempts_failed")
        happened(scene, what)
        wait_until(lambda: scene.session.public, TIMEOUT, "the next attempt has come")


def test_news_of_this_machine_do_not_disturb_an_attempt_that_is_answered() -> None:
    with scene_of(silent_after_handshake) as scene:
        scene.attempts(1)
        connection = scene.engine.connections[0]
        wait_until(lambda: connection.sent, TIMEOUT, "the hello is sent")
        happened(scene, Happened.ADDRESS_CHANGED)
        scene.host.call(scene.session._report, Report(Happened.RESOLVED))
        let_in(scene, connection)
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
