"""Whatever a peer of another stack does: the process lives, the connection ends as QUIC says, the next one works.

``cases.py`` has the table of what they do. Our own build of ngtcp2 is tested, and by ``make test-system`` the
distribution's.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")

from aioquic.tls import Epoch

from asport_sync import Client, Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_options,
    client_process,
    public_port,
    server_address,
    server_options,
    server_process,
)
from tests.hostile.independent.cases import ANYTHING, APPLICATION, CASES, GIVES_UP, HALTED, LIVES, Case, Expected
from tests.hostile.independent.front import Front
from tests.hostile.independent.peer import Peer, hostile_client, hostile_server
from tests.support.certificates import Certificate
from tests.support.process import REPOSITORY, Process
from tests.support.services import Address, TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

TRANSPORT_CLOSE = 0x1C
DATA = b"all is well" * 1000


def play(peer: Peer, case: Case, expected: tuple[Expected, ...]) -> Expected:
    """Does it; what came of it."""
    peer.flush()
    if case.packets:
        peer.until(lambda: peer.connection.ready(case.epoch), "there are keys")
        if callable(case.packets):
            case.packets(peer)
        else:
            for payload in case.packets:
                peer.inject(case.epoch, payload)
    if expected == (ANYTHING,):
        return ANYTHING
    if expected == (HALTED,):
        peer.until(lambda: peer.connection.acknowledged(Epoch.INITIAL) >= 0, "it is acknowledged")
    elif LIVES in expected:
        peer.until(lambda: peer.connection.ready(Epoch.ONE_RTT), "the handshake is confirmed")
        peer.ping()
    else:
        peer.until(lambda: False, "the peer closes the connection")
    if peer.gave_up is not None:
        return GIVES_UP
    if peer.connection.closed is None:
        return HALTED if expected == (HALTED,) else LIVES
    kind, code = peer.connection.closed
    return code if kind == TRANSPORT_CLOSE else APPLICATION


def wanted(expected: Expected | tuple[Expected, ...] | None) -> tuple[Expected, ...]:
    assert expected is not None
    return expected if isinstance(expected, tuple) else (expected,)


def check(outcome: Expected, expected: tuple[Expected, ...]) -> None:
    def text(value: Expected) -> str:
        return hex(value) if isinstance(value, int) else value

    assert outcome in expected, f"{text(outcome)}, not {' or '.join(map(text, expected))}"


def join(certificate: Certificate, server: Address, service: TcpEcho) -> None:
    """A client that keeps the rules joins, and data passes."""
    with Client(**client_options(certificate, server, service.address)) as client:
        assert echo(client.wait_ready(READY_TIMEOUT), DATA) == DATA


def wait_for_none(server: Server) -> None:
    """Until the server has heard that its client is gone, and keeps nothing of it."""
    wait_until(lambda: not server.stats().connections, READY_TIMEOUT, "no client is left")


class ServerUnderTest:
    """``asport-sync server run``, and again only after it has ended where it must not."""

    def __init__(self, certificate: Certificate, directory: Path, service: TcpEcho) -> None:
        self._certificate = certificate
        self._service = service
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._start()

    def _start(self) -> None:
        self._process: Process = self._stack.enter_context(server_process(self._directory, self._certificate))
        self.address: Address = server_address(self._process)

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """What is done here must not end it, and clients join afterwards."""
        try:
            yield
        finally:
            try:
                self.check()
            except AssertionError:
                self._stack.close()
                self._start()
                raise
        join(self._certificate, self.address, self._service)
        self.check()

    def check(self) -> None:
        """Raises if it has ended."""
        self._process.check_running()

    def close(self) -> None:
        self._stack.close()


class ClientsUnderTest:
    """A process with a client, and again only after it has ended where it must not."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.independent.clients"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )

    def begin(self, options: dict[str, Any] | None) -> None:
        """A client takes the place of the one before."""
        assert self._process.stdin is not None
        print(json.dumps(options), file=self._process.stdin, flush=True)

    def public_port(self) -> int:
        """Once the client has joined."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process of the client ended with {self._process.wait()}"
        return int(line)

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """What is done here must not end it, and its client joins afterwards."""
        try:
            yield
            assert echo(("127.0.0.1", self.public_port()), DATA) == DATA
            self.begin(None)
            assert self.public_port() == 0
            self.check()
        except BaseException as error:
            ended = self._process.poll()
            self._process.kill()
            self.close()
            self._start()
            if ended is not None:
                raise AssertionError(f"the process of the client ended with status {ended}") from error
            raise

    def check(self) -> None:
        """Raises if it has ended."""
        ended = self._process.poll()
        assert ended is None, f"the process of the clients ended with status {ended}"

    def close(self) -> None:
        self._process.communicate(timeout=READY_TIMEOUT)


@pytest.fixture(scope="module")
def server(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory, service: TcpEcho
) -> Iterator[ServerUnderTest]:
    server = ServerUnderTest(certificate, tmp_path_factory.mktemp("server"), service)
    yield server
    server.close()


@pytest.fixture(scope="module")
def clients() -> Iterator[ClientsUnderTest]:
    clients = ClientsUnderTest()
    yield clients
    clients.close()


@pytest.fixture(scope="module")
def service() -> Iterator[TcpEcho]:
    with TcpEcho() as service:
        assert echo(service.address, DATA) == DATA  # it is all there, and no test makes it anew
        yield service


@pytest.fixture(scope="module")
def honest(certificate: Certificate, service: TcpEcho) -> Iterator[Server]:
    with Server(**server_options(certificate)) as server:
        join(certificate, server.address, service)  # it has all that it makes for clients
        yield server


@pytest.mark.parametrize("case", [case for case in CASES if case.server is not None], ids=lambda case: case.name)
def test_a_server(case: Case, server: ServerUnderTest, certificate: Certificate) -> None:
    expected = wanted(case.server)
    with server.surviving(), hostile_client(certificate, server.address, case.rewriting, server.check) as peer:
        check(play(peer, case, expected), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.client is not None], ids=lambda case: case.name)
def test_a_client(
    case: Case, clients: ClientsUnderTest, honest: Server, service: TcpEcho, certificate: Certificate
) -> None:
    expected = wanted(case.client)
    with Front(honest.address) as front:
        with clients.surviving():
            clients.begin(client_options(certificate, front.address, service.address))
            with hostile_server(certificate, front.hostile, case.rewriting, clients.check) as (peer, first):
                peer.feed(first)
                check(play(peer, case, expected), expected)
        wait_for_none(honest)


@pytest.mark.parametrize("name", ["KeyUpdate", "no transport parameters"])
def test_the_client_command(
    name: str, honest: Server, service: TcpEcho, certificate: Certificate, tmp_path: Path
) -> None:
    """The two packets that once ended it, sent to the command."""
    case = next(case for case in CASES if case.name == name)
    expected = wanted(case.client)
    with Front(honest.address) as front:
        with client_process(tmp_path, certificate, front.address, service.address) as client:
            with hostile_server(certificate, front.hostile, case.rewriting, client.check_running) as (peer, first):
                peer.feed(first)
                check(play(peer, case, expected), expected)
            assert echo(("127.0.0.1", public_port(client)), DATA) == DATA
            client.check_running()
        wait_for_none(honest)
