"""Nothing that a tunnel says or shows has a password, a key or a token in it, whatever goes wrong."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from asport_sync import AuthenticationError, Client, ConfigError, Server
from asport_sync.engine import CommandReceived, Connection
from asport_sync.server.session import ServerSession
from tests.e2e.tunnels import (
    PASSWORD,
    READY_TIMEOUT,
    USER,
    client_options,
    command,
    server_address,
    server_options,
    write_config,
)
from tests.support.certificates import Certificate, self_signed, write_private
from tests.support.exposure import exposed, objects, threads, told
from tests.support.process import Process
from tests.support.services import TcpEcho, host_and_port
from tests.support.traffic import echo
from tests.support.waiting import wait_until

GUESS = "a guessed password"
RESET_KEY = "several servers share this secret of theirs"
LOUD = ("--log-level", "trace")


def key_lines(private_key: Path) -> list[str]:
    """The lines of a PEM file that are the key."""
    lines = [line for line in private_key.read_text().splitlines() if not line.startswith("-----")]
    assert len(lines) >= 2
    return lines


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every token that is made from now on."""
    made: list[bytes] = []
    export = Connection.export

    def recorded(self: Connection, label: bytes, context: bytes, length: int) -> bytes:
        token = export(self, label, context, length)
        made.append(bytes(token))
        return token

    monkeypatch.setattr(Connection, "export", recorded)
    return made


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[CommandReceived]:
    """Every command that a server gets from now on."""
    seen: list[CommandReceived] = []
    handle = ServerSession.handle

    def recorded(self: ServerSession, event: Any) -> None:
        if isinstance(event, CommandReceived):
            seen.append(event)
        handle(self, event)

    monkeypatch.setattr(ServerSession, "handle", recorded)
    return seen


def test_a_tunnel_in_this_process(
    certificate: Certificate,
    tokens: list[bytes],
    commands: list[CommandReceived],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "asport_sync")
    key = certificate.private_key.read_bytes()
    with TcpEcho() as service, Server(**server_options(certificate, private_key=key)) as server:
        with Client(**client_options(certificate, server.address, service.address, password=GUESS)) as stranger:
            with pytest.raises(AuthenticationError) as caught:
                stranger.wait_ready(READY_TIMEOUT)
            said = [told(caught.value), repr(stranger.stats())]
        with Client(**client_options(certificate, server.address, service.address)) as client:
            public = client.wait_ready(READY_TIMEOUT)
            assert echo(public, b"hello") == b"hello"
            said += [repr(each) for each in (client, server, client.config, server.config)]
            said += [repr(server.stats()), repr(client.stats()), *threads(), *objects()]
        said += map(repr, commands)
    assert len(tokens) == 4  # two clients, and the server for each
    assert len(commands) >= 2
    assert len(caplog.records) > 5
    assert exposed("\n".join([*said, caplog.text]), PASSWORD, GUESS, key, *key_lines(certificate.private_key)) == []
    assert exposed("\n".join([*said, caplog.text]), *tokens) == []


def test_tokens_are_where_the_test_looks(certificate: Certificate, commands: list[CommandReceived]) -> None:
    """The commands that the test above looks at have the tokens in them."""
    with TcpEcho() as service, Server(**server_options(certificate)) as server:
        with Client(**client_options(certificate, server.address, service.address)) as client:
            client.wait_ready(READY_TIMEOUT)
    assert any(len(event.data) == 55 for event in commands)  # ClientHello


def test_a_key_that_does_not_belong_to_the_certificate(certificate: Certificate, tmp_path: Path) -> None:
    other = self_signed(tmp_path).private_key
    for key in (other.read_bytes(), str(other)):
        with pytest.raises(ConfigError) as caught:
            Server(**server_options(certificate, private_key=key)).start()
        assert exposed(told(caught.value), PASSWORD, other.read_bytes(), *key_lines(other)) == []


def test_a_key_that_is_none(certificate: Certificate) -> None:
    key = certificate.private_key.read_bytes().replace(b"\nM", b"\nX", 1)
    with pytest.raises(ConfigError) as caught:
        Server(**server_options(certificate, private_key=key)).start()
    assert exposed(told(caught.value), PASSWORD, key, *key_lines(certificate.private_key)[1:]) == []


def test_an_address_that_is_taken(certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        again = server_options(certificate, server=host_and_port(server.address))
        with pytest.raises(ConfigError) as caught:
            Server(**again).start()
    assert exposed(told(caught.value), PASSWORD, *key_lines(certificate.private_key)) == []


@pytest.mark.parametrize("kind", [Client, Server])
def test_options_that_are_wrong(kind: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(password=PASSWORD, proxies=[{"users": {USER: PASSWORD}}])
    assert exposed(told(caught.value), PASSWORD) == []


# --- the commands -----------------------------------------------------------------------------------------------------


def shown_by_the_system(process: Process) -> str:
    """What other programs of this machine can read of a process without any right on its files."""
    place = Path("/proc", str(process.pid))
    return "\n".join((place / name).read_bytes().decode("utf-8", "replace") for name in ("cmdline", "environ", "comm"))


def test_the_commands_at_their_loudest(certificate: Certificate, tmp_path: Path) -> None:
    write_private(tmp_path / "password", PASSWORD.encode())
    users = {USER: {"password_file": str(tmp_path / "password")}}
    options = server_options(certificate, proxy={"users": users}, reset_key=RESET_KEY)
    server_file = write_config(tmp_path, "server", options)
    said = []
    with (
        TcpEcho() as service,
        Process(command("server", "run", "-c", str(server_file), *LOUD), name="server") as server,
    ):
        address = server_address(server)
        for password, sign in ((GUESS, "authentication failed"), (PASSWORD, r"is public on port (\d+)")):
            options = client_options(certificate, address, service.address, password=password)
            path = write_config(tmp_path, "client", options)
            with Process(command("client", "run", "-c", str(path), *LOUD), name="client") as client:
                found = client.wait_for(sign, READY_TIMEOUT)
                if password == PASSWORD:
                    assert echo(("127.0.0.1", int(found[1])), b"hello") == b"hello"
                said.append(shown_by_the_system(client))
            said.append(client.output())
        wait_until(lambda: "connection ended" in server.output(), READY_TIMEOUT, "the server sees the client go")
        said.append(shown_by_the_system(server))
    said.append(server.output())
    assert re.search("DEBUG", said[-1])
    assert exposed("\n".join(said), PASSWORD, GUESS, RESET_KEY, *key_lines(certificate.private_key)) == []
