"""What the surroundings of a process do to it: a log that nobody reads, forks, signals, limits, PID 1."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import AuthenticationError, Client, Server
from tests.e2e.test_commands import END, SCRIPT, run_script
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_options,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    server_process,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.sanitized import preloaded, takes_signals
from tests.support.services import Address, TcpEcho, host_and_port
from tests.support.traffic import UdpPeer, connect, echo, receive_exactly
from tests.support.waiting import wait_until

# --- a log that nobody reads ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unread(argv: list[str], ready: bytes) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A command whose stderr is a pipe that is full from the moment on at which it has said ``ready``."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=writer, cwd=REPOSITORY)
    try:
        said = b""
        while ready not in said:
            said += os.read(reader, 4096)
        os.set_blocking(writer, False)
        for piece in (bytes(4096), b"\0"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, piece)
        os.set_blocking(writer, True)
        yield process, said
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def test_a_server_whose_log_nobody_reads_serves_and_ends(certificate: Certificate, tmp_path: Path) -> None:
    quic = ("127.0.0.1", free_port())
    path = write_config(tmp_path, "server", server_options(certificate, server=host_and_port(quic)))
    argv = command("server", "run", "-c", str(path), "-vv")
    with unread(argv, b"accepting clients") as (process, _), both_echoes() as (service, _):
        for _ in range(10):
            stranger = Client(**client_options(certificate, quic, service.address, password="a guess"))
            with stranger, pytest.raises(AuthenticationError):
                stranger.wait_ready(READY_TIMEOUT)
        for _ in range(3):
            with Client(**client_options(certificate, quic, service.address)) as client:
                public = client.wait_ready(READY_TIMEOUT)
                assert echo(public, b"hello") == b"hello"
                with UdpPeer(public) as user:
                    user.ask(b"question", b"question")
        process.send_signal(signal.SIGTERM)
        assert process.wait(END) == 0


def test_a_client_whose_log_nobody_reads_serves_and_ends(certificate: Certificate, tmp_path: Path) -> None:
    port = free_port()
    with both_echoes() as (service, _), Server(**server_options(certificate)) as server:
        options = client_options(certificate, server.address, service.address, expected_port_range=port)
        path = write_config(tmp_path, "client", options)
        argv = command("client", "run", "-c", str(path), "-vv")
        with unread(argv, b"is public on port") as (process, _):
            for _ in range(50):  # a line or more each
                assert echo(("127.0.0.1", port), b"hello") == b"hello"
                with UdpPeer(("127.0.0.1", port)) as user:
                    user.ask(b"question", b"question")
            process.send_signal(signal.SIGTERM)
            assert process.wait(END) == 0


def test_a_start_that_fails_ends_although_nobody_reads_why(certificate: Certificate, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        path = write_config(tmp_path, "server", server_options(certificate, server=host_and_port(other.getsockname())))
        # Says something before it fails, and finds the pipe full from there on.
        path.chmod(0o644)
        with unread(command("server", "run", "-c", str(path)), b"holds a secret") as (process, _):
            assert process.wait(END) == 1


BLOCKED_HANDLER = """
import logging
inside, release = threading.Event(), threading.Event()
class Blocking(logging.Handler):
    def emit(self, record):
        if threading.current_thread().name.startswith(THREAD):
            inside.set()
            release.wait()
clients = [Client(**client_options(certificate, server.address, ("127.0.0.1", 9))) for _ in range(2)]
for client in clients:
    client.start()
    public = client.wait_ready(20)
log = logging.getLogger("asport_sync")
log.setLevel("DEBUG")
log.addHandler(Blocking())
with socket.create_connection(public), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
    visitor.sendto(b"x", public)
    clients.append(Client(**client_options(certificate, server.address, ("127.0.0.1", 9))))
    clients[-1].start()  # so that an events thread has something to log
    assert inside.wait(20)
    server.stop(0.5)
    for client in clients:
        client.stop(0.5)
print("stopped", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("thread", ["asport-events", "asport-pump", "asport-worker"])
def test_stop_ends_although_a_handler_of_the_program_blocks(certificate: Certificate, thread: str) -> None:
    done = run_script(certificate, BLOCKED_HANDLER.replace("THREAD", repr(thread)))
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


# --- forks ------------------------------------------------------------------------------------------------------------

FORK = """
import signal
from tests.e2e.tunnels import both_echoes
from tests.support.ports import free_port
from tests.support.traffic import UdpPeer, connect, echo
@contextlib.contextmanager
def child():
    # One that lives on, with everything that it has.
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
server.stop()
"""

STOPPED_BESIDE_A_CHILD = """
quic, port = free_port(), free_port()
server = Server(**server_options(certificate, server=f"127.0.0.1:{quic}"))
with both_echoes() as (service, _):
    client = Client(**client_options(certificate, ("127.0.0.1", quic), service.address, expected_port_range=port))
    server.start()
    client.start()
    public = client.wait_ready(20)
    with connect(public) as user, UdpPeer(public) as peer:
        user.sendall(b"x")
        assert user.recv(1) == b"x"
        peer.ask(b"x", b"x")
        with child():
            client.stop()
            server.stop()
            try:
                assert user.recv(1) == b""
            except ConnectionResetError:
                pass
            try:
                connect(public).close()
                raise SystemExit("the port is still open")
            except ConnectionRefusedError:
                pass
            server.start()
            client.start()
            assert client.wait_ready(20) == public
            assert echo(public, b"again") == b"again"
            client.stop()
            server.stop()
"""

BESIDE_A_CHILD = """
import json, os, signal
from asport_sync import Client, Server
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
server, client = json.loads(os.environ["OPTIONS"])
with Server(**server) as running:
    client["server"] = "%s:%d" % running.address
    with Client(**client) as joined:
        print("public:", joined.wait_ready(20)[1], flush=True)
        signal.sigwait({signal.SIGUSR1})
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            kinds = []
            for number in os.listdir("/proc/self/fd"):
                try:
                    kinds.append(os.readlink(f"/proc/self/fd/{number}"))
                except OSError:
                    pass
            os.write(writer, b"%d" % sum(kind.startswith("socket:") for kind in kinds))
            signal.sigwait({signal.SIGUSR1})
            os._exit(0)
        print("in the child:", os.read(reader, 100).decode(), flush=True)
        signal.sigwait({signal.SIGUSR1})
        os.kill(child, signal.SIGUSR1)
        os.wait()
"""


@contextlib.contextmanager
def beside_a_child(certificate: Certificate, local: Address) -> Iterator[tuple[Process, Address]]:
    """A program with a server and a client that forks when it is told to; the public address."""
    options = [
        server_options(certificate, max_workers=2),
        client_options(certificate, ("127.0.0.1", 9), local, max_workers=2),
    ]
    program = Process([sys.executable, "-c", BESIDE_A_CHILD], environment={"OPTIONS": json.dumps(options)})
    with program:
        yield program, ("127.0.0.1", int(program.wait_for(r"public: (\d+)", READY_TIMEOUT)[1]))
        program.send_signal(signal.SIGUSR1)
        assert program.wait(END) == 0, program.description()


def forks(program: Process) -> str:
    """Has it fork; how many sockets the child has."""
    program.send_signal(signal.SIGUSR1)
    return program.wait_for(r"in the child: (\d+)", READY_TIMEOUT)[1]


def test_a_forked_child_has_none_of_the_sockets(certificate: Certificate) -> None:
    """Public and local ones, listeners, UDP and QUIC; those that the engine has and those that workers have."""
    with both_echoes() as (service, _), beside_a_child(certificate, service.address) as (program, public):
        with UdpPeer(public) as peer, contextlib.ExitStack() as users:
            peer.ask(b"question", b"question")
            connections = [users.enter_context(connect(public)) for _ in range(4)]
            for connection in connections:
                ask(connection, seeded_bytes(1, 1 << 25))
                ask(connection, b"x")  # whoever relays it now has it for good
            assert forks(program) == "0"
            for connection in connections:
                ask(connection, b"and the parent has them all")


WHAT_IS_THE_PROGRAMS_OWN = """
from tests.e2e.tunnels import both_echoes
from tests.support.traffic import UdpPeer, connect
def in_a_child(descriptors):
    # How many of them a child lacks.
    child = os.fork()
    if child == 0:
        lacking = 0
        for number in descriptors:
            try:
                os.fstat(number)
            except OSError:
                lacking += 1
        os._exit(lacking)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with both_echoes() as (service, _):
    for local in (service.address, ("127.0.0.1", 9)):
        with Client(**client_options(certificate, server.address, local)) as client:
            public = client.wait_ready(20)
            for number in range(20):
                # Without a service they are reset, some of them before connect() has returned.
                resets = contextlib.suppress(*([] if local == service.address else [OSError]))
                with resets, connect(public) as user, UdpPeer(public) as peer:
                    user.sendall(b"x")
                    if local == service.address:
                        assert user.recv(1) == b"x"
                        peer.ask(b"x", b"x")
                    elif number % 2:
                        user.recv(1)
                own = [os.dup(2) for _ in range(3)]
                assert in_a_child(own) == 0
server.stop()
own += [os.dup(2) for _ in range(100)]
assert in_a_child(own) == 0
"""


def test_a_forked_child_keeps_what_is_the_programs_own(certificate: Certificate) -> None:
    """Whatever became of the tunnel's descriptors, which had the same numbers before."""
    done = run_script(certificate, WHAT_IS_THE_PROGRAMS_OWN)
    assert done.returncode == 0, done.stderr


def ask(connection: socket.socket, data: bytes) -> None:
    """Sends data to an echo, and takes the answer meanwhile."""
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    try:
        assert receive_exactly(connection, len(data)) == data
    finally:
        sender.join()


def test_a_stop_beside_a_forked_child_closes_everything(certificate: Certificate) -> None:
    done = run_script(certificate, FORK + STOPPED_BESIDE_A_CHILD)
    assert done.returncode == 0, done.stderr


def test_the_end_of_a_connection_arrives_beside_a_forked_child(certificate: Certificate) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        beside_a_child(certificate, listener.getsockname()) as (program, public),
    ):
        with connect(public) as user:
            user.sendall(b"x")
            service = listener.accept()[0]
            assert service.recv(1) == b"x"
            assert forks(program) == "0"
            service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            service.close()  # with a reset
            with contextlib.suppress(ConnectionResetError):
                assert user.recv(1) == b""


# --- programs without real threads ------------------------------------------------------------------------------------

REPLACED = """
import _thread, select
module, name = {"threads": (_thread, "start_new_thread"), "select": (select, "select")}[%r]
real = getattr(module, name)
setattr(module, name, lambda *arguments: real(*arguments))
client = Client(**client_options(certificate, server.address, ("127.0.0.1", 9)))
try:
    client.start()
except LifecycleError as problem:
    print(problem)
assert not client.running
"""

GEVENT = (
    """
import gevent.monkey
gevent.monkey.patch_all(%s)
"""
    + SCRIPT
)

LEFT_ALONE = """
client = Client(**client_options(certificate, server.address, ("127.0.0.1", 9)))
with client:
    client.wait_ready(20)
server.stop()
print("served")
"""

needs_gevent = pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")


@pytest.mark.parametrize("what", ["threads", "select"])
def test_a_program_whose_threads_are_none_is_told(certificate: Certificate, what: str) -> None:
    done = run_script(certificate, REPLACED % what)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"this program's {what}.* replaced by .*\n", done.stdout)


@needs_gevent
@pytest.mark.parametrize("how", ["", "thread=False"])
def test_gevent(certificate: Certificate, how: str) -> None:
    done = run_script(certificate, "", GEVENT % how)
    assert done.returncode == 1
    assert "replaced by gevent" in done.stderr.splitlines()[-1]


@needs_gevent
def test_gevent_that_leaves_threads_and_select_alone(certificate: Certificate) -> None:
    done = run_script(certificate, LEFT_ALONE, GEVENT % "thread=False, select=False")
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr


# --- signals ----------------------------------------------------------------------------------------------------------


def becomes(change: str, process: Process) -> Process:
    """Has a program started by a parent that has changed something for it."""
    script = f"import os, signal, sys; {change}; os.execvp(sys.argv[1], sys.argv[1:])"
    process.argv = [sys.executable, "-c", script, *process.argv]
    return process


@takes_signals
def test_a_hang_up_that_the_parent_ignores_is_ignored(certificate: Certificate, tmp_path: Path) -> None:
    """As under nohup(1)."""
    with (
        TcpEcho() as service,
        becomes("signal.signal(signal.SIGHUP, signal.SIG_IGN)", server_process(tmp_path, certificate)) as server,
    ):
        address = server_address(server)
        server.send_signal(signal.SIGHUP)
        with client_process(tmp_path, certificate, address, service.address) as client:
            assert echo(("127.0.0.1", public_port(client)), b"hello") == b"hello"
        server.send_signal(signal.SIGTERM)
        assert server.wait(END) == 0, server.description()


@takes_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_signals_that_the_parent_had_blocked(
    certificate: Certificate, tmp_path: Path, side: str, number: signal.Signals
) -> None:
    options = server_options(certificate)
    if side == "client":
        options = client_options(certificate, ("127.0.0.1", 9), ("127.0.0.1", 9))
    path = write_config(tmp_path, side, options)
    process = Process(command(side, "run", "-c", str(path), "-v"), name=side)
    with becomes("signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))", process):
        process.wait_for(r"INFO|WARNING", READY_TIMEOUT)
        process.send_signal(signal.SIGHUP)
        process.wait_for("configuration reloaded: ", READY_TIMEOUT)
        process.send_signal(number)
        try:
            assert process.wait(END) == 0, process.description()
        finally:
            process.kill()


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(preloaded()), reason="a sanitizer maps more addresses than there are")
@pytest.mark.parametrize("mebibytes", [128, 190, 256])
def test_little_address_space(certificate: Certificate, tmp_path: Path, mebibytes: int) -> None:
    """RLIMIT_AS counts what is reserved, used or not: stacks, and arenas of malloc()."""

    def limited(process: Process) -> Process:
        process.argv = ["/bin/sh", "-c", f'ulimit -v {mebibytes << 10} && exec "$@"', "sh", *process.argv]
        return process

    with (
        both_echoes() as (service, _),
        limited(server_process(tmp_path, certificate, max_workers=4)) as server,
        limited(
            client_process(tmp_path, certificate, server_address(server), service.address, max_workers=4)
        ) as client,
    ):
        public = ("127.0.0.1", public_port(client))
        data = seeded_bytes(1, 1 << 22)
        users = [threading.Thread(target=echo, args=(public, data)) for _ in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert echo(public, data) == data
        with UdpPeer(public) as peer:
            peer.ask(b"question", b"question")
        assert "thread" not in client.output() + server.output()


@functools.lru_cache(maxsize=1)
def no_process_namespaces() -> str | None:
    """Says why this process can't make them; None: it can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter of util-linux are not there"
    tried = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no process namespaces here: {tried.stderr.strip()}"


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def test_the_first_process_of_a_container_leaves_no_zombies(certificate: Certificate, tmp_path: Path) -> None:
    """Orphans become its children, which nobody else will ever wait for."""
    reason = no_process_namespaces()
    if reason is not None:
        pytest.skip(reason)
    server = server_process(tmp_path, certificate)
    server.argv = ["unshare", "--pid", "--fork", "--kill-child", *server.argv]
    with server:
        server_address(server)
        (first,) = children(server.pid)
        try:
            for number in range(3):
                done = tmp_path / f"done-{number}"
                orphan = '(while ! [ -e "$1.go" ]; do sleep 0.01; done; : > "$1") & exit 0'
                inside = ["nsenter", "-t", str(first), "-p", "sh", "-c", orphan, "sh", str(done)]
                # A sanitizer is for the server, and not for the shell.
                subprocess.run(inside, check=True, timeout=END, env={**os.environ, "LD_PRELOAD": ""})
                wait_until(lambda: len(children(first)) == 1, END, "the orphan has come to the first process")
                Path(f"{done}.go").touch()
                wait_until(done.exists, END, "the orphan has done what it had to do")
                wait_until(lambda: not children(first), END, "nothing is left of the orphan")
        finally:
            os.kill(first, signal.SIGTERM)
        assert server.wait(END) == 0, server.description()
