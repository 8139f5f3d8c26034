"""TCP through the tunnel, with the reference on one side."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.interop.conftest import Pairing, TunnelOpener
from tests.interop.endpoints import Tunnel
from tests.support.data import digest, seeded_bytes
from tests.support.ports import free_port
from tests.support.services import GREETING, SpeaksFirst, TcpEcho, TcpSink, TcpSource, sink_answer
from tests.support.traffic import connect, echo, receive_exactly, receive_to_end, upload
from tests.support.waiting import wait_until

KIB = 1024
MIB = 1024 * KIB

# The reference grants 32 streams at a time and stalls when all are taken.
PARALLEL = 20
SECONDS = 20.0


def test_one_byte(open_tunnel: TunnelOpener) -> None:
    with TcpEcho() as service, open_tunnel(Tunnel("tcp"), service.address) as tunnel:
        assert echo(tunnel.public_address(), b"x") == b"x"


def test_8_mib_both_ways_at_once(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    """Release 0.1.2 of the reference stalls in one of 300 such transfers, with its own client too.

    Such a stall ends that transfer alone, so a second attempt tells it from one of ours: the connection still works,
    and the same transfer comes through.
    """
    data = seeded_bytes(8, 8 * MIB)
    with TcpEcho() as service, open_tunnel(Tunnel("tcp"), service.address) as tunnel:
        address = tunnel.public_address()
        try:
            received = echo(address, data)
        except TimeoutError:
            if "0.1.2" not in pairing.versions:
                raise
            assert echo(address, b"x") == b"x"
            received = echo(address, data)
        assert (len(received), digest(received)) == (len(data), digest(data))


def test_server_speaks_first(open_tunnel: TunnelOpener) -> None:
    with (
        SpeaksFirst() as service,
        open_tunnel(Tunnel("tcp"), service.address) as tunnel,
        connect(tunnel.public_address()) as user,
    ):
        assert receive_exactly(user, len(GREETING)) == GREETING
        user.sendall(b"EHLO")
        assert receive_exactly(user, 4) == b"EHLO"


def test_user_closes_first(pairing: Pairing, open_tunnel: TunnelOpener) -> None:
    """The service answers only after the end of what it was sent.

    The reference's client resets the stream right after it has finished it, so its QUIC stack drops what is not yet
    acknowledged: any part of the answer may be missing at its end, and the connection may end in a reset. What goes the
    other way, from our server to the service, must be complete all the same, end of stream included.
    """
    data = seeded_bytes(1, MIB)
    with TcpSink() as service, open_tunnel(Tunnel("tcp"), service.address) as tunnel:
        answer = b""
        with contextlib.nullcontext() if pairing.client.keeps_tail else contextlib.suppress(ConnectionResetError):
            answer = upload(tunnel.public_address(), data)
        wait_until(lambda: service.received, SECONDS, "the service has received the end of the stream")
        assert service.received == [sink_answer(data)]
        if pairing.client.keeps_tail:
            assert answer == sink_answer(data)
        else:
            assert sink_answer(data).startswith(answer)


def test_service_closes_first(open_tunnel: TunnelOpener) -> None:
    data = seeded_bytes(2, MIB)
    with (
        TcpSource(2 * MIB) as service,
        open_tunnel(Tunnel("tcp"), service.address) as tunnel,
        connect(tunnel.public_address()) as user,
    ):
        assert digest(receive_to_end(user)) == digest(service.data)
        user.sendall(data)
        user.shutdown(socket.SHUT_WR)
        wait_until(lambda: service.received, SECONDS, "the service has received the end of the stream")
        assert service.received == [sink_answer(data)]


def test_20_at_once(open_tunnel: TunnelOpener) -> None:
    """All are open before the first one sends; then each carries other bytes."""
    with TcpEcho() as service, open_tunnel(Tunnel("tcp"), service.address) as tunnel, contextlib.ExitStack() as stack:
        address = tunnel.public_address()
        users = [stack.enter_context(connect(address)) for _ in range(PARALLEL)]
        wait_until(lambda: service.accepted == PARALLEL, SECONDS, "all connections have reached the service")

        def talk(number: int) -> bool:
            # Little enough to fit into the buffers on the way, so that sending all before receiving can't block.
            data = seeded_bytes(100 + number, 64 * KIB)
            users[number].sendall(data)
            return receive_exactly(users[number], len(data)) == data

        with ThreadPoolExecutor(PARALLEL) as pool:
            assert list(pool.map(talk, range(PARALLEL))) == [True] * PARALLEL


def test_service_is_away(open_tunnel: TunnelOpener) -> None:
    """A connection to a service that is not there ends without a byte; the next one, to a service that is, works."""
    port = free_port()
    with open_tunnel(Tunnel("tcp"), ("127.0.0.1", port)) as tunnel:
        address = tunnel.public_address()
        # Sometimes before connect() has returned; a reset after a FIN is EPIPE.
        with contextlib.suppress(ConnectionError), connect(address) as user:
            assert user.recv(1) == b""
        with TcpEcho(port=port):
            assert echo(address, b"now") == b"now"
