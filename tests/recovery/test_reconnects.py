"""Reconnecting again and again costs nothing that stays."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest

from asport_sync import Client, RefusedError, Server
from asport_sync.client.connector import Happened, Report
from asport_sync.client.session import ClientSession
from asport_sync.client.shared import Shared
from asport_sync.config import TunnelConfig
from asport_sync.errors import HandleGoneError
from asport_sync.host.host import Host
from asport_sync.runtime.backoff import Backoff
from tests.e2e.tunnels import READY_TIMEOUT, client_options, counter, server_options
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

# Reconnects after which everything that is made once has been made.
WARM = 10
# MiB that the memory of both sides together may be above what it was then: the allocator's arenas, and Python's. What a
# connection costs is about 100 KiB, so that one in twenty-five that stayed would show.
SLACK = 4.0


class AtOnce(Backoff):
    """No pauses."""

    def failed(self, *, slow: bool = False, steady: bool = False) -> float:
        return 0.0


class Restless(Client):
    """A client without pauses between its attempts."""

    def _new_session(self, host: Host, tunnel: TunnelConfig, shared: Shared, port: int | None) -> ClientSession:
        return ClientSession(tunnel, host, AtOnce(), shared=shared, port=port)


class Tunnel:
    """A server and such a client, in this process."""

    def __init__(self, server: Server, client: Client, public: Address) -> None:
        self.server = server
        self.client = client
        self.public = public

    def reconnect(self, turn: int) -> None:
        """End the connection, in one of the ways in which connections end, and wait until another one stands."""
        session = next(iter(self.client._running().by_name.values()))
        server = self.server._session
        assert server is not None
        attempts = counter(self.client, "attempts")
        # Where the previous turn closed two, the one that is in use may end only now.
        current = wait_until(lambda: session._connector.in_use, READY_TIMEOUT, "a connection is in use")
        assert current is not None
        if turn % 3 == 0:
            # Given up although it lives: the attempt beside it finds that out, and goes.
            session.host.call(session._report, Report(Happened.SILENT, current))
            wait_until(lambda: counter(self.client, "attempts") > attempts, READY_TIMEOUT, "an attempt is made")
        ends = (
            [current.connection] if turn % 3 == 1 else [peer.connection for peer in list(server._connections.values())]
        )
        for connection in ends:
            with contextlib.suppress(HandleGoneError):  # the newcomer of above, or what it has replaced after all
                connection.close(0)
        wait_until(
            lambda: session._connector.in_use not in (None, current), READY_TIMEOUT, "another connection is in use"
        )
        wait_until(self._stands, READY_TIMEOUT, "the port is the same")
        if turn % WARM == 0:
            # Where an attempt was made beside the connection, either may have joined last, and be ended only now.
            wait_until(lambda: answers(self.public), READY_TIMEOUT, "the public port answers")

    def _stands(self) -> bool:
        """Whether the client has its port; False where what was ended above was an attempt without an answer yet."""
        try:
            public = self.client.wait_ready(READY_TIMEOUT)
        except RefusedError:
            return False
        assert public == self.public
        return True


def answers(public: Address) -> bool:
    """Whether the tunnel carries bytes, which are right; False where its connection ended meanwhile."""
    try:
        answer = echo(public, b"hello")
    except ConnectionError:
        return False
    assert answer == b"hello"
    return True


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def memory() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("turns", [30, pytest.param(1000, marks=[pytest.mark.recovery, pytest.mark.timeout(600)])])
def test_nothing_stays_of_a_reconnect(turns: int, certificate: Certificate) -> None:
    port = free_port()
    with TcpEcho() as service, Server(**server_options(certificate, proxy={"allow_ports": port})) as server:
        with Restless(**client_options(certificate, server.address, service.address)) as client:
            tunnel = Tunnel(server, client, client.wait_ready(READY_TIMEOUT))
            for turn in range(WARM):
                tunnel.reconnect(turn)
            # Connections that were closed stay for three PTO, and workers that have nothing to do for a while.
            wait_until(lambda: drained(server, client), READY_TIMEOUT, "what was closed is gone")
            before = descriptors(), threads(), memory()
            for turn in range(WARM, turns):
                tunnel.reconnect(turn)
            wait_until(lambda: drained(server, client), READY_TIMEOUT, "what was closed is gone")
            wait_until(lambda: descriptors() <= before[0], READY_TIMEOUT, f"{before[0]} descriptors as after {WARM}")
            wait_until(lambda: threads() <= before[1], READY_TIMEOUT, f"{before[1]} threads as after {WARM}")
            after = descriptors(), threads(), memory()
            print(f"{turns} reconnects: descriptors, threads, MiB: {before} then {after}")
            assert after[2] < before[2] + SLACK
            assert counter(client, "joined") > turns


def drained(server: Server, client: Client) -> bool:
    """Whether the one connection is all that either side knows of."""
    assert server._session is not None
    (session,) = client._running().by_name.values()
    return len(server._session._connections) == 1 and len(session._connections) == 1
