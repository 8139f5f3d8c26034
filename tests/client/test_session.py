"""The client: attempts, the handshake, streams and associations. The test plays the server."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from asport_sync.client import incoming
from asport_sync.client.backend import Associations, DialledBackend
from asport_sync.client.connection import ServerConnection, why_closed
from asport_sync.client.connector import Close
from asport_sync.client.session import ClientSession
from asport_sync.client.shared import max_associations
from asport_sync.engine import Carrier, CloseCause, Connection, Direction, VisitorLimits, packed_ranges
from asport_sync.errors import (
    AsportError,
    AuthenticationError,
    BindError,
    CertificateError,
    ConfigError,
    ConnectError,
    EngineError,
    HandshakeTimeoutError,
    LifecycleError,
    NetworkDeniedError,
    PortDeniedError,
    RefusedError,
    UnhealthyError,
)
from asport_sync.host.certificates import load_client
from asport_sync.host.host import Host
from asport_sync.runtime import sockets
from asport_sync.runtime.threads import WorkerPool
from asport_sync.wire import (
    Address,
    ClientHello,
    ClientState,
    Connect,
    Dissociate,
    Heartbeat,
    ServerHello,
    ServerHelloCode,
    decode,
    encode,
    proxy_header,
)
from tests.client.scene import (
    ALICE,
    PASSWORD,
    PORT,
    PUBLIC_PEER,
    SERVER,
    TIMEOUT,
    NoDelay,
    Scene,
    accept,
    close_with,
    nothing,
    refuse_with,
    scene_of,
    silent_after_handshake,
)
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeConnection, FakeEngine, FakeStream, token_of
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.waiting import wait_until

# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_client_joins() -> None:
    with scene_of() as scene:
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        assert scene.session.public == (SERVER[0], PORT)
        connection = scene.engine.connections[0]
        expected = ClientHello(ALICE, token_of(connection, ALICE, PASSWORD), 3, 1, 65535)
        assert [decode(data)[0] for data in connection.sent] == [expected]
        assert connection.heartbeats == [(encode(Heartbeat()), 3.0)]
        assert connection.joined == [Carrier.DATAGRAM]
        wait_until(lambda: scene.backoff.successes == 1, TIMEOUT, "the success is noted")


@pytest.mark.parametrize(
    ("options", "mode", "carrier"),
    [
        ({"network": "tcp"}, 0, None),
        ({"network": "udp"}, 1, Carrier.DATAGRAM),
        ({"udp_forward_mode": "quic"}, 4, Carrier.STREAM),
        ({"network": "tcp", "dialect": "flags"}, 1, None),
        ({"udp_forward_mode": "quic", "dialect": "flags"}, 7, Carrier.STREAM),
    ],
)
def test_the_hello_asks_for_what_is_configured(options: dict[str, Any], mode: int, carrier: Carrier | None) -> None:
    with scene_of(expected_port_range=(2000, 3000), **options) as scene:
        connection = scene.ready()
        hello = decode(connection.sent[0])[0]
        assert isinstance(hello, ClientHello)
        assert (hello.mode, hello.port_start, hello.port_end) == (mode, 2000, 3000)
        assert connection.joined == [carrier]
        # Behind it, for a mode that means two things, which of them.
        said = {"draft": b"\x01", "flags": b"\x02"}[options.get("dialect", "draft")]
        assert connection.sent[0] == encode(hello) + (said if mode in (1, 2) else b"")


@pytest.mark.parametrize(
    ("limit", "options", "carrier"),
    [
        (0, {}, Carrier.STREAM),
        (30, {}, Carrier.DATAGRAM),
        (0, {"network": "tcp"}, None),
        (0, {"udp_forward_mode": "quic"}, Carrier.STREAM),
    ],
)
def test_to_a_server_that_takes_no_datagram_frames_packets_go_on_streams(
    caplog: pytest.LogCaptureFixture, limit: int, options: dict[str, Any], carrier: Carrier | None
) -> None:
    def join(scene: Scene, connection: FakeConnection) -> None:
        connection.datagram_limit = limit
        accept(scene, connection)

    with scene_of(join, **options) as scene:
        assert scene.ready().joined == [carrier]
        instead = int(limit == 0 and not options)
        assert scene.counter("udp_on_streams_instead") == instead
    told = [record for record in caplog.records if "DATAGRAM frames" in record.getMessage()]
    assert len(told) == instead


@pytest.mark.parametrize(
    ("options", "keep_alive", "silence", "idle_timeout", "heartbeat"),
    [
        ({}, 0.75, 2.25, 30.0, 3.0),
        ({"keep_alive": 0.25}, 0.25, 0.75, 30.0, 3.0),
        ({"keep_alive": "15s"}, 15.0, 16.5, 45.0, 15.0),
        ({"keep_alive": "1m", "heartbeat": 3}, 60.0, 61.5, 180.0, 3.0),
    ],
)
def test_how_often_an_idle_client_sends(
    options: dict[str, Any], keep_alive: float, silence: float, idle_timeout: float, heartbeat: float
) -> None:
    with scene_of(**options) as scene:
        assert [each[1] for each in scene.ready().heartbeats] == [heartbeat]
        transport = scene.engine.connecting[0]["transport"]
        assert (transport.keep_alive, transport.silence) == (keep_alive, silence)
        assert transport.idle_timeout == idle_timeout


@pytest.mark.parametrize("lowered", [False, True])
def test_a_server_that_has_to_be_probed_more_often(caplog: pytest.LogCaptureFixture, lowered: bool) -> None:
    """Its idle timeout is shorter than three probes: a line says so."""

    def join(scene: Scene, connection: FakeConnection) -> None:
        connection.keep_alive, connection.idle_timeout = (10 / 3, 10.0) if lowered else (15.0, 60.0)
        accept(scene, connection)

    caplog.set_level("INFO")
    with scene_of(join, keep_alive="15s") as scene:
        scene.ready()
        scene.host.run(lambda: None)  # the events thread has done what follows the wake-up of ready()
    line = "192.0.2.1:443: probing the server every 3.33 s, not every 15 s (keep_alive): the idle timeout is 10 s"
    assert (line in caplog.text) is lowered


def test_the_engine_is_told_which_visitors_are_served() -> None:
    with scene_of(network="tcp") as scene:
        assert scene.ready().limits == []
        assert scene.engine.connecting[0]["transport"].max_streams_bidi == 16384
        default = scene.engine.connecting[0]["transport"].connection_window
    rules = {"allow_from": ["192.0.2.0/24"], "deny_from": ["192.0.2.0/25", "::1"]}
    with scene_of(**rules, max_connections=20000, new_connections_per_second=7) as scene:
        permitted = packed_ranges([(bytes([192, 0, 2, 128]), bytes([192, 0, 2, 255]))])
        assert scene.ready().limits == [VisitorLimits(permitted, False, 20000, 7)]
        transport = scene.engine.connecting[0]["transport"]
        assert (transport.max_streams_bidi, transport.connection_window) == (20000, 2 * default)


def test_the_engine_is_told_what_the_configuration_says() -> None:
    with scene_of(
        congestion_control="new_reno", timeout=6.0, heartbeat=4.0, server_name="name.example", disable_sni=True
    ) as scene:
        scene.ready()
        connecting = scene.engine.connecting[0]
        transport = connecting["transport"]
        assert (transport.congestion, transport.handshake_timeout) == (1, 6.0)
        assert transport.idle_timeout == 30.0
        assert transport.keep_alive < transport.silence < 4.0
        assert transport.max_streams_bidi > 1000
        assert (connecting["server_name"], connecting["send_sni"]) == ("name.example", False)
        assert (connecting["remote"], connecting["family"]) == (SERVER, socket.AF_INET)


def test_a_tunnel_has_one_limit_for_all_its_connections() -> None:
    """``in`` is what the peer sends, ``out`` what goes to it."""
    with scene_of(bandwidth={"in": "1mbit", "out": "2mbit"}) as scene:
        first = scene.ready()
        inward, outward = scene.engine.buckets
        assert (inward.rates, outward.rates) == ([125000], [250000])
        assert first.buckets == [(inward, Direction.RECEIVED), (outward, Direction.SENT)]
        scene.engine.post(fake.closed(first, CloseCause.IDLE))
        scene.attempts(2)
        wait_until(lambda: scene.engine.connections[1].buckets == first.buckets, TIMEOUT, "the next one has the same")
    assert inward.closed
    assert outward.closed


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ServerHelloCode.AUTH_FAILED, AuthenticationError),
        (ServerHelloCode.BIND_FAILED, BindError),
        (ServerHelloCode.PORT_DENIED, PortDeniedError),
        (ServerHelloCode.NETWORK_DENIED, NetworkDeniedError),
    ],
)
def test_a_refusal_is_raised_as_soon_as_it_is_known(
    code: ServerHelloCode, error: type[RefusedError], caplog: pytest.LogCaptureFixture
) -> None:
    with scene_of(refuse_with(code), attempts=1) as scene:
        with pytest.raises(RefusedError) as caught:
            scene.session.wait_ready(None)
        assert caught.type is error
        assert caught.value.code == code
        assert scene.backoff.slow == [True]
        assert scene.engine.connections[0].closed == (0, 0.0)
        # Of those that depend on it, what the server may have read otherwise.
        asked = "requested tcp and udp native, mode byte 3 in dialect 'draft'"
        assert (asked in str(caught.value)) == (error in (BindError, NetworkDeniedError))
    assert PASSWORD not in caplog.text


def test_a_bare_close_in_place_of_the_answer_is_a_refusal() -> None:
    options = {"dialect": "flags", "network": "udp", "udp_forward_mode": "quic"}
    with scene_of(close_with(CloseCause.PEER_APPLICATION, handshake=True), attempts=1, **options) as scene:
        with pytest.raises(RefusedError, match="requested udp quic, mode byte 6 in dialect 'flags'") as caught:
            scene.session.wait_ready(None)
        assert caught.type is RefusedError
        assert caught.value.code is None
        assert scene.backoff.slow == [True]


def test_a_close_without_an_error_in_place_of_the_answer_is_a_lost_connection() -> None:
    """A server that is stopped, drained or reloaded, or whose operator disconnects the user, refuses nobody."""
    with scene_of(close_with(CloseCause.PEER_TRANSPORT, handshake=True), accept) as scene:
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        assert scene.backoff.slow == [False]
        assert scene.backoff.steady == [True]


def test_a_client_that_was_refused_may_be_accepted_later() -> None:
    with scene_of(refuse_with(ServerHelloCode.BIND_FAILED), accept) as scene:
        wait_until(lambda: scene.session.public, TIMEOUT, "the second attempt has succeeded")
        assert scene.session.wait_ready(0) == (SERVER[0], PORT)
        assert scene.backoff.slow == [True]


def test_a_certificate_that_is_not_accepted_is_raised_at_once() -> None:
    with scene_of(close_with(CloseCause.CERTIFICATE, 42, "expired"), attempts=1) as scene:
        with pytest.raises(CertificateError, match="expired"):
            scene.session.wait_ready(None)
        assert scene.backoff.slow == [True]


def test_no_answer_is_not_raised_before_the_time_is_over() -> None:
    with scene_of(close_with(CloseCause.UNREACHABLE), close_with(CloseCause.UNREACHABLE), accept) as scene:
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        assert scene.backoff.slow == [False, False]


def test_what_failed_last_is_raised_when_the_time_is_over() -> None:
    with scene_of(close_with(CloseCause.UNREACHABLE), attempts=1) as scene:
        scene.expect_counter("attempts_failed")
        with pytest.raises(ConnectError, match="unreachable"):
            scene.session.wait_ready(0)


def test_an_attempt_that_lasts_is_a_timeout_for_who_waits() -> None:
    with scene_of(nothing) as scene, pytest.raises(HandshakeTimeoutError):
        scene.session.wait_ready(0.01)


def test_a_server_without_an_answer_to_the_hello_is_given_up() -> None:
    with scene_of(silent_after_handshake, accept, handshake_timeout=0.05) as scene:
        scene.session.wait_ready(TIMEOUT)
        assert scene.engine.connections[0].closed == (0, 0.0)
        assert scene.backoff.slow == [False]


def test_late_words_of_a_connection_that_was_given_up_count_no_more() -> None:
    with scene_of(silent_after_handshake, accept, handshake_timeout=0.05) as scene:
        scene.ready()
        late = scene.engine.connections[0]
        stream = FakeStream(encode(Connect(None)))
        scene.post_command(late, encode(ServerHello(ServerHelloCode.SUCCESS, 1)))
        scene.engine.post(fake.stream_opened(late, stream))
        scene.engine.post(fake.association_wanted(late, 4))
        scene.engine.post(fake.closed(late))
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "the stream is refused")
        assert scene.session.public == (SERVER[0], PORT)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[list[sockets.SocketAddress] | OSError]:
    """What the resolver answers, in turn; the last answer stays."""
    answers: list[list[sockets.SocketAddress] | OSError] = []

    def resolve(host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        if host != "name.example":
            return [(host, port)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(sockets, "resolve", resolve)
    return answers


def test_every_address_is_tried_with_the_whole_time_limit(
    resolved: list[list[sockets.SocketAddress] | OSError],
) -> None:
    resolved.append([("2001:db8::1", 443), ("192.0.2.2", 443)])
    with scene_of(close_with(CloseCause.HANDSHAKE_TIMEOUT), accept, server="name.example:443") as scene:
        assert scene.session.wait_ready(TIMEOUT) == ("192.0.2.2", PORT)
        assert [each["remote"][0] for each in scene.engine.connecting] == ["2001:db8::1", "192.0.2.2"]
        assert [each["family"] for each in scene.engine.connecting] == [socket.AF_INET6, socket.AF_INET]
        assert [each["transport"].handshake_timeout for each in scene.engine.connecting] == [8.0, 8.0]
        assert scene.engine.connecting[0]["server_name"] == "name.example"
        assert scene.backoff.slow == []


def test_a_refusal_by_one_address_is_the_answer(resolved: list[list[sockets.SocketAddress] | OSError]) -> None:
    resolved.append([("192.0.2.1", 443), ("192.0.2.2", 443)])
    with scene_of(refuse_with(ServerHelloCode.AUTH_FAILED), server="name.example:443", attempts=1) as scene:
        with pytest.raises(AuthenticationError):
            scene.session.wait_ready(None)
        assert len(scene.engine.connecting) == 1


def test_a_look_up_that_fails_for_lack_of_memory_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | list[sockets.SocketAddress]] = [*(MemoryError() for _ in range(5)), [("192.0.2.2", 443)]]

    def resolve(host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sockets, "resolve", resolve)
    with scene_of(accept, server="name.example:443", network="tcp") as scene:
        assert scene.session.wait_ready(TIMEOUT) == ("192.0.2.2", PORT)


def test_the_name_is_resolved_again_for_each_attempt(resolved: list[list[sockets.SocketAddress] | OSError]) -> None:
    resolved += [OSError(errno.EIO, "no name server"), [("192.0.2.1", 443)], [("192.0.2.2", 443)]]
    with scene_of(close_with(CloseCause.UNREACHABLE), accept, server="name.example:443") as scene:
        assert scene.session.wait_ready(TIMEOUT) == ("192.0.2.2", PORT)
        assert scene.backoff.slow == [False, False]


def test_an_address_that_cannot_be_used_is_passed_over(resolved: list[list[sockets.SocketAddress] | OSError]) -> None:
    resolved.append([("192.0.2.1", 443)])
    with scene_of(nothing, server="name.example:443") as scene:
        scene.attempts(1)
    with scene_of(server="192.0.2.1:443") as scene:
        scene.ready()
    engine = FakeEngine()
    engine.connect_problem = EngineError(-1101, "Network is unreachable")
    host = Host(engine.as_real(), 0, 0.0, logging.getLogger("asport_sync.client"))
    host.start()
    session = ClientSession(scene.config, host, NoDelay())
    host.add(session)
    wait_until(lambda: host.counters.snapshot()["attempts_failed"], TIMEOUT, "the attempt has failed")
    with pytest.raises(ConnectError, match="unreachable"):
        session.wait_ready(0)
    host.stop(TIMEOUT)


# --- losing the connection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cause", [CloseCause.STATELESS_RESET, CloseCause.PEER_APPLICATION, CloseCause.IDLE, CloseCause.PEER_TRANSPORT]
)
def test_a_lost_connection_is_replaced(cause: CloseCause) -> None:
    with scene_of() as scene:
        first = scene.ready()
        scene.engine.post(fake.closed(first, cause))
        scene.attempts(2)
        wait_until(lambda: scene.backoff.successes == 2, TIMEOUT, "the client has joined again")
        assert scene.session.public == (SERVER[0], PORT)
        assert scene.backoff.slow == [False]


def test_while_there_is_no_connection_there_is_no_port() -> None:
    with scene_of(accept, nothing) as scene:
        first = scene.ready()
        scene.engine.post(fake.closed(first, CloseCause.IDLE))
        scene.attempts(2)
        assert scene.session.public is None
        with pytest.raises(ConnectError, match="connection lost"):
            scene.session.wait_ready(0)


@pytest.mark.parametrize(
    ("cause", "code", "state", "error", "words"),
    [
        (CloseCause.CERTIFICATE, 0, ClientState.IDLE, CertificateError, "certificate"),
        (CloseCause.HANDSHAKE_TIMEOUT, 0, ClientState.IDLE, HandshakeTimeoutError, "answer"),
        (CloseCause.IDLE, 0, ClientState.IDLE, HandshakeTimeoutError, "answer"),
        (CloseCause.IDLE, 0, ClientState.AUTHENTICATED, ConnectError, "no packets from the server"),
        (CloseCause.PEER_APPLICATION, 0, ClientState.AWAITING_HELLO, RefusedError, "without giving a reason"),
        (CloseCause.PEER_APPLICATION, 0, ClientState.AUTHENTICATED, ConnectError, "closed by the server"),
        (CloseCause.PEER_TRANSPORT, 0, ClientState.AWAITING_HELLO, ConnectError, "stopped, drained or reloaded"),
        (CloseCause.PEER_TRANSPORT, 0, ClientState.AUTHENTICATED, ConnectError, "stopped, drained or reloaded"),
        (CloseCause.PEER_TRANSPORT, 0x178, ClientState.IDLE, ConnectError, "ALPN"),
        (
            CloseCause.PEER_TRANSPORT,
            10,
            ClientState.IDLE,
            ConnectError,
            "closed by the server with code 0xa (PROTOCOL_V",
        ),
        (CloseCause.STATELESS_RESET, 0, ClientState.AUTHENTICATED, ConnectError, "restarted"),
        (CloseCause.UNREACHABLE, 0, ClientState.IDLE, ConnectError, "unreachable"),
        (CloseCause.VERSION, 0, ClientState.IDLE, ConnectError, "version"),
        (CloseCause.TLS, 80, ClientState.IDLE, ConnectError, "closed by this client with code 0x150 (internal_error)"),
        (
            CloseCause.INTERNAL,
            217,
            ClientState.AUTHENTICATED,
            ConnectError,
            "internal error on this side (ngtcp2 error 0xd9)",
        ),
        (CloseCause.PEER_FAULT, 7, ClientState.IDLE, ConnectError, "code 0x7 (FRAME_ENCODING_ERROR): a frame could"),
        (CloseCause.PEER_FAULT, 0xFE, ClientState.AUTHENTICATED, ConnectError, "closed by this client with code 0xfe"),
    ],
)
def test_every_end_has_words(
    cause: CloseCause, code: int, state: ClientState, error: type[AsportError], words: str
) -> None:
    problem = why_closed(fake.closed(FakeEngine().new_connection(), cause, code, "the peer's words"), state)
    assert type(problem) is error
    assert words in str(problem)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_connected_to_the_local_service() -> None:
    with TcpEcho() as service, scene_of(local=service.address) as scene:
        connection = scene.ready()
        stream = FakeStream(encode(Connect(Address.from_text(*PUBLIC_PEER))))
        scene.engine.post(fake.stream_opened(connection, stream))
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine relays the stream")
        assert stream.attached is not None
        with stream.attached:
            assert stream.attached.getpeername() == service.address


def test_the_engine_dials_where_the_address_is_known() -> None:
    with scene_of(local="127.0.0.1:8080", dial_timeout=0.5) as scene:
        assert scene.ready().dials == [(("127.0.0.1", 8080), 0.5, float("inf"))]


@pytest.mark.parametrize("options", [{"local": "localhost:8080"}, {"proxy_protocol": "v1"}, {"network": "udp"}])
def test_the_engine_does_not_dial_what_only_python_can(options: dict[str, Any]) -> None:
    with scene_of(**options) as scene:
        assert scene.ready().dials == []


def test_each_connection_is_told_what_to_dial() -> None:
    with scene_of() as scene:
        first = scene.ready()
        wait_until(lambda: first.dials, TIMEOUT, "the first connection is told")
        scene.engine.post(fake.closed(first, CloseCause.IDLE))
        scene.attempts(2)
        wait_until(lambda: scene.engine.connections[1].dials, TIMEOUT, "the second connection is told")
        assert scene.engine.connections[1].dials == first.dials == [(("127.0.0.1", 9), 1.0, float("inf"))]
        wait_until(
            lambda: list(cast(DialledBackend, scene.session._backend)._tcp._engine_dials) == [2],
            TIMEOUT,
            "the first is forgotten",
        )


def test_nothing_is_dialled_before_the_server_has_agreed() -> None:
    with scene_of(silent_after_handshake) as scene:
        scene.attempts(1)
        wait_until(lambda: scene.engine.connections[0].sent, TIMEOUT, "the hello is sent")
        assert scene.engine.connections[0].dials == []


def test_a_key_that_no_thread_can_verify_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = WorkerPool.submit

    def refuse(pool: WorkerPool, function: Callable[..., object], *arguments: object) -> None:
        if function.__name__ == "_check_key":
            raise RuntimeError("no thread")
        submit(pool, function, *arguments)

    monkeypatch.setattr(WorkerPool, "submit", refuse)
    trust = {"trust_on_first_use": True, "known_servers": str(tmp_path / "known_servers")}
    with scene_of(accept, certificates=trust) as scene:
        scene.attempts(2)
        with pytest.raises(CertificateError, match="cannot be verified: no thread"):
            scene.session.wait_ready(0)
        assert scene.engine.connections[0].sent == []


def test_a_worker_relays_what_moves_much() -> None:
    with scene_of(max_workers=2) as scene:
        connection = scene.ready()
        assert scene.engine.shared == [2]
        assert scene.engine.shares_udp is True
        stream = FakeStream(encode(Connect(None)))
        ours, theirs = socket.socketpair()
        with theirs:
            scene.engine.post(fake.stream_large_transfer(connection, stream, ours))
            wait_until(lambda: stream.said == ["relay"], TIMEOUT, "a worker relays it")
            stream.finish()
            theirs.settimeout(TIMEOUT)
            assert theirs.recv(1) == b""
            wait_until(lambda: scene.engine.shared == [2, 1], TIMEOUT, "the next may come")


def test_without_workers_nothing_is_shared() -> None:
    with scene_of(max_workers=0) as scene:
        scene.ready()
        assert scene.engine.shared == []
        assert scene.engine.shares_udp is False


@pytest.mark.parametrize(
    ("given", "seconds"), [({}, 60.0), ({"tcp_keepalive": 2.5}, 2.5), ({"tcp_keepalive": "off"}, 0.0)]
)
def test_how_long_silent_tcp_connections_are_left_alone(given: dict[str, Any], seconds: float) -> None:
    with scene_of(**given) as scene:
        assert scene.engine.keepalive == seconds


def test_the_end_of_a_stream_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asport_sync"), scene_of() as scene:
        connection = scene.ready()
        assert scene.engine.reports_streams == 200
        scene.engine.post(fake.stream_ended(connection, FakeStream(b""), PUBLIC_PEER, 2.5))
        text = "connection from 198.51.100.9:5353: finished after 2.5 s, 3 bytes to the tunnel, 4 bytes from it"
        wait_until(lambda: text in caplog.text, TIMEOUT, "a line tells of it")


def test_the_pump_reads_a_busy_socket() -> None:
    with sockets.bind_udp("127.0.0.1", 0) as service, scene_of(local=service.getsockname()) as scene:
        connection = scene.ready()
        scene.engine.post(fake.association_wanted(connection, 3, PUBLIC_PEER))
        wait_until(lambda: connection.udp and connection.udp[0].associations, TIMEOUT, "the association is there")
        udp = connection.udp[0]
        service.sendto(b"x", udp.sock.getsockname())
        scene.host.pump.call_and_wait(lambda: None)
        assert udp.reads == 0
        scene.engine.post(fake.udp_large_transfer(connection, udp))
        wait_until(lambda: udp.reads >= 2, TIMEOUT, "the socket is read")


def test_a_service_that_refuses_is_told_of() -> None:
    with sockets.bind_udp("127.0.0.1", 0) as service, scene_of(local=service.getsockname()) as scene:
        connection = scene.ready()
        scene.engine.post(fake.association_wanted(connection, 3, PUBLIC_PEER))
        wait_until(lambda: connection.udp and connection.udp[0].associations, TIMEOUT, "the association is there")
        scene.engine.post(fake.udp_refused(connection, connection.udp[0], errno.ECONNREFUSED))
        wait_until(lambda: scene.counter("udp_service_away") == 1, TIMEOUT, "it is counted")


def test_streams_that_come_too_early_wait_for_the_answer() -> None:
    stream = FakeStream(encode(Connect(None)))

    def early(scene: Scene, connection: FakeConnection) -> None:
        scene.engine.post(fake.connected(connection, server=False))
        scene.engine.post(fake.stream_opened(connection, stream))

    with TcpEcho() as service, scene_of(early, local=service.address) as scene:
        scene.attempts(1)
        wait_until(lambda: scene.engine.connections[0].sent, TIMEOUT, "the hello is sent")
        assert stream.said == []
        scene.post_command(scene.engine.connections[0], encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine relays the stream")
        assert stream.attached is not None
        stream.attached.close()


def test_early_streams_of_a_refused_client_are_refused() -> None:
    """A stream outlives its connection until somebody has done with it."""
    stream = FakeStream(encode(Connect(Address.from_text(*PUBLIC_PEER))))

    def refuse(scene: Scene, connection: FakeConnection) -> None:
        scene.engine.post(fake.connected(connection, server=False))
        scene.engine.post(fake.stream_opened(connection, stream))
        scene.post_command(connection, encode(ServerHello(ServerHelloCode.BIND_FAILED)))
        scene.engine.post(fake.closed(connection))

    with scene_of(refuse, attempts=1):
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")


def test_too_many_early_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_MAX_HELD_STREAMS", 1)
    streams = [FakeStream(encode(Connect(None))) for _ in range(2)]

    def early(scene: Scene, connection: FakeConnection) -> None:
        scene.engine.post(fake.connected(connection, server=False))
        for stream in streams:
            scene.engine.post(fake.stream_opened(connection, stream))

    with scene_of(early) as scene:
        wait_until(lambda: streams[1].said == ["refuse"], TIMEOUT, "the second is refused")
        assert streams[0].said == []
        assert scene.counter("streams_refused_before_server_hello") == 1


def test_a_stream_without_a_service_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of() as scene:  # nobody listens on port 9
        connection = scene.ready()
        stream = FakeStream(encode(Connect(Address.from_text(*PUBLIC_PEER))))
        scene.engine.post(fake.stream_opened(connection, stream))
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "the stream is refused")
        assert scene.counter("connections_dropped_local_service") == 1
    assert "connection from 198.51.100.9:5353 dropped: cannot reach 127.0.0.1:9" in caplog.text


def test_tcp_that_was_not_asked_for_is_refused() -> None:
    with scene_of(network="udp") as scene:
        connection = scene.ready()
        stream = FakeStream(encode(Connect(None)))
        scene.engine.post(fake.stream_opened(connection, stream))
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "the stream is refused")
        assert scene.counter("streams_refused_no_tcp") == 1


def test_a_stream_that_begins_with_something_else_is_reset() -> None:
    with scene_of() as scene:
        connection = scene.ready()
        streams = [FakeStream(encode(Dissociate(1))), FakeStream(b"\x00\x02\x09")]
        for stream in streams:
            scene.engine.post(fake.stream_opened(connection, stream))
        wait_until(lambda: all(stream.said == ["reset"] for stream in streams), TIMEOUT, "both are reset")
        assert scene.counter("server_violations") == 2


def test_a_server_that_breaks_rules_is_borne(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of() as scene, caplog.at_level(logging.WARNING, "asport_sync"):
        connection = scene.ready()
        for data, carrier in (
            (encode(ServerHello(ServerHelloCode.SUCCESS, PORT)), Carrier.DATAGRAM),
            (encode(ClientHello(ALICE, bytes(32), 3, 1, 2)), Carrier.STREAM),
            (encode(Heartbeat()), Carrier.STREAM),
            (b"\x07", Carrier.STREAM),
        ):
            scene.post_command(connection, data, carrier)
        for number in range(20):
            scene.engine.post(fake.violation(connection, f"problem {number}"))
        scene.expect_counter("server_violations", 24)
        assert connection.closed is None
        assert scene.session.public == (SERVER[0], PORT)
    assert len([record for record in caplog.records if "protocol violation" in record.getMessage()]) == 5


def test_a_second_answer_changes_nothing() -> None:
    with scene_of() as scene:
        connection = scene.ready()
        scene.post_command(connection, encode(ServerHello(ServerHelloCode.SUCCESS, 1)))
        scene.post_command(connection, encode(ServerHello(ServerHelloCode.AUTH_FAILED)))
        stream = FakeStream(encode(Dissociate(1)))
        scene.engine.post(fake.stream_opened(connection, stream))
        wait_until(lambda: stream.said, TIMEOUT, "both answers have been looked at")
        assert scene.session.public == (SERVER[0], PORT)
        assert connection.closed is None


# --- associations -----------------------------------------------------------------------------------------------------


def test_an_association_gets_a_socket_and_loses_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        with scene_of(local=service.getsockname()) as scene:
            connection = scene.ready()
            scene.engine.post(fake.association_wanted(connection, 0, PUBLIC_PEER))
            wait_until(lambda: connection.udp and connection.udp[0].associations, TIMEOUT, "the association is there")
            udp = connection.udp[0]
            assert udp.associations == {0: (PUBLIC_PEER, b"")}
            assert udp.sock.getpeername() == service.getsockname()
            scene.post_command(connection, encode(Dissociate(0)))
            wait_until(lambda: udp.closed and udp.sock.fileno() == -1, TIMEOUT, "its socket is closed")


def test_associations_that_come_too_early_wait_for_the_answer() -> None:
    """The PROXY header names the public port, which the answer brings."""

    def early(scene: Scene, connection: FakeConnection) -> None:
        scene.engine.post(fake.connected(connection, server=False))
        scene.engine.post(fake.association_wanted(connection, 7, PUBLIC_PEER))

    with scene_of(early, proxy_protocol="v2") as scene:
        scene.attempts(1)
        connection = scene.engine.connections[0]
        wait_until(lambda: connection.sent, TIMEOUT, "the hello is sent")
        scene.host.pump.call_and_wait(lambda: None)
        assert connection.udp == []
        scene.post_command(connection, encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))
        wait_until(lambda: connection.udp and connection.udp[0].associations, TIMEOUT, "the association is there")
        expected = proxy_header.udp_header(Address.from_text(*PUBLIC_PEER), Address.from_text(SERVER[0], PORT))
        assert connection.udp[0].associations == {7: (PUBLIC_PEER, expected)}


def test_the_public_address_has_no_zone() -> None:
    server = cast(Connection, FakeEngine().new_connection())
    connection = ServerConnection(server, ("fe80::1%7", 443), cast(Associations, None))
    assert connection.public_address(PORT) == Address.from_text("fe80::1", PORT)


def test_udp_that_was_not_asked_for_is_dropped() -> None:
    with scene_of(network="tcp") as scene:
        connection = scene.ready()
        scene.engine.post(fake.association_wanted(connection, 3))
        wait_until(lambda: connection.removed == [3], TIMEOUT, "the association is refused")
        assert scene.counter("udp_associations_refused_no_udp") == 1


def test_the_associations_of_a_lost_connection_are_closed() -> None:
    with scene_of() as scene:
        connection = scene.ready()
        scene.engine.post(fake.association_wanted(connection, 1, PUBLIC_PEER))
        wait_until(lambda: connection.udp, TIMEOUT, "the association is there")
        scene.engine.post(fake.closed(connection, CloseCause.IDLE))
        wait_until(lambda: connection.udp[0].sock.fileno() == -1, TIMEOUT, "its socket is closed")


# --- start, stop, figures ---------------------------------------------------------------------------------------------


def test_an_answer_to_an_attempt_that_was_just_given_up_makes_nothing_public() -> None:
    with scene_of(nothing) as scene:
        scene.attempts(1)
        wait_until(lambda: scene.session._connections, TIMEOUT, "the session knows it")
        ((key, given_up),) = scene.session._connections.items()
        connection = cast(FakeConnection, key)
        scene.host.run(scene.session._close_connection, Close(given_up))
        scene.post_command(connection, encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))
        scene.host.run(lambda: None)
        assert scene.session.public is None
        assert scene.counter("joined") == 0


@pytest.mark.parametrize(
    ("limit", "budget"), [(None, 16384), (1 << 20, 16384), (16384, 4096), (1024, 256), (256, 64), (3, 0)]
)
def test_associations_leave_half_of_the_descriptors(limit: int | None, budget: int) -> None:
    assert max_associations(limit) == budget


def test_who_waits_learns_that_the_client_was_stopped() -> None:
    with scene_of(nothing) as scene:
        scene.attempts(1)
    with pytest.raises(LifecycleError):
        scene.session.wait_ready(TIMEOUT)


def test_a_client_that_waits_to_try_again_is_stopped_at_once() -> None:
    with scene_of(close_with(CloseCause.UNREACHABLE), attempts=1) as scene:
        scene.expect_counter("attempts_failed")


def test_figures_of_the_connection() -> None:
    with scene_of() as scene:
        scene.ready()
        stats = scene.session.stats()
        assert stats.public == (SERVER[0], PORT)
        assert [each.smoothed_rtt for each in stats.connections] == [0.1]
        assert (stats.counters["joined"], stats.counters["attempts_failed"]) == (1, 0)
        assert "clients_joined" not in stats.counters
        assert PASSWORD not in repr(stats)


def test_the_port_is_published_once_everything_else_is_done() -> None:
    """So a client that is stopped as soon as it is ready leaves nothing half done."""
    published: list[tuple[str, int] | None] = []

    def note(scene: Scene, connection: FakeConnection) -> None:
        dial = connection.dial

        def dial_and_note(*arguments: Any) -> None:
            published.append(scene.session.public)
            dial(*arguments)

        connection.dial = dial_and_note  # type: ignore[assignment,method-assign]
        accept(scene, connection)

    with scene_of(note) as scene:
        scene.ready()
        assert scene.counter("joined") == 1
        assert published == [None]


def test_trusted_certificates_become_one_bundle(tmp_path: Path) -> None:
    pem, der = tmp_path / "a.pem", tmp_path / "b.der"
    pem.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    der.write_bytes(b"\x30\x03\x02\x01\x05")
    text = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n"
    with scene_of(nothing, certificates={"paths": [str(pem), str(der)], "pem": text, "disable_native": True}) as scene:
        options = scene.engine.credentials[0]
        bundle = options["trust"]
        assert isinstance(bundle, bytes)
        assert bundle.count(b"-----BEGIN CERTIFICATE-----") == 3
        assert b"MAMCAQU=" in bundle
        assert (options["system_trust"], options["verify"]) == (False, True)
        pem.unlink()
        with pytest.raises(ConfigError, match=r"a\.pem: certificates\.paths: cannot be read"):
            load_client(scene.config, scene.host.engine, None)


def test_verification_may_be_switched_off_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with scene_of(nothing, skip_certificate_verification=True) as scene:
        assert scene.engine.credentials[0]["verify"] is False
    assert "not verified" in caplog.text


# --- health checks ----------------------------------------------------------------------------------------------------

OFTEN = {"tcp": True, "interval": 0.1, "failures": 2}


def test_the_port_of_a_healthy_service_is_requested_after_the_first_check() -> None:
    with TcpEcho() as service, scene_of(local=service.address, health={"tcp": True}) as scene:
        assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        wait_until(lambda: service.accepted == 1, TIMEOUT, "the check has connected")
        health = scene.session.stats().health
        assert health is not None
        assert health.healthy
        assert scene.counter("ports_withdrawn") == 0


def test_the_port_of_a_service_that_is_not_there_yet_is_not_requested(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    with scene_of(local=("127.0.0.1", port), health=OFTEN) as scene:
        with pytest.raises(UnhealthyError, match=r"^local service is unhealthy \(connection refused\)$"):
            scene.session.wait_ready(0.5)
        assert scene.engine.connections == []
        assert scene.session.status == "not connected: local service is unhealthy (connection refused)"
        state, _, error, _ = scene.session.condition
        assert (state, error) == ("unhealthy", "local service is unhealthy (connection refused)")
        health = scene.session.stats().health
        assert health is not None
        assert (health.healthy, health.unhealthy) == (False, {f"127.0.0.1:{port}": "connection refused"})
        with TcpEcho(port=port):
            assert scene.session.wait_ready(TIMEOUT) == (SERVER[0], PORT)
        assert scene.counter("ports_withdrawn") == 0
    line = "local service is unhealthy (connection refused); its port is requested once it is healthy"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [line]
    assert "local service is healthy again" in caplog.text


def test_the_port_of_an_unhealthy_service_is_withdrawn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    with scene_of(local=("127.0.0.1", port), health=OFTEN) as scene:
        with TcpEcho(port=port):
            first = scene.ready()
        wait_until(lambda: scene.session.public is None, TIMEOUT, "the port is withdrawn")
        wait_until(lambda: first.closed == (0, 0.0), TIMEOUT, "the connection is closed")
        assert scene.counter("ports_withdrawn") == 1
        assert "not connected: local service is unhealthy" in scene.session.status
        assert scene.session.condition[0] == "unhealthy"
        assert "local service is unhealthy (connection refused); port withdrawn" in caplog.text
        assert len(scene.engine.connections) == 1
        with TcpEcho(port=port):
            second = scene.ready()
            assert second is not first
            state, _, error, _ = scene.session.condition
            assert (state, error) == ("public", "local service is unhealthy (connection refused)")
            hello = decode(second.sent[0])[0]
            assert isinstance(hello, ClientHello)
            assert (hello.port_start, hello.port_end) == (PORT, PORT)
    assert "local service is healthy again" in caplog.text
    assert scene.backoff.slow == []  # nothing has failed
