"""Configurations that change while the commands run, and commands that end with a grace period."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tunnels import (
    CLIENT_READY,
    PASSWORD,
    READY_TIMEOUT,
    USER,
    both_echoes,
    client_options,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    traffic,
    write_config,
)
from tests.support.certificates import Certificate, self_signed
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.sanitized import takes_signals
from tests.support.services import Address, TcpEcho, TcpService
from tests.support.traffic import UdpPeer, connect, echo, expect_reset, receive_exactly, wait_for_port
from tests.support.waiting import wait_until

pytestmark = takes_signals

OTHER = "ffffffff-4455-6677-8899-aabbccddeeff"
OTHER_PASSWORD = "another secret"
# Seconds in which a command must end once it is asked to: less than the grace periods that must not be over.
END = 40.0
DONE = r"configuration reloaded: .*"
REFUSED = r"the configuration is not reloaded; the previous configuration stays in use"


class Files:
    """A server's configuration, and files that it names, in a folder of their own."""

    def __init__(self, directory: Path, certificate: Certificate) -> None:
        self.directory = directory
        self.certificate = Certificate(directory / "chain.pem", directory / "key.pem", certificate.trusted)
        self.install(certificate)

    def install(self, certificate: Certificate) -> None:
        """Put a certificate and its key in their place, as a program that renews them does."""
        for name in ("certificate", "private_key"):
            target: Path = getattr(self.certificate, name)
            shutil.copy2(getattr(certificate, name), target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    def write(self, users: dict[str, Any] | None = None, /, **changes: Any) -> Path:
        """Write the configuration of a server with these users."""
        proxy = {"users": users or {USER: PASSWORD}, "allow_ports": [{"start": 20000, "end": 32000}]}
        proxy |= changes.pop("proxy", {})
        return write_config(self.directory, "server", server_options(self.certificate, proxy=proxy, **changes))


@pytest.fixture
def files(tmp_path: Path, certificate: Certificate) -> Files:
    directory = tmp_path / "server"
    directory.mkdir()
    return Files(directory, certificate)


@contextlib.contextmanager
def server_of(files: Files, *options: str) -> Iterator[Process]:
    """``server run`` with the configuration that is written."""
    path = files.directory / "server.json"
    with Process(command("server", "run", "-c", str(path), *(options or ("-v",))), name="server") as server:
        yield server


def times(process: Process, pattern: str) -> int:
    """How often a process has written something."""
    return len(re.findall(pattern, process.output(), re.MULTILINE))


def reload(process: Process, pattern: str = DONE) -> str:
    """Have a process reload its configuration; what it says of it."""
    before = times(process, pattern)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: times(process, pattern) > before, READY_TIMEOUT, "it reloads", detail=process.description)
    found: str = re.findall(pattern, process.output())[-1]
    return found


class Transfer:
    """Bytes that go to an echo and come back, slowly, until ``finish``, which compares their checksums."""

    def __init__(self, public: Address) -> None:
        self._connection = connect(public)
        self._over = threading.Event()
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self._moved = 0
        self._problem: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="transfer")
        self._thread.start()

    def __enter__(self) -> Transfer:
        wait_until(lambda: self._moved > 0, READY_TIMEOUT, "it moves")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()

    def finish(self) -> None:
        """Ends in order: everything has come back as it was sent."""
        before = self._moved
        wait_until(lambda: self._moved > before or self._problem, READY_TIMEOUT, "it still moves")
        self._over.set()
        self._thread.join()
        assert self._problem is None, self._problem
        assert self._moved > 0
        assert self._received.digest() == self._sent.digest()

    def _run(self) -> None:
        number = 0
        try:
            while not self._over.is_set():
                number += 1
                data = seeded_bytes(number, 20_000)
                self._sent.update(data)
                self._connection.sendall(data)
                back = receive_exactly(self._connection, len(data))
                self._received.update(back)
                self._moved += len(back)
                time.sleep(0.005)
            self._connection.shutdown(socket.SHUT_WR)
            assert self._connection.recv(1) == b""
        except OSError as problem:
            self._problem = problem


def ended(connection: socket.socket) -> bool:
    """Whether a connection ends, in whatever way."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def other_client(directory: Path, certificate: Certificate, server: Address, local: Address, **changes: Any) -> Process:
    """A client of the other user."""
    folder = directory / "other"
    folder.mkdir(exist_ok=True)
    return client_process(folder, certificate, server, local, **{"uuid": OTHER, "password": OTHER_PASSWORD, **changes})


# --- a server ---------------------------------------------------------------------------------------------------------


def test_users_come_and_go_and_nobody_else_notices(files: Files, certificate: Certificate, tmp_path: Path) -> None:
    files.write()
    with contextlib.ExitStack() as stack:
        service, _ = stack.enter_context(both_echoes())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(client_process(tmp_path, certificate, address, service.address))
        public = ("127.0.0.1", public_port(client))
        transfer = stack.enter_context(Transfer(public))
        visitor = stack.enter_context(UdpPeer(public))
        visitor.ask(b"one", b"one")
        # Added:
        other = stack.enter_context(other_client(tmp_path, certificate, address, service.address))
        other.wait_for("authentication failed", READY_TIMEOUT)
        files.write({USER: PASSWORD, OTHER: OTHER_PASSWORD})
        assert f"user {OTHER}: added" in reload(server)
        others = ("127.0.0.1", public_port(other))
        with connect(others) as connection:
            connection.sendall(b"?")
            assert connection.recv(1) == b"?"
            # Removed:
            files.write()
            assert f"user {OTHER}: removed" in reload(server)
            assert ended(connection)
        server.wait_for(rf"disconnected: removal of user {OTHER}", READY_TIMEOUT)
        wait_until(lambda: times(other, "authentication failed") > 1, READY_TIMEOUT, "it is refused from now on")
        with pytest.raises(ConnectionRefusedError):
            connect(others)
        visitor.ask(b"two", b"two")
        transfer.finish()
        assert times(client, CLIENT_READY) == 1
        assert OTHER_PASSWORD not in server.output()


def test_another_password_disconnects_whoever_has_the_former_one(
    files: Files, certificate: Certificate, tmp_path: Path
) -> None:
    password = files.directory / "password"
    password.write_text(OTHER_PASSWORD)
    password.chmod(0o600)
    files.write({USER: PASSWORD, OTHER: {"password_file": str(password)}})
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(client_process(tmp_path, certificate, address, service.address))
        transfer = stack.enter_context(Transfer(("127.0.0.1", public_port(client))))
        other = stack.enter_context(other_client(tmp_path, certificate, address, service.address))
        public_port(other)
        password.write_text("a new one")  # the configuration itself stays
        assert reload(server).endswith(f"user {OTHER}: password: new")
        server.wait_for(rf"disconnected: change of the password of user {OTHER}", READY_TIMEOUT)
        other.wait_for("authentication failed", READY_TIMEOUT)
        with other_client(tmp_path, certificate, address, service.address, password="a new one") as successor:
            assert echo(("127.0.0.1", public_port(successor)), b"hello") == b"hello"
        transfer.finish()


def test_other_ports_move_whoever_has_another(files: Files, certificate: Certificate, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    files.write(proxy={"allow_ports": first})
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        client = stack.enter_context(client_process(tmp_path, certificate, server_address(server), service.address))
        assert public_port(client) == first
        # More ports disconnect nobody.
        files.write(proxy={"allow_ports": sorted([first, second])})
        with Transfer(("127.0.0.1", first)) as transfer:
            reload(server)
            transfer.finish()
        files.write(proxy={"allow_ports": second})
        reload(server)
        client.wait_for(rf"is public on port {second} ", READY_TIMEOUT)
        wait_for_port(("127.0.0.1", second))
        assert echo(("127.0.0.1", second), b"hello") == b"hello"
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", first))


def test_a_renewed_certificate_is_for_new_connections(files: Files, certificate: Certificate, tmp_path: Path) -> None:
    files.write()
    renewed = self_signed(tmp_path / "renewed")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(client_process(tmp_path, certificate, address, service.address))
        transfer = stack.enter_context(Transfer(("127.0.0.1", public_port(client))))
        files.install(renewed)
        said = reload(server)
        assert "certificate: new" in said
        assert "private_key: new" in said
        folder = tmp_path / "new client"
        folder.mkdir()
        trusts_new = stack.enter_context(client_process(folder, renewed, address, service.address))
        assert echo(("127.0.0.1", public_port(trusts_new)), b"hello") == b"hello"
        folder = tmp_path / "late client"
        folder.mkdir()
        trusts_old = stack.enter_context(client_process(folder, certificate, address, service.address))
        trusts_old.wait_for("server certificate rejected", READY_TIMEOUT)
        transfer.finish()
        assert times(client, CLIENT_READY) == 1


def test_another_implementation_sees_the_renewed_certificate(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    from aioquic.quic import events
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    def accepts(server: Address, trusted: Path) -> bool:
        """Whether a handshake succeeds that trusts this certificate alone."""
        configuration = QuicConfiguration(alpn_protocols=["asport"], server_name="localhost")
        configuration.load_verify_locations(cafile=str(trusted))
        quic = QuicConnection(configuration=configuration)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.05)
            sock.connect(server)
            quic.connect(server, now=time.monotonic())
            deadline = time.monotonic() + READY_TIMEOUT
            while time.monotonic() < deadline:
                now = time.monotonic()
                timer = quic.get_timer()
                if timer is not None and timer <= now:
                    quic.handle_timer(now)
                for data, _ in quic.datagrams_to_send(now):
                    sock.send(data)
                while (event := quic.next_event()) is not None:
                    if isinstance(event, (events.HandshakeCompleted, events.ConnectionTerminated)):
                        return isinstance(event, events.HandshakeCompleted)
                with contextlib.suppress(TimeoutError):
                    quic.receive_datagram(sock.recv(65535), server, now=time.monotonic())
        raise AssertionError("no handshake")

    files.write()
    renewed = self_signed(tmp_path / "renewed")
    with server_of(files) as server:
        address = server_address(server)
        assert accepts(address, files.certificate.trusted)
        assert not accepts(address, renewed.trusted)
        files.install(renewed)
        reload(server)
        assert accepts(address, renewed.trusted)
        assert not accepts(address, files.certificate.trusted)


def test_a_file_that_is_wrong_is_refused_whole_with_all_its_errors(
    files: Files, certificate: Certificate, tmp_path: Path
) -> None:
    path = files.write()
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        client = stack.enter_context(client_process(tmp_path, certificate, server_address(server), service.address))
        public = ("127.0.0.1", public_port(client))
        with Transfer(public) as transfer:
            # Removes the user, and has two errors.
            files.write({OTHER: OTHER_PASSWORD}, max_idle_time="soon", no_such_key=1)
            reload(server, REFUSED)
            server.wait_for(rf"ERROR lifecycle: reload: {path}:\d+:\d+: max_idle_time: expected ", READY_TIMEOUT)
            server.wait_for(rf"ERROR lifecycle: reload: {path}:\d+:\d+: no_such_key: unknown key", READY_TIMEOUT)
            # As good as any file, but its certificate is not.
            files.write({OTHER: OTHER_PASSWORD})
            files.certificate.certificate.write_text("nonsense")
            reload(server, REFUSED)
            server.wait_for(rf"ERROR lifecycle: reload: {files.certificate.certificate}: certificate: ", READY_TIMEOUT)
            transfer.finish()
        assert echo(public, b"hello") == b"hello"
        assert OTHER_PASSWORD not in server.output()
        # Once it is right, everything takes effect.
        files.install(certificate)
        assert reload(server).count("user ") == 2
        client.wait_for("authentication failed", READY_TIMEOUT)


def test_what_needs_a_restart_is_named(files: Files) -> None:
    files.write()
    with server_of(files) as server:
        host, port = server_address(server)
        files.write(server=f"{host}:{free_port()}", relay="workers", reset_key="x" * 40)
        assert reload(server) == "configuration reloaded: nothing has changed"
        server.wait_for(
            r"WARNING lifecycle: a restart is needed for the changes of (relay|server|reset_key)", READY_TIMEOUT
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="in use"):
            sock.bind((host, port))


def test_the_log_level_follows_unless_the_command_line_has_one(files: Files) -> None:
    for options, follows in (((), True), (("--log-level", "info"), False)):
        files.write(log_level="info")
        path = files.directory / "server.json"
        argv = command("server", "run", "-c", str(path), *options)
        with Process(argv, name="server") as server:
            server_address(server)
            files.write(log_level="error")
            server.send_signal(signal.SIGHUP)
            if follows:
                # Nothing is said of it, as of anything else from here on.
                files.directory.joinpath("server.json").chmod(0o600)
                files.write(log_level="error", max_idle_time="soon")
                reload(server, REFUSED)
                assert times(server, DONE) == 0
            else:
                server.wait_for("log_level: info -> error", READY_TIMEOUT)


def test_files_that_are_watched_are_reloaded_without_being_asked(
    files: Files, certificate: Certificate, tmp_path: Path
) -> None:
    """certbot keeps links to the files of the current certificate, and replaces these."""
    renewed = self_signed(tmp_path / "renewed")
    live = tmp_path / "live"
    live.mkdir()
    linked = Certificate(live / "fullchain.pem", live / "privkey.pem", certificate.trusted)

    def link(to: Certificate) -> None:
        for name in ("certificate", "private_key"):
            (live / "new").symlink_to(getattr(to, name))
            (live / "new").replace(getattr(linked, name))

    link(certificate)
    options = server_options(linked, watch="1s")
    path = write_config(files.directory, "server", options)
    with server_of(files) as server:
        address = server_address(server)
        link(renewed)
        found = server.wait_for(DONE, READY_TIMEOUT)
        assert "certificate: new" in found[0]
        with TcpEcho() as service, client_process(tmp_path, renewed, address, service.address) as client:
            public_port(client)
            # A file that is half written for a while is not read meanwhile.
            text = json.dumps({**options, "max_idle_time": "9s"}, indent=2)
            with path.open("w") as file:
                for part in range(0, len(text), max(1, len(text) // 4)):
                    file.write(text[part : part + max(1, len(text) // 4)])
                    file.flush()
                    time.sleep(0.6)
            server.wait_for("max_idle_time: 10s -> 9s", READY_TIMEOUT)
            assert times(server, REFUSED) == 0
            assert times(client, CLIENT_READY) == 1


def test_systemd_waits_for_the_end_of_a_reload(files: Files, tmp_path: Path) -> None:
    """Type=notify-reload: RELOADING=1 with the monotonic time, then READY=1; also where the file is refused."""
    files.write()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_TIMEOUT)
        path = files.directory / "server.json"
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        argv = command("server", "run", "-c", str(path))
        with Process(argv, name="server", environment=environment) as server:
            ready = manager.recv(1000)
            for spoil in (False, True):
                if spoil:
                    path.write_text("{")
                before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                server.send_signal(signal.SIGHUP)
                found = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", manager.recv(1000))
                assert found is not None
                assert before <= int(found[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                again = manager.recv(1000)
                assert again.startswith(ready)
                assert (b"refused" in again) is spoil
            server.send_signal(signal.SIGTERM)
            assert server.wait(END) == 0
            assert manager.recv(1000) == b"STOPPING=1"


# --- a client ---------------------------------------------------------------------------------------------------------


def test_tunnels_of_a_client_change_one_by_one(files: Files, certificate: Certificate, tmp_path: Path) -> None:
    files.write()
    ports = [free_port() for _ in range(3)]
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    with contextlib.ExitStack() as stack:
        service, _ = stack.enter_context(both_echoes())
        server = stack.enter_context(server_of(files))
        options = client_options(certificate, server_address(server), service.address)
        del options["local"], options["password"]
        tunnel = {"local": f"127.0.0.1:{service.address[1]}", "password": PASSWORD}

        def write(**tunnels: dict[str, Any]) -> Path:
            return write_config(tmp_path, "client", {**options, "tunnels": tunnels})

        first = {**tunnel, "port": ports[0]}
        second = {**tunnel, "port": ports[1], "password_file": str(password)}
        del second["password"]
        path = write(first=first, second=second)
        client = stack.enter_context(Process(command("client", "run", "-c", str(path), "-v"), name="client"))
        for port in ports[:2]:
            client.wait_for(rf"is public on port {port} ", READY_TIMEOUT)
        transfer = stack.enter_context(Transfer(("127.0.0.1", ports[0])))
        visitor = stack.enter_context(UdpPeer(("127.0.0.1", ports[0])))
        visitor.ask(b"one", b"one")
        # Added:
        write(first=first, second=second, third={**tunnel, "port": ports[2]})
        assert reload(client) == "configuration reloaded: tunnel third: added"
        client.wait_for(rf"is public on port {ports[2]} ", READY_TIMEOUT)
        assert echo(("127.0.0.1", ports[2]), b"hello") == b"hello"
        # Removed:
        write(first=first, second=second)
        assert reload(client) == "configuration reloaded: tunnel third: removed"
        wait_until(lambda: _is_refused(("127.0.0.1", ports[2])), READY_TIMEOUT, "its port is closed")
        # Changed, by the content of a file alone:
        password.write_text("a guess")
        assert reload(client) == "configuration reloaded: tunnel second: password: new"
        client.wait_for("second: .*authentication failed", READY_TIMEOUT)
        password.write_text(PASSWORD)
        reload(client)
        wait_until(lambda: times(client, rf"is public on port {ports[1]} ") == 2, READY_TIMEOUT, "it is back")
        # Wrong:
        write(first=first, second={**second, "port": "none"}, third=tunnel)
        reload(client, REFUSED)
        client.wait_for(rf"ERROR lifecycle: reload: {path}:\d+:\d+: tunnels\.second\.port: ", READY_TIMEOUT)
        visitor.ask(b"two", b"two")
        transfer.finish()
        assert times(client, rf"is public on port {ports[0]} ") == 1
        assert "a guess" not in client.output()


# --- the grace period -------------------------------------------------------------------------------------------------


class Slow(TcpService):
    """Sends a part at once, and the rest when ``go_on`` is set; then its end of stream, and waits for the peer's."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.data = seeded_bytes(5, 4 << 20)

    def handle(self, connection: socket.socket) -> None:
        connection.sendall(self.data[:1000])
        assert self.go_on.wait(READY_TIMEOUT)
        connection.sendall(self.data[1000:])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


@pytest.mark.parametrize("which", ["server", "client"])
def test_what_is_open_may_end_in_the_grace_period(
    files: Files, certificate: Certificate, tmp_path: Path, which: str
) -> None:
    files.write(grace_period="1m")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(Slow())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(
            client_process(tmp_path, certificate, address, service.address, grace_period="1m", network="tcp")
        )
        public = ("127.0.0.1", public_port(client))
        visitor = stack.enter_context(connect(public))
        assert receive_exactly(visitor, 1000) == service.data[:1000]
        process = server if which == "server" else client
        process.send_signal(signal.SIGTERM)
        process.wait_for("draining: nothing new is accepted", READY_TIMEOUT)
        if which == "server":
            wait_until(lambda: _is_refused(public), READY_TIMEOUT, "nobody is accepted any more")
        else:
            expect_reset(public)
        process.check_running()
        service.go_on.set()
        rest = receive_exactly(visitor, len(service.data) - 1000)
        assert hashlib.sha256(rest).digest() == hashlib.sha256(service.data[1000:]).digest()
        assert visitor.recv(1) == b""
        visitor.shutdown(socket.SHUT_WR)
        assert process.wait(END) == 0, process.description()
        assert "the grace period" not in process.output()


def _is_refused(public: Address) -> bool:
    try:
        connect(public).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # the kernel had accepted it when the port was closed
    return False


@pytest.mark.parametrize("which", ["server", "client"])
def test_udp_sources_may_go_on_in_the_grace_period(
    files: Files, certificate: Certificate, tmp_path: Path, which: str
) -> None:
    files.write(grace_period="1m")
    with contextlib.ExitStack() as stack:
        service, _ = stack.enter_context(both_echoes())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(client_process(tmp_path, certificate, address, service.address, grace_period="1m"))
        public = ("127.0.0.1", public_port(client))
        known = stack.enter_context(UdpPeer(public))
        known.ask(b"one", b"one")
        process = server if which == "server" else client
        process.send_signal(signal.SIGTERM)
        process.wait_for("draining: nothing new is accepted", READY_TIMEOUT)
        time.sleep(0.2)  # until it is so
        with UdpPeer(public) as late:
            late.send(b"late")
            assert late.receive(0.5) is None
        for number in range(5):
            question = b"%d" % number
            known.ask(question, question)
        process.check_running()
        # Ten seconds after the last datagram the source counts as gone.
        assert process.wait(END + 15) == 0, process.description()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("which", ["server", "client"])
def test_a_second_signal_ends_the_grace_period(
    files: Files, certificate: Certificate, tmp_path: Path, which: str, second: signal.Signals
) -> None:
    files.write(grace_period="1h")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        address = server_address(server)
        client = stack.enter_context(client_process(tmp_path, certificate, address, service.address, grace_period="1h"))
        public = ("127.0.0.1", public_port(client))
        process, other = (server, client) if which == "server" else (client, server)
        with traffic(public):
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining: nothing new is accepted", READY_TIMEOUT)
            process.check_running()
            process.send_signal(second)
            assert process.wait(END) == 0, process.description()
        other.wait_for("closed by the server" if which == "server" else "connection ended", READY_TIMEOUT)


def test_a_second_signal_ends_a_grace_period_that_came_with_a_reload(
    files: Files, certificate: Certificate, tmp_path: Path
) -> None:
    files.write(watch="1s")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        client = stack.enter_context(client_process(tmp_path, certificate, server_address(server), service.address))
        public = ("127.0.0.1", public_port(client))
        files.write(watch="1s", grace_period="1h")
        server.wait_for(DONE, READY_TIMEOUT)
        with traffic(public):
            server.send_signal(signal.SIGTERM)
            server.wait_for("draining: nothing new is accepted", READY_TIMEOUT)
            server.send_signal(signal.SIGTERM)
            assert server.wait(END) == 0, server.description()


def test_signals_of_other_programs_end_nothing(files: Files) -> None:
    """Of logrotate, for an access log that there is not; of certbot, in the grace period."""
    files.write(grace_period="1h")
    with server_of(files) as server:
        server_address(server)
        for _ in range(100):
            server.send_signal(signal.SIGUSR1)
            server.send_signal(signal.SIGHUP)
        server.wait_for(DONE, READY_TIMEOUT)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            server.send_signal(number)
        assert server.wait(END) == 0, server.description()


def test_a_grace_period_is_over_some_time(files: Files, certificate: Certificate, tmp_path: Path) -> None:
    files.write(grace_period="1s")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(TcpEcho())
        server = stack.enter_context(server_of(files))
        client = stack.enter_context(client_process(tmp_path, certificate, server_address(server), service.address))
        with traffic(("127.0.0.1", public_port(client))):
            server.send_signal(signal.SIGTERM)
            assert server.wait(END) == 0, server.description()
        assert "the grace period of 1 s is over: closing what is still open" in server.output()
