"""Several connections behind one public port, through the boundary: who gets which visitor, and what an end changes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import socket
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import (
    Balance,
    Carrier,
    Connected,
    Connection,
    Group,
    Listener,
    SourceUnknown,
    StreamOpened,
    Transport,
    UdpSocket,
    VisitorLimits,
    VisitorsRefused,
    packed_ranges,
)
from asport_sync.errors import EngineError, HandleGoneError
from asport_sync.runtime import sockets
from tests.engine.pair import EVENT_TIMEOUT, Side, connect, expect_closed, expect_reset, listen
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until

HOST = "127.0.0.1"


@dataclasses.dataclass
class Member:
    """A connection of a group, and what it has of the port."""

    server: Connection
    client: Connection
    listener: Listener | None = None
    udp: UdpSocket | None = None


class Shared:
    """A group, its sockets and its members; the client's side is one engine for all of them."""

    def __init__(self, server: Side, client: Side, group: Group, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.client = client
        self.group = group
        self.members: list[Member] = []
        self.tcp = stack.enter_context(sockets.listen_tcp(HOST, 0))
        self.udp = stack.enter_context(sockets.bind_udp(HOST, 0))
        self._stack = stack

    def visit(self) -> socket.socket:
        """A visitor connects."""
        visitor = self._stack.enter_context(socket.create_connection(self.tcp.getsockname(), EVENT_TIMEOUT))
        visitor.settimeout(EVENT_TIMEOUT)
        return visitor

    def visit_in_vain(self) -> None:
        """A visitor connects and is reset, perhaps before the call returns."""
        with contextlib.suppress(ConnectionResetError):
            expect_reset(self.visit())

    def visited(self) -> tuple[int, socket.socket, StreamOpened]:
        """A visitor connects; also returns the number of the member that gets it."""
        visitor = self.visit()
        opened = self.client.expect(StreamOpened)
        return self.number_of(opened.connection), visitor, opened

    def number_of(self, client: Connection) -> int:
        return [each.client for each in self.members].index(client)

    def source(self) -> socket.socket:
        """A visitor's UDP socket."""
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((HOST, 0))
        return sock

    def asked(self, source: socket.socket) -> tuple[int, SourceUnknown]:
        """A new source sends; returns the number of the member that is asked."""
        source.sendto(b"new", self.udp.getsockname())
        event = self.server.expect(SourceUnknown, lambda event: event.source == source.getsockname())
        return [each.server for each in self.members].index(event.connection), event


@contextlib.contextmanager
def grouped(
    certificate: Certificate, *transports: Transport, balance: Balance = Balance.ROUND_ROBIN, udp: bool = False
) -> Iterator[Shared]:
    """A group with a member for each of these settings of its client."""
    with Side("server") as server, Side("client") as client, contextlib.ExitStack() as stack:
        _, address = listen(server, certificate)
        group = Shared(server, client, server.engine.new_group(balance), stack)
        for transport in transports:
            connection = connect(client, certificate, address, transport)
            client.expect(Connected, lambda event, wanted=connection: event.connection == wanted)  # type: ignore[misc]
            member = Member(server.expect(Connected, lambda event: event.endpoint is not None).connection, connection)
            member.server.join(group.group)
            member.server.set_joined(Carrier.DATAGRAM if udp else None)
            member.client.set_joined(Carrier.DATAGRAM if udp else None)
            group.members.append(member)
            if udp:
                member.udp = member.server.open_udp(group.udp, public=True)
            member.listener = member.server.accept(group.tcp)
        yield group


STREAMS = Transport(max_streams_bidi=64)
NO_STREAMS = Transport(max_streams_bidi=0)


def take(group: Shared, count: int) -> list[int]:
    return [group.visited()[0] for _ in range(count)]


def test_round_robin_is_even(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS, STREAMS) as group:
        assert collections.Counter(take(group, 30)) == {0: 10, 1: 10, 2: 10}
        assert group.server.counter("tcp_accepted") == 30
        assert group.server.counter("balance_passed_over") == 0


def test_a_crowd_in_the_backlog_is_spread_too(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS) as group:
        for _ in range(40):
            group.visit()
        opened = [group.number_of(group.client.expect(StreamOpened).connection) for _ in range(40)]
        assert collections.Counter(opened) == {0: 20, 1: 20}


def test_least_connections_prefers_the_idle_one(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS, balance=Balance.LEAST_CONNECTIONS) as group:
        first = [group.visited() for _ in range(6)]
        assert collections.Counter(number for number, _, _ in first) == {0: 3, 1: 3}
        for number, _, opened in first:
            if number == 1:
                opened.stream.refuse()
        wait_until(lambda: group.members[1].server.info().streams == 0, EVENT_TIMEOUT, "all of one have ended")
        assert take(group, 3) == [1, 1, 1]
        assert collections.Counter(take(group, 4)) == {0: 2, 1: 2}
        group.group.set_balance(Balance.ROUND_ROBIN)
        assert collections.Counter(take(group, 4)) == {0: 2, 1: 2}


@pytest.mark.parametrize("leaves", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("how", ["closed by the client", "closed listener"])
def test_one_that_leaves_takes_only_its_own(certificate: Certificate, leaves: int, how: str) -> None:
    """Whichever it is: one of them is the one whose socket is watched."""
    with grouped(certificate, STREAMS, STREAMS, STREAMS) as group:
        before = [group.visited() for _ in range(3)]
        leaver = group.members[leaves]
        if how == "closed listener":
            assert leaver.listener is not None
            leaver.listener.close()
        else:
            leaver.client.close()
            expect_closed(group.server, leaver.server)
        after = take(group, 8)
        others = {0, 1, 2} - {leaves}
        assert collections.Counter(after) == dict.fromkeys(others, 4)
        for number, visitor, _ in before:
            if number != leaves or how == "closed listener":
                visitor.sendall(b"still here")
            else:
                expect_reset(visitor)


def test_the_last_one_leaves_and_another_comes(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS) as group:
        for member in group.members:
            assert member.listener is not None
            member.listener.close()
        waiting = group.visit()  # in the backlog
        member = group.members[1]
        member.listener = member.server.accept(group.tcp)
        assert group.number_of(group.client.expect(StreamOpened).connection) == 1
        waiting.sendall(b"x")


def test_stream_credit_decides_between_clients(certificate: Certificate) -> None:
    """A client that grants none gets visitors only if no other can take them."""
    with grouped(certificate, NO_STREAMS, Transport(max_streams_bidi=3)) as group:
        assert take(group, 3) == [1, 1, 1]
        assert 1 <= group.server.counter("balance_passed_over") <= 3
        for _ in range(4):
            group.visit()
        wait_until(lambda: group.server.counter("tcp_accepted") == 7, EVENT_TIMEOUT, "they wait for credit of either")
        assert [each.server.info().streams for each in group.members] == [2, 5]


def wait_for_counter(side: Side, name: str, value: int) -> None:
    wait_until(lambda: side.counter(name) == value, EVENT_TIMEOUT, f"{name} is {value}")


def test_refusals_are_reported_once_a_second_for_all_members_together(certificate: Certificate) -> None:
    """Else a port would have as many lines in the access log as it has clients."""
    with grouped(certificate, *[STREAMS] * 4) as group:
        for member in group.members:
            member.server.limit(VisitorLimits(max_connections=1))
        begin = time.monotonic()
        for refused in range(1, 5):
            _, visitor, opened = group.visited()  # another member each time, and the next one refuses
            group.visit_in_vain()
            assert group.server.counter("tcp_drop_max_connections") == refused
            opened.stream.refuse()
            expect_reset(visitor)
            wait_until(
                lambda: sum(each.server.info().streams for each in group.members) == 0, EVENT_TIMEOUT, "there is room"
            )
        events = [event for event in group.server.seen() if isinstance(event, VisitorsRefused)]
        assert 1 <= len(events) <= 1 + int(time.monotonic() - begin)
        assert events[0].count == 1


def test_refused_datagrams_are_reported_once_a_second_for_all_members_together(certificate: Certificate) -> None:
    with grouped(certificate, *[STREAMS] * 4, udp=True) as group, socket.socket(type=socket.SOCK_DGRAM) as denied:
        denied.bind(("127.0.0.2", 0))
        only = packed_ranges([(bytes((127, 0, 0, 1)), bytes((127, 0, 0, 1)))])
        for member in group.members:
            member.server.limit(VisitorLimits(only))
        begin = time.monotonic()
        for refused in range(1, 5):
            group.asked(group.source())  # another member each time, and the next one refuses
            denied.sendto(b"x", group.udp.getsockname())
            wait_for_counter(group.server, "udp_drop_not_permitted", refused)
        events = [event for event in group.server.seen() if isinstance(event, VisitorsRefused)]
        assert 1 <= len(events) <= 1 + int(time.monotonic() - begin)
        assert events[0].count == 1


def test_limits_apply_to_all_members_together(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS) as group:
        for member in group.members:
            member.server.limit(VisitorLimits(max_connections=3))
        first = [group.visited() for _ in range(3)]
        assert sorted(collections.Counter(number for number, _, _ in first).values()) == [1, 2]
        group.visit_in_vain()
        assert group.server.expect(VisitorsRefused).count == 1
        first[0][2].stream.refuse()
        expect_reset(first[0][1])
        wait_until(
            lambda: sum(each.server.info().streams for each in group.members) == 2, EVENT_TIMEOUT, "there is room"
        )
        assert take(group, 1) == [1 - first[-1][0]]

        for member in group.members:
            member.server.limit(VisitorLimits(max_new=2))
        take(group, 2)
        group.visit_in_vain()
        assert group.server.counter("tcp_drop_rate") == 1

        nobody = packed_ranges([(bytes((192, 0, 2, 0)), bytes((192, 0, 2, 255)))])
        for member in group.members:
            member.server.limit(VisitorLimits(nobody))
        group.visit_in_vain()
        assert group.server.counter("tcp_drop_not_permitted") == 1 + 5  # those that were open are reset


def test_a_connection_joins_one_group(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS) as group:
        other = group.server.engine.new_group(Balance.LEAST_CONNECTIONS)
        with pytest.raises(EngineError):
            group.members[0].server.join(other)
        other.close()
        group.group.close()
        with pytest.raises(HandleGoneError):
            group.group.set_balance(Balance.ROUND_ROBIN)
        assert take(group, 2) == [0, 0]  # it keeps the group


def test_udp_sources_stick_and_move_when_their_client_leaves(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS, STREAMS, udp=True) as group:
        sources = [group.source() for _ in range(9)]
        owners = []
        for index, source in enumerate(sources):
            number, event = group.asked(source)
            udp = group.members[number].udp
            assert udp is not None
            assert event.udp == udp
            udp.add_association(index + 1, source.getsockname(), local=event.local)
            owners.append(number)
        assert collections.Counter(owners) == {0: 3, 1: 3, 2: 3}
        # A source that has an association asks no more, and what it sends goes where that is.
        for _ in range(4):
            for source in sources:
                source.sendto(b"again", group.udp.getsockname())
        wait_until(lambda: group.server.counter("packets_sent") == 45, EVENT_TIMEOUT, "all are passed on")
        assert [each.server.info().associations for each in group.members] == [3, 3, 3]
        assert not any(isinstance(event, SourceUnknown) for event in group.server.seen())

        leaver = owners[0]  # the client of the first source
        group.members[leaver].client.close()
        expect_closed(group.server, group.members[leaver].server)
        moved = [group.asked(source)[0] for source, owner in zip(sources, owners, strict=True) if owner == leaver]
        assert leaver not in moved
        assert sorted(collections.Counter(moved).values()) == [1, 2]
        udp = group.members[leaver].udp
        assert udp is not None
        with contextlib.suppress(HandleGoneError):
            udp.close()
        stayed = [source for source, owner in zip(sources, owners, strict=True) if owner != leaver]
        for source in stayed:
            source.sendto(b"still", group.udp.getsockname())
        wait_until(lambda: group.server.counter("packets_sent") == 51, EVENT_TIMEOUT, "others are not affected")


@pytest.mark.parametrize("closed", [0, 1], ids=["read", "not read"])
def test_a_closed_udp_socket_of_a_group(certificate: Certificate, closed: int) -> None:
    """One of them is the one that is read."""
    with grouped(certificate, STREAMS, STREAMS, udp=True) as group:
        udp = group.members[closed].udp
        assert udp is not None
        udp.close()
        assert [group.asked(group.source())[0] for _ in range(4)] == [1 - closed] * 4


def test_a_source_that_was_refused_is_given_to_the_next(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS, udp=True) as group:
        source = group.source()
        number, event = group.asked(source)
        udp = group.members[number].udp
        assert udp is not None
        source.sendto(b"more of the same", group.udp.getsockname())  # waits there too: not asked again
        wait_until(lambda: group.server.counter("udp_received") == 2, EVENT_TIMEOUT, "it has come")
        udp.refuse(source.getsockname(), event.local)
        wait_until(lambda: group.server.counter("udp_drop_no_association") == 2, EVENT_TIMEOUT, "both are dropped")
        assert group.asked(source)[0] == 1 - number
        # The first one is too late: the source leads to the other one.
        with pytest.raises(EngineError):
            udp.add_association(1, source.getsockname(), local=event.local)


def test_least_connections_counts_sources(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, STREAMS, balance=Balance.LEAST_CONNECTIONS, udp=True) as group:
        sources = [group.source() for _ in range(4)]
        owners = []
        for index, source in enumerate(sources):
            number, event = group.asked(source)
            udp = group.members[number].udp
            assert udp is not None
            udp.add_association(index + 1, source.getsockname(), local=event.local)
            owners.append(number)
        assert collections.Counter(owners) == {0: 2, 1: 2}
        for index, owner in enumerate(owners):
            if owner == 0:
                group.members[0].server.remove_association(index + 1)
        assert [group.asked(group.source())[0] for _ in range(2)] == [0, 0]


def test_the_pump_does_not_read_sockets_of_a_group(certificate: Certificate) -> None:
    with grouped(certificate, STREAMS, udp=True) as group:
        udp = group.members[0].udp
        assert udp is not None
        with pytest.raises(EngineError):
            udp.receive()
        udp.give_back()  # changes nothing
        assert group.asked(group.source())[0] == 0
