"""A server of ``init``, and clients that know it by a URI, by its pin, or since their first connection."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Client
from asport_sync.config import ServerUri, parse_uri
from asport_sync.trust import create_server
from tests.e2e.tunnels import READY_TIMEOUT, command
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.services import TcpEcho
from tests.support.traffic import echo


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ASPORT_URI", raising=False)


@contextlib.contextmanager
def new_server(directory: Path, port: int | None = None) -> Iterator[tuple[Process, ServerUri]]:
    """Runs ``init`` and ``server run``, and yields the server and the URI that was printed."""
    arguments = ["init", "127.0.0.1", "--port", str(port or free_port()), "--directory", str(directory)]
    said = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY)
    (line,) = (line for line in said.stdout.splitlines() if line.startswith("asport://"))
    with running(directory) as server:
        yield server, parse_uri(line)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Process]:
    with Process(command("server", "run", "-v", "-c", str(directory / "server.yaml")), name="server") as server:
        server.wait_for("accepting clients on", READY_TIMEOUT)
        yield server


def public_port(server: Process) -> int:
    return int(server.wait_for(r"user first \(.*\) has port (\d+)", READY_TIMEOUT)[1])


def without_secrets(uri: ServerUri, *processes: Process) -> None:
    for each in processes:
        assert uri.password not in each.output()


def test_a_client_of_the_uri(tmp_path: Path) -> None:
    with TcpEcho() as service, new_server(tmp_path) as (server, uri):
        arguments = command("client", "run", "-v", uri.reveal(), "--local", str(service.address[1]))
        with Process(arguments, name="client") as client:
            assert echo(("127.0.0.1", public_port(server)), b"hello") == b"hello"
            without_secrets(uri, server, client)
            assert "WARNING" not in client.output()


def test_a_client_of_the_file(tmp_path: Path) -> None:
    with TcpEcho() as service, new_server(tmp_path) as (server, _):
        file = tmp_path / "client.yaml"
        file.write_text(file.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{service.address[1]}"))
        with Process(command("client", "run", "-v", "-c", str(file)), name="client") as client:
            assert echo(("127.0.0.1", public_port(server)), b"hello") == b"hello"
            assert "WARNING" not in client.output()


def test_a_client_of_the_environment_shows_no_password_in_ps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TcpEcho() as service, new_server(tmp_path) as (server, uri):
        monkeypatch.setenv("ASPORT_URI", uri.reveal())
        with Process(command("client", "run", "--local", str(service.address[1])), name="client") as client:
            assert echo(("127.0.0.1", public_port(server)), b"hello") == b"hello"
            assert uri.password.encode() not in Path(f"/proc/{client.pid}/cmdline").read_bytes()


def test_a_client_of_standard_input(tmp_path: Path) -> None:
    with TcpEcho() as service, new_server(tmp_path) as (server, uri):
        client = subprocess.Popen(
            command("client", "run", "-", "--local", str(service.address[1])), stdin=subprocess.PIPE, cwd=REPOSITORY
        )
        assert client.stdin is not None
        with client:
            try:
                client.stdin.write(uri.reveal().encode() + b"\n")
                client.stdin.close()
                assert echo(("127.0.0.1", public_port(server)), b"hello") == b"hello"
            finally:
                client.send_signal(signal.SIGTERM)


def test_a_program(tmp_path: Path) -> None:
    with (
        TcpEcho() as service,
        new_server(tmp_path) as (_, uri),
        Client.from_uri(uri.reveal(), local=service.address) as client,
    ):
        host, port = client.wait_ready(READY_TIMEOUT)
        assert echo((host, port), b"hello") == b"hello"


def test_the_pin_alone_refuses_another_key(tmp_path: Path) -> None:
    """Another server at the same address, with a certificate for the same name."""
    with new_server(tmp_path / "one") as (_, uri):
        pass
    with new_server(tmp_path / "two", uri.server.port) as (server, other):
        with Process(command("client", "run", uri.reveal(), "--local", "9"), name="client") as client:
            client.wait_for("The key of the certificate is none of those pinned", READY_TIMEOUT)
            without_secrets(uri, client)
        assert "authentication" not in server.output()
        assert uri.pins != other.pins


def test_trust_on_first_use(tmp_path: Path) -> None:
    known = tmp_path / "state" / "asport-sync" / "known_servers"
    with new_server(tmp_path / "one") as (server, uri):
        unpinned = ServerUri(uri.uuid, uri.password, uri.server).reveal()
        arguments = command("client", "run", "-v", unpinned, "--local", "9", "--trust-on-first-use")
        with Process(arguments, name="client") as client:
            pin = client.wait_for(r"WARNING client.trust: .*trusting a new server with the key (\S+)", READY_TIMEOUT)[1]
            public_port(server)
        assert str(uri).endswith(f"?pin={pin}")
        assert known.stat().st_mode & 0o777 == 0o600
        assert known.read_text().splitlines()[1:] == [f"127.0.0.1:{uri.server.port} {pin}"]
        with Process(arguments, name="client") as client:  # known by now
            client.wait_for("is public on port", READY_TIMEOUT)
            assert "trusting a new server" not in client.output()
    before = known.read_bytes()
    with new_server(tmp_path / "two", uri.server.port) as (server, other):
        with Process(arguments, name="client") as client:
            said = client.wait_for("the key of .* has changed: .*", READY_TIMEOUT)[0]
            assert re.findall(r"sha256//\S{44}", said) == [str(each).partition("=")[2] for each in (other, uri)]
            assert f"{known}:2" in said
            without_secrets(uri, client)
        assert "authentication" not in server.output()
    assert known.read_bytes() == before


def test_expose_shows_the_pin_that_it_trusts(tmp_path: Path) -> None:
    with new_server(tmp_path) as (_, uri):
        unpinned = ServerUri(uri.uuid, uri.password, uri.server).reveal()
        arguments = command("expose", unpinned, "9", "--trust-on-first-use")
        with Process(arguments, name="expose") as process:
            process.wait_for("is public", READY_TIMEOUT)
            (pin,) = re.findall(r"WARNING client.trust: .*trusting a new server with the key (\S+)", process.output())
            assert str(uri).endswith(f"?pin={pin}")
            without_secrets(uri, process)
        with Process(arguments, name="expose") as process:  # known by now
            process.wait_for("is public", READY_TIMEOUT)
            assert "trusting" not in process.output()


def test_without_pin_nothing_but_an_authority_is_trusted(tmp_path: Path) -> None:
    with new_server(tmp_path) as (_, uri):
        unpinned = ServerUri(uri.uuid, uri.password, uri.server).reveal()
        for arguments in (["client", "run", unpinned, "--local", "9"], ["expose", unpinned, "9"]):
            with Process(command(*arguments), name="client") as client:
                said = client.wait_for("server certificate rejected.*", READY_TIMEOUT)[0]
                assert "?pin=... in the URI" in said
                assert "--trust-on-first-use" in said
        with Process(command("doctor", "client", "-c", unpinned), name="doctor") as doctor:
            doctor.wait_for(
                r"error +certificate-untrusted .*\n +what to do: .*\?pin=.*--trust-on-first-use", READY_TIMEOUT
            )


def test_no_running_client_or_server_imports_cryptography(tmp_path: Path) -> None:
    """Nor does the package itself: it costs megabytes, and only ``init`` needs it."""
    created = create_server("127.0.0.1", 4433, directory=tmp_path)
    show = "import sys; print(*sorted({each.partition('.')[0] for each in sys.modules}))"
    for run in (
        "import asport_sync; asport_sync.Client",
        f"import asport_sync; asport_sync.Server.from_config({str(created.server_file)!r})",
        f"import asport_sync; asport_sync.Client.from_uri('{created.uri.reveal()}', local=1).start()",
        f"from asport_sync.cli import main; main(['server', 'check', '-c', {str(created.server_file)!r}])",
        f"from asport_sync.cli import main; main(['client', 'check', '-c', {str(created.client_file)!r}])",
    ):
        said = subprocess.run(
            [sys.executable, "-c", f"{run}; {show}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert "asport_sync" in said.stdout.split()
        assert "cryptography" not in said.stdout.split()


def test_a_server_that_answers_by_another_protocol_is_not_trusted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        created = create_server("127.0.0.1", silent.getsockname()[1], directory=tmp_path)
        unpinned = ServerUri(created.uri.uuid, created.uri.password, created.uri.server).reveal()
        arguments = command("client", "run", "-v", unpinned, "--local", "9", "--trust-on-first-use")
        with Process(arguments, name="client") as client:
            client.wait_for("no answer from the server|connection failed", READY_TIMEOUT)
        assert not (tmp_path / "state").exists()


def test_users_come_and_go_while_the_server_runs(tmp_path: Path) -> None:
    file = str(tmp_path / "server.yaml")

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY
        )
        return done.stdout.splitlines()

    with TcpEcho() as service, new_server(tmp_path) as (server, _):
        said = run("user", "add", "alice", "-c", file)
        assert re.fullmatch(r"reloaded: user alice \(.*\): added", said[1])
        uri = parse_uri(said[-1])
        arguments = command("client", "run", "-v", uri.reveal(), "--local", str(service.address[1]))
        with Process(arguments, name="client") as client:
            port = int(server.wait_for(r"user alice \(.*\) has port (\d+)", READY_TIMEOUT)[1])
            assert echo(("127.0.0.1", port), b"hello") == b"hello"
            rows = [line.split() for line in run("status", "--socket", "server")]
            assert [row[1].rpartition(":")[2] for row in rows if row[:1] == ["alice"]] == [str(port)]
            assert run("disconnect", "alice", "--socket", "server") == ["disconnected: 1"]
            server.wait_for(r"user alice \(.*\): 1 connections closed by the operator", READY_TIMEOUT)

            rotated = run("user", "rotate", "alice", "-c", file)
            assert re.fullmatch(r"reloaded: user alice \(.*\): password: new", rotated[1])
            client.wait_for("authentication failed", READY_TIMEOUT)
            new = parse_uri(rotated[-1])
            assert (new.uuid, new.pins, new.server) == (uri.uuid, uri.pins, uri.server)
            assert new.password != uri.password
        with Client.from_uri(new.reveal(), local=service.address) as again:
            again.wait_ready(READY_TIMEOUT)
            assert run("user", "remove", "alice", "-c", file)[1].endswith("removed")
            server.wait_for(r"disconnected: .* of user alice", READY_TIMEOUT)
        for password in (uri.password, new.password):
            assert password not in server.output()
