"""What moves much: streams that the engine hands to workers, and UDP sockets that it leaves to the pump."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from asport_sync.engine import (
    Carrier,
    SourceUnknown,
    StreamEnd,
    StreamLargeTransfer,
    StreamResult,
    UdpLargeTransfer,
    UdpRefused,
    UdpSocket,
)
from asport_sync.errors import EngineClosedError, EngineError, HandleGoneError
from asport_sync.runtime import sockets
from tests.engine.pair import EVENT_TIMEOUT, Pair, Relay, Side, connected, expect_closed, open_stream, tcp_pair
from tests.engine.test_hard_cases import SPINNING, processor_share
from tests.engine.test_traffic import OpenAssociation, expect_count, open_association, udp_socket
from tests.support.certificates import Certificate
from tests.support.sanitized import needs_speed
from tests.support.traffic import STUCK_FOR
from tests.support.waiting import NeverHappened, wait_until

# Its length divides nothing, so that a byte too many or too few shifts all that follows.
BLOCK = random.Random(1).randbytes(1_000_003)
# What every stream of these tests moves at least. Streams are handed over where 16 MiB have taken less than 0.25 s.
ENOUGH = 64 << 20
# Seconds until a machine with other work has been fast enough for once.
LARGE_TRANSFER_TIMEOUT = 60.0
# Bytes a second that a large transfer moves: LARGE_BYTES in LARGE_TIME of _native/engine/tcp.c.
LARGE_TRANSFER_RATE = 64 << 20
SOURCE = ("203.0.113.7", 54321)


class Flood:
    """Sends BLOCK over and over, and checks what arrives at the other end."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self._sender = sender
        self._receiver = receiver
        self._enough = threading.Event()
        self.sent = self.received = 0
        self.right = True
        self.broken: list[OSError] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def end(self) -> int:
        """Ends in order once enough has been sent; returns how much it was."""
        self._enough.set()
        self._join()
        assert not self.broken
        assert self.sent == self.received >= ENOUGH
        return self.sent

    def expect_break(self) -> None:
        """Waits until sender and receiver have met an error or an end: what arrived until then was right."""
        self._enough.set()
        self._join()
        assert self.broken

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(LARGE_TRANSFER_TIMEOUT)
            assert not thread.is_alive()
        assert self.right

    def _send(self) -> None:
        try:
            while not self._enough.is_set() or self.sent < ENOUGH:
                self._sender.sendall(BLOCK)
                self.sent += len(BLOCK)
            self._sender.shutdown(socket.SHUT_WR)
        except (ConnectionError, TimeoutError) as problem:
            self.broken.append(problem)

    def _receive(self) -> None:
        expected = memoryview(BLOCK + BLOCK)
        buffer = bytearray(len(BLOCK))
        try:
            while count := self._receiver.recv_into(buffer):
                start = self.received % len(BLOCK)
                self.right = self.right and memoryview(buffer)[:count] == expected[start : start + count]
                self.received += count
        except (ConnectionError, TimeoutError) as problem:
            self.broken.append(problem)


@contextlib.contextmanager
def attached(pair: Pair) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A stream that both engines relay; yields the user and the service."""
    stream, opened = open_stream(pair)
    public, visitor = tcp_pair()
    local, service = tcp_pair()
    with visitor, service:
        stream.attach(public)
        opened.attach(local)
        yield visitor, service


def expect_large_transfer(side: Side, *floods: Flood) -> StreamLargeTransfer:
    """Skips the test if no flood was fast enough: a busy machine, or a sanitizer."""

    def handed_over() -> bool:
        return any(isinstance(event, StreamLargeTransfer) for event in side.seen())

    what = f"{side.name} hands a stream over"
    try:
        wait_until(handed_over, LARGE_TRANSFER_TIMEOUT, what, detail=lambda: str(side.engine.counters()))
    except NeverHappened:
        moved = max(flood.end() for flood in floods)
        if moved < LARGE_TRANSFER_RATE * LARGE_TRANSFER_TIMEOUT:
            pytest.skip(f"too slow for a large transfer: {moved >> 20} MiB in {LARGE_TRANSFER_TIMEOUT:g} s")
        raise
    return side.expect(StreamLargeTransfer)


@pytest.mark.parametrize("one", ["server", "client"])
@pytest.mark.parametrize("direction", ["to the service", "to the user"])
def test_a_worker_takes_over_a_stream_that_moves_much(certificate: Certificate, one: str, direction: str) -> None:
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        side, other = (pair.server, pair.client) if one == "server" else (pair.client, pair.server)
        side.engine.share_streams(1)
        # Something is on its way against the stream, too.
        source, target = (visitor, service) if direction == "to the service" else (service, visitor)
        target.sendall(b"against the stream")
        flood = Flood(source, target)
        large_transfer = expect_large_transfer(side, flood)
        assert large_transfer.connection == (pair.server_connection if one == "server" else pair.client_connection)
        assert large_transfer.peer == (None if one == "server" else SOURCE)
        assert 0 < large_transfer.lasted < LARGE_TRANSFER_TIMEOUT
        assert large_transfer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        # Nobody relays for a moment; nothing is lost over it.
        time.sleep(0.2)
        relay = Relay(large_transfer.stream, large_transfer.sock)
        relay.start()
        moved = flood.end()
        assert source.recv(100) == b"against the stream"
        target.sendall(b"thanks")
        target.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := source.recv(100):
            received += chunk
        assert received == b"thanks"
        # All of it is counted, wherever it was relayed.
        little = len(b"against the stream" + b"thanks")
        reads = (one == "server") == (direction == "to the service")
        assert relay.finish() == StreamResult(*((moved, little) if reads else (little, moved)), StreamEnd.FINISHED)
        for name, value in (("streams_shared", 1), ("streams_relayed", 1), ("streams_attached", 0)):
            assert side.counter(name) == value, name
        assert side.counter("relays_finished") == 1
        expect_count(other, "streams_attached", 1)
        assert other.counter("streams_shared") == 0


def test_without_workers_nothing_is_handed_over(certificate: Certificate) -> None:
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        Flood(visitor, service).end()
        service.shutdown(socket.SHUT_WR)
        assert visitor.recv(1) == b""
        for side in (pair.server, pair.client):
            expect_count(side, "relays_finished", 1)
            assert side.counter("streams_shared") == 0
            assert side.seen() == []


def test_what_moves_little_is_not_handed_over(certificate: Certificate) -> None:
    """Little in a second, however much it becomes in the end."""
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        pair.server.engine.share_streams(1)
        received = 0
        for _ in range(10):
            sender = threading.Thread(target=visitor.sendall, args=(bytes(2 << 20),))
            sender.start()
            wanted = received + (2 << 20)
            while received < wanted:
                received += len(service.recv(1 << 20))
            sender.join()
            time.sleep(0.1)
        assert pair.server.counter("streams_shared") == 0
        assert pair.server.seen() == []


@needs_speed  # both streams need 64 MiB/s at the same time
def test_there_are_as_many_workers_as_there_are(certificate: Certificate) -> None:
    with connected(certificate) as pair, attached(pair) as one, attached(pair) as two:
        pair.server.engine.share_streams(1)
        floods = [Flood(*one), Flood(*two)]
        large_transfer = expect_large_transfer(pair.server, *floods)
        relay = Relay(large_transfer.stream, large_transfer.sock)
        relay.start()
        before = [flood.received for flood in floods]
        wait_until(
            lambda: all(flood.received > start + ENOUGH for flood, start in zip(floods, before, strict=True)),
            LARGE_TRANSFER_TIMEOUT,
            "both move much",
        )
        assert pair.server.counter("streams_shared") == 1
        assert pair.server.seen() == []
        pair.server.engine.share_streams(1)
        second = expect_large_transfer(pair.server, *floods)
        assert second.stream != large_transfer.stream
        second_relay = Relay(second.stream, second.sock)
        second_relay.start()
        for flood, (visitor, service) in zip(floods, (one, two), strict=True):
            flood.end()
            service.shutdown(socket.SHUT_WR)
            assert visitor.recv(1) == b""
        for each in (relay, second_relay):
            result = each.finish()
            assert isinstance(result, StreamResult)
            assert result.end is StreamEnd.FINISHED
        assert pair.server.counter("streams_shared") == 2


def test_a_stream_may_be_given_back(certificate: Certificate) -> None:
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        pair.server.engine.share_streams(1)
        flood = Flood(visitor, service)
        large_transfer = expect_large_transfer(pair.server, flood)
        large_transfer.stream.attach(large_transfer.sock)
        flood.end()
        service.shutdown(socket.SHUT_WR)
        assert visitor.recv(1) == b""
        expect_count(pair.server, "streams_attached", 1)
        assert pair.server.counter("streams_shared") == 1


def test_a_connection_ends_between_engine_and_worker(certificate: Certificate) -> None:
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        pair.client.engine.share_streams(1)
        flood = Flood(visitor, service)
        large_transfer = expect_large_transfer(pair.client, flood)
        pair.client_connection.close()
        expect_closed(pair.client, pair.client_connection)
        relay = Relay(large_transfer.stream, large_transfer.sock)
        relay.start()
        result = relay.finish()
        flood.expect_break()
        assert isinstance(result, StreamResult)
        assert (result.end, result.sent) == (StreamEnd.CONNECTION, 0)
        # The service's socket is reset, which costs it what the kernel still held for it.
        assert 0 < flood.received <= result.received


def test_the_engine_ends_between_engine_and_worker(certificate: Certificate) -> None:
    with connected(certificate) as pair, attached(pair) as (visitor, service):
        pair.client.engine.share_streams(1)
        flood = Flood(visitor, service)
        large_transfer = expect_large_transfer(pair.client, flood)
        pair.client.close()
        relay = Relay(large_transfer.stream, large_transfer.sock)
        relay.start()
        assert isinstance(relay.finish(), EngineClosedError)
        flood.expect_break()


# --- UDP --------------------------------------------------------------------------------------------------------------

UDP_SEGMENT = 103  # linux/udp.h
SEGMENTS = 60
SEGMENT = bytes(10)


def flood_datagrams(assoc: OpenAssociation, until: Callable[[], bool], what: str, *, to: str = "public") -> None:
    """Sends datagrams as fast as it goes, many per call."""
    sock, target = (assoc.visitor, assoc.public_socket) if to == "public" else (assoc.service, assoc.local_socket)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(SEGMENT))

    def send() -> bool:
        for _ in range(50):
            sock.sendto(SEGMENT * SEGMENTS, target.getsockname())
        return until()

    wait_until(send, LARGE_TRANSFER_TIMEOUT, what)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)


def drain(udp: UdpSocket) -> int:
    """Reads all that waits, as the pump does; returns how many datagrams it was."""
    total = 0
    while count := udp.receive():
        total += count
    return total


def drain_socket(sock: socket.socket) -> None:
    """Takes what has come, until nothing has for a moment."""
    sock.settimeout(STUCK_FOR)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.recv(100)
    sock.settimeout(EVENT_TIMEOUT)


def large_transfer_of(side: Side) -> UdpLargeTransfer | None:
    return next((event for event in side.seen() if isinstance(event, UdpLargeTransfer)), None)


@pytest.mark.parametrize("one", ["server", "client"])
def test_the_pump_reads_a_busy_socket_until_it_gives_it_back(certificate: Certificate, one: str) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        side = pair.server if one == "server" else pair.client
        side.engine.share_udp(True)
        with open_association(pair) as assoc:
            udp, answers = (assoc.public, assoc.service) if one == "server" else (assoc.local, assoc.visitor)
            send = assoc.to_service if one == "server" else assoc.to_visitor
            flood_datagrams(
                assoc,
                lambda: large_transfer_of(side) is not None,
                "the socket is handed over",
                to="public" if one == "server" else "local",
            )
            event = side.expect(UdpLargeTransfer)
            assert event.udp == udp
            assert event.connection == (pair.server_connection if one == "server" else pair.client_connection)
            drain(udp)
            drain_socket(answers)
            # The engine leaves it alone now.
            before = side.counter("udp_received")
            send(b"for the pump")
            time.sleep(0.2)
            assert side.counter("udp_received") == before
            assert udp.receive() == 1
            assert udp.receive() == 0
            assert answers.recv(100) == b"for the pump"
            # And not any more.
            udp.give_back()
            for payload in (b"for the engine", b"again"):
                send(payload)
                assert answers.recv(100) == payload
            assert side.counter("udp_received") == before + 3
            assert side.counter("udp_shared") == 1


def test_new_sources_of_a_busy_socket(certificate: Certificate) -> None:
    """The pump's reads ask about them as the engine's do."""
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        pair.server.engine.share_udp(True)
        with open_association(pair) as assoc, udp_socket() as raw_socket:
            flood_datagrams(assoc, lambda: large_transfer_of(pair.server) is not None, "the socket is handed over")
            drain(assoc.public)
            raw_socket.sendto(b"hello", assoc.public_socket.getsockname())
            wait_until(lambda: assoc.public.receive() == 1, EVENT_TIMEOUT, "the datagram is read")
            asked = pair.server.expect(SourceUnknown)
            assert (asked.udp, asked.source) == (assoc.public, raw_socket.getsockname())
            assoc.public.refuse(asked.source)
            expect_count(pair.server, "udp_drop_no_association", 1)


def test_a_busy_socket_that_is_given_back_is_handed_over_again(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        pair.server.engine.share_udp(True)
        with open_association(pair) as assoc:
            for count in (1, 2):
                flood_datagrams(assoc, lambda: large_transfer_of(pair.server) is not None, "the socket is handed over")
                pair.server.expect(UdpLargeTransfer)
                assert pair.server.counter("udp_shared") == count
                assoc.public.give_back()


def test_a_busy_socket_stays_the_engine_s_unless_shared(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            for on in (False, True, False):
                pair.server.engine.share_udp(on)
                before = pair.server.counter("udp_received")
                if on:
                    flood_datagrams(
                        assoc, lambda: large_transfer_of(pair.server) is not None, "the socket is handed over"
                    )
                    pair.server.expect(UdpLargeTransfer)
                    assoc.public.give_back()
                else:
                    flood_datagrams(
                        assoc,
                        lambda before=before: pair.server.counter("udp_received") > before + 200_000,  # type: ignore[misc]
                        "many datagrams are read",
                    )
                    assert large_transfer_of(pair.server) is None
            assert pair.server.counter("udp_shared") == 1


def test_a_socket_for_the_pump_is_read_by_nobody_else(certificate: Certificate) -> None:
    with connected(certificate) as pair, udp_socket() as public, udp_socket() as visitor:
        udp = pair.server_connection.open_udp(public, public=True, for_pump=True)
        visitor.sendto(b"hello", public.getsockname())
        # Another socket, which the engine reads, has its turn after this one.
        with udp_socket() as read:
            other = pair.server_connection.open_udp(read, public=True)
            visitor.sendto(b"hello", read.getsockname())
            assert pair.server.expect(SourceUnknown).udp == other
            other.close()
        assert not any(isinstance(event, SourceUnknown) for event in pair.server.seen())
        assert udp.receive() == 1
        assert pair.server.expect(SourceUnknown).source == visitor.getsockname()
        assert udp.receive() == 0
        udp.close()


def test_the_pump_learns_that_a_service_refuses(certificate: Certificate) -> None:
    """As the engine does where it reads itself."""
    with connected(certificate) as pair, udp_socket() as gone:
        address = gone.getsockname()
        gone.close()
        with sockets.connected_udp(address) as sock:
            udp = pair.client_connection.open_udp(sock, public=False, for_pump=True)
            sock.send(b"nobody listens")

            def has_failed() -> bool:
                with contextlib.suppress(EngineError):
                    udp.receive()
                return pair.client.counter("udp_service_refused") > 0

            wait_until(has_failed, EVENT_TIMEOUT, "the kernel reports it")
            assert pair.client.expect(UdpRefused).error == errno.ECONNREFUSED
            udp.close()


def test_the_end_of_a_socket_that_the_pump_reads(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        pair.server.engine.share_udp(True)
        with open_association(pair) as assoc:
            flood_datagrams(assoc, lambda: large_transfer_of(pair.server) is not None, "the socket is handed over")
            assoc.public.close()
            for call in (assoc.public.receive, assoc.public.give_back, assoc.public.close):
                with pytest.raises(HandleGoneError):
                    call()
            assoc.visitor.send(b"nobody reads it")
            assert processor_share() < SPINNING


def test_the_end_of_a_connection_whose_sockets_are_still_open(certificate: Certificate) -> None:
    """Datagrams that come before Python has closed them are nobody's; the engine doesn't spin over them."""
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            pair.server_connection.close()
            expect_closed(pair.server, pair.server_connection)
            expect_closed(pair.client, pair.client_connection)
            for _ in range(20):
                assoc.to_service(b"too late")
                assoc.to_visitor(b"too late")
            assert processor_share() < SPINNING
            with pytest.raises(HandleGoneError):
                assoc.public.receive()
            assoc.public.close()
            assoc.local.close()
