"""Health checks: when a service counts as healthy, and what one check does."""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from asport_sync.client import health
from asport_sync.client.address_order import AddressOrder
from asport_sync.client.health import HealthChecks, check
from asport_sync.config import HealthConfig, HostPort, LocalTargets, UnixSocket
from asport_sync.errors import LifecycleError
from asport_sync.host.host import Host
from asport_sync.runtime import sockets
from asport_sync.runtime.threads import StopSignal
from asport_sync.runtime.timers import Timers
from asport_sync.wire import proxy_header
from tests.host.fake_counters import FakeCounters
from tests.host.fake_engine import FakeEngine
from tests.runtime.clock import VirtualClock
from tests.support.ports import free_port
from tests.support.traffic import receive_exactly
from tests.support.waiting import wait_until

TIMEOUT = 10.0
A, B = HostPort("192.0.2.1", 80), HostPort("192.0.2.2", 80)


class FakeHost:
    """Timers and checking threads that go when the test says so."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.timers = Timers(self.clock)
        self.counters = FakeCounters()
        self.stopping = StopSignal()
        self.checkers = self
        self.waiting: collections.deque[Callable[[], None]] = collections.deque()
        self.problem: Exception | None = None

    def submit(self, function: Callable[..., None], *arguments: object) -> None:
        if self.problem is not None:
            raise self.problem
        self.waiting.append(lambda: function(*arguments))

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)


class Scene:
    """A service whose checks find what the test says."""

    def __init__(self, *addresses: HostPort, **config: Any) -> None:
        self.host = FakeHost()
        self.order = AddressOrder(LocalTargets(addresses or (A,)))
        self.found: dict[object, str | BaseException] = {}
        self.asked: list[object] = []
        self.reported: list[tuple[bool, str]] = []
        self.checks = HealthChecks(
            HealthConfig(**{"tcp": True, "interval": 10.0, "timeout": 3.0, **config}),
            self.order,
            None,
            cast(Host, self.host),
            self.host.counters,
            lambda healthy, problem: self.reported.append((healthy, problem)),
        )

    def check(self, address: object, *_: object) -> str:
        self.asked.append(address)
        found = self.found.get(address, "")
        if isinstance(found, BaseException):
            raise found
        return found

    def tick(self, seconds: float = 10.0) -> None:
        """Let time pass, without any check having a result."""
        self.host.clock.advance(seconds)
        self.host.timers.run()

    def results(self) -> None:
        while self.host.waiting:
            self.host.waiting.popleft()()

    def round(self, seconds: float = 10.0) -> None:
        self.tick(seconds)
        self.results()


@pytest.fixture
def scene_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(*addresses: HostPort, **config: Any) -> Scene:
        scene = Scene(*addresses, **config)
        monkeypatch.setattr(health, "check", scene.check)
        scenes.append(scene)
        return scene

    yield make
    for scene in scenes:
        scene.host.stopping.close()


SceneOf = Callable[..., Scene]


def test_the_first_check_is_immediate(scene_of: SceneOf) -> None:
    scene = scene_of()
    assert scene.checks.stats().healthy is None
    scene.round(0)
    assert scene.reported == [(True, "")]
    scene.host.clock.advance(5)
    stats = scene.checks.stats()
    assert (stats.healthy, stats.seconds, stats.unhealthy) == (True, 5, {})
    assert scene.host.counters.snapshot() == {"health_checks": 1}


def test_a_check_follows_in_each_interval(scene_of: SceneOf) -> None:
    scene = scene_of(interval=10.0)
    scene.round(0)
    scene.round(9.9)
    assert len(scene.asked) == 1
    scene.round(0.1)
    assert len(scene.asked) == 2


def test_a_service_that_is_unhealthy_from_the_beginning_is_reported_at_once(scene_of: SceneOf) -> None:
    scene = scene_of()
    scene.found[A] = "connection refused"
    scene.round(0)
    for _ in range(5):
        scene.round()
    assert scene.reported == [(False, "connection refused")]
    assert scene.checks.stats().unhealthy == {"192.0.2.1:80": "connection refused"}
    scene.found[A] = ""
    scene.round()
    assert scene.reported[1:] == [(True, "")]
    assert scene.host.counters.snapshot() == {"health_checks": 7, "health_checks_failed": 6}


def test_so_many_failures_in_a_row_are_needed(scene_of: SceneOf) -> None:
    scene = scene_of(failures=3)
    scene.round(0)
    for result in ("x", "x", "", "x", "x"):
        scene.found[A] = result
        scene.round()
    assert scene.reported == [(True, "")]
    assert scene.order.in_order() == (A,)
    scene.found[A] = "HTTP status 503"
    scene.round()
    assert scene.reported[1:] == [(False, "HTTP status 503")]


def test_so_many_successes_in_a_row_are_needed(scene_of: SceneOf) -> None:
    scene = scene_of(failures=1, successes=2)
    scene.round(0)
    assert scene.reported == []
    scene.round()
    assert scene.reported == [(True, "")]
    for result in ("x", "", "x", ""):
        scene.found[A] = result
        scene.round()
    assert scene.reported[1:] == [(False, "x")]
    scene.round()
    assert scene.reported[2:] == [(True, "")]


def test_a_service_is_healthy_as_long_as_one_of_its_addresses_is(scene_of: SceneOf) -> None:
    scene = scene_of(A, B, failures=1)
    scene.found = {A: "refused", B: ""}
    scene.round(0)
    assert scene.reported == [(True, "refused")]
    assert scene.order.in_order() == (B,)
    scene.found = {A: "", B: "no answer"}
    scene.round()
    assert scene.order.in_order() == (A,)
    assert scene.checks.stats().unhealthy == {"192.0.2.2:80": "no answer"}
    scene.found[A] = "refused"
    scene.round()
    assert scene.reported[1:] == [(False, "refused; no answer")]
    assert scene.asked == [A, B] * 3


def test_an_address_that_is_healthy_again_is_the_first_again(scene_of: SceneOf) -> None:
    scene = scene_of(A, B)
    scene.round(0)
    scene.order.answered(B)
    assert scene.order.in_order() == (B, A)
    scene.round()
    assert scene.order.in_order() == (A, B)


def test_an_address_has_one_check_at_a_time(scene_of: SceneOf) -> None:
    scene = scene_of()
    scene.tick(0)
    scene.tick()
    assert len(scene.host.waiting) == 1
    assert scene.host.counters.snapshot() == {}  # it waits for a thread, which says nothing about the service
    scene.results()
    scene.tick()
    assert len(scene.host.waiting) == 1


def test_a_check_that_does_not_end_counts_as_failed(scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the system's resolver hangs."""
    scene = scene_of(failures=2)
    scene.round(0)
    hanging = threading.Event()
    began = threading.Event()

    def hang(*_: object) -> str:
        began.set()
        hanging.wait(TIMEOUT)
        return ""

    monkeypatch.setattr(health, "check", hang)
    scene.tick()
    thread = threading.Thread(target=scene.host.waiting.popleft())
    thread.start()
    assert began.wait(TIMEOUT)
    scene.tick()
    assert scene.reported == [(True, "")]
    scene.tick()
    assert scene.reported[1:] == [(False, "no result within 3 s")]
    assert not scene.host.waiting
    hanging.set()
    thread.join()
    assert scene.reported[2:] == [(True, "")]


def test_a_check_that_cannot_begin_counts_as_failed(scene_of: SceneOf) -> None:
    scene = scene_of()
    scene.host.problem = RuntimeError("can't start new thread")
    scene.tick(0)
    assert scene.reported == [(False, "can't start new thread")]
    scene.host.problem = None
    scene.round()
    assert scene.reported[1:] == [(True, "")]


def test_an_unexpected_error_is_a_failure(scene_of: SceneOf) -> None:
    scene = scene_of()
    scene.found[A] = ValueError("surprise")
    scene.round(0)
    assert scene.reported == [(False, "ValueError: surprise")]


@pytest.mark.parametrize("problem", [sockets.Stopped(), LifecycleError("stopped")])
def test_the_end_of_the_host_is_no_result(scene_of: SceneOf, problem: Exception) -> None:
    scene = scene_of()
    if isinstance(problem, LifecycleError):
        scene.host.problem = problem
        scene.checks.end()
    else:
        scene.found[A] = problem
    scene.round(0)
    assert scene.reported == []


def test_checks_that_have_ended_report_nothing(scene_of: SceneOf) -> None:
    scene = scene_of()
    scene.tick(0)
    scene.checks.end()
    scene.results()
    scene.round()
    assert scene.reported == []
    assert len(scene.asked) == 1


def test_a_hundred_services_are_checked_by_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while none of them answers."""
    host = Host(FakeEngine().as_real(), 0, 0.0, logging.getLogger("asport_sync.test"), counters=FakeCounters())
    host.start()
    guard = threading.Lock()
    running: set[str] = set()
    most = 0
    over = threading.Event()

    def hang(*_: object) -> str:
        nonlocal most
        with guard:
            running.add(threading.current_thread().name)
            most = max(most, len(running))
        over.wait(0.05)
        with guard:
            running.discard(threading.current_thread().name)
        return "no answer"

    monkeypatch.setattr(health, "check", hang)
    found: list[bool] = []

    def begin() -> list[HealthChecks]:
        order = [AddressOrder(LocalTargets((HostPort("192.0.2.1", 1 + number),))) for number in range(100)]
        config = HealthConfig(tcp=True, interval=60.0)
        counters = FakeCounters()
        return [
            HealthChecks(config, each, None, host, counters, lambda healthy, _: found.append(healthy)) for each in order
        ]

    try:
        checks = host.run(begin)
        wait_until(lambda: len(found) == 100, TIMEOUT, "all have a result")
        assert not any(found)
        assert 1 < most <= 16
        assert host.workers.threads == 0  # those that dial are not kept busy
        for each in checks:
            host.run(each.end)
    finally:
        over.set()
        host.stop(TIMEOUT)


# --- one check --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    signal = StopSignal()
    yield signal
    signal.close()


class Service:
    """Takes one connection, notes what it receives, and answers."""

    def __init__(self, answer: Callable[[socket.socket], None], path: Path | None = None) -> None:
        self._answer = answer
        self.received = b""
        self.ended: bytes | OSError = b"not yet"
        self._listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0) if path is None else str(path))
        self._listener.listen()
        self._listener.settimeout(TIMEOUT)
        self.address = HostPort(*self._listener.getsockname()) if path is None else UnixSocket(str(path))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            with contextlib.suppress(OSError):  # the check may have ended
                self._answer(connection)
            try:
                self.ended = connection.recv(1000)
            except OSError as problem:
                self.ended = problem

    def until(self, connection: socket.socket, end: bytes) -> None:
        while not self.received.endswith(end):
            self.received += receive_exactly(connection, 1)


def http(answer: bytes, path: Path | None = None) -> Service:
    def serve(connection: socket.socket) -> None:
        service.until(connection, b"Connection: close\r\n\r\n")  # a PROXY header may have empty lines, too
        connection.sendall(answer)

    service = Service(serve, path)
    return service


TCP = HealthConfig(tcp=True, timeout=5.0)
HTTP = HealthConfig(http="/live?x=1", timeout=5.0)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_tcp_check_connects_and_closes_in_order(tmp_path: Path, stop: StopSignal, is_unix: bool) -> None:
    with Service(lambda connection: None, tmp_path / "service" if is_unix else None) as service:
        assert check(service.address, TCP, b"", stop) == ""
    assert service.ended == b""


@pytest.mark.parametrize("version", [1, 2])
def test_a_service_that_expects_a_header_gets_one_that_names_nobody(stop: StopSignal, version: int) -> None:
    header = proxy_header.own_header(version)
    with http(OK) as service:
        assert check(service.address, HTTP, header, stop) == ""
    assert service.received.startswith(header + b"GET ")


@pytest.mark.parametrize("config", [TCP, HTTP])
def test_a_service_that_is_not_there_is_unhealthy(tmp_path: Path, stop: StopSignal, config: HealthConfig) -> None:
    assert check(HostPort("127.0.0.1", free_port()), config, b"", stop) == "connection refused"
    assert check(UnixSocket(str(tmp_path / "service")), config, b"", stop) == "no such file or directory"


def test_a_name_that_does_not_resolve_is_unhealthy(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object) -> list[sockets.SocketAddress]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(sockets, "resolve", resolve)
    assert check(HostPort("name.example", 80), TCP, b"", stop) == "name or service not known"


def test_each_address_of_a_name_is_tried(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    with Service(lambda connection: None) as service:
        addresses = [("127.0.0.1", free_port()), service.address]
        monkeypatch.setattr(sockets, "resolve", lambda *_: addresses)
        assert check(HostPort("name.example", 80), TCP, b"", stop) == ""


def test_an_http_check_is_a_request(stop: StopSignal) -> None:
    with http(OK) as service:
        assert check(service.address, HTTP, b"", stop) == ""
    request, *lines = service.received.decode().split("\r\n")
    assert request == "GET /live?x=1 HTTP/1.1"
    assert f"Host: {service.address}" in lines
    assert "Connection: close" in lines


def test_an_http_check_of_a_unix_socket(tmp_path: Path, stop: StopSignal) -> None:
    with http(OK, tmp_path / "service") as service:
        assert check(service.address, HTTP, b"", stop) == ""
    assert b"\r\nHost: localhost\r\n" in service.received


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.0 302 Found\r\nLocation: /login\r\n\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        (b"HTTP/1.1 503 \x1b[31mred\r\n\r\n", "HTTP status 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no valid HTTP answer"),
        (b"HTTP/1.1 OK\r\n\r\n", "no valid HTTP answer"),
        (b"", "no valid HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n" + 1000 * (b"X: " + 100 * b"x" + b"\r\n"), "no valid HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + 200000 * b"x", "no valid HTTP answer"),
        (2000 * (b"HTTP/1.1 100 Continue\r\nX: " + 50 * b"x" + b"\r\n\r\n"), "no valid HTTP answer"),
    ],
    ids=lambda each: repr(each[:20]),
)
def test_answers(stop: StopSignal, answer: bytes, found: str) -> None:
    def serve(connection: socket.socket) -> None:
        service.until(connection, b"\r\n\r\n")
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    service = Service(serve)
    with service:
        assert check(service.address, HTTP, b"", stop) == found


def test_an_answer_in_small_pieces_has_no_more_time_than_any_other(stop: StopSignal) -> None:
    def drip(connection: socket.socket) -> None:
        service.until(connection, b"\r\n\r\n")
        for byte in b"HTTP/1.1 200 OK\r\nX: " + 1000 * b"x":
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    service = Service(drip)
    with service:
        config = HealthConfig(http="/", timeout=0.5)
        assert check(service.address, config, b"", stop) == "no answer within 0.5 s"


def test_stopping_ends_a_check_that_waits(stop: StopSignal) -> None:
    ended: list[str] = []

    def run() -> None:
        try:
            check(service.address, HealthConfig(http="/", timeout=60.0), b"", stop)
        except sockets.Stopped:
            ended.append("stopped")

    service = Service(lambda connection: service.until(connection, b"\r\n\r\n"))
    with service:
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: service.received.endswith(b"\r\n\r\n"), TIMEOUT, "the request is there")
        stop.set()
        thread.join(TIMEOUT)
    assert ended == ["stopped"]
