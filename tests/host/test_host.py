"""The host: calls for its events thread, and whose events are whose."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast, get_args

import pytest

from asport_sync import engine as real
from asport_sync.client.session import ClientSession
from asport_sync.config import ClientConfig, ServerConfig
from asport_sync.engine import CloseCause, Connection, Endpoint, Engine, Event, Stream
from asport_sync.errors import ConfigError, LifecycleError
from asport_sync.host.host import Host
from asport_sync.host.session import Session
from asport_sync.server.session import ServerSession
from asport_sync.wire import Connect, encode
from tests.host import fake_engine as fake
from tests.host.fake_engine import FakeConnection, FakeEngine, FakeStream
from tests.runtime.clock import VirtualClock
from tests.support.waiting import wait_until

TIMEOUT = 10.0
PEM = b"-----BEGIN CERTIFICATE-----\n"
log = logging.getLogger("asport_sync.test")


class Recorder(Session):
    """A session that notes what it is asked for."""

    def __init__(self, host: Host, name: str = "session") -> None:
        super().__init__(host, log)
        self.name = name
        self.calls: list[tuple[str, str]] = []  # what, and in which thread
        self.events: list[Event] = []
        self.problem: Exception | None = None

    def _note(self, what: str) -> None:
        self.calls.append((what, threading.current_thread().name))

    @property
    def status(self) -> str:
        return f"{self.name} is ready"

    def prepare(self) -> None:
        self._note("prepare")

    def open(self) -> None:
        self._note("open")
        if self.problem is not None:
            raise self.problem

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> None:
        self._note("drain")

    def connections(self) -> list[Connection]:
        return []

    def stream_label(self, connection: Connection) -> str:
        return f"{self.name}: "

    def end(self, grace_period: float, ended: Callable[[], object]) -> None:
        self._note("end")
        ended()

    def close(self) -> None:
        self._note("close")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def host(engine: FakeEngine) -> Iterator[Host]:
    host = Host(engine.as_real(), 0, 0.0, log)
    host.start()
    yield host
    host.stop(TIMEOUT)


def connection_of(engine: FakeEngine, host: Host, session: Session) -> FakeConnection:
    connection = engine.new_connection()
    host.run(host.router.add_connection, cast(Connection, connection), session)
    return connection


def test_calls_run_in_the_events_thread_in_order(host: Host) -> None:
    names: list[tuple[int, str]] = []
    for number in range(100):
        host.call(lambda number=number: names.append((number, threading.current_thread().name)))
    assert host.run(lambda: threading.current_thread().name) == "asport-events"
    assert names == [(number, "asport-events") for number in range(100)]


def test_an_exception_of_a_call_is_its_caller_s(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        host.run(lambda: 1 // 0)
    assert caplog.records == []
    host.call(lambda: 1 // 0)  # nobody waits for this one
    assert host.run(lambda: "still there") == "still there"
    assert [record.getMessage() for record in caplog.records] == ["callback failed"]


def test_after_the_end_nobody_waits(engine: FakeEngine) -> None:
    host = Host(engine.as_real(), 0, 0.0, log)
    host.start()
    host.stop(TIMEOUT)
    with pytest.raises(LifecycleError, match="stopped"):
        host.run(lambda: None)


def test_a_session_is_prepared_here_opened_there_and_closed_at_the_end(engine: FakeEngine) -> None:
    host = Host(engine.as_real(), 0, 0.0, log)
    host.start()
    session = Recorder(host)
    host.add(session)
    assert host.status == "session is ready"
    host.stop(TIMEOUT)
    here = threading.current_thread().name
    assert session.calls == [("prepare", here), ("open", "asport-events"), ("close", here)]


def test_a_session_that_cannot_be_opened_says_why(host: Host) -> None:
    session = Recorder(host)
    session.problem = ConfigError("in use")
    with pytest.raises(ConfigError, match="in use"):
        host.add(session)


def test_a_session_that_comes_after_the_draining_is_drained_as_well(host: Host) -> None:
    host.drain()
    late = Recorder(host)
    host.add(late)
    assert [what for what, _ in late.calls][-2:] == ["open", "drain"]
    assert host.is_idle()


def test_the_state_is_reported_soon_and_at_most_once_a_second(engine: FakeEngine) -> None:
    clock = VirtualClock()
    host = Host(engine.as_real(), 0, 0.0, log, clock=clock)
    reported: list[tuple[str, str]] = []
    host.report = lambda text: reported.append((text, threading.current_thread().name))
    host.start()
    try:
        host.add(Recorder(host))
        for _ in range(3):
            host.run(host.report_status)
        wait_until(lambda: reported, TIMEOUT, "it is reported")
        host.run(host.report_status)
        host.run(lambda: None)
        assert reported == [("session is ready", "asport-events")]
        clock.advance(1.0)
        host.run(lambda: None)  # the timers are looked at after it
        wait_until(lambda: len(reported) == 2, TIMEOUT, "it is reported again")
    finally:
        host.stop(TIMEOUT)


def test_a_host_is_ready_once_all_its_sessions_are(host: Host) -> None:
    class Late(Recorder):
        is_ready = False

        @property
        def ready(self) -> bool:
            return self.is_ready

    late = Late(host)
    for session in (Recorder(host), late):
        host.add(session)
    assert not host.ready
    late.is_ready = True
    assert host.ready


def test_the_watchdog_is_fed_while_all_threads_make_progress(host: Host, engine: FakeEngine) -> None:
    threads: list[str] = []
    host.watch_over(0.01, lambda: threads.append(threading.current_thread().name))
    wait_until(lambda: len(threads) >= 3, TIMEOUT, "it is fed again and again")
    assert set(threads) == {"asport-events"}
    assert engine.pings >= 3


@pytest.mark.parametrize("stuck", ["engine", "events", "pump"])
def test_the_watchdog_is_not_fed_while_a_thread_is_stuck(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    fed: list[None] = []
    host.watch_over(0.01, lambda: fed.append(None))
    wait_until(lambda: fed, TIMEOUT, "it is fed")
    is_stuck, goes_on = threading.Event(), threading.Event()

    def block() -> None:
        is_stuck.set()
        goes_on.wait(TIMEOUT)

    if stuck == "engine":
        monkeypatch.setattr(engine, "ping", block)
    elif stuck == "events":
        host.call(block)
    else:
        host.pump.call(block)
    try:
        assert is_stuck.wait(TIMEOUT)
        before = len(fed)
        time.sleep(0.2)  # twenty times the interval
        assert len(fed) <= before + 1  # the one that had been on its way
    finally:
        goes_on.set()
    wait_until(lambda: len(fed) > before + 1, TIMEOUT, "it is fed again")


def test_sessions_get_the_events_of_their_own_connections(host: Host, engine: FakeEngine) -> None:
    sessions = [Recorder(host, name) for name in ("one", "two")]
    first, second = (connection_of(engine, host, session) for session in sessions)
    for connection in (first, second, first):
        engine.post(fake.silence(connection, silent=True))
    wait_until(lambda: [len(session.events) for session in sessions] == [2, 1], TIMEOUT, "all are handled")
    assert host.run(host._stream_label, cast(Connection, second)) == "two: "
    engine.post(fake.closed(first, CloseCause.IDLE))
    engine.post(fake.silence(first, silent=True))
    wait_until(lambda: len(host.router) == 1, TIMEOUT, "one is over")
    assert host.run(lambda: len(sessions[0].events)) == 3  # Closed was the last
    assert host.run(host._stream_label, cast(Connection, first)) == ""


def test_connections_of_an_endpoint_belong_to_its_session(host: Host, engine: FakeEngine) -> None:
    session = Recorder(host)
    host.run(host.router.add_endpoint, cast(Endpoint, "endpoint"), session)
    accepted, failed = engine.new_connection(), engine.new_connection()
    engine.post(fake.connected(accepted))
    engine.post(fake.silence(accepted, silent=True))
    # A handshake that failed: Closed is the only event.
    engine.post(fake.closed(failed, CloseCause.TLS, endpoint="endpoint"))
    wait_until(lambda: len(session.events) == 3, TIMEOUT, "all are handled")
    assert host.run(lambda: len(host.router)) == 1


def test_a_stream_of_a_connection_that_is_over_is_refused(host: Host, engine: FakeEngine) -> None:
    stream = FakeStream(encode(Connect(None)))
    engine.post(fake.stream_opened(engine.new_connection(), stream))
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")


@pytest.mark.parametrize("kind", [Connection, Endpoint, Stream])
def test_handles_of_two_engines_are_not_equal(kind: type[Connection] | type[Endpoint] | type[Stream]) -> None:
    """Ids are unique within an engine only."""
    one, other = Engine(), Engine()
    try:
        assert kind(one, 1) == kind(one, 1)
        assert kind(one, 1) != kind(one, 2)
        assert kind(one, 1) != kind(other, 1)
        assert len({kind(one, 1), kind(one, 1), kind(other, 1)}) == 2
    finally:
        one.close()
        other.close()


def test_the_same_id_in_two_engines_is_two_connections(engine: FakeEngine) -> None:
    """What the router depends on, with real handles."""
    engines: list[Any] = [Engine(), Engine()]
    try:
        sessions = {Connection(each, 7): each for each in engines}
        assert [sessions[Connection(each, 7)] for each in engines] == engines
    finally:
        for each in engines:
            each.close()


# Events that only one side's connections have.
OF_CLIENTS = {real.AssociationWanted, real.Silence, real.UdpRefused}
OF_SERVERS = {real.AcceptFailed, real.SourceUnknown}


def test_every_event_has_a_handler(host: Host) -> None:
    """An event without one would be an error in the log, and nothing else."""
    every = set(get_args(real.Event))
    config = ClientConfig.from_options(server="192.0.2.1:443", local="127.0.0.1:9", uuid="0" * 32, password="x")
    client = ClientSession(config.tunnels[""], host)
    server = ServerSession(
        ServerConfig.from_options(server="127.0.0.1:0", certificate=PEM, private_key=PEM, proxies=[]), host
    )
    shared = set(host._handlers)
    assert set(client._handlers) == every - shared - OF_SERVERS
    assert set(server._handlers) == every - shared - OF_CLIENTS
