"""One connection of a server to a client."""

from __future__ import annotations

import dataclasses

from asport_sync.engine import Connection, SocketAddress
from asport_sync.runtime import sockets
from asport_sync.runtime.timers import Timer
from asport_sync.server.policy import Grant, User, source_of
from asport_sync.server.ports import PublicPort
from asport_sync.server.public_tcp import PublicListener
from asport_sync.server.public_udp import PublicUdp
from asport_sync.wire import ServerHandshake


@dataclasses.dataclass(eq=False)
class ClientConnection:
    """One client's connection. Written by the events thread; ``ServerSession.stats`` reads single fields.

    Attributes:
        closing: The client was refused, was replaced or violated the protocol; its further commands are ignored.
        gone: The engine has reported the end of the connection.
    """

    connection: Connection
    address: SocketAddress
    began: float
    handshake: ServerHandshake = dataclasses.field(default_factory=ServerHandshake)
    deadline: Timer | None = None
    user: User | None = None
    grant: Grant | None = None
    port: PublicPort | None = None
    listener: PublicListener | None = None
    udp: PublicUdp | None = None
    closing: bool = False
    gone: bool = False

    @property
    def label(self) -> str:
        """The name of the client in log lines."""
        return f"client {sockets.text(self.address)}"

    @property
    def source(self) -> str:
        """The source that repeated log lines count for."""
        return source_of(self.address[0])
