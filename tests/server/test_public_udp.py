"""The UDP socket of a public port and its associations, on a pump whose clock the test holds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from asport_sync.engine import Connection, SocketAddress
from asport_sync.errors import EngineError
from asport_sync.host.associations import SharedBudget, SourceShares
from asport_sync.runtime import sockets
from asport_sync.server.public_udp import PublicUdp
from asport_sync.wire import Dissociate, decode
from tests.host.fake_engine import (
    FakeEngine,
    FakeUdpSocket,
)
from tests.host.scene import HOST, LOG, Busy, Pump

PEER = ("198.51.100.9", 5353)


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.close()


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
    public.public._of_port.maximum = 1
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
    public.public._of_port.maximum = 2
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
    public.public._of_port.maximum = 1
    public.source()
    public.source()
    public.source()
    assert public.pump.counter("udp_sources_refused_table_full") == 2
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in (
        f"UDP port {public.address[1]}: no association",
        "1 of 1 associations of the port",
        "of all ports",
        "udp_session_timeout",
    ):
        assert part in record.getMessage()


def test_a_flood_does_not_keep_python_busy_with_making_room(public: Public) -> None:
    connection, clock = public.pump.connection, public.pump.clock
    public.public._of_port.maximum = 64
    places = public.public._evictions
    places._clock = clock
    places._allowed_at = clock()
    for _ in range(64):
        public.source()
    # 2,500 at once and then so many a second; whoever comes beyond that is not asked about for a moment.
    for expected in (2500, 3125, 3750):
        for _ in range(60):
            connection.idle = sorted(public.public.associations._taken)
            for _ in range(65):
                public.source()
        assert public.pump.counter("udp_associations_evicted") == expected
        assert None in connection.refused_for_now
        connection.refused_for_now.clear()
        public.pump.pass_time(0.25)


def test_an_address_that_has_its_share_gets_more_at_a_bounded_rate(public: Public) -> None:
    """Python would have no time for others otherwise, although there are places."""
    clock, places = public.pump.clock, public.public._evictions
    public.public._of_port.shares = places._shares = SourceShares(maximum=10)
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
    public.public._of_port.maximum = 4
    public.public._of_port.shares = public.public._evictions._shares = SourceShares(maximum=2)
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
    assert len(public.public.associations) == 0


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
    assert len(public.public.associations) == 0
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


def test_the_pump_reads_a_busy_socket(public: Public) -> None:
    busy = Busy(public.pump, public.pump.udp, public.public.busy)
    busy.begin()
    busy.send()
    busy.expect_reads(2)
    busy.sender.close()


def test_another_s_socket_is_not_read(public: Public) -> None:
    another = FakeUdpSocket(public.pump.connection, public.sock, True)
    busy = Busy(public.pump, another, public.public.busy)
    busy.begin()
    busy.send()
    assert busy.settle() == 0
    busy.sender.close()


def test_a_closed_busy_socket_is_left_alone(public: Public) -> None:
    busy = Busy(public.pump, public.pump.udp, public.public.busy)
    busy.begin()
    public.pump.do(public.public.close)
    assert busy.udp.closed
    busy.begin()  # it was on its way
    public.pump.pass_time(10)
    busy.send()
    assert busy.settle() == 0
    assert busy.udp.given_back == 0
    busy.sender.close()


# --- sockets that the engine can't take into service ------------------------------------------------------------------


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
