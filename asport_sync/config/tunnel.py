"""The keys of a tunnel of a client, see :mod:`asport_sync.config.common`."""

from __future__ import annotations

import uuid as uuid_module
from dataclasses import dataclass, field, replace
from pathlib import Path

from asport_sync.config import choices, durations, hosts, kinds, ports, values
from asport_sync.config.bad_value import BadValue
from asport_sync.config.choices import FixedDialectName, Network, ProxyProtocol, UdpForwardMode
from asport_sync.config.common import ConnectionConfig, VisitorsConfig
from asport_sync.config.hosts import HostPort, LocalTargets
from asport_sync.config.keys import (
    BANDWIDTH,
    BOOLEAN,
    DURATION,
    NETWORK,
    PASSWORD,
    PATH,
    choice_of,
    integer_of,
    with_inherited_keys,
)
from asport_sync.config.places import TOP_LEVEL, belongs_to, report_unknown
from asport_sync.config.ports import ALL_PORTS, PortRange
from asport_sync.config.rates import Bandwidth
from asport_sync.config.reader import Invalid, Item, documented, gather, key, names_of, parse_keys, scalar
from asport_sync.config.tls import TlsClientConfig

_MAX_IN_A_ROW = 1000
"""Health checks: far more than makes sense."""
_INTERVAL = key(
    lambda item: durations.check_interval(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `100ms` to `100years`",
    schema=kinds.DURATION,
)
_KEEP_ALIVE = key(
    lambda item: durations.keep_alive(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `100ms` to `1h`",
    schema=kinds.DURATION,
)
_LOCAL = key(
    lambda item: hosts.local(item.value, item.source.directory),
    accepts="`host:port`, a port, a list of these, `unix:PATH` or `unix:@NAME`",
    schema=kinds.LOCAL,
)
_HTTP_PATH = scalar(
    values.http_path, accepts="path that begins with `/`, with a query or without", schema=kinds.HTTP_PATH
)


@belongs_to("client", "the table health")
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

    tcp: bool = field(default=False, metadata=documented(BOOLEAN, since="Unreleased"))
    http: str | None = field(default=None, metadata=documented(_HTTP_PATH, since="Unreleased"))
    interval: float = field(default=10.0, metadata=documented(_INTERVAL, since="Unreleased"))
    timeout: float = field(
        default=3.0,
        metadata=documented(DURATION, since="Unreleased", default="`3s`, or `interval` if that is shorter"),
    )
    failures: int = field(default=3, metadata=documented(integer_of(1, _MAX_IN_A_ROW), since="Unreleased"))
    successes: int = field(default=1, metadata=documented(integer_of(1, _MAX_IN_A_ROW), since="Unreleased"))


@belongs_to("client", TOP_LEVEL)
@with_inherited_keys
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
    server: HostPort = field(metadata=scalar(hosts.host_port, accepts="`host:port`", schema=kinds.HOST_PORT))
    local: LocalTargets = field(metadata=_LOCAL)
    uuid: uuid_module.UUID = field(metadata=scalar(values.identifier, accepts="UUID", schema=kinds.UUID))
    password: str = field(repr=False, metadata=PASSWORD)
    password_file: Path | None = field(default=None, metadata=PATH)
    network: Network = field(default="both", metadata=NETWORK)
    udp_forward_mode: UdpForwardMode = field(default="native", metadata=choice_of(choices.UDP_FORWARD_MODES))
    udp_timeout: float = field(default=300.0, metadata=DURATION)
    expected_port_range: PortRange = field(
        default=ALL_PORTS,
        metadata=scalar(
            ports.port_range, "port", accepts="port, `[start, end]` or `{start, end}`", schema=kinds.PORT_RANGE
        ),
    )
    healthy_check: float = field(default=20.0, metadata=DURATION)
    timeout: float = field(default=8.0, metadata=DURATION)
    keep_alive: float = field(default=0.75, metadata=documented(_KEEP_ALIVE, since="Unreleased"))
    heartbeat: float | None = field(
        default=None, metadata=documented(DURATION, default="`3s`, or `keep_alive` if that is longer")
    )
    gc_interval: float = field(default=3.0, metadata=DURATION)
    gc_lifetime: float = field(default=15.0, metadata=DURATION)
    proxy_protocol: ProxyProtocol = field(default="none", metadata=choice_of(choices.PROXY_PROTOCOLS))
    dialect: FixedDialectName = field(
        default="draft",
        metadata=scalar(
            choices.client_dialect,
            accepts=choices.words(choices.FIXED_DIALECTS),
            schema=kinds.choice(choices.FIXED_DIALECTS),
        ),
    )
    dial_timeout: float = field(default=5.0, metadata=DURATION)
    health: HealthConfig | None = field(
        default=None,
        metadata=documented(
            key(lambda item: _health(item), accepts="table, see below", schema=kinds.TABLE), since="Unreleased"
        ),
    )
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(BANDWIDTH, since="Unreleased"))
    tls: TlsClientConfig = field(default_factory=TlsClientConfig)

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must have: ``tls.server_name``, or else the host of ``server``."""
        return self.tls.server_name or self.server.host


def _health(item: Item) -> HealthConfig:
    entries = item.table("a table of tcp or http, interval, timeout, failures and successes")
    before = len(item.source.errors)
    gathered: dict[str, Item] = {}
    names = names_of(HealthConfig)
    report_unknown(gather(entries, names, gathered), "client", names)
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
