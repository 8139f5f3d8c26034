"""One connection of a server to a client."""

from __future__ import annotations

import dataclasses
import uuid

from asport_sync.engine import Connection, SocketAddress
from asport_sync.host.calls import Subject
from asport_sync.runtime import sockets
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.timers import Timer
from asport_sync.server.groups import PortGroup
from asport_sync.server.policy import Grant, User, source_of
from asport_sync.server.ports import PublicPort
from asport_sync.server.public_tcp import PublicListener
from asport_sync.server.public_udp import PublicUdp
from asport_sync.wire import ServerHandshake


@dataclasses.dataclass(eq=False)
class ClientConnection:
    """One client's connection. Written by the events thread; ``ServerSession.stats`` reads single fields.

    Attributes:
        place: The user and the entry that it is counted for; None: it is not counted.
        subject: What calls of the program's callables are about.
        closing: The client was refused, was replaced or violated the protocol; its further commands are ignored.
        gone: The engine has reported the end of the connection.
        group: The clients that it shares its port with; None: the port is its own.
    """

    connection: Connection
    address: SocketAddress
    began: float
    handshake: ServerHandshake = dataclasses.field(default_factory=ServerHandshake)
    deadline: Timer | None = None
    user: User | None = None
    place: tuple[uuid.UUID, int] | None = None
    subject: Subject = dataclasses.field(default_factory=Subject)
    grant: Grant | None = None
    port: PublicPort | None = None
    group: PortGroup | None = None
    listener: PublicListener | None = None
    udp: PublicUdp | None = None
    closing: bool = False
    gone: bool = False

    def limit(self, user: User, pump: SelectorThread) -> None:
        """Applies other rules and limits for visitors to the port that the client has. The events thread.

        TCP connections and associations of visitors that are no longer permitted end; other TCP connections stay, also
        above a lower maximum.

        Args:
            user: The client's user as they are now.
            pump: The host's.

        Raises:
            HandleGoneError: The connection is over.
        """
        before, self.user = self.user, user
        if self.port is None:
            return  # the session does it when the client gets its port
        if before is not None and (before.visitors, before.max_associations) == (user.visitors, user.max_associations):
            return
        self.connection.limit(user.visitors)
        if self.udp is not None:
            pump.call(self.udp.limit, user.max_associations)

    @property
    def label(self) -> str:
        """The name of the client in log lines."""
        return f"client {sockets.text(self.address)}"

    @property
    def source(self) -> str:
        """The source that repeated log lines count for."""
        return source_of(self.address[0])
