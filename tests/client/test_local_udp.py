"""The associations of a client and their sockets, on a pump whose clock the test holds."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asport_sync.client.address_order import AddressOrder
from asport_sync.client.local_udp import LocalAssociations, LocalTarget
from asport_sync.config import HostPort, LocalTargets
from asport_sync.engine import Connection, SocketAddress, UdpSocket
from asport_sync.errors import EngineError
from asport_sync.host.associations import SharedBudget
from asport_sync.runtime import sockets
from asport_sync.runtime.log import RateLimit
from asport_sync.wire import Address, proxy_header
from tests.host.fake_engine import (
    FakeUdpSocket,
)
from tests.host.scene import HOST, LOG, TIMEOUT, Busy, Pump
from tests.support.waiting import wait_until

PEER = ("198.51.100.9", 5353)
OTHER = ("198.51.100.10", 5353)
PUBLIC = Address.from_text("192.0.2.1", 2024)


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.close()


class Local:
    """The associations of a client, and the service they lead to."""

    def __init__(
        self,
        pump: Pump,
        *,
        host: str = HOST,
        others: tuple[SocketAddress, ...] = (),
        proxy: bool = False,
        timeout: float = 60.0,
        max_associations: int = 10,
        own_maximum: int | None = None,
        joined: bool = True,
    ) -> None:
        self.pump = pump
        self.service = sockets.bind_udp(HOST, 0)
        self.service.settimeout(TIMEOUT)
        self.address = sockets.local_address(self.service)
        self.budget: SharedBudget[LocalAssociations] = SharedBudget(max_associations)
        hosts = ((host, self.address[1]), *others)
        self.order = AddressOrder(LocalTargets(tuple(HostPort(*each) for each in hosts)))
        self.target = LocalTarget(self.order, pump.thread, pump.workers, pump.clock)
        self.associations = LocalAssociations(
            pump.thread,
            cast(Connection, pump.connection),
            self.target,
            proxy=proxy,
            timeout=timeout,
            budget=self.budget,
            own_budget=None if own_maximum is None else SharedBudget(own_maximum),
            counters=pump.counters,
            log=LOG,
            limit=RateLimit(),
        )
        if joined:
            self.join()

    def join(self) -> None:
        self.pump.do(self.associations.joined, PUBLIC)

    def open(self) -> None:
        self.pump.do(self.associations.open)

    def close(self) -> None:
        self.pump.do(self.associations.close)
        self.service.close()

    def want(self, association: int, peer: SocketAddress = PEER) -> None:
        self.pump.do(self.associations.wanted, association, peer)

    def refuse(self, udp: FakeUdpSocket, *, answered: bool = False) -> None:
        """The service does not take what comes through this socket."""

        def refused() -> None:
            self.associations.refused(cast(UdpSocket, udp), errno.ECONNREFUSED, answered=answered)

        self.pump.do(refused)


@pytest.fixture
def local(pump: Pump) -> Iterator[Local]:
    local = Local(pump)
    yield local
    local.close()


def test_an_association_gets_a_socket_of_its_own(local: Local) -> None:
    local.want(0)
    local.want(1)
    first, second = local.pump.connection.udp
    assert first.associations == {0: (PEER, b"")}
    assert second.associations == {1: (PEER, b"")}
    assert not first.public
    first.sock.send(b"x")
    assert local.service.recvfrom(10) == (b"x", first.sock.getsockname())
    local.service.sendto(b"answer", first.sock.getsockname())
    first.sock.settimeout(TIMEOUT)
    assert first.sock.recv(10) == b"answer"


def test_one_that_is_there_already_is_not_made_again(local: Local) -> None:
    local.want(1)
    local.want(1)
    assert len(local.pump.connection.udp) == 1
    assert local.pump.connection.removed == []


def test_a_header_goes_in_front_of_every_datagram(pump: Pump) -> None:
    local = Local(pump, proxy=True)
    local.want(1)
    expected = proxy_header.udp_header(Address.from_text(*PEER), PUBLIC)
    assert pump.udp.associations == {1: (PEER, expected)}
    local.close()


def test_associations_that_come_too_early_wait_for_the_answer(pump: Pump) -> None:
    """The public port, which the header names, is not known before."""
    local = Local(pump, proxy=True, joined=False)
    local.want(1)
    local.want(2)
    local.want(3, OTHER)
    assert (pump.connection.udp, pump.connection.removed) == ([], [])
    pump.do(local.associations.end, 2)
    assert pump.connection.removed == [2]
    local.join()
    expected = [
        {1: (PEER, proxy_header.udp_header(Address.from_text(*PEER), PUBLIC))},
        {3: (OTHER, proxy_header.udp_header(Address.from_text(*OTHER), PUBLIC))},
    ]
    assert [udp.associations for udp in pump.connection.udp] == expected
    local.close()


def test_early_associations_of_a_refused_client_are_forgotten(pump: Pump) -> None:
    local = Local(pump, joined=False)
    local.want(1)
    local.close()
    local.join()
    assert pump.connection.udp == []


def test_an_association_that_is_over_gives_its_place_back(pump: Pump) -> None:
    local = Local(pump, max_associations=1)
    local.want(1)
    local.want(2, OTHER)
    assert pump.connection.removed == [2]
    assert pump.counter("udp_associations_refused_limit") == 1
    assert pump.connection.refused_for_now == [None]
    pump.do(local.associations.end, 1)
    assert pump.udp.closed
    assert pump.udp.sock.fileno() == -1
    pump.do(local.associations.end, 1)
    local.want(2)
    assert pump.udp.associations == {2: (PEER, b"")}
    local.close()
    assert len(local.budget) == 0


def test_a_tunnel_may_have_fewer_than_the_client(pump: Pump, caplog: pytest.LogCaptureFixture) -> None:
    local = Local(pump, own_maximum=1)
    local.want(1)
    local.want(2, OTHER)
    assert pump.connection.removed == [2]
    assert pump.counter("udp_associations_refused_limit") == 1
    assert "all 1 associations are in use" in caplog.text
    assert "the maximum is udp_sessions" in caplog.text
    pump.connection.idle = [1]
    local.want(3, OTHER)
    assert pump.udp.associations == {3: (OTHER, b"")}
    assert len(local.budget) == 1
    local.close()
    assert len(local.budget) == 0


def test_idle_associations_make_room(pump: Pump) -> None:
    local = Local(pump, max_associations=2)
    local.want(1)
    local.want(2, OTHER)
    pump.connection.idle = [1]
    local.want(3, OTHER)
    # The address of the newcomer has half: one of its own goes, where one is idle.
    assert (pump.connection.idle_asked, pump.connection.idle_hosts) == ([1.0], [OTHER[0]])
    assert [udp.closed for udp in pump.connection.udp] == [True, False, False]
    assert pump.connection.sent == []  # the server keeps its part: the next packet makes a new one here
    assert pump.counter("udp_associations_evicted") == 1
    local.close()


def test_where_no_place_is_to_be_had_a_line_says_why(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    for association in range(10):
        local.want(association)
    assert len(local.pump.connection.udp) == 10
    local.want(10)
    assert local.pump.counter("udp_associations_refused_share") == 1
    assert local.pump.connection.refused_for_now == [PEER]
    assert local.pump.connection.removed == [10]
    # Another one gets a place of the one that has more than half.
    local.pump.connection.idle = [0]
    local.want(11, OTHER)
    assert local.pump.connection.idle_asked[-1] == 0.0
    assert local.pump.connection.idle_hosts[-1] == PEER[0]
    assert len(local.pump.connection.udp) == 11
    (record,) = caplog.records
    for part in (PEER[0], "half of 10 associations", "udp_timeout is 60 s", "LimitNOFILE"):
        assert part in record.getMessage()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
def test_places_follow_the_descriptors_that_there_are(pump: Pump, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where somebody else has them, the longest idle makes room as well."""
    local = Local(pump)
    local.want(1)
    connected_udp = sockets.connected_udp

    def refuse(address: SocketAddress) -> socket.socket:
        if not pump.udp.closed:
            raise OSError(number, "no more")
        return connected_udp(address)

    monkeypatch.setattr(sockets, "connected_udp", refuse)
    pump.connection.idle = [1]
    local.want(2)
    assert [udp.closed for udp in pump.connection.udp] == [True, False]
    assert pump.udp.associations == {2: (PEER, b"")}
    monkeypatch.setattr(sockets, "connected_udp", connected_udp)
    open_udp = pump.connection.open_udp

    def refuse_once(sock: socket.socket, *, public: bool, for_pump: bool = False) -> Any:
        monkeypatch.setattr(pump.connection, "open_udp", open_udp)
        raise EngineError(-1000 - number, "no more")

    monkeypatch.setattr(pump.connection, "open_udp", refuse_once)
    pump.connection.idle = [2]
    local.want(3)
    assert pump.udp.associations == {3: (PEER, b"")}
    assert pump.counter("udp_associations_evicted") == 2
    # Where nobody is idle there is a refusal, and no place is lost.
    monkeypatch.setattr(sockets, "connected_udp", refuse)
    local.want(4)
    assert pump.counter("udp_associations_refused_local_service") == 1
    pump.do(local.associations.end, 3)
    assert len(local.budget) == 0
    local.close()


def test_idle_associations_are_closed(pump: Pump) -> None:
    local = Local(pump, timeout=60.0)
    local.open()
    local.want(1)
    pump.connection.idle = [1]
    pump.pass_time(5.9)
    assert not pump.udp.closed
    pump.pass_time(0.1)
    assert pump.udp.closed
    assert pump.connection.idle_asked == [60.0]
    # The server isn't told: it will dissociate, or use the id again.
    assert pump.connection.sent == []
    local.close()


def test_nothing_is_made_for_a_connection_that_is_over(local: Local) -> None:
    local.want(1)
    local.pump.do(local.associations.close)
    assert local.pump.udp.closed
    local.want(2)
    assert len(local.pump.connection.udp) == 1


def test_a_connection_that_ends_meanwhile_leaves_no_socket(local: Local) -> None:
    local.pump.connection.is_gone = True
    local.want(1)
    assert len(local.budget) == 0
    assert local.pump.connection.udp == []


def test_what_the_engine_refuses_is_refused_and_counted(local: Local) -> None:
    def open_udp(sock: socket.socket, *, public: bool, for_pump: bool = False) -> Any:
        raise EngineError(-4, "no memory")

    local.pump.connection.open_udp = open_udp  # type: ignore[method-assign]
    local.want(1)
    assert local.pump.connection.removed == [1, 1]
    assert local.pump.counter("udp_associations_refused_local_service") == 1


@pytest.fixture
def busy(local: Local) -> Busy:
    local.want(1)
    busy = Busy(local.pump, local.pump.udp, local.associations.busy)
    busy.sender.close()
    busy.sender = local.service  # the socket is connected to the service, so that nothing else can send to it
    return busy


def test_the_pump_reads_a_busy_socket(busy: Busy) -> None:
    busy.begin()
    busy.send()
    busy.expect_reads(2)


def test_another_s_socket_is_not_read(busy: Busy) -> None:
    busy.udp = FakeUdpSocket(busy.pump.connection, busy.udp.sock, True)
    busy.begin()
    busy.send()
    assert busy.settle() == 0


def test_a_closed_busy_socket_is_left_alone(busy: Busy, local: Local) -> None:
    address = busy.udp.sock.getsockname()
    busy.begin()
    busy.pump.do(local.associations.end, 1)
    assert busy.udp.closed
    busy.begin()  # it was on its way
    busy.pump.pass_time(10)
    local.service.sendto(b"x", address)
    assert busy.settle() == 0
    assert busy.udp.given_back == 0


# --- names ------------------------------------------------------------------------------------------------------------


class Resolver:
    """Answers in place of the system's, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[sockets.SocketAddress] | None = []
        self.asked = 0
        monkeypatch.setattr(sockets, "resolve", self._resolve)

    def _resolve(self, host: str, port: int, kind: socket.SocketKind) -> list[sockets.SocketAddress]:
        assert host == "name.example"
        assert kind is socket.SOCK_DGRAM
        self.asked += 1
        if self.answer is None:
            raise OSError("no such name")
        return self.answer


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


@pytest.fixture
def named(pump: Pump, resolver: Resolver) -> Iterator[Local]:
    local = Local(pump, host="name.example")
    resolver.answer = [local.address]
    yield local
    local.close()


def settled(pump: Pump) -> None:
    """Wait for look-ups that are under way, and for what the pump does with them."""
    wait_until(lambda: pump.workers.running == 0 and pump.workers.waiting == 0, TIMEOUT, "look-ups are done")
    pump.do(lambda: None)


def test_the_name_is_looked_up_before_it_is_needed(pump: Pump, named: Local, resolver: Resolver) -> None:
    named.open()
    settled(pump)
    assert resolver.asked == 1
    named.want(1)
    assert pump.udp.sock.getpeername() == named.address


def test_an_association_waits_for_the_name(pump: Pump, named: Local) -> None:
    named.want(1)
    wait_until(lambda: pump.connection.udp, TIMEOUT, "the association is there")
    settled(pump)
    assert pump.udp.associations == {1: (PEER, b"")}


def test_an_association_that_is_over_before_the_name_is_known(pump: Pump, named: Local) -> None:
    def both() -> None:
        named.associations.wanted(1, PEER)
        named.associations.end(1)

    pump.do(both)
    settled(pump)
    assert pump.connection.udp == []
    assert pump.connection.removed == [1]


def test_the_name_is_looked_up_again_after_a_while_of_use(pump: Pump, named: Local, resolver: Resolver) -> None:
    named.want(1)
    settled(pump)
    named.want(2)
    settled(pump)
    assert resolver.asked == 1
    pump.pass_time(31)
    resolver.answer = None
    named.want(3)
    settled(pump)
    assert resolver.asked == 2
    named.want(4)
    settled(pump)
    # The old address is used on: a resolver that fails doesn't mean that the service has moved.
    assert [list(each.associations) for each in pump.connection.udp] == [[1], [2], [3], [4]]


def test_a_name_without_an_address_is_a_refusal(pump: Pump, named: Local, resolver: Resolver) -> None:
    resolver.answer = None
    named.want(1)
    settled(pump)
    assert pump.connection.udp == []
    assert pump.counter("udp_associations_refused_local_service") == 1
    named.want(1)
    settled(pump)
    assert resolver.asked == 1
    pump.pass_time(1)
    resolver.answer = [named.address]
    named.want(1)
    settled(pump)
    assert resolver.asked == 2
    assert pump.udp.associations == {1: (PEER, b"")}


def test_a_service_that_cannot_be_reached_is_a_refusal(pump: Pump, named: Local, resolver: Resolver) -> None:
    resolver.answer = [("::ffff:0:0:1%nowhere", 5)]
    named.want(1)
    settled(pump)
    assert pump.counter("udp_associations_refused_local_service") == 1
    assert len(named.budget) == 0


def test_the_next_address_is_taken_where_one_cannot_be_used(pump: Pump, named: Local, resolver: Resolver) -> None:
    resolver.answer = [("fe80::1%nowhere", 5), named.address]
    named.want(1)
    settled(pump)
    assert pump.udp.sock.getpeername() == named.address


# --- a service that is elsewhere, or away -----------------------------------------------------------------------------

FIRST, SECOND, THIRD = (("127.0.0.1", 9), ("127.0.0.2", 9), ("127.0.0.3", 9))


@pytest.fixture
def several(pump: Pump, resolver: Resolver) -> Iterator[Local]:
    """A service whose name has two addresses."""
    local = Local(pump, host="name.example")
    resolver.answer = [FIRST, SECOND]
    local.open()
    settled(pump)
    yield local
    local.close()


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_refusal_leads_to_the_next_address(pump: Pump, several: Local, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    several.want(1)
    udp, former = pump.udp, pump.udp.sock
    assert udp.sock.getpeername() == FIRST
    several.refuse(udp)
    assert udp.moved == [(SECOND, b"")]
    assert former.fileno() == -1
    assert pump.counter("udp_associations_moved") == 1
    assert messages(caplog) == [
        (
            "INFO",
            "the local service does not accept UDP (Connection refused) at 127.0.0.1:9; UDP continues at 127.0.0.2:9",
        )
    ]
    # Others begin with the address that has not refused, and one that was there already needs no line.
    several.want(2)
    assert pump.udp.sock.getpeername() == SECOND
    pump.do(several.associations.end, 2)
    assert pump.udp.closed
    assert not udp.closed


def test_where_all_addresses_refuse_a_line_a_minute_says_so(
    pump: Pump, several: Local, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    several.want(1)
    for second in range(30):
        # A round of all addresses each second; then the engine tells no more for a second.
        before = len(pump.udp.moved)
        several.refuse(pump.udp)
        several.refuse(pump.udp)
        settled(pump)
        assert len(pump.udp.moved) == before + 1
        assert pump.counter("udp_service_away") == second + 1
        pump.pass_time(2)
    assert not pump.udp.closed
    assert [level for level, _ in messages(caplog)] == ["WARNING"]
    assert "does not accept UDP at 127.0.0." in caplog.text
    several.refuse(pump.udp)
    several.refuse(pump.udp)
    settled(pump)
    assert [level for level, _ in messages(caplog)] == ["WARNING"] * 2
    assert "and 29 more like this" in caplog.text
    assert resolver.asked > 20


def test_a_refusal_leads_to_the_next_host(pump: Pump) -> None:
    """Without any name to look up."""
    local = Local(pump, others=(SECOND, THIRD))
    local.want(1)
    local.refuse(pump.udp)
    assert pump.udp.moved == [(SECOND, b"")]
    local.refuse(pump.udp)
    local.refuse(pump.udp)
    assert [address for address, _ in pump.udp.moved] == [SECOND, THIRD]
    assert pump.counter("udp_service_away") == 1
    local.close()


def test_hosts_may_be_names_and_addresses(pump: Pump, resolver: Resolver) -> None:
    local = Local(pump, host="name.example", others=(THIRD,))
    local.want(1)
    settled(pump)
    assert pump.udp.sock.getpeername() == THIRD  # the name is looked up meanwhile
    resolver.answer = [SECOND, THIRD]
    pump.pass_time(31)
    local.want(2)
    settled(pump)
    local.want(3)
    assert pump.udp.sock.getpeername() == SECOND
    assert local.target.addresses == [SECOND, THIRD]
    local.close()


def test_an_unhealthy_host_is_left_out(pump: Pump) -> None:
    local = Local(pump, others=(SECOND,))
    first, second = local.order.local.addresses
    local.order.checked(first, healthy=False)
    local.want(1)
    assert pump.udp.sock.getpeername() == SECOND
    local.order.checked(first, healthy=True)
    local.order.checked(second, healthy=False)
    local.want(2)
    assert pump.udp.sock.getpeername() == local.address
    # It comes back where it is, as long as it is among the healthy ones.
    former = pump.connection.udp[0]
    local.refuse(former, answered=True)
    assert former.moved == [(local.address, b"")]
    local.close()


def test_an_address_without_others_stays(pump: Pump, local: Local, caplog: pytest.LogCaptureFixture) -> None:
    local.open()
    local.want(1)
    local.refuse(pump.udp)
    local.refuse(pump.udp, answered=True)
    assert pump.udp.moved == []
    assert pump.counter("udp_service_away") == 2
    assert [level for level, _ in messages(caplog)] == ["WARNING"]
    pump.pass_time(10)
    assert pump.connection.unanswered_asked == []  # there is no name to look up


def test_a_service_that_has_answered_is_waited_for(pump: Pump, several: Local, resolver: Resolver) -> None:
    """It may be back in a moment; but where its name leads elsewhere, that is where it is."""
    several.want(1)
    several.refuse(pump.udp, answered=True)
    settled(pump)
    assert pump.udp.moved == []
    pump.pass_time(2)
    resolver.answer = [SECOND, FIRST]
    several.refuse(pump.udp, answered=True)
    settled(pump)
    assert pump.udp.moved == []
    pump.pass_time(2)
    resolver.answer = [THIRD]
    several.refuse(pump.udp, answered=True)
    settled(pump)
    assert pump.udp.moved == [(THIRD, b"")]


def test_an_association_that_moves_keeps_its_header(pump: Pump, resolver: Resolver) -> None:
    local = Local(pump, host="name.example", proxy=True)
    resolver.answer = [FIRST, SECOND]
    local.want(1)
    settled(pump)
    local.refuse(pump.udp)
    expected = proxy_header.udp_header(Address.from_text(*PEER), PUBLIC)
    assert pump.udp.moved == [(SECOND, expected)]
    local.close()


def test_silence_and_another_address_move_an_association(pump: Pump, several: Local, resolver: Resolver) -> None:
    several.want(1)
    several.want(2)
    silent, answering = pump.connection.udp
    pump.connection.unanswered = [1, 99]
    pump.pass_time(3)
    assert pump.connection.unanswered_asked == [(3.0, 10.0)]
    settled(pump)
    assert (resolver.asked, silent.moved) == (2, [])
    resolver.answer = [THIRD, SECOND]
    pump.pass_time(3)
    settled(pump)
    assert (resolver.asked, silent.moved, answering.moved) == (3, [(THIRD, b"")], [])
    # Where it is the name's address, silence is no reason.
    pump.pass_time(3)
    settled(pump)
    assert len(silent.moved) == 1
    pump.connection.unanswered = []
    asked = resolver.asked
    pump.pass_time(3)
    settled(pump)
    assert resolver.asked == asked
    pump.connection.is_gone = True
    pump.pass_time(3)
    looks = len(pump.connection.unanswered_asked)
    pump.pass_time(3)
    assert len(pump.connection.unanswered_asked) == looks


def test_what_cannot_move_ends(pump: Pump, several: Local) -> None:
    several.want(1)
    pump.udp.move_problem = EngineError(-1012, "Cannot allocate memory")
    several.refuse(pump.udp)
    assert pump.udp.closed
    assert pump.udp.sock.fileno() == -1
    assert len(several.budget) == 0
    several.refuse(pump.udp)  # it was on its way


def test_a_busy_socket_that_moves_is_the_engine_s_again(pump: Pump, several: Local) -> None:
    several.want(1)
    pump.do(several.associations.busy, cast(UdpSocket, pump.udp))
    several.refuse(pump.udp)
    assert pump.udp.moved == [(SECOND, b"")]
    busy = Busy(pump, pump.udp, several.associations.busy)
    assert busy.settle() == 0
    busy.begin()  # it may become busy again
    busy.sender.close()
    pump.pass_time(1)
    assert pump.udp.given_back == 1


def test_without_a_thread_for_the_look_up_the_association_is_refused(
    pump: Pump, named: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(pump.workers, "submit", submit)
        named.open()
        named.want(1)
    assert pump.connection.removed == [1, 1]
    assert pump.counter("udp_associations_refused_local_service") == 1
    named.want(1)
    settled(pump)
    assert pump.udp.associations == {1: (PEER, b"")}
    pump.do(named.associations.end, 1)
    assert len(named.budget) == 0
