"""Associations on both sides, on a pump whose clock the test holds."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asport_sync.client.local_udp import LocalAssociations, LocalTarget
from asport_sync.engine import Connection, SocketAddress, UdpSocket
from asport_sync.errors import EngineError
from asport_sync.host.associations import SourceShares, expiry_period
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import Slots, WorkerPool
from asport_sync.server.associations import AssociationTable, SharedBudget
from asport_sync.server.public_udp import PublicUdp
from asport_sync.wire import Address, Dissociate, decode, proxy_header
from tests.host.fake_engine import FakeEngine, FakeUdpSocket, gone
from tests.runtime.clock import VirtualClock
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
TIMEOUT = 10.0
PEER = ("198.51.100.9", 5353)
OTHER = ("198.51.100.10", 5353)
PUBLIC = Address.from_text("192.0.2.1", 2024)
LOG = logging.getLogger("asport_sync.test")


class Pump:
    """A pump, its clock, and everything it needs."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.thread = SelectorThread("asport-pump", self.clock)
        self.thread.start()
        self.workers = WorkerPool(2)
        self.counters = Counters()
        self.connection = FakeEngine().new_connection()

    def close(self) -> None:
        assert self.thread.stop(TIMEOUT)
        assert self.workers.stop(TIMEOUT)

    def do(self, function: Any, *arguments: Any) -> None:
        self.thread.call_and_wait(function, *arguments)

    def pass_time(self, seconds: float) -> None:
        def pass_it() -> None:
            self.clock.advance(seconds)
            self.thread._timers.run()

        self.do(pass_it)

    def counter(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    @property
    def udp(self) -> FakeUdpSocket:
        return self.connection.udp[-1]


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.close()


@pytest.mark.parametrize(("timeout", "period"), [(300, 30), (60, 6), (5, 1), (0.5, 1)])
def test_how_often_idle_associations_are_looked_for(timeout: float, period: float) -> None:
    assert expiry_period(timeout) == period


# --- the server's side ------------------------------------------------------------------------------------------------


class Public:
    """A public socket in a connection's service; of its sources the engine tells as in SourceUnknown."""

    def __init__(self, pump: Pump, timeout: float = 300.0, budget: SharedBudget[PublicUdp] | None = None) -> None:
        self.pump = pump
        self.sock = sockets.bind_udp(HOST, 0)
        self.address = sockets.local_address(self.sock)
        self.sources = 0
        connection = cast(Connection, pump.connection)
        self.public = PublicUdp(pump.thread, connection, self.sock, timeout, pump.counters, LOG, budget)
        pump.do(self.public.open)

    def close(self) -> None:
        self.pump.do(self.public.close)
        self.sock.close()

    def source(self) -> SocketAddress:
        """Somebody new sends; returns who."""
        self.sources += 1
        source = ("198.51.100.1", self.sources)
        self.miss(source)
        return source

    def miss(self, source: SocketAddress) -> None:
        self.pump.do(self.public.missed, self.pump.udp, source)


@pytest.fixture
def public(pump: Pump) -> Iterator[Public]:
    public = Public(pump)
    yield public
    public.close()


def test_each_source_becomes_an_association(public: Public) -> None:
    first, second = public.source(), public.source()
    assert public.pump.udp.associations == {1: (first, b""), 2: (second, b"")}
    assert public.pump.udp.public
    assert public.pump.udp.refused == []
    assert public.pump.counter("udp_associations") == 2


def test_somebody_at_two_addresses_of_the_server_is_two_sources(public: Public) -> None:
    source = ("198.51.100.1", 1)
    for local in (("192.0.2.1", 0), ("192.0.2.2", 0)):
        public.pump.do(public.public.missed, public.pump.udp, source, local)
    assert public.pump.udp.associations == {1: (source, b""), 2: (source, b"")}
    assert public.pump.udp.locals == {1: ("192.0.2.1", 0), 2: ("192.0.2.2", 0)}
    public.pump.udp.refuses_associations = True
    public.pump.do(public.public.missed, public.pump.udp, source, ("192.0.2.3", 0))
    assert (public.pump.udp.refused, public.pump.udp.refused_at) == ([source], [("192.0.2.3", 0)])


def test_a_full_table_refuses(public: Public) -> None:
    public.public._associations = AssociationTable(most=1)
    public.source()
    refused = public.source()
    assert public.pump.counter("udp_sources_refused_table_full") == 1
    # What waits of it is dropped, and it may ask again.
    assert public.pump.udp.refused == [refused]
    assert public.pump.connection.refused_for_now == [None]
    public.miss(refused)
    assert public.pump.udp.refused == [refused, refused]
    assert list(public.pump.udp.associations) == [1]


def test_in_a_full_table_idle_associations_make_room(public: Public) -> None:
    public.public._associations = AssociationTable(most=2)
    for number in (1, 2):
        public.source()
        assert len(public.pump.udp.associations) == number
    connection = public.pump.connection
    connection.idle = [1]
    public.source()
    assert sorted(public.pump.udp.associations) == [1, 2, 3]
    assert (connection.idle_asked, connection.idle_hosts) == ([1.0], [None])
    assert [decode(data)[0] for data in connection.sent] == [Dissociate(1)]
    assert connection.removed == [1]
    assert public.pump.counter("udp_associations_evicted") == 1
    assert public.pump.counter("udp_associations_expired") == 0
    # Several at a time: a crowd of sources does not cost a search each.
    connection.idle = [2, 3]
    public.source()
    public.source()
    assert sorted(public.pump.udp.associations) == [1, 2, 3, 4, 5]
    assert connection.idle_asked == [1.0, 1.0]
    assert public.pump.counter("udp_sources_refused_table_full") == 0


def test_where_no_association_is_idle_a_line_says_so_once(public: Public, caplog: pytest.LogCaptureFixture) -> None:
    public.public._associations = AssociationTable(most=1)
    public.source()
    public.source()
    public.source()
    assert public.pump.counter("udp_sources_refused_table_full") == 2
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in (
        f"UDP port {public.address[1]}: no association",
        "65535 associations of the port",
        "of all ports",
        "udp_session_timeout",
    ):
        assert part in record.getMessage()


def test_a_flood_does_not_keep_python_busy_with_making_room(public: Public) -> None:
    connection, clock = public.pump.connection, public.pump.clock
    public.public._associations = AssociationTable(most=64)
    places = public.public._places
    places._clock = clock
    places._allowed_at = clock()
    for _ in range(64):
        public.source()
    # 2,500 at once and then so many a second; whoever comes beyond that is not asked about for a moment.
    for expected in (2500, 3125, 3750):
        for _ in range(60):
            connection.idle = sorted(public.public._associations._taken)
            for _ in range(65):
                public.source()
        assert public.pump.counter("udp_associations_evicted") == expected
        assert None in connection.refused_for_now
        connection.refused_for_now.clear()
        public.pump.pass_time(0.25)


def test_an_address_that_has_its_share_gets_more_at_a_bounded_rate(public: Public) -> None:
    """Python would have no time for others otherwise, although there are places."""
    clock, places = public.pump.clock, public.public._places
    public.public._shares = places._shares = SourceShares(most=10)
    places._clock = clock
    places._allowed_at = clock()
    for _ in range(3000):
        public.source()
    assert public.pump.counter("udp_associations") == 10 + 2500
    assert public.pump.counter("udp_sources_refused_share") == 490
    public.miss(("198.51.100.2", 1))
    assert public.pump.counter("udp_associations") == 10 + 2500 + 1
    public.pump.pass_time(0.1)
    for _ in range(300):
        public.source()
    assert public.pump.counter("udp_associations") == 10 + 2750 + 1


def test_one_address_takes_no_more_than_half_from_others(public: Public) -> None:
    """It may have as many as there are, while nobody else wants them."""
    connection = public.pump.connection
    public.public._associations = AssociationTable(most=4)
    public.public._shares = public.public._places._shares = SourceShares(most=2)
    for _ in range(4):
        public.source()
    assert len(public.pump.udp.associations) == 4
    # Another one gets a place of the one that has too many, also a busy one.
    connection.idle = [1]
    public.miss(("198.51.100.2", 1))
    assert (connection.idle_asked, connection.idle_hosts) == ([0.0], ["198.51.100.1"])
    assert connection.removed == [1]
    assert public.pump.udp.associations[5] == (("198.51.100.2", 1), b"")
    # Who has half or more gets a place of his own, where one is idle, ...
    connection.idle = [2]
    public.source()
    assert (connection.idle_asked[1:], connection.idle_hosts[1:]) == ([1.0], ["198.51.100.1"])
    assert connection.removed == [1, 2]
    # ... or none.
    refused = public.source()
    assert public.pump.counter("udp_sources_refused_share") == 1
    assert public.pump.udp.refused == [refused]
    assert connection.refused_for_now == [refused]
    # With shares of half each, whoever comes next takes the place of the longest idle.
    connection.idle = [3]
    public.miss(("198.51.100.2", 2))
    connection.idle = [6]
    public.miss(("198.51.100.3", 1))
    assert connection.idle_hosts[-2:] == ["198.51.100.1", None]
    assert connection.idle_asked[-2:] == [0.0, 1.0]


def test_ports_share_one_budget(pump: Pump) -> None:
    """While it lasts each may have as many as it likes; then none goes without its fair share."""
    budget: SharedBudget[PublicUdp] = SharedBudget(6)
    engine = FakeEngine()
    ports: list[Public] = []
    for _ in range(3):
        pump.connection = engine.new_connection()
        ports.append(Public(pump, budget=budget))
    flooded, small, third = ports
    connections = engine.connections

    def come(port: Public) -> bool:
        """Somebody new sends to it; whether he is served."""
        udp = connections[ports.index(port)].udp[0]
        port.sources += 1
        pump.do(port.public.missed, udp, ("198.51.100.1", port.sources))
        return ("198.51.100.1", port.sources) not in udp.refused

    assert [come(flooded) for _ in range(5)] + [come(small)] == [True] * 6
    assert len(budget) == 6
    # Its own are used up: it waits until one of them is idle.
    assert not come(flooded)
    assert pump.counter("udp_sources_refused_table_full") == 1
    connections[0].idle = [1]
    assert come(flooded)
    assert (connections[0].idle_asked, connections[0].removed) == ([1.0, 1.0], [1])
    # The others get what they lack, from who has most, idle or not.
    for port, expected in ((small, [2]), (third, [2, 3]), (third, [2, 3, 4])):
        connections[0].idle = [expected[-1]]
        assert come(port)
        assert connections[0].removed == [1, *expected]
        assert connections[0].idle_asked[-1] == 0.0
    # No more of it than what it had beyond its share.
    assert connections[0].idle_max[-3:] == [2, 1, 1]
    assert len(budget) == 6
    # Each has its share of two now, and no more.
    for port in ports:
        assert not come(port)
    # What a port had is there for others once it is closed.
    pump.do(flooded.public.close)
    assert len(budget) == 4
    assert come(small)
    for port in ports:
        port.close()
    assert len(budget) == 0


def test_a_port_whose_connection_has_ended_gives_up_all(pump: Pump) -> None:
    budget: SharedBudget[PublicUdp] = SharedBudget(2)
    ended = Public(pump, budget=budget)
    ended.source(), ended.source()
    connection = pump.connection
    pump.connection = FakeEngine().new_connection()
    other = Public(pump, budget=budget)
    connection.is_gone = True
    other.source()
    assert pump.udp.associations == {1: (("198.51.100.1", 1), b"")}
    assert ended.public._udp is None
    assert len(budget) == 1
    ended.close()
    other.close()


def test_an_id_that_the_engine_refuses_is_free_again(public: Public) -> None:
    public.pump.udp.refuses_associations = True
    refused = public.source()
    assert public.pump.counter("udp_sources_refused_by_engine") == 1
    assert public.pump.udp.refused == [refused]
    assert len(public.public._associations) == 0


def test_a_source_of_a_connection_that_is_gone_ends_the_service(public: Public) -> None:
    public.pump.connection.is_gone = True
    public.source()
    assert public.public._udp is None
    assert public.pump.counter("udp_associations") == 0
    public.source()


def test_a_source_of_another_socket_is_left_alone(public: Public, pump: Pump) -> None:
    """The word of it was on its way when its socket was closed."""
    mine = pump.udp
    other = Public(pump)
    pump.do(public.public.missed, pump.udp, PEER)
    pump.do(other.public.missed, mine, PEER)
    assert mine.associations == pump.udp.associations == {}
    assert mine.refused == pump.udp.refused == []
    other.close()


def test_an_idle_association_is_dissociated(pump: Pump) -> None:
    public = Public(pump, timeout=50.0)
    public.source()
    pump.pass_time(4.9)
    assert pump.connection.idle_asked == []
    pump.pass_time(0.1)
    assert pump.connection.idle_asked == [50.0]
    assert pump.connection.sent == []
    pump.connection.idle = [1]
    pump.pass_time(5)
    assert [decode(data)[0] for data in pump.connection.sent] == [Dissociate(1)]
    assert pump.connection.removed == [1]
    assert len(public.public._associations) == 0
    assert pump.counter("udp_associations_expired") == 1
    public.close()


def test_a_crowd_of_idle_associations_is_ended_a_few_at_a_time(pump: Pump) -> None:
    public = Public(pump, timeout=10.0)
    crowd = list(range(1, 601))
    pump.connection.idle = list(crowd)
    pump.pass_time(1)
    for so_far in (256, 512, 600):
        assert pump.connection.removed == crowd[:so_far]
        assert len(pump.connection.sent) == so_far
        pump.pass_time(0.04)
        assert len(pump.connection.sent) == so_far
        pump.pass_time(0.02)
    assert pump.counter("udp_associations_expired") == 600
    asked = len(pump.connection.idle_asked)
    pump.pass_time(0.5)
    assert len(pump.connection.idle_asked) == asked
    pump.pass_time(0.5)
    assert len(pump.connection.idle_asked) == asked + 1
    public.close()


def test_a_dissociate_that_cannot_be_sent_is_counted_and_the_rest_goes_on(pump: Pump) -> None:
    public = Public(pump, timeout=10.0)

    def send(command: bytes) -> None:
        raise EngineError(-5, "a table or queue is full")

    pump.connection.send = send  # type: ignore[method-assign]
    pump.connection.idle = [1, 2]
    pump.pass_time(1)
    assert pump.connection.removed == [1, 2]
    assert pump.counter("dissociates_not_sent") == 2
    pump.pass_time(1)
    assert len(pump.connection.idle_asked) == 2
    public.close()


def test_the_end_of_the_connection_ends_the_look_for_idle_ones(public: Public) -> None:
    public.pump.connection.is_gone = True
    public.pump.pass_time(100)
    assert public.pump.thread._timers.remaining() is None


# --- busy sockets -----------------------------------------------------------------------------------------------------


class Busy:
    """A socket that the engine has left to the pump, and somebody who sends to it."""

    def __init__(self, pump: Pump, udp: FakeUdpSocket, begin: Any) -> None:
        self.pump = pump
        self.udp = udp
        self.sender = sockets.bind_udp(HOST, 0)
        self._begin = begin

    def begin(self) -> None:
        self.pump.do(self._begin, cast(UdpSocket, self.udp))

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.sender.sendto(b"x", self.udp.sock.getsockname())

    def expect_reads(self, reads: int) -> None:
        wait_until(lambda: self.udp.reads >= reads, TIMEOUT, f"the socket is read {reads} times")

    def settle(self) -> int:
        """Two turns of the pump; returns how often the socket has been read."""
        for _ in range(2):
            self.pump.do(lambda: None)
        return self.udp.reads


@pytest.fixture(params=["public", "local"])
def busy(request: pytest.FixtureRequest, pump: Pump) -> Iterator[Busy]:
    sides: list[Public | Local] = []
    if request.param == "public":
        public = Public(pump)
        sides.append(public)
        begin: Any = public.public.busy
    else:
        local = Local(pump)
        sides.append(local)
        local.want(1)
        # Connected to the service, so only that can send: the socket is the service's for these tests.
        begin = local.associations.busy
    busy = Busy(pump, pump.udp, begin)
    if request.param == "local":
        busy.sender.close()
        busy.sender = cast(Local, sides[0]).service
    yield busy
    for side in sides:
        side.close()
    busy.sender.close()


def test_the_engine_reads_unless_it_says_otherwise(busy: Busy) -> None:
    busy.send()
    assert busy.settle() == 0
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 0


def test_the_pump_reads_a_busy_socket(busy: Busy) -> None:
    busy.send()
    busy.begin()
    busy.expect_reads(2)
    assert busy.settle() == 2  # the second found it empty
    busy.begin()  # said once more
    busy.send()
    busy.expect_reads(4)
    assert busy.settle() == 4


def test_a_socket_that_stays_busy_stays_the_pump_s(busy: Busy) -> None:
    busy.begin()
    busy.udp.receive = count_of(busy.udp, 20_000)  # type: ignore[method-assign]
    for second in range(1, 4):
        busy.send()
        busy.expect_reads(2 * second)
        busy.settle()
        busy.pump.pass_time(1)
        assert busy.udp.given_back == 0
    # One that is read by nobody would be lost: it goes back only after a look that found little.
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 1
    busy.send()
    assert busy.settle() == 6
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 1


def test_a_quiet_socket_is_given_back(busy: Busy) -> None:
    busy.begin()
    busy.udp.receive = count_of(busy.udp, 19_999)  # type: ignore[method-assign]
    busy.send()
    busy.expect_reads(2)
    busy.settle()
    busy.pump.pass_time(0.9)
    assert busy.udp.given_back == 0
    busy.pump.pass_time(0.1)
    assert busy.udp.given_back == 1
    # It may become busy again.
    busy.send()
    busy.begin()
    busy.expect_reads(4)
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 2


def test_a_socket_that_the_engine_cannot_take_back_stays_the_pump_s(busy: Busy) -> None:
    busy.begin()
    busy.udp.give_back_problem = EngineError(-1024, "No space left on device")
    for second in range(1, 3):
        busy.pump.pass_time(1)
        assert busy.udp.given_back == second
        busy.send()
        busy.expect_reads(2 * second)
    assert busy.pump.counters.snapshot()["udp_give_back_errors"] == 2
    busy.udp.give_back_problem = None
    busy.pump.pass_time(1)
    busy.send()
    assert busy.settle() == 4
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 3


def test_a_socket_that_is_gone_is_not_given_back(busy: Busy) -> None:
    busy.begin()
    busy.udp.give_back_problem = gone()
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 1
    busy.send()
    assert busy.settle() == 0


def count_of(udp: FakeUdpSocket, datagrams: int) -> Any:
    """A ``receive`` that finds so many datagrams for each that was sent."""

    def receive() -> int:
        return FakeUdpSocket.receive(udp) * datagrams

    return receive


def test_a_busy_socket_leaves_others_their_turn(busy: Busy) -> None:
    turns: list[int] = []
    reads: list[int] = []

    def receive() -> int:
        reads.append(len(reads))
        if len(reads) == 1:
            busy.pump.thread.call(lambda: turns.append(len(reads)))
        if len(reads) < 10:
            return 64
        busy.udp.sock.recv(10)
        return 0

    busy.udp.receive = receive  # type: ignore[method-assign]
    busy.send()
    busy.begin()
    wait_until(lambda: len(reads) == 10, TIMEOUT, "all is read")
    busy.settle()
    assert len(reads) == 10
    assert turns == [4]


def test_a_read_that_fails_is_tried_again_later(busy: Busy) -> None:
    failures = [EngineError(-1012, "Cannot allocate memory")]

    def receive() -> int:
        if failures:
            raise failures.pop()
        return FakeUdpSocket.receive(busy.udp)

    busy.udp.receive = receive  # type: ignore[method-assign]
    busy.send()
    busy.begin()
    wait_until(lambda: busy.pump.counter("udp_read_errors") == 1, TIMEOUT, "the read has failed")
    assert busy.settle() == 0
    busy.pump.pass_time(0.1)
    busy.expect_reads(2)
    assert busy.pump.counter("udp_read_errors") == 1


def test_a_busy_socket_of_a_connection_that_is_gone_is_left_alone(busy: Busy) -> None:
    busy.begin()
    busy.pump.connection.is_gone = True
    busy.send()
    busy.settle()
    assert busy.udp.reads == 0
    busy.pump.pass_time(10)
    assert busy.udp.given_back == 0
    assert busy.pump.counter("udp_read_errors") == 0


def test_what_the_engine_cannot_take_back_is_no_error(busy: Busy, caplog: pytest.LogCaptureFixture) -> None:
    busy.begin()
    busy.pump.connection.is_gone = True
    busy.pump.pass_time(1)
    assert busy.udp.given_back == 0
    assert caplog.records == []


def test_another_s_socket_is_not_read(pump: Pump) -> None:
    public, local = Public(pump), Local(pump)
    local.want(1)
    stranger = FakeUdpSocket(pump.connection, public.sock, True)
    for begin in (public.public.busy, local.associations.busy):
        pump.do(begin, cast(UdpSocket, stranger))
    busy = Busy(pump, stranger, None)
    busy.send()
    assert busy.settle() == 0
    busy.sender.close()
    local.close()
    public.close()


def test_a_closed_busy_socket_is_left_alone(pump: Pump) -> None:
    public, local = Public(pump), Local(pump)
    mine = pump.udp
    local.want(1)
    theirs = pump.udp
    pump.do(public.public.busy, cast(UdpSocket, mine))
    pump.do(local.associations.busy, cast(UdpSocket, theirs))
    pump.do(public.public.close)
    pump.do(local.associations.end, 1)
    assert mine.closed
    assert theirs.closed
    for begin, udp in ((public.public.busy, mine), (local.associations.busy, theirs)):
        pump.do(begin, cast(UdpSocket, udp))  # it was on its way
    pump.pass_time(10)
    busy = Busy(pump, mine, None)
    busy.send()
    assert busy.settle() == 0
    assert (mine.given_back, theirs.given_back) == (0, 0)
    busy.sender.close()
    local.close()
    public.close()


# --- sockets that the engine can't take into service -----------------------------------------------------------------


class Unopened:
    """A public socket that the engine can't take into service yet."""

    def __init__(self, pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing = True
        self.tries = 0
        open_udp = pump.connection.open_udp

        def fail_first(sock: socket.socket, *, public: bool, for_pump: bool = False) -> FakeUdpSocket:
            self.tries += 1
            if self.failing:
                raise EngineError(-1024, "Too many open files")
            return open_udp(sock, public=public)

        monkeypatch.setattr(pump.connection, "open_udp", fail_first)
        self.public = Public(pump)


def test_a_socket_that_cannot_be_opened_is_tried_again(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unopened = Unopened(pump, monkeypatch)
    pump.pass_time(1)
    assert pump.counter("udp_open_errors") == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot forward yet: Too many open files" in caplog.text
    unopened.failing = False
    pump.pass_time(1)
    source = unopened.public.source()
    assert pump.udp.associations == {1: (source, b"")}
    assert unopened.tries == 3
    unopened.public.close()


def test_a_socket_that_can_never_be_opened_is_given_up(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unopened = Unopened(pump, monkeypatch)
    for _ in range(100):
        pump.pass_time(1)
    assert unopened.tries == 60
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    unopened.public.close()


def test_a_socket_that_was_closed_is_not_opened_any_more(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    unopened = Unopened(pump, monkeypatch)
    unopened.public.close()
    pump.pass_time(5)
    assert unopened.tries == 1


def test_a_closed_public_socket_is_left_alone(public: Public) -> None:
    public.pump.do(public.public.close)
    assert public.pump.udp.closed
    public.source()
    assert public.pump.udp.associations == {}
    assert public.pump.udp.refused == []
    public.pump.do(public.public.close)


# --- the client's side ------------------------------------------------------------------------------------------------


class Local:
    """The associations of a client, and the service they lead to."""

    def __init__(
        self,
        pump: Pump,
        *,
        host: str = HOST,
        proxy: bool = False,
        timeout: float = 60.0,
        most: int = 10,
        joined: bool = True,
    ) -> None:
        self.pump = pump
        self.service = sockets.bind_udp(HOST, 0)
        self.service.settimeout(TIMEOUT)
        self.address = sockets.local_address(self.service)
        self.budget = Slots(most)
        self.target = LocalTarget(host, self.address[1], pump.thread, pump.workers, pump.clock)
        self.associations = LocalAssociations(
            pump.thread,
            cast(Connection, pump.connection),
            self.target,
            proxy=proxy,
            timeout=timeout,
            budget=self.budget,
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
    local = Local(pump, most=1)
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
    assert local.budget.take()


def test_idle_associations_make_room(pump: Pump) -> None:
    local = Local(pump, most=2)
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
    assert [local.budget.take() for _ in range(11)] == [True] * 10 + [False]
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
    assert local.budget.take()
    assert local.pump.connection.udp == []


def test_what_the_engine_refuses_is_refused_and_counted(local: Local) -> None:
    def open_udp(sock: socket.socket, *, public: bool, for_pump: bool = False) -> Any:
        raise EngineError(-4, "no memory")

    local.pump.connection.open_udp = open_udp  # type: ignore[method-assign]
    local.want(1)
    assert local.pump.connection.removed == [1, 1]
    assert local.pump.counter("udp_associations_refused_local_service") == 1


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
    assert named.budget.take()


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
    assert [several.budget.take() for _ in range(11)] == [True] * 10 + [False]
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
    assert [named.budget.take() for _ in range(11)] == [True] * 10 + [False]
