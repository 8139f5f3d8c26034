"""Every tunnel that is compared carries TCP and UDP, is measured from its own process, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.tunnels import TUNNELS, VARIANTS, Direct, Gtls, Place, Running, Tunnel
from tests.support import namespaces
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.services import Address, SocketFactory, TcpEcho, UdpEcho, new_socket
from tests.support.traffic import UdpPeer, echo
from tests.support.waiting import wait_until

# Bytes through each tunnel.
SIZE = 1 << 20


@pytest.fixture
def service() -> Iterator[Address]:
    port = free_port()
    with TcpEcho(port=port), UdpEcho(port=port):
        yield "127.0.0.1", port


def skip_unavailable(tunnel: Tunnel | Gtls) -> None:
    reason = tunnel.unavailable()
    if reason is not None:
        assert tunnel.name != "asport-sync"
        pytest.skip(f"{tunnel.name}: {reason}; python -m bench.tunnels.install")


def check_carries(running: Running, *, create_socket: SocketFactory = new_socket) -> None:
    data = seeded_bytes(1, SIZE)
    assert echo(running.tcp, data, create_socket=create_socket) == data
    assert running.udp is not None
    with UdpPeer(running.udp, create_socket=create_socket) as peer:
        for size in (1, 64, 1200):
            payload = seeded_bytes(size, size)
            peer.ask(payload, payload)


@pytest.mark.parametrize("tunnel", [*TUNNELS, *VARIANTS], ids=lambda tunnel: tunnel.name)
def test_carries_and_is_measured(tunnel: Tunnel, service: Address, tmp_path: Path) -> None:
    skip_unavailable(tunnel)
    with tunnel.open(Place(tmp_path, service)) as running:
        check_carries(running)
        processes = [Path(f"/proc/{pid}") for pid in (running.server_pid, running.client_pid)]
        assert running.alive()
        assert all(process.is_dir() for process in processes)
        assert all(0 < seconds < 10 for seconds in running.ready_seconds)
        assert all(0 < seconds < 10 for seconds in running.cpu_seconds())
        assert all(kib > 1000 for kib in running.memory_kib())
    assert not any(process.exists() for process in processes)
    assert tunnel.version()[0].isdigit()


@pytest.mark.parametrize("name", ["asport-sync", "asport"])
def test_options(name: str, service: Address, tmp_path: Path) -> None:
    tunnel = next(tunnel for tunnel in TUNNELS if tunnel.name == name)
    skip_unavailable(tunnel)
    with tunnel.open(Place(tmp_path, service), carrier="quic", congestion_control="bbr") as running:
        check_carries(running)


def test_a_process_that_ends_is_noticed(service: Address, tmp_path: Path) -> None:
    with TUNNELS[0].open(Place(tmp_path, service)) as running:
        assert running.alive()
        os.kill(running.client_pid, signal.SIGKILL)
        wait_until(lambda: not running.alive(), 10, "the client's end is noticed")


def test_in_a_namespace(tmp_path: Path) -> None:
    if (reason := namespaces.unavailable()) is not None:
        pytest.skip(reason)
    with namespaces.Namespace() as namespace:
        port = free_port()
        with TcpEcho(port=port, create_socket=namespace.socket), UdpEcho(port=port, create_socket=namespace.socket):
            prefix = tuple(namespace.argv([]))
            place = Place(tmp_path, ("127.0.0.1", port), server_prefix=prefix, client_prefix=prefix)
            with TUNNELS[0].open(place) as running:
                check_carries(running, create_socket=namespace.socket)
                assert "asport_sync" in Path(f"/proc/{running.client_pid}/cmdline").read_text()


def test_direct(service: Address, tmp_path: Path) -> None:
    with Direct().open(Place(tmp_path, service)) as running:
        check_carries(running)
        assert running.alive()
        assert (running.cpu_seconds(), running.memory_kib()) == ((0, 0), (0, 0))


def test_gtls(tmp_path: Path) -> None:
    gtls = Gtls()
    skip_unavailable(gtls)
    with gtls.open(tmp_path) as server:
        assert 0 < server.download(SIZE) < 10
