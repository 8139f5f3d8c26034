"""Calls of the program's callables: their order, their bound, what fails in them, and their end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asport_sync.host.calls import Calls, Subject
from asport_sync.runtime.log import RateLimit
from tests.host.fake_counters import FakeCounters
from tests.support.waiting import wait_until

TIMEOUT = 10.0
NAMES = ("on_connect", "on_ready", "on_disconnect")


class Scene:
    """Calls whose callables note what they get, and do what the test says."""

    def __init__(self, max_waiting: int = 100) -> None:
        self.calls = Calls(max_waiting)
        self.counters = FakeCounters()
        self.noted: list[tuple[Any, ...]] = []
        self.threads: set[threading.Thread] = set()
        self.does: Callable[[str], object] = lambda name: None
        self.goes_on = threading.Event()

    def begin(self, *names: str) -> None:
        callables = {name: self._callable(name) for name in names or NAMES}
        self.calls.begin(callables, self.counters, RateLimit())

    def _callable(self, name: str) -> Callable[..., object]:
        def function(*arguments: object) -> None:
            self.noted.append((name, *arguments))
            self.threads.add(threading.current_thread())
            self.does(name)

        return function

    def block(self) -> None:
        """Callables do not return before ``goes_on`` is set; returns when the first one runs."""
        self.does = lambda name: self.goes_on.wait(TIMEOUT)
        self.connect("blocked")
        wait_until(lambda: len(self.noted) == 1, TIMEOUT, "a callable runs")

    def connect(self, about: str) -> Subject:
        subject = Subject()
        self.calls.connected(subject, about)
        return subject

    def end(self) -> None:
        assert self.calls.end(TIMEOUT) is None


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.goes_on.set()
    made.end()


def test_calls_are_made_in_order_in_one_thread(scene: Scene) -> None:
    scene.begin()
    first, second = scene.connect("a"), scene.connect("b")
    scene.calls.ready(first, "a with a port")
    scene.calls.disconnected(first, "left")
    scene.calls.disconnected(second, None)
    scene.end()
    assert scene.noted == [
        ("on_connect", "a"),
        ("on_connect", "b"),
        ("on_ready", "a with a port"),
        ("on_disconnect", "a with a port", "left"),
        ("on_disconnect", "b", None),
    ]
    (thread,) = scene.threads
    assert (thread.name, thread.daemon, thread.is_alive()) == ("asport-calls", True, False)


def test_without_callables_there_is_no_thread() -> None:
    calls, before = Calls(), threading.active_count()
    calls.begin({}, FakeCounters(), RateLimit())
    calls.connected(Subject(), "a")
    assert threading.active_count() == before
    assert calls.end(TIMEOUT) is None


@pytest.mark.parametrize("name", NAMES)
def test_one_of_them_is_enough(scene: Scene, name: str) -> None:
    scene.begin(name)
    subject = scene.connect("a")
    scene.calls.ready(subject, "a with a port")
    scene.calls.disconnected(subject, "left")
    scene.end()
    assert [noted[0] for noted in scene.noted] == [name]


def test_a_connection_begins_and_ends_once(scene: Scene) -> None:
    scene.begin()
    scene.calls.ready(Subject(), "unknown")
    scene.calls.disconnected(Subject(), "unknown")
    subject = scene.connect("a")
    scene.calls.connected(subject, "a again")
    scene.calls.disconnected(subject, "left")
    scene.calls.disconnected(subject, "left again")
    scene.calls.ready(subject, "too late")
    scene.calls.connected(subject, "too late")
    scene.end()
    assert scene.noted == [("on_connect", "a"), ("on_disconnect", "a", "left")]


@pytest.mark.parametrize("problem", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_is_logged_and_the_next_call_is_made(
    scene: Scene, problem: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise problem("of the program")

    scene.does = fail
    scene.begin()
    scene.calls.disconnected(scene.connect("a"), "left")
    scene.end()
    assert [name for name, *_ in scene.noted] == ["on_connect", "on_disconnect"]
    assert scene.counters["callables_failed"] == 2
    assert [record.getMessage() for record in caplog.records] == ["on_connect failed", "on_disconnect failed"]
    assert all(record.exc_info and record.exc_info[0] is problem for record in caplog.records)
    assert "in fail" in caplog.text


def test_a_log_handler_may_fail_as_well(scene: Scene) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    def fail(name: str) -> None:
        raise ValueError

    scene.does = fail
    scene.begin()
    log, handler = logging.getLogger("asport_sync.calls"), Broken()
    log.addHandler(handler)
    try:
        scene.calls.disconnected(scene.connect("a"), "left")
        scene.end()
    finally:
        log.removeHandler(handler)
    assert scene.counters["callables_failed"] == 2


def test_beyond_the_maximum_nothing_is_said_of_new_connections(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(max_waiting=2)
    scene.begin()
    scene.block()
    kept = [scene.connect(name) for name in "ab"]
    dropped = [scene.connect(f"dropped {number}") for number in range(50)]
    for subject in kept + dropped:
        scene.calls.ready(subject, "with a port")
        scene.calls.disconnected(subject, "left")
    scene.goes_on.set()
    scene.end()
    assert scene.noted == [
        ("on_connect", "blocked"),
        ("on_connect", "a"),
        ("on_connect", "b"),
        *[("on_ready", "with a port"), ("on_disconnect", "with a port", "left")] * 2,
    ]
    assert scene.counters["callables_left_out"] == 3 * len(dropped)
    assert 1 <= len(caplog.records) <= 20
    assert caplog.records[0].getMessage().startswith("2 calls of on_connect, on_ready and on_disconnect wait already")


def test_the_end_does_not_wait_for_ever(scene: Scene) -> None:
    scene.begin()
    scene.block()
    scene.connect("b")
    assert scene.calls.end(0.05) == "on_connect"
    assert scene.counters["callables_left_out"] == 1
    scene.connect("c")
    scene.goes_on.set()
    wait_until(lambda: not any(thread.is_alive() for thread in scene.threads), TIMEOUT, "the thread has ended")
    assert scene.noted == [("on_connect", "blocked")]


def test_a_callable_may_end_it_and_waiting_calls_are_made(scene: Scene) -> None:
    def end(name: str) -> None:
        scene.does = lambda name: None
        subject = scene.connect("b")
        scene.calls.disconnected(subject, "ended")
        assert scene.calls.is_current()
        assert scene.calls.end(TIMEOUT) is None
        scene.connect("too late")

    scene.does = end
    scene.begin()
    assert not scene.calls.is_current()
    scene.connect("a")
    wait_until(lambda: len(scene.noted) == 3, TIMEOUT, "all calls are made")
    scene.end()
    assert scene.noted == [("on_connect", "a"), ("on_connect", "b"), ("on_disconnect", "b", "ended")]


def test_a_callable_that_outlives_the_end_holds_up_the_next_start_only(scene: Scene) -> None:
    scene.begin()
    scene.block()
    assert scene.calls.end(0) == "on_connect"
    scene.begin()
    subject = scene.connect("a")
    assert scene.noted == [("on_connect", "blocked")]
    scene.goes_on.set()
    scene.calls.disconnected(subject, None)
    scene.end()
    assert scene.noted[1:] == [("on_connect", "a"), ("on_disconnect", "a", None)]
    assert len(scene.threads) == 1
