"""Certificates, keys and passwords that are replaced by the recipes of docs/operations.md, while a tunnel is public."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asport_sync import AuthenticationError, CertificateError, Client, Server
from asport_sync.cli import main
from asport_sync.server.operations import ServerOperations
from tests.e2e.tunnels import PASSWORD, READY_TIMEOUT, USER, client_options, server_options, write_config
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import REPOSITORY
from tests.support.services import Address, TcpEcho
from tests.support.traffic import connect, echo
from tests.support.waiting import wait_until

PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
NAME = "example.org"  # as the page has it
OTHER = "ffffffff-4455-6677-8899-aabbccddeeff"
OTHER_PASSWORD = "another secret"


class Folder:
    """The files of a server with a self-signed certificate, and of a client that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = Certificate(path / "fullchain.pem", path / "privkey.pem", path / "trusted.pem")
        self.public = free_port()
        self.run(f"openssl req -x509 -newkey rsa:2048 -keyout privkey.pem {of_every_certificate()} -out fullchain.pem")
        self.run("cp fullchain.pem trusted.pem")

    def run(self, command: str) -> None:
        """Run a command of the page in it."""
        subprocess.run(["sh", "-ec", command], cwd=self.path, check=True, capture_output=True, timeout=READY_TIMEOUT)

    def pin(self, capsys: pytest.CaptureFixture[str], name: str) -> str:
        """What ``asport-sync pin`` prints."""
        capsys.readouterr()
        assert main(["pin", str(self.path / name)]) == 0
        return capsys.readouterr().out.strip()

    def server(self, users: dict[str, Any] | None = None) -> Path:
        """Write the configuration of the server."""
        proxy = {"users": users} if users else {}
        return write_config(self.path, "server", server_options(self.files, proxy=proxy))

    def client(self, server: Server, local: Address, **changes: Any) -> Path:
        """Write the configuration of the client."""
        keys = {"server_name": NAME, "expected_port_range": self.public, **changes}
        return write_config(self.path, "client", client_options(self.files, server.address, local, **keys))


def of_every_certificate() -> str:
    """The arguments that all these certificates have, from the page."""
    found = set(re.findall(r"openssl req -x509 .* (-nodes .*) -out", PAGE))
    assert len(found) == 1
    arguments: str = found.pop()
    return arguments


def commands(heading: str) -> list[str]:
    """The lines of the first code block after these words of the page."""
    block = re.search(r"```\n(.*?)```", PAGE[PAGE.index(heading) :], re.DOTALL)
    assert block is not None
    return block[1].splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return Folder(tmp_path)


def joins(folder: Folder, server: Server, **changes: Any) -> bool:
    """Whether a client joins; raises why it does not."""
    options = client_options(folder.files, server.address, ("127.0.0.1", 9), server_name=NAME, **changes)
    with Client(**options) as client:
        return bool(client.wait_ready(READY_TIMEOUT))


def trusting(folder: Folder, *pins: str, file: str = "trusted.pem") -> dict[str, Any]:
    return {"disable_native": True, "paths": [str(folder.path / file)], **({"pins": list(pins)} if pins else {})}


# --- certificates -----------------------------------------------------------------------------------------------------


def test_a_certificate_with_the_same_key(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """A client needs nothing new, whether it trusts a copy of the former certificate, or a pin, or both."""
    with Server.from_config(folder.server()) as server:
        pin = folder.pin(capsys, "fullchain.pem")
        before = folder.files.certificate.read_bytes()
        (renew,) = commands("With the same key")
        folder.run(renew)
        assert folder.files.certificate.read_bytes() != before
        assert server.reload().changes == ("certificate: new",)
        assert joins(folder, server)
        assert joins(folder, server, certificates=trusting(folder, pin))
        assert joins(folder, server, certificates={"pins": [pin]}, skip_certificate_verification=True)


def test_a_certificate_with_a_new_key(
    folder: Folder, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make, trust, *activate = commands("With a new key")
    with TcpEcho() as service, Server.from_config(folder.server()) as server:
        former = folder.pin(capsys, "fullchain.pem")
        folder.run("cp trusted.pem unprepared.pem")
        path = folder.client(server, service.address, certificates=trusting(folder, former))
        with Client.from_config(path) as client:
            public = client.wait_ready(READY_TIMEOUT)
            folder.run(make)
            # First the clients: a file with both certificates, and both pins.
            folder.run(trust)
            new = folder.pin(capsys, "fullchain.new")
            assert new != former
            folder.client(server, service.address, certificates=trusting(folder, former, new))
            assert client.reload().changes == (f"certificates.pins: [{former}] -> [{former}, {new}]",)
            assert client.wait_ready(READY_TIMEOUT) == public
            # Then the server. What is open stays, and whoever connects again sees the new certificate.
            folder.run("\n".join(activate))
            assert set(server.reload().changes) == {"certificate: new", "private_key: new"}
            with connect(public) as visitor:
                visitor.sendall(b"hello")
                assert visitor.recv(5)
                assert ServerOperations(server).disconnect(USER) == 1
                with pytest.raises(ConnectionResetError):
                    visitor.recv(1)
            wait_until(lambda: caplog.text.count("is public on port") == 3, READY_TIMEOUT, "it connects again")
            assert echo(public, b"hello") == b"hello"
        # A client that was not prepared is refused, and told what to do.
        with pytest.raises(
            CertificateError, match=r"what to do: .*certificates\.paths, and the new one after a renewal"
        ):
            joins(folder, server, certificates=trusting(folder, file="unprepared.pem"))
        with pytest.raises(CertificateError, match=r"what to do: .*add the pin .* to the client's certificates\.pins"):
            joins(folder, server, certificates=trusting(folder, former))
        assert joins(folder, server, certificates=trusting(folder, new))


# --- passwords and names ----------------------------------------------------------------------------------------------


def test_a_password_is_replaced_without_a_gap(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """By a second user, with whom clients join one by one."""
    with TcpEcho() as service, Server.from_config(folder.server({USER: PASSWORD})) as server:
        with Client.from_config(folder.client(server, service.address)) as client:
            public = client.wait_ready(READY_TIMEOUT)
            folder.server({USER: PASSWORD, OTHER: OTHER_PASSWORD})
            assert server.reload().changes == (f"user {OTHER}: added",)
            assert echo(public, b"hello") == b"hello"
            folder.client(server, service.address, uuid=OTHER, password=OTHER_PASSWORD)
            assert set(client.reload().changes) == {f"uuid: {USER} -> {OTHER}", "password: new"}
            assert client.wait_ready(READY_TIMEOUT) == public
            assert "refused" not in caplog.text
            folder.server({OTHER: OTHER_PASSWORD})
            assert server.reload().changes == (f"user {USER}: removed",)
            assert echo(public, b"hello") == b"hello"
        with pytest.raises(AuthenticationError):
            joins(folder, server)


def test_a_tunnel_gets_another_name(folder: Folder) -> None:
    """It is another tunnel then, with the port of the former one, and figures that begin with 0."""
    with TcpEcho() as service, Server.from_config(folder.server()) as server:
        others = {"other": {"expected_port_range": [20000, 32000]}}
        path = folder.client(server, service.address, tunnels={"web": {}, **others})
        with Client.from_config(path) as client:
            public = client.tunnels["web"].wait_ready(READY_TIMEOUT)
            other = client.tunnels["other"].wait_ready(READY_TIMEOUT)
            with connect(public) as visitor, connect(other) as undisturbed:
                for sock in (visitor, undisturbed):
                    sock.sendall(b"hello")
                    assert sock.recv(5)
                folder.client(server, service.address, tunnels={"site": {}, **others})
                assert client.reload().changes == ("tunnel web: removed", "tunnel site: added")
                with pytest.raises(ConnectionResetError):
                    visitor.recv(1)
                assert client.tunnels["site"].wait_ready(READY_TIMEOUT) == public
                assert client.stats().tunnels["site"].totals.streams_total == 0
                undisturbed.sendall(b"hello")
                assert undisturbed.recv(5)
            assert echo(public, b"hello") == b"hello"
