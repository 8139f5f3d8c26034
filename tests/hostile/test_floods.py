"""Small floods: what the server lets strangers have, that it counts what it does not, and that a client of it notices
nothing. The large ones are measured by ``python -m tests.hostile``.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from asport_sync import Client
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    Tunnel,
    both_echoes,
    client_options,
    counter,
    server_options,
    tunnel,
)
from tests.hostile.floods import FLOODS, Flood, Target, finish, run
from tests.hostile.measure import server_process
from tests.hostile.unauthenticated import unauthenticated_clients
from tests.support.certificates import Certificate
from tests.support.limits import with_descriptors
from tests.support.services import TcpEcho
from tests.support.traffic import echo
from tests.support.waiting import wait_until

DATA = bytes(range(256)) * 64
# Connections of one source that are not admitted yet, and all without a proof of address: defaults of Engine.listen().
MAX_PER_SOURCE = 200
RETRY_THRESHOLD = 100
# Connections that are not admitted: well beyond those from which on handshakes have a share of the engine's time only,
# MANY_UNAUTHENTICATED of _native/quic/endpoint_admission.c, and fewer than the server takes.
MANY = 800

BY_NAME = {flood.name: flood for flood in FLOODS}


@contextlib.contextmanager
def flooded(flood: Flood, target: Target, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A flood runs until the block ends, or ends by itself."""
    process = run(flood, target, seconds)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def crowd(certificate: Certificate) -> Iterator[Tunnel]:
    with both_echoes() as (service, _), tunnel(certificate, service.address) as made:
        yield made


def target_of(tunnel: Tunnel, directory: Path) -> Target:
    return Target(tunnel.server.address[1], tunnel.public[1], directory)


def engine_counters(tunnel: Tunnel) -> Mapping[str, int]:
    return tunnel.server.stats().engine


def run_beside(crowd: Tunnel, flood: Flood, directory: Path, seconds: float = 1.0) -> dict[str, float]:
    """Run a flood while bytes pass through the tunnel; returns what it says."""
    with flooded(flood, target_of(crowd, directory), seconds) as process:
        while process.poll() is None:
            assert echo(crowd.public, DATA) == DATA
        return finish(process)


def join_and_leave(crowd: Tunnel, certificate: Certificate) -> None:
    options = client_options(certificate, crowd.server.address, ("127.0.0.1", 9))
    with Client(**options) as another:
        another.wait_ready(READY_TIMEOUT)


def test_initials_from_made_up_addresses(crowd: Tunnel, certificate: Certificate, tmp_path: Path) -> None:
    said = run_beside(crowd, BY_NAME["initials"], tmp_path)
    counters = engine_counters(crowd)
    assert counters["retries_sent"] > 1000
    # Whoever does not answer a Retry costs nothing but that.
    assert counters["connections_accepted"] <= RETRY_THRESHOLD + 1
    assert said["answer_bytes"] <= 3 * said["bytes"]
    assert counters["quic_bytes_sent"] > said["answer_bytes"]
    # Half-open connections are as many as can be without Retry now, and a new client gets in all the same.
    join_and_leave(crowd, certificate)
    assert engine_counters(crowd)["connections_refused"] == 0


def test_one_source_gets_so_many_connections_without_joining(
    certificate: Certificate,
) -> None:
    with (
        both_echoes() as (service, _),
        tunnel(certificate, service.address, server={"handshake_timeout": 3.0}) as crowd,
    ):
        with unauthenticated_clients(crowd.server.address, "silent") as silent:
            while silent.outcome.tried < MAX_PER_SOURCE + 150 and silent.outcome.refused == 0:
                assert silent.begin(READY_TIMEOUT)
            wait_until(lambda: silent.outcome.refused > 0, READY_TIMEOUT, "some are refused")
            # Some that have their place may be in the handshake still.
            wait_until(lambda: silent.outcome.connected >= MAX_PER_SOURCE, READY_TIMEOUT, "so many get in")
            assert silent.outcome.connected <= MAX_PER_SOURCE + RETRY_THRESHOLD
            assert engine_counters(crowd)["connections_refused_source"] > 0
            assert engine_counters(crowd)["connections_refused"] == 0
            # From another address one gets in, and what stands goes on.
            join_and_leave(crowd, certificate)
            assert echo(crowd.public, DATA) == DATA
            wait_until(
                lambda: silent.outcome.ended == silent.outcome.connected,
                READY_TIMEOUT,
                "the server closes those that say nothing",
            )
            assert counter(crowd.server, "handshake_timeouts") == silent.outcome.connected
            # Their places are free again.
            refused, connected = silent.outcome.refused, silent.outcome.connected

            def gets_in() -> bool:
                assert silent.begin(READY_TIMEOUT)
                return silent.outcome.connected > connected

            wait_until(gets_in, READY_TIMEOUT, "the source may try again")
            assert silent.outcome.refused >= refused


def test_many_that_never_join_have_their_share_of_time_and_no_more(certificate: Certificate) -> None:
    """How large it is, and what of the engine's sleep is theirs: tests/native/test_endpoint.c."""
    with (
        both_echoes() as (service, _),
        tunnel(certificate, service.address, server={"handshake_timeout": 30.0}) as crowd,
        unauthenticated_clients(crowd.server.address, "silent", sources=8) as silent,
    ):
        while silent.outcome.tried < MANY and engine_counters(crowd)["initials_deferred"] == 0:
            # As many at a time as there may be, and without asking for figures that are as long to collect as it takes
            # the engine: then hardly anything depends on how fast this side is.
            for _ in range(100):
                assert silent.begin(READY_TIMEOUT)
        deferred = engine_counters(crowd)["initials_deferred"]
        # Whoever wants to join has part of that share, and what is open goes on.
        join_and_leave(crowd, certificate)
        assert echo(crowd.public, DATA) == DATA
        if deferred == 0:
            pytest.skip(f"{MANY} clients on this busy machine are too slow to use up the share of time")


@pytest.mark.parametrize("kind", ["unknown", "commands"])
def test_who_says_the_wrong_thing_first_is_cut_off(crowd: Tunnel, kind: str) -> None:
    with unauthenticated_clients(crowd.server.address, kind) as rude:
        for _ in range(20):
            assert rude.begin(READY_TIMEOUT)
        wait_until(lambda: rude.outcome.ended == 20, READY_TIMEOUT, "all are closed")
    assert counter(crowd.server, "connections_broken_off") == 20
    assert counter(crowd.server, "handshake_timeouts") == 0
    assert echo(crowd.public, DATA) == DATA


def test_streams_before_a_hello_that_do_not_end_are_given_up(certificate: Certificate) -> None:
    with (
        both_echoes() as (service, _),
        tunnel(
            certificate,
            service.address,
            server={"handshake_timeout": 60.0, "task_negotiation_timeout": 1.0},
        ) as crowd,
        unauthenticated_clients(crowd.server.address, "streams") as slow,
    ):
        for _ in range(4):
            assert slow.begin(READY_TIMEOUT)
        while slow.outcome.ended < 4:
            assert echo(crowd.public, DATA) == DATA
        assert counter(crowd.server, "connections_broken_off") == 4
        assert engine_counters(crowd)["violations"] >= 4


def test_datagrams_before_a_hello_are_not_many(crowd: Tunnel) -> None:
    with unauthenticated_clients(crowd.server.address, "datagrams") as chatty:
        for _ in range(4):
            assert chatty.begin(READY_TIMEOUT)
        while chatty.outcome.ended < 4:
            assert echo(crowd.public, DATA) == DATA
        assert engine_counters(crowd)["connections_flooding"] == 4
        # Nobody in Python had to look at them.
        assert engine_counters(crowd)["events_dropped"] == 0


@pytest.mark.parametrize(
    ("name", "answers"), [("short", "stateless_resets_sent"), ("version", "version_negotiations_sent")]
)
def test_answers_to_strangers_are_few_and_small(crowd: Tunnel, tmp_path: Path, name: str, answers: str) -> None:
    said = run_beside(crowd, BY_NAME[name], tmp_path)
    counters = engine_counters(crowd)
    assert 0 < counters[answers] <= 1000 * (said["seconds"] + 2)
    assert counters["answers_suppressed"] > 0
    assert 0 < said["answers"] <= counters[answers]
    assert said["answer_bytes"] < said["bytes"]


@pytest.mark.parametrize("name", ["tiny", "empty"])
def test_what_is_too_short_is_dropped_and_counted(crowd: Tunnel, tmp_path: Path, name: str) -> None:
    said = run_beside(crowd, BY_NAME[name], tmp_path)
    assert 0 < engine_counters(crowd)["quic_drop_short"] <= said["sent"]
    assert said["answers"] == 0


def test_silent_connections_to_one_port_leave_half_of_the_descriptors(certificate: Certificate, tmp_path: Path) -> None:
    options = server_options(certificate)
    limit = with_descriptors(100, [])
    flood = BY_NAME["tcp-silent"]
    with TcpEcho() as service, server_process(tmp_path / "server.json", options, limit) as server:
        joined = client_options(certificate, server.address, service.address)
        with Client(**joined) as first, Client(**joined) as second:
            crowded, other = first.wait_ready(READY_TIMEOUT), second.wait_ready(READY_TIMEOUT)
            with flooded(flood, Target(server.address[1], crowded[1], tmp_path), 60.0):
                wait_until(lambda: server.stats()["tcp_accept_deferred"] > 0, READY_TIMEOUT, "the share is used up")
                for _ in range(20):
                    assert echo(other, DATA) == DATA
                assert server.stats()["tcp_accept_errors"] == 0
            wait_until(lambda: echo(crowded, DATA) == DATA, READY_TIMEOUT, "the flooded port serves again")


def test_ports_of_one_address_leave_associations_to_others(certificate: Certificate, tmp_path: Path) -> None:
    with both_echoes() as (service, datagrams), tunnel(certificate, service.address) as crowd:
        with flooded(BY_NAME["udp-ports"], target_of(crowd, tmp_path), 60.0):
            # Thousands of sockets have to be opened before the share is used up, which takes a busy machine its time.
            wait_until(
                lambda: counter(crowd.client, "udp_associations_refused_share") >= 1, 60.0, "the share is used up"
            )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.settimeout(0.5)

            def answered() -> bool:
                with contextlib.suppress(TimeoutError):
                    other.sendto(b"somebody else", crowd.public)
                    return other.recv(100) == b"somebody else"
                return False

            wait_until(answered, READY_TIMEOUT, "another address is served")
        assert datagrams.received > 0
