"""Token buckets on real connections: payload is not faster than its limit, arrives whole, and others go on.

How close to the rate it comes is measured by ``python -m tests.bounds.bandwidth``; that the rate is exact under a clock
of its own, by tests/native/test_bucket.c. Here a limit is only ever a lower bound of a time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import Bucket, Carrier, Connection, Direction, StreamResult
from asport_sync.errors import EngineError, HandleGoneError
from tests.engine.pair import EVENT_TIMEOUT, Pair, Relay, Side, connected, expect_reset, open_stream, tcp_pair
from tests.engine.test_traffic import open_association
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

RATE = 1000000  # bytes per second
SIZE = 400000
BURST = 16384  # bytes: the minimum of a bucket
DEBT = RATE // 25  # bytes that datagrams may owe

# Which side limits, and in which direction, for payload of visitors and of the local service.
LIMITS = [
    pytest.param("server", Direction.SENT, True, id="in-server"),
    pytest.param("client", Direction.RECEIVED, True, id="in-client"),
    pytest.param("server", Direction.RECEIVED, False, id="out-server"),
    pytest.param("client", Direction.SENT, False, id="out-client"),
]


def side_of(pair: Pair, name: str) -> tuple[Side, Connection]:
    return (pair.server, pair.server_connection) if name == "server" else (pair.client, pair.client_connection)


def limited(pair: Pair, name: str, direction: Direction, rate: int = RATE) -> Bucket:
    """A bucket in the service of one side's connection."""
    side, connection = side_of(pair, name)
    bucket = side.engine.new_bucket(rate)
    connection.use_bucket(bucket, direction)
    return bucket


@contextlib.contextmanager
def relayed(pair: Pair, *, workers: bool) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A stream that workers or the engines relay; the visitor's socket and the service's."""
    stream, opened = open_stream(pair)
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    relays = [Relay(stream, public), Relay(opened, local)] if workers else []
    with visitor, service:
        for relay in relays:
            relay.start()
        if not workers:
            stream.attach(public)
            opened.attach(local)
        yield visitor, service
    for relay in relays:
        relay.finish()


def send_all(sock: socket.socket, data: bytes) -> threading.Thread:
    """Sends in a thread, and then FIN."""

    def send() -> None:
        with contextlib.suppress(OSError):  # the test has ended
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def receive_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while chunk := sock.recv(65536):
        received += chunk
    return bytes(received)


@pytest.mark.parametrize("workers", [False, True], ids=["engine", "worker"])
@pytest.mark.parametrize(("limiting", "direction", "inward"), LIMITS)
def test_a_stream_is_not_faster_than_its_limit(
    certificate: Certificate, limiting: str, direction: Direction, inward: bool, workers: bool
) -> None:
    data = os.urandom(SIZE)
    with connected(certificate) as pair:
        bucket = limited(pair, limiting, direction)
        with relayed(pair, workers=workers) as (visitor, service):
            source, target = (visitor, service) if inward else (service, visitor)
            began = time.monotonic()
            sender = send_all(source, data)
            assert receive_all(target) == data
            took = time.monotonic() - began
            sender.join()
            target.shutdown(socket.SHUT_WR)
            assert source.recv(1) == b""
        assert took >= (SIZE - BURST) / RATE
        side, _ = side_of(pair, limiting)
        assert bucket.info().waits > 0
        assert side.counter("bandwidth_waits") == bucket.info().waits
        assert bucket.info().rate == RATE


def test_the_other_direction_is_not_limited(certificate: Certificate) -> None:
    data = os.urandom(SIZE)
    with connected(certificate) as pair:
        bucket = limited(pair, "server", Direction.SENT, 1000)
        with relayed(pair, workers=False) as (visitor, service):
            send_all(service, data)
            assert receive_all(visitor) == data
        assert bucket.info().waits == 0


def test_streams_share_a_bucket_and_a_stream_has_two(certificate: Certificate) -> None:
    data = os.urandom(SIZE // 2)
    with connected(certificate) as pair:
        limited(pair, "client", Direction.RECEIVED, 50 * RATE)
        limited(pair, "client", Direction.RECEIVED)
        with relayed(pair, workers=False) as (visitor, service), relayed(pair, workers=True) as (other, other_service):
            began = time.monotonic()
            senders = [send_all(visitor, data), send_all(other, data)]
            received: list[bytes] = []
            reader = threading.Thread(target=lambda: received.append(receive_all(other_service)))
            reader.start()
            assert receive_all(service) == data
            reader.join()
            took = time.monotonic() - began
            for sender in senders:
                sender.join()
        assert received == [data]
        assert took >= (SIZE - BURST) / RATE


@pytest.mark.parametrize("workers", [False, True], ids=["engine", "worker"])
def test_a_changed_rate_counts_at_once(certificate: Certificate, workers: bool) -> None:
    """At the first rate this would take 400 seconds."""
    data = os.urandom(SIZE)
    with connected(certificate) as pair:
        bucket = limited(pair, "server", Direction.SENT, 1000)
        with relayed(pair, workers=workers) as (visitor, service):
            send_all(visitor, data)
            wait_until(lambda: bucket.info().waits > 0, EVENT_TIMEOUT, "the stream waits")
            bucket.set_rate(0)
            assert receive_all(service) == data
        assert bucket.info().rate == 0


def test_a_bucket_counts_for_streams_that_exist(certificate: Certificate) -> None:
    with connected(certificate) as pair, relayed(pair, workers=False) as (visitor, service):
        visitor.sendall(b"?")
        assert service.recv(1) == b"?"
        bucket = limited(pair, "server", Direction.SENT)
        data = os.urandom(SIZE)
        began = time.monotonic()
        send_all(visitor, data)
        assert receive_all(service) == data
        assert time.monotonic() - began >= (SIZE - BURST) / RATE
        assert bucket.info().waits > 0


@pytest.mark.parametrize("workers", [False, True], ids=["engine", "worker"])
def test_a_stream_that_waits_may_end(certificate: Certificate, workers: bool) -> None:
    """A reset is passed on while both of its directions wait, and the bucket goes on for others."""
    with connected(certificate) as pair:
        inward = limited(pair, "server", Direction.SENT, 1000)
        outward = limited(pair, "server", Direction.RECEIVED, 1000)
        stream, opened = open_stream(pair)
        public, visitor = tcp_pair()
        local, service = tcp_pair()
        relays = [Relay(stream, public), Relay(opened, local)] if workers else []
        for relay in relays:
            relay.start()
        if not workers:
            stream.attach(public)
            opened.attach(local)
        with visitor, service:
            send_all(visitor, bytes(SIZE))
            send_all(service, bytes(SIZE))
            wait_until(lambda: inward.info().waits > 0 and outward.info().waits > 0, EVENT_TIMEOUT, "both wait")
            stream.reset()
            for sock in (visitor, service):
                with pytest.raises(ConnectionResetError):
                    receive_all(sock)
            for relay in relays:
                assert isinstance(relay.finish(), StreamResult)
        inward.set_rate(RATE)
        outward.set_rate(RATE)
        with relayed(pair, workers=False) as (visitor, service):
            send_all(visitor, b"x" * 100000)
            assert receive_all(service) == b"x" * 100000


@pytest.mark.parametrize("workers", [False, True], ids=["engine", "worker"])
def test_streams_may_wait_when_the_engine_ends(certificate: Certificate, workers: bool) -> None:
    """What waits does not hold up the end, nor stay behind (the fixture of all tests looks)."""
    with connected(certificate) as pair:
        bucket = limited(pair, "server", Direction.SENT, 1000)
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(relayed(pair, workers=workers)) for _ in range(3)]
            for visitor, _ in pairs:
                send_all(visitor, bytes(SIZE))
            wait_until(lambda: bucket.info().waits > 2, EVENT_TIMEOUT, "all wait")
            pair.server.engine.stop()
            for visitor, _ in pairs:
                expect_reset(visitor)


def test_the_end_of_a_connection_delivers_what_waits(certificate: Certificate) -> None:
    """Received bytes that wait for tokens are written all the same, if the rate gets to them."""
    with connected(certificate) as pair:
        bucket = limited(pair, "client", Direction.RECEIVED, 20000)
        with relayed(pair, workers=False) as (visitor, service):
            data = os.urandom(60000)
            visitor.sendall(data)
            wait_until(
                lambda: pair.client.counter("stream_bytes_received") >= len(data), EVENT_TIMEOUT, "all has arrived"
            )
            pair.server_connection.close()
            received = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while chunk := service.recv(65536):
                    received += chunk
            assert bytes(received) == data
        assert bucket.info().waits > 0


@pytest.mark.parametrize("carrier", [Carrier.DATAGRAM, Carrier.STREAM])
@pytest.mark.parametrize(("limiting", "direction", "inward"), LIMITS)
def test_datagrams_beyond_the_limit_are_dropped_and_counted(
    certificate: Certificate, limiting: str, direction: Direction, inward: bool, carrier: Carrier
) -> None:
    payload, last = bytes(1000), b"last"
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with open_association(pair) as assoc:
            bucket = limited(pair, limiting, direction)
            side, _ = side_of(pair, limiting)
            send, target = (assoc.to_service, assoc.service) if inward else (assoc.to_visitor, assoc.visitor)
            target.settimeout(0.01)
            began, sent, received = time.monotonic(), 0, 0
            while time.monotonic() < began + 0.5:
                for _ in range(10):  # about 10 MB/s
                    send(payload)
                    sent += 1
                time.sleep(0.001)
            datagram = b""
            while datagram != last:
                send(last)  # until there are tokens again
                with contextlib.suppress(TimeoutError):
                    while (datagram := target.recv(2000)) == payload:
                        received += 1
            took = time.monotonic() - began
            dropped = bucket.info().dropped
            assert side.counter("udp_drop_bandwidth") == dropped > 0
            assert received <= sent
            assert received * len(payload) <= BURST + DEBT + RATE * took + len(payload)
            assert received * len(payload) >= BURST


def test_what_is_refused(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        connection, engine = pair.server_connection, pair.server.engine
        buckets = [engine.new_bucket(RATE) for _ in range(3)]
        connection.use_bucket(buckets[0], Direction.SENT)
        connection.use_bucket(buckets[0], Direction.SENT)  # is there already
        connection.use_bucket(buckets[1], Direction.SENT)
        with pytest.raises(EngineError):
            connection.use_bucket(buckets[2], Direction.SENT)
        connection.use_bucket(buckets[2], Direction.RECEIVED)
        with pytest.raises(EngineError):
            engine.new_bucket(12_500_000_001)
        with pytest.raises(EngineError):
            buckets[0].set_rate(12_500_000_001)
        buckets[0].close()
        for call in (buckets[0].close, buckets[0].info, lambda: buckets[0].set_rate(1)):
            with pytest.raises(HandleGoneError):
                call()
        with pytest.raises(HandleGoneError):
            connection.use_bucket(buckets[0], Direction.RECEIVED)
