"""How relayed streams end, by the engine and by workers: what was read before an end arrives before it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from asport_sync.engine import StreamEnd, StreamEnded, StreamOpened, StreamResult, Transport
from tests.engine.pair import (
    EVENT_TIMEOUT,
    HEADER,
    Pair,
    Relay,
    connected,
    open_stream,
    tcp_pair,
)
from tests.support.certificates import Certificate
from tests.support.ends import Play, Seen, Step, Who, sequences
from tests.support.traffic import fill
from tests.support.waiting import wait_until

MIB = 1 << 20
# Bytes that a slow reader takes at a time, every 2 ms: 32 MB a second at the most.
SLOW_PIECE = 64 * 1024

by_both = pytest.mark.parametrize("relayed_by", ["engine", "workers"])


@contextlib.contextmanager
def relayed(pair: Pair, relayed_by: str) -> Iterator[tuple[socket.socket, socket.socket, list[Relay]]]:
    """The user's and the service's end of a stream that is relayed on either side, and the relays of workers."""
    streams = open_stream(pair)
    (public, visitor), (local, service) = tcp_pair(), tcp_pair()
    relays: list[Relay] = []
    for stream, sock in zip(streams, (public, local), strict=True):
        if relayed_by == "engine":
            stream.attach(sock)
        else:
            relays.append(Relay(stream, sock))
            relays[-1].start()
    with visitor, service:
        yield visitor, service, relays
    for relay in relays:
        relay.finish()


def played_plainly(steps: tuple[Step, ...]) -> dict[Who, Seen]:
    visitor, service = tcp_pair()
    return Play(steps, visitor, lambda: service).run()


@by_both
def test_every_end_is_as_on_a_plain_connection(certificate: Certificate, relayed_by: str) -> None:
    with connected(certificate) as pair:
        for steps in (steps for length in (1, 2, 3) for steps in sequences(length)):
            with relayed(pair, relayed_by) as (visitor, service, _):
                through = Play(steps, visitor, lambda service=service: service).run()  # type: ignore[misc]
            assert through == played_plainly(steps), steps
        wait_until(lambda: pair.server_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")
        for side in (pair.server, pair.client):
            assert side.counter("relays_cut_short") == 0


def test_what_was_received_and_is_not_written_yet_counts_as_a_relay(certificate: Certificate) -> None:
    """QUIC is done with the stream by then: who waits for the end of everything must not look at streams alone."""
    with connected(certificate) as pair:
        stream, opened = open_stream(pair)
        (public, visitor), (local, service) = tcp_pair(), tcp_pair()
        public.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with visitor, service:
            stream.attach(public)
            opened.attach(local)
            visitor.shutdown(socket.SHUT_WR)
            data = bytes(200_000)  # less than a stream's first window
            service.sendall(data)
            service.shutdown(socket.SHUT_WR)
            assert service.recv(1) == b""
            wait_until(lambda: pair.server_connection.info().streams == 0, EVENT_TIMEOUT, "QUIC is done with it")
            assert pair.server_connection.info().relays == 1
            received = 0
            while chunk := visitor.recv(65536):
                received += len(chunk)
            assert received == len(data)
            for connection in (pair.server_connection, pair.client_connection):
                wait_until(lambda each=connection: each.info().relays == 0, EVENT_TIMEOUT, "no relay is left")  # type: ignore[misc]


def receive_slowly(sock: socket.socket) -> tuple[int, bool]:
    """Reads to the end, little at a time; how many bytes, and whether that was a reset."""
    received = 0
    while True:
        try:
            piece = sock.recv(SLOW_PIECE)
        except ConnectionResetError:
            return received, True
        if not piece:
            return received, False
        received += len(piece)
        threading.Event().wait(0.002)


@by_both
def test_all_that_was_read_reaches_a_slow_reader_before_the_reset(certificate: Certificate, relayed_by: str) -> None:
    """Windows, pipes and sockets are full when the service resets; not a byte of what was taken from it is lost."""
    narrow = {"send_window": MIB, "receive_window": MIB}
    with connected(
        certificate,
        server_transport=Transport(max_streams_bidi=0, **narrow),  # type: ignore[arg-type]
        client_transport=Transport(max_streams_bidi=64, **narrow),  # type: ignore[arg-type]
    ) as pair:
        pair.client.engine.report_streams(100)
        with relayed(pair, relayed_by) as (visitor, service, relays):
            fill(service)  # the user reads nothing yet
            service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            service.close()
            received, was_reset = receive_slowly(visitor)
            result = relays[1].finish() if relays else pair.client.expect(StreamEnded).result
        assert isinstance(result, StreamResult)
        assert result.end is StreamEnd.SOCKET_ERROR
        assert was_reset
        assert received == result.sent > MIB


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_what_a_user_said_waits_for_the_peers_credit_though_he_has_gone(certificate: Certificate) -> None:
    """The client grants one stream; users come, say something or not, and reset before theirs can be opened."""
    with connected(certificate, client_transport=Transport(max_streams_bidi=1)) as pair:
        _, taken = open_stream(pair)
        for said in (b"something", b""):
            stream = pair.server_connection.open_stream(HEADER)
            public, visitor = tcp_pair()
            visitor.sendall(said)
            reset(visitor)
            stream.attach(public)
        # Nobody misses the one that said nothing; its place among those that wait is free.
        wait_until(lambda: pair.server.counter("relays_socket_error") == 1, EVENT_TIMEOUT, "one relay is over")
        wait_until(lambda: pair.server_connection.info().streams == 2, EVENT_TIMEOUT, "and its stream has gone")
        taken.reset()
        opened = pair.client.expect(StreamOpened).stream
        local, service = tcp_pair()
        opened.attach(local)
        with service:
            assert service.recv(100) == b"something"
            with pytest.raises(ConnectionResetError):
                service.recv(1)
        wait_until(lambda: pair.server_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")
        assert pair.client.counter("streams_accepted") == 2
