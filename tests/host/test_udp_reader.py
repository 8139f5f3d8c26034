"""Busy UDP sockets, which the pump reads until they are quiet."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asport_sync.engine import UdpSocket
from asport_sync.errors import EngineError
from asport_sync.host.udp_reader import UdpReader
from asport_sync.runtime import sockets
from tests.host.fake_engine import (
    FakeUdpSocket,
    gone,
)
from tests.host.scene import HOST, LOG, TIMEOUT, Busy, Pump
from tests.support.waiting import wait_until


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.close()


@pytest.fixture
def busy(pump: Pump) -> Iterator[Busy]:
    with sockets.bind_udp(HOST, 0) as sock:
        udp = FakeUdpSocket(pump.connection, sock, True)
        reader = UdpReader(pump.thread, sock, cast(UdpSocket, udp), pump.counters, LOG)
        busy = Busy(pump, udp, lambda _: reader.begin())
        yield busy
        pump.do(reader.end)
        busy.sender.close()


def test_the_engine_reads_unless_it_says_otherwise(busy: Busy) -> None:
    busy.send()
    assert busy.settle() == 0
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 0


def test_the_pump_reads_a_busy_socket(busy: Busy) -> None:
    busy.send()
    busy.begin()
    busy.expect_reads(2)
    assert busy.settle() == 2  # the second found it empty
    busy.begin()  # said once more
    busy.send()
    busy.expect_reads(4)
    assert busy.settle() == 4


def test_a_socket_that_stays_busy_stays_the_pump_s(busy: Busy) -> None:
    busy.begin()
    busy.udp.receive = count_of(busy.udp, 20_000)  # type: ignore[method-assign]
    for second in range(1, 4):
        busy.send()
        busy.expect_reads(2 * second)
        busy.settle()
        busy.pump.pass_time(1)
        assert busy.udp.given_back == 0
    # One that is read by nobody would be lost: it goes back only after a look that found little.
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 1
    busy.send()
    assert busy.settle() == 6
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 1


def test_a_quiet_socket_is_given_back(busy: Busy) -> None:
    busy.begin()
    busy.udp.receive = count_of(busy.udp, 19_999)  # type: ignore[method-assign]
    busy.send()
    busy.expect_reads(2)
    busy.settle()
    busy.pump.pass_time(0.9)
    assert busy.udp.given_back == 0
    busy.pump.pass_time(0.1)
    assert busy.udp.given_back == 1
    # It may become busy again.
    busy.send()
    busy.begin()
    busy.expect_reads(4)
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 2


def test_a_socket_that_the_engine_cannot_take_back_stays_the_pump_s(busy: Busy) -> None:
    busy.begin()
    busy.udp.give_back_problem = EngineError(-1024, "No space left on device")
    for second in range(1, 3):
        busy.pump.pass_time(1)
        assert busy.udp.given_back == second
        busy.send()
        busy.expect_reads(2 * second)
    assert busy.pump.counters["udp_give_back_errors"] == 2
    busy.udp.give_back_problem = None
    busy.pump.pass_time(1)
    busy.send()
    assert busy.settle() == 4
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 3


def test_a_socket_that_is_gone_is_not_given_back(busy: Busy) -> None:
    busy.begin()
    busy.udp.give_back_problem = gone()
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 1
    busy.send()
    assert busy.settle() == 0


def count_of(udp: FakeUdpSocket, datagrams: int) -> Any:
    """A ``receive`` that finds so many datagrams for each that was sent."""

    def receive() -> int:
        return FakeUdpSocket.receive(udp) * datagrams

    return receive


def test_a_busy_socket_leaves_others_their_turn(busy: Busy) -> None:
    turns: list[int] = []
    reads: list[int] = []

    def receive() -> int:
        reads.append(len(reads))
        if len(reads) == 1:
            busy.pump.thread.call(lambda: turns.append(len(reads)))
        if len(reads) < 10:
            return 64
        busy.udp.sock.recv(10)
        return 0

    busy.udp.receive = receive  # type: ignore[method-assign]
    busy.send()
    busy.begin()
    wait_until(lambda: len(reads) == 10, TIMEOUT, "all is read")
    busy.settle()
    assert len(reads) == 10
    assert turns == [4]


def test_a_read_that_fails_is_tried_again_later(busy: Busy) -> None:
    failures = [EngineError(-1012, "Cannot allocate memory")]

    def receive() -> int:
        if failures:
            raise failures.pop()
        return FakeUdpSocket.receive(busy.udp)

    busy.udp.receive = receive  # type: ignore[method-assign]
    busy.send()
    busy.begin()
    wait_until(lambda: busy.pump.counter("udp_read_errors") == 1, TIMEOUT, "the read has failed")
    assert busy.settle() == 0
    busy.pump.pass_time(0.1)
    busy.expect_reads(2)
    assert busy.pump.counter("udp_read_errors") == 1


class RefusedWatches:
    """A selector that takes no sockets for a while, as with fs.epoll.max_user_watches used up."""

    def __init__(self, pump: Pump, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        self._watch = pump.thread.watch
        monkeypatch.setattr(pump.thread, "watch", self.watch)

    def watch(self, *arguments: Any) -> None:
        if self.left > 0:
            self.left -= 1
            raise OSError(errno.ENOSPC, "no watch is left")
        self._watch(*arguments)


def test_a_socket_that_cannot_be_watched_is_watched_later(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RefusedWatches(busy.pump, monkeypatch, 2)
    busy.send()
    busy.begin()
    busy.pump.pass_time(0.15)
    assert (refused.left, busy.settle()) == (0, 0)
    assert busy.pump.counter("udp_read_errors") == 2
    busy.pump.pass_time(0.15)
    busy.expect_reads(2)


def test_a_paused_socket_that_cannot_be_watched_is_watched_later(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    busy.begin()
    busy.pump.do(busy.pump.thread.pause, busy.udp.sock, 0.1)
    refused = RefusedWatches(busy.pump, monkeypatch, 1)
    busy.send()
    busy.pump.pass_time(0.15)
    assert (refused.left, busy.settle()) == (0, 0)
    busy.pump.pass_time(0.15)
    busy.expect_reads(2)


def test_a_busy_socket_of_a_connection_that_is_gone_is_left_alone(busy: Busy) -> None:
    busy.begin()
    busy.pump.connection.is_gone = True
    busy.send()
    busy.settle()
    assert busy.udp.reads == 0
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 0
    assert busy.pump.counter("udp_read_errors") == 0


def test_what_the_engine_cannot_take_back_is_no_error(busy: Busy, caplog: pytest.LogCaptureFixture) -> None:
    busy.begin()
    busy.pump.connection.is_gone = True
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 0
    assert caplog.records == []
