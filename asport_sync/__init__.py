"""ASPORT: a reverse tunnel over QUIC, as blocking library calls.

A service behind NAT becomes reachable on a public server's port::

    asport_sync.expose(8080, to="client.yaml").url
    asport_sync.Client(server="example.org:443", local="127.0.0.1:8080", uuid=..., password=...).run_forever()
    asport_sync.Server(listen="[::]:443", certificate=..., private_key=..., proxies=[...]).run_forever()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from asport_sync._version import __version__
from asport_sync.errors import (
    AsportError,
    AuthenticationError,
    BindError,
    CertificateError,
    ConfigError,
    ConfigErrors,
    ConnectError,
    EngineClosedError,
    EngineError,
    GoneError,
    HandleGoneError,
    HandshakeTimeoutError,
    LifecycleError,
    LocalProtocolError,
    NativeLibraryError,
    NetworkDeniedError,
    PortDeniedError,
    ProtocolError,
    RefusedError,
    RemoteProtocolError,
    UnhealthyError,
    _renamed,
)

if TYPE_CHECKING:
    from asport_sync.client.calls import ConnectedTunnel
    from asport_sync.client.client import Client
    from asport_sync.client.expose import Exposed, ExposedService, expose
    from asport_sync.client.stats import ClientStats, HealthStats, TunnelStats
    from asport_sync.client.tunnel import Tunnel, Tunnels
    from asport_sync.config import (
        CertificatesConfig,
        CertificatesOptions,
        ClientConfig,
        Credential,
        HealthConfig,
        HealthOptions,
        HostPort,
        LocalTargets,
        PortRange,
        PortRangeOptions,
        PortSet,
        ProxyConfig,
        ProxyOptions,
        ServerConfig,
        StatusConfig,
        StatusOptions,
        TlsClientConfig,
        TlsServerConfig,
        TunnelConfig,
        TunnelOptions,
        UnixSocket,
        UserConfig,
        UserOptions,
    )
    from asport_sync.host.reload import Reloaded
    from asport_sync.server.calls import ConnectedClient
    from asport_sync.server.server import Server
    from asport_sync.server.stats import ServerStats

__all__ = [
    "AsportError",
    "AuthenticationError",
    "BindError",
    "CertificateError",
    "CertificatesConfig",
    "CertificatesOptions",
    "Client",
    "ClientConfig",
    "ClientStats",
    "ConfigError",
    "ConfigErrors",
    "ConnectError",
    "ConnectedClient",
    "ConnectedTunnel",
    "Credential",
    "EngineClosedError",
    "EngineError",
    "Exposed",
    "ExposedService",
    "GoneError",
    "HandleGoneError",
    "HandshakeTimeoutError",
    "HealthConfig",
    "HealthOptions",
    "HealthStats",
    "HostPort",
    "LifecycleError",
    "LocalProtocolError",
    "LocalTargets",
    "NativeLibraryError",
    "NetworkDeniedError",
    "PortDeniedError",
    "PortRange",
    "PortRangeOptions",
    "PortSet",
    "ProtocolError",
    "ProxyConfig",
    "ProxyOptions",
    "RefusedError",
    "Reloaded",
    "RemoteProtocolError",
    "Server",
    "ServerConfig",
    "ServerStats",
    "StatusConfig",
    "StatusOptions",
    "TlsClientConfig",
    "TlsServerConfig",
    "Tunnel",
    "TunnelConfig",
    "TunnelOptions",
    "TunnelStats",
    "Tunnels",
    "UnhealthyError",
    "UnixSocket",
    "UserConfig",
    "UserOptions",
    "__version__",
    "expose",
]

# Loaded on first use: wire format, configuration and errors need no compiled extension, and this package is imported
# before any of them.
_MODULES = {
    "Client": "asport_sync.client.client",
    "ClientStats": "asport_sync.client.stats",
    "ConnectedClient": "asport_sync.server.calls",
    "ConnectedTunnel": "asport_sync.client.calls",
    "Exposed": "asport_sync.client.expose",
    "ExposedService": "asport_sync.client.expose",
    "HealthStats": "asport_sync.client.stats",
    "Reloaded": "asport_sync.host.reload",
    "Server": "asport_sync.server.server",
    "ServerStats": "asport_sync.server.stats",
    "CertificatesConfig": "asport_sync.config",
    "CertificatesOptions": "asport_sync.config",
    "ClientConfig": "asport_sync.config",
    "Credential": "asport_sync.config",
    "HealthConfig": "asport_sync.config",
    "HealthOptions": "asport_sync.config",
    "HostPort": "asport_sync.config",
    "LocalTargets": "asport_sync.config",
    "PortRange": "asport_sync.config",
    "PortRangeOptions": "asport_sync.config",
    "PortSet": "asport_sync.config",
    "ProxyConfig": "asport_sync.config",
    "ProxyOptions": "asport_sync.config",
    "ServerConfig": "asport_sync.config",
    "StatusConfig": "asport_sync.config",
    "StatusOptions": "asport_sync.config",
    "TlsClientConfig": "asport_sync.config",
    "TlsServerConfig": "asport_sync.config",
    "Tunnel": "asport_sync.client.tunnel",
    "TunnelConfig": "asport_sync.config",
    "TunnelOptions": "asport_sync.config",
    "TunnelStats": "asport_sync.client.stats",
    "Tunnels": "asport_sync.client.tunnel",
    "UnixSocket": "asport_sync.config",
    "UserConfig": "asport_sync.config",
    "UserOptions": "asport_sync.config",
    "expose": "asport_sync.client.expose",
}

if not TYPE_CHECKING:  # a type checker would assume that every submodule is defined here

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            return _renamed(name, __name__, 2)
        return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
