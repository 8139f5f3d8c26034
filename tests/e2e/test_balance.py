"""Several clients behind one port: real commands, with curl and openssl as visitors."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import http.server
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.control.caller import Caller
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    USER,
    client_process,
    command,
    public_port,
    server_address,
    server_process,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, UdpService
from tests.support.traffic import connect, receive_exactly
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
BIG = bytes(range(256)) * 65536  # 16 MiB
JOINED = r"shared by {} clients"
ENDED = r"connection ended after"


class _Answers(http.server.BaseHTTPRequestHandler):
    """``/`` is the name of the service, ``/big`` a large file; ``/slow`` never ends."""

    def __init__(self, name: bytes, over: threading.Event, *arguments: Any) -> None:
        self.name, self.over = name, over
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Name", self.name.decode())
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if self.path == "/slow":
                self.wfile.write(self.name)
                self.over.wait(60)
            else:
                self.wfile.write(BIG if self.path == "/big" else self.name)

    def log_message(self, *_: object) -> None:
        pass


class _Names(UdpService):
    """Answers each datagram with a name."""

    def __init__(self, name: bytes, port: int) -> None:
        super().__init__(lambda _: name, HOST, port)


@contextlib.contextmanager
def service(name: str) -> Iterator[Address]:
    """A local service over TCP and UDP whose answers are its name."""
    over = threading.Event()
    port = free_port()
    handler = functools.partial(_Answers, name.encode(), over)
    with http.server.ThreadingHTTPServer((HOST, port), handler) as server, _Names(name.encode(), port):
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield HOST, port
        finally:
            over.set()
            server.shutdown()
            thread.join()


class Scene:
    """A server, and clients of one user at one port, each with a service of its own name."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path, certificate: Certificate, **proxy: Any) -> None:
        self._stack = stack
        self._directory = directory
        self._certificate = certificate
        self.port = free_port()
        entry = {"balance": "round_robin", "allow_ports": self.port, **proxy}
        self.access_log = directory / "access.log"
        self.control_socket = directory / "s"
        options = {"access_log": str(self.access_log), "control_socket": str(self.control_socket)}
        self.server = stack.enter_context(server_process(directory, certificate, proxy=entry, **options))
        self.clients: dict[str, Process] = {}

    def add(self, name: str, local: Address | None = None, **options: Any) -> Process:
        if local is None:
            local = self._stack.enter_context(service(name))
        directory = self._directory / name
        directory.mkdir()
        client = client_process(
            directory, self._certificate, server_address(self.server), local, port=self.port, **options
        )
        self.clients[name] = self._stack.enter_context(client)
        assert public_port(client) == self.port
        return client

    def get(self, path: str = "") -> bytes:
        """What curl gets."""
        return subprocess.run(
            ["curl", "-sS", "--max-time", "60", f"http://{HOST}:{self.port}/{path}"], capture_output=True, check=True
        ).stdout

    def names(self, count: int) -> collections.Counter[bytes]:
        return collections.Counter(self.get() for _ in range(count))

    def hold(self, path: str = "slow") -> tuple[str, socket.socket]:
        """A visitor whose connection stays open; returns which service answers it."""
        visitor = self._stack.enter_context(connect((HOST, self.port)))
        visitor.settimeout(READY_TIMEOUT)
        visitor.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += receive_exactly(visitor, 1)
        found = re.search(rb"X-Name: (\w+)", head)
        assert found
        return found[1].decode(), visitor


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with contextlib.ExitStack() as found:
        yield found


def test_round_robin_is_even_and_a_client_that_stops_leaves_the_port_to_the_others(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    scene = Scene(stack, tmp_path, certificate)
    for name in "ABC":
        scene.add(name)
    scene.server.wait_for(JOINED.format(3))
    assert scene.names(12) == {b"A": 4, b"B": 4, b"C": 4}
    scene.clients["A"].stop()
    scene.server.wait_for(ENDED)
    assert scene.names(6) == {b"B": 3, b"C": 3}
    scene.add("D")
    assert scene.names(6) == {b"B": 2, b"C": 2, b"D": 2}


def test_who_got_which_visitor(stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path) -> None:
    """The access log names the client by its address, as ``status`` does, and that of another visitor another one."""
    scene = Scene(stack, tmp_path, certificate)
    for name in "AB":
        scene.add(name)
    scene.server.wait_for(JOINED.format(2))
    assert scene.names(4) == {b"A": 2, b"B": 2}

    def lines() -> list[str] | None:
        found = scene.access_log.read_text().splitlines() if scene.access_log.exists() else []
        return found if len(found) == 4 else None

    found = wait_until(lines, READY_TIMEOUT, "each visitor has a line")
    assert found is not None
    clients = [match[1] for line in found if (match := re.search(rf" user {USER} client (\S+): finished ", line))]
    caller = Caller(scene.control_socket)
    rows = caller.status().tunnels
    assert collections.Counter(clients) == {row.peer: 2 for row in rows}
    assert [row.balance for row in rows] == ["round_robin"] * 2
    shown = subprocess.run(
        command("status", "--socket", str(scene.control_socket)), capture_output=True, text=True, check=True
    ).stdout
    assert "  CLIENT " in shown
    for row in rows:
        assert re.search(rf"127\.0\.0\.1:{scene.port}  {row.peer} .* round_robin  public  ", shown), shown


def test_least_connections_prefers_the_idle_client(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    scene = Scene(stack, tmp_path, certificate, balance="least_connections")
    scene.add("A")
    held = [scene.hold() for _ in range(3)]
    assert {name for name, _ in held} == {"A"}
    scene.add("B")
    assert [scene.hold()[0] for _ in range(3)] == ["B"] * 3
    assert collections.Counter(scene.hold()[0] for _ in range(2)) == {"A": 1, "B": 1}


def ask(source: socket.socket, port: int) -> bytes:
    """The answer to a datagram, which is sent until there is one."""
    source.settimeout(1.0)
    for _ in range(int(READY_TIMEOUT)):
        source.sendto(b"?", (HOST, port))
        with contextlib.suppress(TimeoutError):
            return source.recv(100)
    raise AssertionError("no answer")


def test_udp_sources_stick_until_their_client_leaves(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    scene = Scene(stack, tmp_path, certificate)
    for name in "AB":
        scene.add(name)
    scene.server.wait_for(JOINED.format(2))
    sources = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(6)]
    first = [ask(source, scene.port) for source in sources]
    assert collections.Counter(first) == {b"A": 3, b"B": 3}
    for _ in range(5):
        assert [ask(source, scene.port) for source in sources] == first
    scene.clients["A"].stop()
    scene.server.wait_for(ENDED)
    assert [ask(source, scene.port) for source in sources] == [b"B"] * 6


TLS = {"tcp": "-tls1_3", "udp": "-dtls1_2"}


@contextlib.contextmanager
def tls_service(directory: Path, name: str) -> Iterator[Address]:
    """``openssl s_server``, over TCP and UDP, with a certificate of this name."""
    key, own, port = directory / f"{name}.key", directory / f"{name}.pem", free_port()
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made = ["openssl", "req", "-x509", *curve, "-keyout", str(key), "-out", str(own), "-subj", f"/CN={name}"]
    subprocess.run(made, capture_output=True, check=True)
    serve = ["openssl", "s_server", "-accept", f"{HOST}:{port}", "-cert", str(own), "-key", str(key)]
    with contextlib.ExitStack() as stack:
        for version in TLS.values():
            # It ends with its standard input.
            running = subprocess.Popen([*serve, version], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(running)
            stack.callback(running.kill)
            assert running.stdout is not None
            assert b"ACCEPT\n" in iter(running.stdout.readline, b"")
        yield HOST, port


def tls_name(port: int, network: str) -> str:
    """The name in the certificate of the service that answers ``openssl s_client``."""
    visit = ["openssl", "s_client", "-connect", f"{HOST}:{port}", "-brief", TLS[network]]
    done = subprocess.run(visit, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"Peer certificate: CN ?= ?(\w+)", done.stderr)
    assert found, done.stderr
    return found[1]


def test_tls_and_dtls_sessions_stay_with_their_client(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    """A handshake succeeds only if all of it reaches the same service, also over UDP."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    scene = Scene(stack, tmp_path, certificate)
    for name in "AB":
        scene.add(name, stack.enter_context(tls_service(tmp_path, name)))
    scene.server.wait_for(JOINED.format(2))
    for network in TLS:
        assert collections.Counter(tls_name(scene.port, network) for _ in range(4)) == {"A": 2, "B": 2}


def test_a_killed_client_takes_only_its_own_connections(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    """SIGKILL in the middle of transfers. What the others carry is complete, byte for byte."""
    scene = Scene(stack, tmp_path, certificate)
    for name in "ABC":
        scene.add(name)
    scene.server.wait_for(JOINED.format(3))
    transfers = [scene.hold("big") for _ in range(6)]
    assert collections.Counter(name for name, _ in transfers) == {"A": 2, "B": 2, "C": 2}
    # Every transfer is under way, and none can be complete: nothing more is read for the moment.
    begun = [receive_exactly(visitor, 65536) for _, visitor in transfers]
    scene.clients["B"].kill()
    expected = hashlib.sha256(BIG).hexdigest()
    for (name, visitor), beginning in zip(transfers, begun, strict=True):
        if name == "B":
            continue
        rest = receive_exactly(visitor, len(BIG) - len(beginning))
        assert hashlib.sha256(beginning + rest).hexdigest() == expected
        assert visitor.recv(1) == b""
    scene.server.wait_for(ENDED, READY_TIMEOUT)
    for name, visitor in transfers:
        if name == "B":
            with pytest.raises(ConnectionResetError):
                receive_exactly(visitor, len(BIG))
    assert scene.names(4) == {b"A": 2, b"C": 2}


def test_a_client_that_does_not_answer_gets_no_more_visitors(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    """Long before its connection ends. It gets some again once it answers."""
    scene = Scene(stack, tmp_path, certificate)
    for name in "AB":
        scene.add(name)
    scene.server.wait_for(JOINED.format(2))
    scene.names(2)
    scene.clients["A"].send_signal(signal.SIGSTOP)
    try:
        answered: list[bytes] = []

        def visit() -> bool:
            with contextlib.suppress(subprocess.CalledProcessError):
                done = ["curl", "-sS", "--max-time", "4", f"http://{HOST}:{scene.port}/"]
                answered.append(subprocess.run(done, capture_output=True, check=True).stdout)
                return answered[-2:] == [b"B", b"B"]
            answered.append(b"")
            return False

        wait_until(visit, READY_TIMEOUT, "all visitors are given to the other", detail=lambda: str(answered))
        assert answered.count(b"") <= 1
    finally:
        scene.clients["A"].send_signal(signal.SIGCONT)
    wait_until(lambda: scene.get() == b"A", READY_TIMEOUT, "it takes its turn again")


def test_an_unhealthy_service_withdraws_its_client_only(
    stack: contextlib.ExitStack, certificate: Certificate, tmp_path: Path
) -> None:
    scene = Scene(stack, tmp_path, certificate)
    scene.add("A")
    with service("B") as local:
        scene.add("B", local, health={"tcp": True, "interval": "1s", "failures": 1})
        scene.server.wait_for(JOINED.format(2))
        assert scene.names(4) == {b"A": 2, b"B": 2}
    scene.server.wait_for(ENDED, READY_TIMEOUT)
    assert scene.names(4) == {b"A": 4}
    scene.clients["B"].check_running()
