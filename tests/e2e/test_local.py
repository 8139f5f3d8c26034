"""Forms of ``local``: unix sockets, several addresses, and a port alone."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    Tunnel,
    client_process,
    server_address,
    server_process,
    tunnel,
    wait_for_counter,
)
from tests.support.certificates import Certificate, self_signed
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.proxy_protocol import parse
from tests.support.services import (
    Address,
    TcpEcho,
    TcpService,
    TcpSink,
    TcpSource,
    UdpEcho,
    host_and_port,
    sink_answer,
)
from tests.support.traffic import UdpPeer, connect, echo, expect_reset, receive_exactly, receive_to_end, upload
from tests.support.waiting import wait_until

# The standard library's web server, on a unix socket.
WEB_SERVER = """
import http.server, socketserver, sys

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 100

class Handler(http.server.SimpleHTTPRequestHandler):
    def address_string(self):
        return "unix"

Server(sys.argv[1], Handler).serve_forever()
"""

relays = pytest.mark.parametrize("relay", ["engine", "workers"])


def web_server(path: Path, directory: Path) -> Process:
    """Serves the files of a directory on a unix socket; not started yet."""
    return Process([sys.executable, "-c", WEB_SERVER, str(path)], name="web server", directory=directory)


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "--silent", "--show-error", "--max-time", "60", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


class OnUnix:
    """A service of the tests on a unix socket."""

    def __init__(self, make: Callable[..., TcpService], path: Path, *arguments: Any) -> None:
        self._path = path
        self.service = make(*arguments, create_socket=self._create_socket)
        self.service._wanted = str(path)  # type: ignore[assignment]

    def _create_socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(socket.AF_UNIX, kind)

    def __enter__(self) -> Any:
        return self.service.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.service.__exit__(*error)
        self._path.unlink()


def unix_tunnel(certificate: Certificate, path: Path, **options: Any) -> Any:
    return tunnel(certificate, ("127.0.0.1", 9), client={"local": f"unix:{path}", **options})


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: the kernel takes 107 bytes, and OpenSSL fewer."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "service")


# --- unix sockets -----------------------------------------------------------------------------------------------------


def test_a_web_server_on_a_unix_socket_is_public(certificate: Certificate, tmp_path: Path, path: Path) -> None:
    """With the commands; the path is relative to the file."""
    files = tmp_path / "files"
    files.mkdir()
    content = seeded_bytes(1, 5 << 20)
    (files / "file").write_bytes(content)
    with (
        web_server(path, files),
        server_process(tmp_path, certificate) as server,
        client_process(
            path.parent, certificate, server_address(server), ("127.0.0.1", 9), local="unix:service"
        ) as client,
    ):
        found = client.wait_for(r"(\S+) is public on port (\d+) for (.+)$", READY_TIMEOUT)
        assert (found[1], found[3]) == (f"unix:{path}", "tcp")
        wait_until(path.is_socket, READY_TIMEOUT, "the service listens")
        url = f"http://127.0.0.1:{found[2]}/file"
        there = curl("--unix-socket", str(path), "http://localhost/file")
        here = curl(url)
        assert (here.returncode, here.stderr) == (0, b"")
        assert here.stdout == there.stdout == content
        # Many at the same time, each on a connection of its own.
        into = ("--remote-name-all", "--output-dir", str(tmp_path))
        assert curl("--parallel", "--parallel-max", "20", *into, f"{url}?[1-60]").returncode == 0
        assert curl("--head", url).stdout.startswith(b"HTTP/1.0 200 OK\r\n")
        for process in (client, server):
            process.send_signal(signal.SIGTERM)
            assert process.wait(READY_TIMEOUT) == 0
        assert "socket error" not in client.output()


def test_a_tls_server_on_a_unix_socket_is_public(certificate: Certificate, tmp_path: Path, path: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    made = self_signed(tmp_path / "made")
    arguments = ["-unix", str(path), "-www", "-cert", str(made.certificate), "-key", str(made.private_key)]
    with Process([program, "s_server", *arguments], name="openssl") as service:
        service.wait_for("^ACCEPT", READY_TIMEOUT)
        with unix_tunnel(certificate, path) as opened:
            page = curl("--insecure", "--http1.0", f"https://{host_and_port(opened.public)}/")
            assert page.returncode == 0, page.stderr
            assert b"s_server" in page.stdout


@relays
def test_bytes_go_both_ways(certificate: Certificate, path: Path, relay: str) -> None:
    data = seeded_bytes(1, 8 << 20)
    with OnUnix(TcpEcho, path) as service, unix_tunnel(certificate, path, relay=relay) as opened:
        assert echo(opened.public, data) == data
        assert service.errors == []


@relays
def test_each_direction_ends_alone(certificate: Certificate, path: Path, relay: str) -> None:
    data = seeded_bytes(2, 4 << 20)
    with OnUnix(TcpSink, path), unix_tunnel(certificate, path, relay=relay) as opened:
        assert upload(opened.public, data) == sink_answer(data)
    with OnUnix(TcpSource, path, 4 << 20) as source, unix_tunnel(certificate, path, relay=relay) as opened:
        with connect(opened.public) as visitor:
            assert receive_to_end(visitor) == source.data
            visitor.sendall(data)
            visitor.shutdown(socket.SHUT_WR)
            wait_until(lambda: source.received == [sink_answer(data)], READY_TIMEOUT, "the service has it all")
        wait_until(lambda: ends(opened)["relays_finished"] == 1, READY_TIMEOUT, "an orderly end")


class Answers(TcpService):
    """Answers the first bytes, and closes; with ``leaves`` it does not read the rest."""

    def __init__(self, leaves: bool, **options: Any) -> None:
        super().__init__(**options)
        self._leaves = leaves

    def handle(self, connection: socket.socket) -> None:
        receive_exactly(connection, 1 if self._leaves else 5)
        connection.sendall(bytes(100000))


def ends(opened: Tunnel) -> dict[str, int]:
    """How relays of the client have ended."""
    engine = opened.client.stats().engine
    return {name: engine[name] for name in ("relays_finished", "relays_socket_error", "relays_cut_short")}


@relays
def test_a_service_that_closes_after_its_answer_ends_in_order(certificate: Certificate, path: Path, relay: str) -> None:
    """The kernel reports that as a hang-up, as it does after a reset of TCP."""
    with OnUnix(Answers, path, False), unix_tunnel(certificate, path, relay=relay) as opened:
        with connect(opened.public) as visitor:
            visitor.sendall(b"hello")
            assert receive_to_end(visitor) == bytes(100000)
            # The other direction stays open until the visitor ends it, and costs nothing meanwhile.
            before = time.process_time()
            assert not visitor_sees_a_reset(visitor, 1.0)
            assert time.process_time() - before < 0.5
        wait_until(lambda: ends(opened)["relays_finished"] == 1, READY_TIMEOUT, "an orderly end")
        # What still comes for it is refused, as by TCP.
        with connect(opened.public) as visitor:
            visitor.sendall(b"hello")
            assert receive_to_end(visitor) == bytes(100000)
            visitor.sendall(b"more")
            assert visitor_sees_a_reset(visitor, READY_TIMEOUT)
        assert ends(opened) == {"relays_finished": 1, "relays_socket_error": 1, "relays_cut_short": 0}


def visitor_sees_a_reset(visitor: socket.socket, seconds: float) -> bool:
    """Whether a connection that was read to its end is reset within some time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if visitor.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            return True
        state = visitor.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == 7:  # TCP_CLOSE
            return True
        time.sleep(0.02)
    return False


@relays
def test_a_service_that_leaves_something_unread_resets(certificate: Certificate, path: Path, relay: str) -> None:
    with OnUnix(Answers, path, True), unix_tunnel(certificate, path, relay=relay) as opened:
        with connect(opened.public) as visitor:
            visitor.sendall(b"hello")
            with pytest.raises(ConnectionResetError):
                receive_to_end(visitor)
        wait_until(lambda: ends(opened)["relays_socket_error"] == 1, READY_TIMEOUT, "a reset")


@relays
def test_a_visitor_that_resets_ends_the_service_s_connection(certificate: Certificate, path: Path, relay: str) -> None:
    with OnUnix(TcpSink, path) as service, unix_tunnel(certificate, path, relay=relay) as opened:
        visitor = connect(opened.public)
        visitor.sendall(b"hello")
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        visitor.close()
        # There is no reset on a unix socket: the service sees an orderly end, behind everything that was sent.
        wait_until(lambda: service.received == [sink_answer(b"hello")], READY_TIMEOUT, "the service sees the end")


def test_a_service_that_is_not_there_yet(certificate: Certificate, path: Path) -> None:
    with unix_tunnel(certificate, path) as opened:
        expect_reset(opened.public)
        wait_for_counter(opened.client, "connections_dropped_local_service", 1)
        with OnUnix(TcpEcho, path):
            assert echo(opened.public, b"hello") == b"hello"
        expect_reset(opened.public)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_service_learns_the_visitor_s_address(certificate: Certificate, path: Path, version: str) -> None:
    with OnUnix(TcpEcho, path), unix_tunnel(certificate, path, proxy_protocol=version) as opened:
        with connect(opened.public) as visitor:
            visitor.sendall(b"hello")
            said = b""  # the service sends the header back, too
            while not said.endswith(b"hello"):
                said += receive_exactly(visitor, 1)
            header = parse(said)
            assert (header.version, header.source) == (int(version[1]), visitor.getsockname())


# --- several addresses ------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Callable[[str, int], Process]:
    """Web servers that answer with their name."""

    def serve(name: str, port: int) -> Process:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "name").write_text(name)
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
        return Process(command, name=name, directory=directory)

    return serve


def ask(address: Address) -> str:
    connection = http.client.HTTPConnection(*address, timeout=READY_TIMEOUT)
    try:
        connection.request("GET", "/name")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def answers(address: Address) -> str | None:
    try:
        return ask(address)
    except OSError:
        return None


def test_the_next_address_serves_visitors_while_the_first_does_not(
    certificate: Certificate, web: Callable[[str, int], Process]
) -> None:
    first, second = free_port(), free_port()
    local = [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]
    with (
        web("second", second),
        tunnel(certificate, ("127.0.0.1", 9), client={"local": local, "network": "tcp"}) as opened,
    ):
        wait_until(lambda: answers(("127.0.0.1", second)), READY_TIMEOUT, "the second serves")
        assert ask(opened.public) == "second"
        with web("first", first) as process:
            wait_until(lambda: answers(("127.0.0.1", first)), READY_TIMEOUT, "the first serves")
            assert {ask(opened.public) for _ in range(5)} == {"second"}  # which has answered last
            process.stop()
        assert ask(opened.public) == "second"
        assert opened.client.stats().counters["connections_dropped_local_service"] == 0


def test_datagrams_go_to_the_address_that_takes_them(certificate: Certificate) -> None:
    with UdpEcho() as service:
        local = [f"127.0.0.1:{free_port()}", host_and_port(service.address)]
        with tunnel(certificate, ("127.0.0.1", 9), client={"local": local, "network": "udp"}) as opened:
            with UdpPeer(opened.public) as visitor:
                for number in range(5):
                    visitor.ask(b"%d" % number, b"%d" % number)
            # The answer may come before the pump has counted.
            wait_for_counter(opened.client, "udp_associations_moved", 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_alone_is_on_loopback(certificate: Certificate, host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with TcpEcho(host, port), UdpEcho(host, port):
        with tunnel(certificate, ("127.0.0.1", 9), client={"local": port}) as opened:
            assert echo(opened.public, b"hello") == b"hello"
            with UdpPeer(opened.public) as visitor:
                visitor.ask(b"hello", b"hello")
