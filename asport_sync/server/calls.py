"""What the callables of a server get."""

from __future__ import annotations

import dataclasses

from asport_sync.engine import SocketAddress


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectedClient:
    """A client, as ``on_connect``, ``on_ready`` and ``on_disconnect`` get it.

    Attributes:
        id: Identifies the connection among those of this server, as in ``ServerStats.connections``.
        user: The UUID of the user.
        peer: The client's address when it connected: IP address and port.
        address: The address that the public port is bound to, and the port; None before ``on_ready``.
        user_name: The user's name in the configuration; None: they have none.
    """

    id: int
    user: str
    peer: SocketAddress
    address: SocketAddress | None = None
    user_name: str | None = None

    @property
    def port(self) -> int | None:
        """The public port; None before ``on_ready``."""
        return None if self.address is None else self.address[1]
