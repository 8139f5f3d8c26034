"""A bad neighbour of the tunnel: between it and its local service, or between a user and it, stands a relay for TCP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from asport_sync.testing import TcpFaults, TcpRelay
from tests.e2e.tunnels import READY_TIMEOUT, tunnel
from tests.faults.transfers import ExchangeService, data_of, first_words, use
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.traffic import connect, receive_exactly, receive_to_end
from tests.support.waiting import wait_until

MIB = 1 << 20


@contextlib.contextmanager
def ends(
    certificate: Certificate, *, beyond: TcpRelay | None = None, listener: socket.socket
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """One connection through a tunnel: the user's end and the service's, which listens behind ``beyond``."""
    listener.settimeout(READY_TIMEOUT)
    local = beyond.address if beyond else listener.getsockname()
    with tunnel(certificate, local, client={"network": "tcp"}) as opened, connect(opened.public) as user:
        service, _ = listener.accept()
        service.settimeout(READY_TIMEOUT)
        with service:
            # A service that resets before the client has seen that it answered would be dialled again.
            user.sendall(b"x")
            assert service.recv(1) == b"x"
            yield user, service


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def until_the_end(sock: socket.socket) -> tuple[bytes, bool]:
    """What comes, and whether a reset is what ends it."""
    received = bytearray()
    try:
        while piece := sock.recv(MIB):
            received += piece
    except ConnectionResetError:
        return bytes(received), True
    return bytes(received), False


def send_all(sock: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_reset_of_the_service_reaches_the_user(certificate: Certificate, listener: socket.socket) -> None:
    """In the middle of an answer; a clean end would make it look complete."""
    data = seeded_bytes(5, 4 * MIB)
    relay = TcpRelay(listener.getsockname(), to_visitor=TcpFaults(reset_after=2 * MIB))
    with relay, ends(certificate, beyond=relay, listener=listener) as (user, service):
        sender = send_all(service, data)
        received, reset = until_the_end(user)
        sender.join()
        assert reset, f"a clean end after {len(received)} bytes"
        assert data[: 2 * MIB].startswith(received)
        assert relay.counters.resets_made == 1


def test_a_reset_of_the_user_reaches_the_service(certificate: Certificate, listener: socket.socket) -> None:
    with tunnel(certificate, listener.getsockname(), client={"network": "tcp"}) as opened:
        listener.settimeout(READY_TIMEOUT)
        with TcpRelay(opened.public, to_target=TcpFaults(reset_after=MIB)) as relay, connect(relay.address) as user:
            service, _ = listener.accept()
            with service:
                service.settimeout(READY_TIMEOUT)
                sender = send_all(user, seeded_bytes(6, 4 * MIB))
                received, reset = until_the_end(service)
                sender.join()
                assert reset, f"a clean end after {len(received)} bytes"


def test_an_end_in_one_direction(certificate: Certificate, listener: socket.socket) -> None:
    """The user gets the end of the answer, and what it still sends arrives."""
    answer, more = seeded_bytes(7, MIB), seeded_bytes(8, 3 * MIB)
    relay = TcpRelay(listener.getsockname(), to_visitor=TcpFaults(end_after=MIB))
    with relay, ends(certificate, beyond=relay, listener=listener) as (user, service):
        service.sendall(answer)
        assert receive_to_end(user) == answer
        sender = send_all(user, more)
        assert receive_exactly(service, len(more)) == more
        sender.join()
        user.shutdown(socket.SHUT_WR)
        assert service.recv(1) == b""


@pytest.mark.parametrize("direction", ["to_target", "to_visitor"])
def test_a_slow_reader_gets_everything(certificate: Certificate, direction: str) -> None:
    slow = TcpFaults(rate=4 * MIB)
    with ExchangeService() as service:
        relay = (
            TcpRelay(service.address, to_target=slow)
            if direction == "to_target"
            else TcpRelay(service.address, to_visitor=slow)
        )
        with relay, tunnel(certificate, relay.address, client={"network": "tcp"}) as opened:
            assert use(opened.public, 1, 4 * MIB).whole


def test_a_half_open_neighbour_holds_up_nobody_else(certificate: Certificate) -> None:
    with ExchangeService() as service, TcpRelay(service.address, to_target=TcpFaults(half_open_after=0)) as relay:
        with tunnel(certificate, relay.address, client={"network": "tcp"}) as opened, connect(opened.public) as stuck:
            # A request the service understands: it would reset the connection for anything else, stuck or not.
            sender = send_all(stuck, first_words(5, 32 * MIB) + bytes(data_of(5, 32 * MIB, of_service=False)))
            wait_until(lambda: relay.counters.open == 1, READY_TIMEOUT, "the connection has come about")
            relay.to_target = TcpFaults(half_open_after=100_000)
            wait_until(lambda: relay.counters.to_target.delivered == 100_000, READY_TIMEOUT, "it is stuck")
            # Another connection is far below the mark, and both share one QUIC connection.
            for number in range(5):
                assert use(opened.public, number, 50_000).whole
            stuck.shutdown(socket.SHUT_RDWR)
            sender.join()
