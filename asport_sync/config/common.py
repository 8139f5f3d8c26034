"""Keys that clients and servers have: of the process, of connections, of visitors.

This module, :mod:`tls`, :mod:`tunnel`, :mod:`client` and :mod:`server` are the model: every key, its default and its
unit, as frozen dataclasses.

The names are those of the configuration files. Values are stored converted: durations as seconds, sizes as bytes, paths
absolute if they came from a file. :mod:`asport_sync.config.load` and ``from_options`` create and validate instances;
the constructors take converted values and validate nothing. All are immutable: any thread may read them.

docs/configuration.md, the constructors of Client and Server, and options.py are generated from the docstrings and the
metadata of the fields (tests/config/reference.py and signatures.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asport_sync.config import choices, durations, hosts, kinds, machine, passwords, paths, values
from asport_sync.config.addresses import MAX_NETWORKS, AddressSet, addresses, some_addresses
from asport_sync.config.bad_value import BadValue
from asport_sync.config.choices import CongestionControl, LogFormat, LogLevel, Ready, Relay
from asport_sync.config.hosts import HostPort
from asport_sync.config.keys import DURATION, PATH, choice_of, integer_of, with_inherited_keys
from asport_sync.config.paths import ControlSocket
from asport_sync.config.places import belongs_to
from asport_sync.config.reader import Item, build, documented, gather, key, names_of, scalar
from asport_sync.config.tables import from_files

_SMALLEST_WINDOW = 16384
"""Bytes: a TLS record and about a dozen packets. With a smaller window a tunnel would stall between them."""
_LARGEST_RECEIVE_WINDOW = 1 << 30
"""Bytes. All streams of a connection together may have that much in flight."""
_LARGEST_BUFFER_POOL = 1 << 20
_MAX_WORKERS = 65535
_MAX_CONNECTIONS = 1 << 20
"""As many streams as the engine has places for."""
_MAX_NEW_CONNECTIONS = 1000000
"""Per second: more than a machine accepts."""
_MAX_UDP_SESSIONS = 65535
"""As many as there are IDs of associations on the wire, without 0."""
_OFF_OR_DURATION = key(
    lambda item: durations.off_or_duration(item.value, bare_seconds=item.source.path is None),
    accepts="`off`, or a duration, `1s` to `9h`",
    schema=kinds.OFF_OR_DURATION,
)
_ADDRESSES = "IP address or network (`address/length`), or a list of up to 4,096 of these"
_TOKEN = scalar(passwords.token, accepts="text of at least 16 characters", schema=kinds.TOKEN)


@belongs_to("client", "the table status")
@belongs_to("server", "the table status")
@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """The table ``status``: where the state is shown over HTTP: a page, JSON, and metrics for Prometheus.

    Attributes:
        http: IP address and TCP port; port 0 lets the system choose. An address other than loopback needs a token.
        token: Token that requests must have: ``Authorization: Bearer TOKEN``, or as the password of any user; not shown
            by ``repr``. It crosses the network as it is: put a proxy with TLS in front.
        token_file: File whose first line is the token, instead of ``token``.
    """

    http: HostPort = field(
        metadata=documented(scalar(hosts.ip_port, accepts="`ip:port`", schema=kinds.IP_PORT), since="Unreleased")
    )
    token: str | None = field(default=None, repr=False, metadata=documented(_TOKEN, since="Unreleased"))
    token_file: Path | None = field(default=None, metadata=documented(PATH, since="Unreleased"))


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
            integer_of(machine.SMALLEST_RECEIVE_MEMORY, 2**63 - 1, "bytes"),
            since="Unreleased",
            default="a quarter of the memory available to the process, from 64 MiB to 1 GiB",
        ),
    )
    log_level: LogLevel = field(default="warn", metadata=choice_of(choices.LOG_LEVELS))
    log_format: LogFormat = field(
        default="text", metadata=documented(choice_of(choices.LOG_FORMATS), since="Unreleased", needs_restart=True)
    )
    access_log: Path | None = field(
        default=None,
        metadata=documented(
            key(lambda item: _access_log(item), accepts="path, or `-`", schema=kinds.PATH),
            since="Unreleased",
            needs_restart=True,
        ),
    )
    ready: Ready = field(
        default="started", metadata=documented(choice_of(choices.READY), since="Unreleased", needs_restart=True)
    )
    control_socket: ControlSocket | None = field(
        default=None,
        metadata=documented(
            key(
                lambda item: paths.control_socket(item.value, item.source.directory),
                accepts="path, or `off`",
                schema=kinds.PATH_OR_OFF,
            ),
            since="Unreleased",
            default=(
                "in the commands `client.sock` or `server.sock` in `$RUNTIME_DIRECTORY`, else in `asport-sync/` of "
                "`$XDG_RUNTIME_DIR`, of `/run/user/UID` or, for root, of `/run`, else none; in programs none"
            ),
            needs_restart=True,
        ),
    )
    status: StatusConfig | None = field(
        default=None,
        metadata=documented(
            key(lambda item: _status(item), accepts="table, see below", schema=kinds.TABLE),
            since="Unreleased",
            needs_restart=True,
        ),
    )
    relay: Relay = field(
        default="auto", metadata=documented(choice_of(choices.RELAYS), since="Unreleased", needs_restart=True)
    )
    max_workers: int | None = field(
        default=None,
        metadata=documented(
            integer_of(0, _MAX_WORKERS),
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

    congestion_control: CongestionControl = field(default="bbr", metadata=choice_of(choices.CONGESTION_CONTROLS))
    handshake_timeout: float = field(default=3.0, metadata=DURATION)
    task_negotiation_timeout: float = field(default=3.0, metadata=DURATION)
    max_packet_size: int = field(
        default=1350,
        metadata=scalar(
            values.packet_size, accepts="whole number of bytes, `1` or more", schema=kinds.integer(1, 2**63 - 1)
        ),
    )
    buffer_pool_size: int = field(default=32, metadata=integer_of(0, _LARGEST_BUFFER_POOL))
    send_window: int = field(default=16 << 20, metadata=integer_of(_SMALLEST_WINDOW, 2**64 - 1, "bytes"))
    receive_window: int = field(
        default=8 << 20, metadata=integer_of(_SMALLEST_WINDOW, _LARGEST_RECEIVE_WINDOW, "bytes")
    )
    keylog: Path | None = field(default=None, metadata=PATH)
    # 1200: RFC 9000, section 14. 65527: the maximum UDP payload, section 18.2.
    max_udp_payload: int = field(default=65527, metadata=integer_of(1200, 65527, "bytes"))


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
        default=None, metadata=documented(integer_of(1, _MAX_CONNECTIONS), since="Unreleased")
    )
    new_connections_per_second: int | None = field(
        default=None, metadata=documented(integer_of(1, _MAX_NEW_CONNECTIONS), since="Unreleased")
    )
    udp_sessions: int | None = field(
        default=None, metadata=documented(integer_of(1, _MAX_UDP_SESSIONS), since="Unreleased")
    )


@with_inherited_keys
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
        default=None,
        metadata=documented(
            scalar(some_addresses, accepts=_ADDRESSES, schema=kinds.addresses(MAX_NETWORKS, minimum=1)),
            since="Unreleased",
        ),
    )
    deny_from: AddressSet | None = field(
        default=None,
        metadata=documented(
            scalar(addresses, accepts=_ADDRESSES, schema=kinds.addresses(MAX_NETWORKS)), since="Unreleased"
        ),
    )


def _access_log(item: Item) -> Path:
    return Path("-") if item.value == "-" else paths.file_path(item.value, item.source.directory)


def _status(item: Item) -> StatusConfig:
    entries = item.table("a table with http, and token or token_file")
    gathered: dict[str, Item] = {}
    for unknown in gather(entries, names_of(StatusConfig), gathered).values():
        unknown.source.report("unknown key: the table status has http, token and token_file", unknown.at)
    status = build(StatusConfig, gathered, item, **from_files(gathered))
    address = status.http.ip
    if status.token is None and not (address and address.is_loopback):
        raise BadValue("an address other than loopback needs token or token_file", "http")
    return status
