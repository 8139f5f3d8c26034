"""The TCP relay, between sockets of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from asport_sync.testing import TcpCounters, TcpFaults, TcpRelay
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.services import TcpEcho, TcpSink, TcpSource, sink_answer
from tests.support.traffic import connect, echo, receive_exactly, receive_to_end, upload
from tests.support.waiting import wait_until

SECONDS = 10.0
QUIET = 0.2  # seconds after which nothing more is expected
MIB = 1024 * 1024


def adds_up(relay: TcpRelay) -> None:
    counters = relay.counters
    for way in (counters.to_target, counters.to_visitor):
        assert way.received == way.delivered + way.discarded + way.held


@contextlib.contextmanager
def pair(**faults: Any) -> Iterator[tuple[TcpRelay, socket.socket, socket.socket]]:
    """A relay and one connection through it: relay, the user's end, the service's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        with TcpRelay(listener.getsockname(), **faults) as relay:
            with connect(relay.address) as visitor:
                service, _ = listener.accept()
                with service:
                    service.settimeout(SECONDS)
                    yield relay, visitor, service
                    adds_up(relay)
    adds_up(relay)


def until_reset(sock: socket.socket) -> tuple[bytes, bool]:
    """What comes, and whether a reset is what ends it."""
    received = b""
    try:
        while data := sock.recv(100):
            received += data
    except ConnectionResetError:
        return received, True
    return received, False


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_and_ends_pass(host: str) -> None:
    data = seeded_bytes(1, 3 * MIB)
    with TcpEcho(host) as service, TcpRelay(service.address) as relay:
        assert echo(relay.address, data) == data
    with TcpSink(host) as sink, TcpRelay(sink.address) as relay:
        assert upload(relay.address, data) == sink_answer(data)
        wait_until(lambda: relay.counters.open == 0, SECONDS, "the connection is over")
        counters = relay.counters
        assert counters.accepted == 1
        assert counters.to_target == TcpCounters(received=len(data), delivered=len(data), ends=1)
        assert counters.to_visitor.delivered == len(sink_answer(data))
    with TcpSource(MIB, host=host) as source, TcpRelay(source.address) as relay:
        assert upload(relay.address, data[:MIB]) == source.data


def test_many_connections() -> None:
    with TcpEcho() as service, TcpRelay(service.address) as relay:
        for number in range(50):
            assert echo(relay.address, b"%d" % number) == b"%d" % number
        assert relay.counters.accepted == 50
        wait_until(lambda: relay.counters.open == 0, SECONDS, "all are over")


def test_a_slow_reader() -> None:
    """The rate is what is asked for, and the sender feels it."""
    rate = 400_000
    with pair(to_target=TcpFaults(rate=rate)) as (relay, visitor, service):
        data = seeded_bytes(2, 8 * MIB)
        sender = threading.Thread(target=_send, args=(visitor, data))
        sender.start()
        start = time.monotonic()
        assert receive_exactly(service, 200_000) == data[:200_000]
        # No faster, but for the burst that may be caught up with.
        assert time.monotonic() - start >= 0.4
        # The rest would take 20 s.
        assert sender.is_alive()
        assert relay.counters.to_target.held <= 65536
        visitor.shutdown(socket.SHUT_RDWR)
        sender.join()


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_a_rate_of_one_byte_per_second_still_moves() -> None:
    with pair(to_visitor=TcpFaults(rate=1)) as (_, visitor, service):
        service.sendall(b"ab")
        assert visitor.recv(10) == b"a"


def test_half_open_and_back() -> None:
    with pair() as (relay, visitor, service):
        relay.to_target = TcpFaults(half_open=True)
        assert relay.to_target.half_open
        visitor.sendall(b"nobody hears this")
        service.sendall(b"but this")
        assert receive_exactly(visitor, 8) == b"but this"
        service.settimeout(QUIET)
        with pytest.raises(TimeoutError):
            service.recv(100)
        service.settimeout(SECONDS)
        relay.to_target = TcpFaults()
        assert receive_exactly(service, 17) == b"nobody hears this"
        visitor.shutdown(socket.SHUT_WR)
        assert service.recv(1) == b""


def test_half_open_after_some_bytes() -> None:
    with pair(to_visitor=TcpFaults(half_open_after=1000)) as (relay, visitor, service):
        service.sendall(seeded_bytes(3, 5000))
        assert receive_exactly(visitor, 1000) == seeded_bytes(3, 5000)[:1000]
        visitor.settimeout(QUIET)
        with pytest.raises(TimeoutError):
            visitor.recv(1)
        assert relay.counters.open == 1
        assert relay.counters.to_visitor.delivered == 1000


def test_reset_after_some_bytes() -> None:
    with pair(to_target=TcpFaults(reset_after=1000)) as (relay, visitor, service):
        visitor.sendall(seeded_bytes(4, 5000))
        received, reset = until_reset(service)
        assert reset
        assert seeded_bytes(4, 5000)[:1000].startswith(received)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
        assert relay.counters.to_target.delivered == 1000
        assert (relay.counters.resets_made, relay.counters.open) == (1, 0)


def test_an_end_in_one_direction_and_data_in_the_other() -> None:
    with pair(to_target=TcpFaults(end_after=1000)) as (relay, visitor, service):
        visitor.sendall(seeded_bytes(5, 5000))
        assert receive_to_end(service) == seeded_bytes(5, 5000)[:1000]
        data = seeded_bytes(6, 2 * MIB)
        sender = threading.Thread(target=_send, args=(service, data))
        sender.start()
        assert receive_exactly(visitor, len(data)) == data
        sender.join()
        visitor.sendall(b"more that nobody reads")
        wait_until(lambda: relay.counters.to_target.discarded == 4022, SECONDS, "it was discarded")
        visitor.shutdown(socket.SHUT_WR)
        service.shutdown(socket.SHUT_WR)
        assert visitor.recv(1) == b""
        wait_until(lambda: relay.counters.open == 0, SECONDS, "the connection is over")
        assert (relay.counters.to_target.ends, relay.counters.to_visitor.ends) == (1, 1)


def test_delay() -> None:
    with pair(to_target=TcpFaults(delay=0.05), to_visitor=TcpFaults(delay=0.03)) as (_, visitor, service):
        start = time.monotonic()
        visitor.sendall(b"question")
        assert receive_exactly(service, 8) == b"question"
        service.sendall(b"answer")
        assert receive_exactly(visitor, 6) == b"answer"
        assert time.monotonic() - start >= 0.08
        start = time.monotonic()
        visitor.shutdown(socket.SHUT_WR)
        assert service.recv(1) == b""
        assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("side", ["user", "service"])
def test_resets_pass(side: str) -> None:
    with pair() as (relay, visitor, service):
        visitor.sendall(b"x")
        assert service.recv(1) == b"x"
        ending, other = (visitor, service) if side == "user" else (service, visitor)
        ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ending.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        assert (relay.counters.resets_passed, relay.counters.resets_made) == (1, 0)


def test_nobody_listens_at_the_target() -> None:
    target = ("127.0.0.1", free_port())
    with TcpRelay(target) as relay:
        with (
            pytest.raises(ConnectionResetError),
            connect(relay.address) as visitor,
        ):  # the reset may be quicker than this
            visitor.recv(1)
        assert relay.counters.connect_failures == 1


def test_start_and_close() -> None:
    relay = TcpRelay(("127.0.0.1", 9))
    with pytest.raises(RuntimeError, match="not started"):
        assert relay.address
    with relay:
        with pytest.raises(RuntimeError, match="once"):
            relay.start()
        relay.close()
        relay.close()
    with pytest.raises(RuntimeError, match="once"):
        relay.start()


def test_close_resets_what_is_left() -> None:
    with pair() as (relay, visitor, service):
        visitor.sendall(b"x")
        assert service.recv(1) == b"x"
        relay.close()
        for end in (visitor, service):
            with pytest.raises(ConnectionResetError):
                end.recv(1)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rate", 0, "a whole number, 1 or more"),
        ("rate", 0.5, "a whole number, 1 or more"),
        ("delay", -1, "seconds, 0 or more"),
        ("half_open", 1, "True or False"),
        ("half_open_after", -1, "a whole number, 0 or more"),
        ("reset_after", -1, "a whole number, 0 or more"),
        ("end_after", "soon", "a whole number, 0 or more"),
    ],
)
def test_impossible_faults_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*{expected}"):
        TcpFaults(**{name: value})


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="target must be a host and a port"):
        TcpRelay(("nowhere.invalid", 80))
