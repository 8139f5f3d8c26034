"""What the doctor finds out about a server: each finding, by the fault that it names."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from asport_sync import Server, ServerConfig
from asport_sync.config import load_server
from asport_sync.control.services import Services
from asport_sync.doctor import check_server
from asport_sync.host.stats import Side
from tests.control.fake import FakeOperations
from tests.doctor.faults import of_server, problems, skipped, text_of
from tests.e2e.tunnels import command, server_options, write_config
from tests.support.certificates import Certificate, self_signed
from tests.support.limits import with_descriptors
from tests.support.namespaces import Namespace, unavailable
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import TcpEcho, UdpEcho
from tests.support.unprivileged import first_port_of_all, unprivileged

DAY = datetime.timedelta(days=1)


def test_all_is_well(certificate: Certificate, tmp_path: Path) -> None:
    file = write_config(tmp_path, "server", server_options(certificate))
    found = check_server(load_server(file), file=file)
    assert problems(found) == []
    assert skipped(found) == {"running", "ipv6"}
    assert {each.id for each in found} >= {"certificate", "files", "clock", "listen", "ports", "buffers", "descriptors"}


def test_a_running_server(certificate: Certificate, tmp_path: Path) -> None:
    options = server_options(certificate, control_socket=str(tmp_path / "server.sock"))
    with Server(**options) as server:
        found = check_server(ServerConfig.from_options(**options))
        assert f"process {os.getpid()}" in text_of(found, "running")
        assert f"127.0.0.1:{server.address[1]}" in text_of(found, "listen")
    assert problems(found) == []


def test_a_running_server_without_a_control_socket(certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        found = of_server(certificate, server=f"127.0.0.1:{server.address[1]}")
    assert problems(found) == []
    assert "a QUIC server answers there" in text_of(found, "listen")


# --- certificate and files --------------------------------------------------------------------------------------------


def test_the_key_of_another_certificate(certificate: Certificate, tmp_path: Path) -> None:
    other = self_signed(tmp_path)
    assert problems(of_server(certificate, private_key=str(other.private_key))) == ["certificate-unusable"]


@pytest.mark.parametrize(
    ("begins", "ends", "expected", "said"),
    [
        (-10 * DAY, -DAY, "certificate-expired", "certificate: expired since "),
        (DAY, 60 * DAY, "certificate-early", "certificate: from "),
        (-DAY, 5 * DAY, "certificate-expires", "certificate: valid until "),
    ],
)
def test_dates(tmp_path: Path, begins: datetime.timedelta, ends: datetime.timedelta, expected: str, said: str) -> None:
    found = of_server(self_signed(tmp_path, begins=begins, ends=ends))
    assert problems(found) == [expected]
    assert said in text_of(found, expected)


def test_a_certificate_that_clients_reject(tmp_path: Path) -> None:
    assert problems(of_server(self_signed(tmp_path, for_handshakes=False))) == ["certificate-unsuitable"]


def test_a_certificate_that_is_not_reloaded(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path / "one")
    options = server_options(certificate, control_socket=str(tmp_path / "server.sock"))
    with Server(**options):
        other = self_signed(tmp_path / "two")
        shutil.copy(other.certificate, certificate.certificate)
        shutil.copy(other.private_key, certificate.private_key)
        assert problems(check_server(ServerConfig.from_options(**options))) == ["certificate-stale"]


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    certificate.private_key.chmod(0o644)
    file = write_config(tmp_path, "server", server_options(certificate))
    found = check_server(load_server(file), file=file)
    assert problems(found) == ["files-exposed"]
    assert str(certificate.private_key) in text_of(found, "files-exposed")


def test_a_file_from_the_future(certificate: Certificate, tmp_path: Path) -> None:
    file = write_config(tmp_path, "server", server_options(certificate))
    later = time.time() + 7200
    os.utime(file, (later, later))
    assert problems(check_server(load_server(file), file=file)) == ["clock-wrong"]


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_control_socket_that_does_not_answer(certificate: Certificate, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert problems(of_server(certificate, control_socket=str(path))) == ["control-silent"]


@pytest.mark.parametrize("known", ["file", "address"])
def test_another_configuration_on_the_same_control_socket(certificate: Certificate, tmp_path: Path, known: str) -> None:
    path = tmp_path / "server.sock"
    options = server_options(certificate, control_socket=str(path))
    (tmp_path / "other").mkdir()
    running = write_config(tmp_path / "other", "server", options)
    with Server.from_config(running) as server:
        assert problems(check_server(load_server(running), file=running)) == []
        if known == "file":  # the address is the same
            options["server"] = f"127.0.0.1:{server.address[1]}"
            file = write_config(tmp_path, "server", options)
            found = check_server(load_server(file), file=file)
            assert f"runs on this control socket: {running}" in text_of(found, "control-taken")
        else:
            found = of_server(certificate, control_socket=str(path), server=f"127.0.0.1:{free_port()}")
        assert problems(found) == ["control-taken"]


def test_a_server_that_has_lost_its_socket(certificate: Certificate, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    services = Services(FakeOperations(side=Side.SERVER))
    services.open_control(path)
    try:
        found = of_server(certificate, control_socket=str(path), server=f"127.0.0.1:{free_port()}")
    finally:
        services.stop()
    assert problems(found) == ["not-answering"]


def test_a_taken_address(certificate: Certificate) -> None:
    with UdpEcho() as other:
        assert problems(of_server(certificate, server=f"127.0.0.1:{other.address[1]}")) == ["listen-taken"]


def test_an_address_that_cannot_be_bound(certificate: Certificate) -> None:
    """A link-local address without a zone."""
    assert problems(of_server(certificate, server="[fe80::1]:4433")) == ["listen-impossible"]


def test_addresses_of_other_machines(certificate: Certificate) -> None:
    found = of_server(certificate, server="192.0.2.7:4433", proxy={"bind_ip": "192.0.2.8"})
    assert problems(found) == ["address-absent", "address-absent"]
    assert "192.0.2.8" in found[[each.id for each in found].index("address-absent") + 2].found


# --- public ports -----------------------------------------------------------------------------------------------------


def test_no_port_is_left(certificate: Certificate) -> None:
    with TcpEcho() as other:
        assert problems(of_server(certificate, proxy={"allow_ports": other.address[1]})) == ["ports-none"]


def test_some_ports_are_taken(certificate: Certificate) -> None:
    with UdpEcho(port=free_port()) as other:
        port = other.address[1]
        found = of_server(certificate, proxy={"allow_ports": [port, free_port()]})
        assert problems(found) == ["ports-taken"]
        assert str(port) in text_of(found, "ports-taken")
        assert (
            problems(of_server(certificate, proxy={"allow_ports": [port, free_port()], "allow_network": "tcp"})) == []
        )


def test_ports_of_the_own_clients_are_not_taken(certificate: Certificate, tmp_path: Path) -> None:
    from asport_sync import Client
    from tests.e2e.tunnels import READY_TIMEOUT, client_options

    port = free_port()
    options = server_options(
        certificate, control_socket=str(tmp_path / "server.sock"), proxy={"allow_ports": [port, free_port()]}
    )
    with Server(**options) as server:
        keys = client_options(certificate, server.address, ("127.0.0.1", 1), expected_port_range=port)
        with Client(**keys) as client:
            client.wait_ready(READY_TIMEOUT)
            assert problems(check_server(ServerConfig.from_options(**options))) == []


# --- other processes --------------------------------------------------------------------------------------------------


def run(argv: list[str], expected: int = 1) -> str:
    with Process(argv) as process:
        assert process.wait(60) == expected, process.output()
        return process.output()


def test_few_descriptors(certificate: Certificate, tmp_path: Path) -> None:
    file = write_config(tmp_path, "server", server_options(certificate, max_connections=2000))
    said = run(with_descriptors(900, command("doctor", "server", "-c", str(file))))
    assert "descriptors-few" in said
    assert "is 900, 2128 may be needed (max_connections: 2000)" in said


def test_privileged_ports(certificate: Certificate, tmp_path: Path) -> None:
    if first_port_of_all() <= 444:
        pytest.skip("every port is for everybody here")
    options = server_options(certificate, server="127.0.0.1:443", proxy={"allow_ports": [444, free_port()]})
    file = write_config(tmp_path, "server", options)
    said = run(unprivileged(command("doctor", "server", "-c", str(file))))
    assert "listen-forbidden" in said
    assert "ports-forbidden" in said


def test_no_ipv6(certificate: Certificate, tmp_path: Path) -> None:
    why = unavailable()
    if why is not None:
        pytest.skip(why)
    file = write_config(tmp_path, "server", server_options(certificate, proxy={"bind_ip": "::"}))
    with Namespace() as namespace:
        namespace.write_setting("ipv6/conf/all/disable_ipv6", "1")
        said = run(namespace.argv(command("doctor", "server", "-c", str(file))))
    assert "ipv6-missing" in said
