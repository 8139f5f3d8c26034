"""What tunnels and users have moved is never less than before: after reconnects, departures and removals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Client, Server
from tests.e2e.test_control import ask, curl
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    USER,
    client_options,
    client_process,
    public_port,
    server_address,
    server_options,
    server_process,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

BLOCK = 300_000  # bytes of each transfer, each way


@pytest.fixture
def service() -> Iterator[TcpEcho]:
    with TcpEcho() as running:
        yield running


class Watched:
    """The counters of tunnels of a process, as Prometheus sees them. Each look checks that none has fallen."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._before: dict[str, float] = {}

    def look(self) -> dict[str, float]:
        text = curl("--unix-socket", str(self._socket), "http://localhost/metrics")
        found = {
            name + labels: float(value)
            for name, labels, value in re.findall(r"^(asport_tunnel_\w+_total)(\{.*\}) (\S+)$", text, re.MULTILINE)
        }
        assert {name: value for name, value in self._before.items() if found.get(name, -1.0) < value} == {}
        self._before = found
        return found

    def payload(self, direction: str) -> float:
        (value,) = (value for name, value in self.look().items() if f"tunnel_payload_{direction}_bytes" in name)
        return value

    def connections(self) -> float:
        (value,) = (value for name, value in self.look().items() if "tunnel_connections_total" in name)
        return value


def transfer(port: int) -> None:
    assert len(echo(("127.0.0.1", port), bytes(BLOCK))) == BLOCK


def joined(client: Process, directory: Path, times: int) -> None:
    def has_joined() -> bool:
        return bool(ask(directory / "asport-sync" / "client.sock", "/v1/stats")["counters"]["joined"] == times)

    wait_until(has_joined, READY_TIMEOUT, f"the client has joined {times} times")


def test_prometheus_sees_no_counter_fall(
    certificate: Certificate, tmp_path: Path, service: TcpEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client", reason="the extra 'metrics' is not installed")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    port, address = free_port(), ("127.0.0.1", free_port())
    options = {"server": f"{address[0]}:{address[1]}"}
    of_client, of_server = (Watched(tmp_path / "asport-sync" / f"{side}.sock") for side in ("client", "server"))
    with client_process(tmp_path, certificate, address, service.address, expected_port_range=port) as client:
        with server_process(tmp_path, certificate, **options) as server:
            assert server_address(server) == address
            assert public_port(client) == port
            transfer(port)
            wait_until(lambda: of_client.payload("sent") >= BLOCK, READY_TIMEOUT, "the client has counted it")
            wait_until(lambda: of_server.payload("received") >= BLOCK, READY_TIMEOUT, "the server has counted it")
            transfer(port)  # no look between this and the end of the connection
            assert ask(tmp_path / "asport-sync" / "server.sock", "/v1/disconnect", "-d", json.dumps({"name": USER}))
            joined(client, tmp_path, 2)
            for watched, direction in ((of_client, "sent"), (of_server, "received")):
                assert watched.payload(direction) >= 2 * BLOCK
                assert watched.connections() == 2
            transfer(port)
            wait_until(lambda: of_client.payload("received") >= 3 * BLOCK, READY_TIMEOUT, "the sums go on")
            wait_until(lambda: of_server.payload("sent") >= 3 * BLOCK, READY_TIMEOUT, "the sums go on")
            server.kill()
        with server_process(tmp_path, certificate, **options):
            joined(client, tmp_path, 3)
            transfer(port)
            wait_until(lambda: of_client.payload("sent") >= 4 * BLOCK, READY_TIMEOUT, "the sums go on")
            (row,) = ask(tmp_path / "asport-sync" / "client.sock", "/v1/status")["tunnels"]
            assert row["payload_sent"] >= 4 * BLOCK
            assert row["connections_total"] == 4


def test_what_has_left_is_in_the_statistics(certificate: Certificate, tmp_path: Path, service: TcpEcho) -> None:
    with Server(**server_options(certificate)) as server:
        for times in (1, 2):
            with client_process(tmp_path, certificate, server.address, service.address) as client:
                transfer(public_port(client))
                assert client.stop() == 0
            wait_until(lambda: not server.stats().connections, READY_TIMEOUT, "the client has left")
            stats = server.stats()
            ((name, moved),) = stats.totals.items()
            assert name == ("", USER)
            assert (moved.streams_total, moved.payload_sent) == (times, times * BLOCK)
            assert moved.payload_received >= times * BLOCK
            assert moved.bytes_received > moved.payload_received
        (entry,) = json.loads(json.dumps(stats.as_dict()))["totals"]
        assert (entry["tunnel"], entry["user"], entry["streams_total"]) == ("", USER, 2)
        server.stop()
        server.start()
        assert server.stats().totals == {}


def test_a_tunnel_that_was_removed_stays_counted(certificate: Certificate, service: TcpEcho) -> None:
    with Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, service.address)
        local = options.pop("local")
        with Client(tunnels={"web": {"local": local}}, **options) as client:
            client.wait_ready(READY_TIMEOUT)
            for times in (1, 2):
                added = client.tunnels.add("ssh", local=local)
                transfer(added.wait_ready(READY_TIMEOUT)[1])
                client.tunnels.remove("ssh")
                moved = client.stats().totals["ssh", USER]
                assert (moved.streams_total, moved.payload_received) == (times, times * BLOCK)
            tunnel = client.tunnels["web"].stats()
            assert tunnel.totals.bytes_sent > 0
            assert tunnel.totals.streams_total == 0
            client.tunnels.add("ssh", local=local).wait_ready(READY_TIMEOUT)
            assert client.tunnels["ssh"].stats().totals.streams_total == 2
