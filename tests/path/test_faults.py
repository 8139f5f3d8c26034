"""Faults of a whole IP path, with server and client as processes in namespaces of their own: a smaller matrix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import datagrams, transfers
from tests.path.network import NetworkPath
from tests.path.test_tunnel import LOCAL_PORT, OURS, PUBLIC_PORT, tunnel_across
from tests.support.certificates import Certificate

pytestmark = [pytest.mark.usefixtures("needs_namespaces"), pytest.mark.faults, pytest.mark.timeout(180)]

MIB = 1 << 20
STREAMS = 4
STREAM_SIZE = 4 * MIB
DATAGRAMS = 3000
PUBLIC = ("127.0.0.1", PUBLIC_PORT)
# Setting -> the counter that says that it took effect.
COUNTERS = {
    "loss": "lost",
    "queue_ms": "queue_full",
    "corruption": "corrupted",
    "duplication": "duplicated",
    "reordering": "reordered",
}
UP, DOWN = 1.5, 1.0  # seconds of the path that goes away and comes back


@dataclass(frozen=True)
class PathFault:
    """One row: settings of both directions, and what they may do."""

    name: str
    changes: dict[str, Any]
    keeps_order: bool = True
    loses: bool = False
    flapping: bool = False


FAULTS = [
    PathFault("none", {}),
    PathFault("loss 0.5 %", {"loss": 0.005}, loses=True),
    PathFault("loss 2 %", {"loss": 0.02}, loses=True),
    PathFault("corruption 0.2 %", {"corruption": 0.002}, loses=True),
    PathFault("corruption 2 %", {"corruption": 0.02}, loses=True),
    PathFault("duplication 10 %", {"duplication": 0.1}),
    PathFault("reordering 5 %", {"reordering": 0.05}, keeps_order=False),
    PathFault("a short queue", {"queue_ms": 5.0}, loses=True),
    PathFault("a path that comes and goes", {}, loses=True, flapping=True),
]


@contextmanager
def faults_of(path: NetworkPath, fault: PathFault) -> Iterator[None]:
    """The fault, for as long as the block lasts."""
    over = threading.Event()

    def flap() -> None:
        while not over.wait(UP):
            path.change(black_hole=True)
            over.wait(DOWN)
            path.change(black_hole=False)

    if fault.changes:
        path.change(**fault.changes)
    flapper = threading.Thread(target=flap)
    if fault.flapping:
        flapper.start()
    try:
        yield
    finally:
        over.set()
        if fault.flapping:
            flapper.join()


def new_path() -> NetworkPath:
    return NetworkPath(delay_ms=5, rate_mbit=100, seed=12)


def happened(path: NetworkPath, fault: PathFault) -> bool:
    """Whether the path did what it was told to."""
    expected = [COUNTERS[name] for name in fault.changes] + ["black_holed"] * fault.flapping
    return all(getattr(way, name) > 0 for way in path.counters() for name in expected)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_tcp(fault: PathFault, certificate: Certificate, tmp_path: Path) -> None:
    with (
        new_path() as path,
        transfers.ExchangeService(LOCAL_PORT, create_socket=path.b.socket) as service,
        tunnel_across(path, OURS, certificate, tmp_path),
    ):
        with faults_of(path, fault):
            moved = transfers.run(
                service, PUBLIC, [STREAM_SIZE] * STREAMS, STREAMS, least_time=3.0, create_socket=path.a.socket
            )
        # The connection that only asked whether the port is open is none of them.
        problems = [problem for problem in moved.problems if "of the header" not in problem]
        assert problems == []
        assert (moved.whole, moved.reset) == (moved.connections, 0)
        assert happened(path, fault)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_udp_native(fault: PathFault, certificate: Certificate, tmp_path: Path) -> None:
    with (
        new_path() as path,
        datagrams.Recorder(LOCAL_PORT, create_socket=path.b.socket) as service,
        tunnel_across(path, OURS, certificate, tmp_path),
    ):
        with faults_of(path, fault):
            done = datagrams.run(
                service,
                PUBLIC,
                DATAGRAMS,
                settled=lambda sent, received: sent == received,
                quiet=2.0,
                create_socket=path.a.socket,
            )
        for arrived in (done.there, done.back):
            assert arrived.problems == ()
            assert arrived.in_order or not fault.keeps_order
        assert done.refused == 0
        assert done.there.count > DATAGRAMS / 3
        if not fault.loses:
            assert done.there.count == done.back.count == DATAGRAMS
        if fault.name != "a short queue":  # this traffic alone does not fill it
            assert happened(path, fault)
