"""Configuration of clients and servers: files, keyword options, validated values.

Of this package it imports only ``errors`` and ``hidden``.
"""

from asport_sync.config.credentials import Credential, loose_permissions
from asport_sync.config.load import find, load_client, load_server
from asport_sync.config.model import (
    WITHOUT_EFFECT,
    CertificatesConfig,
    ClientConfig,
    ProxyConfig,
    ServerConfig,
    TlsClientConfig,
    TlsServerConfig,
    TunnelConfig,
    UserConfig,
    dialect_of,
    tunnel_from_options,
    without_effect,
)
from asport_sync.config.options import CertificatesOptions, PortRangeOptions, ProxyOptions, TunnelOptions, UserOptions
from asport_sync.config.values import (
    AmbiguousDialectName,
    CongestionControl,
    DialectName,
    FixedDialectName,
    HostPort,
    LogLevel,
    Network,
    PortRange,
    PortSet,
    ProxyProtocol,
    Relay,
    UdpForwardMode,
    written_pin,
)

__all__ = [
    "WITHOUT_EFFECT",
    "AmbiguousDialectName",
    "CertificatesConfig",
    "CertificatesOptions",
    "ClientConfig",
    "CongestionControl",
    "Credential",
    "DialectName",
    "FixedDialectName",
    "HostPort",
    "LogLevel",
    "Network",
    "PortRange",
    "PortRangeOptions",
    "PortSet",
    "ProxyConfig",
    "ProxyOptions",
    "ProxyProtocol",
    "Relay",
    "ServerConfig",
    "TlsClientConfig",
    "TlsServerConfig",
    "TunnelConfig",
    "TunnelOptions",
    "UdpForwardMode",
    "UserConfig",
    "UserOptions",
    "dialect_of",
    "find",
    "load_client",
    "load_server",
    "loose_permissions",
    "tunnel_from_options",
    "without_effect",
    "written_pin",
]
