"""The server's side of the handshake, port takeover, and what a peer may not do.

No threads but those that own sockets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from asport_sync.config import ServerConfig
from asport_sync.engine import Carrier, CloseCause, Connection, VisitorLimits
from asport_sync.errors import ConfigError, EngineError
from asport_sync.host.certificates import Loaded, Validity, load_server
from asport_sync.host.host import Host
from asport_sync.runtime import machine, sockets
from asport_sync.server.calls import ConnectedClient
from asport_sync.server.policy import Exporter, Policy, User, users_of
from asport_sync.server.ports import Place
from asport_sync.server.reset_keys import shared_reset_key, stateless_reset_key
from asport_sync.server.session import ServerSession
from asport_sync.wire import (
    ClientHello,
    Connect,
    Dissociate,
    ForwardMode,
    Heartbeat,
    ServerHello,
    ServerHelloCode,
    UdpMode,
    decode,
    encode,
)
from tests.host import fake_engine as fake
from tests.host.fake_counters import FakeCounters
from tests.host.fake_engine import FakeConnection, FakeEngine, FakeStream, token_of
from tests.host.scene import NotedCalls
from tests.runtime.clock import VirtualClock
from tests.support.ports import free_port
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
ALICE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
BOB = uuid.UUID("ffffffff-4455-6677-8899-aabbccddeeff")
PASSWORD = "open sesame"
TIMEOUT = 10.0
PEM = b"-----BEGIN CERTIFICATE-----\n"
MACHINE = b"0123456789abcdef" * 2

SUCCESS = ServerHelloCode.SUCCESS


class Scene:
    """A server whose events the test hands over itself, one at a time."""

    def __init__(self, policy: Policy | None = None, **options: Any) -> None:
        self.number = free_port()
        self.clock = VirtualClock()
        self.engine = FakeEngine()
        proxy = {
            "users": {str(ALICE): PASSWORD, str(BOB): PASSWORD},
            "bind_ip": HOST,
            "allow_ports": self.number,
            **options.pop("proxy", {}),
        }
        self.config = ServerConfig.from_options(
            server=f"{HOST}:0", certificate=PEM, private_key=PEM, proxies=[proxy], **options
        )
        self.counters = FakeCounters()
        self.host = Host(
            self.engine.as_real(),
            0,
            0.0,
            logging.getLogger("asport_sync.server"),
            clock=self.clock,
            counters=self.counters,
        )
        self.session = ServerSession(self.config, self.host, policy)
        self.host.pump.start()
        self.session.prepare()
        self.session.open()

    def close(self) -> None:
        self.engine.stop()
        assert self.host.pump.stop(TIMEOUT)
        self.session.close()
        assert self.host.workers.stop(TIMEOUT)
        self.host.stopping.close()

    def connect(self) -> FakeConnection:
        connection = self.engine.new_connection((HOST, 40000 + len(self.engine.connections)))
        self.session.handle(fake.connected(connection))
        return connection

    def hello(
        self,
        connection: FakeConnection,
        *,
        user: uuid.UUID = ALICE,
        password: str = PASSWORD,
        mode: int = 3,
        ports: tuple[int, int] = (1, 65535),
        behind: bytes = b"",
    ) -> None:
        hello = ClientHello(user, token_of(connection, user, password), mode, *ports)
        self.session.handle(fake.command(connection, encode(hello) + behind))
        self.settle()

    def join(self, **hello: Any) -> FakeConnection:
        connection = self.connect()
        self.hello(connection, **hello)
        return connection

    def settle(self) -> None:
        """Let searches for ports go on to their end, and the threads catch up."""
        for _ in range(2000):
            due = self.host.timers.remaining()
            if due is None or due > 0.1:
                break
            self.clock.advance(due)
            self.host.timers.run()
        self.host.pump.call_and_wait(lambda: None)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.host.timers.run()
        self.settle()

    def counter(self, name: str) -> int:
        return self.counters[name]


def start_and_stop(config: ServerConfig, engine: FakeEngine) -> None:
    host = Host(engine.as_real(), 0, 0.0, logging.getLogger("asport_sync.server"))
    try:
        host.start()
        host.add(ServerSession(config, host))
    finally:
        host.stop(TIMEOUT)


@contextlib.contextmanager
def scene_of(policy: Policy | None = None, **options: Any) -> Iterator[Scene]:
    scene = Scene(policy, **options)
    try:
        yield scene
    finally:
        scene.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with scene_of() as scene:
        yield scene


def answers(connection: FakeConnection) -> list[ServerHello]:
    found = [decode(data)[0] for data in connection.sent]
    assert all(isinstance(answer, ServerHello) for answer in found)
    return found  # type: ignore[return-value]


def reachable(number: int) -> bool:
    try:
        socket.create_connection((HOST, number), TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    return True


# --- a policy that answers later --------------------------------------------------------------------------------------


class Deferred:
    """A policy that answers when the test says so."""

    def __init__(self) -> None:
        self.users: dict[uuid.UUID, User] = {}
        self.questions: list[tuple[ClientHello, Callable[[User | None], None]]] = []

    def authenticate(self, connection: Exporter, hello: ClientHello, answer: Callable[[User | None], None]) -> None:
        self.questions.append((hello, answer))


@pytest.fixture
def deferred() -> Iterator[tuple[Scene, Deferred, User]]:
    policy = Deferred()
    with scene_of(policy, handshake_timeout=3.0) as scene:
        user = users_of(scene.config)[ALICE]
        yield scene, policy, user


def test_an_answer_of_the_policy_may_come_later(deferred: tuple[Scene, Deferred, User]) -> None:
    scene, policy, user = deferred
    connection = scene.join()
    ((hello, answer),) = policy.questions
    assert hello.uuid == ALICE
    assert connection.sent == []
    scene.pass_time(2.0)
    answer(user)
    scene.settle()
    assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
    scene.pass_time(10.0)
    assert connection.closed is None


def test_only_the_first_answer_counts(deferred: tuple[Scene, Deferred, User]) -> None:
    scene, policy, user = deferred
    connection = scene.join()
    ((_, answer),) = policy.questions
    answer(None)
    answer(user)
    scene.settle()
    assert answers(connection) == [ServerHello(ServerHelloCode.AUTH_FAILED)]


def test_a_policy_that_does_not_answer_in_time_costs_the_client_its_connection(
    deferred: tuple[Scene, Deferred, User], caplog: pytest.LogCaptureFixture
) -> None:
    scene, policy, user = deferred
    connection = scene.join()
    scene.pass_time(3.1)
    assert connection.closed == (0, 0.0)
    assert "no answer of the policy within 3 s" in caplog.text
    policy.questions[0][1](user)
    scene.settle()
    assert connection.sent == []
    assert scene.counter("clients_joined") == 0


def test_an_answer_after_the_end_of_the_connection_changes_nothing(deferred: tuple[Scene, Deferred, User]) -> None:
    scene, policy, user = deferred
    connection = scene.join()
    scene.session.handle(fake.closed(connection))
    policy.questions[0][1](user)
    scene.settle()
    assert connection.sent == []
    assert len(scene.session._claims._ports) == 0


# --- success ----------------------------------------------------------------------------------------------------------


def test_a_client_with_the_right_token_gets_its_port(scene: Scene) -> None:
    connection = scene.join()
    assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
    assert connection.joined == [Carrier.DATAGRAM]
    assert connection.closed is None
    (listener,) = connection.listeners
    assert listener.sock.getsockname() == (HOST, scene.number)
    assert not listener.closed
    (udp,) = connection.udp
    assert udp.sock.getsockname() == (HOST, scene.number)
    assert udp.public


@pytest.mark.parametrize(
    ("mode", "dialect", "carrier", "tcp", "udp"),
    [
        (0, "draft", None, True, False),
        (1, "draft", Carrier.DATAGRAM, False, True),
        (2, "draft", Carrier.STREAM, False, True),
        (4, "auto", Carrier.STREAM, True, True),
        (1, "flags", None, True, False),
        (6, "auto", Carrier.STREAM, False, True),
        (7, "flags", Carrier.STREAM, True, True),
    ],
)
def test_the_mode_byte_decides_sockets_and_carrier(
    mode: int, dialect: str, carrier: Carrier | None, tcp: bool, udp: bool
) -> None:
    with scene_of(dialect=dialect) as scene:
        connection = scene.join(mode=mode)
        assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
        assert connection.joined == [carrier]
        assert reachable(scene.number) == tcp
        assert len(connection.listeners) == int(tcp)
        assert len(connection.udp) == int(udp)


SETTLED_BY = "set the key dialect of the server, the entry of proxies or the user"
EITHER_1 = "ambiguous mode byte: tcp (dialect 'flags') or udp native (dialect 'draft'); "
EITHER_2 = "ambiguous mode byte: udp native (dialect 'flags') or udp quic (dialect 'draft'); "


@pytest.mark.parametrize(
    ("mode", "allowed", "carrier", "asked", "tcp", "udp", "said"),
    [
        (1, "both", Carrier.DATAGRAM, False, True, True, EITHER_1 + "serving both"),
        (1, "tcp", None, False, True, False, EITHER_1 + "assuming tcp (dialect 'flags'), because the user may"),
        (1, "udp", Carrier.DATAGRAM, False, False, True, EITHER_1 + "assuming udp native (dialect 'draft'), because"),
        (2, "both", Carrier.DATAGRAM, True, False, True, EITHER_2 + "serving both"),
        (2, "udp", Carrier.DATAGRAM, True, False, True, EITHER_2 + "serving both"),
    ],
)
def test_a_mode_that_means_two_things_gets_both_of_what_is_allowed(
    caplog: pytest.LogCaptureFixture,
    mode: int,
    allowed: str,
    carrier: Carrier | None,
    asked: bool,
    tcp: bool,
    udp: bool,
    said: str,
) -> None:
    with scene_of(proxy={"allow_network": allowed}) as scene, caplog.at_level(logging.INFO, "asport_sync"):
        connection = scene.join(mode=mode)
        assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
        assert (connection.joined, connection.asked) == ([carrier], asked)
        assert (len(connection.listeners), len(connection.udp)) == (int(tcp), int(udp))
        assert scene.counter("ambiguous_modes") == 1
    assert caplog.text.count(said) == 1
    assert caplog.text.count(SETTLED_BY) == 1


def test_a_client_without_datagram_frames_is_not_asked_for_its_carrier(scene: Scene) -> None:
    connection = scene.connect()
    connection.datagram_limit = 0
    scene.hello(connection, mode=2)
    assert (connection.joined, connection.asked) == ([Carrier.STREAM], False)
    assert scene.counter("udp_on_streams_instead") == 0


@pytest.mark.parametrize(
    ("mode", "behind", "carrier", "tcp", "udp"),
    [
        (1, b"\x01", Carrier.DATAGRAM, False, True),
        (1, b"\x02", None, True, False),
        (2, b"\x01", Carrier.STREAM, False, True),
        (2, b"\x02", Carrier.DATAGRAM, False, True),
    ],
)
def test_a_client_that_names_its_dialect_gets_what_it_asked_for(
    mode: int, behind: bytes, carrier: Carrier | None, tcp: bool, udp: bool
) -> None:
    with scene_of() as scene:
        connection = scene.join(mode=mode, behind=behind)
        assert (connection.joined, connection.asked) == ([carrier], False)
        assert (len(connection.listeners), len(connection.udp)) == (int(tcp), int(udp))
        assert scene.counter("ambiguous_modes") == 0


@pytest.mark.parametrize("options", [{"dialect": "draft"}, {"ambiguous_dialect": "draft"}])
def test_a_dialect_that_is_configured_counts_whatever_the_client_says(options: dict[str, Any]) -> None:
    with scene_of(**options) as scene:
        connection = scene.join(mode=1, behind=b"\x02")
        assert connection.joined == [Carrier.DATAGRAM]
        assert connection.listeners == []


@pytest.mark.parametrize(
    ("taken", "tcp", "udp", "network"),
    [(socket.SOCK_DGRAM, 1, 0, "tcp (dialect 'flags')"), (socket.SOCK_STREAM, 0, 1, "udp native (dialect 'draft')")],
)
def test_where_no_port_is_free_for_both_meanings_there_is_one_for_one(
    caplog: pytest.LogCaptureFixture, scene: Scene, taken: socket.SocketKind, tcp: int, udp: int, network: str
) -> None:
    """A web server's port: TCP 443 is free, and UDP 443 is the server's own."""
    with socket.socket(socket.AF_INET, taken) as other, caplog.at_level(logging.INFO, "asport_sync"):
        other.bind((HOST, scene.number))
        if taken is socket.SOCK_STREAM:
            other.listen()
        connection = scene.join(mode=1)
        assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
        assert (len(connection.listeners), len(connection.udp)) == (tcp, udp)
    assert f"no port is free for both, assuming {network}" in caplog.text


@pytest.mark.parametrize("udp_taken", [False, True])
def test_a_port_is_taken_over_in_whatever_meaning_it_was_served(scene: Scene, udp_taken: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        if udp_taken:
            other.bind((HOST, scene.number))
        dead = scene.join(mode=1)
        heir = scene.join(mode=1)
        assert heir.sent == []
        scene.session.handle(fake.probed(dead, alive=False))
        scene.settle()
        assert answers(heir) == [ServerHello(SUCCESS, scene.number)]
        assert (len(heir.listeners), len(heir.udp)) == (1, 0 if udp_taken else 1)


def test_two_live_clients_do_not_share_a_port_by_mistake(scene: Scene) -> None:
    """Each has TCP of the same port as a meaning: the second one gets neither, and the first one keeps all."""
    alive = scene.join(mode=1)
    newcomer = scene.join(mode=1)
    scene.session.handle(fake.probed(alive, alive=True))
    scene.settle()
    assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]
    assert alive.closed is None


def test_refusals_name_the_dialects(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(proxy={"allow_network": "tcp"}) as scene:
        assert answers(scene.join(mode=2)) == [ServerHello(ServerHelloCode.NETWORK_DENIED)]
        assert "requested udp native (dialect 'flags') or udp quic (dialect 'draft'), user" in caplog.text
        caplog.clear()
        scene.join(mode=2, behind=b"\x01")
        assert "requested udp quic (dialect 'draft'), user" in caplog.text
        caplog.clear()
        with socket.create_server((HOST, scene.number)):
            assert answers(scene.join(mode=1)) == [ServerHello(ServerHelloCode.BIND_FAILED)]
        assert "requested tcp (dialect 'flags') or udp native (dialect 'draft'), user" in caplog.text


def test_flags_are_granted_in_part_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with (
        scene_of(dialect="flags", proxy={"allow_network": "tcp"}) as scene,
        caplog.at_level(logging.INFO, "asport_sync"),
    ):
        connection = scene.join(mode=3)
        assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
        assert connection.joined == [None]
        assert connection.udp == []
    assert "requested tcp and udp native, granted only tcp" in caplog.text


def test_heartbeats_are_welcome_at_any_time(scene: Scene) -> None:
    connection = scene.connect()
    heartbeat = fake.command(connection, encode(Heartbeat()), Carrier.DATAGRAM)
    scene.session.handle(heartbeat)
    scene.hello(connection)
    scene.session.handle(heartbeat)
    assert connection.closed is None


def test_the_lowest_free_port_of_the_expected_range() -> None:
    first, second = sorted((free_port(), free_port()))
    with scene_of(proxy={"allow_ports": [first, second]}) as scene:
        assert answers(scene.join(user=ALICE)) == [ServerHello(SUCCESS, first)]
        assert answers(scene.join(user=BOB)) == [ServerHello(SUCCESS, second)]
        connection = scene.join(user=BOB, ports=(0, first))
        assert answers(connection) == [ServerHello(ServerHelloCode.BIND_FAILED)]


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A range of ports of which all but the last are in use."""
    last = free_port()
    real_listen = sockets.listen_tcp

    def listen(host: str, port: int, **options: Any) -> socket.socket:
        if port != last:
            raise OSError(errno.EADDRINUSE, "as the test says")
        return real_listen(host, port, **options)

    monkeypatch.setattr(sockets, "listen_tcp", listen)
    return last - 1000, last


def test_a_large_range_is_searched_without_stopping_the_loop(crowded: tuple[int, int]) -> None:
    with scene_of(proxy={"allow_ports": [crowded]}) as scene:
        connection = scene.connect()
        hello = ClientHello(ALICE, token_of(connection, ALICE, PASSWORD), 0, 1, 65535)
        scene.session.handle(fake.command(connection, encode(hello)))
        for _ in range(5):
            assert scene.host.timers.remaining() == 0
            scene.host.timers.run()
        assert connection.sent == []
        scene.settle()
        assert answers(connection) == [ServerHello(SUCCESS, crowded[1])]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "proxy", "code", "words"),
    [
        ({"password": "wrong"}, {}, ServerHelloCode.AUTH_FAILED, "authentication failed"),
        ({"user": uuid.UUID(int=9)}, {}, ServerHelloCode.AUTH_FAILED, "authentication failed"),
        ({"mode": 0}, {"allow_network": "udp"}, ServerHelloCode.NETWORK_DENIED, "network denied"),
        ({"mode": 3}, {"allow_network": "tcp"}, ServerHelloCode.NETWORK_DENIED, "network denied"),
        ({"ports": (1, 1)}, {}, ServerHelloCode.PORT_DENIED, "port denied"),
        ({"ports": (65535, 1)}, {}, ServerHelloCode.PORT_DENIED, "port denied"),
        ({}, {"allow_ports": []}, ServerHelloCode.PORT_DENIED, "port denied"),
        ({}, {"bind_ip": "fe80::1"}, ServerHelloCode.BIND_FAILED, "bind failed"),
    ],
)
def test_a_refused_client_is_told_why(
    hello: dict[str, Any],
    proxy: dict[str, Any],
    code: ServerHelloCode,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with scene_of(proxy=proxy) as scene:
        connection = scene.join(**hello)
        assert answers(connection) == [ServerHello(code)]
        # Not at once: the reason must arrive first.
        assert connection.closed == (0, 3.0)
        assert connection.joined == []
        assert scene.counter(f"refused_{code.name.lower()}") == 1
        # What it says now counts no more, and doesn't cut the reason short.
        scene.hello(connection)
        scene.session.handle(fake.violation(connection, "nonsense"))
        assert connection.closed == (0, 3.0)
        assert len(connection.sent) == 1
        scene.session.handle(fake.closed(connection))
    assert words in caplog.text
    assert PASSWORD not in caplog.text


def test_bad_tokens_hide_no_other_refusal(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(25):
        scene.join(password="wrong")
        scene.pass_time(2)  # beyond ten of one address the answer comes late
    other = free_port()
    scene.join(ports=(other, other))
    assert "refused, port denied" in caplog.text


def test_a_port_in_use_by_another_program_is_a_bind_failure(scene: Scene) -> None:
    with socket.socket() as other:
        other.bind((HOST, scene.number))
        other.listen()
        connection = scene.join()
        assert answers(connection) == [ServerHello(ServerHelloCode.BIND_FAILED)]


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Errors that the next sockets meet in place of being made; emptied from the end."""
    errors: list[int] = []
    bind = sockets.bind_udp

    def bind_udp(host: str, port: int, *, only_v6: bool | None = None) -> socket.socket:
        if errors:
            raise OSError(errors.pop(), "as the test says")
        return bind(host, port, only_v6=only_v6)

    monkeypatch.setattr(sockets, "bind_udp", bind_udp)
    return errors


@pytest.mark.parametrize("number", sorted(sockets.OUT_OF_RESOURCES))
def test_a_want_of_descriptors_puts_the_answer_off(
    scene: Scene, scarce: list[int], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    scarce += [number] * 2
    connection = scene.join()
    assert connection.sent == []
    assert "no public port yet: as the test says" in caplog.text
    for _ in range(2):
        scene.pass_time(0.2)
    assert answers(connection) == [ServerHello(SUCCESS, scene.number)]
    assert scene.counter("binds_deferred") == 2


def test_a_want_of_descriptors_that_lasts_is_a_bind_failure_with_its_reason(
    scene: Scene, scarce: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    scarce += [errno.EMFILE] * 1000
    connection = scene.join()
    for _ in range(6):
        assert connection.sent == []
        scene.pass_time(0.2)
        if connection.sent:
            break
    assert answers(connection) == [ServerHello(ServerHelloCode.BIND_FAILED)]
    assert "bind failed: " in caplog.text
    assert caplog.messages[-1].endswith(": as the test says")
    assert not scene.session._claims._ports.holds(
        Place(HOST, None, ALICE), scene.number, ForwardMode(True, UdpMode.NATIVE)
    )


def test_a_failed_authentication_may_stay_without_an_answer() -> None:
    with scene_of(authentication_failed_reply=False) as scene:
        connection = scene.join(password="wrong")
        assert connection.sent == []
        assert connection.closed == (0, 0.0)
        other = scene.join(ports=(1, 1))
        assert answers(other) == [ServerHello(ServerHelloCode.PORT_DENIED)]


def test_who_guesses_passwords_hears_of_it_late_and_others_do_not(scene: Scene) -> None:
    for _ in range(10):
        assert answers(scene.join(password="wrong")) == [ServerHello(ServerHelloCode.AUTH_FAILED)]
    guess, gone = scene.join(password="wrong"), scene.join(password="wrong")
    assert scene.counter("refusals_delayed") == 2
    assert guess.sent == []
    assert guess.closed is None
    # What it says meanwhile counts no more, and its end costs nothing.
    scene.hello(guess)
    scene.session.handle(fake.closed(gone))
    # From the same address, with the right password.
    assert answers(scene.join(user=BOB)) == [ServerHello(SUCCESS, scene.number)]
    scene.pass_time(1.0)
    assert answers(guess) == [ServerHello(ServerHelloCode.AUTH_FAILED)]
    assert guess.closed == (0, 3.0)
    assert gone.sent == []
    assert scene.counter("refused_auth_failed") == 11


def test_a_client_without_a_hello_is_closed_after_the_handshake_timeout() -> None:
    with scene_of(handshake_timeout=3.0) as scene:
        silent, joined = scene.connect(), scene.join()
        scene.pass_time(2.9)
        assert silent.closed is None
        scene.pass_time(0.2)
        assert silent.closed == (0, 0.0)
        assert silent.sent == []
        assert joined.closed is None


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "carrier"),
    [
        (encode(ServerHello(SUCCESS, 5)), Carrier.STREAM),
        (encode(Connect(None)), Carrier.STREAM),
        (encode(Dissociate(1)), Carrier.STREAM),
        (encode(Heartbeat()), Carrier.STREAM),
        (encode(Dissociate(1)), Carrier.DATAGRAM),
        (b"\x01\x05", Carrier.STREAM),
        (b"\x00\x06", Carrier.STREAM),
        (b"\x00", Carrier.DATAGRAM),
        (encode(ClientHello(ALICE, bytes(32), 3, 1, 2))[:-1], Carrier.STREAM),
        (encode(ClientHello(ALICE, bytes(32), 3, 1, 2)), Carrier.DATAGRAM),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_broken_rule_costs_the_connection(scene: Scene, data: bytes, carrier: Carrier, joined: bool) -> None:
    connection = scene.join() if joined else scene.connect()
    before = len(connection.sent)
    scene.session.handle(fake.command(connection, data, carrier))
    assert connection.closed == (0, 0.0)
    assert len(connection.sent) == before
    assert scene.counter("connections_broken_off") == 1


def test_a_second_hello_costs_the_connection_and_binds_nothing(scene: Scene) -> None:
    connection = scene.join()
    scene.hello(connection)
    assert connection.closed == (0, 0.0)
    assert len(connection.sent) == 1


def test_a_mode_that_means_nothing_costs_the_connection() -> None:
    with scene_of(dialect="draft") as scene:
        connection = scene.join(mode=6)
        assert connection.sent == []
        assert connection.closed == (0, 0.0)


def test_a_violation_costs_the_connection(scene: Scene) -> None:
    connection = scene.connect()
    scene.session.handle(fake.violation(connection, "command type is 9"))
    assert connection.closed == (0, 0.0)


def test_a_stream_of_the_client_costs_the_connection(scene: Scene) -> None:
    connection = scene.join()
    scene.session.handle(fake.stream_opened(connection, FakeStream(encode(Connect(None)))))
    assert connection.closed == (0, 0.0)


def test_events_of_unknown_connections_are_ignored(scene: Scene) -> None:
    stranger = scene.engine.new_connection()
    scene.session.handle(fake.command(stranger, encode(Heartbeat())))
    scene.session.handle(fake.violation(stranger, "x"))
    scene.session.handle(fake.probed(stranger, alive=False))
    scene.session.handle(fake.closed(stranger, CloseCause.HANDSHAKE_TIMEOUT))
    assert stranger.closed is None
    assert scene.counter("joins_failed") == 1


# --- what the engine reports of public sockets ------------------------------------------------------------------------


def test_troubles_of_a_listener_are_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    connection = scene.join()
    listener = connection.listeners[0]
    for error in (errno.EMFILE, 0):
        scene.session.handle(fake.accept_failed(connection, listener, error))
    assert [record.getMessage() for record in caplog.records] == [
        f"port {scene.number}: accept failed: Too many open files",
        f"port {scene.number}: connections dropped: too many are waiting for the client",
    ]
    assert connection.closed is None
    assert not listener.closed


def test_lines_on_streams_name_the_port(scene: Scene) -> None:
    connection, waiting = scene.join(), scene.connect()
    place = scene.session.stream_label
    assert place(cast(Connection, connection)) == f"port {scene.number}: "
    assert place(cast(Connection, waiting)) == ""
    scene.session.handle(fake.closed(connection))
    assert place(cast(Connection, connection)) == ""


def test_a_new_source_becomes_an_association(scene: Scene) -> None:
    connection = scene.join()
    udp = connection.udp[0]
    scene.session.handle(fake.source_unknown(connection, udp, ("198.51.100.9", 5353)))
    scene.settle()
    assert udp.associations == {1: (("198.51.100.9", 5353), b"")}
    scene.session.handle(fake.source_unknown(connection, udp, ("198.51.100.9", 5353), ("192.0.2.2", 0)))
    scene.settle()
    assert udp.locals == {1: None, 2: ("192.0.2.2", 0)}


def test_a_port_is_announced_once_the_engine_has_its_udp_socket(scene: Scene) -> None:
    connection = scene.connect()
    real_send = connection.send
    opened: list[int] = []

    def look_and_send(command: bytes) -> None:
        opened.append(len(connection.udp))
        real_send(command)

    connection.send = look_and_send  # type: ignore[method-assign]
    scene.hello(connection)
    assert opened == [1]
    assert [answer.port for answer in answers(connection)] == [scene.number]


@pytest.mark.parametrize(("limit", "carrier"), [(0, Carrier.STREAM), (29, Carrier.STREAM), (30, Carrier.DATAGRAM)])
def test_who_takes_no_datagram_frames_gets_streams(
    scene: Scene, caplog: pytest.LogCaptureFixture, limit: int, carrier: Carrier
) -> None:
    connection = scene.connect()
    connection.datagram_limit = limit
    scene.hello(connection)
    assert connection.joined == [carrier]
    assert scene.counter("udp_on_streams_instead") == int(carrier is Carrier.STREAM)
    told = [record for record in caplog.records if "DATAGRAM frames" in record.getMessage()]
    assert len(told) == int(carrier is Carrier.STREAM)


def test_without_udp_datagram_frames_do_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(dialect="draft") as scene:
        connection = scene.connect()
        connection.datagram_limit = 0
        scene.hello(connection, mode=0)
        assert connection.joined == [None]
    assert "DATAGRAM frames" not in caplog.text


def test_the_pump_reads_a_busy_socket(scene: Scene) -> None:
    connection = scene.join()
    udp = connection.udp[0]
    with sockets.connected_udp((HOST, scene.number)) as user:
        user.send(b"x")
        scene.settle()
        assert udp.reads == 0
        scene.session.handle(fake.udp_large_transfer(connection, udp))
        wait_until(lambda: udp.reads >= 2, TIMEOUT, "the socket is read")


@pytest.mark.parametrize("ended", [False, True], ids=["without UDP", "over"])
def test_reports_that_come_too_late_are_ignored(ended: bool, caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(dialect="draft") as scene:
        connection = scene.join(mode=3 if ended else 0)
        listener = fake.FakeListener(connection.listeners[0].sock)
        udp = fake.FakeUdpSocket(connection, listener.sock, True)
        if ended:
            scene.session.handle(fake.closed(connection))
            scene.session.handle(fake.accept_failed(connection, listener, errno.EMFILE))
        scene.session.handle(fake.source_unknown(connection, udp))
        scene.session.handle(fake.udp_large_transfer(connection, udp))
        scene.settle()
        assert udp.associations == {}
        assert (udp.refused, udp.reads) == ([], 0)
    assert caplog.records == []


# --- the end of a connection, and ports that change hands -------------------------------------------------------------


def test_a_port_is_free_again_when_its_client_has_gone(scene: Scene) -> None:
    connection = scene.join()
    listener, udp = connection.listeners[0], connection.udp[0]
    scene.session.handle(fake.closed(connection, CloseCause.IDLE))
    assert not reachable(scene.number)
    assert listener.closed
    assert listener.sock.fileno() == udp.sock.fileno() == -1
    assert answers(scene.join(user=BOB)) == [ServerHello(SUCCESS, scene.number)]


def test_a_client_that_goes_while_its_port_is_searched_leaves_nothing(crowded: tuple[int, int]) -> None:
    with scene_of(proxy={"allow_ports": [crowded]}) as scene:
        connection = scene.connect()
        hello = ClientHello(ALICE, token_of(connection, ALICE, PASSWORD), 0, 1, 65535)
        scene.session.handle(fake.command(connection, encode(hello)))
        scene.session.handle(fake.closed(connection))
        scene.settle()
        assert connection.sent == []
        assert len(scene.session._claims._ports) == 0


def test_a_client_that_goes_before_its_answer_leaves_nothing(scene: Scene) -> None:
    connection = scene.connect()
    real_send = connection.send

    def send_and_go(command: bytes) -> None:
        connection.is_gone = True
        real_send(command)

    connection.send = send_and_go  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        scene.hello(connection)
    assert len(scene.session._claims._ports) == 0
    assert not reachable(scene.number)


def test_a_dead_predecessor_loses_its_port_to_the_same_user(scene: Scene) -> None:
    dead = scene.join()
    heir = scene.join()
    assert heir.sent == []
    assert dead.probes == [1.0]
    scene.session.handle(fake.probed(dead, alive=False))
    scene.settle()
    assert answers(heir) == [ServerHello(SUCCESS, scene.number)]
    assert dead.closed == (0, 0.0)
    assert dead.udp[0].closed
    assert heir.udp[0].sock is not dead.udp[0].sock or heir.udp[0].sock.fileno() >= 0
    assert dead.listeners[0].closed
    assert not heir.listeners[0].closed
    assert heir.listeners[0].sock.getsockname() == (HOST, scene.number)
    # The end of the predecessor takes nothing from its heir.
    scene.session.handle(fake.closed(dead))
    assert reachable(scene.number)
    assert not heir.listeners[0].closed


def test_a_live_predecessor_keeps_its_port(scene: Scene) -> None:
    alive = scene.join()
    newcomer = scene.join()
    scene.session.handle(fake.probed(alive, alive=True))
    scene.settle()
    assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]
    assert alive.closed is None


def test_beside_a_live_predecessor_there_is_the_next_port() -> None:
    first, second = sorted((free_port(), free_port()))
    with scene_of(proxy={"allow_ports": [first, second]}) as scene:
        alive = scene.join()
        newcomer = scene.join()
        scene.session.handle(fake.probed(alive, alive=True))
        scene.settle()
        assert answers(newcomer) == [ServerHello(SUCCESS, second)]


def test_a_probe_without_an_answer_counts_as_life(scene: Scene) -> None:
    alive = scene.join()
    newcomer = scene.join()
    scene.pass_time(2)
    assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]
    assert alive.closed is None
    scene.session.handle(fake.probed(alive, alive=False))
    assert alive.closed is None


def test_a_predecessor_that_ends_during_the_probe_leaves_its_port(scene: Scene) -> None:
    dead = scene.join()
    heir = scene.join()
    scene.session.handle(fake.closed(dead, CloseCause.IDLE))
    scene.settle()
    assert answers(heir) == [ServerHello(SUCCESS, scene.number)]


def test_a_predecessor_that_is_gone_already_is_not_waited_for(scene: Scene) -> None:
    dead = scene.join()
    dead.is_gone = True
    heir = scene.join()
    assert answers(heir) == [ServerHello(SUCCESS, scene.number)]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_a_port_of_one_user_is_not_another_s_for_the_other_network(first: int, second: int) -> None:
    """Mode 0 is TCP, mode 1 UDP."""
    with scene_of(dialect="draft") as scene:
        alice, bob = scene.join(mode=first), scene.join(user=BOB, mode=second)
        assert answers(alice) == [ServerHello(SUCCESS, scene.number)]
        assert answers(bob) == [ServerHello(ServerHelloCode.BIND_FAILED)]


def test_another_user_s_connection_is_not_probed(scene: Scene) -> None:
    other = scene.join(user=BOB)
    newcomer = scene.join(user=ALICE)
    assert other.probes == []
    assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]


def test_a_predecessor_with_a_port_outside_the_range_is_not_probed() -> None:
    first, second = sorted((free_port(), free_port()))
    with scene_of(proxy={"allow_ports": [first, second]}) as scene:
        other = scene.join(ports=(first, first))
        newcomer = scene.join(ports=(second, second))
        assert other.probes == []
        assert answers(newcomer) == [ServerHello(SUCCESS, second)]


def test_two_newcomers_ask_a_predecessor_once_and_one_of_them_inherits(scene: Scene) -> None:
    dead = scene.join()
    first, second = scene.join(), scene.join()
    assert len(dead.probes) == 1
    scene.session.handle(fake.probed(dead, alive=False))
    scene.settle()
    assert answers(first) == [ServerHello(SUCCESS, scene.number)]
    assert answers(second) == [ServerHello(ServerHelloCode.BIND_FAILED)]


def test_a_newcomer_that_goes_during_the_probe_costs_the_predecessor_nothing(scene: Scene) -> None:
    dead = scene.join()
    newcomer = scene.join()
    scene.session.handle(fake.closed(newcomer))
    scene.session.handle(fake.probed(dead, alive=False))
    scene.settle()
    assert dead.closed is None
    assert reachable(scene.number)
    for stream in dead.streams:
        stream.finish()


def test_nobody_is_asked_where_a_port_is_free() -> None:
    ports = [free_port() for _ in range(4)]
    with scene_of(proxy={"allow_ports": ports}) as scene:
        clients = [scene.join() for _ in ports]
        assert [client.probes for client in clients] == [[]] * len(ports)
        assert {answers(client)[0].port for client in clients} == set(ports)


def test_no_more_are_asked_than_needed() -> None:
    """However many clients a user has: a few at a time, and none any more once one is silent."""
    ports = [free_port() for _ in range(40)]
    with scene_of(proxy={"allow_ports": ports}) as scene:
        clients = [scene.join() for _ in ports]
        newcomer = scene.join()

        def asked() -> list[FakeConnection]:
            return [client for client in clients if client.probes]

        assert len(asked()) == 16
        scene.session.handle(fake.probed(asked()[0], alive=True))
        assert len(asked()) == 17
        dead = asked()[5]
        scene.session.handle(fake.probed(dead, alive=False))
        scene.settle()
        assert len(asked()) == 17
        for client in asked():
            scene.session.handle(fake.probed(client, alive=False))
        assert [client for client in clients if client.closed] == [dead]
        assert answers(newcomer) == [ServerHello(SUCCESS, answers(dead)[0].port)]


def test_all_are_asked_before_a_newcomer_is_refused() -> None:
    ports = [free_port() for _ in range(20)]
    with scene_of(proxy={"allow_ports": ports}) as scene:
        clients = [scene.join() for _ in ports]
        newcomer = scene.join()
        for client in clients:
            assert newcomer.sent == []
            scene.session.handle(fake.probed(client, alive=True))
        assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]
        assert [client for client in clients if client.closed] == []


def test_who_was_heard_before_the_decision_is_not_closed(scene: Scene) -> None:
    """The word of a busy engine that somebody is silent may be older than what has come from him since."""
    alive = scene.join()
    newcomer = scene.join()
    alive.silence = 0.1
    scene.session.handle(fake.probed(alive, alive=False))
    scene.settle()
    assert alive.closed is None
    assert answers(newcomer) == [ServerHello(ServerHelloCode.BIND_FAILED)]


def test_a_predecessor_that_serves_another_network_is_not_probed() -> None:
    with scene_of(dialect="draft") as scene:
        other, newcomer = scene.join(mode=1), scene.join(mode=0)
        assert other.probes == []
        assert answers(newcomer) == [ServerHello(SUCCESS, scene.number)]


# --- how many clients a user may have ---------------------------------------------------------------------------------


@pytest.fixture
def two_each() -> Iterator[Scene]:
    with scene_of(proxy={"allow_ports": [free_port() for _ in range(5)], "max_clients": 2}) as scene:
        yield scene


def test_a_user_has_no_more_than_max_clients(two_each: Scene, caplog: pytest.LogCaptureFixture) -> None:
    first, second = two_each.join(), two_each.join()
    held = len(two_each.session._claims._ports)
    third = two_each.join()
    for client in (first, second):
        two_each.session.handle(fake.probed(client, alive=True))
    two_each.settle()
    assert answers(third) == [ServerHello(ServerHelloCode.BIND_FAILED)]
    assert f"user {ALICE} already has 2 clients, the maximum (max_clients)" in caplog.text
    assert two_each.counter("clients_refused_limit") == 1
    assert len(two_each.session._claims._ports) == held
    # Others have places of their own, and one that is left is free for the next.
    assert answers(two_each.join(user=BOB))[0].code is SUCCESS
    two_each.session.handle(fake.closed(first))
    assert answers(two_each.join())[0].code is SUCCESS


def test_a_silent_client_leaves_its_place(two_each: Scene) -> None:
    first, second = two_each.join(), two_each.join()
    heir = two_each.join()
    two_each.session.handle(fake.probed(second, alive=False))
    two_each.settle()
    assert answers(heir) == answers(second)
    assert (first.closed, second.closed) == (None, (0, 0.0))


def test_callables_learn_of_a_successor_after_the_end(two_each: Scene) -> None:
    calls = two_each.host.calls = NotedCalls()
    first, second = two_each.join(), two_each.join()
    heir = two_each.join()
    two_each.session.handle(fake.probed(second, alive=False))
    two_each.settle()
    two_each.session.handle(fake.closed(second))
    two_each.session.handle(fake.closed(first, CloseCause.IDLE))
    two_each.session.close()
    number = answers(second)[0].port
    assert number is not None

    def about(client: FakeConnection, port: int | None) -> ConnectedClient:
        peer = (HOST, 40000 + two_each.engine.connections.index(client))
        return ConnectedClient(client.id, str(ALICE), peer, None if port is None else (HOST, port))

    assert calls.noted() == [
        *[("on_connect", about(first, None)), ("on_ready", about(first, answers(first)[0].port))],
        *[("on_connect", about(second, None)), ("on_ready", about(second, number))],
        ("on_connect", about(heir, None)),
        ("on_disconnect", about(second, number), "silent; another client of the user takes its place"),
        ("on_ready", about(heir, number)),
        ("on_disconnect", about(first, answers(first)[0].port), fake.closed(first, CloseCause.IDLE).describe()),
        ("on_disconnect", about(heir, number), "closed by this server"),
    ]


def test_a_client_that_leaves_once_it_has_its_port_did_join(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scene.host.calls = NotedCalls()
    connection = scene.connect()

    def send_and_leave(command: bytes) -> None:
        connection.sent.append(command)
        connection.is_gone = True

    monkeypatch.setattr(connection, "send", send_and_leave)
    scene.hello(connection)
    scene.session.handle(fake.closed(connection, CloseCause.PEER_APPLICATION))
    assert scene.counter("clients_joined") == 1
    assert [(name, about.port) for name, about, *_ in calls.noted()] == [
        ("on_connect", None),
        ("on_ready", scene.number),
        ("on_disconnect", scene.number),
    ]


def test_callables_learn_why_a_client_is_disconnected(scene: Scene) -> None:
    calls = scene.host.calls = NotedCalls()
    scene.join(password="wrong")
    scene.join(ports=(1, 1))
    violator = scene.join(user=BOB)
    scene.session.handle(fake.command(violator, encode(Heartbeat())))
    scene.session.handle(fake.closed(violator))
    scene.join(user=BOB)
    apply(scene, changed(scene, proxy={"users": {str(ALICE): PASSWORD}}))
    left = scene.join()
    scene.session.handle(fake.closed(left, CloseCause.PEER_APPLICATION))
    searching = scene.join()
    scene.session.handle(fake.closed(searching, CloseCause.STATELESS_RESET))
    ends = [arguments for name, *arguments in calls.noted() if name == "on_disconnect"]
    assert [(about.user == str(ALICE), about.port, why.partition(":")[0]) for about, why in ends] == [
        (True, None, "refused, port denied"),
        (False, scene.number, "Heartbeat in the wrong carrier"),
        (False, scene.number, "removal"),
        (True, scene.number, fake.closed(left, CloseCause.PEER_APPLICATION).describe()),
        (True, scene.number, fake.closed(searching, CloseCause.STATELESS_RESET).describe()),
    ]


def test_a_silent_client_leaves_its_place_to_one_that_wants_another_port(two_each: Scene) -> None:
    ports = sorted(two_each.config.proxies[0].allow_ports)
    first, second = two_each.join(ports=(1, ports[0])), two_each.join(ports=(1, ports[1]))
    heir = two_each.join(ports=(ports[2], ports[2]))
    two_each.session.handle(fake.probed(first, alive=False))
    two_each.settle()
    assert answers(heir) == [ServerHello(SUCCESS, ports[2])]
    assert not reachable(ports[0])
    assert second.closed is None


def test_a_client_that_ends_while_it_is_asked_leaves_its_place(two_each: Scene) -> None:
    first, second = two_each.join(), two_each.join()
    heirs = two_each.join(), two_each.join()
    two_each.session.handle(fake.closed(second))
    two_each.settle()
    assert [len(heir.sent) for heir in heirs] == [1, 0]
    two_each.session.handle(fake.closed(first))
    two_each.settle()
    assert [answers(heir)[0].code for heir in heirs] == [SUCCESS, SUCCESS]


def test_those_who_are_refused_or_go_take_no_place(two_each: Scene) -> None:
    for _ in range(5):
        two_each.join(password="wrong")
        two_each.join(ports=(1, 1))
        two_each.session.handle(fake.closed(two_each.join()))
        rule_breaker = two_each.join()
        two_each.session.handle(fake.violation(rule_breaker, "nonsense"))
        two_each.session.handle(fake.closed(rule_breaker))
    assert answers(two_each.join())[0].code is SUCCESS
    assert two_each.counter("clients_refused_limit") == 0


def test_max_clients_of_a_single_user() -> None:
    users = {str(ALICE): {"password": PASSWORD, "max_clients": 1}, str(BOB): PASSWORD}
    with scene_of(proxy={"users": users, "allow_ports": [free_port() for _ in range(4)]}) as scene:
        alone = scene.join()
        second = scene.join()
        scene.session.handle(fake.probed(alone, alive=True))
        assert answers(second) == [ServerHello(ServerHelloCode.BIND_FAILED)]
        assert [answers(scene.join(user=BOB))[0].code for _ in range(2)] == [SUCCESS, SUCCESS]


def test_who_comes_back_finds_the_same_port() -> None:
    first, second = sorted((free_port(), free_port()))
    with scene_of(proxy={"allow_ports": [first, second]}) as scene:
        keeper = scene.join(user=BOB, ports=(first, first))
        connection = scene.join()
        assert answers(connection) == [ServerHello(SUCCESS, second)]
        for each in (keeper, connection):
            scene.session.handle(fake.closed(each))
        assert answers(scene.join()) == [ServerHello(SUCCESS, second)]


# --- another configuration --------------------------------------------------------------------------------------------


def changed(scene: Scene, *, proxy: dict[str, Any] | None = None, **options: Any) -> ServerConfig:
    """The configuration of a scene with changes, and one with which it has them."""
    proxies = [
        {
            "users": {str(ALICE): PASSWORD, str(BOB): PASSWORD},
            "bind_ip": HOST,
            "allow_ports": scene.number,
            **(proxy or {}),
        }
    ]
    return ServerConfig.from_options(
        server=f"{HOST}:0", certificate=PEM, private_key=PEM, **{"proxies": proxies, **options}
    )


def apply(scene: Scene, config: ServerConfig, **found: Any) -> Loaded:
    """Has a session follow a configuration."""
    loaded = load_server(config, scene.engine.as_real(), None)
    loaded = dataclasses.replace(loaded, **found)
    scene.session.apply(config, loaded)
    scene.settle()
    return loaded


@pytest.mark.parametrize(
    ("proxy", "why"),
    [
        ({"users": {str(BOB): PASSWORD}}, "removal"),
        ({"users": {str(ALICE): "another", str(BOB): PASSWORD}}, "change of the password"),
        ({"allow_ports": 9}, "change of allow_ports"),
        ({"allow_network": "udp"}, "change of allow_network"),
        ({"bind_ip": "127.0.0.2"}, "change of bind_ip or only_v6"),
    ],
)
def test_a_client_that_a_new_configuration_does_not_allow_is_disconnected(
    scene: Scene, caplog: pytest.LogCaptureFixture, proxy: dict[str, Any], why: str
) -> None:
    connection = scene.join()
    with caplog.at_level(logging.INFO, "asport_sync"):
        apply(scene, changed(scene, proxy=proxy))
    assert connection.closed == (None, 0.0)
    assert connection.listeners[0].closed
    assert connection.udp[0].closed
    assert not reachable(scene.number)
    assert scene.counter("clients_ended_by_reload") == 1
    assert f"client {HOST}:40000: disconnected: {why} of user {ALICE}" in caplog.text
    scene.session.handle(fake.closed(connection))
    assert len(scene.session._claims._ports) == 0


@pytest.mark.parametrize(
    ("proxy", "options"),
    [
        ({}, {}),
        ({"users": {str(ALICE): PASSWORD}}, {}),  # the other user is removed
        ({"max_clients": 1, "dialect": "draft"}, {"dialect": "flags", "authentication_failed_reply": False}),
        ({"allow_ports": [(1, 65535)]}, {"max_idle_time": 7, "udp_session_timeout": 8}),
    ],
)
def test_a_client_that_a_new_configuration_still_allows_does_not_notice(
    scene: Scene, proxy: dict[str, Any], options: dict[str, Any]
) -> None:
    connection = scene.join()
    sent = list(connection.sent)
    apply(scene, changed(scene, proxy=proxy, **options))
    assert (connection.closed, connection.sent) == (None, sent)
    assert not connection.listeners[0].closed
    assert not connection.udp[0].closed
    assert scene.counter("clients_ended_by_reload") == 0


def test_clients_that_stay_keep_what_a_port_for_tcp_alone_needs() -> None:
    with scene_of() as scene:
        connection = scene.join(mode=0)
        apply(scene, changed(scene, proxy={"allow_network": "tcp"}))
        assert connection.closed is None
        apply(scene, changed(scene, proxy={"allow_network": "udp"}))
        assert connection.closed is not None


def test_new_clients_are_judged_by_the_new_configuration(scene: Scene) -> None:
    other = free_port()
    users = {str(ALICE): "another", str(BOB): {"password": PASSWORD, "max_clients": 1}}
    config = changed(scene, proxy={"users": users, "allow_ports": other}, handshake_timeout=1.5)
    apply(scene, config)
    assert answers(scene.join()) == [ServerHello(ServerHelloCode.AUTH_FAILED)]
    assert answers(scene.join(password="another")) == [ServerHello(SUCCESS, other)]
    silent = scene.connect()
    scene.pass_time(1.6)
    assert silent.closed is not None


def test_other_rules_and_limits_apply_at_once(scene: Scene) -> None:
    connection = scene.join()
    (endpoint,) = scene.engine.endpoints
    assert (connection.limits, endpoint.limits) == ([], [])
    rules = {"deny_from": ["203.0.113.0/24"], "max_connections": 5, "udp_sessions": 7}
    for _ in range(2):  # the second time nothing changes
        apply(scene, changed(scene, proxy=rules, max_clients_total=9))
        (limits,) = connection.limits
        assert (limits.max_connections, limits.permitted is None) == (5, False)
        assert endpoint.limits == [9]
    apply(scene, changed(scene))
    assert connection.limits[1:] == [VisitorLimits()]
    assert endpoint.limits[1:] == [10000]
    assert connection.closed is None


def test_clients_count_towards_their_entry_wherever_it_is_now() -> None:
    ports = [(20000, 32000)]
    with scene_of(proxy={"allow_ports": ports}) as scene:
        several = [scene.join() for _ in range(2)]
        new = {"users": {str(uuid.UUID(int=3)): PASSWORD}, "bind_ip": HOST}
        entry = {"users": {str(ALICE): PASSWORD, str(BOB): PASSWORD}, "bind_ip": HOST, "allow_ports": ports}
        apply(scene, changed(scene, proxies=[new, entry | {"max_clients_total": 2}]))
        assert [each.closed for each in several] == [None] * 2
        another = scene.join()
        for each in several:
            scene.session.handle(fake.probed(each, alive=True))
        assert answers(another) == [ServerHello(ServerHelloCode.BIND_FAILED)]
        assert scene.counter("clients_refused_limit") == 1


def test_another_bandwidth_applies_at_once(scene: Scene) -> None:
    connection = scene.join()
    assert connection.buckets == []
    for inward, rate in (("8mbit", 1_000_000), ("off", 0)):
        apply(scene, changed(scene, proxy={"bandwidth": {"in": inward}}))
        ((bucket, _),) = connection.buckets
        assert bucket.rates[-1] == rate
    assert connection.closed is None


def test_fewer_clients_of_a_user_apply_to_new_ones_only() -> None:
    with scene_of(proxy={"allow_ports": [(20000, 32000)]}) as scene:
        several = [scene.join() for _ in range(3)]
        apply(scene, changed(scene, proxy={"allow_ports": [(20000, 32000)], "max_clients": 1}))
        assert [each.closed for each in several] == [None] * 3
        another = scene.join()
        for each in several:
            scene.session.handle(fake.probed(each, alive=True))
        assert answers(another) == [ServerHello(ServerHelloCode.BIND_FAILED)]
        assert scene.counter("clients_refused_limit") == 1


def test_a_client_whose_port_is_still_searched_is_disconnected_if_its_user_has_changed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get a port by the earlier settings."""

    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(sockets, "listen_tcp", refuse)
    clients = {}
    for user in (ALICE, BOB):
        connection = clients[user] = scene.connect()
        hello = ClientHello(user, token_of(connection, user, PASSWORD), 3, 1, 65535)
        scene.session.handle(fake.command(connection, encode(hello)))
    silent = scene.connect()
    users = {str(ALICE): {"password": PASSWORD, "max_clients": 2}, str(BOB): PASSWORD}
    config = changed(scene, proxy={"users": users})
    scene.session.apply(config, load_server(config, scene.engine.as_real(), None))
    assert clients[ALICE].closed is not None
    assert clients[BOB].closed is None
    assert silent.closed is None
    monkeypatch.undo()
    scene.pass_time(0.3)
    assert answers(clients[ALICE]) == []
    assert answers(clients[BOB]) == [ServerHello(SUCCESS, scene.number)]


def test_the_engine_gets_new_settings_and_credentials(scene: Scene) -> None:
    (endpoint,) = scene.engine.endpoints
    (first,) = scene.engine.credentials_made
    loaded = apply(scene, changed(scene, max_idle_time=7, alpn=["other"]))
    assert [each.idle_timeout for each in endpoint.transports] == [7.0]
    assert cast(Any, endpoint.credentials) == [loaded.credentials]
    assert endpoint.credentials[0] is scene.engine.credentials_made[1]
    assert scene.engine.credentials[1]["alpn"] == [b"other"]
    assert [each.freed for each in scene.engine.credentials_made] == [True, False]
    assert first.freed


def test_settings_that_the_engine_refuses_change_nothing(scene: Scene) -> None:
    (endpoint,) = scene.engine.endpoints
    endpoint.transport_problem = EngineError(-3, "an argument is out of range")
    connection = scene.join()
    before = scene.session.loaded
    with pytest.raises(EngineError, match="out of range"):
        apply(scene, changed(scene, proxy={"users": {str(BOB): PASSWORD}}))
    assert (connection.closed, endpoint.credentials, scene.session.loaded) == (None, [], before)
    assert not scene.engine.credentials_made[0].freed


def test_warnings_of_certificates_follow_the_new_one(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    config = changed(scene)
    apply(scene, config, validity=Validity(["is odd"]))
    apply(scene, config, validity=Validity(["is odd"]))  # the same again
    apply(scene, config, validity=Validity(["is strange"]))
    assert [message for message in caplog.messages if message.startswith("is ")] == ["is odd", "is strange"]
    assert scene.host._validities == [Validity(["is strange"])]


def test_associations_follow_another_timeout(scene: Scene) -> None:
    connection = scene.join()
    apply(scene, changed(scene, udp_session_timeout=4))
    wait_until(lambda: 4.0 in connection.idle_asked, TIMEOUT, "they are looked for with the new one")


# --- draining ---------------------------------------------------------------------------------------------------------


def test_draining_accepts_no_clients_and_no_visitors(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    joined, waiting = scene.join(), scene.connect()
    assert cast(Any, scene.session.connections()) == [joined, waiting]
    assert scene.session.is_idle()
    with caplog.at_level(logging.INFO, "asport_sync"):
        scene.session.drain()
        scene.settle()
        assert scene.engine.endpoints[0].closed is False  # without its connections
        assert (joined.closed, joined.listeners[0].closed) == (None, True)
        assert not reachable(scene.number)
        assert waiting.closed == (None, 0.0)  # nobody was refused
        late = scene.connect()
        assert late.closed == (None, 0.0)
    assert scene.counter("clients_refused_draining") == 2
    assert caplog.text.count("refused: the server is draining") == 2
    assert scene.session.status == "draining, 3 clients"
    # UDP sources that are known go on; a new one is refused.
    (udp,) = joined.udp
    assert not udp.closed
    scene.session.handle(fake.source_unknown(joined, udp))
    scene.settle()
    assert udp.refused == [fake.PEER]
    assert scene.counter("udp_sources_refused_draining") == 1


# --- start, stop, figures ---------------------------------------------------------------------------------------------


def test_the_engine_is_told_what_the_configuration_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    identity = tmp_path / "machine-id"
    identity.write_bytes(MACHINE + b"\n")
    monkeypatch.setattr(machine, "_MACHINE_IDS", (identity,))
    with scene_of(
        congestion_control="cubic", max_idle_time=20.0, send_window=20000, receive_window=30000, max_udp_payload=1300
    ) as scene:
        listening = scene.engine.listening[0]
        assert listening["address"] == scene.session.address
        assert listening["reset_key"] == stateless_reset_key(PEM, MACHINE, scene.session.address)
        transport = listening["transport"]
        assert (transport.congestion, transport.idle_timeout, transport.max_udp_payload) == (0, 20.0, 1300)
        assert (transport.send_window, transport.receive_window, transport.max_streams_bidi) == (20000, 30000, 0)
        assert scene.engine.credentials[0]["alpn"] == [b"asport"]


def test_every_server_has_its_own_reset_key() -> None:
    key = stateless_reset_key(b"key", b"machine", ("::", 443))
    assert len(key) == 32
    assert key == stateless_reset_key(b"key", b"machine", ("::", 443))
    others = [
        stateless_reset_key(b"other key", b"machine", ("::", 443)),
        stateless_reset_key(b"key", b"other machine", ("::", 443)),
        stateless_reset_key(b"key", b"machine", ("::1", 443)),
        stateless_reset_key(b"key", b"machine", ("::", 444)),
        shared_reset_key(b"key"),
        shared_reset_key(b"other key"),
    ]
    assert len({key, *others}) == 7
    # The clients of servers that are running know tokens made with these very keys.
    assert key.hex() == "843cb9eadb65f13e96052e6813c7eadcd28d98da5664835db9d3d11b9515707e"
    assert shared_reset_key(b"key").hex() == "5b869bf3182dbf6959518fc22eec78954f16fe06c9e68362337301717aaa8159"


def test_a_shared_reset_key_is_all_that_counts() -> None:
    with scene_of(reset_key="x" * 32) as scene:
        assert scene.engine.listening[0]["reset_key"] == shared_reset_key(b"x" * 32)


def test_without_a_machine_id_every_start_has_another_reset_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "_MACHINE_IDS", ())
    keys = set()
    for _ in range(2):
        with caplog.at_level(logging.INFO, "asport_sync"), scene_of() as scene:
            keys.add(scene.engine.listening[0]["reset_key"])
    assert len(keys) == 2
    assert "no machine id" in caplog.text


def test_an_address_that_is_taken_is_a_configuration_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        config = ServerConfig.from_options(server=other.getsockname(), certificate=PEM, private_key=PEM, proxies=[])
        with pytest.raises(ConfigError, match="in use"):
            start_and_stop(config, FakeEngine())


def test_settings_that_the_engine_refuses_are_a_configuration_error() -> None:
    engine = FakeEngine()
    engine.listen_problem = EngineError(-3, "an argument is out of range")
    config = ServerConfig.from_options(server=f"{HOST}:0", certificate=PEM, private_key=PEM, proxies=[])
    with pytest.raises(ConfigError, match=rf"cannot listen on {HOST}:0: an argument is out of range; .*send_window=5,"):
        start_and_stop(dataclasses.replace(config, send_window=5), engine)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([(20000, 30000)], [(20000, 30000)], "10001 ports, 20000-30000"),
        ([(20000, 30000)], [(29001, 40000)], "1000 ports, 29001-30000"),
        ([(20000, 30000)], [(29002, 40000)], None),
        ([(20000, 30000), (5, 5)], [(30001, 40000), (5, 5)], None),
    ],
)
def test_a_wide_range_that_users_share_is_said(
    one: list[tuple[int, int]], other: list[tuple[int, int]], shared: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    proxies = [
        {"users": {str(ALICE): PASSWORD}, "allow_ports": one},
        {"users": {str(BOB): PASSWORD}, "allow_ports": other},
    ]
    config = ServerConfig.from_options(server=f"{HOST}:0", certificate=PEM, private_key=PEM, proxies=proxies)
    start_and_stop(config, FakeEngine())
    lines = [message for message in caplog.messages if "share" in message]
    assert len(lines) == (shared is not None)
    assert shared is None or f"several users share {shared}: " in lines[0]


def test_ports_that_users_still_share_are_not_said_again(caplog: pytest.LogCaptureFixture) -> None:
    everyone = {str(ALICE): PASSWORD, str(BOB): PASSWORD}
    ports = {"allow_ports": [(20000, 30000)]}

    def warnings(scene: Scene, **proxy: Any) -> int:
        caplog.clear()
        apply(scene, changed(scene, proxy=proxy))
        return len([message for message in caplog.messages if "several users share" in message])

    with scene_of() as scene:
        assert warnings(scene, users={str(ALICE): PASSWORD}, **ports) == 0
        assert warnings(scene, users=everyone, **ports) == 1  # a second user
        assert warnings(scene, users={**everyone, str(uuid.UUID(int=9)): PASSWORD}, **ports) == 0
        assert warnings(scene, users=everyone, max_clients=5, **ports) == 0
        assert warnings(scene, users=everyone, allow_ports=[(20000, 30001)]) == 1


def test_keys_without_effect_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asport_sync"), scene_of(buffer_pool_size=5) as scene:
        scene.join()
    lines = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("buffer_pool_size has no effect: ")


def test_credentials_that_do_not_fit_are_a_configuration_error() -> None:
    engine = FakeEngine()
    engine.credentials_problem = EngineError(-7, "the key is not that of the certificate")
    config = ServerConfig.from_options(server=f"{HOST}:0", certificate=PEM, private_key=PEM, proxies=[])
    with pytest.raises(ConfigError, match="the key is not that of the certificate"):
        start_and_stop(config, engine)


def test_figures_of_each_connection(scene: Scene) -> None:
    joined, waiting = scene.join(), scene.connect()
    waiting.is_gone = True
    stats = scene.session.stats()
    assert stats.running
    assert stats.address == scene.session.address
    first, second = stats.connections
    assert (first.user, first.port, first.peer) == (str(ALICE), scene.number, joined.peer)
    assert first.network == "tcp and udp native"
    assert first.info is not None
    assert first.info.smoothed_rtt == 0.1
    assert (second.user, second.port, second.peer, second.info) == (None, None, waiting.peer, None)
    assert stats.counters["clients_joined"] == 1
    assert "joined" not in stats.counters
    whole = stats.as_dict()
    assert [each["port"] for each in whole["connections"]] == [scene.number, None]
    assert whole["connections"][0]["smoothed_rtt"] == 0.1
    assert whole["connections"][1]["closed"] is True
    assert PASSWORD not in repr(stats)
