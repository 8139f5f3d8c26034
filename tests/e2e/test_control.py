"""The control socket, the status address and the commands: real processes, asked by curl and by the commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from asport_sync import Client, ConfigError, Server, __version__
from tests.e2e.tunnels import (
    PASSWORD,
    READY_TIMEOUT,
    USER,
    client_options,
    client_process,
    command,
    counter,
    public_port,
    server_address,
    server_options,
    server_process,
    traffic,
    tunnel,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.services import Address, TcpEcho
from tests.support.traffic import connect, echo, expect_reset
from tests.support.waiting import wait_until

TOKEN = "a-token-for-the-tests"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=False,
    )


def curl(*arguments: str) -> str:
    """What curl gets."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def ask(path: Path, resource: str, *arguments: str) -> Any:
    return json.loads(curl("--unix-socket", str(path), f"http://localhost{resource}", *arguments))


@dataclass
class Running:
    """A server and a client as commands, with their sockets in one runtime directory."""

    server: Process
    client: Process
    public: Address
    directory: Path

    @property
    def client_socket(self) -> Path:
        return self.directory / "asport-sync" / "client.sock"

    @property
    def server_socket(self) -> Path:
        return self.directory / "asport-sync" / "server.sock"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, XDG_RUNTIME_DIR=str(self.directory))


@pytest.fixture
def running(certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with (
        TcpEcho() as service,
        server_process(tmp_path, certificate) as server,
        client_process(tmp_path, certificate, server_address(server), service.address) as client,
    ):
        yield Running(server, client, ("127.0.0.1", public_port(client)), tmp_path)


# --- the control socket -----------------------------------------------------------------------------------------------


def test_curl_sees_inside(running: Running) -> None:
    with connect(running.public) as visitor:
        visitor.sendall(b"12345")
        assert visitor.recv(5) == b"12345"
        client, server = (ask(path, "/v1/status") for path in (running.client_socket, running.server_socket))
    (row,) = client["tunnels"]
    assert (client["side"], client["pid"], client["running"]) == ("client", running.client.pid, True)
    assert (row["user"], row["state"], row["public"]) == (USER, "public", f"127.0.0.1:{running.public[1]}")
    assert row["connections"] == 1
    assert 0 < row["rtt"] < 10
    assert row["bytes_sent"] > 1000
    (row,) = server["tunnels"]
    assert (server["side"], server["pid"]) == ("server", running.server.pid)
    assert (row["user"], row["state"], row["public"]) == (USER, "public", f"127.0.0.1:{running.public[1]}")
    assert server["address"].startswith("127.0.0.1:")
    assert ask(running.client_socket, "/v1/stats")["counters"]["joined"] == 1


def test_only_this_user_may_use_it_and_only_while_it_runs(running: Running) -> None:
    for path in (running.client_socket, running.server_socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    running.client.send_signal(signal.SIGTERM)
    assert running.client.wait(15) == 0
    assert os.listdir(running.client_socket.parent) == ["server.sock"]


def test_a_killed_process_leaves_no_obstacle(running: Running, certificate: Certificate, tmp_path: Path) -> None:
    running.client.kill()
    assert running.client_socket.exists()
    said = running.run("status", "--socket", "client")
    assert said.returncode == 1
    assert "Connection refused" in said.stderr
    client = client_process(tmp_path, certificate, server_address(running.server), ("127.0.0.1", 9))
    with client:
        public_port(client)
        assert ask(running.client_socket, "/v1/status")["pid"] == client.pid


def test_a_second_client_runs_without_one(running: Running, certificate: Certificate, tmp_path: Path) -> None:
    other = client_process(tmp_path, certificate, server_address(running.server), ("127.0.0.1", 9))
    with other:
        public_port(other)
        (line,) = (line for line in other.output().splitlines() if "no control socket" in line)
        has_it = f"process {running.client.pid} has {running.client_socket}, so status, reload and other commands"
        assert f" INFO control: no control socket: {has_it} reach only that one" in line
        assert "WARNING" not in other.output()
        assert ask(running.client_socket, "/v1/status")["pid"] == running.client.pid


def test_secrets_never_appear(running: Running) -> None:
    asked = [
        curl("--unix-socket", str(path), f"http://localhost{resource}")
        for path in (running.client_socket, running.server_socket)
        for resource in ("/v1/status", "/v1/stats", "/v1/log-level", "/metrics", "/")
    ]
    said = running.client.output() + running.server.output()
    assert PASSWORD not in "".join(asked) + said
    assert "PRIVATE KEY" not in "".join(asked) + said


# --- the commands -----------------------------------------------------------------------------------------------------


def test_status(running: Running) -> None:
    with traffic(running.public):
        said = running.run("status", "--socket", "client")
        assert (said.returncode, said.stderr) == (0, "")
        head, _, titles, row, *_ = said.stdout.splitlines()
    assert head.startswith(f"client {__version__}, pid {running.client.pid}, up ")
    assert titles.split()[:7] == ["USER", "PUBLIC", "LOCAL", "NETWORK", "STATE", "SINCE", "CONNECTIONS"]
    assert row.split()[:2] == [USER[:8], f"127.0.0.1:{running.public[1]}"]
    assert row.split()[3:5] == ["both", "public"]
    assert " 4/" in row
    assert "bit" in row  # a rate
    told = json.loads(running.run("status", "--socket", str(running.server_socket), "--json").stdout)
    assert told["tunnels"][0]["user"] == USER


def test_several_are_listed(running: Running) -> None:
    said = running.run("status")
    assert (said.returncode, said.stdout) == (1, "")
    assert f"--socket {running.client_socket}\n  --socket {running.server_socket}\n" in said.stderr
    listed = running.run("list").stdout.splitlines()
    assert listed[0].split() == ["SIDE", "PID", "TUNNELS", "SOCKET", "STATE"]
    assert [line.split()[:4] for line in listed[1:]] == [
        ["client", str(running.client.pid), "1", str(running.client_socket)],
        ["server", str(running.server.pid), "1", str(running.server_socket)],
    ]


def test_status_repeatedly(running: Running) -> None:
    arguments = command("status", "--socket", "client", "--watch", "--json")
    with Process(arguments, name="status") as status:
        status.wait_for(r"(\{.*\}\n){2}", READY_TIMEOUT)
        first, second = (json.loads(line) for line in status.output().splitlines()[:2])
        assert first["pid"] == second["pid"] == running.client.pid
        assert first["time"] < second["time"]
        status.send_signal(signal.SIGINT)
        assert status.wait(15) == 130
        assert "Traceback" not in status.output()
    with Process(command("status", "--socket", "client", "--watch"), name="status") as status:
        status.wait_for(r"(?s)(USER.*){2}", READY_TIMEOUT)
        assert "\x1b" not in status.output()  # no terminal


def test_the_log_level(running: Running) -> None:
    assert running.run("log-level", "--socket", "server").stdout == "info\n"
    assert running.run("log-level", "--socket", "server", "debug").stdout == "debug (was info)\n"
    assert echo(running.public, b"hello") == b"hello"
    running.server.wait_for(r"DEBUG server: .* connection from 127\.0\.0\.1:\d+: relay started$", READY_TIMEOUT)
    running.run("disconnect", "--socket", "server", USER)
    running.server.wait_for(r"DEBUG server: .* QUIC connection established", READY_TIMEOUT)
    assert running.run("log-level", "--socket", "server", "loud").returncode == 2
    refused = ask(running.server_socket, "/v1/log-level", "-d", '{"level": "loud"}')
    assert "no such log level: loud" in refused["error"]


@pytest.mark.parametrize(("which", "name"), [("client", ""), ("server", USER), ("server", USER[:8])])
def test_disconnect(running: Running, which: str, name: str) -> None:
    with connect(running.public) as visitor:
        said = running.run("disconnect", "--socket", which, name)
        assert (said.returncode, said.stdout) == (0, "disconnected: 1\n"), said.stderr
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(1) == b""

    def is_back() -> bool:
        counters = ask(running.client_socket, "/v1/stats")["counters"]
        (row,) = ask(running.client_socket, "/v1/status")["tunnels"]
        return bool(counters["joined"] == 2 and row["public"])

    wait_until(is_back, READY_TIMEOUT, "the client has joined again")
    (row,) = ask(running.client_socket, "/v1/status")["tunnels"]
    assert row["error"]
    assert echo(("127.0.0.1", int(row["public"].rpartition(":")[2])), b"hello") == b"hello"


def test_reload_and_drain(running: Running) -> None:
    for name in ("server", "client"):
        said = running.run("reload", "--socket", name)
        assert (said.returncode, said.stdout, said.stderr) == (0, "nothing has changed\n", "")
    assert echo(running.public, b"hello") == b"hello"
    with connect(running.public) as visitor:
        visitor.sendall(b"12345")
        assert visitor.recv(5) == b"12345"
        said = running.run("drain", "--socket", "server")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout == "draining: 1 connections and UDP associations are open\n"
        running.server.wait_for(
            r"INFO lifecycle: draining: nothing new is accepted; what is open may go on until this server is stopped "
            r"\(1 clients\)$",
            READY_TIMEOUT,
        )
        state = ask(running.server_socket, "/v1/status")
        assert (state["draining"], [row["state"] for row in state["tunnels"]]) == (True, ["draining"])
        shown = running.run("status", "--socket", "server").stdout.splitlines()
        assert shown[0].endswith(": draining, 1 clients")
        assert "  draining  " in shown[3]
        assert "drained" not in running.server.output()
    running.server.wait_for(r"INFO lifecycle: drained: nothing is open any more$", READY_TIMEOUT)
    assert running.server.output().count("draining: ") == 1
    readiness = curl("-w", "%{http_code}", "--unix-socket", str(running.server_socket), "http://localhost/readyz")
    assert readiness == "draining\n503"
    said = running.run("drain", "--socket", "client")
    assert ask(running.client_socket, "/v1/status")["tunnels"][0]["state"] == "draining"
    running.client.wait_for(r"lifecycle: draining: .* until this client is stopped \(1 tunnels\)$", READY_TIMEOUT)
    running.client.wait_for(r"lifecycle: drained: nothing is open any more$", READY_TIMEOUT)
    said = running.run("reload", "--socket", "server")
    assert said.returncode == 1
    assert "this Server is draining: it is not reloaded" in said.stderr
    with pytest.raises(ConnectionRefusedError):
        echo(running.public, b"hello")


def test_disconnect_what_is_not_there(running: Running) -> None:
    said = running.run("disconnect", "--socket", "server", "ffffffff-ffff-ffff-ffff-ffffffffffff")
    assert said.returncode == 1
    assert "no connected user" in said.stderr
    assert "no such tunnel" in running.run("disconnect", "--socket", "client", "web").stderr


def test_what_the_server_refuses_is_in_its_status(certificate: Certificate, tmp_path: Path) -> None:
    """Clients and visitors, by cause."""
    path = tmp_path / "s"
    proxy = {"deny_from": "127.0.0.1"}
    with (
        TcpEcho() as service,
        server_process(tmp_path, certificate, control_socket=str(path), proxy=proxy) as server,
    ):
        where, folder = server_address(server), tmp_path / "wrong"
        folder.mkdir()
        with client_process(folder, certificate, where, service.address, password="wrong") as client:
            client.wait_for("authentication failed", READY_TIMEOUT)
        with client_process(folder, certificate, where, service.address, port=1) as client:
            client.wait_for("port denied", READY_TIMEOUT)
        with client_process(tmp_path, certificate, where, service.address) as client:
            expect_reset(("127.0.0.1", public_port(client)))
        drops = ask(path, "/v1/status")["drops"]
        assert drops["refused_auth_failed"] >= 1
        assert drops["refused_port_denied"] >= 1
        assert drops["tcp_drop_not_permitted"] == 1
        shown = run("status", "--socket", str(path)).stdout
        assert "\n  refused_auth_failed: " in shown.partition("dropped or refused since the start:")[2]


def test_a_local_service_that_is_not_there_is_the_latest_error(certificate: Certificate, tmp_path: Path) -> None:
    """Without health checks, over TCP and over UDP."""
    path = tmp_path / "c"
    with TcpEcho() as service:
        local = service.address
    no_udp = f"the local service does not accept UDP at 127.0.0.1:{local[1]}: Connection refused"
    with (
        server_process(tmp_path, certificate) as server,
        client_process(tmp_path, certificate, server_address(server), local, control_socket=str(path)) as client,
    ):
        public = ("127.0.0.1", public_port(client))
        assert ask(path, "/v1/status")["tunnels"][0]["error"] is None
        expect_reset(public)
        why = f"cannot reach 127.0.0.1:{local[1]}: Connection refused"
        (row,) = ask(path, "/v1/status")["tunnels"]
        assert (row["state"], row["error"]) == ("public", why)
        assert 0 <= time.time() - row["error_at"] < 60
        assert f"latest errors:\n  error: {why} (" in run("status", "--socket", str(path)).stdout
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:

            def is_noticed() -> bool:
                visitor.sendto(b"hello", public)
                return bool(ask(path, "/v1/status")["tunnels"][0]["error"] == no_udp)

            wait_until(is_noticed, READY_TIMEOUT, "UDP is the latest error")


def test_without_a_runtime_directory_a_line_says_so(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    line = (
        r"INFO control: no control socket, so status and other commands do not find this process: RUNTIME_DIRECTORY "
        r"and XDG_RUNTIME_DIR name no directory that only this user may change; set one of them, or control_socket to "
        r"a path$"
    )
    server = server_process(tmp_path, certificate)
    server.argv = with_empty_run(server.argv, "ro")
    with server:
        server.wait_for(line, READY_TIMEOUT)
        server_address(server)
    for option in ("off", str(tmp_path / "s")):
        with server_process(tmp_path, certificate, control_socket=option) as server:
            server_address(server)
            assert "no control socket" not in server.output()


def test_root_needs_no_runtime_directory(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, after ``su`` and from cron, no variable names one."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    port = free_port()
    server = server_process(tmp_path, certificate)
    server.argv = with_empty_run(server.argv, "rw")
    with TcpEcho() as service, server:
        address = server_address(server)
        server.wait_for(r"control socket: /run/asport-sync/server\.sock$", READY_TIMEOUT)
        enter = ["nsenter", f"--target={server.pid}", "--mount", f"--wd={REPOSITORY}"]

        def inside(*argv: str) -> str:
            return subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=60, check=True).stdout

        client = client_process(tmp_path, certificate, address, service.address, expected_port_range=port)
        client.argv = [*enter, *client.argv]
        with client:
            assert public_port(client) == port
            assert inside("stat", "--format=%a %U", "/run/asport-sync").split() == ["700", "root"]
            listed = inside(*command("list"))
            assert all(f" /run/asport-sync/{side}.sock " in listed for side in ("client", "server"))
            added = inside(*command("user", "add", "alice", "-c", str(tmp_path / "server.json")))
            assert re.search(r"^reloaded: user alice \(.*\): added$", added, re.MULTILINE)
            examined = inside(*command("doctor", "client", "-c", str(tmp_path / "client.json")))
            assert f"port {port}" in examined
            assert "port-taken" not in examined


def with_empty_run(argv: Sequence[str], option: Literal["ro", "rw"]) -> list[str]:
    """Returns the command that runs a program where ``/run`` is empty, read-only or not; its pid is the program's."""
    enter = ["unshare", "--mount"]
    said = subprocess.run([*enter, "true"], capture_output=True, text=True, timeout=60, check=False)
    if said.returncode != 0:
        pytest.skip(f"only root can have a /run of its own: {said.stderr.strip()}")
    return [*enter, "sh", "-c", f'mount -t tmpfs -o mode=755,{option} tmpfs /run && exec "$@"', "sh", *argv]


def test_nothing_is_running(tmp_path: Path) -> None:
    for name in ("status", "reload", "drain", "list"):
        said = run(name, XDG_RUNTIME_DIR=str(tmp_path), RUNTIME_DIRECTORY="")
        if "more than one" in said.stderr or said.returncode == 0:
            pytest.skip("this machine runs asport-sync as a service")
        assert (said.returncode, said.stdout) == (1, "")
        assert "no client or server is running" in said.stderr or "answers" in said.stderr
    said = run("status", "--socket", str(tmp_path / "missing"))
    assert said.stderr == f"asport-sync: {tmp_path / 'missing'}: no answer: No such file or directory\n"


# --- the library ------------------------------------------------------------------------------------------------------


def test_programs_have_none_unless_they_ask(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with TcpEcho() as service, tunnel(certificate, service.address):
        assert os.listdir(tmp_path) == []
    path = tmp_path / "my.sock"
    with TcpEcho() as service, tunnel(certificate, service.address, client={"control_socket": path}):
        assert ask(path, "/v1/status")["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_start_fails_where_none_can_be(certificate: Certificate, tmp_path: Path) -> None:
    server = Server(**server_options(certificate, control_socket=tmp_path / "missing" / "s"))
    with pytest.raises(ConfigError, match="cannot create the control socket"):
        server.start()
    assert not server.running
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(**server_options(certificate, status={"http": taken.getsockname()}))
        with pytest.raises(ConfigError, match=r"cannot listen on .*: Address already in use"):
            server.start()


def test_off_is_off(certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with server_process(tmp_path, certificate, control_socket="off") as server:
        server_address(server)
        assert os.listdir(tmp_path / "run") == []


# --- the status address -----------------------------------------------------------------------------------------------


def get(address: str, resource: str, **headers: str) -> tuple[int, str]:
    """Status code and body."""
    request = urllib.request.Request(f"http://{address}{resource}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()


def status_address(process: Process) -> str:
    return process.wait_for(r"status address: http://(\S+)/", READY_TIMEOUT)[1]


def test_the_status_address(certificate: Certificate, tmp_path: Path) -> None:
    with TcpEcho() as service, server_process(tmp_path, certificate, status={"http": "127.0.0.1:0"}) as server:
        address = server_address(server)
        options: dict[str, Any] = {"status": {"http": "127.0.0.1:0", "token": TOKEN}}
        with client_process(tmp_path, certificate, address, service.address, **options) as client:
            public_port(client)
            where = status_address(server)
            assert get(where, "/healthz") == (200, "ok\n")
            assert get(where, "/readyz") == (200, "ok\n")
            assert json.loads(get(where, "/v1/status")[1])["side"] == "server"
            assert "asport-sync" in get(where, "/")[1]
            assert get(where, "/v1/status", Host="evil.example")[0] == 403
            where = status_address(client)
            assert get(where, "/v1/status")[0] == 401
            assert get(where, "/readyz") == (200, "ok\n")
            found = get(where, "/v1/status", Authorization=f"Bearer {TOKEN}")
            assert (found[0], json.loads(found[1])["side"]) == (200, "client")
            assert TOKEN not in client.output()


def test_idle_connections_keep_nobody_out_of_the_status_address(certificate: Certificate) -> None:
    with Server(**server_options(certificate, status={"http": "127.0.0.1:0"})) as server:
        assert server._services is not None
        (shown,) = server._services._servers  # type: ignore[attr-defined]
        host, port = shown._sock.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(16):
                stack.enter_context(socket.create_connection((host, port)))
            assert get(f"{host}:{port}", "/healthz") == (200, "ok\n")
        assert counter(server, "control_requests_refused") >= 1


def test_a_client_without_its_server_is_alive_and_not_ready(certificate: Certificate) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        options = client_options(certificate, silent.getsockname(), ("127.0.0.1", 9), status={"http": "127.0.0.1:0"})
        with Client(**options) as client:
            assert client._services is not None
            (server,) = client._services._servers  # type: ignore[attr-defined]
            host, port = server._sock.getsockname()
            assert get(f"{host}:{port}", "/healthz") == (200, "ok\n")
            assert get(f"{host}:{port}", "/readyz") == (503, "1 of 1 tunnels are not public\n")
            get(f"{host}:{port}", "/v1/status", Host="evil.example")
            assert counter(client, "control_requests_refused") == 1


def test_what_hangs_is_named(certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        host = server._running().host
        assert host.unresponsive(READY_TIMEOUT) is None
        hold = threading.Event()
        host.call(hold.wait, READY_TIMEOUT)
        assert host.unresponsive(0.1) == "the events thread does not answer"
        hold.set()
        assert host.unresponsive(READY_TIMEOUT) is None
        hold.clear()
        host.pump.call(hold.wait, READY_TIMEOUT)
        assert host.unresponsive(0.1) == "the pump does not answer"
        hold.set()
        assert host.unresponsive(READY_TIMEOUT) is None


LOADED = """
import sys
from asport_sync.cli import main
status = main(sys.argv[1:])
print("loaded:", *sorted(sys.modules))
sys.exit(status)
"""


def test_it_loads_little(certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was asked by curl still has no OpenSSL and no HTTP library."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = write_config(tmp_path, "server", server_options(certificate))
    with Process([sys.executable, "-c", LOADED, "server", "run", "-c", str(path), "-v"], name="server") as server:
        server_address(server)
        ask(tmp_path / "asport-sync" / "server.sock", "/v1/status")
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
        loaded = server.wait_for(r"loaded: (.*)", READY_TIMEOUT)[1].split()
    assert not {"ssl", "_ssl", "http.client", "http.server", "email", "prometheus_client"} & set(loaded)
