"""Configuration of clients and servers: files, keyword options, validated values.

Of this package it imports only ``errors`` and ``hidden``.
"""

from asport_sync.config.addresses import Addresses, AddressSet
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
from asport_sync.config.client import ClientConfig, tunnel_from_options
from asport_sync.config.common import HostConfig, LimitsConfig, StatusConfig, VisitorsConfig
from asport_sync.config.credentials import Credential, loose_permissions
from asport_sync.config.hosts import HostPort, LocalAddress, LocalTargets, UnixSocket
from asport_sync.config.load import client_of_uri, find, load_client, load_server, locate, origin
from asport_sync.config.options import (
    CertificatesOptions,
    HealthOptions,
    PortRangeOptions,
    ProxyOptions,
    StatusOptions,
    TunnelOptions,
    UserOptions,
)
from asport_sync.config.permissions import files_with_secrets, loose_files
from asport_sync.config.pins import written_pin
from asport_sync.config.places import Side
from asport_sync.config.ports import PortRange, PortSet
from asport_sync.config.rates import Bandwidth, written_rate
from asport_sync.config.server import ProxyConfig, ServerConfig, UserConfig, dialect_of
from asport_sync.config.tls import CertificatesConfig, TlsClientConfig, TlsServerConfig
from asport_sync.config.tunnel import HealthConfig, TunnelConfig
from asport_sync.config.uri import ServerUri, is_uri, parse_uri
from asport_sync.config.without_effect import WITHOUT_EFFECT, without_effect

__all__ = [
    "WITHOUT_EFFECT",
    "AddressSet",
    "Addresses",
    "AmbiguousDialectName",
    "BalanceName",
    "Bandwidth",
    "CertificatesConfig",
    "CertificatesOptions",
    "ClientConfig",
    "CongestionControl",
    "Credential",
    "DialectName",
    "FixedDialectName",
    "HealthConfig",
    "HealthOptions",
    "HostConfig",
    "HostPort",
    "LimitsConfig",
    "LocalAddress",
    "LocalTargets",
    "LogFormat",
    "LogLevel",
    "Network",
    "PortRange",
    "PortRangeOptions",
    "PortSet",
    "ProxyConfig",
    "ProxyOptions",
    "ProxyProtocol",
    "Ready",
    "Relay",
    "ServerConfig",
    "ServerUri",
    "Side",
    "StatusConfig",
    "StatusOptions",
    "TlsClientConfig",
    "TlsServerConfig",
    "TunnelConfig",
    "TunnelOptions",
    "UdpForwardMode",
    "UnixSocket",
    "UserConfig",
    "UserOptions",
    "VisitorsConfig",
    "client_of_uri",
    "dialect_of",
    "files_with_secrets",
    "find",
    "is_uri",
    "load_client",
    "load_server",
    "locate",
    "loose_files",
    "loose_permissions",
    "origin",
    "parse_uri",
    "tunnel_from_options",
    "without_effect",
    "written_pin",
    "written_rate",
]
