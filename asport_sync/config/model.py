"""The configuration of clients and servers: every key, its default and its unit, as frozen dataclasses.

The names are those of the configuration files. Values are stored converted: durations as seconds, sizes as bytes, paths
absolute if they came from a file. :mod:`asport_sync.config.load` and ``from_options`` create and validate instances;
the constructors take converted values and validate nothing. All are immutable: any thread may read them.

docs/configuration.md, the constructors of Client and Server, and options.py are generated from the docstrings and the
metadata of the fields (tests/config/reference.py and signatures.py).
"""

from __future__ import annotations

import ipaddress
import uuid as uuid_module
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from asport_sync.config import choices, durations, hosts, machine, passwords, paths, pins, ports, rates, values
from asport_sync.config.addresses import AddressSet, addresses, some_addresses
from asport_sync.config.bad_value import BadValue, KeyPath, dotted
from asport_sync.config.choices import (
    AmbiguousDialectName,
    BalanceName,
    CongestionControl,
    DialectName,
    FixedDialectName,
    LogFormat,
    LogLevel,
    Network,
    ProxyProtocol,
    Ready,
    Relay,
    UdpForwardMode,
)
from asport_sync.config.credentials import Credential, credential, existing_file, first_line, pem
from asport_sync.config.frozen_map import FrozenMap
from asport_sync.config.hosts import HostPort, IPAddress, LocalTargets
from asport_sync.config.machine import ephemeral_ports
from asport_sync.config.paths import ControlSocket
from asport_sync.config.ports import ALL_PORTS, PortRange, PortSet
from asport_sync.config.rates import Bandwidth
from asport_sync.config.reader import (
    Invalid,
    Item,
    Key,
    Source,
    bare,
    build,
    documented,
    gather,
    key,
    names_of,
    parse_keys,
    parsed_all,
    scalar,
    similarity,
)
from asport_sync.errors import ConfigError, ConfigErrors

T = TypeVar("T")

WITHOUT_EFFECT: Mapping[str, str] = {
    "max_packet_size": "UDP packets of every size are carried whole",
    "buffer_pool_size": "memory for UDP packets is allocated as they come, up to a fixed amount",
    "healthy_check": "a lost connection is detected by its silence and replaced immediately",
    "gc_interval": "fragments are dropped when gc_lifetime is over, without periodic scans",
    "zero_rtt_handshake": "ASPORT cannot use TLS early data",
}
"""Keys that are accepted and validated for compatibility, but have no effect; and why."""

Side = Literal["client", "server"]

_SMALLEST_WINDOW = 16384
"""Bytes: a TLS record and about a dozen packets. With a smaller window a tunnel would stall between them."""
_LARGEST_RECEIVE_WINDOW = 1 << 30
"""Bytes. All streams of a connection together may have that much in flight."""
_LARGEST_BUFFER_POOL = 1 << 20
_MAX_WORKERS = 65535
_CLIENTS = 64
"""Per user: more than a household or a small office has, and few compared with the maximum."""
_CLIENTS_TOTAL = 10000
"""Of a server, joined or not: as many as take 730 MiB."""
_MAX_CLIENTS = 65535
"""One less than the engine has places for connections."""
_MAX_CONNECTIONS = 1 << 20
"""As many streams as the engine has places for."""
_MAX_NEW_CONNECTIONS = 1000000
"""Per second: more than a machine accepts."""
_MAX_UDP_SESSIONS = 65535
"""As many as there are IDs of associations on the wire, without 0."""
_MAX_IN_A_ROW = 1000
"""Health checks: far more than makes sense."""


def _choice(meanings: Mapping[str, object]) -> Mapping[str, Key]:
    return scalar(lambda value: choices.choice(value, meanings), accepts=choices.words(meanings))


def _integer(low: int, high: int, unit: str = "") -> Mapping[str, Key]:
    limits = f"`{low}` to `{high}`" if high < 2**63 - 1 else f"`{low}` or more"
    return scalar(
        lambda value: values.integer(value, low, high, unit), accepts=f"whole number{unit and f' of {unit}'}, {limits}"
    )


_BOOLEAN = scalar(values.boolean, accepts="`true`, `false`")
_DURATION = key(
    lambda item: durations.duration(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `1ms` to `100years`",
)
_INTERVAL = key(
    lambda item: durations.check_interval(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `100ms` to `100years`",
)
_OFF_OR_DURATION = key(
    lambda item: durations.off_or_duration(item.value, bare_seconds=item.source.path is None),
    accepts="`off`, or a duration, `1s` to `9h`",
)
_BANDWIDTH = scalar(
    rates.bandwidth,
    accepts="table of `in` and `out`: whole number with `kbit`, `mbit`, `gbit` (bits per second) or `kbyte`, `mbyte`, "
    "`gbyte` (bytes per second), `8kbit` to `100gbit`; or `off`",
)
_ADDRESSES = "IP address or network (`address/length`), or a list of up to 4,096 of these"
_KEEP_ALIVE = key(
    lambda item: durations.keep_alive(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `100ms` to `1h`",
)
_DIALECT = _choice(choices.DIALECTS)
_NETWORK = scalar(choices.networks, accepts=f"{choices.words(choices.NETWORKS)}; or a list of these")
_PATH = key(lambda item: paths.file_path(item.value, item.source.directory), accepts="path")
_PASSWORD = scalar(passwords.secret, accepts="text, not empty")
_RESET_KEY = scalar(passwords.reset_key, accepts="text of at least 32 characters")
_TOKEN = scalar(passwords.token, accepts="text of at least 16 characters")
# Keys whose value may instead be the first line of a file, named by the key with the suffix "_file".
_IN_FILES: Mapping[str, Callable[[object], object]] = {
    "password": passwords.secret,
    "reset_key": passwords.reset_key,
    "token": passwords.token,
}
_LOCAL = key(
    lambda item: hosts.local(item.value, item.source.directory),
    accepts="`host:port`, a port, a list of these, `unix:PATH` or `unix:@NAME`",
)
_HTTP_PATH = scalar(values.http_path, accepts="path that begins with `/`, with a query or without")
_CREDENTIAL = key(lambda item: credential(item.value, item.source.directory), accepts="path of a file, or PEM text")


def _with_inherited_keys(cls: type[T]) -> type[T]:
    """Adds the inherited keys to the docstring of a dataclass, so that ``help`` shows all of them."""
    for base in cls.__bases__:
        if cls.__doc__ and base.__doc__:
            cls.__doc__ = cls.__doc__.rstrip() + "\n" + base.__doc__.partition("Attributes:\n")[2]
    return cls


# --- TLS --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatesConfig:
    """The table ``certificates``: by which certificates and keys a client trusts its server.

    Attributes:
        paths: Files with trusted certificates, PEM or DER: those of a certificate authority, or the server's own if it
            is self-signed. The files must exist.
        pem: Trusted certificates as PEM text, in addition to those of ``paths``.
        pins: SHA-256 hashes of public keys, as ``asport-sync pin`` prints them. The server's own certificate must have
            one of these keys, in addition to all other verification, and also with ``skip_certificate_verification``.
        disable_native: Whether to ignore the system's certificate authorities, and to trust only ``paths`` and ``pem``.
    """

    paths: tuple[Path, ...] = field(
        default=(), metadata=key(lambda item: _existing_files(item), accepts="list of paths")
    )
    pem: str | None = field(default=None, repr=False, metadata=scalar(pem, accepts="PEM text"))
    pins: tuple[bytes, ...] = field(
        default=(),
        metadata=documented(
            scalar(pins.pins, accepts="list, not empty, of `sha256//` and base64, or of 64 hexadecimal digits"),
            since="0.1.1",
        ),
    )
    disable_native: bool = field(default=False, metadata=_BOOLEAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS keys of both sides.

    Attributes:
        alpn: Names of application protocols in order of preference (RFC 7301). Client and server must have one in
            common, because QUIC requires it (RFC 9001, section 8.1).
        zero_rtt_handshake: Without effect, see :data:`WITHOUT_EFFECT`.
    """

    alpn: tuple[str, ...] = field(
        default=("asport",), metadata=scalar(values.protocols, accepts="list, not empty, of names of 1 to 255 bytes")
    )
    zero_rtt_handshake: bool = field(default=False, metadata=_BOOLEAN)


@_with_inherited_keys
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsClientConfig(TlsConfig):
    """TLS keys of a client.

    Attributes:
        server_name: Name or IP address that the server's certificate must be valid for. A name is also sent to the
            server as SNI. If not given, it is the host of ``server``.
        certificates: Which certificates and keys to trust: a table (:class:`CertificatesConfig`).
        disable_sni: Whether to send no SNI, so that the TLS handshake does not name the server. The certificate is
            still verified.
        skip_certificate_verification: Whether to accept a certificate of any issuer, name and dates. Unless
            ``certificates.pins`` is given, anyone on the path can then pose as the server.
    """

    server_name: str | None = field(default=None, metadata=scalar(hosts.host, "sni", accepts="name or IP address"))
    certificates: CertificatesConfig = field(
        default_factory=CertificatesConfig, metadata=key(lambda item: _certificates(item), accepts="table, see below")
    )
    disable_sni: bool = field(default=False, metadata=_BOOLEAN)
    skip_certificate_verification: bool = field(
        default=False, metadata=scalar(values.boolean, "skip_cert_verify", accepts=_BOOLEAN["key"].accepts)
    )


@_with_inherited_keys
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServerConfig(TlsConfig):
    """TLS keys of a server.

    Attributes:
        certificate: The certificate chain: the server's own certificate first, then those of its issuers without the
            root. It is read when the server starts.
        private_key: The private key of ``certificate`` in PKCS#8, PKCS#1 or SEC1 form, not encrypted.
    """

    certificate: Credential = field(metadata=_CREDENTIAL)
    private_key: Credential = field(metadata=_CREDENTIAL)


# --- the status address ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """The table ``status``: where the state is shown over HTTP: a page, JSON, and metrics for Prometheus.

    Attributes:
        http: IP address and TCP port; port 0 lets the system choose. An address other than loopback needs a token.
        token: Token that requests must have: ``Authorization: Bearer TOKEN``, or as the password of any user; not shown
            by ``repr``. It crosses the network as it is: put a proxy with TLS in front.
        token_file: File whose first line is the token, instead of ``token``.
    """

    http: HostPort = field(metadata=documented(scalar(hosts.ip_port, accepts="`ip:port`"), since="Unreleased"))
    token: str | None = field(default=None, repr=False, metadata=documented(_TOKEN, since="Unreleased"))
    token_file: Path | None = field(default=None, metadata=documented(_PATH, since="Unreleased"))


# --- both sides -------------------------------------------------------------------------------------------------------


# The classes from here to the server's have no __slots__: Python allows no class to inherit from two that have some.


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Keys of the whole process, client or server. Durations are in seconds, sizes in bytes.

    Attributes:
        receive_memory: Maximum bytes received from all peers and not consumed yet (the receive budget). As it is used
            up, windows shrink; then the newest streams with slow readers are reset, or the connection that holds most
            is closed.
        log_level: Least severe level that a command logs; the options ``-v`` and ``--log-level`` override it. Programs
            configure :mod:`logging` instead.
        log_format: Form of a command's log lines, and of the access log: ``text``, or ``json``, one object per line.
            The option ``--log-format`` overrides it for the former.
        access_log: File for a line about each TCP connection and UDP association of a visitor that has ended; ``-``:
            stderr. Opened again on SIGUSR1.
        ready: When ``run_forever`` and the commands tell systemd that they are ready: as soon as they have ``started``,
            or, on a client, once the local services of all its tunnels are ``public``.
        control_socket: Unix socket on which the commands ``status``, ``reload`` and others reach this process; ``off``:
            none. Only this user and root may use it. Its directory must exist.
        status: Where the state is shown over HTTP: a table (:class:`StatusConfig`). Not shown by default.
        relay: What moves the bytes of TCP connections and reads UDP sockets. ``engine``: the engine's thread. ``auto``:
            also workers (threads) for large transfers, and the pump (a thread) for sockets with many datagrams, if
            there are processors to spare. ``workers``: a worker for each TCP connection from its first byte to its
            last, and the pump for every UDP socket.
        max_workers: Maximum number of TCP connections that have a worker of their own; the engine relays all others.
        tcp_keepalive: Silence after which the remote end of a TCP connection (a visitor of the server, the local
            service of a client) is probed; ``off`` (0): never. A remote end that does not answer for twice that time,
            and at least 4 s, counts as gone.
        grace_period: Maximum time after SIGTERM during which open TCP connections and UDP associations may go on while
            nothing new is accepted; ``off`` (0): they end at once.
        watch: Time between two looks whether the content of the configuration file, or of a file that it names, has
            changed; a change that lasts until the next look is reloaded. ``off`` (0): only SIGHUP reloads.
    """

    receive_memory: int = field(
        default_factory=machine.memory_to_receive,
        metadata=documented(
            _integer(machine.SMALLEST_RECEIVE_MEMORY, 2**63 - 1, "bytes"),
            since="Unreleased",
            default="a quarter of the memory available to the process, from 64 MiB to 1 GiB",
        ),
    )
    log_level: LogLevel = field(default="warn", metadata=_choice(choices.LOG_LEVELS))
    log_format: LogFormat = field(
        default="text", metadata=documented(_choice(choices.LOG_FORMATS), since="Unreleased", needs_restart=True)
    )
    access_log: Path | None = field(
        default=None,
        metadata=documented(
            key(lambda item: _access_log(item), accepts="path, or `-`"), since="Unreleased", needs_restart=True
        ),
    )
    ready: Ready = field(
        default="started", metadata=documented(_choice(choices.READY), since="Unreleased", needs_restart=True)
    )
    control_socket: ControlSocket | None = field(
        default=None,
        metadata=documented(
            key(lambda item: paths.control_socket(item.value, item.source.directory), accepts="path, or `off`"),
            since="Unreleased",
            default=(
                "in the commands `client.sock` or `server.sock` in `$RUNTIME_DIRECTORY`, else in "
                "`$XDG_RUNTIME_DIR/asport-sync`; in programs none"
            ),
            needs_restart=True,
        ),
    )
    status: StatusConfig | None = field(
        default=None,
        metadata=documented(
            key(lambda item: _status(item), accepts="table, see below"), since="Unreleased", needs_restart=True
        ),
    )
    relay: Relay = field(
        default="auto", metadata=documented(_choice(choices.RELAYS), since="Unreleased", needs_restart=True)
    )
    max_workers: int | None = field(
        default=None,
        metadata=documented(
            _integer(0, _MAX_WORKERS),
            default=f"one per processor, none on up to two processors; {machine.WORKERS} with `relay: workers`",
            needs_restart=True,
        ),
    )
    tcp_keepalive: float = field(default=60.0, metadata=documented(_OFF_OR_DURATION, since="Unreleased"))
    grace_period: float = field(default=0.0, metadata=documented(_OFF_OR_DURATION, since="Unreleased"))
    watch: float = field(default=0.0, metadata=documented(_OFF_OR_DURATION, since="Unreleased"))

    @property
    def workers(self) -> int:
        """The maximum number of workers that follows from ``relay`` and ``max_workers``."""
        if self.relay == "engine":
            return 0
        if self.max_workers is not None:
            return self.max_workers
        return machine.WORKERS if self.relay == "workers" else machine.spare_workers()


@dataclass(frozen=True, kw_only=True)
class ConnectionConfig:
    """Keys of QUIC connections, for each tunnel of a client and for a server. Durations in seconds, sizes in bytes.

    Attributes:
        congestion_control: Congestion control algorithm of this side's QUIC packets. The reference implementation's
            default is ``cubic``.
        handshake_timeout: Maximum time from the QUIC handshake until the client has joined: a client waits that long
            for ServerHello, a server for ClientHello.
        task_negotiation_timeout: Maximum time for the header of a stream to arrive.
        max_packet_size: Without effect, see :data:`WITHOUT_EFFECT`. Values above 65,507 count as 65,507.
        buffer_pool_size: Without effect, see :data:`WITHOUT_EFFECT`.
        send_window: Maximum bytes per stream that are queued or sent and not acknowledged yet.
        receive_window: Maximum bytes per stream that the peer may send before they are consumed.
        keylog: File to which TLS secrets are written in the NSS key log format, for debugging: anyone who can read it
            can decrypt the traffic. If not given, the environment variable ``SSLKEYLOGFILE`` names the file, if set.
        max_udp_payload: Maximum UDP payload in bytes of this side's QUIC packets. By default they are as large as
            interface and path allow, up to 32 KiB.
    """

    congestion_control: CongestionControl = field(default="bbr", metadata=_choice(choices.CONGESTION_CONTROLS))
    handshake_timeout: float = field(default=3.0, metadata=_DURATION)
    task_negotiation_timeout: float = field(default=3.0, metadata=_DURATION)
    max_packet_size: int = field(
        default=1350, metadata=scalar(values.packet_size, accepts="whole number of bytes, `1` or more")
    )
    buffer_pool_size: int = field(default=32, metadata=_integer(0, _LARGEST_BUFFER_POOL))
    send_window: int = field(default=16 << 20, metadata=_integer(_SMALLEST_WINDOW, 2**64 - 1, "bytes"))
    receive_window: int = field(default=8 << 20, metadata=_integer(_SMALLEST_WINDOW, _LARGEST_RECEIVE_WINDOW, "bytes"))
    keylog: Path | None = field(default=None, metadata=_PATH)
    # 1200: RFC 9000, section 14. 65527: the maximum UDP payload, section 18.2.
    max_udp_payload: int = field(default=65527, metadata=_integer(1200, 65527, "bytes"))


def without_effect(config: ClientConfig | ServerConfig) -> Iterator[tuple[str, str]]:
    """Yields the keys without effect whose value is not the default, and why each has none.

    A key that several tunnels have set counts once.
    """
    owners: Iterable[TunnelConfig | ServerConfig]
    owners = config.tunnels.values() if isinstance(config, ClientConfig) else (config,)
    names = {
        each.name
        for owner in owners
        for table in (owner, owner.tls)
        for each in fields(table)
        if each.name in WITHOUT_EFFECT and getattr(table, each.name) != each.default
    }
    yield from ((name, why) for name, why in WITHOUT_EFFECT.items() if name in names)
    if config.relay == "engine" and config.max_workers:
        yield "max_workers", "with relay: engine there are no workers"
    if config.relay == "workers" and config.max_workers == 0:
        yield "relay", "max_workers is 0, so the engine relays everything"


# --- visitors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of a public port. On a server, a user's apply, else those of the entry of ``proxies``, else the server's.

    Attributes:
        max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a server
            has no such limit, and a client takes 16,384 for each tunnel.
        new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
            further ones are reset. If not given, there is no limit.
        udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new source
            is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may not open so
            many descriptors.
    """

    max_connections: int | None = field(
        default=None, metadata=documented(_integer(1, _MAX_CONNECTIONS), since="Unreleased")
    )
    new_connections_per_second: int | None = field(
        default=None, metadata=documented(_integer(1, _MAX_NEW_CONNECTIONS), since="Unreleased")
    )
    udp_sessions: int | None = field(
        default=None, metadata=documented(_integer(1, _MAX_UDP_SESSIONS), since="Unreleased")
    )


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class VisitorsConfig(LimitsConfig):
    """Which visitors are served: by a user's ports, by those of all users of an entry of ``proxies``, by a tunnel.

    On a server, a visitor has to be permitted by the entry and by the user.

    Attributes:
        allow_from: Addresses and networks of the visitors that are served, TCP and UDP; IPv4-mapped addresses count as
            IPv4. If not given, all are.
        deny_from: Addresses and networks of visitors that are not served, even if ``allow_from`` has them.
    """

    allow_from: AddressSet | None = field(
        default=None, metadata=documented(scalar(some_addresses, accepts=_ADDRESSES), since="Unreleased")
    )
    deny_from: AddressSet | None = field(
        default=None, metadata=documented(scalar(addresses, accepts=_ADDRESSES), since="Unreleased")
    )


# --- client -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """The table ``health``: how the local service of a tunnel is checked. Either ``tcp`` or ``http`` is required.

    Attributes:
        tcp: Whether the service is healthy if it accepts a TCP connection.
        http: What is requested with ``GET``: the service is healthy if it answers with a status from 200 to 399.
        interval: Time from one check to the next. The first one is immediate.
        timeout: Maximum time of a check, not above ``interval``.
        failures: Failed checks in a row after which a healthy service is unhealthy.
        successes: Successful checks in a row after which an unhealthy service is healthy; also required at the start.
    """

    tcp: bool = field(default=False, metadata=documented(_BOOLEAN, since="Unreleased"))
    http: str | None = field(default=None, metadata=documented(_HTTP_PATH, since="Unreleased"))
    interval: float = field(default=10.0, metadata=documented(_INTERVAL, since="Unreleased"))
    timeout: float = field(
        default=3.0,
        metadata=documented(_DURATION, since="Unreleased", default="`3s`, or `interval` if that is shorter"),
    )
    failures: int = field(default=3, metadata=documented(_integer(1, _MAX_IN_A_ROW), since="Unreleased"))
    successes: int = field(default=1, metadata=documented(_integer(1, _MAX_IN_A_ROW), since="Unreleased"))


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class TunnelConfig(ConnectionConfig, VisitorsConfig):
    """All settings of a tunnel of a client, in addition to its TLS keys (:class:`TlsClientConfig`).

    Durations are in seconds, sizes in bytes; docs/configuration.md has the forms that files and options accept.

    Attributes:
        name: Its key in the table ``tunnels``; empty for the tunnel of a client without that table.
        server: The server, as name or IP address, and its UDP port.
        local: The local service that the tunnel makes public: its name or IP address, and its TCP and UDP port. A port
            alone means both loopback addresses. Of several addresses, the next is tried where one does not answer. A
            unix stream socket (``@``: an abstract one) carries TCP connections only.
        uuid: The user on the server.
        password: The user's password; not shown by ``repr``. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        network: The networks for which a public port is requested. If not given, it is ``tcp`` for a unix socket.
        udp_forward_mode: Carrier of UDP packets: QUIC DATAGRAM frames (``native``), or streams (``quic``), on which
            lost packets are retransmitted.
        udp_timeout: Time without traffic after which a UDP association ends. It ends sooner only by eviction.
        expected_port_range: Public ports to ask for. The server chooses one of them that the user may open and that is
            free.
        healthy_check: Without effect, see :data:`WITHOUT_EFFECT`.
        timeout: Maximum time for the QUIC handshake of an attempt to connect.
        keep_alive: Time without packets after which the server is probed. A server that does not answer for another
            1.5 s (for twice ``keep_alive``, if that is shorter) is replaced by a new connection. It is lowered to a
            third of the idle timeout, which is the server's ``max_idle_time`` if that is shorter than this side's.
        heartbeat: Time between Heartbeat commands to the server.
        gc_interval: Without effect, see :data:`WITHOUT_EFFECT`.
        gc_lifetime: Time for which fragments of an incomplete UDP packet are kept.
        proxy_protocol: Version of the PROXY protocol header that tells the local service the visitor's address, and the
            public address and port that they used. UDP packets have it only with ``v2``.
        dialect: Dialect of the protocol (meaning of the mode byte) that the server speaks: ``draft`` up to release 0.1
            of the reference implementation, ``flags`` since 0.2. With a server of this project the default is right,
            unless that server is set to ``flags``.
        dial_timeout: Maximum time to open a TCP connection to the local service, for each of its addresses.
        health: How the local service is checked. The public port of an unhealthy service is withdrawn until it is
            healthy again. If not given, it is not checked.
        bandwidth: Maximum rate of the tunnel's payload, TCP and UDP together: ``in`` from visitors to the local
            service, ``out`` from the local service to visitors. If not given, there is no limit.
        tls: The TLS keys. Files and options have them at the top level, or in the table ``security.tls``.
    """

    name: str = ""
    server: HostPort = field(metadata=scalar(hosts.host_port, accepts="`host:port`"))
    local: LocalTargets = field(metadata=_LOCAL)
    uuid: uuid_module.UUID = field(metadata=scalar(values.identifier, accepts="UUID"))
    password: str = field(repr=False, metadata=_PASSWORD)
    password_file: Path | None = field(default=None, metadata=_PATH)
    network: Network = field(default="both", metadata=_NETWORK)
    udp_forward_mode: UdpForwardMode = field(default="native", metadata=_choice(choices.UDP_FORWARD_MODES))
    udp_timeout: float = field(default=300.0, metadata=_DURATION)
    expected_port_range: PortRange = field(
        default=ALL_PORTS, metadata=scalar(ports.port_range, "port", accepts="port, `[start, end]` or `{start, end}`")
    )
    healthy_check: float = field(default=20.0, metadata=_DURATION)
    timeout: float = field(default=8.0, metadata=_DURATION)
    keep_alive: float = field(default=0.75, metadata=documented(_KEEP_ALIVE, since="Unreleased"))
    heartbeat: float | None = field(
        default=None, metadata=documented(_DURATION, default="`3s`, or `keep_alive` if that is longer")
    )
    gc_interval: float = field(default=3.0, metadata=_DURATION)
    gc_lifetime: float = field(default=15.0, metadata=_DURATION)
    proxy_protocol: ProxyProtocol = field(default="none", metadata=_choice(choices.PROXY_PROTOCOLS))
    dialect: FixedDialectName = field(
        default="draft", metadata=scalar(choices.client_dialect, accepts=choices.words(choices.FIXED_DIALECTS))
    )
    dial_timeout: float = field(default=5.0, metadata=_DURATION)
    health: HealthConfig | None = field(
        default=None,
        metadata=documented(key(lambda item: _health(item), accepts="table, see below"), since="Unreleased"),
    )
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(_BANDWIDTH, since="Unreleased"))
    tls: TlsClientConfig = field(default_factory=TlsClientConfig)

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must have: ``tls.server_name``, or else the host of ``server``."""
        return self.tls.server_name or self.server.host


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ClientConfig(HostConfig):
    """All settings of a client: of its process, and of each tunnel.

    Attributes:
        tunnels: The tunnels by name: 1 to 64 letters, digits, ``-``, ``_`` and ``.``. Each is a table with the keys of
            a tunnel, including TLS keys; those at the top level are the defaults.
        defaults: The keys of tunnels that are at the top level, by field, for tunnels that are added later; not shown
            by ``repr``.
    """

    tunnels: Mapping[str, TunnelConfig] = field(
        metadata=documented(
            key(lambda item: _tunnel_tables(item), accepts="table, not empty: NAME = table"),
            since="Unreleased",
            default="one tunnel, with the keys at the top level",
        )
    )
    defaults: Mapping[str, object] = field(default=FrozenMap(), repr=False, compare=False)

    @classmethod
    def from_options(cls, **options: object) -> ClientConfig:
        """Returns a configuration from keyword arguments: the keys of a file, validated in the same way.

        In addition to the forms that files use: seconds as a number for durations, a tuple for a range of ports or for
        host and port, ``uuid.UUID``, and path objects. Relative paths stay relative to the working directory.

        Raises:
            ConfigErrors: One or more options are wrong; ``path`` and ``line`` are None.
        """
        try:
            return read_client(options, Source())
        except ConfigError as error:
            problem = bare(error)
        finally:
            options.clear()  # as bare() says
        raise problem

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Returns a setting of the only tunnel. Deprecated: up to release 0.1.1 every client had one tunnel."""
            if name not in _OF_A_TUNNEL:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if len(self.tunnels) != 1:
                raise AttributeError(f"{name} is a key of each tunnel: use tunnels[NAME].{name}")
            (tunnel,) = self.tunnels.values()
            message = f"ClientConfig.{name} is deprecated: use tunnels[{tunnel.name!r}].{name}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(tunnel, name)


_OF_A_TUNNEL = frozenset(each.name for each in fields(TunnelConfig)) - {"name"} | {"server_name"}


# --- server -----------------------------------------------------------------------------------------------------------


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class UserConfig(VisitorsConfig):
    """A user of a server: an entry of the table ``users``, UUID = password, or UUID = table with these keys.

    Attributes:
        uuid: The user's UUID: the key of the entry. Each UUID may occur only once on a server.
        password: The user's password; not shown by ``repr``. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        dialect: Dialect of the protocol that this user's clients speak; ``auto``: identified by the mode byte if
            possible. If not given, that of the entry of ``proxies`` applies.
        max_clients: Maximum clients of this user at the same time. If not given, that of the entry of ``proxies``
            applies.
        bandwidth: Maximum rate of the payload of all connections of this user, TCP and UDP together: ``in`` from
            visitors to local services, ``out`` from local services to visitors. That of the entry of ``proxies``
            applies in addition. If not given, there is no limit of the user's own.
    """

    uuid: uuid_module.UUID
    password: str = field(repr=False, metadata=_PASSWORD)
    password_file: Path | None = field(default=None, metadata=_PATH)
    dialect: DialectName | None = field(default=None, metadata=_DIALECT)
    max_clients: int | None = field(default=None, metadata=documented(_integer(1, _MAX_CLIENTS), since="Unreleased"))
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(_BANDWIDTH, since="Unreleased"))


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ProxyConfig(VisitorsConfig):
    """An entry of ``proxies``: users, and what they may open.

    Attributes:
        users: The users by their UUID: the password, or a table with the keys of a user.
        bind_ip: Address of the public sockets. ``::`` includes IPv4, and becomes ``0.0.0.0`` if the host has no IPv6.
        allow_ports: Public ports that these users may open.
        only_v6: Whether public sockets on an IPv6 ``bind_ip`` accept IPv6 only. If not given, the system's default
            applies.
        allow_network: The networks for which these users may open ports.
        dialect: Dialect of the protocol that these users' clients speak; ``auto``: identified by the mode byte if
            possible. If not given, the server's ``dialect`` applies.
        max_clients: Maximum clients of each of these users at the same time.
        bandwidth: Maximum rate of the payload of all connections of these users together, TCP and UDP: ``in`` from
            visitors to local services, ``out`` from local services to visitors. If not given, there is no limit.
        max_clients_total: Maximum clients of all these users together. If not given, there is no limit.
        balance: Lets several clients of one user have the same port, if they ask for exactly that one, and spreads its
            visitors over them: ``round_robin``: in turn; ``least_connections``: to the client with the fewest TCP
            connections, or UDP associations. If not given, a port belongs to one client.
    """

    users: tuple[UserConfig, ...] = field(
        metadata=key(lambda item: _users(item), accepts="table, not empty: UUID = password, or UUID = table")
    )
    bind_ip: IPAddress = field(default=ipaddress.IPv6Address("::"), metadata=scalar(hosts.ip, accepts="IP address"))
    allow_ports: PortSet = field(
        default_factory=ephemeral_ports,
        metadata=documented(
            scalar(ports.port_set, accepts="port, `{start, end}`, or a list of these and of `[start, end]`"),
            default="the system's ephemeral ports",
        ),
    )
    only_v6: bool | None = field(default=None, metadata=_BOOLEAN)
    allow_network: Network = field(default="both", metadata=_NETWORK)
    dialect: DialectName | None = field(default=None, metadata=_DIALECT)
    max_clients: int = field(default=_CLIENTS, metadata=documented(_integer(1, _MAX_CLIENTS), since="Unreleased"))
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(_BANDWIDTH, since="Unreleased"))
    max_clients_total: int | None = field(
        default=None, metadata=documented(_integer(1, _MAX_CLIENTS), since="Unreleased")
    )
    balance: BalanceName | None = field(
        default=None, metadata=documented(_choice(choices.BALANCES), since="Unreleased")
    )


@_with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ServerConfig(HostConfig, ConnectionConfig, LimitsConfig):
    """All settings of a server, in addition to its TLS keys (:class:`TlsServerConfig`).

    Durations are in seconds, sizes in bytes; docs/configuration.md has the forms that files and options accept.

    Attributes:
        server: IP address and UDP port on which clients are accepted; port 0 lets the system choose. The parameter
            ``listen`` of ``asport_sync.Server`` is the same.
        proxies: Users and what they may open. The list may be empty.
        only_v6: Whether the QUIC socket on an IPv6 address accepts IPv6 only. If not given, the system's default
            applies.
        authentication_failed_reply: Whether a client that fails to authenticate is notified of the reason. If not, its
            connection is closed without one.
        max_idle_time: QUIC idle timeout: a connection without packets for that long is closed.
        max_clients_total: Maximum clients of all users together, including those that have not joined yet.
        udp_session_timeout: Time without traffic after which a UDP association ends. It ends sooner only by eviction.
        dialect: Dialect of the protocol (meaning of the mode byte) of users without a ``dialect`` of their own;
            ``auto``: identified by the mode byte if possible.
        ambiguous_dialect: How ``auto`` interprets mode bytes 1 and 2, whose meaning differs between the two dialects;
            ``both``: whatever the user may use of either meaning is served.
        reset_key: Secret from which the key of stateless resets (RFC 9000, section 10.3) is derived, for servers that
            replace each other; not shown by ``repr``. If not given, that key is derived from the private key, this
            machine and ``server``.
        reset_key_file: File whose first line is that secret, instead of ``reset_key``.
        tls: The TLS keys. Files and options have them at the top level, or in the table ``security.tls``.
    """

    server: HostPort = field(metadata=documented(scalar(hosts.ip_port, accepts="`ip:port`"), needs_restart=True))
    proxies: tuple[ProxyConfig, ...] = field(metadata=key(lambda item: _proxies(item), accepts="list of tables"))
    only_v6: bool | None = field(default=None, metadata=documented(_BOOLEAN, needs_restart=True))
    authentication_failed_reply: bool = field(default=True, metadata=_BOOLEAN)
    max_idle_time: float = field(default=10.0, metadata=_DURATION)
    max_clients_total: int = field(
        default=_CLIENTS_TOTAL, metadata=documented(_integer(1, _MAX_CLIENTS), since="Unreleased")
    )
    udp_session_timeout: float = field(default=300.0, metadata=_DURATION)
    dialect: DialectName = field(default="auto", metadata=_DIALECT)
    ambiguous_dialect: AmbiguousDialectName = field(default="both", metadata=_choice(choices.AMBIGUOUS_DIALECTS))
    reset_key: bytes | None = field(
        default=None, repr=False, metadata=documented(_RESET_KEY, since="Unreleased", needs_restart=True)
    )
    reset_key_file: Path | None = field(
        default=None, metadata=documented(_PATH, since="Unreleased", needs_restart=True)
    )
    tls: TlsServerConfig

    @classmethod
    def from_options(cls, **options: object) -> ServerConfig:
        """Returns a configuration from keyword arguments: the keys of a file, validated in the same way.

        In addition to the forms that files use: seconds as a number for durations, a tuple for a range of ports inside
        a list, ``PortSet``, ``uuid.UUID``, address and path objects, and bytes in PEM or DER for ``certificate`` and
        ``private_key``. ``proxies`` is a list of dicts. Relative paths stay relative to the working directory.

        Raises:
            ConfigErrors: One or more options are wrong; ``path`` and ``line`` are None.
        """
        try:
            return read_server(options, Source())
        except ConfigError as error:
            problem = bare(error)
        finally:
            options.clear()  # as bare() says
        raise problem


def dialect_of(config: ServerConfig, proxy: ProxyConfig, user: UserConfig) -> DialectName:
    """Returns the dialect of a user of an entry: the user's own, else the entry's, else the server's."""
    return user.dialect or proxy.dialect or config.dialect


# --- nested tables ----------------------------------------------------------------------------------------------------


def _access_log(item: Item) -> Path:
    return Path("-") if item.value == "-" else paths.file_path(item.value, item.source.directory)


def _existing_files(item: Item) -> tuple[Path, ...]:
    files = item.elements('a list of paths, such as ["ca.pem"]')
    return parsed_all(files, lambda each: existing_file(each.value, each.source.directory))


def _certificates(item: Item) -> CertificatesConfig:
    entries = item.table("a table of paths, pem, pins and disable_native")
    return _table(CertificatesConfig, item, entries, "client")


def _health(item: Item) -> HealthConfig:
    entries = item.table("a table of tcp or http, interval, timeout, failures and successes")
    before = len(item.source.errors)
    gathered: dict[str, Item] = {}
    names = names_of(HealthConfig)
    _report_unknown(gather(entries, names, gathered), "client", names)
    health = HealthConfig(**parse_keys(HealthConfig, gathered, item))
    if len(item.source.errors) > before:
        raise Invalid
    if health.tcp == (health.http is not None):
        raise BadValue('expected either tcp: true or http: "/path"')
    if health.timeout <= health.interval:
        return health
    if "timeout" in entries:
        raise BadValue("longer than the interval, but a check has to end before the next one", "timeout")
    return replace(health, timeout=health.interval)


def _status(item: Item) -> StatusConfig:
    entries = item.table("a table with http, and token or token_file")
    gathered: dict[str, Item] = {}
    for unknown in gather(entries, names_of(StatusConfig), gathered).values():
        unknown.source.report("unknown key: the table status has http, token and token_file", unknown.at)
    status = build(StatusConfig, gathered, item, **_from_files(gathered))
    address = status.http.ip
    if status.token is None and not (address and address.is_loopback):
        raise BadValue("an address other than loopback needs token or token_file", "http")
    return status


def _table(cls: type[T], item: Item, entries: Mapping[str, Item], side: Side, **ready: object) -> T:
    """Returns a dataclass instance from the entries of a table; unknown keys are reported."""
    gathered: dict[str, Item] = {}
    names = names_of(cls)
    _report_unknown(gather(entries, names, gathered), side, names)
    return build(cls, gathered, item, **ready, **_from_files(gathered))


def _from_files(gathered: Mapping[str, Item]) -> dict[str, object]:
    """Returns the secret fields for which a file is given, and the fields with its path."""
    found: dict[str, object] = {}
    for name, parse in _IN_FILES.items():
        found |= _from_file(gathered, name, parse)
    return found


def _from_file(gathered: Mapping[str, Item], name: str, parse: Callable[[object], object]) -> dict[str, object]:
    in_file = f"{name}_file"
    file = gathered.get(in_file)
    if file is None or file.value is None:
        return {}
    # Placeholder: an error has been reported, so this never becomes part of a configuration.
    unusable: dict[str, object] = {name: "", in_file: None}
    if name in gathered:
        file.source.report(f"given together with {name}: only one of them is allowed", file.at)
        return unusable
    try:
        path = file.parsed(lambda item: paths.file_path(item.value, item.source.directory))
        return {name: file.parsed(lambda item: parse(first_line(path, item.value))), in_file: path}
    except Invalid:
        return unusable


def _proxies(item: Item) -> tuple[ProxyConfig, ...]:
    entries = item.elements("a list of tables, each with users")
    _report_repeated_users(entries)
    return parsed_all(entries, _proxy)


def _proxy(item: Item) -> ProxyConfig:
    proxy = _table(ProxyConfig, item, item.table("a table with users"), "server")
    if proxy.only_v6 and proxy.bind_ip.version == 4:
        raise BadValue("an IPv4 bind_ip cannot be IPv6 only", "only_v6")
    return proxy


def _report_repeated_users(entries: list[Item]) -> None:
    """Reports each repeated UUID, in whatever spelling. :func:`_users` validates the values."""
    seen: dict[uuid_module.UUID, Item] = {}
    for entry in entries:
        users = entry.value.get("users") if isinstance(entry.value, Mapping) else None
        for written in users if isinstance(users, Mapping) else ():
            try:
                uuid = values.identifier(written)
            except BadValue:
                continue
            user = entry.child("users", users).child(str(written), None)
            if (first := seen.setdefault(uuid, user)) is not user:
                line = user.source.line(first.at)
                where = dotted(first.at[:-1]) + (f", line {line}" if line else "")
                user.source.report(f"this UUID is given twice, first in {where}", user.at)


def _users(item: Item) -> tuple[UserConfig, ...]:
    expected = 'a table of UUID = "password"'
    users = item.table(expected)
    if not users:
        raise BadValue(f"expected {expected}, not an empty table")
    return parsed_all(users.values(), _user)


def _user(item: Item) -> UserConfig:
    written = str(item.at[-1])
    try:
        uuid = values.identifier(written)
    except BadValue as error:
        # The password may be in the place of the UUID, so it is not shown.
        item.source.report(f"invalid key: {error.problem}", item.at, shown_as=item.at[:-1])
        raise Invalid from None
    if isinstance(item.value, Mapping):
        return _table(UserConfig, item, item.table(), "server", uuid=uuid)
    if item.value is None:
        raise BadValue("this user has no password")
    return UserConfig(uuid=uuid, password=passwords.secret(item.value))


# --- the top level and its TLS keys -----------------------------------------------------------------------------------

_SECURITY = {"type": "type", "type_": "type", "tls": "tls", "noise": "noise"}
_NOISE = {name: name for name in ("pattern", "local_private_key", "remote_public_key")}
_MISPLACED = {"congestion_control": "congestion_control"}
"""Top-level keys that an example of the reference implementation has among the TLS keys."""

_CLOSE = 0.6
"""Minimum similarity for suggesting a key: found by trial; a lower value suggests unrelated keys."""

_TLS_PLACE = "the top level or [security.tls]"
_TUNNEL_NAMES = names_of(TunnelConfig)
_PLACES: Mapping[Side, Mapping[str, Mapping[str, str]]] = {
    "client": {
        "the top level": names_of(ClientConfig) | _TUNNEL_NAMES,
        _TLS_PLACE: names_of(TlsClientConfig),
        "[security]": _SECURITY,
        "the table certificates": names_of(CertificatesConfig),
        "the table health": names_of(HealthConfig),
        "the table status": names_of(StatusConfig),
    },
    "server": {
        "the top level": names_of(ServerConfig),
        _TLS_PLACE: names_of(TlsServerConfig),
        "[security]": _SECURITY,
        "an entry of proxies": names_of(ProxyConfig),
        "the table of a user": names_of(UserConfig),
        "the table status": names_of(StatusConfig),
    },
}
"""Where each key belongs, for hints: the place, then its names."""


def _report_unknown(unknown: Mapping[str, Item], side: Side, *known_here: Mapping[str, str]) -> None:
    here = [name for names in known_here for name in names]
    for name, item in unknown.items():
        item.source.report(f"unknown key{_hint(name, side, here)}", item.at)


def _hint(name: str, side: Side, here: list[str]) -> str:
    other: Side = "server" if side == "client" else "client"
    for place, names in _PLACES[side].items():
        if name in names:
            return f": it belongs to {place}"
    for place, names in _PLACES[other].items():
        if name in names:
            inside = "" if place == "the top level" else f", in {place}"
            return f": this is a key of the {other}{inside}; a {side} has no such key"
    # Most likely a key of this table is meant, then one of another table, then one of the other side.
    candidates = [(similarity(name, each), each, "") for each in here]
    for place, names in _PLACES[side].items():
        candidates += [(similarity(name, each) - 0.05, each, f" It belongs to {place}") for each in names]
    for names in _PLACES[other].values():
        candidates += [(similarity(name, each) - 0.1, each, f" But that is a key of the {other}") for each in names]
    score, close, remark = max(candidates, key=lambda candidate: candidate[0])
    return f': did you mean "{close}"?{remark}' if score >= _CLOSE else ""


@dataclass(slots=True)
class _Sorted:
    """The keys of a configuration, or of a tunnel, by field, regardless of their place in the file.

    Attributes:
        own: Keys of the top level or of the tunnel.
        tls: TLS keys.
        tls_owner: The table in which TLS keys are expected, for errors about missing ones.
        noise: Whether the Noise handshake is requested.
    """

    own: dict[str, Item]
    tls: dict[str, Item]
    tls_owner: Item
    noise: bool = False


def _sorted_keys(root: Item, side: Side, own_names: Mapping[str, str]) -> _Sorted:
    tls_names = _PLACES[side][_TLS_PLACE]
    found = _Sorted(own={}, tls={}, tls_owner=root)

    def sort(item: Item, *targets: tuple[Mapping[str, str], dict[str, Item]]) -> None:
        if item.value is None:  # an empty table in YAML
            return
        try:
            rest = item.parsed(Item.table)
        except Invalid:
            return
        for names, gathered in targets:
            rest = gather(rest, names, gathered)
        if own_names is _TUNNEL_NAMES:
            rest = _without_keys_of_the_client(rest)
        _report_unknown(rest, side, *(names for names, _ in targets))

    security: dict[str, Item] = {}
    sort(root, (own_names, found.own), (tls_names, found.tls), ({"security": "security"}, security))
    if "security" not in security:
        return found
    found.tls_owner = security["security"]
    inner: dict[str, Item] = {}
    sort(found.tls_owner, (_SECURITY, inner), (tls_names, found.tls), (_MISPLACED, found.own))
    if "tls" in inner:
        found.tls_owner = inner["tls"]
        sort(found.tls_owner, (tls_names, found.tls), (_MISPLACED, found.own))
    if "noise" in inner:
        sort(inner["noise"], (_NOISE, {}))
    if "type" in inner:
        try:
            found.noise = inner["type"].parsed(_security_type) == "noise"
        except Invalid:
            pass
    if found.noise:
        root.source.report('Noise is not supported yet: only type = "tls" is', inner["type"].at)
    return found


def _without_keys_of_the_client(unknown: Mapping[str, Item]) -> dict[str, Item]:
    """Returns the unknown keys of a tunnel without those of the whole client, which are reported."""
    rest = dict(unknown)
    for name in names_of(ClientConfig).keys() & unknown.keys():
        item = rest.pop(name)
        item.source.report("this key is for the whole client, not for one tunnel: it belongs to the top level", item.at)
    return rest


def _security_type(item: Item) -> str:
    return choices.choice(item.value, {"tls": "tls", "noise": "noise"})


def _tunnel_tables(item: Item) -> dict[str, Item]:
    """Returns the tables of the tunnels by name. A program may begin with none, and add some."""
    expected = "a table of NAME = table"
    tables = item.table(expected)
    if not tables and item.source.path is not None:
        raise BadValue(f"expected {expected}, not an empty table")
    for name, table in tables.items():
        try:
            values.tunnel_name(name)
        except BadValue as error:
            item.source.report(error.problem, table.at)
    return tables


class _TunnelKeys(NamedTuple):
    """The keys of a tunnel, or the defaults of all tunnels, regardless of their place in the file.

    Attributes:
        values: The values of those that are usable, by field.
        items: All that are given, by field; None: it has no place in this source.
    """

    values: Mapping[str, object]
    items: Mapping[str, Item | None]


def _default_keys(keys: _Sorted) -> _TunnelKeys:
    in_files = _from_files(keys.own)
    own = in_files | parse_keys(TunnelConfig, keys.own, None, in_files)
    return _TunnelKeys(own | parse_keys(TlsClientConfig, keys.tls, None), dict.fromkeys(in_files) | keys.own | keys.tls)


def _tunnel_keys(table: Item, defaults: _TunnelKeys) -> _TunnelKeys:
    """Returns the keys of a tunnel: its own, and the defaults of those that it has not."""
    keys = _sorted_keys(table, "client", _TUNNEL_NAMES)
    replaced = {*keys.own, *keys.tls}
    for secret in _IN_FILES:
        pair = {secret, f"{secret}_file"}
        if not replaced.isdisjoint(pair):
            replaced |= pair  # each of them replaces the other, too
    values = {name: value for name, value in defaults.values.items() if name not in replaced}
    items = {name: item for name, item in defaults.items.items() if name not in replaced}
    in_files = _from_files(keys.own)
    values |= in_files | parse_keys(TunnelConfig, keys.own, table, in_files, inherited=items)
    values |= parse_keys(TlsClientConfig, keys.tls, None)
    return _TunnelKeys(values, items | keys.own | keys.tls)


_NO_TRUST = "no certificate would be trusted: disable_native is set, and neither paths nor pem is given"
_NO_UDP = "a unix socket carries TCP connections only, but network includes udp: set network to tcp"


def _tunnels(tables: Mapping[str, Item], defaults: _TunnelKeys, source: Source) -> dict[str, TunnelConfig]:
    """Returns the tunnels from their tables and the defaults.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    keys = {name: _tunnel_keys(table, defaults) for name, table in tables.items()}
    if source.errors:
        source.fail()
    tunnels = {}
    problems: dict[tuple[str, KeyPath], None] = {}  # several tunnels may have the same default
    for name, (found, items) in keys.items():
        of_tls = names_of(TlsClientConfig)
        tls = TlsClientConfig(**{key: value for key, value in found.items() if key in of_tls})  # type: ignore[arg-type]
        trust = tls.certificates
        if trust.disable_native and not (trust.paths or trust.pem or tls.skip_certificate_verification):
            problems[_NO_TRUST, (items["certificates"] or tables[name]).at] = None
        own = {key: value for key, value in found.items() if key not in of_tls}
        local = own["local"]
        if isinstance(local, LocalTargets) and local.is_unix and own.setdefault("network", "tcp") != "tcp":
            problems[_NO_UDP, (items["local"] or tables[name]).at] = None
        tunnels[name] = TunnelConfig(name=name, tls=tls, **own)  # type: ignore[arg-type]
    for problem, at in problems:
        source.report(problem, at)
    if source.errors:
        source.fail()
    return tunnels


def read_client(tree: Mapping[str, object], source: Source) -> ClientConfig:
    """Returns the configuration of a client from a tree of tables.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    root = Item(tree, (), source)
    keys = _sorted_keys(root, "client", _PLACES["client"]["the top level"])
    host = parse_keys(HostConfig, keys.own, root)
    defaults = _default_keys(keys)
    tables = {"": root._replace(value={})}
    if "tunnels" in keys.own:
        tables = {}
        try:
            if keys.own["tunnels"].value is None:
                source.report("this key has no value", keys.own["tunnels"].at)
            else:
                tables = keys.own["tunnels"].parsed(_tunnel_tables)
        except Invalid:
            pass
    tunnels = FrozenMap(_tunnels(tables, defaults, source))
    return ClientConfig(tunnels=tunnels, defaults=FrozenMap(defaults.values), **host)


def tunnel_from_options(config: ClientConfig, name: str, options: dict[str, object]) -> TunnelConfig:
    """Returns another tunnel for a client, validated like those in a file; the client's defaults apply.

    Args:
        config: The client's configuration.
        name: The tunnel's name.
        options: Its keys, in the forms that :meth:`ClientConfig.from_options` accepts; cleared.

    Raises:
        ConfigErrors: The name, or one or more keys are wrong.
    """
    source = Source()
    defaults = _TunnelKeys(config.defaults, dict.fromkeys(config.defaults))
    try:
        tables = Item({name: options}, ("tunnels",), source).parsed(_tunnel_tables)
        return _tunnels(tables, defaults, source)[name]
    except Invalid:
        problem: ConfigError = ConfigErrors(source.errors)
    except ConfigError as error:
        problem = bare(error)
    finally:
        options.clear()  # as bare() says
    raise problem


def read_server(tree: Mapping[str, object], source: Source) -> ServerConfig:
    """Returns the configuration of a server from a tree of tables.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    root = Item(tree, (), source)
    keys = _sorted_keys(root, "server", _PLACES["server"]["the top level"])
    tls = None
    try:
        # With Noise there may be no TLS keys; the error reported for it prevents use of the None.
        tls = None if keys.noise else build(TlsServerConfig, keys.tls, keys.tls_owner)
    except Invalid:
        pass
    try:
        config = build(ServerConfig, keys.own, root, tls=tls, **_from_files(keys.own))
    except Invalid:
        source.fail()
    if config.only_v6 and ":" not in config.server.host:
        source.report("an IPv4 address cannot be IPv6 only", keys.own["only_v6"].at)
        source.fail()
    return config
