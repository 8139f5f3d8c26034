"""Public listeners, the local service, and who relays."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asport_sync.engine import Connection, Stream, StreamEnd, StreamResult
from asport_sync.errors import EngineError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import StopSignal, WorkerPool
from asport_sync.tunnel import tcp
from asport_sync.tunnel.tcp import LocalService, PublicListener, Relays
from asport_sync.wire import Address, Connect, decode, proxy_header
from tests.support.ports import free_port
from tests.support.services import TcpEcho
from tests.support.waiting import wait_until
from tests.tunnel.fake_engine import FakeEngine, FakeStream, gone

HOST = "127.0.0.1"
TIMEOUT = 10.0
PEER = Address.from_text("203.0.113.7", 54321)
LOG = logging.getLogger("asport_sync.test")


class Scene:
    """Threads, counters and a connection."""

    def __init__(self, most: int = 4) -> None:
        self.counters = Counters()
        self.workers = WorkerPool(8)
        self.relays = Relays(self.workers, most, self.counters, LOG)
        self.acceptor = SelectorThread("asport-acceptor")
        self.acceptor.start()
        self.stop = StopSignal()
        self.connection = FakeEngine().new_connection()
        self.listener = sockets.listen_tcp(HOST, 0)
        self.address = sockets.local_address(self.listener)
        self.public = PublicListener(
            self.acceptor,
            self.relays,
            cast(Connection, self.connection),
            self.listener,
            self.counters,
            LOG,
            RateLimit(),
        )

    def close(self) -> None:
        self.stop.set()
        for stream in self.connection.streams:
            stream.finish()
            if stream.attached is not None:
                stream.attached.close()
        self.acceptor.call_and_wait(self.public.close)
        assert self.acceptor.stop(TIMEOUT)
        assert self.workers.stop(TIMEOUT)
        self.listener.close()
        self.stop.close()

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
        }
        return LocalService(**{**fields, **options})

    def counter(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def expect_counter(self, name: str, value: int = 1) -> None:
        wait_until(lambda: self.counter(name) == value, TIMEOUT, f"{name} is {value}")


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def opened(scene: Scene) -> Scene:
    scene.acceptor.call_and_wait(scene.public.open)
    return scene


def as_stream(stream: FakeStream) -> Stream:
    return cast(Stream, stream)


# --- relays -----------------------------------------------------------------------------------------------------------


def test_above_the_cap_the_engine_relays(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(most=1)
    streams = [FakeStream(b""), FakeStream(b"")]
    pairs = [socket.socketpair() for _ in streams]
    with caplog.at_level(logging.INFO, "asport_sync"):
        for stream, (ours, _) in zip(streams, pairs, strict=True):
            scene.relays.hand_over(as_stream(stream), ours, f"label {stream.id}")
        wait_until(lambda: all(stream.said for stream in streams), TIMEOUT, "both are relayed")
        assert [stream.said for stream in streams] == [["relay"], ["attach"]]
        assert pairs[1][0].fileno() == -1
        streams[0].finish()
        scene.expect_counter("streams_finished")
        assert pairs[0][0].fileno() == -1
        scene.relays.ended(as_stream(streams[1]), StreamResult(1, 2, StreamEnd.PEER_RESET))
        assert scene.counter("streams_peer_reset") == 1
        # A place is free again.
        third, pair = FakeStream(b""), socket.socketpair()
        wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
        scene.relays.hand_over(as_stream(third), pair[0], "third")
        wait_until(lambda: third.said == ["relay"], TIMEOUT, "the third is relayed by a worker")
        third.finish()
        scene.expect_counter("streams_finished", 2)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"label {streams[0].id}: finished after") for line in lines)
    assert any(line.startswith(f"label {streams[1].id}: reset by the peer after") for line in lines)
    assert any("1 bytes to the tunnel, 2 bytes from it" in line for line in lines)
    assert streams[1].attached is not None
    for sock in (streams[1].attached, *(theirs for _, theirs in pairs), pair[1]):
        sock.close()
    scene.close()


def test_without_workers_the_engine_relays_everything() -> None:
    scene = Scene(most=0)
    stream, (ours, theirs) = FakeStream(b""), socket.socketpair()
    scene.relays.hand_over(as_stream(stream), ours, "label")
    assert stream.said == ["attach"]
    assert stream.attached is not None
    stream.attached.close()
    theirs.close()
    scene.close()


def test_a_stopped_pool_leaves_the_relay_to_the_engine(scene: Scene) -> None:
    assert scene.workers.stop(TIMEOUT)
    stream, (ours, theirs) = FakeStream(b""), socket.socketpair()
    scene.relays.hand_over(as_stream(stream), ours, "label")
    assert stream.said == ["attach"]
    assert stream.attached is not None
    stream.attached.close()
    theirs.close()


@pytest.fixture
def one_worker() -> Iterator[Scene]:
    scene = Scene(most=1)
    yield scene
    scene.close()


DESCRIPTORS = EngineError(-1024, "Too many open files")


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


def test_what_no_worker_can_relay_is_relayed_by_the_engine(one_worker: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 4):  # each gets the one place again
        stream, (ours, theirs) = FakeStream(b""), socket.socketpair()
        stream.relay_problem = DESCRIPTORS
        one_worker.relays.hand_over(as_stream(stream), ours, "label")
        wait_until(lambda: one_worker.workers.running == 0, TIMEOUT, "the worker is back")
        assert stream.said == ["relay", "attach"]
        assert one_worker.counter("relays_without_worker") == number
        assert stream.attached is not None
        for sock in (stream.attached, theirs):
            sock.close()
        one_worker.relays.ended(as_stream(stream), StreamResult(1, 2, StreamEnd.FINISHED))
    assert one_worker.counter("streams_finished") == 3
    assert not tracebacks(caplog)


def test_a_relay_that_cannot_begin_ends_its_stream(one_worker: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The other end would wait for ever."""
    stream, (ours, theirs) = FakeStream(b""), socket.socketpair()
    stream.relay_problem = stream.attach_problem = DESCRIPTORS
    with theirs:
        one_worker.relays.hand_over(as_stream(stream), ours, "label")
        wait_until(lambda: one_worker.workers.running == 0, TIMEOUT, "the worker is back")
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""
        assert stream.said == ["relay", "attach", "reset"]
    assert one_worker.counter("streams_dropped_no_relay") == 1
    assert one_worker.relays._attached == {}
    assert "label dropped: Too many open files" in caplog.text
    assert not tracebacks(caplog)  # foreseen: no traceback for each


def test_a_connection_that_cannot_be_relayed_does_not_pause_the_listener(
    opened: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paused: list[object] = []
    monkeypatch.setattr(opened.acceptor, "pause", lambda *arguments: paused.append(arguments))

    def attach(stream: FakeStream, sock: socket.socket) -> None:
        sock.close()
        raise DESCRIPTORS

    with monkeypatch.context() as patch:
        patch.setattr(opened.relays._slots, "take", lambda: False)
        patch.setattr(FakeStream, "attach", attach)
        with socket.create_connection(opened.address) as public:
            public.settimeout(TIMEOUT)
            assert public.recv(1) == b""
        opened.expect_counter("streams_dropped_no_relay")
    with socket.create_connection(opened.address):
        wait_until(lambda: len(opened.connection.streams) == 2, TIMEOUT, "the next one is accepted")
    assert opened.connection.streams[0].said == ["reset"]
    assert paused == []
    assert not tracebacks(caplog)


# --- the public side --------------------------------------------------------------------------------------------------


def test_a_connection_becomes_a_stream_that_names_its_source(opened: Scene) -> None:
    with socket.create_connection(opened.address) as public:
        wait_until(lambda: opened.connection.streams, TIMEOUT, "a stream is opened")
        stream = opened.connection.streams[0]
        assert decode(stream.header)[0] == Connect(Address.from_text(*public.getsockname()))
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "it is relayed")
        stream.finish()
        assert public.recv(1) == b""
    assert opened.counter("connections_accepted") == 1


def test_a_burst_is_accepted_whole(opened: Scene) -> None:
    publics = [socket.create_connection(opened.address) for _ in range(100)]
    opened.expect_counter("connections_accepted", 100)
    for public in publics:
        public.close()


def test_a_connection_over_the_stream_limit_is_closed(opened: Scene, caplog: pytest.LogCaptureFixture) -> None:
    opened.connection.stream_limit_reached = True
    with socket.create_connection(opened.address) as public:
        assert public.recv(1) == b""
    opened.expect_counter("connections_dropped_stream_limit")
    assert "dropped: a table or queue is full" in caplog.text
    opened.connection.stream_limit_reached = False
    with socket.create_connection(opened.address):
        wait_until(lambda: opened.connection.streams, TIMEOUT, "the next one is accepted")


def test_without_a_connection_nothing_is_accepted(opened: Scene) -> None:
    opened.connection.is_gone = True
    with socket.create_connection(opened.address) as public:
        assert public.recv(1) == b""
    opened.connection.is_gone = False
    with socket.create_connection(opened.address):
        opened.acceptor.call_and_wait(lambda: None)
        opened.acceptor.call_and_wait(lambda: None)
        assert opened.connection.streams == []


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EINVAL]
)
def test_no_error_ends_a_listener(opened: Scene, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_PAUSE_WITHOUT_RESOURCES", 0.01)
    monkeypatch.setattr(tcp, "_PAUSE_AFTER_ERROR", 0.01)
    errors = [number] * 3
    real_accept = socket.socket.accept

    def accept(listener: socket.socket) -> Any:
        if errors:
            raise OSError(errors.pop(), "as the test says")
        return real_accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with socket.create_connection(opened.address):
        wait_until(lambda: opened.connection.streams, TIMEOUT, "the connection is accepted")
    assert opened.counter("accept_errors") == (0 if number == errno.ECONNABORTED else 3)


def test_an_error_that_lasts_pauses_the_listener(opened: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readable all the time, it would otherwise keep its thread busy with nothing."""
    monkeypatch.setattr(tcp, "_PAUSE_AFTER_ERROR", 0.01)
    errors = [errno.EPERM] * 40
    real_accept = socket.socket.accept

    def accept(listener: socket.socket) -> Any:
        if errors:
            raise OSError(errors.pop(), "as the test says")
        return real_accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with socket.create_connection(opened.address):
        wait_until(lambda: opened.connection.streams, TIMEOUT, "the connection is accepted")
    assert opened.counter("accept_errors") == 2  # one for each 16 in a row


def test_a_closed_listener_accepts_no_more(opened: Scene) -> None:
    opened.acceptor.call_and_wait(opened.public.close)
    with socket.create_connection(opened.address):  # by the kernel
        opened.acceptor.call_and_wait(lambda: None)
        assert opened.connection.streams == []
    opened.acceptor.call_and_wait(opened.public.close)


# --- the local service ------------------------------------------------------------------------------------------------


def serve(scene: Scene, service: LocalService, source: Address | None = PEER) -> FakeStream:
    stream = scene.connection.open_stream(b"")
    scene.workers.submit(service.serve, as_stream(stream), source)
    return stream


def test_the_service_is_connected_to_and_the_stream_relayed(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address))
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "it is relayed")
        wait_until(lambda: echo.accepted == 1, TIMEOUT, "the service has the connection")
        stream.finish()
        scene.expect_counter("streams_finished")


def test_above_the_cap_a_worker_only_dials() -> None:
    scene = Scene(most=0)
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address))
        wait_until(lambda: stream.said == ["attach"], TIMEOUT, "the engine has it")
        wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
        scene.close()


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_goes_before_everything_else(scene: Scene, version: int) -> None:
    with sockets.listen_tcp(HOST, 0) as listener:
        target = sockets.local_address(listener)
        listener.settimeout(TIMEOUT)
        stream = serve(scene, scene.service(target, proxy_version=version))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(TIMEOUT)
            expected = proxy_header.tcp_header(version, PEER, Address.from_text(*target))
            assert accepted.recv(1000) == expected
            wait_until(lambda: stream.said == ["relay"], TIMEOUT, "it is relayed")
            stream.finish()
            scene.expect_counter("streams_finished")


def test_a_header_without_a_source_is_a_refusal(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address, proxy_version=2), None)
        wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
        assert scene.counter("connections_dropped_no_source") == 1


def test_without_a_header_a_source_is_not_needed(scene: Scene) -> None:
    with TcpEcho() as echo:
        stream = serve(scene, scene.service(echo.address), None)
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "it is relayed")
        stream.finish()
        scene.expect_counter("streams_finished")


def test_a_service_that_is_not_there_is_a_refusal(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    stream = serve(scene, scene.service((HOST, port)))
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    assert scene.counter("connections_dropped_local_service") == 1
    expected = f"connection from 203.0.113.7:54321 dropped: {HOST}:{port} can't be reached: Connection refused"
    assert expected in caplog.text


def test_a_refusal_of_a_stream_that_is_gone_is_no_error(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    class Gone(FakeStream):
        def refuse(self) -> None:
            super().refuse()
            raise gone()

    stream = Gone(b"")
    scene.workers.submit(scene.service((HOST, free_port())).serve, as_stream(stream), PEER)
    wait_until(lambda: stream.said == ["refuse"], TIMEOUT, "it is refused")
    wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
    assert "failed" not in caplog.text


def test_stopping_ends_a_dial_without_a_word(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.stop.set()
    with sockets.listen_tcp(HOST, 0) as listener:
        stream = serve(scene, scene.service(sockets.local_address(listener)))
        wait_until(lambda: scene.workers.running == 0, TIMEOUT, "the worker is back")
        # Loopback may have connected before anybody could look at the signal.
        assert stream.said in ([], ["relay"])
        stream.finish()
    assert caplog.records == []
