"""Health checks with the commands: the public port of an unhealthy service is withdrawn, and comes back."""

from __future__ import annotations

import http.client
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server, UnhealthyError
from tests.e2e.test_local import WEB_SERVER
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_options,
    client_process,
    counter,
    public_port,
    server_address,
    server_options,
    server_process,
    wait_for_counter,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import TcpEcho
from tests.support.traffic import connect, echo
from tests.support.waiting import wait_until

OFTEN = {"interval": "200ms", "failures": 2}


def web_server(directory: Path, port: int) -> Process:
    """The standard library's; answers ``/live`` as long as there is such a file."""
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    return Process(command, name="web server", directory=directory)


def status(port: int) -> int | None:
    """The status with which the web server behind a public port answers; None: nothing listens there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT)
    try:
        connection.request("GET", "/live")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def is_open(port: int) -> bool:
    try:
        connect(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_port_is_withdrawn_and_comes_back(certificate: Certificate, tmp_path: Path) -> None:
    local = ("127.0.0.1", free_port())
    live = tmp_path / "live"
    live.write_text("yes")
    options: dict[str, Any] = {"health": {"http": "/live", **OFTEN}, "network": "tcp"}
    # Below the ephemeral ports: while nothing listens, a connection to one of those could connect to itself.
    proxy = {"allow_ports": free_port()}
    with (
        server_process(tmp_path, certificate, proxy=proxy) as server,
        client_process(tmp_path, certificate, server_address(server), local, **options) as client,
    ):
        # At the start: nothing is requested before the service is there.
        client.wait_for(r"local service is unhealthy \(connection refused\); its port is requested once it is healthy$")
        assert "is public on port" not in client.output()
        with web_server(tmp_path, local[1]) as web:
            port = public_port(client)
            assert status(port) == 200
            # The service says itself that it is unhealthy.
            live.unlink()
            client.wait_for(r"local service is unhealthy \(HTTP status 404\); port withdrawn$")
            wait_until(lambda: not is_open(port), READY_TIMEOUT, "visitors are refused")
            live.write_text("yes")
            wait_until(lambda: status(port) == 200, READY_TIMEOUT, "the same port is open again")
            web.stop()
        client.wait_for(r"local service is unhealthy \(connection refused\); port withdrawn$")
        wait_until(lambda: not is_open(port), READY_TIMEOUT, "visitors are refused")
        with web_server(tmp_path, local[1]):
            wait_until(lambda: status(port) == 200, READY_TIMEOUT, "the same port is open again")
        assert client.output().count("local service is healthy again") == 3


def test_another_client_may_have_the_port_meanwhile(certificate: Certificate) -> None:
    port, local = free_port(), free_port()
    with Server(**server_options(certificate)) as server, TcpEcho() as other:
        options = {"network": "tcp", "expected_port_range": port}
        checked = client_options(
            certificate, server.address, ("127.0.0.1", local), health={"tcp": True, **OFTEN}, **options
        )
        with Client(**checked) as client:
            with TcpEcho(port=local):
                assert client.wait_ready(READY_TIMEOUT)[1] == port
            wait_for_counter(client, "ports_withdrawn", 1)
            with Client(**client_options(certificate, server.address, other.address, **options)) as second:
                assert second.wait_ready(READY_TIMEOUT)[1] == port
                assert echo(("127.0.0.1", port), b"hello") == b"hello"
                with pytest.raises(UnhealthyError, match="connection refused"):
                    client.wait_ready(0.1)
            with TcpEcho(port=local):
                assert client.wait_ready(READY_TIMEOUT)[1] == port


def test_open_connections_end_with_the_port(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Server(**server_options(certificate)) as server:
        options = {"network": "tcp", "health": {"tcp": True, **OFTEN}}
        with Client(**client_options(certificate, server.address, listener.getsockname(), **options)) as client:
            with connect(client.wait_ready(READY_TIMEOUT)) as visitor:
                visitor.sendall(b"hello")
                with first_that_says(listener, b"hello"):
                    listener.close()
                    with pytest.raises(ConnectionResetError):
                        visitor.recv(1)
            assert counter(client, "ports_withdrawn") == 1


def first_that_says(listener: socket.socket, said: bytes) -> socket.socket:
    """Accepts connections, also those of checks, until one begins with these bytes."""
    listener.settimeout(READY_TIMEOUT)
    while True:
        connection, _ = listener.accept()
        connection.settimeout(READY_TIMEOUT)
        if connection.recv(len(said)) == said:
            return connection
        connection.close()


def test_a_unix_socket_is_checked_with_http(certificate: Certificate, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.write_text("yes")
    with (
        tempfile.TemporaryDirectory() as directory,
        Process([sys.executable, "-c", WEB_SERVER, f"{directory}/web"], name="web server", directory=tmp_path),
        Server(**server_options(certificate, proxy={"allow_ports": free_port()})) as server,
    ):
        options = {"local": f"unix:{directory}/web", "health": {"http": "/live", **OFTEN}}
        with Client(**client_options(certificate, server.address, ("127.0.0.1", 9), **options)) as client:
            _, port = client.wait_ready(READY_TIMEOUT)
            assert status(port) == 200
            live.unlink()
            wait_for_counter(client, "ports_withdrawn", 1)
            health = client.stats().tunnels[""].health
            assert health is not None
            assert health.unhealthy == {f"unix:{directory}/web": "HTTP status 404"}
            live.write_text("yes")
            wait_until(lambda: status(port) == 200, READY_TIMEOUT, "the same port is open again")


def test_visitors_are_not_sent_to_an_unhealthy_address(certificate: Certificate, tmp_path: Path) -> None:
    """It accepts connections, so that dialling it would not fail."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "live").write_text("yes")
    (tmp_path / "bad").mkdir()
    bad, good = free_port(), free_port()
    with (
        web_server(tmp_path / "bad", bad),
        web_server(tmp_path / "good", good),
        Server(**server_options(certificate)) as server,
    ):
        local = [f"127.0.0.1:{bad}", f"127.0.0.1:{good}"]
        options: dict[str, Any] = {"local": local, "network": "tcp", "health": {"http": "/live", **OFTEN}}
        with Client(**client_options(certificate, server.address, ("127.0.0.1", 9), **options)) as client:
            _, port = client.wait_ready(READY_TIMEOUT)
            assert [status(port) for _ in range(5)] == [200] * 5
            (tmp_path / "bad" / "live").write_text("yes")
            wait_until(lambda: not unhealthy(client), READY_TIMEOUT, "both are healthy")
            (tmp_path / "good" / "live").unlink()
            wait_until(lambda: unhealthy(client) == [f"127.0.0.1:{good}"], READY_TIMEOUT, "the second is unhealthy")
            wait_until(lambda: [status(port) for _ in range(3)] == [200] * 3, READY_TIMEOUT, "the first serves")
            assert counter(client, "ports_withdrawn") == 0


def unhealthy(client: Client) -> list[str]:
    health = client.stats().tunnels[""].health
    return [] if health is None else list(health.unhealthy)
