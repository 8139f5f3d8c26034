"""A process that runs out of descriptors refuses what is new, goes on with what is there, and recovers."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

import pytest

from tests.bounds.old_work import answers, descriptors_of, old_work
from tests.e2e.tunnels import both_echoes, client_process, public_port, server_address, server_process
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

TIMEOUT = 20.0
# Descriptors that the process may still open.
SPARE = 4
CROWD = 40


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("carrier", ["native", "quic"])
def test_old_work_goes_on_without_descriptors(
    certificate: Certificate, tmp_path: Path, side: str, carrier: str
) -> None:
    with (
        both_echoes() as (service, _),
        server_process(tmp_path, certificate) as server,
        client_process(
            tmp_path, certificate, server_address(server), service.address, network="both", udp_forward_mode=carrier
        ) as client,
    ):
        public = ("127.0.0.1", public_port(client))
        short = server if side == "server" else client
        with old_work(public) as old:
            before = resource.prlimit(short.pid, resource.RLIMIT_NOFILE)
            most = descriptors_of(short.pid) + SPARE
            resource.prlimit(short.pid, resource.RLIMIT_NOFILE, (most, before[1]))
            with contextlib.ExitStack() as crowd:
                for _ in range(CROWD):
                    with contextlib.suppress(ConnectionError):  # a reset may come before connect() has returned
                        user = crowd.enter_context(socket.create_connection(public, timeout=TIMEOUT))
                        user.sendall(b"x")
                    source = crowd.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    source.sendto(b"x", public)
                short.wait_for("Too many open files|share of descriptors", TIMEOUT)
                assert descriptors_of(short.pid) <= most
                old.goes_on()
            # Not before the limit is lifted: the crowd's leavings may hold what is short for a moment longer.
            resource.prlimit(short.pid, resource.RLIMIT_NOFILE, before)
            wait_until(lambda: answers(public), TIMEOUT, "new connections are served again", detail=short.description)
            old.goes_on()
