"""How connections through the tunnel end, beside a plain TCP connection; and what is left when a process dies."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    client_process,
    public_port,
    server_address,
    server_process,
    tunnel,
)
from tests.support.certificates import Certificate
from tests.support.ends import Play, Seen, Step, Who, sequences, some_sequences
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpService
from tests.support.traffic import connect, expect_reset, receive_exactly
from tests.support.waiting import wait_until

# Connections on which random sequences are played: ENDS=10000 pytest tests/e2e/test_ends.py -k random
RANDOM = int(os.environ.get("ENDS", "150"))
AT_A_TIME = 8

Outcome = dict[Who, Seen]


class Services:
    """A listening service whose connections are found by the port of their user, which a PROXY header tells."""

    def __init__(self, *, header: bool) -> None:
        self._header = header
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._listener.settimeout(READY_TIMEOUT)
        self.address: Address = self._listener.getsockname()
        # Guards what was accepted for others.
        self._guard = threading.Lock()
        self._accepted: dict[int, socket.socket] = {}

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._accepted.values():
            sock.close()

    def of(self, user_port: int) -> socket.socket:
        """The service's end of the connection of the user with this port."""
        while True:
            with self._guard:
                if user_port in self._accepted:
                    return self._accepted.pop(user_port)
                sock, source = self._listener.accept()
                port = source[1]
                if self._header:  # PROXY TCP4 source destination port port
                    line = b""
                    while not line.endswith(b"\r\n"):
                        line += receive_exactly(sock, 1)
                    port = int(line.split()[4])
                self._accepted[port] = sock


def play(steps: tuple[Step, ...], public: Address, services: Services) -> Outcome:
    user = connect(public)
    port = user.getsockname()[1]
    return Play(steps, user, lambda: services.of(port)).run()


def differences(certificate: Certificate, played: list[tuple[Step, ...]]) -> list[str]:
    """Plays sequences on plain connections and through a tunnel; where they differ."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        with Services(header=False) as services:
            plain = list(pool.map(lambda steps: play(steps, services.address, services), played))
        with (
            Services(header=True) as services,
            tunnel(certificate, services.address, client={"proxy_protocol": "v1"}) as opened,
        ):
            through = list(pool.map(lambda steps: play(steps, opened.public, services), played))
    return [
        f"{steps}: plain {one}, through the tunnel {other}"
        for steps, one, other in zip(played, plain, through, strict=True)
        if one != other
    ]


def test_every_end_of_up_to_three_steps_is_as_on_a_plain_connection(certificate: Certificate) -> None:
    played = [steps for length in (1, 2, 3) for steps in sequences(length)]
    assert differences(certificate, played) == []


def test_random_ends_are_as_on_a_plain_connection(certificate: Certificate) -> None:
    assert differences(certificate, some_sequences(RANDOM, 7, seed=RANDOM)) == []


# --- answers that come early, and questions that nobody answers ------------------------------------------------------

ANSWER = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + bytes(2000)
MESSAGE = b"2026-01-01 a line for the log\n" * 20


class AnswersEarly(TcpService):
    """Reads a little of a long question, answers, and closes with the rest of it unread."""

    def handle(self, connection: socket.socket) -> None:
        receive_exactly(connection, 1000)
        connection.sendall(ANSWER)


class Greets(TcpService):
    """Greets, and keeps what it gets until the end, whatever that is."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[bytes] = []

    def handle(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"220 ready\r\n")
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                data += chunk
        self.got.append(data)


@pytest.fixture(params=["engine", "workers"])
def relayed_by(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Options of a tunnel, in which the engine dials and relays, or workers dial and the engine relays."""
    return {} if request.param == "engine" else {"client": {"proxy_protocol": "v1"}}


def test_an_early_answer_arrives(certificate: Certificate, relayed_by: dict[str, dict[str, Any]]) -> None:
    with AnswersEarly() as service, tunnel(certificate, service.address, **relayed_by) as opened:
        for _ in range(20):
            with connect(opened.public) as user:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    user.sendall(bytes(100_000))
                assert receive_exactly(user, len(ANSWER)) == ANSWER


def test_what_is_said_by_somebody_who_does_not_listen_arrives(
    certificate: Certificate, relayed_by: dict[str, dict[str, Any]]
) -> None:
    with Greets() as service, tunnel(certificate, service.address, **relayed_by) as opened:
        for _ in range(60):
            with connect(opened.public) as user:
                select.select([user], [], [], READY_TIMEOUT)  # the greeting is there, and stays unread
                user.sendall(MESSAGE)
        wait_until(lambda: len(service.got) == 60, READY_TIMEOUT, "the service has heard the end of all of them")
        assert [data.endswith(MESSAGE) for data in service.got] == [True] * 60


def test_a_peer_that_stops_reading_does_not_hold_up_the_service(certificate: Certificate) -> None:
    """The user leaves in the middle of a long answer, which the service goes on with."""
    with socket.create_server(("127.0.0.1", 0)) as listener, tunnel(certificate, listener.getsockname()) as opened:
        listener.settimeout(READY_TIMEOUT)
        user = connect(opened.public)
        service, _ = listener.accept()
        service.settimeout(READY_TIMEOUT)
        with service:
            service.sendall(bytes(1000))
            assert receive_exactly(user, 1000) == bytes(1000)
            user.close()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                service.sendall(bytes(256 << 20))  # more than fits into any buffer


# --- a process dies ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def uploading(
    certificate: Certificate, directory: Path
) -> Iterator[tuple[dict[str, Process], dict[str, socket.socket]]]:
    """Server and client as commands, and both ends of a connection on which an upload is under way."""
    quic, port = free_port(), free_port()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        server_process(directory, certificate, server=f"127.0.0.1:{quic}", proxy={"allow_ports": port}) as server,
    ):
        listener.settimeout(READY_TIMEOUT)
        with client_process(directory, certificate, server_address(server), listener.getsockname()) as client:
            with connect(("127.0.0.1", public_port(client))) as user, listener.accept()[0] as service:
                service.settimeout(READY_TIMEOUT)
                user.sendall(b"the first part")
                assert receive_exactly(service, 14) == b"the first part"
                yield {"server": server, "client": client}, {"user": user, "service": service}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("which", ["server", "client"])
def test_an_upload_that_a_process_did_not_outlive_is_cut_and_not_complete(
    certificate: Certificate, tmp_path: Path, which: str, how: signal.Signals
) -> None:
    """User and service see a reset, and never the end of the upload. So they do where the process ends in order."""
    with uploading(certificate, tmp_path) as (processes, ends):
        dying = processes[which]
        dying.send_signal(how)
        assert dying.wait(READY_TIMEOUT) == (-signal.SIGKILL if how == signal.SIGKILL else 0), dying.description()
        for end in ends.values():
            # The other process learns of it at its idle timeout, after 10 s, unless it is told.
            with pytest.raises(ConnectionResetError):
                end.recv(1)


def test_a_user_learns_that_there_is_no_service(certificate: Certificate, tmp_path: Path) -> None:
    """From a reset; and who looks for the reason finds it in either log."""
    gone = free_port()
    with (
        server_process(tmp_path, certificate) as server,
        client_process(tmp_path, certificate, server_address(server), ("127.0.0.1", gone)) as client,
    ):
        expect_reset(("127.0.0.1", public_port(client)))
        source = client.wait_for(
            r"WARNING client: connection from (127\.0\.0\.1:\d+) dropped: "
            rf"cannot reach 127\.0\.0\.1:{gone}: Connection refused",
            READY_TIMEOUT,
        )[1]
        refused = r"INFO server: port \d+: connection from {}: refused by the peer"
        server.wait_for(refused.format(source), READY_TIMEOUT)
        # However many come within a minute, the client's log has one line for them.
        for _ in range(30):
            expect_reset(("127.0.0.1", public_port(client)))
        every = re.compile(refused.format(r"127\.0\.0\.1:\d+"))
        wait_until(lambda: len(every.findall(server.output())) == 31, READY_TIMEOUT, "all are refused")
        assert client.output().count("cannot reach") == 1
