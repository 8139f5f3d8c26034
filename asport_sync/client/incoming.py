"""What a server opens on the connections of a tunnel: streams and UDP associations."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable

from asport_sync.client.backend import Backend
from asport_sync.client.connection import ServerConnection
from asport_sync.engine import (
    AssociationWanted,
    Connection,
    Stream,
    StreamOpened,
    UdpLargeTransfer,
    UdpRefused,
    Violation,
    VisitorsRefused,
)
from asport_sync.errors import GoneError, LifecycleError, RemoteProtocolError
from asport_sync.host.session import Session
from asport_sync.host.visitors import RefusalLog
from asport_sync.wire import Address, Connect, ForwardMode, decode

_MAX_HELD_STREAMS = 256  # streams that wait for the ServerHello; a server has no reason to open any earlier


class Incoming:
    """Serves or refuses what the server opens. The events thread only.

    Args:
        session: The tunnel's session.
        server: The server, for log lines.
        mode: What was requested: anything else is refused.
        backend: Serves streams and associations.
        is_draining: Returns whether everything new is refused.
    """

    def __init__(
        self, session: Session, server: str, mode: ForwardMode, backend: Backend, is_draining: Callable[[], bool]
    ) -> None:
        self._session = session
        self._server = server
        self._mode = mode
        self._backend = backend
        self._is_draining = is_draining
        self._refusals = RefusalLog(session.log)

    def stream_opened(self, server_connection: ServerConnection, event: StreamOpened) -> None:
        """Serves a stream, holds it until the ServerHello, or refuses it."""
        try:
            command = decode(event.header)[0]
            server_connection.handshake.receive(command)
            if not isinstance(command, Connect):
                raise RemoteProtocolError(f"{type(command).__name__} on a bidirectional stream")
        except RemoteProtocolError as problem:
            self.broke_rules(str(problem))
            event.stream.reset()
            return
        if self._is_draining():
            self._session.counters.add("streams_refused_draining")
            self._session.limit.log(
                logging.INFO, self._session.log, "%s: refused a TCP connection: draining", self._server
            )
            event.stream.refuse()
        elif server_connection.given_up or not self._mode.tcp:
            self._session.counters.add("streams_refused_no_tcp")
            self._session.limit.warning(self._session.log, "%s: refused a TCP connection: not requested", self._server)
            event.stream.refuse()
        elif server_connection.public is not None:
            self._serve(server_connection, server_connection.public, event.stream, command.address)
        elif len(server_connection.held) < _MAX_HELD_STREAMS:
            server_connection.held.append((event.stream, command.address))
        else:
            self._session.counters.add("streams_refused_before_server_hello")
            event.stream.refuse()

    def serve_held(self, server_connection: ServerConnection, public: Address) -> None:
        """Serves the streams that arrived before the ServerHello."""
        while server_connection.held:
            self._serve(server_connection, public, *server_connection.held.popleft())

    def refuse_held(self, server_connection: ServerConnection) -> None:
        """Refuses the streams that arrived before the ServerHello, which will not arrive any more."""
        while server_connection.held:
            # Streams outlive their connection until they are relayed, attached or reset.
            with contextlib.suppress(GoneError):
                server_connection.held.popleft()[0].refuse()

    def _serve(
        self, server_connection: ServerConnection, public: Address, stream: Stream, source: Address | None
    ) -> None:
        try:
            self._backend.serve(server_connection.connection, stream, source, public)
        except (LifecycleError, RuntimeError) as problem:
            self._session.counters.add("streams_refused_no_thread")
            self._session.limit.warning(self._session.log, "connection dropped: %s", problem)
            stream.refuse()

    def association_wanted(self, server_connection: ServerConnection, event: AssociationWanted) -> None:
        """Lets an association be created, or refuses it."""
        if self._is_draining():
            self._session.counters.add("udp_associations_refused_draining")
            self._session.limit.log(
                logging.INFO, self._session.log, "%s: refused a UDP association: draining", self._server
            )
            self._session.host.pump.call(_refuse_association, server_connection.connection, event.association)
            return
        if server_connection.given_up or self._mode.udp is None:
            self._session.counters.add("udp_associations_refused_no_udp")
            self._session.limit.warning(self._session.log, "%s: refused a UDP association: not requested", self._server)
            self._session.host.pump.call(_refuse_association, server_connection.connection, event.association)
            return
        self._session.host.pump.call(server_connection.associations.wanted, event.association, event.peer)

    def udp_large_transfer(self, server_connection: ServerConnection, event: UdpLargeTransfer) -> None:
        """Hands a socket over to the pump."""
        self._session.host.pump.call(server_connection.associations.busy, event.udp)

    def udp_refused(self, server_connection: ServerConnection, event: UdpRefused) -> None:
        """Tells the pump of a socket that does not take datagrams."""
        refused = functools.partial(
            server_connection.associations.refused, event.udp, event.error, answered=event.answered
        )
        self._session.host.pump.call(refused)

    def visitors_refused(self, _: ServerConnection, event: VisitorsRefused) -> None:
        """Counts and logs visitors that the engine has refused."""
        self._refusals.add(self._server, event)

    def violation(self, _: ServerConnection, event: Violation) -> None:
        """Counts and logs what breaks the rules of the protocol."""
        self.broke_rules(event.problem)

    def broke_rules(self, problem: str) -> None:
        """Counts and logs a violation of the protocol."""
        # Not a reason to close: the rest of what the server sends may be valid, and the reference does not close
        # either.
        self._session.counters.add("server_violations")
        self._session.limit.warning(self._session.log, "%s: protocol violation: %s", self._server, problem)


def _refuse_association(connection: Connection, association: int) -> None:
    # The pump thread.
    with contextlib.suppress(GoneError):
        connection.remove_association(association)
