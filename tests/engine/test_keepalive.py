"""TCP connections whose far end is gone without a word, those whose far end only takes its time, and urgent bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from asport_sync.engine import StreamEnd, StreamEnded, StreamResult
from asport_sync.errors import EngineError
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    EVENT_TIMEOUT,
    Pair,
    Relay,
    connected,
    expect_reset,
    open_stream,
    tcp_pair,
)
from tests.path.network import NetworkPath
from tests.support.certificates import Certificate
from tests.support.namespaces import unavailable
from tests.support.traffic import receive_exactly, send_and_end
from tests.support.waiting import wait_until

# Seconds: the shortest there is. The far end is probed after so long, then three times more at this distance.
KEEPALIVE = 1.0
GONE = 4.0
# Several times as long as it takes to be given up.
STALL = 3.5 * GONE
# Seconds for what takes GONE, on a machine that has much else to do.
GRACE_PERIOD = 60.0
DRIVERS = ["attached", "worker"]
# The connection has to outlast the stall.
TRANSPORT = dataclasses.replace(CLIENT_TRANSPORT, keep_alive=1.0)


@pytest.fixture
def path() -> Iterator[NetworkPath]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with NetworkPath() as found:
        yield found


@contextlib.contextmanager
def relayed(
    pair: Pair, public: socket.socket, local: socket.socket, driver: str
) -> Iterator[Callable[[], StreamResult]]:
    """A stream between two sockets; how it ended on the server's side."""
    pair.server.engine.report_streams(100)
    stream, opened = open_stream(pair)
    opened.attach(local)
    if driver == "worker":
        relay = Relay(stream, public)
        relay.start()
        yield lambda: finished(relay)
    else:
        stream.attach(public)
        yield lambda: pair.server.expect(StreamEnded).result


def finished(relay: Relay) -> StreamResult:
    relay.join(GRACE_PERIOD)
    assert isinstance(relay.outcome, StreamResult), relay.outcome
    return relay.outcome


def pair_across(path: NetworkPath) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection across the path."""
    with path.a.socket() as listener:
        listener.bind((path.address_a, 0))
        listener.listen()
        visitor = path.b.socket()
        visitor.connect(listener.getsockname())
        public, _ = listener.accept()
    visitor.settimeout(GRACE_PERIOD)
    return public, visitor


@pytest.mark.parametrize(
    "waiting", [0, 1000, 20 << 20], ids=["idle", "data waits", "more data than goes into the socket"]
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_far_end_that_is_gone_is_given_up(
    certificate: Certificate, path: NetworkPath, driver: str, waiting: int
) -> None:
    public, visitor = pair_across(path)
    local, service = tcp_pair()
    with connected(certificate, client_transport=TRANSPORT) as pair, visitor, service:
        pair.server.engine.keep_streams_alive(KEEPALIVE)
        with relayed(pair, public, local, driver) as end:
            visitor.sendall(b"here")
            assert receive_exactly(service, 4) == b"here"
            service.sendall(b"there")
            assert receive_exactly(visitor, 5) == b"there"
            path.change(black_hole=True)
            service.settimeout(GRACE_PERIOD)
            sender = threading.Thread(target=send_until_refused, args=(service, waiting))
            sender.start()
            wait_until(lambda: pair.server.counter("relays_socket_error") == 1, GRACE_PERIOD, "it is given up")
            sender.join()
            result = end()
            assert (result.end, result.error) == (StreamEnd.SOCKET_ERROR, errno.ETIMEDOUT)
            assert pair.server.counter("relays_timed_out") == 1
            if not waiting:  # a write that is refused tells of the reset, too, and it is told once
                expect_reset(service)


def send_until_refused(sock: socket.socket, size: int) -> None:
    with contextlib.suppress(ConnectionError):
        sock.sendall(bytes(size))


def pair_with_buffer(size: int) -> tuple[socket.socket, socket.socket]:
    """A TCP connection of which the second end has so much room for what it does not read; 0: as the system says."""
    with socket.socket() as listener:
        if size:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    second.settimeout(EVENT_TIMEOUT)
    return first, second


@pytest.mark.parametrize(
    ("size", "buffer"),
    [(100_000, 4096), (30 << 20, 0)],
    ids=["all of it in the socket", "more than goes into the socket"],
)
def test_a_reader_that_stalls_is_not_taken_for_one_that_is_gone(
    certificate: Certificate, size: int, buffer: int
) -> None:
    """Its kernel answers every window probe, and Linux would end the connection all the same."""
    with connected(certificate, client_transport=TRANSPORT) as pair, contextlib.ExitStack() as stack:
        pair.server.engine.keep_streams_alive(KEEPALIVE)
        readers = []
        for driver in DRIVERS:
            public, visitor = pair_with_buffer(buffer)
            local, service = tcp_pair()
            stack.enter_context(visitor)
            stack.enter_context(service)
            stack.enter_context(relayed(pair, public, local, driver))
            data = os.urandom(size)
            service.settimeout(GRACE_PERIOD)
            sender = threading.Thread(target=send_and_end, args=(service, data))
            sender.start()
            readers.append((visitor, data, sender))
        time.sleep(STALL)
        assert pair.server.counter("relays_timed_out") == 0
        for visitor, data, sender in readers:
            assert receive_exactly(visitor, size) == data
            assert visitor.recv(1) == b""
            visitor.shutdown(socket.SHUT_WR)
            sender.join()
        wait_until(lambda: pair.server.counter("relays_finished") == 2, EVENT_TIMEOUT, "both end in order")


def test_a_slow_reader_is_not_taken_for_one_that_is_gone(certificate: Certificate) -> None:
    """Its window is closed most of the time, and opens by a little. By TCP_USER_TIMEOUT Linux would end it, too."""
    public, visitor = pair_with_buffer(4096)
    local, service = tcp_pair()
    data = os.urandom(1 << 20)
    with connected(certificate, client_transport=TRANSPORT) as pair, visitor, service:
        pair.server.engine.keep_streams_alive(KEEPALIVE)
        with relayed(pair, public, local, "attached"):
            service.settimeout(GRACE_PERIOD)
            sender = threading.Thread(target=send_and_end, args=(service, data))
            sender.start()
            received = b""
            until = time.monotonic() + STALL
            while time.monotonic() < until:
                received += receive_exactly(visitor, 4096)
                time.sleep(0.7)
            assert received + receive_exactly(visitor, len(data) - len(received)) == data
            sender.join()


def test_a_reader_that_stalled_and_reads_again_may_be_given_up_later(
    certificate: Certificate, path: NetworkPath
) -> None:
    public, visitor = pair_across(path)
    local, service = tcp_pair()
    size = 30 << 20
    with connected(certificate, client_transport=TRANSPORT) as pair, visitor, service:
        pair.server.engine.keep_streams_alive(KEEPALIVE)
        service.settimeout(GRACE_PERIOD)
        with relayed(pair, public, local, "attached") as end:
            sender = threading.Thread(target=send_until_refused, args=(service, size))
            sender.start()
            time.sleep(2 * GONE)
            assert len(receive_exactly(visitor, size // 2)) == size // 2
            path.change(black_hole=True)
            result = end_within(pair, end)
            assert (result.end, result.error) == (StreamEnd.SOCKET_ERROR, errno.ETIMEDOUT)
            sender.join()


def end_within(pair: Pair, end: Callable[[], StreamResult]) -> StreamResult:
    wait_until(lambda: pair.server.counter("relays_socket_error") == 1, GRACE_PERIOD, "it is given up")
    return end()


@pytest.mark.parametrize("idle", [KEEPALIVE, 60.0, 0.0])
def test_what_a_socket_is_told(certificate: Certificate, idle: float) -> None:
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    with (
        connected(certificate, client_transport=TRANSPORT) as pair,
        visitor,
        service,
        socket.socket(fileno=os.dup(public.fileno())) as watched,
    ):
        if idle != 60.0:
            pair.server.engine.keep_streams_alive(60.0)  # the last word counts
        pair.server.engine.keep_streams_alive(idle)
        with relayed(pair, public, local, "attached"):
            visitor.sendall(b"here")
            assert receive_exactly(service, 4) == b"here"
            assert watched.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1
            assert watched.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (idle > 0)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            if idle:
                expected = [60, 20, 3] if idle == 60.0 else [1, 1, 3]
                assert [watched.getsockopt(socket.IPPROTO_TCP, option) for option in options] == expected


def test_times_that_the_kernel_does_not_take_are_refused(certificate: Certificate) -> None:
    with connected(certificate, client_transport=TRANSPORT) as pair:
        engine = pair.server.engine
        engine.keep_streams_alive(32767.0)
        with pytest.raises(EngineError):
            engine.keep_streams_alive(32767.1)


# --- urgent bytes -----------------------------------------------------------------------------------------------------

# Pieces, each with whether it is sent as urgent data (MSG_OOB), of which the last byte is the urgent one.
PIECES = [(b"ab", False), (b"!", True), (b"cd", False), (b"e!", True), (b"?", True), (b"f", False)]
SAID = b"".join(piece for piece, _ in PIECES)


def say(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece, urgent in PIECES:
        sock.send(piece, socket.MSG_OOB if urgent else 0)


@pytest.mark.parametrize("driver", DRIVERS)
def test_urgent_bytes_keep_their_place(certificate: Certificate, driver: str) -> None:
    """In both directions. Each round waits for the one before, so nothing that follows pushes what got stuck."""
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    with connected(certificate, client_transport=TRANSPORT) as pair, visitor, service:
        with relayed(pair, public, local, driver):
            for _ in range(20):
                say(visitor)
                assert receive_exactly(service, len(SAID)) == SAID
                say(service)
                assert receive_exactly(visitor, len(SAID)) == SAID


@pytest.mark.parametrize("driver", DRIVERS)
def test_reading_goes_on_behind_an_urgent_byte(certificate: Certificate, driver: str) -> None:
    """A read stops in front of it, with all that follows there already: nothing more will be announced."""
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    with connected(certificate, client_transport=TRANSPORT) as pair, visitor, service:
        visitor.sendall(b"before")
        visitor.send(b"!", socket.MSG_OOB)
        visitor.sendall(b"after")
        with relayed(pair, public, local, driver):
            assert receive_exactly(service, 12) == b"before!after"
