from __future__ import annotations

import errno
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from asport_sync.runtime.selecting import SelectorThread
from tests.support.waiting import wait_until

TIMEOUT = 10.0


@pytest.fixture
def thread() -> Iterator[SelectorThread]:
    thread = SelectorThread("selector-test")
    thread.start()
    yield thread
    assert thread.stop(TIMEOUT)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_calls_are_made_in_order_in_the_thread(thread: SelectorThread) -> None:
    made: list[tuple[int, str]] = []
    for number in range(100):
        thread.call(lambda number=number: made.append((number, threading.current_thread().name)))
    thread.call_and_wait(lambda: None)
    assert made == [(number, "selector-test") for number in range(100)]


def test_a_readable_socket_is_handled_until_it_is_unwatched(
    thread: SelectorThread, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    received: list[bytes] = []
    thread.call_and_wait(thread.watch, ours, lambda: received.append(ours.recv(10)))
    theirs.send(b"one")
    wait_until(lambda: received == [b"one"], TIMEOUT, "the first piece is read")
    thread.call_and_wait(thread.unwatch, ours)
    theirs.send(b"two")
    thread.call_and_wait(lambda: None)
    assert received == [b"one"]
    thread.call_and_wait(thread.unwatch, ours)


def test_unwatching_a_closed_socket_does_nothing(thread: SelectorThread, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as sock:
        pass
    thread.call_and_wait(thread.unwatch, sock)
    assert caplog.records == []


def test_a_paused_socket_is_handled_again_later(
    thread: SelectorThread, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    seen: list[str] = []
    again = threading.Event()

    def readable() -> None:
        seen.append("readable")
        if len(seen) == 1:
            thread.pause(ours, 0.05)
        else:
            ours.recv(10)
            again.set()

    thread.call_and_wait(thread.watch, ours, readable)
    theirs.send(b"x")
    assert again.wait(TIMEOUT)
    assert len(seen) == 2


def test_a_paused_socket_that_is_unwatched_stays_so(
    thread: SelectorThread, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    seen: list[str] = []
    thread.call_and_wait(thread.watch, ours, lambda: seen.append("readable"))
    thread.call_and_wait(thread.pause, ours, 0.01)
    thread.call_and_wait(thread.unwatch, ours)
    theirs.send(b"x")
    later = threading.Event()
    thread.call(thread.after, 0.05, later.set)
    assert later.wait(TIMEOUT)
    assert seen == []


def test_a_handler_that_raises_is_logged_and_paused_and_costs_no_other_its_turn(
    thread: SelectorThread, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    with caplog.at_level(logging.ERROR, "asport_sync"):
        thread.call_and_wait(thread.watch, ours, lambda: 1 // 0)
        theirs.send(b"x")
        wait_until(lambda: caplog.records, TIMEOUT, "the error is logged")
        for _ in range(10):
            thread.call_and_wait(lambda: None)
    assert len(caplog.records) == 1
    thread.call_and_wait(thread.unwatch, ours)


def test_a_call_and_a_timer_that_raise_are_logged(thread: SelectorThread, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "asport_sync"):
        thread.call_and_wait(lambda: 1 // 0)
        thread.call(thread.after, 0, lambda: 1 // 0)
        wait_until(lambda: len(caplog.records) == 2, TIMEOUT, "both errors are logged")


def test_queued_calls_are_made_before_the_end_and_later_ones_at_once() -> None:
    thread = SelectorThread("selector-test")
    thread.start()
    made: list[str] = []
    for _ in range(100):
        thread.call(made.append, "queued")
    assert thread.stop(TIMEOUT)
    assert len(made) == 100
    thread.call(made.append, "late")
    assert made[-1] == "late"
    thread.call_and_wait(made.append, "later")
    assert made[-1] == "later"
    assert not thread.offer(made.append, "never")
    assert made[-1] == "later"
    assert thread.stop(TIMEOUT)


def test_one_that_was_never_started_leaves_nothing() -> None:
    thread = SelectorThread("selector-test")
    assert thread.stop(TIMEOUT)
    assert thread.stop(TIMEOUT)


def test_who_has_too_many_calls_for_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    thread = SelectorThread("selector-test", max_calls=10)
    thread.start()
    go_on = threading.Event()
    made: list[int] = []
    thread.call(go_on.wait, TIMEOUT)
    wait_until(lambda: thread.waiting == 0, TIMEOUT, "the thread is busy")

    def call(numbers: range) -> None:
        for number in numbers:
            thread.call(made.append, number)

    caller = threading.Thread(target=call, args=(range(100),))
    caller.start()
    wait_until(lambda: thread.held_up == 1, TIMEOUT, "the caller waits")
    assert thread.waiting == 10
    # The thread itself never does: nobody else would make room.
    go_on.set()
    caller.join(TIMEOUT)
    thread.call_and_wait(call, range(100, 200))
    assert thread.stop(TIMEOUT)
    assert made == list(range(200))
    assert caplog.records == []


def test_a_caller_that_waits_is_let_go_when_the_thread_ends() -> None:
    thread = SelectorThread("selector-test", max_calls=1)
    thread.start()
    go_on = threading.Event()
    thread.call(go_on.wait, TIMEOUT)
    wait_until(lambda: thread.waiting == 0, TIMEOUT, "the thread is busy")
    made: list[str] = []
    callers = [threading.Thread(target=thread.call, args=(made.append, name)) for name in ("a", "b", "c")]
    for caller in callers:
        caller.start()
    wait_until(lambda: thread.held_up == 2, TIMEOUT, "two wait")
    stopper = threading.Thread(target=thread.stop, args=(TIMEOUT,))
    stopper.start()
    go_on.set()
    for each in (*callers, stopper):
        each.join(TIMEOUT)
        assert not each.is_alive()
    assert sorted(made) == ["a", "b", "c"]


@pytest.mark.parametrize("begins", ["before the stop", "after it"])
@pytest.mark.parametrize("method", ["call_and_wait", "call"])
def test_nobody_waits_for_a_thread_whose_stop_was_in_vain(method: str, begins: str) -> None:
    thread = SelectorThread("selector-test", max_calls=1)
    blocked, goes_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        goes_on.wait()

    thread.start()
    thread.call(block)
    assert blocked.wait(TIMEOUT)
    made: list[str] = []
    if method == "call":
        thread.call(made.append, "fills the queue")
    caller = threading.Thread(target=getattr(thread, method), args=(made.append, "waits"))
    if begins == "before the stop":
        caller.start()
        wait_until(lambda: thread.waiting + thread.held_up == (2 if method == "call" else 1), TIMEOUT, "it waits")
    assert not thread.stop(0)
    if begins == "after it":
        caller.start()
    caller.join(TIMEOUT)
    is_alive = caller.is_alive()
    goes_on.set()
    assert thread.stop(TIMEOUT)
    assert not is_alive
    assert made[-1] == "waits"


def test_where_epoll_cannot_be_waited_for_poll_does(
    thread: SelectorThread, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    received: list[bytes] = []
    thread.call_and_wait(thread.watch, ours, lambda: received.append(ours.recv(10)))

    def refuse(timeout: float | None = None) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    thread.call_and_wait(setattr, thread._selector, "select", refuse)
    theirs.send(b"one")
    wait_until(lambda: received == [b"one"], TIMEOUT, "the piece is read")
    assert isinstance(thread._selector, selectors.PollSelector)
    assert caplog.records == []
    thread.call_and_wait(thread.unwatch, ours)
