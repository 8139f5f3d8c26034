"""The whole tunnel across a bad path: server in one namespace, client and service in the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.endpoints import REFERENCE_0_1_2, REFERENCE_0_4_0, Reference, Tunnel
from tests.interop.install import NotInstalled, install
from tests.path.network import NetworkPath
from tests.support.certificates import Certificate, write_private
from tests.support.data import digest, seeded_bytes
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho, host_and_port
from tests.support.traffic import UdpPeer, echo, wait_for_port

pytestmark = pytest.mark.usefixtures("needs_namespaces")

MIB = 1024 * 1024
QUIC_PORT = 4433
PUBLIC_PORT = 20000
LOCAL_PORT = 8080
DATAGRAMS = 200
# Seconds without another datagram after which no more is expected: many round trips.
QUIET = 1.0
# The reference's default, cubic, stalls at this loss.
CONGESTION_CONTROL = "bbr"

OURS = "ours"


def commands(
    implementation: str, tunnel: Tunnel, server: Address, local: Address, certificate: Certificate, directory: Path
) -> tuple[list[str], list[str]]:
    """Write the configuration of both sides, and return their command lines."""
    reference = {each.name: each for each in (REFERENCE_0_1_2, REFERENCE_0_4_0)}.get(implementation)
    if reference is not None:
        return _reference_commands(reference, tunnel, server, local, certificate, directory)
    shared = {"log_level": "info", "congestion_control": CONGESTION_CONTROL}
    server_keys = {
        **shared,
        **tunnel.server_options(),
        "server": host_and_port(server),
        "certificate": str(certificate.certificate),
        "private_key": str(certificate.private_key),
    }
    client_keys = {
        **shared,
        **tunnel.client_options(),
        "server": host_and_port(server),
        "local": host_and_port(local),
        "server_name": "localhost",
        "certificates": {"paths": [str(certificate.trusted)], "disable_native": True},
    }
    argv = []
    for side, keys in (("server", server_keys), ("client", client_keys)):
        file = directory / f"{side}.json"
        write_private(file, json.dumps(keys, indent=2).encode())
        argv.append([sys.executable, "-m", "asport_sync", side, "run", "-c", str(file)])
    return argv[0], argv[1]


def _reference_commands(
    reference: Reference, tunnel: Tunnel, server: Address, local: Address, certificate: Certificate, directory: Path
) -> tuple[list[str], list[str]]:
    try:
        install(reference.name)
    except NotInstalled as error:
        pytest.skip(str(error))
    options = {"congestion_control": CONGESTION_CONTROL}
    server_file = reference.write_server_config(directory, tunnel, server, certificate, **options)
    client_file = reference.write_client_config(directory, tunnel, server, local, certificate, **options)
    return reference.argv("asport-server", server_file), reference.argv("asport-client", client_file)


@contextmanager
def tunnel_across(
    path: NetworkPath, implementation: str, certificate: Certificate, directory: Path
) -> Iterator[tuple[Process, Process]]:
    """Server in a, client in b; in front of the local port in b stands the public port in a."""
    # The public port is open on all addresses of both families, so that the users' addresses arrive mapped to IPv6.
    tunnel = Tunnel(bind_ip="::", port=PUBLIC_PORT)
    server_argv, client_argv = commands(
        implementation, tunnel, (path.address_a, QUIC_PORT), ("127.0.0.1", LOCAL_PORT), certificate, directory
    )
    with (
        Process(path.a.argv(server_argv), name="server") as server,
        Process(path.b.argv(client_argv), name="client") as client,
    ):
        try:
            wait_for_port(("127.0.0.1", PUBLIC_PORT), processes=(server, client), create_socket=path.a.socket)
            yield server, client
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{error}\n{server.description()}\n{client.description()}") from error


@pytest.mark.parametrize(
    "implementation",
    [
        OURS,
        pytest.param(REFERENCE_0_1_2.name, marks=pytest.mark.reference),
        pytest.param(REFERENCE_0_4_0.name, marks=pytest.mark.reference),
    ],
)
def test_20_ms_and_1_percent_loss(implementation: str, certificate: Certificate, tmp_path: Path) -> None:
    data = seeded_bytes(20, 4 * MIB)
    questions = [b"question %d " % number + seeded_bytes(number, 200) for number in range(DATAGRAMS)]
    with (
        NetworkPath(delay_ms=10, loss=0.01, rate_mbit=100, seed=11) as path,
        TcpEcho(port=LOCAL_PORT, create_socket=path.b.socket),
        UdpEcho(port=LOCAL_PORT, create_socket=path.b.socket) as datagrams,
        tunnel_across(path, implementation, certificate, tmp_path),
    ):
        public = ("127.0.0.1", PUBLIC_PORT)
        received = echo(public, data, create_socket=path.a.socket)
        assert (len(received), digest(received)) == (len(data), digest(data))

        with UdpPeer(public, create_socket=path.a.socket) as user:
            for question in questions:
                user.send(question)
            answers = []
            while (answer := user.receive(QUIET)) is not None:
                answers.append(answer)
        assert set(answers) <= set(questions)
        assert len(answers) == len(set(answers)), "a datagram came twice"
        assert 0 < len(answers) <= datagrams.received <= DATAGRAMS

        there, back = path.counters()
        assert there.lost > 0
        assert back.lost > 0
