"""Several clients of a restarted server: each finds its own port again, whoever comes first."""

from __future__ import annotations

import contextlib
from pathlib import Path

from asport_sync import Client
from tests.e2e.tunnels import READY_TIMEOUT, client_options, server_address, server_process, wait_for_counter
from tests.recovery.first_byte import first_byte
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import TcpEcho

CLIENTS = 4
RESTARTS = 3


def test_ports_are_not_swapped(certificate: Certificate, tmp_path: Path) -> None:
    quic = free_port()
    ports = [free_port() for _ in range(CLIENTS)]
    changes = {"server": f"127.0.0.1:{quic}", "proxy": {"allow_ports": ports}}
    with TcpEcho() as service, contextlib.ExitStack() as stack:
        server = stack.enter_context(server_process(tmp_path, certificate, **changes))
        options = client_options(certificate, server_address(server), service.address)
        clients = [stack.enter_context(Client(**options)) for _ in ports]
        before = [client.wait_ready(READY_TIMEOUT) for client in clients]
        assert {port for _, port in before} == set(ports)
        for turn in range(RESTARTS):
            server.kill()
            server = stack.enter_context(server_process(tmp_path, certificate, **changes))
            for client in clients:
                wait_for_counter(client, "joined", turn + 2)
            assert [client.wait_ready(READY_TIMEOUT) for client in clients] == before
            for public in before:
                first_byte(public, READY_TIMEOUT)
