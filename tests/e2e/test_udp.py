"""UDP through the tunnel, in both carriers."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    Tunnel,
    both_echoes,
    client_process,
    counter,
    public_port,
    send_from_many,
    server_options,
    tunnel,
    wait_for_counter,
)
from tests.support import proxy_protocol
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.sanitized import needs_speed
from tests.support.services import (
    LARGEST_DATAGRAM,
    Address,
    UdpEcho,
    UdpService,
    UdpSink,
    UdpSource,
    host_and_port,
    sink_answer,
)
from tests.support.traffic import STUCK_FOR, UdpPeer, expect_reset
from tests.support.waiting import wait_until

MODES = pytest.mark.parametrize("mode", ["native", "quic"])

# Every border there is: nothing, one fragment and two, the limit of a DATAGRAM before and after path MTU discovery, the
# default max_packet_size, an Ethernet frame, many fragments, the largest that UDP over IPv4 can carry.
SIZES = [0, 1, 2, 100, *range(1130, 1160), 1200, 1350, 1351, *range(1380, 1420), 1472, 1500, *range(2260, 2320, 9)]
SIZES += [4000, 9000, 16384, 30_000, 65_000, LARGEST_DATAGRAM]

UDP_SEGMENT = 103  # linux/udp.h
FLOODED = bytes(10)
# Seconds until 20,000 datagrams have been read within a quarter of one.
FLOOD_TIMEOUT = 30.0


def udp_mode(mode: str) -> dict[str, str]:
    return {"udp_forward_mode": mode}


@MODES
def test_sizes(certificate: Certificate, mode: str) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address, client=udp_mode(mode)) as opened:
        with UdpPeer(opened.public) as user:
            for size in SIZES:
                payload = seeded_bytes(size, size)
                user.ask(payload, payload)
            assert service.received == len(SIZES) + user.resent


@MODES
def test_each_direction_alone(certificate: Certificate, mode: str) -> None:
    """Large in, small out, and the other way round: neither hides a fault of the other."""
    with UdpSink() as sink, tunnel(certificate, sink.address, client=udp_mode(mode)) as opened:
        with UdpPeer(opened.public) as user:
            for size in SIZES[::7]:
                payload = seeded_bytes(size, size)
                user.ask(payload, sink_answer(payload))
    with UdpSource() as source, tunnel(certificate, source.address, client=udp_mode(mode)) as opened:
        with UdpPeer(opened.public) as user:
            for size in SIZES[::7]:
                user.ask(UdpSource.request(size, size), seeded_bytes(size, size))


class Recorder:
    """A UDP service that keeps what it receives, and answers each with the same."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.service = UdpService(self._answer)

    def _answer(self, payload: bytes) -> bytes:
        self.payloads.append(payload)
        return payload


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with recorder.service:
        yield recorder


@MODES
def test_order_per_flow(certificate: Certificate, mode: str, recorder: Recorder) -> None:
    """Datagrams of one user stay in order on both ways, whatever their sizes, where the network keeps it."""
    outstanding = 16
    with tunnel(certificate, recorder.service.address, client=udp_mode(mode)) as opened, UdpPeer(opened.public) as user:
        user.ask(b"first", b"first")
        recorder.payloads.clear()
        sent = [struct.pack(">I", number) + seeded_bytes(number, number * 37 % 5000) for number in range(480)]
        returned: list[bytes | None] = []
        for begin in range(0, len(sent), outstanding):
            batch = sent[begin : begin + outstanding]
            for payload in batch:
                user.send(payload)
            returned += [user.receive(READY_TIMEOUT) for _ in batch]
        assert recorder.payloads == sent
        assert returned == sent


@MODES
def test_many_users_keep_their_answers(certificate: Certificate, mode: str) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address, client=udp_mode(mode)) as opened:
        users = [UdpPeer(opened.public) for _ in range(50)]
        try:
            for turn in range(5):
                for number, user in enumerate(users):
                    payload = b"%d from %d" % (turn, number)
                    user.ask(payload, payload)
        finally:
            for user in users:
                user.__exit__()
        assert len(service.sources) == len(users)
        assert associations(opened) == (len(users), len(users))


def associations(opened: Tunnel) -> tuple[int, int]:
    """Associations of server and client."""
    (server,), (client,) = opened.server.stats().connections, opened.client.stats().connections
    assert server.info is not None
    return server.info.associations, client.associations


def test_the_server_ends_idle_associations(certificate: Certificate) -> None:
    """Dissociate ends the client's part, too; the next packet begins a new association with a new local socket."""
    with UdpEcho() as service:
        with tunnel(certificate, service.address, server={"udp_session_timeout": 0.5}) as opened:
            with UdpPeer(opened.public) as user:
                user.ask(b"one", b"one")
                assert associations(opened) == (1, 1)
                wait_until(lambda: associations(opened) == (0, 0), READY_TIMEOUT, "both sides forget the association")
                user.ask(b"two", b"two")
            assert len(service.sources) == 2


def test_the_client_ends_idle_associations(certificate: Certificate) -> None:
    """The server keeps its part, so the same association comes back with the next packet."""
    with UdpEcho() as service, tunnel(certificate, service.address, client={"udp_timeout": 0.5}) as opened:
        with UdpPeer(opened.public) as user:
            user.ask(b"one", b"one")
            wait_until(lambda: associations(opened) == (1, 0), READY_TIMEOUT, "the client forgets the association")
            user.ask(b"two", b"two")
            assert associations(opened) == (1, 1)
        assert len(service.sources) == 2


def test_busy_associations_do_not_end(certificate: Certificate) -> None:
    with UdpEcho() as service:
        short = {"udp_timeout": 2.0}
        with tunnel(certificate, service.address, server={"udp_session_timeout": 2.0}, client=short) as opened:
            with UdpPeer(opened.public) as user, UdpPeer(opened.public) as idle:
                user.ask(b"busy", b"busy")
                idle.ask(b"only once", b"only once")
                assert associations(opened) == (2, 2)
                number = 0
                # Until the idle one has ended, the busy one must not.
                while associations(opened) != (1, 1):
                    payload = b"%d" % number
                    user.ask(payload, payload)
                    number += 1
                    assert number < 100_000
            assert len(service.sources) == 2


@MODES
def test_only_the_service_may_answer(certificate: Certificate, mode: str) -> None:
    """A stranger on the client's machine can't send to the public user."""
    with UdpEcho() as service, tunnel(certificate, service.address, client=udp_mode(mode)) as opened:
        with UdpPeer(opened.public) as user, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            user.ask(b"one", b"one")
            (local_socket,) = service.sources
            stranger.sendto(b"injected", local_socket)
            for number in range(20):
                user.ask(b"%d" % number, b"%d" % number)  # fails on any other datagram


def test_proxy_protocol_version_2(certificate: Certificate, recorder: Recorder) -> None:
    with tunnel(certificate, recorder.service.address, client={"proxy_protocol": "v2"}) as opened:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
            user.settimeout(READY_TIMEOUT)
            user.connect(opened.public)
            loopback = bytes((127, 0, 0, 1))
            ports = struct.pack(">HH", user.getsockname()[1], opened.public[1])
            header = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x12\x00\x0c" + loopback + loopback + ports
            for payload in (b"", b"hello", seeded_bytes(1, 3000)):
                user.send(payload)
                # The service's answers are taken as they are.
                assert user.recv(LARGEST_DATAGRAM) == header + payload


@MODES
@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_header_names_the_address_that_the_user_asked(
    certificate: Certificate, recorder: Recorder, host: str, mode: str
) -> None:
    """Not the service's own, which the service knows; its datagrams come to 127.0.0.1."""
    server = {"server": host_and_port((host, 0)), "proxy": {"bind_ip": host}}
    client = {"proxy_protocol": "v2", "server_name": "localhost", **udp_mode(mode)}
    with tunnel(certificate, recorder.service.address, server=server, client=client) as opened:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as user:
            user.settimeout(READY_TIMEOUT)
            user.connect(opened.public)
            user.send(b"hello")
            header = proxy_protocol.parse(user.recv(LARGEST_DATAGRAM))
            assert (header.transport, header.rest) == ("udp", b"hello")
            assert (header.source, header.destination) == (user.getsockname()[:2], user.getpeername()[:2])


def test_proxy_protocol_version_1_has_none_for_udp(certificate: Certificate) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address, client={"proxy_protocol": "v1"}) as opened:
        with UdpPeer(opened.public) as user:
            user.ask(b"hello", b"hello")


@MODES
def test_the_service_comes_back(certificate: Certificate, mode: str) -> None:
    """ICMP says that nobody listens; the association outlives that."""
    local = ("127.0.0.1", free_port())
    with tunnel(certificate, local, client=udp_mode(mode)) as opened, UdpPeer(opened.public) as user:
        user.send(b"to nobody")
        wait_until(lambda: associations(opened) == (1, 1), READY_TIMEOUT, "the association is there")
        user.expect_late(b"to nobody")  # where it is still under way it finds the service
        with UdpEcho(*local):
            user.ask(b"hello", b"hello", attempts=10)


def test_tcp_and_udp_share_the_number(certificate: Certificate) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address) as opened:
        with UdpPeer(opened.public) as user:
            user.ask(b"hello", b"hello")
        expect_reset(opened.public)  # TCP reaches a port where only UDP is served


@MODES
def test_a_flood_is_survived(certificate: Certificate, mode: str) -> None:
    """More than fits: some are lost and counted, none is falsified, and it works afterwards."""
    with UdpEcho() as service, tunnel(certificate, service.address, client=udp_mode(mode)) as opened:
        with UdpPeer(opened.public) as user:
            user.ask(b"first", b"first")
            sent = {struct.pack(">I", number) + seeded_bytes(number % 50, 1200) for number in range(20_000)}
            received: list[bytes] = []

            def receive() -> None:
                while (payload := user.receive(1.0)) is not None:
                    received.append(payload)

            receiver = threading.Thread(target=receive)
            receiver.start()
            for payload in sent:
                user.send(payload)
            receiver.join()
            assert received
            assert set(received) <= sent
            assert len(received) == len(set(received)), "a datagram came twice"
        with UdpPeer(opened.public) as user:
            user.ask(b"last", b"last")


class Flood:
    """Sends small datagrams as fast as it goes, many per call."""

    def __init__(self, sock: socket.socket, target: Address) -> None:
        self._sock = sock
        self._target = target

    def until_shared(self, opened: Tunnel, side: str) -> None:
        """Sends until the engine of ``server`` or ``client`` has left a socket to the pump."""

        def shared() -> bool:
            self.send(1)
            return opened.engine_counter(side, "udp_shared") > 0

        wait_until(shared, FLOOD_TIMEOUT, "the pump reads the socket")

    def send(self, rounds: int) -> None:
        """Sends so many times 3,000 of them."""
        self._sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(FLOODED))
        for _ in range(50 * rounds):
            self._sock.sendto(60 * FLOODED, self._target)
        self._sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)


def settle(sock: socket.socket) -> None:
    """Takes what is left of a flood: a full buffer would not hold what comes next."""
    sock.settimeout(STUCK_FOR)
    with contextlib.suppress(TimeoutError):
        while True:
            assert sock.recv(100) == FLOODED
    sock.settimeout(READY_TIMEOUT)


@pytest.mark.parametrize("max_workers", [0, 1])
def test_a_busy_public_port(certificate: Certificate, max_workers: int) -> None:
    """Before, while and after the pump reads its socket, datagrams of all sources arrive as they were sent."""
    workers = {"relay": "auto", "max_workers": max_workers}
    with UdpEcho() as service, tunnel(certificate, service.address, server=workers) as opened:
        with UdpPeer(opened.public) as user, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
            user.ask(b"before", b"before")
            flood = Flood(flooder, opened.public)
            if max_workers:
                flood.until_shared(opened, "server")
            else:
                flood.send(100)
            user.ask(b"meanwhile", b"meanwhile")
            with UdpPeer(opened.public) as another:
                another.ask(b"another", b"another")
            time.sleep(2.5)  # the pump has given it back
            user.ask(b"after", b"after")
            with UdpPeer(opened.public) as another:
                another.ask(b"yet another", b"yet another")
        assert opened.engine_counter("server", "udp_shared") == max_workers


@needs_speed
def test_a_busy_local_service(certificate: Certificate) -> None:
    """Answers of one association, far more than its user can take."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(READY_TIMEOUT)
        with (
            tunnel(certificate, service.getsockname(), client={"relay": "auto", "max_workers": 1}) as opened,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user,
        ):
            user.settimeout(READY_TIMEOUT)
            user.sendto(b"question", opened.public)
            question, local = service.recvfrom(100)
            assert question == b"question"
            Flood(service, local).until_shared(opened, "client")
            for pause in (0.5, 2.5):  # the pump reads it; the pump has given it back
                time.sleep(pause)
                settle(user)
                service.sendto(b"answer", local)
                assert user.recv(100) == b"answer"
                user.sendto(b"another question", opened.public)
                assert service.recv(100) == b"another question"
            assert opened.engine_counter("client", "udp_shared") == 1


def test_associations_that_expire_together_do_not_end_the_tunnel(certificate: Certificate, tmp_path: Path) -> None:
    crowd = 20000
    with (
        both_echoes() as (service, _),
        Server(**server_options(certificate, udp_session_timeout=2.0)) as server,
        client_process(tmp_path, certificate, server.address, service.address) as client,
    ):
        public = ("127.0.0.1", public_port(client))
        with socket.create_connection(public, timeout=READY_TIMEOUT) as held:
            sent = 0
            for first in range(1024, 65536, 500):
                sent += send_from_many(public, min(500, crowd - sent), range(first, min(first + 500, 65536)))
                # No faster than they are taken: the socket's buffer holds fewer.
                wait_for_counter(server, "udp_associations", sent)
                if sent == crowd:
                    break
            assert sent == crowd

            def over() -> bool:
                return counter(server, "udp_associations_expired") >= crowd or "connection lost" in client.output()

            wait_until(over, READY_TIMEOUT, "all of them are over")
            held.sendall(b"x")
            assert held.recv(1) == b"x", client.description()
        assert "connection lost" not in client.output()
