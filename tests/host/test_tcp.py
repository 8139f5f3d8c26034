"""Public listeners, the local service, and who relays."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asport_sync.client.local_tcp import LocalService
from asport_sync.engine import Connection, Stream, StreamEnd, StreamResult
from asport_sync.errors import EngineError
from asport_sync.host.relays import Relays
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.runtime.timers import Timers
from asport_sync.server.public_tcp import PublicListener
from asport_sync.wire import Address, proxy_header
from tests.host.fake_engine import (
    FakeConnection,
    FakeEngine,
    FakeListener,
    FakeStream,
    gone,
    stream_ended,
    stream_large_transfer,
)
from tests.runtime.clock import VirtualClock
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
TIMEOUT = 10.0
WORKERS = 8
PEER = Address.from_text("203.0.113.7", 54321)
PUBLIC = Address.from_text("192.0.2.1", 2024)
LOG = logging.getLogger("asport_sync.test")
DESCRIPTORS = EngineError(-1024, "Too many open files")


class Scene:
    """Threads, counters and a connection."""

    def __init__(self, most: int = 4) -> None:
        self.clock = VirtualClock()
        self.counters = Counters()
        self.workers = WorkerPool(WORKERS)
        self.engine = FakeEngine()
        self.relays = Relays(self.engine.as_real(), self.workers, most, self.counters, LOG, self.place)
        self.stop = StopSignal()
        self.connection = self.engine.new_connection()
        self.streams: list[FakeStream] = []

    def close(self) -> None:
        self.stop.set()
        for stream in self.streams:
            stream.finish()
            if stream.attached is not None:
                stream.attached.close()
        assert self.workers.stop(TIMEOUT)
        self.stop.close()

    def place(self, connection: Connection) -> str:
        return f"place {connection.id}: "

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(b""))
        return self.streams[-1]

    def large_transfer(self, stream: FakeStream) -> socket.socket:
        """The engine hands a stream over; returns the other end of its socket."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(TIMEOUT)
        self.relays.stream_large_transfer(stream_large_transfer(self.connection, stream, ours))
        return theirs

    def idle(self) -> None:
        wait_until(lambda: self.workers.running == 0, TIMEOUT, "the workers are back")

    def service(self, address: tuple[str, int], **options: Any) -> LocalService:
        fields: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "dial_timeout": 5.0,
            "proxy_version": None,
            "relays": self.relays,
            "stop": self.stop,
            "counters": self.counters,
            "log": LOG,
            "clock": self.clock,
        }
        return LocalService(**{**fields, **options})

    def counter(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def as_stream(stream: FakeStream) -> Stream:
    return cast(Stream, stream)


def as_connection(connection: FakeConnection) -> Connection:
    return cast(Connection, connection)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


# --- relays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "most"), [(logging.DEBUG, 0xFFFFFFFF), (logging.INFO, 200), (logging.WARNING, 0)])
def test_ends_are_reported_where_somebody_reads_of_them(
    level: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(most=3)
    with caplog.at_level(level, "asport_sync"):
        scene.relays.begin()
    assert scene.engine.reports_streams == most
    assert scene.engine.reports_begins is (level == logging.DEBUG)
    assert scene.engine.shared == [3]
    scene.close()


def test_without_workers_none_is_offered() -> None:
    scene = Scene(most=0)
    scene.relays.begin()
    assert scene.engine.shared == []
    scene.close()


def test_the_engine_relays_what_is_attached(scene: Scene) -> None:
    stream, (ours, theirs) = scene.stream(), socket.socketpair()
    with theirs:
        scene.relays.attach(as_stream(stream), ours, "label")
        assert stream.said == ["attach"]
        assert ours.fileno() == -1
        assert scene.counters.snapshot() == {}


def test_a_line_tells_the_end_of_an_attached_stream(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    stream = scene.stream()
    stream.result = StreamResult(1, 2, StreamEnd.PEER_RESET)
    with caplog.at_level(logging.INFO, "asport_sync"):
        scene.relays.stream_ended(stream_ended(scene.connection, stream, ("203.0.113.7", 54321), 2.5))
        scene.relays.stream_ended(stream_ended(scene.connection, stream, ("2001:db8::1", 443)))
        scene.relays.stream_ended(stream_ended(scene.connection, stream, None))
    text = "reset by the peer after 2.5 s, 1 bytes to the tunnel, 2 bytes from it"
    assert [record.getMessage() for record in caplog.records] == [
        f"place 1: connection from 203.0.113.7:54321: {text}",
        f"place 1: connection from [2001:db8::1]:443: {text.replace('2.5', '1.5')}",
        f"place 1: connection from an unknown address: {text.replace('2.5', '1.5')}",
    ]


def test_a_line_tells_how_many_had_none(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asport_sync"):
        scene.relays.stream_ended(stream_ended(scene.connection, scene.stream(), left_out=1800))
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "1800 more connections closed (log rate limit)"
    assert second.startswith("place 1: connection from ")


def test_a_worker_relays_what_moves_much(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    stream = scene.stream()
    with caplog.at_level(logging.INFO, "asport_sync"), scene.large_transfer(stream) as theirs:
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "a worker relays it")
        assert scene.engine.shared == []
        stream.finish()
        assert theirs.recv(1) == b""
        scene.idle()
    assert scene.engine.shared == [1]  # the next may come
    assert stream.said == ["relay"]
    (line,) = [record.getMessage() for record in caplog.records]
    # The time before the worker counts: the bytes do, too.
    assert line.startswith("place 1: connection from 192.0.2.7:40000: finished after 1.")
    assert line.endswith(" s, 3 bytes to the tunnel, 4 bytes from it")


def test_a_stopped_pool_leaves_the_relay_to_the_engine(scene: Scene) -> None:
    assert scene.workers.stop(TIMEOUT)
    stream = scene.stream()
    with scene.large_transfer(stream):
        assert stream.said == ["attach"]
        assert scene.engine.shared == [1]


def test_without_a_thread_the_engine_relays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    stream = scene.stream()
    with scene.large_transfer(stream):
        assert stream.said == ["attach"]
        assert scene.engine.shared == [1]


def test_while_all_workers_dial_the_engine_relays(scene: Scene) -> None:
    """A stream that waited for one of them would stand still: a service that is not there takes seconds."""
    answered = threading.Event()
    for _ in range(WORKERS):
        scene.workers.submit(answered.wait, TIMEOUT)
    stream = scene.stream()
    with scene.large_transfer(stream):
        assert stream.said == ["attach"]
        assert scene.engine.shared == [1]
        answered.set()
    scene.idle()
    next_one = scene.stream()
    with scene.large_transfer(next_one):
        wait_until(lambda: next_one.said == ["relay"], TIMEOUT, "a worker relays it")


def test_what_no_worker_can_relay_is_relayed_by_the_engine(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 4):  # each gives its place back
        stream = scene.stream()
        stream.relay_problem = DESCRIPTORS
        with scene.large_transfer(stream):
            scene.idle()
        assert stream.said == ["relay", "attach"]
        assert scene.counter("relays_without_worker") == number
        assert scene.engine.shared == [1] * number
    assert "place 1: connection from 192.0.2.7:40000: no worker can relay it: Too many open files" in caplog.text
    assert not tracebacks(caplog)


def test_a_relay_that_cannot_begin_ends_its_stream(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The other end would wait for ever."""
    stream = scene.stream()
    stream.relay_problem = stream.attach_problem = DESCRIPTORS
    with scene.large_transfer(stream) as theirs:
        assert theirs.recv(1) == b""
        scene.idle()
        assert stream.said == ["relay", "attach", "reset"]
    assert scene.counter("streams_dropped_no_relay") == 1
    assert scene.engine.shared == [1]
    assert "place 1: connection from 192.0.2.7:40000 dropped: Too many open files" in caplog.text
    assert not tracebacks(caplog)  # foreseen: no traceback for each


@pytest.mark.parametrize("problem", [gone(), ZeroDivisionError("a fault")], ids=["gone", "fault"])
def test_a_worker_whose_relay_fails_is_free_again(
    scene: Scene, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stream = scene.stream()
    stream.relay_problem = problem
    with scene.large_transfer(stream) as theirs:
        assert theirs.recv(1) == b""
        scene.idle()
    assert stream.said == ["relay"]
    assert scene.engine.shared == [1]
    assert bool(tracebacks(caplog)) == isinstance(problem, ZeroDivisionError)


def test_the_end_of_the_engine_under_a_worker_is_no_error(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    stream = scene.stream()
    with scene.large_transfer(stream):
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "a worker relays it")
        scene.engine.stop()
        stream.finish()
        scene.idle()
    assert scene.engine.shared == []
    assert caplog.records == []


def test_a_stream_that_is_gone_is_not_attached(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    stream, (ours, theirs) = scene.stream(), socket.socketpair()
    stream.attach_problem = gone()
    with caplog.at_level(logging.INFO, "asport_sync"), theirs:
        scene.relays.attach(as_stream(stream), ours, "label")
        assert theirs.recv(1) == b""
    assert stream.said == ["attach"]
    assert scene.counter("streams_gone_before_relay") == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]


# --- the public side --------------------------------------------------------------------------------------------------


class Port:
    """A listener of a public port, on the events thread's timers."""

    def __init__(self, limit: RateLimit | None = None) -> None:
        self.clock = VirtualClock()
        self.timers = Timers(self.clock)
        self.counters = Counters()
        self.connection = FakeEngine().new_connection()
        self.sock = sockets.listen_tcp(HOST, 0)
        self.number = sockets.local_address(self.sock)[1]
        self.problem: EngineError | None = None
        self.tries = 0
        accept = self.connection.accept

        def accept_or_fail(listener: socket.socket, *, for_workers: bool = False) -> FakeListener:
            self.tries += 1
            if self.problem is not None:
                raise self.problem
            return accept(listener, for_workers=for_workers)

        self.connection.accept = accept_or_fail  # type: ignore[method-assign]
        self.public = PublicListener(
            as_connection(self.connection), self.sock, self.timers, self.counters, LOG, limit or RateLimit()
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.timers.run()


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.public.close()
    port.sock.close()


def test_the_engine_accepts_until_the_listener_is_closed(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asport_sync"):
        port.public.open()
        (listener,) = port.connection.listeners
        assert listener.sock is port.sock
        port.public.close()
        assert listener.closed
        port.public.close()
        port.pass_time(100)
    assert port.tries == 1
    assert port.sock.fileno() >= 0  # stays the caller's
    assert caplog.records == []


def test_a_listener_that_cannot_be_opened_is_tried_again(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.problem = DESCRIPTORS
    with caplog.at_level(logging.INFO, "asport_sync"):
        port.public.open()
        port.pass_time(0.9)
        assert port.tries == 1
        for _ in range(3):
            port.pass_time(1)
        assert port.counters.snapshot() == {"listener_open_errors": 4}
        port.problem = None
        port.pass_time(1)
        port.pass_time(100)
    assert len(port.connection.listeners) == 1
    assert port.tries == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"port {port.number}: cannot accept connections yet: Too many open files; retrying",
        f"port {port.number}: accepting connections now",
    ]


def test_a_listener_that_can_never_be_opened_is_given_up(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.problem = DESCRIPTORS
    port.public.open()
    for _ in range(100):
        port.pass_time(1)
    assert port.tries == 60
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert f"port {port.number}: cannot accept connections: Too many open files" in caplog.text


def test_a_listener_that_was_closed_is_not_opened_any_more(port: Port) -> None:
    port.problem = DESCRIPTORS
    port.public.open()
    port.public.close()
    port.problem = None
    port.pass_time(100)
    assert port.tries == 1
    assert port.connection.listeners == []


def test_without_a_connection_nothing_is_accepted(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.connection.is_gone = True
    port.public.open()
    port.pass_time(100)
    assert port.tries == 1
    assert port.counters.snapshot() == {}
    port.public.close()
    assert caplog.records == []


def test_a_listener_that_is_gone_is_closed(port: Port) -> None:
    port.public.open()
    port.connection.listeners[0].close()
    port.public.close()
    port.public.close()


def test_a_share_that_is_used_up_is_not_called_a_failure(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.public.open()
    port.public.failed(errno.EDQUOT)
    assert caplog.messages == [
        f"port {port.number}: its fair share of descriptors is used up and few are free; further connections wait "
        "in the backlog (LimitNOFILE, ulimit -n)"
    ]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL])
def test_no_error_ends_a_listener(port: Port, number: int, caplog: pytest.LogCaptureFixture) -> None:
    port.public.open()
    port.public.failed(number)
    assert not port.connection.listeners[0].closed
    assert port.tries == 1
    (record,) = caplog.records
    assert record.getMessage() == f"port {port.number}: accept failed: {os.strerror(number)}"
    assert record.levelname == "WARNING"


def test_connections_over_the_stream_limit_are_told_of(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.public.open()
    port.public.failed(0)
    assert [record.getMessage() for record in caplog.records] == [
        f"port {port.number}: connections dropped: too many are waiting for the client"
    ]


def test_troubles_of_all_listeners_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    limit = RateLimit(most=5)
    ports = [Port(limit), Port(limit)]
    for port in ports:
        port.public.open()
        for _ in range(10):
            port.public.failed(errno.EMFILE)
        port.public.close()
        port.sock.close()
    assert len(caplog.records) == 5


# --- the local service ------------------------------------------------------------------------------------------------


def serve(scene: Scene, service: LocalService, source: Address | None = PEER) -> FakeStream:
    stream = scene.stream()
    scene.workers.submit(service.serve, as_connection(scene.connection), as_stream(stream), source, PUBLIC)
    return stream


def test_the_service_is_connected_to_and_the_engine_relays(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address))
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
        wait_until(lambda: echo.accepted == 1, TIMEOUT, "the service has the connection")
        scene.idle()
        assert stream.attached is not None
        assert stream.attached.getpeername() == echo.address
        assert scene.counters.snapshot() == {}


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_goes_before_everything_else(scene: Scene, version: int) -> None:
    with sockets.listen_tcp(HOST, 0) as listener:
        target = sockets.local_address(listener)
        listener.settimeout(TIMEOUT)
        stream = serve(scene, scene.service(target, proxy_version=version))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(TIMEOUT)
            expected = proxy_header.tcp_header(version, PEER, PUBLIC)
            assert accepted.recv(1000) == expected
            wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
            # The engine writes no header: every connection is Python's to make.
            scene.idle()
            assert scene.connection.dials == []


def test_a_header_without_a_source_is_a_refusal(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address, proxy_version=2), None)
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
        assert scene.counter("connections_dropped_no_source") == 1


def test_without_a_header_a_source_is_not_needed(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address), None)
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")


def test_a_service_that_is_not_there_is_a_refusal(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    stream = serve(scene, scene.service((HOST, port)))
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert scene.counter("connections_dropped_local_service") == 1
    expected = f"connection from 203.0.113.7:54321 dropped: cannot reach {HOST}:{port}: Connection refused"
    assert expected in caplog.text


def test_a_service_that_is_not_there_is_told_of_once_a_minute(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    caplog.set_level(logging.DEBUG)
    service = scene.service((HOST, free_port()), proxy_version=1)
    streams = [serve(scene, service) for _ in range(30)]
    wait_until(lambda: all(stream.said == ["refuse"] for stream in streams), TIMEOUT, "all are refused")
    assert len(warnings()) == 1
    assert caplog.text.count("cannot reach") == 30
    with TcpEcho() as echo:
        # Another kind of failure has a line of its own.
        service.host, service.port = echo.address
        stream = serve(scene, service, None)
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert len(warnings()) == 2
    service.port = free_port()
    scene.clock.advance(60)
    stream = serve(scene, service)
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert len(warnings()) == 3
    assert warnings()[2].endswith("Connection refused (and 29 more like this)")


def test_a_refusal_of_a_stream_that_is_gone_is_no_error(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    class Gone(FakeStream):
        def refuse(self) -> None:
            super().refuse()
            raise gone()

    stream = Gone(b"")
    service = scene.service((HOST, free_port()))
    scene.workers.submit(service.serve, as_connection(scene.connection), as_stream(stream), PEER, PUBLIC)
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
    assert "failed" not in caplog.text


def test_stopping_ends_a_dial_without_a_word(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.stop.set()
    with sockets.listen_tcp(HOST, 0) as listener:
        stream = serve(scene, scene.service(sockets.local_address(listener)))
        wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
        # Loopback may have connected before anybody could look at the signal.
        assert stream.said in ([], ["attach"])
    assert caplog.records == []


# --- what the engine dials alone --------------------------------------------------------------------------------------


class Names:
    """Answers in place of the system's resolver, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[sockets.SocketAddress] = []
        self.asked = 0
        monkeypatch.setattr(sockets, "resolve", self._resolve)

    def _resolve(self, host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        assert (host, kind) == ("name.example", socket.SOCK_STREAM)
        self.asked += 1
        return self.answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.mark.parametrize("host", [HOST, "::1"])
@pytest.mark.parametrize(("timeout", "expected"), [(5.0, 1.0), (0.5, 0.5)])
def test_a_literal_address_is_the_engine_s_at_once(scene: Scene, host: str, timeout: float, expected: float) -> None:
    service = scene.service((host, 8080), dial_timeout=timeout)
    service.announce(as_connection(scene.connection))
    assert scene.connection.dials == [((host, 8080), expected, float("inf"))]


def test_what_the_engine_knows_is_not_told_again(scene: Scene) -> None:
    with TcpEcho() as echo:
        service = scene.service(echo.address)
        service.announce(as_connection(scene.connection))
        scene.clock.advance(1e6)
        # One that the engine could not connect for: it goes on trying.
        assert serve(scene, service) is scene.streams[-1]
        scene.idle()
        assert scene.streams[-1].said == ["attach"]
    assert len(scene.connection.dials) == 1


@pytest.mark.parametrize("host", [HOST, "name.example"])
def test_with_a_header_the_engine_dials_nothing(scene: Scene, names: Names, host: str) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        service = scene.service((host, echo.address[1]), proxy_version=1)
        if host == HOST:
            service.announce(as_connection(scene.connection))
        else:
            serve(scene, service)
            scene.idle()
    assert scene.connection.dials == []


def test_the_address_of_a_name_is_the_engine_s_for_a_while(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        service = scene.service(("name.example", 1), dial_timeout=5.0)
        service.announce(as_connection(scene.connection))
        assert scene.connection.dials == []
        for number in (1, 2):
            # A crowd comes before the engine knows.
            for _ in range(5):
                serve(scene, service)
            scene.idle()
            assert scene.connection.dials == [(echo.address, 1.0, 10.0)] * number
            scene.clock.advance(9.9)
            serve(scene, service)
            scene.idle()
            assert len(scene.connection.dials) == number
            scene.clock.advance(0.2)
        assert names.asked == 12


def test_the_engine_gets_the_address_that_answers(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [(HOST, free_port()), echo.address]
        service = scene.service(("name.example", 1))
        serve(scene, service)
        scene.idle()
        assert scene.connection.dials == [(echo.address, 1.0, 10.0)]


def test_a_name_whose_service_does_not_answer_is_not_the_engine_s(scene: Scene, names: Names) -> None:
    names.answer = [(HOST, free_port())]
    stream = serve(scene, scene.service(("name.example", 1)))
    scene.idle()
    assert stream.said == ["refuse"]
    assert scene.connection.dials == []


def test_each_connection_is_told(scene: Scene) -> None:
    other = scene.engine.new_connection()
    service = scene.service((HOST, 8080))
    for connection in (scene.connection, other):
        service.announce(as_connection(connection))
    assert len(scene.connection.dials) == len(other.dials) == 1


def test_what_a_connection_knew_goes_with_it(scene: Scene, names: Names) -> None:
    with TcpEcho() as echo:
        names.answer = [echo.address]
        literal, named = scene.service(echo.address), scene.service(("name.example", 1))
        literal.announce(as_connection(scene.connection))
        scene.connection.is_gone = True
        literal.forget(as_connection(scene.connection))
        literal.forget(as_connection(scene.connection))
        # One whose worker is late.
        scene.workers.submit(named.serve, as_connection(scene.connection), as_stream(scene.stream()), PEER, PUBLIC)
        scene.idle()
        assert scene.streams[-1].said == ["attach"]
    assert literal._told == named._told == {}
