"""The UDP relay, between sockets of the test."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from asport_sync.testing import DirectionCounters, Faults, UdpRelay
from tests.support.ports import free_port
from tests.support.services import LARGEST_DATAGRAM, Address, UdpEcho, UdpService
from tests.support.waiting import wait_until

SECONDS = 10.0
QUIET = 0.3  # seconds without another datagram after which none is expected


def visitor(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.connect(address)
    return sock


def ask(sock: socket.socket, payload: bytes) -> bytes:
    sock.send(payload)
    return sock.recv(LARGEST_DATAGRAM)


def adds_up(counters: DirectionCounters) -> None:
    assert counters.received + counters.duplicated == counters.delivered + counters.dropped + counters.in_flight


def exchange(relay: UdpRelay, count: int) -> list[bytes]:
    """Send numbers, a few at a time so that no buffer overflows; what came back."""
    received = []
    with visitor(relay.address) as sock:
        for number in range(count):
            sock.send(b"%d" % number)
            if number % 20 == 19:
                wait_until(lambda: relay.counters.to_target.received > number - 1, SECONDS, "it has read them")  # noqa: B023
        sock.settimeout(QUIET)
        with contextlib.suppress(TimeoutError):
            while True:
                received.append(sock.recv(LARGEST_DATAGRAM))
    return received


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_carries_both_ways_for_many_clients(host: str) -> None:
    with UdpEcho(host) as service, UdpRelay(service.address) as relay, contextlib.ExitStack() as stack:
        assert relay.address[0] == host
        visitors = [stack.enter_context(visitor(relay.address)) for _ in range(10)]
        for number, sock in enumerate(visitors):
            assert ask(sock, b"%d" % number) == b"%d" % number
        assert ask(visitors[0], b"") == b""
        largest = b"x" * LARGEST_DATAGRAM
        assert ask(visitors[0], largest) == largest
        assert len(service.sources) == 10
        counters = relay.counters
        assert counters.clients == 10
        for way in (counters.to_target, counters.to_client):
            assert (way.received, way.delivered, way.dropped) == (12, 12, 0)
            adds_up(way)
    assert relay.counters.to_client.delivered == 12  # also when it is over


def test_families_may_differ() -> None:
    with UdpEcho("127.0.0.1") as service, UdpRelay(service.address, listen=("::1", 0)) as relay:
        with visitor(relay.address) as sock:
            assert ask(sock, b"hello") == b"hello"


@pytest.mark.parametrize("way", ["to_target", "to_client"])
def test_faults_are_those_of_their_direction(way: str) -> None:
    faults: dict[str, Any] = {way: Faults(drop_every=4)}
    with UdpEcho() as service, UdpRelay(service.address, **faults) as relay:
        assert exchange(relay, 40) == [b"%d" % number for number in range(40) if number % 4 != 3]
        assert service.received == (30 if way == "to_target" else 40)
        counters = relay.counters
        assert getattr(counters, way).dropped_by_number == 10
        assert counters.to_target.dropped + counters.to_client.dropped == 10


def test_everything_at_once_adds_up() -> None:
    bad = Faults(loss=0.1, duplication=0.1, reordering=0.1, corruption=0.1, delay=0.002, jitter=0.002, drop_every=9)
    with UdpEcho() as service, UdpRelay(service.address, to_target=bad, to_client=bad, seed=3) as relay:
        received = exchange(relay, 400)
        counters = relay.counters
        assert counters.to_target.received == 400
        assert counters.to_target.delivered == service.received == counters.to_client.received
        assert counters.to_client.delivered == len(received)
        for way in (counters.to_target, counters.to_client):
            adds_up(way)
            assert way.lost
            assert way.duplicated
            assert way.reordered
            assert way.corrupted
            assert way.dropped_by_number
            assert way.in_flight == way.overflowed == 0


def outcome(seed: int) -> tuple[list[bytes], DirectionCounters]:
    bad = Faults(loss=0.2, duplication=0.2, corruption=0.1)
    with UdpEcho() as service, UdpRelay(service.address, to_target=bad, seed=seed) as relay:
        return exchange(relay, 200), relay.counters.to_target


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = outcome(5), outcome(5), outcome(6)
    assert first == again
    assert first[0] != other[0]


def test_directions_have_generators_of_their_own() -> None:
    half = Faults(loss=0.5)
    outcomes = []
    for there, back in ((half, Faults()), (Faults(), half)):
        with UdpEcho() as service, UdpRelay(service.address, to_target=there, to_client=back) as relay:
            outcomes.append(exchange(relay, 100))
    assert outcomes[0] != outcomes[1]
    assert all(20 < len(received) < 80 for received in outcomes)


def test_delay() -> None:
    with UdpEcho() as service, UdpRelay(service.address, to_target=Faults(delay=0.05)) as relay:
        relay.to_client = Faults(delay=0.03)
        with visitor(relay.address) as sock:
            start = time.monotonic()
            assert ask(sock, b"hello") == b"hello"
            assert time.monotonic() - start >= 0.08


def test_faults_change_while_it_runs() -> None:
    with UdpEcho() as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        assert ask(sock, b"open") == b"open"
        relay.to_client = Faults(black_hole=True)
        sock.send(b"closed one way")
        wait_until(lambda: relay.counters.to_client.black_holed == 1, SECONDS, "the answer fell into the hole")
        relay.set_faults(Faults(black_hole=True))
        assert relay.to_target == relay.to_client == Faults(black_hole=True)
        sock.send(b"closed both ways")
        wait_until(lambda: relay.counters.to_target.black_holed == 1, SECONDS, "the question fell into the hole")
        assert service.received == 2
        relay.set_faults(Faults())
        assert ask(sock, b"open again") == b"open again"


def test_outages_begin_when_they_are_set() -> None:
    with UdpEcho() as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        time.sleep(0.05)
        relay.set_faults(Faults(up_time=3600, down_time=1))
        assert ask(sock, b"hello") == b"hello"
        relay.set_faults(Faults(up_time=1e-6, down_time=3600))
        time.sleep(0.001)
        sock.send(b"hello")
        wait_until(lambda: relay.counters.to_target.black_holed == 1, SECONDS, "the outage has begun")


def test_rebinding_the_port() -> None:
    with UdpEcho() as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        for _ in range(12):  # more often than forgotten ports are kept
            assert ask(sock, b"hello") == b"hello"
            relay.rebind()
        assert ask(sock, b"hello") == b"hello"
        assert len(service.sources) == 13
        assert {host for host, _ in service.sources} == {"127.0.0.1"}
        assert relay.counters.rebindings == 12


def test_rebinding_the_address() -> None:
    with UdpEcho() as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        for _ in range(3):
            assert ask(sock, b"hello") == b"hello"
            relay.rebind(new_address=True)
        assert {host for host, _ in service.sources} == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}


def test_rebinding_again_and_again() -> None:
    with UdpEcho() as service:
        with UdpRelay(service.address, rebind_every=0.02, rebind_address=True) as relay, visitor(relay.address) as sock:

            def rebound() -> bool:
                with contextlib.suppress(TimeoutError):
                    sock.settimeout(QUIET)  # an answer to the port before may be forgotten
                    ask(sock, b"hello")
                return len({host for host, _ in service.sources}) >= 3

            wait_until(rebound, SECONDS, "the service has seen three addresses")
            assert relay.counters.rebindings >= 2
            relay.rebind_every = None
            assert relay.rebind_every is None
            settled = relay.counters.rebindings
            time.sleep(0.1)
            assert relay.counters.rebindings == settled
            relay.rebind_every = 0.01
            wait_until(lambda: relay.counters.rebindings > settled + 2, SECONDS, "they have begun anew")


class Slow(UdpService):
    """Answers once more to whom it has answered before."""

    def again(self) -> None:
        for source in self.sources:
            self._socket.sendto(b"late", source)


def test_what_comes_to_a_forgotten_port_is_dropped_and_counted() -> None:
    with Slow(lambda payload: payload) as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        assert ask(sock, b"hello") == b"hello"
        relay.rebind()
        service.again()
        wait_until(lambda: relay.counters.to_client.forgotten == 1, SECONDS, "the late answer came to the old port")
        sock.settimeout(QUIET)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        adds_up(relay.counters.to_client)


def test_nobody_listens_at_the_target() -> None:
    target = ("127.0.0.1", free_port())
    with UdpRelay(target) as relay, visitor(relay.address) as sock:
        for number in range(5):
            sock.send(b"hello")
            wait_until(lambda: relay.counters.to_target.received == number + 1, SECONDS, "it came")  # noqa: B023
        with UdpEcho(*target):
            wait_until(lambda: sock.send(b"hello") and relay.counters.to_client.delivered, SECONDS, "an answer")
        adds_up(relay.counters.to_target)


def test_what_the_kernel_refuses_is_counted() -> None:
    """A datagram that IPv6 can carry, and IPv4 can't."""
    with UdpEcho("127.0.0.1") as service, UdpRelay(service.address, listen=("::1", 0)) as relay:
        with visitor(relay.address) as sock:
            sock.send(bytes(LARGEST_DATAGRAM + 1))
            wait_until(lambda: relay.counters.to_target.refused == 1, SECONDS, "the kernel says so")
            assert ask(sock, b"hello") == b"hello"
            adds_up(relay.counters.to_target)


def test_what_the_kernel_dropped_is_counted() -> None:
    """While the relay can't read, because somebody holds its lock, the socket's buffer overflows."""
    with UdpEcho() as service, UdpRelay(service.address) as relay, visitor(relay.address) as sock:
        buffer = relay._front.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sent = buffer // 1000
        with relay._lock:
            for _ in range(sent):
                sock.send(bytes(1000))
        wait_until(
            lambda: (lambda way: way.received + way.overflowed)(relay.counters.to_target) == sent,
            SECONDS,
            "all are accounted for",
        )
        assert relay.counters.to_target.overflowed > 0
    assert relay.counters.to_target.overflowed > 0


def test_what_is_on_its_way_at_the_end_is_abandoned() -> None:
    with UdpEcho() as service, UdpRelay(service.address, to_target=Faults(delay=3600)) as relay:
        with visitor(relay.address) as sock:
            sock.send(b"hello")
            wait_until(lambda: relay.counters.to_target.in_flight == 1, SECONDS, "it is on its way")
    assert relay.counters.to_target.abandoned == 1
    assert relay.counters.to_target.in_flight == 0
    adds_up(relay.counters.to_target)


def test_start_and_close() -> None:
    relay = UdpRelay(("127.0.0.1", 9))
    with pytest.raises(RuntimeError, match="not started"):
        assert relay.address
    with pytest.raises(RuntimeError, match="is not running"):
        relay.rebind()
    with relay:
        with pytest.raises(RuntimeError, match="once"):
            relay.start()
        relay.close()
        relay.close()
        with pytest.raises(RuntimeError, match="is not running"):
            relay.rebind()
    with pytest.raises(RuntimeError, match="once"):
        relay.start()
    with pytest.raises(OSError, match="in use"), UdpEcho() as service:
        UdpRelay(("127.0.0.1", 9), listen=service.address).start()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"target": ("127.0.0.1",)}, "target must be a host and a port"),
        ({"target": ("127.0.0.1", "many")}, "target must be a host and a port"),
        ({"target": ("127.0.0.1", 9), "listen": 5}, "listen must be a host and a port"),
        ({"target": ("127.0.0.1", 9), "rebind_every": 0}, "rebind_every must be seconds, above 0, not 0"),
        ({"target": ("127.0.0.1", 9), "rebind_address": "yes"}, "rebind_address must be True or False"),
        ({"target": ("127.0.0.1", 9), "seed": -1}, "seed must be a whole number"),
        ({"target": ("::1", 9), "rebind_address": True}, "rebind_address needs at least 2 source_addresses"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        UdpRelay(**arguments)


def test_an_impossible_time_is_refused_later_as_well() -> None:
    with UdpRelay(("127.0.0.1", 9)) as relay, pytest.raises(ValueError, match="rebind_every must be seconds, above 0"):
        relay.rebind_every = -1


def test_an_address_that_there_is_not() -> None:
    with (
        UdpRelay(("::1", 9)) as relay,
        pytest.raises(ValueError, match="new_address needs at least 2 source_addresses"),
    ):
        relay.rebind(new_address=True)


def loaded_by(program: str) -> set[str]:
    """The modules that a new process has loaded after these lines."""
    argv = [sys.executable, "-c", f"import sys; {program}; print(*sys.modules)"]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split())


def test_no_normal_process_loads_it() -> None:
    loaded = loaded_by("import asport_sync.cli; asport_sync.Client; asport_sync.Server")
    assert "asport_sync.client.client" in loaded
    assert not any(name.startswith("asport_sync.testing") for name in loaded)


def test_it_needs_no_compiled_extension() -> None:
    loaded = loaded_by("import asport_sync.testing")
    assert "asport_sync.testing.udp" in loaded
    assert "asport_sync._aq" not in loaded
