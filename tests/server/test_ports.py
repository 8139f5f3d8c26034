from __future__ import annotations

import errno
import socket
import uuid
from collections.abc import Iterator

import pytest

from asport_sync.runtime import sockets
from asport_sync.server.ports import Binding, Leases, Place, PortTable, PublicPort
from asport_sync.wire import ForwardMode, UdpMode
from tests.support.ports import free_port

HOST = "127.0.0.1"
BOTH = ForwardMode(True, UdpMode.NATIVE)
TCP = ForwardMode(True, None)
UDP = ForwardMode(False, UdpMode.NATIVE)
ALICE = uuid.UUID(int=1)
BOB = uuid.UUID(int=2)
PLACE = Place(HOST, None, ALICE)


class Ports:
    """A table whose ports are released when the test is over."""

    def __init__(self) -> None:
        self.table = PortTable()
        self.bound: list[PublicPort] = []

    def bind(self, number: int, mode: ForwardMode = BOTH, place: Place = PLACE) -> PublicPort:
        self.bound.append(self.table.bind(place, number, mode))
        return self.bound[-1]

    def search(self, binding: Binding, attempts: int = 64) -> PublicPort | None:
        while not binding.advance(attempts):
            pass
        if binding.port is not None:
            self.bound.append(binding.port)
        return binding.port

    def binding(self, *numbers: int, mode: ForwardMode = BOTH, **more: list[PublicPort] | list[int]) -> Binding:
        return Binding(self.table, PLACE, mode, numbers, **more)  # type: ignore[arg-type]


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports()
    yield ports
    for port in ports.bound:
        ports.table.release(port)


def test_both_networks_get_the_same_number(ports: Ports) -> None:
    number = free_port()
    port = ports.bind(number)
    assert port.tcp is not None
    assert port.udp is not None
    assert port.tcp.getsockname()[1] == port.udp.getsockname()[1] == number
    socket.create_connection((HOST, number)).close()


@pytest.mark.parametrize(("mode", "tcp", "udp"), [(TCP, True, False), (UDP, False, True)])
def test_one_network_gets_one_socket(ports: Ports, mode: ForwardMode, tcp: bool, udp: bool) -> None:
    port = ports.bind(free_port(), mode)
    assert (port.tcp is not None, port.udp is not None) == (tcp, udp)


def test_nothing_is_kept_where_one_of_two_is_taken(ports: Ports) -> None:
    number = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, number))
        with pytest.raises(OSError, match="in use") as caught:
            ports.bind(number)
    assert caught.value.errno == errno.EADDRINUSE
    assert len(ports.table) == 0
    ports.bind(number)


def test_what_we_hold_is_not_asked_of_the_system(ports: Ports) -> None:
    number = free_port()
    ports.bind(number, TCP)
    assert ports.table.holds(PLACE, number, BOTH)
    assert not ports.table.holds(PLACE, number, UDP)
    with pytest.raises(OSError, match="another client"):
        ports.bind(number)
    ports.bind(number, UDP)  # another client's UDP port of the same number is no contradiction


@pytest.mark.parametrize(("first", "second"), [(TCP, UDP), (UDP, TCP)])
@pytest.mark.parametrize(
    ("held", "only_v6", "wanted", "apart"),
    [
        (HOST, None, HOST, False),
        ("0.0.0.0", None, HOST, False),
        (HOST, None, "0.0.0.0", False),
        ("::", None, HOST, False),
        (HOST, None, "::", False),
        ("::", False, "0.0.0.0", False),
        ("::", True, "::1", False),
        ("::", True, HOST, True),
        ("::1", None, HOST, True),
        (HOST, None, "127.0.0.2", True),
    ],
)
def test_a_number_is_one_user_s_for_tcp_and_udp(
    ports: Ports, held: str, only_v6: bool | None, wanted: str, apart: bool, first: ForwardMode, second: ForwardMode
) -> None:
    """Unless no address reaches both. The other network of his own number the same user may have."""
    number = free_port()
    alice, bob = Place(held, only_v6, ALICE), Place(wanted, None, BOB)
    port = ports.bind(number, first, alice)
    if apart:
        ports.bind(number, second, bob)
        return
    with pytest.raises(OSError, match="held by another") as caught:
        ports.bind(number, second, bob)
    assert caught.value.errno == errno.EADDRINUSE
    ports.bind(number, second, alice)
    ports.table.release(ports.bound.pop())
    ports.table.release(port)
    ports.bind(number, second, bob)


def test_a_released_port_is_free_at_once_also_with_connections(ports: Ports) -> None:
    number = free_port()
    first = ports.bind(number)
    assert first.tcp is not None
    with socket.create_connection((HOST, number)) as client:
        first.tcp.setblocking(True)
        accepted, _ = first.tcp.accept()
        with accepted:
            ports.table.release(first)
            ports.table.release(first)
            ports.table.release(ports.bind(number))
        # The server's side closed first, so it is in TIME_WAIT once this side has closed too.
        assert client.recv(1) == b""
    ports.bind(number)


def test_the_search_ascends_and_skips_what_is_taken(ports: Ports) -> None:
    first, second = sorted((free_port(), free_port()))
    ports.bind(first)
    found = ports.search(ports.binding(first, second))
    assert found is not None
    assert found.number == second


def test_port_0_is_no_number(ports: Ports) -> None:
    number = free_port()
    found = ports.search(ports.binding(0, number))
    assert found is not None
    assert found.number == number


def test_a_search_is_done_in_slices(ports: Ports) -> None:
    taken = [free_port() for _ in range(5)]
    for number in taken:
        ports.bind(number, place=Place(HOST, None, BOB))
    last = free_port()
    binding = ports.binding(*taken, last)
    assert [binding.advance(2) for _ in range(3)] == [False, False, True]
    assert binding.delay == 0
    assert binding.port is not None
    ports.bound.append(binding.port)
    assert binding.port.number == last


@pytest.mark.parametrize("mode", [BOTH, TCP, UDP], ids=["both", "tcp", "udp"])
def test_what_the_user_holds_takes_no_attempt(ports: Ports, mode: ForwardMode) -> None:
    taken = [free_port() for _ in range(5)]
    for number in taken:
        ports.bind(number, mode)
    last = free_port()
    binding = ports.binding(*taken, last, mode=BOTH)
    assert binding.advance(1)
    assert binding.in_use
    assert binding.port is not None
    ports.bound.append(binding.port)
    assert binding.port.number == last
    ports.table.release(ports.bound[0])
    found = ports.search(ports.binding(*taken, mode=mode), 1)
    assert found is not None
    assert found.number == taken[0]


def test_a_search_ends_without_a_port(ports: Ports) -> None:
    number = free_port()
    ports.bind(number)
    binding = ports.binding(number)
    assert ports.search(binding) is None
    assert binding.problem is None


def test_a_search_gives_up_where_no_port_can_help(ports: Ports) -> None:
    # An address of a link without the link.
    binding = Binding(ports.table, Place("fe80::1", None, ALICE), BOTH, range(1024, 65536))
    assert binding.advance(64)
    assert binding.port is None
    assert binding.problem is not None
    assert binding.problem.errno in (errno.EINVAL, errno.EAFNOSUPPORT)


def test_a_want_of_resources_skips_no_port(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted((free_port(), free_port()))
    errors = [errno.ENOBUFS, errno.ENFILE, errno.EMFILE]
    listen = sockets.listen_tcp

    def listen_tcp(host: str, port: int, *, only_v6: bool | None = None) -> socket.socket:
        if errors:
            raise OSError(errors.pop(), "as the test says")
        return listen(host, port, only_v6=only_v6)

    monkeypatch.setattr(sockets, "listen_tcp", listen_tcp)
    binding = ports.binding(first, second, preferred=[second])
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
        assert not binding.advance(64)
        assert binding.problem is not None
        assert (binding.problem.errno, binding.delay) == (number, 0.2)
    found = ports.search(binding)
    assert found is not None
    assert found.number == second
    errors.append(errno.EMFILE)
    found = ports.search(ports.binding(first))
    assert found is not None
    assert found.number == first


def test_a_want_of_resources_that_lasts_ends_the_search(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen_tcp(host: str, port: int, *, only_v6: bool | None = None) -> socket.socket:
        raise OSError(errno.EMFILE, "as the test says")

    monkeypatch.setattr(sockets, "listen_tcp", listen_tcp)
    binding = ports.binding(free_port())
    delays = []
    while not binding.advance(64):
        delays.append(binding.delay)
    assert delays == [0.2] * 5
    assert binding.problem is not None
    assert binding.problem.errno == errno.EMFILE
    assert len(ports.table) == 0


def test_preferred_ports_come_first(ports: Ports) -> None:
    first, second = sorted((free_port(), free_port()))
    found = ports.search(ports.binding(first, second, preferred=[second]))
    assert found is not None
    assert found.number == second


def test_a_preferred_port_is_given_a_moment_and_then_up(ports: Ports) -> None:
    taken, other = free_port(), free_port()
    ports.bind(taken)
    binding = ports.binding(other, preferred=[taken])
    delays = []
    while not binding.advance(64):
        delays.append(binding.delay)
    assert delays == [0.02, 0.02, 0.02]
    assert binding.port is not None
    ports.bound.append(binding.port)
    assert binding.port.number == other


def test_an_inherited_port_keeps_its_sockets(ports: Ports) -> None:
    inherited = ports.bind(free_port())
    before = (inherited.tcp, inherited.udp)
    found = ports.search(ports.binding(free_port(), inherited=[inherited]))
    assert found is inherited
    assert (found.tcp, found.udp) == before


def test_an_inherited_port_gets_and_loses_what_the_mode_says(ports: Ports) -> None:
    inherited = ports.bind(free_port(), TCP)
    found = ports.search(ports.binding(inherited=[inherited], mode=UDP))
    assert found is inherited
    assert found.tcp is None
    assert found.udp is not None
    assert not ports.table.holds(PLACE, found.number, TCP)


def test_inherited_ports_that_are_not_needed_are_released(ports: Ports) -> None:
    first, second = ports.bind(free_port()), ports.bind(free_port())
    found = ports.search(ports.binding(inherited=[first, second]))
    assert found is first
    assert not ports.table.holds(PLACE, second.number, BOTH)


def test_an_abandoned_search_releases_what_it_inherited(ports: Ports) -> None:
    inherited = ports.bind(free_port())
    binding = ports.binding(inherited=[inherited])
    binding.abandon()
    assert len(ports.table) == 0


def test_leases_name_the_latest_port_first() -> None:
    leases = Leases(max_ports=2)
    for port in (1, 2, 3, 2):
        leases.remember(ALICE, port)
    assert leases.ports(ALICE) == (2, 3)
    assert leases.ports(BOB) == ()


def test_leases_forget_the_user_not_seen_for_longest() -> None:
    leases = Leases(max_users=2)
    leases.remember(ALICE, 1)
    leases.remember(BOB, 2)
    leases.remember(ALICE, 3)
    leases.remember(uuid.UUID(int=3), 4)
    assert leases.ports(BOB) == ()
    assert leases.ports(ALICE) == (3, 1)


def test_a_released_port_is_free_although_somebody_has_a_copy_of_its_socket(ports: Ports) -> None:
    """As a child has that was forked by C code."""
    number = free_port()
    port = ports.table.bind(PLACE, number, TCP)
    assert port.tcp is not None
    with port.tcp.dup():
        ports.table.release(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, number))
        ports.bind(number, TCP)
        socket.create_connection((HOST, number)).close()


def test_ports_that_are_refused_are_not_taken_for_ones_in_use(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(sockets, "listen_tcp", refuse)
    binding = ports.binding(free_port())
    assert ports.search(binding) is None
    assert binding.denied is not None
    assert binding.denied.errno == errno.EPERM
