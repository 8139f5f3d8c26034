"""What relays and UDP associations need, on an engine without a network; used by the tests of all rooms."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from asport_sync.engine import Connection, Stream, UdpSocket
from asport_sync.host.calls import Calls
from asport_sync.host.relays import Relays
from asport_sync.runtime import sockets
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import StopSignal, WorkerPool
from tests.host.fake_counters import FakeCounters
from tests.host.fake_engine import (
    FakeConnection,
    FakeEngine,
    FakeStream,
    FakeUdpSocket,
    stream_large_transfer,
)
from tests.runtime.clock import VirtualClock
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
TIMEOUT = 10.0
WORKERS = 8
LOG = logging.getLogger("asport_sync.test")


class NotedCalls(Calls):
    """Calls of callables that note what they get."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[Any, ...]] = []
        names = ("on_connect", "on_ready", "on_disconnect")
        self.begin({name: self._callable(name) for name in names}, FakeCounters(), RateLimit())

    def _callable(self, name: str) -> Callable[..., object]:
        return lambda *arguments: self._noted.append((name, *arguments))

    def noted(self) -> list[tuple[Any, ...]]:
        """Makes all calls that wait, and returns the name and the arguments of each. Then no more are made."""
        assert self.end(TIMEOUT) is None
        return self._noted


class RelayScene:
    """Workers, counters and a connection whose streams are relayed."""

    def __init__(self, max_workers: int = 4) -> None:
        self.clock = VirtualClock()
        self.counters = FakeCounters()
        self.workers = WorkerPool(WORKERS)
        self.engine = FakeEngine()
        self.relays = Relays(self.engine.as_real(), self.workers, max_workers, self.counters, LOG, self.place)
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

    def counter(self, name: str) -> int:
        return self.counters[name]


def as_stream(stream: FakeStream) -> Stream:
    return cast(Stream, stream)


def as_connection(connection: FakeConnection) -> Connection:
    return cast(Connection, connection)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


class Pump:
    """A pump, its clock, and everything it needs."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.thread = SelectorThread("asport-pump", self.clock)
        self.thread.start()
        self.workers = WorkerPool(2)
        self.counters = FakeCounters()
        self.connection = FakeEngine().new_connection()

    def close(self) -> None:
        assert self.thread.stop(TIMEOUT)
        assert self.workers.stop(TIMEOUT)

    def do(self, function: Any, *arguments: Any) -> None:
        self.thread.call_and_wait(function, *arguments)

    def pass_time(self, seconds: float) -> None:
        def pass_it() -> None:
            self.clock.advance(seconds)
            self.thread._timers.run()

        self.do(pass_it)

    def counter(self, name: str) -> int:
        return self.counters[name]

    @property
    def udp(self) -> FakeUdpSocket:
        return self.connection.udp[-1]


class Busy:
    """A socket that the engine has left to the pump, and somebody who sends to it."""

    def __init__(self, pump: Pump, udp: FakeUdpSocket, begin: Any) -> None:
        self.pump = pump
        self.udp = udp
        self.sender = sockets.bind_udp(HOST, 0)
        self._begin = begin

    def begin(self) -> None:
        self.pump.do(self._begin, cast(UdpSocket, self.udp))

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.sender.sendto(b"x", self.udp.sock.getsockname())

    def expect_reads(self, reads: int) -> None:
        wait_until(lambda: self.udp.reads >= reads, TIMEOUT, f"the socket is read {reads} times")

    def settle(self) -> int:
        """Two turns of the pump; returns how often the socket has been read."""
        for _ in range(2):
            self.pump.do(lambda: None)
        return self.udp.reads
