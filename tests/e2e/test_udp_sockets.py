"""The server's UDP sockets: which address answers, when a port is announced, what is lost before it can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client
from asport_sync.client import transport as client_transport
from asport_sync.engine import Transport
from asport_sync.server.public_udp import PublicUdp
from asport_sync.server.session import ServerSession
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    Tunnel,
    client_options,
    command,
    counter,
    public_port,
    server_address,
    server_options,
    tunnel,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.services import Address, UdpEcho
from tests.support.traffic import RESEND_AFTER, UdpPeer
from tests.support.waiting import NeverHappened, wait_until

MODES = pytest.mark.parametrize("mode", ["native", "quic"])
# One datagram of QUIC, two fragments, and many.
SIZES = [1, 2000, 60_000]


# --- which address answers --------------------------------------------------------------------------------------------


def ask_from_one_socket(user: socket.socket, target: tuple[Any, ...], payload: bytes) -> None:
    """Asks and sees who answers, from a socket that takes datagrams of anybody.

    Answers to earlier questions, which were sent again, may come in between.
    """
    for _ in range(5):
        user.sendto(payload, target)
        deadline = time.monotonic() + RESEND_AFTER
        while (left := deadline - time.monotonic()) > 0:
            user.settimeout(left)
            try:
                answer, source = user.recvfrom(65535)
            except TimeoutError:
                break
            if answer == payload:
                assert source == target
                return
    raise NeverHappened(f"no answer of {target} to {len(payload)} bytes")


def wait_for_associations(opened: Tunnel, number: int) -> None:
    """An association is counted on the events thread, while the engine may carry its first answer already."""
    what = f"{number} associations are counted"
    wait_until(lambda: counter(opened.server, "udp_associations") >= number, READY_TIMEOUT, what)
    assert counter(opened.server, "udp_associations") == number


@MODES
@pytest.mark.parametrize("bind_ip", ["0.0.0.0", "::"])
def test_the_address_that_was_asked_answers(certificate: Certificate, bind_ip: str, mode: str) -> None:
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    options: dict[str, Any] = {"server": {"proxy": {"bind_ip": bind_ip}}, "client": {"udp_forward_mode": mode}}
    with UdpEcho() as service, tunnel(certificate, service.address, **options) as opened:
        port = opened.public[1]
        for number, address in enumerate(addresses):
            # Connected, as most clients are: an answer from elsewhere would never arrive.
            with UdpPeer((address, port)) as user:
                for size in SIZES:
                    payload = seeded_bytes(size + number, size)
                    user.ask(payload, payload)
        wait_for_associations(opened, len(addresses))
        # One user, who asks all of them in turn from one port, has an association with each.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
            for turn in range(3):
                for number, address in enumerate(addresses):
                    for size in SIZES:
                        payload = seeded_bytes(100 * turn + 10 * size + number, size)
                        ask_from_one_socket(user, (address, port), payload)
        wait_for_associations(opened, 2 * len(addresses))


def test_a_port_with_one_address_has_one_association_for_a_user(certificate: Certificate) -> None:
    with UdpEcho() as service, tunnel(certificate, service.address) as opened, UdpPeer(opened.public) as user:
        for turn in range(3):
            payload = b"turn %d" % turn
            user.ask(payload, payload)
        wait_for_associations(opened, 1)


def test_a_broadcast_is_answered(certificate: Certificate) -> None:
    """Nothing can be sent from the address that it went to; the kernel's choice it is."""
    everywhere = {"proxy": {"bind_ip": "::"}}
    with UdpEcho() as service, tunnel(certificate, service.address, server=everywhere) as opened:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
            user.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            user.bind(("127.0.0.1", 0))
            user.settimeout(RESEND_AFTER)

            def answered() -> bool:
                user.sendto(b"anybody", ("127.255.255.255", opened.public[1]))
                with contextlib.suppress(TimeoutError):
                    return user.recv(100) == b"anybody"
                return False

            wait_until(answered, READY_TIMEOUT, "somebody answers a broadcast")


@pytest.fixture
def machines() -> Iterator[tuple[Namespace, Namespace]]:
    """A server's machine with several addresses of each kind, and a user's."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with Namespace() as server, Namespace() as user:
        server.configure(["link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", user.name])
        plans = {
            server: ["10.203.0.1/24", "10.203.0.2/24", "2001:db8::1/64", "2001:db8::2/64", "fe80::1/64", "fe80::2/64"],
            user: ["10.203.0.9/24", "2001:db8::9/64", "fe80::9/64"],
        }
        for namespace, addresses in plans.items():
            for address in addresses:
                more = ["nodad"] if ":" in address else []
                namespace.configure(["address", "add", address, "dev", "veth0", *more])
            namespace.configure(["link", "set", "veth0", "up"])
        # A whole network that is delivered to this machine, no single address of which it has.
        server.configure(["-6", "route", "add", "local", "2001:db8:5::/64", "dev", "lo"])
        server.configure(["route", "add", "local", "10.205.0.0/24", "dev", "lo"])
        user.configure(["-6", "route", "add", "2001:db8:5::/64", "via", "2001:db8::1"])
        user.configure(["route", "add", "10.205.0.0/24", "via", "10.203.0.1"])
        yield server, user


@MODES
def test_a_server_with_many_addresses(
    certificate: Certificate, tmp_path: Path, machines: tuple[Namespace, Namespace], mode: str
) -> None:
    """Secondary addresses, several of IPv6, link-local ones with their zone, and networks that are the machine's."""
    server_machine, user_machine = machines
    targets: list[tuple[Any, ...]] = [
        *((f"10.203.0.{number}",) for number in (1, 2)),
        *((f"2001:db8::{number}", 0, 0) for number in (1, 2)),
        *((f"fe80::{number}", 0, user_machine.call(lambda: socket.if_nametoindex("veth0"))) for number in (1, 2)),
        ("10.205.0.77",),
        ("2001:db8:5::77", 0, 0),
    ]
    options = server_options(certificate, proxy={"bind_ip": "::", "allow_ports": 20000})
    path = write_config(tmp_path, "server", options)
    argv = server_machine.argv(command("server", "run", "-c", str(path), "-v"))
    with (
        UdpEcho(port=8080, create_socket=server_machine.socket) as service,
        Process(argv, name="server") as server,
    ):
        options = client_options(certificate, server_address(server), service.address, udp_forward_mode=mode)
        path = write_config(tmp_path, "client", options)
        argv = server_machine.argv(command("client", "run", "-c", str(path), "-v"))
        with Process(argv, name="client") as client:
            port = public_port(client)
            for kind in (socket.AF_INET, socket.AF_INET6):
                with user_machine.socket(kind, socket.SOCK_DGRAM) as user:
                    if kind == socket.AF_INET6:
                        user.bind(("::", 0))
                    of_this_kind = [
                        (host, port, *rest) for host, *rest in targets if (":" in host) == (kind == socket.AF_INET6)
                    ]
                    for turn in range(2):
                        for number, target in enumerate(of_this_kind):
                            for size in SIZES:
                                payload = seeded_bytes(100 * turn + 10 * size + number, size)
                                ask_from_one_socket(user, target, payload)


# --- before the port is announced -------------------------------------------------------------------------------------


def test_a_port_is_announced_with_its_socket_in_service(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: who is told of the port may send at once more than a socket holds by default."""
    crowd = 1000
    opens = PublicUdp.open

    def open_late(self: PublicUdp) -> None:
        time.sleep(0.5)
        opens(self)

    monkeypatch.setattr(PublicUdp, "open", open_late)
    with UdpEcho() as service, tunnel(certificate, service.address) as opened:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
            for _ in range(crowd):
                user.sendto(bytes(100), opened.public)

            def read() -> int:
                return opened.engine_counter("server", "udp_received")

            wait_until(
                lambda: read() + opened.engine_counter("server", "udp_drop_kernel") >= crowd,
                READY_TIMEOUT,
                "the server accounts for all of them",
                detail=lambda: f"read {read()}",
            )
            assert read() == crowd


# --- what the kernel drops --------------------------------------------------------------------------------------------


class CountingServer:
    """A server in a process of its own that says what it counts."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )

    def __enter__(self) -> CountingServer:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(READY_TIMEOUT)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()

    def line(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def counter(self, name: str) -> int:
        """A counter of its engine."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self.line()["engine"][name])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It does not run meanwhile; what comes is the kernel's."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)


def test_what_the_kernel_drops_is_counted(certificate: Certificate, tmp_path: Path) -> None:
    """A server that does not run for a moment, and gets more than its sockets hold."""
    crowd = 20_000
    junk = bytes(1000)
    path = write_config(tmp_path, "server", server_options(certificate))
    with UdpEcho() as service, CountingServer(path) as server:
        quic: Address = tuple(server.line())
        options = client_options(certificate, quic, service.address, expected_port_range=free_port())
        with Client(**options) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
            public = client.wait_ready(READY_TIMEOUT)
            with server.paused():
                for target in (public, quic):
                    for _ in range(crowd):
                        user.sendto(junk, target)
            wait_until(
                lambda: server.counter("udp_received") + server.counter("udp_drop_kernel") >= crowd,
                READY_TIMEOUT,
                "public datagrams are read or counted",
                detail=lambda: f"{server.counter('udp_received')} read, {server.counter('udp_drop_kernel')} counted",
            )
            assert server.counter("udp_received") + server.counter("udp_drop_kernel") == crowd
            assert server.counter("udp_drop_kernel") > 0
            wait_until(
                lambda: server.counter("quic_datagrams_received") + server.counter("quic_drop_kernel") >= crowd,
                READY_TIMEOUT,
                "QUIC datagrams are read or counted",
            )
            assert server.counter("quic_drop_kernel") > 0


# --- peers without DATAGRAM frames ------------------------------------------------------------------------------------


def without_datagrams(monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """This side takes no DATAGRAM frames (RFC 9221 section 3)."""
    place, name = (client_transport, "transport_of") if side == "client" else (ServerSession, "_transport")
    transport: Callable[..., Transport] = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *of, **more: dataclasses.replace(transport(*of, **more), datagrams=False))


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_without_datagram_frames_gets_streams(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    without_datagrams(monkeypatch, side)
    with UdpEcho() as service, tunnel(certificate, service.address) as opened, UdpPeer(opened.public) as user:
        for size in SIZES:
            payload = seeded_bytes(size, size)
            user.ask(payload, payload)
        # The other side is the one that had to do without; it says so, once.
        other, silent = (opened.server, opened.client) if side == "client" else (opened.client, opened.server)
        assert counter(other, "udp_on_streams_instead") == 1
        assert counter(silent, "udp_on_streams_instead") == 0
        for end in ("client", "server"):
            assert opened.engine_counter(end, "packet_drop_carrier") == 0
    lines = [record.getMessage() for record in caplog.records if "QUIC DATAGRAM frames" in record.getMessage()]
    assert len(lines) == 1
    assert "udp_forward_mode" in lines[0]
