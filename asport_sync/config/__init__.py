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
    UserConfig,
    without_effect,
)
from asport_sync.config.values import (
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
    "CertificatesConfig",
    "ClientConfig",
    "CongestionControl",
    "Credential",
    "DialectName",
    "FixedDialectName",
    "HostPort",
    "LogLevel",
    "Network",
    "PortRange",
    "PortSet",
    "ProxyConfig",
    "ProxyProtocol",
    "Relay",
    "ServerConfig",
    "TlsClientConfig",
    "TlsServerConfig",
    "UdpForwardMode",
    "UserConfig",
    "find",
    "load_client",
    "load_server",
    "loose_permissions",
    "without_effect",
    "written_pin",
]
