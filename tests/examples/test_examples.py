"""Each example is started as its first lines say, against a server and services on loopback, and does its work."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Client, Server
from tests.e2e.tunnels import (
    CLIENT_READY,
    PASSWORD,
    READY_TIMEOUT,
    USER,
    client_options,
    command,
    public_port,
    server_address,
    server_options,
)
from tests.support.certificates import Certificate, pin_of, write_private
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.services import Address, TcpEcho, host_and_port
from tests.support.traffic import connect

FOLDER = REPOSITORY / "examples"
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".py", ".yaml", ".service"))
READING_TIMEOUT = 10.0  # seconds; only a failure waits so long


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def program(name: str, *arguments: str | Path, **environment: str) -> Process:
    """An example in Python, not started yet."""
    return Process([sys.executable, FOLDER / name, *arguments], name=name, environment=environment)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "alice.password"
    write_private(path, f"{PASSWORD}\n".encode())
    return path


@pytest.fixture
def server(certificate: Certificate) -> Iterator[Server]:
    with Server(**server_options(certificate)) as running:
        yield running


@pytest.fixture
def service() -> Iterator[TcpEcho]:
    with TcpEcho() as running:
        yield running


def echoes(public: Address) -> bool:
    with connect(public) as visitor:
        visitor.sendall(b"a visitor's bytes")
        visitor.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: visitor.recv(100), b"")) == b"a visitor's bytes"


def get(public: Address) -> bytes:
    with urllib.request.urlopen(f"http://{host_and_port(public)}/", timeout=READING_TIMEOUT) as answer:
        content: bytes = answer.read()
    return content


def arguments(certificate: Certificate, server: Server, local: Address | None, password: Path) -> list[str]:
    """What most of the examples take."""
    service = [] if local is None else [host_and_port(local)]
    return [host_and_port(server.address), *service, USER, str(password), str(certificate.trusted)]


# --- programs ---------------------------------------------------------------------------------------------------------


def test_client(certificate: Certificate, server: Server, service: TcpEcho, password: Path) -> None:
    with program("client.py", *arguments(certificate, server, service.address, password)) as client:
        assert echoes(("127.0.0.1", public_port(client)))
        assert client.stop() == 0


def test_server(certificate: Certificate, service: TcpEcho, password: Path) -> None:
    port = str(free_port())
    files = (certificate.certificate, certificate.private_key)
    with program("server.py", "127.0.0.1:0", *files, USER, password, port, port) as server:
        with Client(**client_options(certificate, server_address(server), service.address)) as client:
            assert client.wait_ready(READY_TIMEOUT) == ("127.0.0.1", int(port))
            assert echoes(("127.0.0.1", int(port)))
        assert server.stop() == 0


def test_share_file(certificate: Certificate, server: Server, password: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_bytes(b"the content")
    to_server, *rest = arguments(certificate, server, None, password)
    with program("share_file.py", to_server, *rest[:2], shared, *rest[2:]) as sharing:
        found = sharing.wait_for(r"download it from http://([\d.]+):(\d+)/", READY_TIMEOUT)
        assert get((found[1], int(found[2]))) == b"the content"
        assert sharing.wait(READY_TIMEOUT) == 0
        assert "\ndownloaded\n" in sharing.output()


def test_changes(certificate: Certificate, service: TcpEcho, password: Path, tmp_path: Path) -> None:
    options = server_options(certificate)
    with (
        Server(**options) as server,
        program("changes.py", *arguments(certificate, server, service.address, password)) as client,
    ):
        port = client.wait_for(r"^connected to .*\npublic on port (\d+)$", READY_TIMEOUT)[1]
        assert echoes(("127.0.0.1", int(port)))
        server.stop()
        client.wait_for(r"^disconnected: connection lost: closed by the server", READY_TIMEOUT)
        assert client.stop() == 0
    password.write_text("a wrong password\n")
    with Server(**options) as server:
        with program("changes.py", *arguments(certificate, server, service.address, password)) as client:
            assert client.wait(READY_TIMEOUT) == 0
            client.wait_for(r"^connected to .*\ndisconnected: authentication failed", READY_TIMEOUT)


def test_several_services(certificate: Certificate, server: Server, password: Path) -> None:
    with TcpEcho() as first, TcpEcho() as second:
        services = [host_and_port(each.address) for each in (first, second)]
        call = [host_and_port(server.address), USER, str(password), *services]
        with program("several_services.py", *call, CA_FILE=str(certificate.trusted)) as clients:
            ports = {
                int(clients.wait_for(rf"^{local} is public on port (\d+)$", READY_TIMEOUT)[1]) for local in services
            }
            assert len(ports) == 2
            assert all(echoes(("127.0.0.1", port)) for port in ports)
            assert (first.accepted, second.accepted) == (1, 1)
            assert clients.stop() == 0


def test_udp_service(certificate: Certificate, server: Server, password: Path) -> None:
    with program("udp_service.py", *arguments(certificate, server, None, password)) as serving:
        public = ("127.0.0.1", public_port(serving))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.settimeout(READING_TIMEOUT)
            visitor.sendto(b"hello", public)
            assert visitor.recvfrom(100) == (b"HELLO", public)
        assert serving.stop() == 0


def test_visitor_address(certificate: Certificate, server: Server, password: Path) -> None:
    with program("visitor_address.py", *arguments(certificate, server, None, password)) as serving:
        public = ("127.0.0.1", public_port(serving))
        with socket.create_connection(public, READING_TIMEOUT, source_address=("127.0.0.9", 0)) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: visitor.recv(1000), b""))
        assert answer.endswith(b"\r\n\r\nyou are 127.0.0.9\n")
        serving.wait_for(r'^127\.0\.0\.9 .* "GET / HTTP/1\.0" 200', READY_TIMEOUT)
        assert serving.stop() == 0


def test_status(certificate: Certificate, server: Server, service: TcpEcho, password: Path) -> None:
    with program("status.py", *arguments(certificate, server, service.address, password)) as client:
        found = client.wait_for(r"^public on 127\.0\.0\.1:(\d+), RTT [\d.]+ ms, lost \d+ of \d+ packets", READY_TIMEOUT)
        assert echoes(("127.0.0.1", int(found[1])))
        client.wait_for(r"TCP connections 1, finished 1$", READY_TIMEOUT)
        assert client.stop() == 0


def test_outages(certificate: Certificate, service: TcpEcho, password: Path) -> None:
    """A server that comes later, goes, and comes back."""
    port = free_port()
    call = (f"127.0.0.1:{port}", host_and_port(service.address), USER, password, certificate.trusted)
    options = server_options(certificate, server=f"127.0.0.1:{port}")
    with program("outages.py", *call) as client:
        client.wait_for(r"^unreachable: ", READY_TIMEOUT)
        with Server(**options):
            client.wait_for(r"^public on ", READY_TIMEOUT)
        client.wait_for(r"^connection lost$", READY_TIMEOUT)
        with Server(**options):
            client.wait_for(r"^public on (?s:.*)^public on ", READY_TIMEOUT)


@pytest.mark.parametrize(
    ("uuid", "written", "ended"),
    [
        pytest.param(USER, "another password", "refused: authentication failed", id="password"),
        pytest.param("nobody", PASSWORD, "wrong arguments: uuid: ", id="argument"),
    ],
)
def test_outages_that_waiting_does_not_end(
    certificate: Certificate, server: Server, tmp_path: Path, uuid: str, written: str, ended: str
) -> None:
    path = tmp_path / "password"
    write_private(path, written.encode())
    call = (host_and_port(server.address), "127.0.0.1:9", uuid, path, certificate.trusted)
    with program("outages.py", *call) as client:
        assert client.wait(READY_TIMEOUT) == 1
        assert client.output().startswith(ended)


def test_outages_of_trust(
    certificate: Certificate, authority_certificate: Certificate, server: Server, password: Path
) -> None:
    call = (host_and_port(server.address), "127.0.0.1:9", USER, password, authority_certificate.trusted)
    with program("outages.py", *call) as client:
        assert client.wait(READY_TIMEOUT) == 1
        assert client.output().startswith("not the server that it should be: ")


def test_pinned(
    certificate: Certificate, authority_certificate: Certificate, server: Server, service: TcpEcho, password: Path
) -> None:
    call = (host_and_port(server.address), host_and_port(service.address), USER, password)
    with program("pinned.py", *call, pin_of(certificate.certificate)) as client:
        assert echoes(("127.0.0.1", public_port(client)))
        assert client.stop() == 0
    with program("pinned.py", *call, pin_of(authority_certificate.certificate)) as client:
        client.wait_for("server certificate rejected", READY_TIMEOUT)


# --- configurations ---------------------------------------------------------------------------------------------------


def test_commands(certificate: Certificate, service: TcpEcho, tmp_path: Path) -> None:
    """As they are, but for the addresses, the ports and the line for a self-signed certificate."""
    shutil.copy(certificate.certificate, tmp_path / "fullchain.pem")
    write_private(tmp_path / "privkey.pem", certificate.private_key.read_bytes())
    write_private(tmp_path / "alice.password", PASSWORD.encode())
    port = free_port()
    ports = {"30000, end: 30100": f"{port}, end: {port}", "[30000, 30100]": f"{port}"}
    copy("server.yaml", tmp_path, {'"[::]:443"': '"127.0.0.1:0"', **ports})
    with Process(command("server", "run", "-v", "-c", str(tmp_path / "server.yaml")), name="server") as server:
        changes = {
            "example.org:443": host_and_port(server_address(server)),
            "127.0.0.1:8080": host_and_port(service.address),
            "# certificates": "certificates",
        }
        copy("client.yaml", tmp_path, {**changes, **ports})
        with Process(command("client", "run", "-v", "-c", str(tmp_path / "client.yaml")), name="client") as client:
            assert int(client.wait_for(CLIENT_READY, READY_TIMEOUT)[1]) == port
            assert echoes(("127.0.0.1", port))
            assert client.stop() == 0
        assert "WARN" not in client.output()
        assert server.stop() == 0
    assert "WARN" not in server.output()


def test_the_certificate_that_the_page_makes(service: TcpEcho, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    made = re.search(r"```\n(openssl req .*?)```", page, re.DOTALL)
    assert made is not None
    subprocess.run(["sh", "-c", made[1]], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    chain = tmp_path / "fullchain.pem"
    certificate = Certificate(chain, tmp_path / "privkey.pem", chain)
    with (
        Server(**server_options(certificate)) as server,
        Client(**client_options(certificate, server.address, service.address)) as client,
    ):
        assert echoes(client.wait_ready(READY_TIMEOUT))


def copy(name: str, folder: Path, changes: dict[str, str]) -> None:
    text = (FOLDER / "commands" / name).read_text(encoding="utf-8")
    for old, new in changes.items():
        if old in text:
            text = text.replace(old, new)
    write_private(folder / name, text.encode())


UNITS = sorted(FOLDER.glob("systemd/*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text, count = re.subn(r"(?<=^ExecStart=)\S+", sys.executable, unit.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    # Releases before 253 do not know this type, and the command writes another for them (tests/cli/test_systemd.py).
    complaints = [
        line for line in complaints if not line.endswith("Failed to parse service type, ignoring: notify-reload")
    ]
    assert (done.returncode, complaints) == (0, [])


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_example_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    first, second, third = path.read_text(encoding="utf-8").splitlines()[:3]
    assert re.fullmatch(r"# Shows: \S.*\.", first)
    assert re.fullmatch(r"# Needs: \S.*\.", second)
    if path.suffix == ".service":
        assert third.startswith(f"# Run:   cp examples/{name_of(path)} ")
    else:
        assert re.search(rf" examples/{re.escape(name_of(path))}\b", third)


def test_each_example_is_tested_and_listed() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([\w/.-]+)\)", page)) == sorted(map(name_of, FILES))
    tested: dict[str, Any] = globals()
    assert [path.name for path in FOLDER.glob("*.py") if f"test_{path.stem}" not in tested] == []
