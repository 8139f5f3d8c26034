"""Starting and stopping, in one process and several, against an engine that is played."""

from __future__ import annotations

import itertools
import linecache
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import asport_sync
from asport_sync.client.client import Client
from asport_sync.client.session import ClientSession
from asport_sync.client.shared import Shared
from asport_sync.client.stats import ClientStats
from asport_sync.config import ClientConfig, ServerConfig, TunnelConfig
from asport_sync.engine import Engine, LogRecord
from asport_sync.errors import ConfigError, ConfigErrors, LifecycleError
from asport_sync.host import lifecycle
from asport_sync.host.host import Host
from asport_sync.host.lifecycle import State, Step
from asport_sync.server.server import Server
from asport_sync.server.session import ServerSession
from asport_sync.server.stats import ServerStats
from tests.host.fake_engine import FakeEngine
from tests.support.waiting import wait_until

PEM = b"-----BEGIN CERTIFICATE-----\n"
TIMEOUT = 10.0
SERVER_OPTIONS: dict[str, Any] = {"certificate": PEM, "private_key": PEM, "proxies": []}
CLIENT_OPTIONS: dict[str, Any] = {
    "server": "192.0.2.1:443",
    "local": "127.0.0.1:9",
    "uuid": uuid.UUID(int=1),
    "password": "open sesame",
}


class NoticingServerSession(ServerSession):
    """Notices that its status is asked for."""

    def __init__(self, config: ServerConfig, host: Host, asked: threading.Event) -> None:
        super().__init__(config, host)
        self._status_asked = asked

    @property
    def status(self) -> str:
        self._status_asked.set()
        return super().status


class NoticingClientSession(ClientSession):
    """Notices that its status is asked for."""

    def __init__(self, config: TunnelConfig, host: Host, shared: Shared, asked: threading.Event) -> None:
        super().__init__(config, host, shared=shared)
        self._status_asked = asked

    @property
    def status(self) -> str:
        self._status_asked.set()
        return super().status


class PlayedServer(Server):
    """A server whose engines the test can reach."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"listen": "127.0.0.1:0", **SERVER_OPTIONS, **options})
        self.engines: list[FakeEngine] = []
        self.waiting = threading.Event()

    def _new_engine(self) -> Engine:
        self.engines.append(FakeEngine())
        return self.engines[-1].as_real()

    def _new_session(self, host: Host) -> ServerSession:
        return NoticingServerSession(self.config, host, self.waiting)


class PlayedClient(Client):
    """A client whose engines the test can reach. Nobody ever answers it."""

    def __init__(self) -> None:
        super().__init__(**CLIENT_OPTIONS)
        self.engines: list[FakeEngine] = []
        self.waiting = threading.Event()

    def _new_engine(self) -> Engine:
        self.engines.append(FakeEngine())
        return self.engines[-1].as_real()

    def _new_session(self, host: Host, tunnel: TunnelConfig, shared: Shared, port: int | None) -> ClientSession:
        return NoticingClientSession(tunnel, host, shared, self.waiting)


Played = PlayedServer | PlayedClient
MAKERS: list[Callable[[], Played]] = [PlayedServer, PlayedClient]


def assert_without_figures(played: Server | Client, *, running: bool) -> None:
    stats = played.stats()
    assert stats == (ServerStats if isinstance(played, Server) else ClientStats)(running)
    assert stats.uptime is None
    assert stats.as_dict() == {"running": running}


@pytest.mark.parametrize("make", MAKERS)
def test_start_and_stop_and_start_again(make: Callable[[], Played]) -> None:
    played = make()
    assert not played.running
    assert_without_figures(played, running=False)
    for times in (1, 2):
        played.start()
        assert played.running
        assert played.stats().running
        with pytest.raises(LifecycleError, match="already started"):
            played.start()
        played.stop()
        played.stop()
        assert not played.running
        assert [(each.started, each.closed) for each in played.engines] == [(1, 1)] * times
    assert_without_figures(played, running=False)


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_never_started_can_be_stopped(make: Callable[[], Played]) -> None:
    played = make()
    played.stop()
    with pytest.raises(LifecycleError, match="is not started"):
        played.wait_ready(0)


@pytest.mark.parametrize("make", MAKERS)
def test_leaving_the_block_stops(make: Callable[[], Played]) -> None:
    with make() as played:
        assert played.running
    assert not played.running
    with pytest.raises(ZeroDivisionError), make() as played:
        raise ZeroDivisionError
    assert not played.running


def test_a_server_is_ready_with_an_address() -> None:
    with PlayedServer() as server:
        host, port = server.wait_ready(TIMEOUT)
        assert (host, port) == server.address
        assert host == "127.0.0.1"
        assert port > 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((host, port))  # the engine took its own descriptor; the played one has none
    with pytest.raises(LifecycleError):
        _ = server.address


def test_a_start_that_fails_leaves_nothing_and_may_be_tried_again() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        server = PlayedServer(listen=other.getsockname())
        with pytest.raises(ConfigError, match="cannot listen"):
            server.start()
        assert not server.running
        assert server.engines[0].closed == 1
    server.start()
    server.stop()


class Interrupted(FakeEngine):
    """An engine during whose start, stop or counters a signal comes; its handler calls ``handler``, once."""

    def __init__(self, method: str, handler: Callable[[], object]) -> None:
        super().__init__()
        self._method = method
        self._handler: Callable[[], object] | None = handler

    def _signal(self, method: str) -> None:
        if method == self._method and self._handler is not None:
            handler, self._handler = self._handler, None
            handler()

    def start(self) -> None:
        super().start()
        self._signal("start")

    def stop(self) -> None:
        self._signal("stop")
        super().stop()

    def counters(self) -> dict[str, int]:
        self._signal("counters")
        return super().counters()


class InterruptedServer(PlayedServer):
    """A server whose first engine is an interrupted one."""

    def __init__(self, method: str, handler: Callable[[Server], object]) -> None:
        super().__init__()
        self._interruption: tuple[str, Callable[[Server], object]] | None = (method, handler)

    def _new_engine(self) -> Engine:
        if self._interruption is None:
            return super()._new_engine()
        (method, handler), self._interruption = self._interruption, None
        self.engines.append(Interrupted(method, lambda: handler(self)))
        return self.engines[-1].as_real()


def test_a_handler_may_stop_what_its_thread_is_stopping() -> None:
    running: list[bool] = []

    def handler(server: Server) -> None:
        server.stop()
        running.append(server.running)

    server = InterruptedServer("stop", handler)
    for times in (1, 2):
        server.start()
        server.stop()
        assert not server.running
        assert [each.closed for each in server.engines] == [1] * times
    assert running == [True]


def test_a_handler_may_stop_what_its_thread_is_starting() -> None:
    server = InterruptedServer("start", Server.stop)
    server.start()
    assert not server.running
    assert [(each.started, each.closed) for each in server.engines] == [(1, 1)]
    server.start()
    assert server.running
    server.stop()


def test_a_handler_may_stop_a_start_that_has_just_begun() -> None:
    class InterruptedAtOnce(PlayedServer):
        def _step(self, step: Step) -> bool:
            done = super()._step(step)
            if step is Step.START:
                self.stop()  # as by a signal handler, in the thread inside start()
            return done

    server = InterruptedAtOnce()
    starter = threading.Thread(target=server.start, daemon=True)
    starter.start()
    starter.join(TIMEOUT)
    assert not starter.is_alive()
    assert not server.running
    assert [each.closed for each in server.engines] == [1]


def test_a_handler_may_not_start_what_its_thread_is_starting() -> None:
    def handler(server: Server) -> None:
        with pytest.raises(LifecycleError, match="already started"):
            server.start()

    with InterruptedServer("start", handler) as server:
        assert server.running
        assert len(server.engines) == 1


def test_a_handler_may_stop_a_start_that_another_thread_waits_to_stop() -> None:
    other: list[threading.Thread] = []

    def handler(server: Server) -> None:
        other.append(threading.Thread(target=server.stop))
        other[0].start()
        wait_until(lambda: server._state is State.CANCELLED, TIMEOUT, "the other thread waits for the start")
        server.stop()

    server = InterruptedServer("start", handler)
    server.start()
    other[0].join(TIMEOUT)
    assert not other[0].is_alive()
    assert not server.running
    assert server.engines[0].closed == 1


def test_a_start_that_fails_forgets_that_a_handler_wanted_it_stopped() -> None:
    def handler(server: Server) -> None:
        server.stop()
        raise ZeroDivisionError

    server = InterruptedServer("start", handler)
    with pytest.raises(ZeroDivisionError):
        server.start()
    assert server.engines[0].closed == 1
    server.start()
    assert server.running
    server.stop()


def test_a_handler_may_stop_what_its_thread_reads_the_figures_of() -> None:
    running: list[bool] = []

    def handler(server: Server) -> None:
        server.stop()
        running.append(server.running)
        assert_without_figures(server, running=True)

    server = InterruptedServer("counters", handler)
    server.start()
    assert server.stats().engine == server.engines[0].counters()
    # The stop waits until the figures, and the locks that they need, are done with.
    assert running == [True]
    assert not server.running
    assert server.engines[0].closed == 1
    assert_without_figures(server, running=False)
    server.start()
    assert server.stats().running
    server.stop()


IN_THREAD: dict[str, Callable[[Host, Callable[[], object]], object]] = {
    "events": lambda host, call: host.call(call),
    "pump": lambda host, call: host.pump.call(call),
    "worker": lambda host, call: host.workers.submit(call),
}


def run_in(thread: str, host: Host, call: Callable[[], object]) -> threading.Event:
    """Makes a call in a thread of a host, as a log handler would; the result is set when it has returned."""
    done = threading.Event()

    def call_and_tell() -> None:
        call()
        done.set()

    IN_THREAD[thread](host, call_and_tell)
    return done


def threads_of(host: Host) -> list[threading.Thread]:
    return [host._events, host.pump._thread]


@pytest.mark.parametrize("thread", IN_THREAD)
@pytest.mark.parametrize("make", MAKERS)
def test_a_log_handler_may_stop_it_in_any_thread(make: Callable[[], Played], thread: str) -> None:
    played = make()
    played.start()
    host = played._host
    assert host is not None
    assert run_in(thread, host, played.stop).wait(TIMEOUT)
    for each in threads_of(host):
        each.join(TIMEOUT)
        assert not each.is_alive()
    assert not played.running
    assert played.engines[0].closed == 1
    played.start()
    played.stop()


@pytest.mark.parametrize("thread", IN_THREAD)
@pytest.mark.parametrize("method", ["start", "stop"])
def test_a_log_handler_may_stop_what_another_thread_starts_or_stops(method: str, thread: str) -> None:
    returned: list[bool] = []

    def handler(server: Server) -> None:
        host = server._host
        assert host is not None
        returned.append(run_in(thread, host, server.stop).wait(TIMEOUT))

    server = InterruptedServer("stop", handler)
    if method == "start":

        class StartedSlowly(InterruptedServer):
            def _new_session(self, host: Host) -> ServerSession:
                handler(self)
                return super()._new_session(host)

        server = StartedSlowly("", handler)
    server.start()
    server.stop()
    assert returned == [True]
    assert not server.running
    assert [each.closed for each in server.engines] == [1]


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Call it with a KeyboardInterrupt before its line of this number; return whether it has so many."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != lifecycle.__file__:
            return None
        # The interpreter handles no signal between the end of a block and the release of its lock; tracing could.
        leaves = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")
        if event == "line" and frame.f_code.co_name in ("start", "_step") and not leaves:
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_start_may_be_interrupted_anywhere() -> None:
    """As by Ctrl-C. Nothing is left, no other thread waits for ever, and it can be started again."""
    for line in itertools.count(1):
        server = PlayedServer()
        if not interrupted_at(line, server.start):
            break
        other = threading.Thread(target=server.stop)
        other.start()
        other.join(TIMEOUT)
        assert not other.is_alive(), line
        assert not server.running, line
        assert all(engine.closed == 1 for engine in server.engines), line
        server.start()
        server.stop()
    server.stop()
    assert line > 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("make", MAKERS)
def test_a_signal_ends_run_forever(make: Callable[[], Played], number: signal.Signals) -> None:
    played = make()
    before = signal.getsignal(number)

    def send() -> None:
        wait_until(lambda: played.running, TIMEOUT, "it runs")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    played.run_forever()
    sender.join(TIMEOUT)
    assert not played.running
    assert played.engines[0].closed == 1
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("make", MAKERS)
def test_stop_ends_run_forever_in_another_thread(make: Callable[[], Played]) -> None:
    played = make()
    played.start()
    runner = threading.Thread(target=played.run_forever)
    runner.start()
    assert played.waiting.wait(TIMEOUT)
    played.stop()
    runner.join(TIMEOUT)
    assert not runner.is_alive()
    assert len(played.engines) == 1


def test_an_engine_that_ends_by_itself_ends_run_forever() -> None:
    server = PlayedServer()
    server.start()
    server.engines[0].stop()
    server.run_forever()
    assert not server.running


def test_systemd_is_told_of_start_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"asport-lifecycle-{os.getpid()}"
        manager.bind("\0" + name)
        manager.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        server = PlayedServer()
        runner = threading.Thread(target=server.run_forever)
        runner.start()
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=accepting clients on 127.0.0.1:")
        server.stop()
        assert manager.recv(1000) == b"STOPPING=1"
        runner.join(TIMEOUT)


@pytest.mark.parametrize("make", MAKERS)
def test_a_forked_child_must_not_use_its_parents_tunnel(make: Callable[[], Played]) -> None:
    with make() as played:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                refused = 0
                for call in (played.start, played.wait_ready, played.run_forever):
                    try:
                        call()
                    except LifecycleError:
                        refused += 1
                played.stop()
                status = 0 if refused == 3 and not played.running else 2
            finally:
                os._exit(status)
        deadline = time.monotonic() + TIMEOUT
        pid = 0
        while pid == 0 and time.monotonic() < deadline:
            pid, result = os.waitpid(child, os.WNOHANG)
        assert pid == child
        assert os.waitstatus_to_exitcode(result) == 0
        assert played.running


def test_a_child_forked_during_a_start_must_not_use_it_either() -> None:
    status: list[int] = []

    def fork(server: Server) -> None:
        child = os.fork()
        if child == 0:
            exit_code = 1
            try:
                stopping = threading.Thread(target=server.stop, daemon=True)
                stopping.start()
                stopping.join(TIMEOUT / 2)
                with pytest.raises(LifecycleError, match="parent process"):
                    server.start()
                exit_code = 2 if stopping.is_alive() else 0
            finally:
                os._exit(exit_code)
        status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with InterruptedServer("start", fork) as server:
        assert server.running
    assert status == [0]


def test_what_was_not_started_may_be_started_in_a_child() -> None:
    server = PlayedServer()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with server:
                status = 0
        finally:
            os._exit(status)
    _, result = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(result) == 0


def test_the_engine_s_log_goes_to_a_logger_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with PlayedServer() as server:
        server.engines[0].post(LogRecord(30, "100 % of the table"))
        wait_until(lambda: caplog.records, TIMEOUT, "the line is logged")
    assert [(each.name, each.levelname, each.getMessage()) for each in caplog.records] == [
        ("asport_sync.engine", "WARNING", "100 % of the table")
    ]


def test_an_event_that_cannot_be_handled_is_logged_and_the_next_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    with PlayedServer() as server:
        server.engines[0].post("nonsense")  # type: ignore[arg-type]
        server.engines[0].post(LogRecord(40, "after it"))
        wait_until(lambda: len(caplog.records) == 2, TIMEOUT, "both are logged")
        counters = server.stats().counters
    assert {name: count for name, count in counters.items() if count} == {"events_failed": 1}
    assert caplog.records[1].getMessage() == "after it"


def test_want_of_memory_ends_no_thread(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [MemoryError(), MemoryError()]
    wait = FakeEngine.wait

    def fails(engine: FakeEngine, timeout: float | None = None) -> list[Any]:
        if failures:
            raise failures.pop()
        return wait(engine, timeout)

    monkeypatch.setattr(FakeEngine, "wait", fails)
    with PlayedServer() as server:
        server.engines[0].post(LogRecord(40, "after it"))
        wait_until(lambda: len(caplog.records) == 3, TIMEOUT, "it goes on")
    assert caplog.records[2].getMessage() == "after it"


def test_options_and_configurations_are_taken_alike() -> None:
    server_config = ServerConfig.from_options(server="127.0.0.1:1", **SERVER_OPTIONS)
    assert Server.from_config(server_config).config is server_config
    assert Server(listen="127.0.0.1:1", **SERVER_OPTIONS).config == server_config
    assert Server(server="127.0.0.1:1", **SERVER_OPTIONS).config == server_config
    client_config = ClientConfig.from_options(**CLIENT_OPTIONS)
    assert Client.from_config(client_config).config is client_config
    assert Client(**CLIENT_OPTIONS).config == client_config


def test_none_is_an_option_that_is_not_given() -> None:
    config = Client(**CLIENT_OPTIONS, receive_memory=None, password_file=None, certificates=None).config
    assert config == ClientConfig.from_options(**CLIENT_OPTIONS)
    assert Server(None, server="127.0.0.1:1", reset_key=None, **SERVER_OPTIONS).config.reset_key is None
    with pytest.raises(ConfigErrors) as caught:
        Server(None, server=None, **SERVER_OPTIONS)
    assert str(caught.value) == "server: this key is required"


def test_wrong_options_are_a_configuration_error() -> None:
    too_few: dict[str, Any] = {"server": "name.example:443"}
    with pytest.raises(ConfigError):
        Client(**too_few)
    too_many: dict[str, Any] = {**SERVER_OPTIONS, "no_such_key": 1}
    with pytest.raises(ConfigError):
        Server(listen="127.0.0.1:0", **too_many)
    with pytest.raises(ConfigError, match="listen"):
        Server(listen="127.0.0.1:0", server="127.0.0.1:0", **SERVER_OPTIONS)


def test_the_package_offers_both() -> None:
    assert asport_sync.Client is Client
    assert asport_sync.Server is Server
    assert set(asport_sync.__all__) <= set(dir(asport_sync))
    assert all(hasattr(asport_sync, name) for name in asport_sync.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = asport_sync.nothing_such  # type: ignore[attr-defined]
