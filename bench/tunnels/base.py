"""What every tunnel that is measured has in common: where it runs, how it is started, watched and ended."""

from __future__ import annotations

import abc
import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.load import ECHO_REQUEST
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.process import Process, ProcessError
from tests.support.services import Address

Carrier = Literal["native", "quic"]
CongestionControl = Literal["cubic", "new_reno", "bbr"]
Transport = Literal["tcp", "udp"]

# Seconds between two looks at whether a process is ready: what a start's time is exact to.
POLL_INTERVAL = 0.002
# Seconds until a tunnel that works must be up.
READY_TIMEOUT = 30.0
# Seconds one try to get a byte through a tunnel may take. It is long, as a try given up is a connection that the
# tunnel has to end; and a tunnel that has lost one early connection must not stop the wait for the next.
TRY_TIMEOUT = 1.0
# Seconds a process gets to end by itself. Some peers wait for what is still open.
STOP_TIMEOUT = 5.0

CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>
CLONE_NEWNET = 0x40000000  # <sched.h>
TCP_LISTEN = "0A"  # state in /proc/net/tcp


class TunnelFailed(Exception):
    """A tunnel did not come up; the text holds the end of what its processes wrote."""


@dataclass(frozen=True)
class Place:
    """Where a tunnel runs.

    Attributes:
        directory: An empty folder for its configuration.
        service: The local service as the client reaches it, TCP and UDP on the same port number.
        server_address: Where the tunnel's own port listens, and the client connects to.
        public_address: Where the public ports listen.
        server_prefix: Put before the server's command line; a program that replaces itself by the rest, so that the
            process keeps its pid (``ip netns exec NAME``, ``prlimit --nofile=N``, ``taskset``).
        client_prefix: The same for the client.
        echo_request: What a connection begins with to make the service send back what follows.
    """

    directory: Path
    service: Address
    server_address: str = "127.0.0.1"
    public_address: str = "127.0.0.1"
    server_prefix: tuple[str, ...] = ()
    client_prefix: tuple[str, ...] = ()
    echo_request: bytes = ECHO_REQUEST


@dataclass(frozen=True)
class Options:
    """What of a tunnel's settings may differ from its defaults.

    Attributes:
        carrier: What UDP goes in: QUIC datagrams or streams. For asport and asport-sync only.
        congestion_control: None: the default. For asport and asport-sync only.
    """

    carrier: Carrier = "native"
    congestion_control: CongestionControl | None = None


@dataclass(frozen=True)
class Site:
    """What a tunnel's configuration is made of: the place, and what was chosen for this run.

    Attributes:
        place: Where it runs.
        options: What differs from the defaults.
        certificate: The server's, for the name "localhost", with what the client has to trust.
        tunnel_port: Where the server listens for the client, TCP or UDP.
        public_port: The public port, TCP and UDP.
    """

    place: Place
    options: Options
    certificate: Certificate
    tunnel_port: int
    public_port: int

    @property
    def directory(self) -> Path:
        """Where the configuration goes."""
        return self.place.directory

    @property
    def server(self) -> Address:
        """Address of the tunnel's own port."""
        return self.place.server_address, self.tunnel_port

    @property
    def public(self) -> Address:
        """Address of the public port."""
        return self.place.public_address, self.public_port


@dataclass(frozen=True)
class Commands:
    """Command lines of the two sides, without the place's prefixes."""

    server: Sequence[str | Path]
    client: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)


class Running:
    """A tunnel that is up. What asks for the numbers of a process that has ended gets an OSError.

    Attributes:
        tcp: The public TCP address.
        udp: The public UDP address, or None where the tunnel carries no UDP.
        server_pid: The server's process, 0 for the ruler that has none.
        client_pid: The client's, likewise.
        ready_seconds: From the start of each process until it was ready; server: its port bound; client: a byte came
            back through the public TCP port.
    """

    def __init__(
        self,
        tcp: Address,
        udp: Address | None,
        processes: tuple[Process, ...],
        ready_seconds: tuple[float, float],
    ) -> None:
        """``processes``: server and client, or none at all; they are not ended by this object."""
        self.tcp = tcp
        self.udp = udp
        self.server_pid, self.client_pid = (process.pid for process in processes) if processes else (0, 0)
        self.ready_seconds = ready_seconds
        self._processes = processes

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time of server and client so far, all their threads included."""
        return _cpu_seconds(self.server_pid), _cpu_seconds(self.client_pid)

    def memory_kib(self) -> tuple[int, int]:
        """Resident memory of server and client."""
        return _memory_kib(self.server_pid), _memory_kib(self.client_pid)

    def alive(self) -> bool:
        """Tell whether both processes still run."""
        try:
            for process in self._processes:
                process.check_running()
        except ProcessError:
            return False
        return True

    def logs(self) -> str:
        """Command lines, states and the end of what both processes have written."""
        return "\n".join(process.description() for process in self._processes)


class Tunnel(abc.ABC):
    """A tunnel that can be installed, started and measured.

    Attributes:
        name: As the tables call it.
        encrypted: Whether what it carries is encrypted between its two sides.
        udp: Whether it carries UDP.
        transport: What its own port is.
    """

    name: str
    encrypted: bool = True
    udp: bool = True
    transport: Transport

    @abc.abstractmethod
    def version(self) -> str:
        """Return the release that is measured."""

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Return why it can't be run here, or None where it can."""

    @abc.abstractmethod
    def install(self) -> None:
        """Make sure that it is installed, which may take minutes.

        Raises:
            NotInstalled: It is not, and can't be got here; the text is the reason, in one line.
        """

    @abc.abstractmethod
    def configure(self, site: Site) -> Commands:
        """Write the configuration files and return the command lines."""

    @contextlib.contextmanager
    def open(
        self, place: Place, *, carrier: Carrier = "native", congestion_control: CongestionControl | None = None
    ) -> Iterator[Running]:
        """Start both sides, wait until bytes go through, and end both with the block.

        Raises:
            TunnelFailed: It did not come up.
        """
        options = Options(carrier, congestion_control)
        # Nothing of the place's addresses need exist in this process's own namespace, so that is not asked about.
        site = Site(place, options, self_signed(place.directory), free_port(), free_port())
        commands = self.configure(site)
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            server = stack.enter_context(
                started([*place.server_prefix, *commands.server], f"{self.name} server", commands.environment)
            )
            wait_bound(server, self.transport, site.tunnel_port)
            server_seconds = time.monotonic() - began
            began = time.monotonic()
            client = stack.enter_context(
                started([*place.client_prefix, *commands.client], f"{self.name} client", commands.environment)
            )
            both = (server, client)
            _in_namespace_of(server.pid, lambda: _wait_answers(both, site.public, place.echo_request))
            client_seconds = time.monotonic() - began
            if self.udp:
                wait_bound(server, "udp", site.public_port)
            yield Running(site.public, site.public if self.udp else None, both, (server_seconds, client_seconds))


@contextlib.contextmanager
def started(argv: Sequence[str | Path], name: str, environment: Mapping[str, str]) -> Iterator[Process]:
    """A process that is reaped when the block ends; one that ignores SIGTERM is killed, and that is no failure here."""
    process = Process(argv, name=name, environment=environment)
    process.stop_timeout = STOP_TIMEOUT
    process.__enter__()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessError):
            process.stop()


def wait_bound(process: Process, transport: Transport, port: int) -> None:
    """Wait until the port is bound in the network namespace of the process."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not _is_bound(process.pid, transport, port):
        _check((process,), deadline, f"{transport} port {port} was not bound")
        time.sleep(POLL_INTERVAL)


def _is_bound(pid: int, transport: Transport, port: int) -> bool:
    local = f":{port:04X}"
    for name in (transport, f"{transport}6"):
        # What the kernel shows here is of the process's own namespace, whichever this one is in.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{name}") as lines:
            next(lines, None)  # the headline
            for line in lines:
                fields = line.split(maxsplit=4)
                # Listening sockets come first; behind them may be thousands of others that are closed or open.
                if transport == "tcp" and fields[3] != TCP_LISTEN:
                    break
                if fields[1].endswith(local):
                    return True
    return False


def _wait_answers(processes: Sequence[Process], address: Address, request: bytes) -> None:
    """Wait until a byte sent to the public address comes back; called in the server's network namespace."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not _answers(address, request):
        _check(processes, deadline, f"nothing came back through port {address[1]}")
        time.sleep(POLL_INTERVAL)


def _answers(address: Address, request: bytes) -> bool:
    try:
        with socket.create_connection(address, timeout=TRY_TIMEOUT) as connection:
            connection.sendall(request + b"?")
            return connection.recv(1) != b""
    except OSError:
        return False


def _check(processes: Sequence[Process], deadline: float, what: str) -> None:
    """Raise TunnelFailed if a process has ended or the deadline has passed."""
    try:
        for process in processes:
            process.check_running()
    except ProcessError as error:
        raise TunnelFailed(str(error)) from None
    if time.monotonic() > deadline:
        logs = "\n".join(process.description() for process in processes)
        raise TunnelFailed(f"within {READY_TIMEOUT:g} s {what}\n{logs}")


def _in_namespace_of(pid: int, function: Callable[[], None]) -> None:
    """Call a function in the network namespace of a process, in a thread where that is another one."""
    theirs = f"/proc/{pid}/ns/net"
    if os.stat(theirs).st_ino == os.stat("/proc/self/ns/net").st_ino:
        function()
        return
    errors: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            # os.setns() exists from Python 3.12 on only.
            library = ctypes.CDLL(None, use_errno=True)
            descriptor = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if library.setns(descriptor, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), theirs)
            finally:
                os.close(descriptor)
            function()
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=enter_and_call, name=f"in the namespace of {pid}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _cpu_seconds(pid: int) -> float:
    if pid == 0:
        return 0.0
    # The clock of another process's processor time, as clock_getcpuclockid(3) names it: the same sum as in
    # /proc/PID/stat, but in nanoseconds and not in hundredths of a second.
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def _memory_kib(pid: int) -> int:
    if pid == 0:
        return 0
    # Exact, where /proc/PID/status may be behind by some pages a thread.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise OSError(f"no resident size in smaps_rollup of process {pid}")
