"""The end of a connection with very many streams costs in proportion to them, and holds up nobody else."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from asport_sync.engine import Connected, StreamEnded, Transport
from tests.engine.pair import CLIENT_TRANSPORT, HEADER, Side, connect, connected, expect_closed, listen, tcp_pair
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

TIMEOUT = 60.0
# The engine handles as many ends as fit into 2 ms before it turns to others. The ends of so many sockets take longer
# than two such turns on any machine.
MANY = 2500
FEW_STREAMS, MANY_STREAMS = 6000, 48000
# In proportion it would be 8 times as much, by the square 64 times.
MUCH_MORE = 25
# Seconds of processor time that count for nothing: the end of a connection without streams, several times over.
LITTLE = 0.002


def test_streams_of_a_connection_that_is_over_let_others_through(certificate: Certificate) -> None:
    """What the end of the first stream brings about elsewhere happens before the end of the last."""
    transport = Transport(max_streams_bidi=MANY + 1, receive_window=16384)
    with (
        Side("server") as server,
        Side("client") as client,
        contextlib.ExitStack() as stack,
    ):
        _, address = listen(server, certificate, Transport(max_streams_bidi=0, max_pending_streams=MANY + 1))
        connections = []
        for settings in (transport, CLIENT_TRANSPORT):
            connect(client, certificate, address, settings)
            client.expect(Connected)
            connections.append(server.expect(Connected).connection)
            connections[-1].set_joined(None)
        victim, bystander = connections
        server.engine.report_streams(2 * MANY)
        for _ in range(MANY):
            mine, far = socket.socketpair()
            stack.enter_context(far)
            victim.open_stream(HEADER).attach(mine)
        # The newest stream is the first to be cut off. The bystander's stream ends with it, for it has the other end of
        # its socket.
        one, other = tcp_pair()
        victim.open_stream(HEADER).attach(one)
        bystander.open_stream(HEADER).attach(other)
        wait_until(lambda: victim.info().streams == MANY + 1, TIMEOUT, "the streams are there")
        victim.close()
        expect_closed(server, victim)
        wait_until(
            lambda: server.counter("streams_attached") == MANY + 2,
            TIMEOUT,
            "all streams have ended",
            detail=lambda: str(server.counter("streams_attached")),
        )
        wait_until(lambda: len(server.seen()) >= MANY + 2, TIMEOUT, "their events have come")
        ended = [event.connection for event in server.seen() if isinstance(event, StreamEnded)]
        assert ended.count(victim) == MANY + 1
        assert ended.index(bystander) < MANY


def cost_of_the_end(certificate: Certificate, count: int, granted: int) -> float:
    """Seconds of processor time that the end of a connection with so many streams takes the engine's thread."""
    with connected(
        certificate,
        server_transport=Transport(max_streams_bidi=0, max_pending_streams=count),
        client_transport=Transport(max_streams_bidi=granted),
    ) as pair:
        for _ in range(count):
            pair.server_connection.open_stream(HEADER)
        wait_until(lambda: pair.server_connection.info().streams == count, TIMEOUT, "the streams are there")
        wait_until(lambda: pair.server.counter("streams_opened") == granted, TIMEOUT, "some are open")
        thread = pair.server.engine._thread
        assert thread is not None
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        before = last = time.clock_gettime(clock)
        pair.server_connection.close()
        expect_closed(pair.server, pair.server_connection)

        def is_idle() -> bool:
            nonlocal last
            time.sleep(0.2)
            now, was = time.clock_gettime(clock), last
            last = now
            return now - was < LITTLE

        wait_until(is_idle, TIMEOUT, "the engine has done with them")
        return last - before


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting to be opened", "open"])
def test_the_end_costs_in_proportion(certificate: Certificate, waiting: bool) -> None:
    """Processor time of the engine's thread, so that it does not matter what else the machine does."""
    few, many = (cost_of_the_end(certificate, count, 10 if waiting else count) for count in (FEW_STREAMS, MANY_STREAMS))
    assert many < MUCH_MORE * (few + LITTLE), (few, many)
