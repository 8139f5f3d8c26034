"""The two ends of a tunnel, ours and the reference's, behind one interface."""

from __future__ import annotations

import abc
import contextlib
import enum
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from tests.e2e.tunnels import RELAY
from tests.interop.install import program
from tests.support.certificates import Certificate, write_private
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, host_and_port
from tests.support.waiting import wait_until

Network = Literal["tcp", "udp", "both"]
UdpMode = Literal["native", "quic"]
Dialect = Literal["draft", "flags"]

# Seconds until a tunnel that works must be up; the reference gives a connection attempt 8 s.
READY_TIMEOUT = 20.0

# How the logs of our server may name each refusal: in words, as the draft writes it, or as our exception is called.
OUR_WORDS = {
    "authentication": r"auth(entication)?[ _]?failed",
    "bind": r"bind[ _]?failed",
    "port": r"port[ _]?denied",
    "network": r"network[ _]?denied",
}


class Refusal(enum.Enum):
    """Why a server sends a client away: the name of our exception, and what the reference writes to its logs."""

    AUTHENTICATION = ("AuthenticationError", "authentication failed")
    BIND = ("BindError", "remote bind failed")
    PORT = ("PortDeniedError", "port denied")
    NETWORK = ("NetworkDeniedError", "network denied")

    def __init__(self, exception: str, reference_words: str) -> None:
        self.exception = exception
        self.reference_words = reference_words


@dataclass(frozen=True)
class Tunnel:
    """What one tunnel is made of, said in terms that all implementations share.

    Attributes:
        network: What the client asks for.
        allow_network: What the server grants.
        udp_mode: How UDP packets are carried.
        user: The UUID of both sides.
        password: The client's password.
        server_password: The password the server expects.
        bind_ip: Where the server opens the public port.
        port: The one port the server allows.
        expected_port: The one port the client asks for, or None for any.
        max_packet_size: Longest UDP payload that both sides take from a socket, or None for their defaults.
        told_dialect: Whether our server is told the client's dialect, in place of its default.
        balance: How our server spreads visitors over several clients; None: the port belongs to one.
    """

    network: Network = "both"
    allow_network: Network = "both"
    udp_mode: UdpMode = "native"
    user: str = field(default_factory=lambda: str(uuid.uuid4()))
    password: str = "correct horse"
    server_password: str = "correct horse"
    bind_ip: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    expected_port: int | None = None
    max_packet_size: int | None = None
    told_dialect: bool = False
    balance: Literal["round_robin", "least_connections"] | None = None

    def common_options(self) -> dict[str, Any]:
        """Return the keys that are the same for client and server, ours and the reference's."""
        return {} if self.max_packet_size is None else {"max_packet_size": self.max_packet_size}

    def client_options(self) -> dict[str, Any]:
        """Return the keys of a client, ours or the reference's, that say what it asks for and as whom."""
        asked = {} if self.expected_port is None else {"expected_port_range": self.expected_port}
        return {
            "uuid": self.user,
            "password": self.password,
            "network": self.network,
            "udp_forward_mode": self.udp_mode,
            **asked,
            **self.common_options(),
        }

    def server_options(self) -> dict[str, Any]:
        """Return the keys of a server, ours or the reference's, that say what it grants and to whom."""
        proxy = {
            "users": {self.user: self.server_password},
            "bind_ip": self.bind_ip,
            "allow_ports": self.port,
            "allow_network": self.allow_network,
            **({} if self.balance is None else {"balance": self.balance}),
        }
        return {"proxies": [proxy], **self.common_options()}


class RunningServer(Protocol):
    """A server that accepts clients."""

    @property
    def address(self) -> Address:
        """Where its QUIC socket is."""

    def check_refused(self, refusal: Refusal) -> None:
        """Wait until its log says that it refused a client, and why."""


class RunningClient(Protocol):
    """A client that was started and may not have joined yet."""

    def wait_ready(self) -> int:
        """Wait until the server has accepted it and return the public port."""

    def check_refused(self, refusal: Refusal, *, told: bool) -> None:
        """Wait until it knows that it was refused; ``told``: the server names the reason before it closes."""


class Implementation(abc.ABC):
    """Ours, or one release of the reference."""

    name: str
    # None: speaks the peer's.
    dialect: Dialect | None
    # Whether a refusing server gets the code through before it closes the connection.
    delivers_refusals: bool
    # Whether the last bytes of an answer survive where the public side closed its direction first.
    keeps_tail: bool
    # Whether an empty UDP payload that it takes from a socket is forwarded.
    empty_datagrams: bool

    @abc.abstractmethod
    def server(
        self, tunnel: Tunnel, peer: Implementation, certificate: Certificate, directory: Path
    ) -> contextlib.AbstractContextManager[RunningServer]:
        """Start a server, and end it with the block."""

    @abc.abstractmethod
    def client(
        self,
        tunnel: Tunnel,
        peer: Implementation,
        server: Address,
        local: Address,
        certificate: Certificate,
        directory: Path,
    ) -> contextlib.AbstractContextManager[RunningClient]:
        """Start a client, and end it with the block."""


# --- ours ---


class LogRecorder(logging.Handler):
    """Keeps what our package logs while it is attached."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record; called by any thread, under the handler's lock."""
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@contextlib.contextmanager
def recorded_logs() -> Iterator[LogRecorder]:
    """Attach a recorder to our package's logger, at level INFO."""
    logger = logging.getLogger("asport_sync")
    recorder = LogRecorder()
    level = logger.level
    logger.addHandler(recorder)
    logger.setLevel(logging.INFO)
    try:
        yield recorder
    finally:
        logger.setLevel(level)
        logger.removeHandler(recorder)


@dataclass(frozen=True)
class OurServer:
    """Our server, used as a library."""

    server: Any
    log: LogRecorder

    @property
    def address(self) -> Address:
        """Where its QUIC socket is."""
        host, port = self.server.address[:2]
        return host, port

    def check_refused(self, refusal: Refusal) -> None:
        """Wait until its log names the reason."""
        words = re.compile(OUR_WORDS[refusal.name.lower()], re.IGNORECASE)
        wait_until(
            lambda: any(words.search(line) for line in list(self.log.lines)),
            READY_TIMEOUT,
            f"our server's log matches /{words.pattern}/",
            detail=lambda: "\n".join(self.log.lines),
        )


@dataclass(frozen=True)
class OurClient:
    """Our client, used as a library."""

    client: Any
    server_host: str

    def wait_ready(self) -> int:
        """Wait until the server has accepted it and return the public port."""
        host, port = self.client.wait_ready(READY_TIMEOUT)
        assert host == self.server_host
        assert isinstance(port, int)
        return port

    def check_refused(self, refusal: Refusal, *, told: bool) -> None:
        """Expect the exception of this refusal, or the general one where the server may close without a code."""
        import asport_sync.errors

        exact: type[asport_sync.errors.RefusedError] = getattr(asport_sync.errors, refusal.exception)
        with pytest.raises(asport_sync.errors.RefusedError) as caught:
            self.client.wait_ready(READY_TIMEOUT)
        allowed = (exact,) if told else (exact, asport_sync.errors.RefusedError)
        assert caught.type in allowed, f"{caught.type.__name__} instead of {refusal.exception}"


class Ours(Implementation):
    """Our implementation, in the process of the test, so that the leak check watches it."""

    name = "ours"
    dialect = None
    delivers_refusals = True
    keeps_tail = True
    empty_datagrams = True

    @contextlib.contextmanager
    def server(
        self, tunnel: Tunnel, peer: Implementation, certificate: Certificate, directory: Path
    ) -> Iterator[RunningServer]:
        """Start our server on a port of its choice."""
        import asport_sync

        assert peer.dialect is not None
        server = asport_sync.Server(
            listen="127.0.0.1:0",
            certificate=str(certificate.certificate),
            private_key=str(certificate.private_key),
            dialect=peer.dialect if tunnel.told_dialect else "auto",
            **RELAY,
            **tunnel.server_options(),
        )
        with recorded_logs() as log:
            server.start()
            try:
                yield OurServer(server, log)
            finally:
                server.stop()

    @contextlib.contextmanager
    def client(
        self,
        tunnel: Tunnel,
        peer: Implementation,
        server: Address,
        local: Address,
        certificate: Certificate,
        directory: Path,
    ) -> Iterator[RunningClient]:
        """Start our client."""
        import asport_sync

        assert peer.dialect is not None
        client = asport_sync.Client(
            server=host_and_port(server),
            local=host_and_port(local),
            dialect=peer.dialect,
            certificates={"paths": [str(certificate.trusted)], "disable_native": True},
            **RELAY,
            **tunnel.client_options(),
        )
        client.start()
        try:
            yield OurClient(client, server[0])
        finally:
            client.stop(READY_TIMEOUT)


# --- the reference ---


@dataclass(frozen=True)
class ReferenceServer:
    """The reference's server program."""

    process: Process
    address: Address

    def check_refused(self, refusal: Refusal) -> None:
        """Wait until its log names the reason (without "remote", which only its client says)."""
        words = refusal.reference_words.removeprefix("remote ")
        self.process.wait_for(rf"WARN .*handling incoming unidirectional stream error: .*{words}")


@dataclass(frozen=True)
class ReferenceClient:
    """The reference's client program."""

    process: Process

    def wait_ready(self) -> int:
        """Wait until it logs the port it was given."""
        return int(self.process.wait_for(r"\[server_hello\] remote port: (\d+)$", READY_TIMEOUT)[1])

    def check_refused(self, refusal: Refusal, *, told: bool) -> None:
        """Expect the code it received, where the server delivers it, and the end of the connection in any case."""
        if told:
            self.process.wait_for(rf"WARN .*incoming unidirectional stream error: {refusal.reference_words}")
        self.process.wait_for(r"WARN .*connection error: closed by peer: 0")


@dataclass(frozen=True)
class Reference(Implementation):
    """One release of the reference, run as the programs it ships."""

    # The release.
    name: str
    dialect: Dialect | None
    # 0.3.0 moved the TLS keys into [security.tls] and made "run" a sub-command.
    security_tables: bool
    delivers_refusals: bool = False
    keeps_tail: bool = False
    # The fragmenter panics on an empty payload, and the packet is lost.
    empty_datagrams: bool = False

    @contextlib.contextmanager
    def server(
        self, tunnel: Tunnel, peer: Implementation, certificate: Certificate, directory: Path
    ) -> Iterator[RunningServer]:
        """Start the reference's server on a port picked for it, as it doesn't report one it chose itself."""
        address = ("127.0.0.1", free_port())
        file = self.write_server_config(directory, tunnel, address, certificate)
        with Process(self.argv("asport-server", file), name=f"asport-server {self.name}") as process:
            process.wait_for(r"Server started on ")
            yield ReferenceServer(process, address)

    @contextlib.contextmanager
    def client(
        self,
        tunnel: Tunnel,
        peer: Implementation,
        server: Address,
        local: Address,
        certificate: Certificate,
        directory: Path,
    ) -> Iterator[RunningClient]:
        """Start the reference's client."""
        file = self.write_client_config(directory, tunnel, server, local, certificate)
        with Process(self.argv("asport-client", file), name=f"asport-client {self.name}") as process:
            yield ReferenceClient(process)

    def argv(self, name: str, config: Path) -> list[str]:
        """Return the command line of one of its programs."""
        subcommand = ["run"] if self.security_tables else []
        return [str(program(self.name, name)), *subcommand, "-c", str(config)]

    def write_server_config(
        self, directory: Path, tunnel: Tunnel, listen: Address, certificate: Certificate, **options: object
    ) -> Path:
        """Write a configuration file for its server; ``options`` are further top-level keys."""
        tls = {"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)}
        keys = {"server": host_and_port(listen), **tunnel.server_options(), **options}
        return self._write(directory / "server.json", keys, tls)

    def write_client_config(
        self,
        directory: Path,
        tunnel: Tunnel,
        server: Address,
        local: Address,
        certificate: Certificate,
        **options: object,
    ) -> Path:
        """Write a configuration file for its client; ``options`` are further top-level keys."""
        tls = {
            "server_name": "localhost",
            "certificates": {"paths": [str(certificate.trusted)], "disable_native": True},
        }
        keys = {
            "server": host_and_port(server),
            "local": host_and_port(local),
            **tunnel.client_options(),
            **options,
        }
        return self._write(directory / "client.json", keys, tls)

    def _write(self, path: Path, keys: dict[str, object], tls: Mapping[str, object]) -> Path:
        # JSON is the one format of theirs for which the standard library has a writer.
        placed = {"security": {"type": "tls", "tls": tls}} if self.security_tables else tls
        write_private(path, json.dumps({"log_level": "debug", **keys, **placed}, indent=2).encode())
        return path


OURS = Ours()
REFERENCE_0_1_2 = Reference("0.1.2", "draft", security_tables=False)
REFERENCE_0_4_0 = Reference("0.4.0", "flags", security_tables=True)
