"""A program that does not keep up with events turns new clients away, and takes them again once it does."""

from __future__ import annotations

import contextlib

from asport_sync.engine import Closed, Connected, Connection
from asport_sync.errors import HandleGoneError
from tests.bounds.old_work import GRACE_PERIOD
from tests.engine.pair import Side, client_credentials, connect, listen
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

# AQ_EVENTS_WAITING of conn.h; documented in docs/reliability.md.
WAITING = 4096
AT_A_TIME = 32


def expect_of(side: Side, kind: type[Connected] | type[Closed], connection: Connection) -> None:
    """Waits for an event of one connection."""
    side.expect(kind, lambda event: event.connection == connection)


def test_clients_are_turned_away_while_too_many_events_wait(certificate: Certificate) -> None:
    with Side("client") as client, contextlib.closing(Side("server")) as server:
        server.engine.start()  # and nobody takes its events yet
        _, address = listen(
            server,
            certificate,
            retry_threshold=10 * WAITING,
            max_half_open_per_source=10 * WAITING,
            max_connections=10 * WAITING,
        )
        credentials = client_credentials(client.engine, certificate)

        def begin() -> Connection:
            return connect(client, certificate, address, credentials=credentials)

        taken = 0
        while server.counter("connections_refused") == 0:
            begun = [begin() for _ in range(AT_A_TIME)]
            for connection in begun:
                expect_of(client, Connected, connection)
                # Each leaves two events at the server: its beginning and its end.
                with contextlib.suppress(HandleGoneError):
                    connection.close(0)
            for connection in begun:
                expect_of(client, Closed, connection)
            taken += AT_A_TIME
            assert taken < 2 * WAITING
        assert server.counter("quic_handshakes_completed") <= WAITING
        server._thread.start()  # somebody takes the events now
        wait_until(lambda: len(server.seen()) >= WAITING, GRACE_PERIOD, "the events are taken")
        connection = begin()
        expect_of(client, Connected, connection)
        server.expect(Connected)
