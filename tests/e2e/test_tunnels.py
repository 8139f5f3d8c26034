"""Several tunnels through one client: the commands, and what a tunnel that comes or goes leaves to the others."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from asport_sync import AuthenticationError, Client, ConnectError, PortDeniedError, Server, TunnelOptions
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho, host_and_port
from tests.support.traffic import UdpPeer, connect, expect_reset, receive_exactly, wait_for_port
from tests.support.waiting import wait_until

from .tunnels import (
    PASSWORD,
    READY_TIMEOUT,
    both_echoes,
    client_options,
    command,
    server_address,
    server_options,
    server_process,
    write_config,
)

OTHER_USER = "ffeeddcc-bbaa-9988-7766-554433221100"
HOST = "127.0.0.1"


def defaults(certificate: Certificate, server: Address) -> dict[str, Any]:
    """What the tunnels of a client have in common."""
    options = client_options(certificate, server, (HOST, 9))
    del options["local"]
    return options


def ask(visitor: socket.socket, data: bytes) -> None:
    """Sends something through a tunnel, and expects it back."""
    visitor.sendall(data)
    assert receive_exactly(visitor, len(data)) == data


def lines(process: Process, tunnel: str) -> list[str]:
    """What a client process has logged about one of its tunnels."""
    return re.findall(rf"^\S+ \w+ client: {re.escape(tunnel)}: (.*)$", process.output(), re.MULTILINE)


def joins(process: Process, tunnel: str) -> int:
    return sum("is public on port" in line for line in lines(process, tunnel))


def client_of(folder: Path, options: dict[str, Any]) -> Process:
    path = write_config(folder, "client", options)
    return Process(command("client", "run", "-c", str(path), "-vv"), name="client")


# --- the commands ----------------------------------------------------------------------------------------------------


def test_several_services_through_one_process(tmp_path: Path, certificate: Certificate) -> None:
    """TCP and UDP, two servers and two users; one port is refused, and one server restarted."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    ports = {name: free_port() for name in ("web", "both", "denied", "game", "other")}
    proxy = {"allow_ports": [ports[name] for name in ("web", "both", "game")]}
    other = {"users": {OTHER_USER: "another"}, "allow_ports": [ports["other"]]}
    second_address = f"{HOST}:{free_port()}"
    with (
        TcpEcho() as web,
        both_echoes() as (stream, datagrams),
        UdpEcho() as game,
        server_process(folders[0], certificate, proxy=proxy) as first,
    ):
        second = server_process(folders[1], certificate, server=second_address, proxy=other)
        options = defaults(certificate, server_address(first)) | {
            "tunnels": {
                "web": {"local": host_and_port(web.address), "port": ports["web"], "network": "tcp"},
                "both": {"local": host_and_port(stream.address), "port": ports["both"]},
                "denied": {"local": host_and_port(web.address), "port": ports["denied"]},
                "game": {"local": host_and_port(game.address), "port": ports["game"], "network": "udp"},
                "other": {
                    "local": host_and_port(web.address),
                    "port": ports["other"],
                    "network": "tcp",
                    "server": second_address,
                    "uuid": OTHER_USER,
                    "password": "another",
                },
            }
        }
        with client_of(tmp_path, options) as client:
            with second:
                server_address(second)
                for name in ("web", "both", "game", "other"):
                    client.wait_for(rf"client: {name}: .* is public on port {ports[name]} for ", READY_TIMEOUT)
                client.wait_for(r"client: denied: .*port denied", READY_TIMEOUT)
                with connect((HOST, ports["web"])) as stays, connect((HOST, ports["other"])) as goes:
                    ask(stays, b"before")
                    ask(goes, b"before")
                    for name, service in (("both", datagrams), ("game", game)):
                        with UdpPeer((HOST, ports[name])) as visitor:
                            visitor.ask(b"hello", b"hello")
                        assert service.address
                    with connect((HOST, ports["both"])) as visitor_of_both:
                        ask(visitor_of_both, b"hello")
                    second.send_signal(signal.SIGKILL)
                    second.wait(READY_TIMEOUT)
                    client.wait_for(r"client: other: .*(silent|lost|no answer|refused)", READY_TIMEOUT)
                    ask(stays, b"meanwhile")
            with server_process(folders[1], certificate, server=second_address, proxy=other):
                wait_until(lambda: joins(client, "other") == 2, READY_TIMEOUT, "the other one is back")
                wait_for_port((HOST, ports["other"]))
                with connect((HOST, ports["other"])) as again:
                    ask(again, b"again")
                assert [joins(client, name) for name in ("web", "both", "game")] == [1, 1, 1]
                assert client.stop() == 0
            assert PASSWORD not in client.output()


@pytest.mark.parametrize(
    ("tunnel", "error"),
    [
        ({"password": "wrong"}, AuthenticationError),
        ({"port": 1}, PortDeniedError),
        ({"server": f"{HOST}:9", "timeout": 0.5}, ConnectError),
    ],
    ids=["password", "port", "server"],
)
def test_what_fails_fails_alone(certificate: Certificate, tunnel: dict[str, Any], error: type[Exception]) -> None:
    with TcpEcho() as service, Server(**server_options(certificate)) as server:
        local: dict[str, Any] = {"local": host_and_port(service.address)}
        options = defaults(certificate, server.address) | {"network": "tcp"}
        both: Any = {"bad": local | tunnel, "good": local | {"port": free_port()}}
        with Client(**options, tunnels=both) as client:
            public = client.tunnels["good"].wait_ready(READY_TIMEOUT)
            with pytest.raises(error, match=r"^bad: "):
                client.tunnels["bad"].wait_ready(5)
            with connect(public) as visitor:
                ask(visitor, b"hello")
            assert client.tunnels["good"].stats().counters["attempts"] == 1


def test_a_service_that_does_not_run_is_missed_by_its_own_visitors_only(certificate: Certificate) -> None:
    with TcpEcho() as service, Server(**server_options(certificate)) as server:
        tunnels: dict[str, TunnelOptions] = {
            "none": {"local": (HOST, free_port()), "expected_port_range": free_port()},
            "some": {"local": service.address, "expected_port_range": free_port()},
        }
        with Client(**defaults(certificate, server.address), network="tcp", tunnels=tunnels) as client:
            client.wait_ready(READY_TIMEOUT)
            addresses = {name: tunnel.address for name, tunnel in client.tunnels.items()}
            assert addresses["none"]
            assert addresses["some"]
            with connect(addresses["some"]) as visitor:
                expect_reset(addresses["none"])
                ask(visitor, b"hello")
            wait_until(
                lambda: client.stats().tunnels["none"].counters["connections_dropped_local_service"] == 1,
                READY_TIMEOUT,
                "it is counted for its own tunnel",
            )
            assert client.stats().tunnels["some"].counters["connections_dropped_local_service"] == 0


# --- tunnels that come and go ----------------------------------------------------------------------------------------

TURNS = 500
WARM = 100  # turns after which everything that is made once has been made
# MiB: the arenas of the allocator and of Python, which level off after about 1,000 turns. A tunnel takes 120 KiB on
# each side, so that one in six that stayed would show.
SLACK = 16.0


def held(client: Client) -> tuple[int, int]:
    """The descriptors and threads of this process, without the client's workers, which end when idle for 30 s."""
    host = client._host
    assert host is not None
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")) - host.workers.threads


def memory() -> float:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


class Steady:
    """A visitor who sends numbered blocks through a tunnel, and checks that each comes back, until told to stop."""

    def __init__(self, public: Address) -> None:
        self._sock = connect(public)
        self._over = threading.Event()
        self.blocks = 0
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                ask(self._sock, self.blocks.to_bytes(8, "big") * 512)
                self.blocks += 1
                time.sleep(0.002)
        except Exception as problem:
            self.problem = problem

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._sock.close()
        if self.problem is not None:
            raise self.problem


@pytest.mark.timeout(300)
def test_tunnels_that_come_and_go_cost_the_others_nothing(certificate: Certificate) -> None:
    """500 are added and removed while two others carry traffic: no byte is lost, and nothing stays."""
    server = Server(**server_options(certificate, proxy={"max_clients": 64}))
    with TcpEcho() as service, server:
        options = defaults(certificate, server.address) | {"network": "tcp"}
        local: TunnelOptions = {"local": service.address}
        with Client(**options, tunnels={"one": local, "two": local}) as client:
            client.wait_ready(READY_TIMEOUT)
            publics = [tunnel.address for tunnel in client.tunnels.values()]
            visitors = [Steady(public) for public in publics if public is not None]
            try:
                # The descriptors of their connections are to be counted from the beginning.
                wait_until(lambda: all(each.blocks for each in visitors), READY_TIMEOUT, "both have an answer")
                settle(client, server)
                counts = held(client)
                before = 0.0
                for turn in range(TURNS):
                    added = client.tunnels.add(f"turn-{turn}", **local)
                    if turn % 5 == 0:
                        with connect(added.wait_ready(READY_TIMEOUT)) as visitor:
                            ask(visitor, b"hello")
                            client.tunnels.remove(added.name)
                    else:  # also in the middle of a handshake
                        client.tunnels.remove(added.name)
                    if turn == WARM:
                        settle(client, server, counts[0])
                        before, counts = memory(), held(client)
                settle(client, server, counts[0])
                after = memory()
                print(f"{TURNS - WARM} tunnels: {before:.1f} MiB, then {after:.1f} MiB; {counts}, then {held(client)}")
                assert after < before + SLACK
                assert held(client)[1] <= counts[1]
            finally:
                for each in visitors:
                    each.stop()
            assert all(each.blocks > TURNS for each in visitors)
            assert [tunnel.stats().counters["attempts"] for tunnel in client.tunnels.values()] == [1, 1]


def settle(client: Client, server: Server, descriptors: int = 0) -> None:
    """Waits until both sides have forgotten everything but two tunnels, in every table.

    QUIC connections that are closed keep their socket for three probe timeouts, which are a second each if there was no
    round trip yet. Until then descriptors are left to go.
    """
    host = client._host
    assert host is not None
    wait_until(lambda: len(server.stats().connections) == 2, READY_TIMEOUT, "the server has two clients")
    wait_until(lambda: host.run(lambda: len(host.router)) == 2, READY_TIMEOUT, "the client has two connections")
    sessions = client._running()
    host.pump.call_and_wait(lambda: None)
    assert len(host._sessions) == len(sessions.by_name) == 2
    assert len(host.machine._resumed) == len(host.machine._network._routes) == 2
    assert host.run(lambda: len(host._validities)) == 2
    assert len(sessions._shared.trust) == 1
    if descriptors:
        wait_until(lambda: held(client)[0] <= descriptors, READY_TIMEOUT, f"there are {descriptors} descriptors again")
