"""The commands as processes: what they log and how they end. Also programs that use the library and forget to stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tunnels import (
    CLIENT_READY,
    PASSWORD,
    READY_TIMEOUT,
    client_options,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    server_process,
    traffic,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.sanitized import takes_signals
from tests.support.services import Address, TcpEcho, host_and_port
from tests.support.traffic import connect, echo

# Seconds in which a command must end once it is asked to; it ends in a fraction of one.
END = 15.0


@contextlib.contextmanager
def running_commands(certificate: Certificate, directory: Path) -> Iterator[tuple[Process, Process, Address]]:
    """Server and client as commands in front of an echo service; the public address."""
    with (
        TcpEcho() as service,
        server_process(directory, certificate) as server,
        client_process(directory, certificate, server_address(server), service.address) as client,
    ):
        yield server, client, ("127.0.0.1", public_port(client))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("which", ["server", "client"])
def test_a_signal_ends_a_command_with_traffic_running(
    certificate: Certificate, tmp_path: Path, which: str, number: signal.Signals
) -> None:
    with running_commands(certificate, tmp_path) as (server, client, public):
        process, other = (server, client) if which == "server" else (client, server)
        with traffic(public):
            process.send_signal(number)
            assert process.wait(END) == 0, process.description()
        assert "Traceback" not in process.output()
        # The other side was told, and doesn't have to wait for a timeout.
        other.wait_for("closed by the server" if which == "server" else "connection ended", READY_TIMEOUT)


LOADED = """
import sys
from asport_sync.cli import main
status = main(sys.argv[1:])
print("loaded:", *sorted(sys.modules))
sys.exit(status)
"""


# What no running client or server needs: packages are meant with all their modules. OpenSSL takes megabytes in each
# process, PyYAML some as well; GnuTLS does what there is to do. ``python -m tests.bounds.footprint`` measures the rest.
UNUSED = {
    *("_hashlib", "_ssl", "asyncio", "concurrent", "cryptography", "ctypes", "datetime", "email", "hashlib", "html"),
    *("http", "importlib.resources", "multiprocessing", "prometheus_client", "secrets", "ssl", "subprocess"),
    *("tempfile", "tomllib", "unittest", "xml", "yaml", "zipfile"),
    *("asport_sync.doctor", "asport_sync.testing", "asport_sync.trust", "asport_sync.config.convert"),
    *("asport_sync.config.example", "asport_sync.config.schema", "asport_sync.config.structure"),
}


@pytest.mark.parametrize("side", ["server", "client"])
def test_what_runs_loads_no_library_that_it_does_not_use(certificate: Certificate, tmp_path: Path, side: str) -> None:
    options = server_options(certificate)
    if side == "client":
        options = client_options(certificate, ("127.0.0.1", 9), ("127.0.0.1", 9))
    path = write_config(tmp_path, side, options)
    with Process([sys.executable, "-c", LOADED, side, "run", "-c", str(path), "-v"], name=side) as process:
        process.wait_for(r"INFO|WARNING", READY_TIMEOUT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END) == 0, process.description()
        loaded = process.wait_for(r"loaded: (.*)", READY_TIMEOUT)[1].split()
    assert f"asport_sync.{side}.{side}" in loaded
    unused = {*UNUSED, "asport_sync.server" if side == "client" else "asport_sync.client"}
    assert not {each for each in loaded if any(f"{each}.".startswith(f"{name}.") for name in unused)}


def test_a_second_signal_ends_it_at_once(certificate: Certificate, tmp_path: Path) -> None:
    with running_commands(certificate, tmp_path) as (_, client, _):
        client.send_signal(signal.SIGTERM)
        client.send_signal(signal.SIGTERM)
        assert client.wait(END) in (0, -signal.SIGTERM)


def test_one_line_per_connection_at_info(certificate: Certificate, tmp_path: Path) -> None:
    with running_commands(certificate, tmp_path) as (server, client, public):
        with connect(public) as user:
            user.sendall(b"12345")
            assert user.recv(5) == b"12345"
            source = user.getsockname()[1]
        line = rf"INFO server: port {public[1]}: connection from 127\.0\.0\.1:{source}: finished .*5 bytes .*5 bytes"
        server.wait_for(line, READY_TIMEOUT)
        client.wait_for(rf"INFO client: connection from 127\.0\.0\.1:{source}: finished", READY_TIMEOUT)
        assert PASSWORD not in server.output() + client.output()


def test_quiet_by_default(certificate: Certificate, tmp_path: Path) -> None:
    """The configuration's level is warn: a client without trouble says nothing."""
    with TcpEcho() as service, server_process(tmp_path, certificate) as server:
        options = client_options(certificate, server_address(server), service.address)
        path = write_config(tmp_path, "quiet", options)
        with Process(command("client", "run", "-c", str(path)), name="client") as client:
            found = server.wait_for(r"has port (\d+)", READY_TIMEOUT)
            assert echo(("127.0.0.1", int(found[1])), b"hello") == b"hello"
            assert client.output() == ""


def test_a_refused_client_says_why_and_goes_on(certificate: Certificate, tmp_path: Path) -> None:
    with server_process(tmp_path, certificate) as server:
        address = server_address(server)
        with client_process(tmp_path, certificate, address, ("127.0.0.1", 9), password="a guess") as client:
            client.wait_for(r"WARNING client: .*authentication failed", READY_TIMEOUT)
            server.wait_for(r"WARNING server: .*authentication failed", READY_TIMEOUT)
            assert "a guess" not in client.output() + server.output()
            client.send_signal(signal.SIGTERM)
            assert client.wait(END) == 0


def test_what_a_stranger_says_is_no_command_to_a_terminal(certificate: Certificate, tmp_path: Path) -> None:
    """The reason in a CONNECTION_CLOSE reaches the log before the stranger has proven anything."""
    pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    path = write_config(tmp_path, "server", server_options(certificate))
    with (
        Process(command("server", "run", "-c", str(path), "-vv"), name="server") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(server_address(server))
        configuration = QuicConfiguration(alpn_protocols=["asport"], server_name="localhost")
        stranger = QuicConnection(configuration=configuration)
        stranger.connect(sock.getpeername(), now=time.time())
        for data, _ in stranger.datagrams_to_send(now=time.time()):
            sock.send(data)
        stranger.close(error_code=0, frame_type=0, reason_phrase="a\x1b[2J\x9b31m\u202eb\nforged")
        for data, _ in stranger.datagrams_to_send(now=time.time()):
            sock.send(data)
        server.wait_for(r"connection failed: .* 'a\\x1b\[2J\\x9b31m\\u202eb\\nforged'$", READY_TIMEOUT)


def test_loose_permissions_are_warned_of(certificate: Certificate, tmp_path: Path) -> None:
    path = write_config(tmp_path, "client", client_options(certificate, ("127.0.0.1", 9), ("127.0.0.1", 9)))
    path.chmod(0o644)
    with Process(command("client", "run", "-c", str(path)), name="client") as client:
        client.wait_for(r"WARNING cli: .*client\.json holds a secret and can be read by everyone", READY_TIMEOUT)


def test_key_log(certificate: Certificate, tmp_path: Path) -> None:
    """SSLKEYLOGFILE gets what Wireshark needs to read the connection (NSS key log format)."""
    log = tmp_path / "keys.log"
    with TcpEcho() as service, server_process(tmp_path, certificate) as server:
        options = client_options(certificate, server_address(server), service.address)
        path = write_config(tmp_path, "client", options)
        with Process(
            command("client", "run", "-c", str(path), "-v"), name="client", environment={"SSLKEYLOGFILE": str(log)}
        ) as client:
            client.wait_for(CLIENT_READY, READY_TIMEOUT)
        labels = {line.split()[0] for line in log.read_text().splitlines() if not line.startswith("#")}
    assert {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"} <= labels
    assert log.stat().st_mode & 0o077 == 0


def test_a_key_log_of_the_environment_that_cannot_be_written(certificate: Certificate, tmp_path: Path) -> None:
    """Both sides warn and go on. The configuration's key ends the command, and the message names the key."""
    missing = tmp_path / "missing" / "keys.log"
    environment = {"SSLKEYLOGFILE": str(missing)}
    ignored = rf"WARNING {{}}: SSLKEYLOGFILE is ignored: .*{missing}: No such file or directory"
    server_path = write_config(tmp_path, "server", server_options(certificate))
    run = command("server", "run", "-c", str(server_path), "-v")
    with TcpEcho() as service, Process(run, name="server", environment=environment) as server:
        options = client_options(certificate, server_address(server), service.address)
        path = write_config(tmp_path, "client", options)
        run = command("client", "run", "-c", str(path), "-v")
        with Process(run, name="client", environment=environment) as client:
            client.wait_for(CLIENT_READY, READY_TIMEOUT)
            client.wait_for(ignored.format("client"), READY_TIMEOUT)
        server.wait_for(ignored.format("server"), READY_TIMEOUT)
    for side, keys in (("client", options), ("server", server_options(certificate))):
        path = write_config(tmp_path, side, {**keys, "keylog": str(missing)})
        with Process(command(side, "run", "-c", str(path)), name=side, environment=environment) as process:
            assert process.wait(END) == 1, process.description()
            process.wait_for(rf"asport-sync: keylog: .*{missing}: No such file or directory", READY_TIMEOUT)


def test_systemd_is_told(certificate: Certificate, tmp_path: Path) -> None:
    """READY once the service accepts clients, and STOPPING before it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_TIMEOUT)
        path = write_config(tmp_path, "server", server_options(certificate))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Process(command("server", "run", "-c", str(path)), name="server", environment=environment) as server:
            assert manager.recv(1000).startswith(b"READY=1\nSTATUS=")
            server.send_signal(signal.SIGTERM)
            assert server.wait(END) == 0
            assert manager.recv(1000) == b"STOPPING=1"


def test_a_client_is_ready_for_systemd_once_it_is_public_if_its_file_says_so(
    certificate: Certificate, tmp_path: Path
) -> None:
    """And the state names the public address, on both sides."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, TcpEcho() as service:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_TIMEOUT)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        address = ("127.0.0.1", free_port())
        options = client_options(certificate, address, service.address, ready="public")
        path = write_config(tmp_path, "client", options)
        with Process(command("client", "run", "-c", str(path)), name="client", environment=environment):
            # Nothing listens there yet.
            for _ in range(2):
                assert manager.recv(1000).startswith(b"STATUS=not connected: ")
            options = server_options(certificate, server=host_and_port(address))
            path = write_config(tmp_path, "server", options)
            with Process(command("server", "run", "-c", str(path)), name="server", environment=environment):
                found: dict[str, str] = {}
                while len(found) < 2 or "public: none" in found["server"]:
                    message = manager.recv(1000).decode()
                    state = message.partition("STATUS=")[2]
                    if message.startswith("READY=1") and "public on" in message:
                        found["client"] = state
                    elif "accepting clients on" in message:
                        found["server"] = state
        port = found["client"].removeprefix("public on 127.0.0.1:")
        assert found["server"] == f"accepting clients on {host_and_port(address)}; public: 127.0.0.1:{port}"


def test_json_lines_of_a_command(certificate: Certificate, tmp_path: Path) -> None:
    """The key of the file, or the option instead of it."""
    for key, arguments in (("json", ()), ("text", ("--log-format", "json"))):
        path = write_config(tmp_path, "server", server_options(certificate, log_format=key))
        with Process(command("server", "run", "-c", str(path), "-v", *arguments), name="server") as server:
            server.wait_for(r'"text": "accepting clients on ', READY_TIMEOUT)
            server.send_signal(signal.SIGTERM)
            assert server.wait(END) == 0
            records = [json.loads(line) for line in server.output().splitlines()]
        assert {"time", "level", "logger", "text"} == set().union(*records)
        assert ("INFO", "lifecycle") in [(each["level"], each["logger"]) for each in records]


# --- programs that use the library ------------------------------------------------------------------------------------

SCRIPT = """
import contextlib, os, socket, sys, threading
from pathlib import Path
from asport_sync import Client, LifecycleError, Server
from tests.e2e.tunnels import client_options, server_options
from tests.support.certificates import Certificate
certificate = Certificate(*map(Path, sys.argv[1:4]))
server = Server(**server_options(certificate))
server.start()
"""
WITH_TRAFFIC = """
listener = socket.create_server(("127.0.0.1", 0))
def echo(connection):
    with contextlib.suppress(OSError):  # the end of the tunnel may reach it before the end of the interpreter
        while data := connection.recv(65536):
            connection.sendall(data)
def serve():
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
client = Client(**client_options(certificate, server.address, listener.getsockname()))
client.start()
user = socket.create_connection(client.wait_ready(20))
def send():
    with contextlib.suppress(OSError):
        while True:
            user.sendall(bytes(65536))
threading.Thread(target=send, daemon=True).start()
received = 0
while received < 20_000_000:
    received += len(user.recv(65536))
"""


def run_script(certificate: Certificate, body: str, head: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    files = [certificate.certificate, certificate.private_key, certificate.trusted]
    return subprocess.run(
        [sys.executable, "-c", head + body, *files],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )


@pytest.mark.parametrize("body", ["", WITH_TRAFFIC, WITH_TRAFFIC + "sys.exit(0)"], ids=["idle", "traffic", "sys.exit"])
def test_a_program_that_forgets_to_stop_ends(certificate: Certificate, body: str) -> None:
    done = run_script(certificate, body)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_that_fails_shows_its_own_error(certificate: Certificate) -> None:
    done = run_script(certificate, WITH_TRAFFIC + "raise ValueError('my own')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: my own"
    assert done.stderr.count("Traceback") == 1


def test_a_forked_child_may_not_use_it(certificate: Certificate) -> None:
    done = run_script(
        certificate,
        """
child = os.fork()
if child == 0:
    failures = 0
    for call in (server.start, lambda: server.address, server.run_forever):
        try:
            call()
            failures += 1
        except LifecycleError:
            pass
    server.stop()  # nothing of the parent's is touched
    assert not server.running
    other = Server(**server_options(certificate))
    other.start()
    other.stop()
    os._exit(failures)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with Client(**client_options(certificate, server.address, ("127.0.0.1", 9))) as client:
    client.wait_ready(20)
server.stop()
sys.exit(status)
""",
    )
    assert done.returncode == 0, done.stderr


def test_run_forever_in_another_thread(certificate: Certificate) -> None:
    done = run_script(
        certificate,
        """
client = Client(**client_options(certificate, server.address, ("127.0.0.1", 9)))
thread = threading.Thread(target=client.run_forever)
thread.start()
while True:
    try:
        client.wait_ready(20)
        break
    except LifecycleError:
        continue  # not started yet
client.stop()
thread.join(20)
sys.exit(thread.is_alive())
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_waits_needs_a_start_before(certificate: Certificate) -> None:
    """As docs/api.md says: wait_ready() never waits for another thread to start the client."""
    done = run_script(
        certificate,
        """
client = Client(**client_options(certificate, server.address, ("127.0.0.1", 9)))
found = []
def wait():
    try:
        found.append(client.wait_ready(20))
    except LifecycleError as problem:
        found.append(str(problem))
early = threading.Thread(target=wait)
early.start()
early.join(20)
assert found == ["this Client is not started"], found
client.start()
late = threading.Thread(target=lambda: (wait(), client.stop()))
late.start()
assert client.run_forever() is None
late.join(20)
assert found[1][0] == "127.0.0.1", found
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


@takes_signals
def test_whichever_thread_takes_a_signal_it_ends_run_forever(certificate: Certificate) -> None:
    """The kernel chooses the thread; Python runs handlers in the main thread only, which sleeps."""
    done = run_script(
        certificate,
        """
import signal, time
def threads():
    return sorted((t for t in threading.enumerate() if t is not threading.main_thread()), key=lambda t: t.name)
def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
earlier = handlers()
def send(number, which):
    client.wait_ready(20)
    while any(handler == before for handler, before in zip(handlers(), earlier)):
        time.sleep(0.001)  # until run_forever is there
    signal.pthread_kill(threads()[which].ident, signal.SIGUSR1)
    signal.pthread_kill(threads()[which].ident, number)
signal.signal(signal.SIGUSR1, lambda *_: None)
client = Client(**client_options(certificate, server.address, ("127.0.0.1", 9)))
with client:
    client.wait_ready(20)
    names = [t.name for t in threads()]
for number in (signal.SIGINT, signal.SIGTERM):
    for which in range(len(names)):
        client.start()
        sender = threading.Thread(target=send, args=(number, which), name="zzz", daemon=True)
        sender.start()
        client.run_forever()
        sender.join(20)
server.stop()
print(*names)
""",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    # Of the server and of the client.
    assert [name.rstrip("0123456789-") for name in done.stdout.split()].count("asport-engine") == 2


STOP_IN_HANDLER = """
import json, os, signal
from asport_sync import Server
server = Server(**json.loads(os.environ["SERVER_OPTIONS"]))
server.start()
run_stop = server._host.engine.stop
def interrupted():
    # The second signal finds the main thread inside stop().
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass
    run_stop()
server._host.engine.stop = interrupted
signal.signal(signal.SIGTERM, lambda *_: server.stop())
print("started", flush=True)
signal.pause()
print("stopped", flush=True)
"""


def test_a_handler_that_stops_may_be_called_twice(certificate: Certificate) -> None:
    environment = {"SERVER_OPTIONS": json.dumps(server_options(certificate))}
    program = Process([sys.executable, "-c", STOP_IN_HANDLER], name="program", environment=environment)
    with program:
        program.wait_for("started", END)
        program.send_signal(signal.SIGTERM)
        try:
            assert program.wait(END) == 0, program.description()
        finally:
            program.kill()
    assert "stopped" in program.output()


# --- which ngtcp2 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ("system, fallback", r"WARNING .*using the system's ngtcp2 \S+: the build could not get the source"),
        ("system", r"INFO .*using the system's ngtcp2 \S+$"),
        ("bundled, adjusted", ""),
    ],
)
def test_a_library_that_nobody_chose_is_told_at_start(
    certificate: Certificate, tmp_path: Path, origin: str, line: str
) -> None:
    """The commands, with a module in which they find that they were built otherwise."""
    (tmp_path / "sitecustomize.py").write_text(
        "from asport_sync import engine\n"
        "real = engine.versions\n"
        f"engine.versions = lambda: {{**real(), 'ngtcp2_origin': {origin!r}}}\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path}
    with TcpEcho() as service:
        server_file = write_config(tmp_path, "server", server_options(certificate))
        server_argv = command("server", "run", "-c", str(server_file), "-v")
        with Process(server_argv, name="server", environment=environment) as server:
            options = client_options(certificate, server_address(server), service.address)
            client_file = write_config(tmp_path, "client", options)
            client_argv = command("client", "run", "-c", str(client_file), "-v")
            with Process(client_argv, name="client", environment=environment) as client:
                public_port(client)
                for output in (server.output(), client.output()):
                    told = [text for text in output.splitlines() if "using the system's ngtcp2" in text]
                    assert len(told) == (1 if line else 0), output
                    assert not line or re.search(line, told[0])
    with Process(command("--version"), environment=environment) as asked:
        asked.wait_for(rf"^ngtcp2 \S+ \({origin}\)$")
