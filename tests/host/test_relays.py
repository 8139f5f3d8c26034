"""Which streams the engine relays and which a worker, and what the log says of them."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from asport_sync.engine import StreamEnd, StreamResult
from asport_sync.errors import EngineError
from tests.host.fake_engine import (
    gone,
    stream_ended,
)
from tests.host.scene import TIMEOUT, WORKERS, RelayScene, as_stream, tracebacks
from tests.support.waiting import wait_until

DESCRIPTORS = EngineError(-1024, "Too many open files")


@pytest.fixture
def scene() -> Iterator[RelayScene]:
    scene = RelayScene()
    yield scene
    scene.close()


@pytest.mark.parametrize(("level", "most"), [(logging.DEBUG, 0xFFFFFFFF), (logging.INFO, 200), (logging.WARNING, 0)])
def test_ends_are_reported_where_somebody_reads_of_them(
    level: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    scene = RelayScene(max_workers=3)
    with caplog.at_level(level, "asport_sync"):
        scene.relays.begin()
    assert scene.engine.reports_streams == most
    assert scene.engine.reports_begins is (level == logging.DEBUG)
    assert scene.engine.shared == [3]
    with caplog.at_level(logging.DEBUG, "asport_sync"):
        scene.relays.level_changed()
    assert (scene.engine.reports_streams, scene.engine.reports_begins) == (0xFFFFFFFF, True)
    assert scene.engine.shared == [3]
    scene.close()


def test_without_workers_none_is_offered() -> None:
    scene = RelayScene(max_workers=0)
    scene.relays.begin()
    assert scene.engine.shared == []
    scene.close()


def test_the_engine_relays_what_is_attached(scene: RelayScene) -> None:
    stream, (ours, theirs) = scene.stream(), socket.socketpair()
    with theirs:
        scene.relays.attach(as_stream(stream), ours, "label")
        assert stream.said == ["attach"]
        assert ours.fileno() == -1
        assert scene.counters.snapshot() == {}


def test_a_line_tells_the_end_of_an_attached_stream(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_line_tells_how_many_had_none(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asport_sync"):
        scene.relays.stream_ended(stream_ended(scene.connection, scene.stream(), left_out=1800))
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "1800 more connections closed (log rate limit)"
    assert second.startswith("place 1: connection from ")


def test_a_worker_relays_what_moves_much(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_stopped_pool_leaves_the_relay_to_the_engine(scene: RelayScene) -> None:
    assert scene.workers.stop(TIMEOUT)
    stream = scene.stream()
    with scene.large_transfer(stream):
        assert stream.said == ["attach"]
        assert scene.engine.shared == [1]


def test_without_a_thread_the_engine_relays(scene: RelayScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    stream = scene.stream()
    with scene.large_transfer(stream):
        assert stream.said == ["attach"]
        assert scene.engine.shared == [1]


def test_while_all_workers_dial_the_engine_relays(scene: RelayScene) -> None:
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


def test_what_no_worker_can_relay_is_relayed_by_the_engine(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_relay_that_cannot_begin_ends_its_stream(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
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
    scene: RelayScene, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stream = scene.stream()
    stream.relay_problem = problem
    with scene.large_transfer(stream) as theirs:
        assert theirs.recv(1) == b""
        scene.idle()
    assert stream.said == ["relay"]
    assert scene.engine.shared == [1]
    assert bool(tracebacks(caplog)) == isinstance(problem, ZeroDivisionError)


def test_the_end_of_the_engine_under_a_worker_is_no_error(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
    stream = scene.stream()
    with scene.large_transfer(stream):
        wait_until(lambda: stream.said == ["relay"], TIMEOUT, "a worker relays it")
        scene.engine.stop()
        stream.finish()
        scene.idle()
    assert scene.engine.shared == []
    assert caplog.records == []


def test_a_stream_that_is_gone_is_not_attached(scene: RelayScene, caplog: pytest.LogCaptureFixture) -> None:
    stream, (ours, theirs) = scene.stream(), socket.socketpair()
    stream.attach_problem = gone()
    with caplog.at_level(logging.INFO, "asport_sync"), theirs:
        scene.relays.attach(as_stream(stream), ours, "label")
        assert theirs.recv(1) == b""
    assert stream.said == ["attach"]
    assert scene.counter("streams_gone_before_relay") == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]
