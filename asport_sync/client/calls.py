"""What the callables of a client get."""

from __future__ import annotations

import dataclasses

from asport_sync.engine import SocketAddress


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectedTunnel:
    """A tunnel and its connection to the server, as ``on_connect``, ``on_ready`` and ``on_disconnect`` get it.

    Attributes:
        name: The tunnel's name; empty if it has none.
        server: IP address and UDP port of the server.
        address: The server's IP address and the public port; None before ``on_ready``.
    """

    name: str
    server: SocketAddress
    address: SocketAddress | None = None

    @property
    def port(self) -> int | None:
        """The public port; None before ``on_ready``."""
        return None if self.address is None else self.address[1]
