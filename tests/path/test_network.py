"""The emulated path between two namespaces does what it is told to."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.path.network import NetworkPath
from tests.support.data import seeded_bytes
from tests.support.namespaces import existing_namespaces
from tests.support.services import TcpSink, UdpEcho, sink_answer
from tests.support.traffic import UdpPeer, upload
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("needs_namespaces")

SECONDS = 10.0
MIB = 1024 * 1024


@contextmanager
def echo_in_b(path: NetworkPath) -> Iterator[tuple[UdpEcho, UdpPeer]]:
    """A UDP echo service at the far end, and a socket at the near one."""
    with UdpEcho(path.address_b, create_socket=path.b.socket) as service:
        with UdpPeer(service.address, create_socket=path.a.socket) as peer:
            yield service, peer


def test_namespaces_are_apart_and_vanish() -> None:
    with NetworkPath() as path:
        assert existing_namespaces() == sorted([path.a.name, path.b.name])
        assert path.address_a in path.run_in(path.a, ["ip", "address"])
        assert path.address_a not in path.run_in(path.b, ["ip", "address"])
    assert existing_namespaces() == []


def test_nothing_stays_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), NetworkPath():
        raise ZeroDivisionError
    assert existing_namespaces() == []


def test_round_trip_takes_twice_the_delay() -> None:
    with NetworkPath(delay_ms=20) as path, echo_in_b(path) as (_, peer):
        for number in range(5):
            start = time.monotonic()
            peer.ask(b"%d" % number, b"%d" % number)
            assert time.monotonic() - start >= 0.040


def test_loss_of_a_seeded_run() -> None:
    count = 1000
    with NetworkPath(loss=0.1, seed=5) as path, echo_in_b(path) as (service, peer):

        def sent_is_answered() -> bool:
            there, back = path.counters()
            on_its_way = there.in_flight + back.in_flight
            return there.received == sent and on_its_way == 0 and there.delivered == service.received == back.received

        for sent in range(1, count + 1):
            peer.send(b"%d" % sent)
            if sent % 50 == 0:  # no faster than path and service, so that only the path's loss drops anything
                wait_until(sent_is_answered, SECONDS, f"what was delivered of {sent} packets is answered")
        there, back = path.counters()
        assert there.received == count
        assert there.lost + there.delivered == count
        # Six standard deviations around the mean.
        assert 43 < there.lost < 157
        assert service.received == back.received == there.delivered
        assert back.lost + back.delivered == back.received
        assert back.queue_full == there.queue_full == 0


def test_changes_while_it_runs() -> None:
    with NetworkPath() as path, echo_in_b(path) as (service, peer):
        peer.ask(b"open", b"open")
        path.change("b to a", black_hole=True)
        peer.send(b"closed one way")
        wait_until(lambda: path.counters()[1].black_holed == 1, SECONDS, "the answer fell into the hole")
        assert service.received == 2
        path.change("a to b", black_hole=True)
        peer.send(b"closed both ways")
        wait_until(lambda: path.counters()[0].black_holed == 1, SECONDS, "the question fell into the hole")
        assert service.received == 2
        path.change(black_hole=False, delay_ms=30)
        start = time.monotonic()
        peer.ask(b"open again", b"open again")
        assert time.monotonic() - start >= 0.060
        with pytest.raises(ValueError, match="loss must be"):
            path.change(loss=2)


def test_tcp_crosses_it_whole() -> None:
    """8 MiB of the kernel's TCP arrive unchanged at a path that holds 100 Mbit/s."""
    data = seeded_bytes(4, 8 * MIB)
    with NetworkPath(delay_ms=2, rate_mbit=100) as path:
        with TcpSink(path.address_b, create_socket=path.b.socket) as service:
            assert upload(service.address, data, create_socket=path.a.socket) == sink_answer(data)
        there, _ = path.counters()
        assert there.delivered_bytes > len(data)
        assert there.lost == 0


def test_socket_is_in_its_namespace() -> None:
    with NetworkPath() as path, path.b.socket() as inside, socket.socket() as outside:
        inside.bind((path.address_b, 0))
        with pytest.raises(OSError, match="Cannot assign requested address"):
            outside.bind((path.address_b, 0))
