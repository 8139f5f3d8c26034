"""Which session an event belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asport_sync.engine import Closed, Connected, Connection, Endpoint, Event

if TYPE_CHECKING:
    from asport_sync.host.session import Session


class Router:
    """Finds sessions by connection, and by endpoint for the first event of an accepted connection. The events thread.

    A connection is forgotten with Closed, its last event.
    """

    def __init__(self) -> None:
        self._connections: dict[Connection, Session] = {}
        self._endpoints: dict[Endpoint, Session] = {}

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def add_endpoint(self, endpoint: Endpoint, session: Session) -> None:
        """Assigns all connections that the endpoint accepts to this session."""
        self._endpoints[endpoint] = session

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Forgets an endpoint that is being closed; connections that are known already stay assigned."""
        self._endpoints.pop(endpoint, None)

    def add_connection(self, connection: Connection, session: Session) -> None:
        """Assigns a connection to this session."""
        self._connections[connection] = session

    def session_of(self, connection: Connection) -> Session | None:
        """Returns the session that a connection belongs to; None: it is over."""
        return self._connections.get(connection)

    def route(self, event: Event) -> Session | None:
        """Returns the session that an event belongs to; None: its connection is over."""
        connection = event.connection  # type: ignore[union-attr]  # LogRecord is not routed
        session = self._connections.get(connection)
        if isinstance(event, (Connected, Closed)) and session is None and event.endpoint is not None:
            session = self._endpoints.get(event.endpoint)
            if session is not None and isinstance(event, Connected):
                self._connections[connection] = session
        if isinstance(event, Closed):
            self._connections.pop(connection, None)
        return session
