"""The load generator against its own service, and what it says when something between them is at fault."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from bench import load
from bench.load import Address, LoadError, Service
from tests.bench.relay import at, tcp_relay, udp_relay

# More than one page of the pattern, and not a whole number of them.
SIZE = 3_000_001
REQUEST = 24


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with load.start_service() as running:
        yield running


@pytest.fixture
def silent() -> Iterator[Address]:
    """A listener whose connections are never accepted, so never answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()


# ---- bulk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize("streams", [1, 7])
def test_transfers_the_size_that_was_asked_for(
    service: Service, direction: Literal["up", "down", "both"], streams: int
) -> None:
    result = load.bulk(service.address, direction=direction, streams=streams, total=SIZE)
    assert result.ok
    assert result.errors == ()
    assert result.bytes == SIZE
    assert result.seconds > 0


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_transfers_for_the_time_that_was_asked_for(service: Service, direction: Literal["up", "down", "both"]) -> None:
    result = load.bulk(service.address, direction=direction, streams=2, seconds=0.4, warmup=0.1)
    assert result.ok
    assert result.seconds == pytest.approx(0.4)
    assert result.bytes > 0
    assert result.gigabits_per_second == pytest.approx(result.bytes * 8e-9 / 0.4)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "lost": lambda data: data[1:],
    "duplicated": lambda data: data[:1] + data,
    "reordered": lambda data: data[:16][::-1] + data[16:],
    "all lost": lambda data: b"",
}


@pytest.mark.parametrize("position", [0, 5, 65536 * 3 + 3, 1_500_000])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_notices_bytes_that_are_not_as_sent(
    service: Service, direction: Literal["up", "down"], change: str, position: int
) -> None:
    if direction == "up":
        relay = tcp_relay(service.address, up=at(REQUEST + position, CHANGES[change]))
    else:
        relay = tcp_relay(service.address, down=at(position, CHANGES[change]))
    with relay as address:
        result = load.bulk(address, direction=direction, total=SIZE, timeout=0.3)
    assert not result.ok
    assert len(result.errors) == 1
    # A lost piece of the request itself may be met by silence, everything else by a comparison.
    assert any(word in result.errors[0] for word in ("wrong", "no progress"))


@pytest.mark.parametrize("pieces", [1, 4, 16])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_notices_whole_pages_that_are_missing(service: Service, direction: Literal["up", "down"], pieces: int) -> None:
    # Loss that keeps every later byte at the same place of its page.
    length = pieces * 65536
    begin = 65536 + (REQUEST if direction == "up" else 0) + 100

    def cut(data: bytes, offset: int) -> bytes:
        first = min(max(begin - offset, 0), len(data))
        last = min(max(begin + length - offset, 0), len(data))
        return data[:first] + data[last:]

    relay = tcp_relay(service.address, up=cut) if direction == "up" else tcp_relay(service.address, down=cut)
    with relay as address:
        result = load.bulk(address, direction=direction, total=SIZE, timeout=0.3)
    assert not result.ok
    assert "wrong" in result.errors[0]


def test_notices_that_two_streams_were_exchanged(service: Service) -> None:
    # Both requests lose their seeds, so both get the pattern of another stream.
    with tcp_relay(service.address, up=at(16, lambda data: bytes(8) + data[8:])) as address:
        result = load.bulk(address, direction="down", streams=2, total=SIZE)
    assert len(result.errors) == 2


def test_notices_bytes_after_the_end(service: Service) -> None:
    with tcp_relay(service.address, down=at(SIZE - 1, lambda data: data + b"more")) as address:
        result = load.bulk(address, direction="down", total=SIZE)
    assert not result.ok
    assert "after the end" in result.errors[0]


def test_a_timed_transfer_notices_wrong_bytes(service: Service) -> None:
    with tcp_relay(service.address, up=at(500_000, CHANGES["flipped"])) as address:
        result = load.bulk(address, direction="up", streams=1, seconds=0.5)
    assert not result.ok
    assert "wrong" in result.errors[0]


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_a_transfer_that_stands_still_ends(silent: Address, direction: Literal["up", "down", "both"]) -> None:
    result = load.bulk(silent, direction=direction, streams=2, total=100_000_000, timeout=0.3)
    assert not result.ok
    assert result.bytes == 0
    assert all("no progress" in error for error in result.errors)


def test_a_refused_transfer_says_so(closed_port: Address) -> None:
    result = load.bulk(closed_port, direction="down", total=1000)
    assert not result.ok
    assert "refused" in result.errors[0]


# ---- ping and connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("udp", [False, True])
def test_pings_as_often_as_asked(service: Service, udp: bool) -> None:
    result = load.ping(service.address, udp=udp, count=50)
    assert result.count == 50
    assert result.lost == 0
    assert 0 < result.p50_us <= result.p99_us <= result.max_us
    assert result.mean_us <= result.max_us


@pytest.mark.parametrize("udp", [False, True])
def test_pings_as_long_as_asked(service: Service, udp: bool) -> None:
    assert 1 <= load.ping(service.address, udp=udp, seconds=0.1, interval_us=10_000).count <= 11


def test_a_ping_that_comes_back_changed_is_an_error(service: Service) -> None:
    with tcp_relay(service.address, down=at(3, CHANGES["flipped"])) as address:
        with pytest.raises(LoadError, match="another byte"):
            load.ping(address, count=50)


def test_nothing_to_ping_is_an_error(closed_port: Address) -> None:
    with pytest.raises(LoadError, match="refused"):
        load.ping(closed_port, count=1)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_counts_connections(service: Service, concurrency: int) -> None:
    before = service.report().accepted
    result = load.connections(service.address, concurrency=concurrency, seconds=0.2)
    assert result.errors == 0
    assert result.connections > 0
    # Those of the end were open when the time was over; two more asked for reports.
    assert result.connections <= service.report().accepted - before <= result.connections + concurrency + 2
    assert result.per_second == pytest.approx(result.connections / result.seconds, rel=0.01)


def test_a_connection_with_a_wrong_answer_is_an_error(service: Service) -> None:
    with tcp_relay(service.address, down=at(0, CHANGES["flipped"])) as address:
        with pytest.raises(LoadError, match="another byte"):
            load.connections(address, seconds=0.1)


def test_no_connection_at_all_is_an_error(closed_port: Address) -> None:
    with pytest.raises(LoadError, match="refused"):
        load.connections(closed_port, seconds=0.1)


# ---- hold ------------------------------------------------------------------------------------------------------------


def test_holds_connections(service: Service) -> None:
    before = service.report().open
    with load.hold(service.address, service=service.address, count=300) as held:
        assert (held.opened, held.answered, held.errors) == (300, 300, 0)
        assert service.report().open == before + 300
        assert held.check().answered == 300
        assert held.check().answered == 300
        closed = held.close()
        assert (closed.closed, closed.left) == (300, 0)
        assert service.report().open == before
        assert held.check().answered == 0


def test_opens_held_connections_at_a_pace(service: Service) -> None:
    with load.hold(service.address, service=service.address, count=5, pace=1000) as held:
        assert held.answered == 5


def test_held_connections_end_with_the_context(service: Service) -> None:
    with load.hold(service.address, service=service.address, count=10):
        pass
    with load.hold(service.address, service=service.address, count=1) as held:
        assert held.close().left == 0


def test_holding_copes_with_connections_that_never_answer(service: Service, silent: Address) -> None:
    with load.hold(silent, service=service.address, count=20, timeout=0.3) as held:
        assert (held.opened, held.answered, held.errors) == (20, 0, 0)
        assert held.check().answered == 0
        assert held.close().closed == 20


def test_holding_copes_with_connections_that_are_refused(service: Service, closed_port: Address) -> None:
    with load.hold(closed_port, service=service.address, count=20) as held:
        assert (held.opened, held.answered, held.errors) == (0, 0, 20)


# ---- udp -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 9000])
@pytest.mark.parametrize("echo", [False, True])
def test_counts_datagrams(service: Service, size: int, echo: bool) -> None:
    result = load.udp(service.address, service=service.address, size=size, rate=2000, seconds=0.2, echo=echo)
    assert 0 < result.sent <= 400
    assert result.delivered == result.sent
    assert (result.loss, result.duplicates, result.reordered, result.corrupt) == (0, 0, 0, 0)


def test_tells_apart_what_went_wrong_with_datagrams(service: Service) -> None:
    kept: list[bytes] = []

    def change(number: int, data: bytes) -> list[bytes]:
        if number == 10:
            return []
        if number == 20:
            return [data, data]
        if number == 30:
            return [data[:-1] + bytes([data[-1] ^ 1])]
        if number == 40:
            return [data[:-1]]
        if number == 50:
            return [data[:16] + bytes([data[16] ^ 1]) + data[17:]]
        if number == 60:
            kept.append(data)
            return []
        if number == 70:
            return [data, kept.pop()]
        return [data]

    with udp_relay(service.address, change) as address:
        result = load.udp(address, service=service.address, size=100, rate=1000, seconds=0.2)
    assert result.sent > 70
    assert result.corrupt == 3
    assert result.delivered == result.sent - 4
    assert (result.duplicates, result.reordered) == (1, 1)
    assert result.loss == pytest.approx(4 / result.sent, abs=1e-6)


def test_datagrams_that_never_come_back_are_an_error(service: Service, closed_port: Address) -> None:
    with pytest.raises(LoadError, match="no datagram comes back"):
        load.udp(closed_port, service=service.address, size=64, rate=10, seconds=0.1)


# ---- service ---------------------------------------------------------------------------------------------------------


def test_the_echo_request_may_come_in_one_piece_with_the_first_bytes(service: Service) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(load.ECHO_REQUEST + b"first")
        assert connection.recv(100) == b"first"


def test_the_echo_request_may_come_byte_by_byte(service: Service) -> None:
    with socket.create_connection(service.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in load.ECHO_REQUEST + b"x":
            connection.sendall(bytes([byte]))
        assert connection.recv(100) == b"x"


def test_an_echo_loses_nothing_when_its_reader_is_slow(service: Service) -> None:
    data = os.urandom(8_000_000)
    received = bytearray()

    def write() -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    with socket.create_connection(service.address) as connection:
        connection.sendall(load.ECHO_REQUEST)
        writer = threading.Thread(target=write)
        writer.start()
        while part := connection.recv(1_000_000):
            received += part
        writer.join()
    assert received == data


def test_an_unknown_request_is_answered_with_a_reset(service: Service) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(bytes(24))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_serves_ipv6() -> None:
    with load.start_service(("::1", 0)) as service:
        assert load.ping(service.address, count=3).count == 3
        assert load.ping(service.address, udp=True, count=3).count == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_ends_by_signal(number: signal.Signals) -> None:
    with subprocess.Popen([load.build(), "service", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(10) == 0


def test_the_service_ends_with_its_input() -> None:
    with subprocess.Popen(
        [load.build(), "service", "--listen", "127.0.0.1:0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["bulk", "--connect", "127.0.0.1:1", "--direction", "sideways"],
        ["bulk", "--connect", "127.0.0.1:1", "--direction", "up"],
        ["ping", "--connect", "127.0.0.1", "--count", "1"],
        ["udp", "--connect", "127.0.0.1:1", "--service", "127.0.0.1:1", "--size", "10", "--rate", "1"],
    ],
)
def test_wrong_arguments_are_answered_with_an_error(arguments: list[str]) -> None:
    done = subprocess.run([load.build(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith('{"error": ')


@pytest.fixture
def closed_port() -> Iterator[Address]:
    """An address where nobody listens, and nobody else will."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        address: Address = tcp.getsockname()
        udp.bind(address)
        yield address
