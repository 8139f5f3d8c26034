"""The statistics of a server."""

from __future__ import annotations

import dataclasses
from typing import Any

from asport_sync.engine import ConnectionInfo, SocketAddress
from asport_sync.host.stats import Stats


@dataclasses.dataclass(frozen=True, slots=True)
class ClientConnectionStats:
    """A server's connection to one client.

    Attributes:
        id: Identifies the connection among those of this server.
        user: The UUID of the user; None before authentication.
        peer: The client's address: IP address and port.
        port: The public port; None if the client has none.
        public: The same with the address that it is bound to.
        network: The granted networks, such as "tcp and udp native"; None before they are granted.
        age: Seconds since the QUIC handshake.
        info: The figures of the QUIC connection; None: it has just ended.
        balance: How visitors are spread over the clients that share its port; None: the port is its own.
        user_name: The user's name in the configuration; None: they have none.
    """

    id: int
    user: str | None
    peer: SocketAddress
    port: int | None
    public: SocketAddress | None
    network: str | None
    age: float
    info: ConnectionInfo | None
    balance: str | None = None
    user_name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns one dict with the fields and those of ``info``; ``closed`` is true if that is missing."""
        figures = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "info"}
        return figures | ({"closed": True} if self.info is None else dataclasses.asdict(self.info))


@dataclasses.dataclass(frozen=True, slots=True)
class ServerStats(Stats):
    """What ``Server.stats()`` returns, in addition to ``Stats``.

    Attributes:
        address: IP address and port of the QUIC socket; None without figures.
        connections: The connections to clients, also to those that have not joined yet.
    """

    address: SocketAddress | None = None
    connections: tuple[ClientConnectionStats, ...] = ()

    def _own_figures(self) -> dict[str, Any]:
        return {"address": self.address, "connections": [each.as_dict() for each in self.connections]}
