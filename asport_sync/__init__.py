"""ASPORT: a reverse tunnel over QUIC, as blocking library calls.

A service behind NAT becomes reachable on a public server's port::

    asport_sync.Client(server="example.org:443", local="127.0.0.1:8080", uuid=..., password=...).run_forever()
    asport_sync.Server(listen="[::]:443", certificate=..., private_key=..., proxies=[...]).run_forever()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asport_sync._version import __version__
from asport_sync.errors import (
    AsportError,
    AuthenticationFailed,
    BindFailed,
    CertificateError,
    ConfigError,
    ConnectError,
    EngineClosed,
    EngineError,
    HandshakeTimeout,
    LifecycleError,
    LocalProtocolError,
    NativeLibraryError,
    NetworkDenied,
    PortDenied,
    ProtocolError,
    RefusedError,
    RemoteProtocolError,
)

if TYPE_CHECKING:
    from asport_sync.client.client import Client
    from asport_sync.client.stats import ClientStats
    from asport_sync.server.server import Server
    from asport_sync.server.stats import ServerStats

__all__ = [
    "AsportError",
    "AuthenticationFailed",
    "BindFailed",
    "CertificateError",
    "Client",
    "ClientStats",
    "ConfigError",
    "ConnectError",
    "EngineClosed",
    "EngineError",
    "HandshakeTimeout",
    "LifecycleError",
    "LocalProtocolError",
    "NativeLibraryError",
    "NetworkDenied",
    "PortDenied",
    "ProtocolError",
    "RefusedError",
    "RemoteProtocolError",
    "Server",
    "ServerStats",
    "__version__",
]

if not TYPE_CHECKING:  # a type checker would assume that every submodule is defined here

    def __getattr__(name: str) -> object:
        # Loaded on first use: wire format, configuration and errors need no compiled extension, and this package is
        # imported before any of them.
        if name == "Client":
            from asport_sync.client.client import Client

            return Client
        if name == "Server":
            from asport_sync.server.server import Server

            return Server
        if name == "ClientStats":
            from asport_sync.client.stats import ClientStats

            return ClientStats
        if name == "ServerStats":
            from asport_sync.server.stats import ServerStats

            return ServerStats
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
