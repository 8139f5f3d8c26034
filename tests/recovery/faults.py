"""The faults: how each is made, when it ends, and what has to come back.

A fault is set up once and may then happen any number of times, so that a client that has recovered has to do it again.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import datetime
import logging
import random
import re
import signal
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from asport_sync import Client
from asport_sync.host.host import Host
from asport_sync.runtime import sockets
from asport_sync.runtime.log import logger
from tests.e2e.tunnels import (
    SERVER_READY,
    both_echoes,
    client_options,
    client_process,
    command,
    server_options,
    server_process,
    write_config,
)
from tests.engine.middle import Middle
from tests.path.network import INTERFACE, NetworkPath
from tests.recovery.first_byte import first_byte
from tests.support.certificates import Authority, Certificate
from tests.support.data import seeded_bytes
from tests.support.namespaces import unavailable
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho
from tests.support.traffic import UdpPeer, connect, receive_exactly
from tests.support.waiting import wait_until

# Seconds until everything is back at the latest; only a failure waits so long.
BACK = 60.0
# Up to so many seconds pass before a fault, so that it meets every phase of the client's timers.
PHASE = 1.0

Made = TypeVar("Made", bound="Fault")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How long the faults last.

    Attributes:
        stands: Seconds that a connection stands before a fault. The pauses of a client depend on it, up to 2 s.
        idle: The server's idle timeout, seconds.
        stopped: Seconds that a process is stopped.
        away: Seconds that a network, or a server, is away.
        blip: The same for one that is missed for less than the idle timeout.
    """

    stands: float
    idle: float
    stopped: float
    away: float
    blip: float


FULL = Scale(stands=2.2, idle=10.0, stopped=15.0, away=30.0, blip=5.0)
# Everything passes the idle timeout here, too, only sooner.
BRIEF = Scale(stands=0.1, idle=1.5, stopped=2.0, away=2.0, blip=0.7)


class Fault(abc.ABC):
    """One fault. ``happen`` makes it, ends it, and waits until a byte comes through the public port.

    Args:
        directory: For files.
        scale: How long things last.

    Attributes:
        name: For the command line.
        title: For people.
        how: How it is made, and when it ends.
        promise: Seconds; None: what is given by the time of another row or of no importance.
        repetitions: How often it is to be measured.
        why_fewer: Where that is less than 20: why.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    how: ClassVar[str]
    promise: ClassVar[float | None] = None
    repetitions: ClassVar[int] = 20
    why_fewer: ClassVar[str] = ""

    def __init__(self, directory: Path, scale: Scale) -> None:
        self.directory = directory
        self.scale = scale
        self._stack = contextlib.ExitStack()

    @staticmethod
    def unavailable() -> str | None:
        """Say why this fault can't be made here, or return None where it can."""
        return None

    @abc.abstractmethod
    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Start what is needed; the first byte has come through when it returns."""

    @abc.abstractmethod
    def happen(self) -> float:
        """Return the seconds from the fault's end to the first byte."""

    @abc.abstractmethod
    def description(self) -> str:
        """What the programs under test have to say, where it went wrong."""

    def let_it_stand(self) -> None:
        """Wait until the next fault is due."""
        time.sleep(self.scale.stands + random.random() * PHASE)

    def once(self) -> float:
        """As ``happen``, with that in the error."""
        try:
            return self.happen()
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{self.description()}") from error

    def __enter__(self: Made) -> Made:
        with contextlib.ExitStack() as stack:
            self.set_up(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


# --- on loopback ------------------------------------------------------------------------------------------------------


class Loopback(Fault):
    """Server and client on loopback, as processes."""

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Start both."""
        self.authority = Authority()
        self.certificate = self.authority.issue(self.directory / "certificate")
        self.quic: Address = ("127.0.0.1", free_port())
        self.public: Address = ("127.0.0.1", free_port())
        self.service, self.datagrams = stack.enter_context(both_echoes())
        stack.callback(self._end)
        self.server: Process | None = None
        self.client: Process | None = None
        self.start_server()
        self.start_client(stack)
        self.back()

    def _end(self) -> None:
        for process in (self.client, self.server):
            if process is not None:
                process.__exit__(None, None, None)

    def start_server(self, certificate: Certificate | None = None) -> float:
        """Start the server, in place of one that was killed; returns when it was ready."""
        if self.server is not None:
            self.server.__exit__(None, None, None)
        self.server = server_process(
            self.directory,
            certificate or self.certificate,
            server=f"{self.quic[0]}:{self.quic[1]}",
            max_idle_time=f"{round(1000 * self.scale.idle)}ms",
            proxy={"allow_ports": self.public[1]},
        ).__enter__()
        return ready_at(self.server)

    def start_client(self, stack: contextlib.ExitStack) -> None:
        """Start the client."""
        self.client = client_process(self.directory, self.certificate, self.quic, self.service.address).__enter__()

    def back(self) -> float:
        """Wait for the first byte; when it came."""
        return first_byte(self.public, BACK)

    def description(self) -> str:
        """What the processes have to say."""
        return "\n".join(said_by(process) for process in (self.server, self.client) if process is not None)


def said_by(process: Process) -> str:
    """What a process has logged, but for the lines about the connections of ``first_byte``, which are many."""
    return "\n".join([f"--- {process.name}:", *(line for line in process.output().splitlines() if is_telling(line))])


def is_telling(line: str) -> bool:
    """Whether a line of a log is not about a single TCP connection."""
    return "connection from " not in line


def ready_at(server: Process) -> float:
    """Wait until a server accepts clients; since when, on the monotonic clock, as its log says."""
    server.wait_for(SERVER_READY, BACK)
    line = next(line for line in server.output().splitlines() if re.search(SERVER_READY, line))
    written = datetime.datetime.strptime(line.split()[0], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
    return written - time.time() + time.monotonic()


class ServerKilled(Loopback):
    """The server is killed, and started again at once."""

    name = "server-killed"
    title = "server killed and restarted"
    how = "SIGKILL, a new process on the same port; ends when that accepts clients"
    promise = 1.0

    def happen(self) -> float:
        """Kill, and start again."""
        self.let_it_stand()
        assert self.server is not None
        self.server.kill()
        ready = self.start_server()
        return self.back() - ready


class ServerAway(Loopback):
    """The server is killed, and comes back much later."""

    name = "server-away"
    title = "server killed and restarted after 30 s"
    how = "as in the first row, 30 s later"
    promise = 1.0
    repetitions = 5
    why_fewer = "each takes 35 s"

    def happen(self) -> float:
        """Kill, wait, and start again."""
        self.let_it_stand()
        assert self.server is not None
        self.server.kill()
        time.sleep(self.scale.away + random.random() * PHASE)
        ready = self.start_server()
        return self.back() - ready


class ClientKilled(Loopback):
    """The client is killed, and started again at once."""

    name = "client-killed"
    title = "client killed and restarted"
    how = "SIGKILL, a new process; ends when that is started, so that the start of Python counts"

    def happen(self) -> float:
        """Kill, and start again."""
        self.let_it_stand()
        assert self.client is not None
        self.client.kill()
        self.client.__exit__(None, None, None)
        began = time.monotonic()
        self.start_client(self._stack)
        return self.back() - began


class Stopped(Loopback):
    """A process is stopped for longer than the idle timeout."""

    def stop_and_continue(self, process: Process) -> float:
        """SIGSTOP, a pause, SIGCONT."""
        self.let_it_stand()
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.scale.stopped + random.random() * PHASE)
        process.send_signal(signal.SIGCONT)
        ended = time.monotonic()
        return self.back() - ended


class ServerStopped(Stopped):
    """The server."""

    name = "server-stopped"
    title = "server stopped for 15 s"
    how = "SIGSTOP; ends with SIGCONT"
    promise = 2.0
    repetitions = 5
    why_fewer = "each takes 18 s"

    def happen(self) -> float:
        """Stop it."""
        assert self.server is not None
        return self.stop_and_continue(self.server)


class ClientStopped(Stopped):
    """The client."""

    name = "client-stopped"
    title = "client stopped for 15 s"
    how = "SIGSTOP; ends with SIGCONT"
    promise = 2.0
    repetitions = 5
    why_fewer = "each takes 18 s"

    def happen(self) -> float:
        """Stop it."""
        assert self.client is not None
        return self.stop_and_continue(self.client)


class CertificateRenewed(Loopback):
    """The server comes back with another certificate and key of the same authority."""

    name = "certificate-renewed"
    title = "server killed and restarted with another certificate and key"
    how = "as in the first row, both issued by the authority that the client trusts; no stateless reset is valid then"
    promise = 1.0

    def happen(self) -> float:
        """Kill, and start with the next certificate."""
        self.let_it_stand()
        assert self.server is not None
        self.server.kill()
        self._number = getattr(self, "_number", 0) + 1
        ready = self.start_server(self.authority.issue(self.directory / f"certificate {self._number}"))
        return self.back() - ready


class CertificateWrong(Loopback):
    """The server comes back with a certificate that the client does not trust, and is then put right."""

    name = "certificate-wrong"
    title = "server restarted with a certificate that the client does not trust, then with the right one"
    how = (
        "as in the first row, the right one as soon as the client has said what is wrong; ends when that server "
        "accepts clients"
    )
    promise = 60.0
    repetitions = 5
    why_fewer = "somebody has to mend it, so the client tries again every 5 to 60 s"

    def happen(self) -> float:
        """Wrong, then right."""
        self.let_it_stand()
        assert self.server is not None
        assert self.client is not None
        self.server.kill()
        self._number = getattr(self, "_number", 0) + 1
        seen = len(self.client.output())
        self.start_server(Authority().issue(self.directory / f"wrong {self._number}"))
        client = self.client
        wait_until(lambda: "certificate rejected" in client.output()[seen:], BACK, "the client says what is wrong")
        assert not self.answers()
        self.server.kill()
        ready = self.start_server()
        return self.back() - ready

    def answers(self) -> bool:
        """Whether anybody accepts connections on the public port."""
        with socket.socket() as user:
            return user.connect_ex(self.public) == 0


class NatRebound(Loopback):
    """Something between both gives the client another address, and forgets the one before."""

    name = "nat-rebound"
    title = "a NAT gives the client another port"
    how = "a UDP relay in between sends from another port from now on; open connections and associations go on"
    promise = 1.0

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Put the relay in between."""
        self._middle: Middle | None = None
        super().set_up(stack)

    def start_client(self, stack: contextlib.ExitStack) -> None:
        """Start the client, towards the relay."""
        self._middle = stack.enter_context(Middle(self.quic))
        front: Address = self._middle.front.getsockname()
        self.client = client_process(self.directory, self.certificate, front, self.service.address).__enter__()
        # Ended before the relay is.
        stack.callback(self.client.__exit__, None, None, None)

    def happen(self) -> float:
        """Rebind; what is open goes on."""
        assert self._middle is not None
        with GoesOn(self.public, self.datagrams) as open_ones:
            time.sleep(random.random() * PHASE)
            self._middle.rebind()
            ended = time.monotonic()
            came = self.back()
            open_ones.check()
        return came - ended


class GoesOn:
    """A TCP connection and a UDP association through the public port, which are to outlive the fault.

    Args:
        public: The port.
        datagrams: The UDP service behind it.
    """

    def __init__(self, public: Address, datagrams: UdpEcho) -> None:
        self._datagrams = datagrams
        self._data = seeded_bytes(random.randrange(1 << 30), 100_000)
        self._user = connect(public)
        self._peer = UdpPeer(public)
        self._user.sendall(self._data[:50_000])
        assert receive_exactly(self._user, 1000) == self._data[:1000]
        self._peer.ask(b"before", b"before")
        self._sources = set(datagrams.sources)

    def __enter__(self) -> GoesOn:
        return self

    def __exit__(self, *_: object) -> None:
        self._user.close()
        self._peer.__exit__()

    def check(self) -> None:
        """Everything comes that is still to come, and by the same association."""
        self._user.sendall(self._data[50_000:])
        assert receive_exactly(self._user, len(self._data) - 1000) == self._data[1000:]
        self._peer.ask(b"after", b"after")
        assert set(self._datagrams.sources) == self._sources


# --- a client in this process, whose surroundings the test plays ------------------------------------------------------


class Inside(Loopback):
    """The server is a process, the client is not."""

    def start_client(self, stack: contextlib.ExitStack) -> None:
        """Start the client."""
        self.log = Log()
        logger = logging.getLogger("asport_sync")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self.log)
        stack.callback(logger.removeHandler, self.log)
        options = client_options(self.certificate, self.quic, self.service.address, **self.changes())
        self.inside = stack.enter_context(Observed(**options))

    def changes(self) -> dict[str, Any]:
        """Of the client's options."""
        return {}

    def description(self) -> str:
        """What can be said."""
        return "\n".join([super().description(), "--- client:", *self.log.lines, str(self.inside.stats())])


class Log(logging.Handler):
    """Keeps the latest lines. Filled by any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(threadName)s %(message)s"))
        self.lines: collections.deque[str] = collections.deque(maxlen=200)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        line = self.format(record)
        if is_telling(line):
            self.lines.append(line)


class Observed(Client):
    """A client whose machine sleeps when the test says so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asleep = 0.0

    def _new_host(self) -> Host:
        config = self.config
        return Host(
            self._new_engine(), config.workers, config.tcp_keepalive, logger("client"), asleep=lambda: self.asleep
        )

    def sleep(self, seconds: float) -> None:
        """Sleep, with no time passing for anybody else: the clocks differ by more, and the kernel says so."""
        assert self._host is not None
        watch = self._host.machine._sleep
        assert watch is not None
        self.asleep += seconds
        self._host.pump.call(watch._look)


class Suspended(Inside):
    """This machine sleeps, and the server forgets the client meanwhile."""

    name = "suspended"
    title = "client's machine suspended"
    how = (
        "the server is killed and restarted, and the difference between CLOCK_BOOTTIME and CLOCK_MONOTONIC jumps by a "
        "minute; ends with both"
    )
    promise = 2.0

    def happen(self) -> float:
        """Restart the server, and let the clock jump."""
        self.let_it_stand()
        assert self.server is not None
        self.server.kill()
        ready = self.start_server()
        self.inside.sleep(60.0)
        return self.back() - ready


class NameMoved(Inside):
    """The server moves to another address, and its name with it."""

    name = "name-moved"
    title = "server moved to another address (DNS)"
    how = (
        "the server is killed and one started on another address, the resolver's answer changes; ends when both is done"
    )
    promise = 1.0

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Put a resolver of our own in place."""
        real = sockets.resolve

        def resolve(host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
            return [(self.quic[0], port)] if host == "tunnel.test" else real(host, port, kind)

        sockets.resolve = resolve
        stack.callback(setattr, sockets, "resolve", real)
        super().set_up(stack)

    def changes(self) -> dict[str, Any]:
        """A name in place of an address."""
        return {"server": f"tunnel.test:{self.quic[1]}", "server_name": "localhost"}

    def happen(self) -> float:
        """Move."""
        self.let_it_stand()
        assert self.server is not None
        self.server.kill()
        self.quic = ("127.0.0.2" if self.quic[0] == "127.0.0.1" else "127.0.0.1", self.quic[1])
        ready = self.start_server()
        return self.back() - ready


# --- across a network -------------------------------------------------------------------------------------------------


class Across(Fault):
    """The server in one network namespace, the client in another, and a path of 20 ms round trip between them."""

    QUIC_PORT = 4433
    LOCAL_PORT = 8080
    PUBLIC: Address = ("127.0.0.1", 20000)
    dialect: ClassVar[dict[str, str]] = {}  # of the client's options

    @staticmethod
    def unavailable() -> str | None:
        """Namespaces may not be had."""
        return unavailable()

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Make the path, and start both."""
        certificate = Authority().issue(self.directory / "certificate")
        self.path = path = stack.enter_context(NetworkPath(delay_ms=10))
        server = (path.address_a, self.QUIC_PORT)
        service = stack.enter_context(TcpEcho(port=self.LOCAL_PORT, create_socket=path.b.socket))
        self.datagrams = stack.enter_context(UdpEcho(port=self.LOCAL_PORT, create_socket=path.b.socket))
        self.server = stack.enter_context(Process(path.a.argv(self.server_argv(certificate)), name="server"))
        options = client_options(certificate, server, service.address, server_name="localhost", **self.dialect)
        file = write_config(self.directory, "client", options)
        self.client = stack.enter_context(
            Process(path.b.argv(command("client", "run", "-c", str(file), "-v")), name="client")
        )
        self.back()

    def server_argv(self, certificate: Certificate) -> list[str]:
        """Write the server's configuration; the command that runs it."""
        options = server_options(
            certificate,
            server=f"{self.path.address_a}:{self.QUIC_PORT}",
            max_idle_time=f"{round(1000 * self.scale.idle)}ms",
            proxy={"allow_ports": self.PUBLIC[1]},
        )
        return command("server", "run", "-c", str(write_config(self.directory, "server", options)), "-v")

    def back(self) -> float:
        """Wait for the first byte; when it came."""
        return self.path.a.call(lambda: first_byte(self.PUBLIC, BACK))

    def description(self) -> str:
        """What the processes have to say."""
        return f"{said_by(self.server)}\n{said_by(self.client)}"


class NetworkGone(Across):
    """Every packet is lost for a while."""

    name = "network-gone"
    title = "network gone for 30 s"
    how = "packets vanish both ways, with no word to either side; ends when they pass again"
    promise = 2.0
    repetitions = 5
    why_fewer = "each takes 33 s"

    def happen(self) -> float:
        """Lose everything."""
        self.let_it_stand()
        self.path.change(black_hole=True)
        time.sleep(self.scale.away + random.random() * PHASE)
        self.path.change(black_hole=False)
        ended = time.monotonic()
        return self.back() - ended


class NetworkBlip(Across):
    """Every packet is lost for less than the idle timeout. What is open goes on."""

    name = "network-blip"
    title = "network gone for 5 s"
    how = "the same, within the idle timeout; open connections and associations go on"
    promise = 2.0

    def happen(self) -> float:
        """Lose everything for a moment."""
        with self.path.a.call(lambda: GoesOn(self.PUBLIC, self.datagrams)) as open_ones:
            time.sleep(random.random() * PHASE)
            self.path.change(black_hole=True)
            time.sleep(self.scale.blip)
            self.path.change(black_hole=False)
            ended = time.monotonic()
            came = self.back()
            open_ones.check()
        return came - ended


class InterfaceDown(Across):
    """The client's network interface is down for a while."""

    name = "interface-down"
    title = "client's interface down for 30 s"
    how = "ip link set down in the client's namespace; ends with up"
    promise = 2.0
    repetitions = 5
    why_fewer = "each takes 33 s"

    def happen(self) -> float:
        """Down and up."""
        self.let_it_stand()
        self.path.b.configure(["link", "set", INTERFACE, "down"])
        time.sleep(self.scale.away + random.random() * PHASE)
        self.path.b.configure(["link", "set", INTERFACE, "up"])
        ended = time.monotonic()
        return self.back() - ended


class AddressChanged(Across):
    """The client's machine gets another address, and loses the one before. What is open goes on."""

    name = "address-changed"
    title = "client's address changed"
    how = (
        "the old address is taken from the client's interface, which gets another one; ends with that; open "
        "connections and associations go on"
    )
    promise = 1.0

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Let the server's side know the way to all addresses."""
        super().set_up(stack)
        self.path.a.configure(["route", "add", "10.204.0.0/16", "dev", INTERFACE])
        self._number = 0
        self._address = f"{self.path.address_b}/30"

    def happen(self) -> float:
        """Change it."""
        with self.path.a.call(lambda: GoesOn(self.PUBLIC, self.datagrams)) as open_ones:
            time.sleep(random.random() * PHASE)
            before, self._number = self._address, self._number + 1
            self._address = f"10.204.0.{self._number}/32"
            self.path.b.configure(["address", "delete", before, "dev", INTERFACE])
            self.path.b.configure(["address", "add", self._address, "dev", INTERFACE])
            self.path.b.configure(["route", "replace", self.path.address_a, "dev", INTERFACE])
            ended = time.monotonic()
            came = self.back()
            open_ones.check()
        return came - ended


FAULTS: tuple[type[Fault], ...] = (
    ServerKilled,
    ServerAway,
    ClientKilled,
    ServerStopped,
    ClientStopped,
    NetworkGone,
    NetworkBlip,
    InterfaceDown,
    AddressChanged,
    NatRebound,
    Suspended,
    NameMoved,
    CertificateRenewed,
    CertificateWrong,
)
