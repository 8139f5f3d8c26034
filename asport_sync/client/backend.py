"""Where a client's streams and associations end: the seam between the tunnel and what it makes public."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asport_sync.client.address_order import AddressOrder
from asport_sync.client.local_tcp import LocalService
from asport_sync.client.local_udp import LocalAssociations, LocalTarget
from asport_sync.config import TunnelConfig
from asport_sync.engine import Connection, SocketAddress, Stream, UdpSocket
from asport_sync.host.associations import SharedBudget
from asport_sync.host.session import Session
from asport_sync.wire import Address

PROXY_VERSIONS = {"none": None, "v1": 1, "v2": 2}
"""Versions of the PROXY header, by the values of the key ``proxy_protocol``."""


class Associations(Protocol):
    """The UDP associations of one connection. The pump thread only."""

    def open(self) -> None:
        """Begins: associations may be wanted from now on."""

    def joined(self, public: Address) -> None:
        """Tells the public address and port, which were not known before."""

    def wanted(self, association: int, peer: SocketAddress) -> None:
        """Creates an association for a Packet that waits for it, or refuses it. ``peer`` is the visitor."""

    def end(self, association: int) -> None:
        """Ends an association that the server has dissociated. Does nothing if there is none."""

    def busy(self, udp: UdpSocket) -> None:
        """Begins to read a socket that the engine has handed over to the pump."""

    def refused(self, udp: UdpSocket, error: int, *, answered: bool) -> None:
        """Handles a socket that does not take datagrams, as ``engine.UdpRefused``."""

    def drain(self) -> None:
        """Lets associations end soon after their last traffic. No more are wanted."""

    def close(self) -> None:
        """Ends all associations of a connection that is over. Idempotent."""


class Backend(Protocol):
    """What a client makes public."""

    def announce(self, connection: Connection) -> None:
        """Prepares for streams, which may arrive on this connection from now on. The events thread; must not block."""

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        """Takes a new stream. The events thread; must not block.

        Args:
            connection: To the server.
            stream: The stream; reset if it can't be served.
            source: The visitor, as reported by the server.
            public: The public address and port.

        Raises:
            LifecycleError: The client is being stopped.
            RuntimeError: No thread is available.
        """

    def drain(self, connection: Connection) -> None:
        """Takes no more streams on this connection but by ``serve``. The events thread; must not block.

        Raises:
            GoneError: The connection is over.
        """

    def forget(self, connection: Connection) -> None:
        """Forgets a connection that is over. The events thread; must not block."""

    def associations(self, connection: Connection) -> Associations:
        """Returns the associations of a new connection. The events thread; must not block."""


class DialledBackend:
    """Dials the addresses in the key ``local``.

    Args:
        config: The tunnel's configuration.
        session: The tunnel's session.
        places: Places of UDP associations, for all tunnels of the client.
        order: The addresses.
        failed: Called with the reason why the local service could not be reached. Workers and the pump thread.
    """

    def __init__(
        self,
        config: TunnelConfig,
        session: Session,
        places: SharedBudget[Any],
        order: AddressOrder,
        failed: Callable[[str], object],
    ) -> None:
        host = session.host
        self._config = config
        self._session = session
        self._host = host
        self._tcp = LocalService(
            order=order,
            dial_timeout=config.dial_timeout,
            proxy_version=PROXY_VERSIONS[config.proxy_protocol],
            relays=host.relays,
            stop=host.stopping,
            counters=session.counters,
            log=session.log,
            place=f"{config.name}: " if config.name else "",
            failed=failed,
        )
        self._udp = LocalTarget(order, host.pump, host.workers)
        self._places = places
        self._failed = failed
        # The tunnel's own, for all its connections; None: it has no limit of its own.
        self._own_places: SharedBudget[Any] | None = None
        if config.udp_sessions is not None:
            self._own_places = SharedBudget(config.udp_sessions)

    def announce(self, connection: Connection) -> None:
        """Lets the engine dial, if it can."""
        self._tcp.announce(connection)

    def serve(self, connection: Connection, stream: Stream, source: Address | None, public: Address) -> None:
        """Lets a worker dial."""
        self._host.workers.submit(self._tcp.serve, connection, stream, source, public)

    def drain(self, connection: Connection) -> None:
        """Lets the engine dial no more."""
        self._tcp.drain(connection)

    def forget(self, connection: Connection) -> None:
        """Forgets what the engine may dial."""
        self._tcp.forget(connection)

    def associations(self, connection: Connection) -> Associations:
        """Returns associations with a socket each, connected to the local service."""
        host = self._host
        return LocalAssociations(
            host.pump,
            connection,
            self._udp,
            proxy=self._config.proxy_protocol == "v2",
            timeout=self._config.udp_timeout,
            budget=self._places,
            own_budget=self._own_places,
            counters=self._session.counters,
            log=self._session.log,
            limit=self._session.limit,
            for_pump=host.pump_reads_all,
            failed=self._failed,
        )
