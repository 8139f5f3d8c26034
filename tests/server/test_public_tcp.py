"""The listener of a public port."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from asport_sync.errors import EngineError
from asport_sync.runtime import sockets
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.timers import Timers
from asport_sync.server.public_tcp import PublicListener
from tests.host.fake_counters import FakeCounters
from tests.host.fake_engine import (
    FakeEngine,
    FakeListener,
)
from tests.host.scene import HOST, LOG, as_connection
from tests.runtime.clock import VirtualClock

DESCRIPTORS = EngineError(-1024, "Too many open files")


class Port:
    """A listener of a public port, on the events thread's timers."""

    def __init__(self, limit: RateLimit | None = None) -> None:
        self.clock = VirtualClock()
        self.timers = Timers(self.clock)
        self.counters = FakeCounters()
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
    limit = RateLimit(maximum=5)
    ports = [Port(limit), Port(limit)]
    for port in ports:
        port.public.open()
        for _ in range(10):
            port.public.failed(errno.EMFILE)
        port.public.close()
        port.sock.close()
    assert len(caplog.records) == 5
