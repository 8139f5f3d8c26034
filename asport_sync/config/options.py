"""The types of nested options: what ``asport_sync.Client`` and ``asport_sync.Server`` accept in place of tables.

For type checkers and editors; the reader validates the values. The same for all threads.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from uuid import UUID

from asport_sync.config.addresses import Addresses
from asport_sync.config.choices import (
    BalanceName,
    CongestionControl,
    DialectName,
    FixedDialectName,
    Network,
    ProxyProtocol,
    UdpForwardMode,
)
from asport_sync.config.ports import PortSet


# written by python -m tests.config.signatures --write-docs
class PortRangeOptions(TypedDict):
    """A range of ports.

    Attributes:
        start: The first port.
        end: The last port, not below ``start``.
    """

    start: int
    end: int


class CertificatesOptions(TypedDict, total=False):
    """The option ``certificates``.

    Attributes:
        paths: Files with trusted certificates, PEM or DER: those of a certificate authority, or the server's own if it
            is self-signed. The files must exist.
        pem: Trusted certificates as PEM text, in addition to those of ``paths``.
        pins: SHA-256 hashes of public keys, as ``asport-sync pin`` prints them. The server's own certificate must have
            one of these keys, in addition to all other verification, and also with ``skip_certificate_verification``.
        pins_only: Whether ``pins`` are the only verification: issuer, name and dates of the certificate do not matter.
            This needs no certificate authority, and is as safe as the way by which the pins came. Requires ``pins``.
        trust_on_first_use: Whether to accept any key of a server that is not in ``known_servers`` yet, to add it there,
            and to accept only that key from then on. Issuer, name and dates of the certificate do not matter.
        known_servers: The file for ``trust_on_first_use``; created if there is none. Default:
            ``asport-sync/known_servers`` in ``$XDG_STATE_HOME``, else in ``~/.local/state``.
        disable_native: Whether to trust only ``paths`` and ``pem``, and to ignore the system's certificate authorities
            and those that ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` name.
    """

    paths: Sequence[str | os.PathLike[str]]
    pem: str
    pins: list[str] | tuple[str, ...]
    pins_only: bool
    trust_on_first_use: bool
    known_servers: str | os.PathLike[str]
    disable_native: bool


class HealthOptions(TypedDict, total=False):
    """The option ``health``.

    Attributes:
        tcp: Whether the service is healthy if it accepts a TCP connection.
        http: What is requested with ``GET``: the service is healthy if it answers with a status from 200 to 399.
        interval: Time from one check to the next. The first one is immediate.
        timeout: Maximum time of a check, not above ``interval``. Default: ``3s``, or ``interval`` if that is shorter.
        failures: Failed checks in a row after which a healthy service is unhealthy.
        successes: Successful checks in a row after which an unhealthy service is healthy; also required at the start.
    """

    tcp: bool
    http: str
    interval: float | str
    timeout: float | str
    failures: int | str
    successes: int | str


class TunnelOptions(TypedDict, total=False):
    """A tunnel in the option ``tunnels``.

    Attributes:
        server: The server, as name or IP address, and its UDP port.
        local: The local service that the tunnel makes public: its name or IP address, and its TCP and UDP port. A port
            alone means both loopback addresses. Of several addresses, the next is tried where one does not answer. A
            unix stream socket (``@``: an abstract one) carries TCP connections only.
        uuid: The user on the server.
        password: The user's password. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        network: The networks for which a public port is requested. If not given, it is ``tcp`` for a unix socket.
        udp_forward_mode: Carrier of UDP packets: QUIC DATAGRAM frames (``native``), or streams (``quic``), on which
            lost packets are retransmitted.
        udp_timeout: Time without traffic after which a UDP association ends. It ends sooner only by eviction.
        expected_port_range: Public ports to ask for. The server chooses one of them that the user may open and that is
            free.
        healthy_check: Without effect: a lost connection is detected by its silence and replaced immediately.
        timeout: Maximum time for the QUIC handshake of an attempt to connect.
        keep_alive: Time without packets after which the server is probed. A server that does not answer for another 1.5
            s (for twice ``keep_alive``, if that is shorter) is replaced by a new connection. It is lowered to a third
            of the idle timeout, which is the server's ``max_idle_time`` if that is shorter than this side's.
        heartbeat: Time between Heartbeat commands to the server. Default: ``3s``, or ``keep_alive`` if that is longer.
        gc_interval: Without effect: fragments are dropped when gc_lifetime is over, without periodic scans.
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
        allow_from: Addresses and networks of the visitors that are served, TCP and UDP; IPv4-mapped addresses count as
            IPv4. If not given, all are.
        deny_from: Addresses and networks of visitors that are not served, even if ``allow_from`` has them.
        max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a server
            has no such limit, and a client takes 16,384 for each tunnel.
        new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
            further ones are reset. If not given, there is no limit.
        udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new source
            is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may not open so
            many descriptors.
        server_name: Name or IP address that the server's certificate must be valid for. A name is also sent to the
            server as SNI. If not given, it is the host of ``server``.
        certificates: Which certificates and keys to trust.
        disable_sni: Whether to send no SNI, so that the TLS handshake does not name the server. The certificate is
            still verified.
        skip_certificate_verification: Whether to accept a certificate of any issuer, name and dates. Unless
            ``certificates.pins`` is given, anyone on the path can then pose as the server.
        congestion_control: Congestion control algorithm of this side's QUIC packets. The reference implementation's
            default is ``cubic``.
        handshake_timeout: Maximum time from the QUIC handshake until the client has joined: a client waits that long
            for ServerHello, a server for ClientHello.
        task_negotiation_timeout: Maximum time for the header of a stream to arrive.
        max_packet_size: Without effect: UDP packets of every size are carried whole. Values above 65,507 count as
            65,507.
        buffer_pool_size: Without effect: memory for UDP packets is allocated as they come, up to a fixed amount.
        send_window: Maximum bytes per stream that are queued or sent and not acknowledged yet.
        receive_window: Maximum bytes per stream that the peer may send before they are consumed.
        keylog: File to which TLS secrets are written in the NSS key log format, for debugging: anyone who can read it
            can decrypt the traffic. If not given, the environment variable ``SSLKEYLOGFILE`` names the file, if set.
        max_udp_payload: Maximum UDP payload in bytes of this side's QUIC packets. By default they are as large as
            interface and path allow, up to 32 KiB.
        alpn: Names of application protocols in order of preference (RFC 7301). Client and server must have one in
            common, because QUIC requires it (RFC 9001, section 8.1).
        zero_rtt_handshake: Without effect: ASPORT cannot use TLS early data.
    """

    server: str | tuple[str, int]
    local: str | int | tuple[str, int] | list[str] | list[str | int | tuple[str, int]]
    uuid: str | UUID
    password: str
    password_file: str | os.PathLike[str]
    network: Network | Sequence[Network]
    udp_forward_mode: UdpForwardMode
    udp_timeout: float | str
    expected_port_range: int | tuple[int, int] | list[int] | PortRangeOptions
    healthy_check: float | str
    timeout: float | str
    keep_alive: float | str
    heartbeat: float | str
    gc_interval: float | str
    gc_lifetime: float | str
    proxy_protocol: ProxyProtocol
    dialect: FixedDialectName
    dial_timeout: float | str
    health: HealthOptions
    bandwidth: Mapping[str, str]
    allow_from: Addresses
    deny_from: Addresses
    max_connections: int | str
    new_connections_per_second: int | str
    udp_sessions: int | str
    server_name: str
    certificates: CertificatesOptions
    disable_sni: bool
    skip_certificate_verification: bool
    congestion_control: CongestionControl
    handshake_timeout: float | str
    task_negotiation_timeout: float | str
    max_packet_size: int | str
    buffer_pool_size: int | str
    send_window: int | str
    receive_window: int | str
    keylog: str | os.PathLike[str]
    max_udp_payload: int | str
    alpn: list[str] | tuple[str, ...]
    zero_rtt_handshake: bool


class UserOptions(TypedDict, total=False):
    """A user in the option ``users`` of an entry of ``proxies``.

    Attributes:
        password: The user's password. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        name: A name for the user in logs, the status and the commands, in addition to the UUID. Each may occur only
            once on a server.
        dialect: Dialect of the protocol that this user's clients speak; ``auto``: identified by the mode byte if
            possible. If not given, that of the entry of ``proxies`` applies.
        max_clients: Maximum clients of this user at the same time. If not given, that of the entry of ``proxies``
            applies.
        bandwidth: Maximum rate of the payload of all connections of this user, TCP and UDP together: ``in`` from
            visitors to local services, ``out`` from local services to visitors. That of the entry of ``proxies``
            applies in addition. If not given, there is no limit of the user's own.
        allow_from: Addresses and networks of the visitors that are served, TCP and UDP; IPv4-mapped addresses count as
            IPv4. If not given, all are.
        deny_from: Addresses and networks of visitors that are not served, even if ``allow_from`` has them.
        max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a server
            has no such limit, and a client takes 16,384 for each tunnel.
        new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
            further ones are reset. If not given, there is no limit.
        udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new source
            is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may not open so
            many descriptors.
    """

    password: str
    password_file: str | os.PathLike[str]
    name: str
    dialect: DialectName
    max_clients: int | str
    bandwidth: Mapping[str, str]
    allow_from: Addresses
    deny_from: Addresses
    max_connections: int | str
    new_connections_per_second: int | str
    udp_sessions: int | str


class _StatusOptions(TypedDict):
    http: str | tuple[str, int]


class StatusOptions(_StatusOptions, total=False):
    """The option ``status``.

    Attributes:
        http: IP address and TCP port; port 0 lets the system choose. An address other than loopback needs a token.
        token: Token that requests must have: ``Authorization: Bearer TOKEN``, or as the password of any user. It
            crosses the network as it is: put a proxy with TLS in front.
        token_file: File whose first line is the token, instead of ``token``.
    """

    token: str
    token_file: str | os.PathLike[str]


class _ProxyOptions(TypedDict):
    users: Mapping[Any, str | UserOptions]


class ProxyOptions(_ProxyOptions, total=False):
    """An entry of the option ``proxies``.

    Attributes:
        users: The users by their UUID: the password, or a table with the keys of a user.
        bind_ip: Address of the public sockets. ``::`` includes IPv4, and becomes ``0.0.0.0`` if the host has no IPv6.
        allow_ports: Public ports that these users may open. Default: the system's ephemeral ports.
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
        allow_from: Addresses and networks of the visitors that are served, TCP and UDP; IPv4-mapped addresses count as
            IPv4. If not given, all are.
        deny_from: Addresses and networks of visitors that are not served, even if ``allow_from`` has them.
        max_connections: Maximum open TCP connections of one public port; further ones are reset. If not given, a server
            has no such limit, and a client takes 16,384 for each tunnel.
        new_connections_per_second: Maximum new TCP connections of one public port per second, and as many at once;
            further ones are reset. If not given, there is no limit.
        udp_sessions: Maximum UDP associations of one public port. Beyond it, idle ones are evicted, or the new source
            is refused. If not given, it is 65,535 on a server, and 16,384 on a client, or fewer if it may not open so
            many descriptors.
    """

    bind_ip: str | ipaddress.IPv4Address | ipaddress.IPv6Address
    allow_ports: int | PortRangeOptions | PortSet | list[int | tuple[int, int] | list[int] | PortRangeOptions]
    only_v6: bool
    allow_network: Network | Sequence[Network]
    dialect: DialectName
    max_clients: int | str
    bandwidth: Mapping[str, str]
    max_clients_total: int | str
    balance: BalanceName
    allow_from: Addresses
    deny_from: Addresses
    max_connections: int | str
    new_connections_per_second: int | str
    udp_sessions: int | str


# end of what python -m tests.config.signatures has written
