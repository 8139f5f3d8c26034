"""Streams and UDP associations through two engines: bytes, order, half-close, carriers, drops that are counted."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from asport_sync.engine import (
    STREAM_REFUSED,
    AssociationWanted,
    Carrier,
    CloseCause,
    CommandReceived,
    Probed,
    SourceUnknown,
    StreamEnd,
    StreamEnded,
    StreamOpened,
    StreamResult,
    Transport,
    UdpRefused,
    UdpSocket,
    Violation,
)
from asport_sync.errors import EngineError, HandleGoneError
from asport_sync.wire import ClientHello, Dissociate, Heartbeat, ServerHello, ServerHelloCode, encode
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    EVENT_TIMEOUT,
    HEADER,
    SERVER_TRANSPORT,
    Pair,
    Relay,
    Side,
    connected,
    echo,
    expect_closed,
    expect_reset,
    open_stream,
    running_relays,
    tcp_pair,
)
from tests.support.certificates import Certificate
from tests.support.services import LARGEST_DATAGRAM, Address
from tests.support.traffic import fill, receive_to_end, send_and_end
from tests.support.waiting import wait_until

CARRIERS = pytest.mark.parametrize("carrier", list(Carrier), ids=lambda carrier: carrier.name.lower())
# What connections send at most in one datagram, on an interface that takes more (conn_setup.c).
LARGEST_PAYLOAD = 32736
# An address that is nobody's (RFC 5737).
OTHER_PEER = ("203.0.113.99", 9999)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_arrives_whole_on_a_stream(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.server_connection.send(encode(ServerHello(ServerHelloCode.SUCCESS, 2024)))
        pair.server_connection.send(encode(Dissociate(7)))
        received = {pair.client.expect(CommandReceived).data for _ in range(2)}
        assert received == {b"\x00\x01\x00\x07\xe8", b"\x00\x04\x00\x07"}


def test_heartbeats_keep_a_connection_alive_and_stay_in_the_engine(certificate: Certificate) -> None:
    """A server that is told the same thing every few seconds by every client needn't wake Python for it."""
    short = Transport(max_streams_bidi=0, idle_timeout=1.0)
    with connected(certificate, server_transport=short) as pair:
        pair.client_connection.heartbeat(encode(Heartbeat()), 0.1)
        wait_until(
            lambda: pair.client_connection.info().packets_sent > 40, EVENT_TIMEOUT, "the client sends many heartbeats"
        )
        assert pair.server.seen() == []
        pair.client_connection.heartbeat(b"", 0)
        assert expect_closed(pair.server, pair.server_connection).cause is CloseCause.IDLE


def test_what_is_repeated_arrives_as_a_datagram(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.heartbeat(encode(Dissociate(5)), 0.02)
        for _ in range(3):
            event = pair.server.expect(CommandReceived)
            assert (event.data, event.carrier) == (encode(Dissociate(5)), Carrier.DATAGRAM)


@pytest.mark.parametrize("data", [b"\x01\x05", b"\x00\x06", b"\x00\x00\x01"])
def test_what_is_no_command_is_a_violation(certificate: Certificate, data: bytes) -> None:
    """A wrong version, an unknown type and a command cut short."""
    with connected(certificate) as pair:
        pair.client_connection.send(data)
        assert pair.server.expect(Violation).problem
        # The connection stands: what to do about it is decided above the engine.
        pair.client_connection.send(encode(Dissociate(1)))
        assert pair.server.expect(CommandReceived).data == encode(Dissociate(1))


def test_bytes_behind_a_command_are_counted_and_ignored(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.send(encode(Dissociate(1)) + b"more")
        assert pair.server.expect(CommandReceived).data == encode(Dissociate(1))
        expect_count(pair.server, "command_bytes_ignored", 4)


def test_one_byte_behind_a_client_hello_comes_with_it(certificate: Certificate) -> None:
    hello = encode(ClientHello(uuid.UUID(int=1), bytes(32), 1, 1, 65535))
    with connected(certificate) as pair:
        for behind, ignored in ((b"", 0), (b"\x02", 0), (b"\x02more", 4)):
            pair.client_connection.send(hello + behind)
            assert pair.server.expect(CommandReceived).data == hello + behind[:1]
            expect_count(pair.server, "command_bytes_ignored", ignored)


def test_many_commands_before_and_after_admission(certificate: Certificate) -> None:
    """Streams that have ended give their credit back, also to a peer that is not admitted."""
    with connected(certificate, joined=False) as pair:
        for number in range(100):
            pair.client_connection.send(encode(Dissociate(number)))
        expect_count(pair.server, "commands_received", 100)
        # Of a stranger's only the first few are heard.
        seen = {pair.server.expect(CommandReceived).data for _ in range(4)}
        assert seen < {encode(Dissociate(number)) for number in range(100)}
        expect_count(pair.server, "events_dropped", 96)
        pair.set_joined(Carrier.DATAGRAM)
        for number in range(2000):
            pair.client_connection.send(encode(Dissociate(number)))
        seen = {pair.server.expect(CommandReceived).data for _ in range(2000)}
        assert len(seen) == 2000


def test_close_with_linger_delivers_what_was_sent(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.server_connection.send(encode(ServerHello(ServerHelloCode.PORT_DENIED)))
        pair.server_connection.close(linger=5.0)
        assert pair.client.expect(CommandReceived).data == b"\x00\x01\x03"


def test_close_with_linger_gives_the_peer_a_moment_also_for_what_is_acknowledged(certificate: Certificate) -> None:
    """The peer's QUIC acknowledges before its program reads; a close that overtakes the program hides the reason."""
    for _ in range(10):
        with connected(certificate) as pair:
            pair.server_connection.send(encode(ServerHello(ServerHelloCode.PORT_DENIED)))
            pair.client.expect(CommandReceived)
            time.sleep(0.2)  # the acknowledgement has come
            pair.server_connection.close(linger=EVENT_TIMEOUT)
            try:
                pair.server_connection.info()
            except HandleGoneError:
                continue  # or this thread had to wait for longer than that moment
            assert expect_closed(pair.client, pair.client_connection).cause is CloseCause.PEER_APPLICATION
            return
    pytest.fail("the connection was closed at once")


def test_probe_finds_a_living_peer(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.probe(5.0)
        assert pair.client.expect(Probed).alive


def test_info_is_plausible(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        echo(pair, 1_000_000)
        info = pair.client_connection.info()
        assert 0 < info.min_rtt < 1
        assert 1200 <= info.path_payload <= LARGEST_PAYLOAD
        assert 0 < info.datagram_limit < info.path_payload
        assert info.bytes_received > 1_000_000
        assert info.bytes_sent > 1_000_000
        assert info.silence < EVENT_TIMEOUT


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_engine", [False, True], ids=["two engines", "one engine"])
@pytest.mark.parametrize("size", [1, 1000, 100_000, 5_000_000])
def test_echo(certificate: Certificate, one_engine: bool, size: int) -> None:
    with connected(certificate, one_engine=one_engine) as pair:
        echo(pair, size)


@dataclasses.dataclass
class OpenStream:
    """A stream whose ends are TCP connections of the test."""

    visitor: socket.socket
    service: socket.socket
    relays: list[Relay]

    def results(self) -> list[StreamResult]:
        """How the server's and the client's relay ended."""
        results = [relay.finish() for relay in self.relays]
        assert all(isinstance(result, StreamResult) for result in results), results
        return [result for result in results if isinstance(result, StreamResult)]


@contextlib.contextmanager
def relayed_stream(pair: Pair) -> Iterator[OpenStream]:
    with running_relays(pair) as (relays, visitor, service):
        yield OpenStream(visitor, service, relays)


@pytest.mark.parametrize("first", ["public", "service"])
def test_half_close_keeps_the_other_direction(certificate: Certificate, first: str) -> None:
    """The side that ends last sends all it has, long after the other direction ended."""
    answer = os.urandom(3_000_000)
    with connected(certificate) as pair, relayed_stream(pair) as stream:
        early, late = (stream.visitor, stream.service) if first == "public" else (stream.service, stream.visitor)
        early.sendall(b"the question")
        early.shutdown(socket.SHUT_WR)
        assert receive_to_end(late) == b"the question"
        sender = threading.Thread(target=send_and_end, args=(late, answer))
        sender.start()
        assert receive_to_end(early) == answer
        sender.join()
        assert [result.end for result in stream.results()] == [StreamEnd.FINISHED, StreamEnd.FINISHED]


@pytest.mark.parametrize("side", ["public", "service"])
def test_reset_passes_through(certificate: Certificate, side: str) -> None:
    with connected(certificate) as pair, relayed_stream(pair) as stream:
        one, other = (stream.visitor, stream.service) if side == "public" else (stream.service, stream.visitor)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()  # sends RST
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        ends = [result.end for result in stream.results()]
        expected = [StreamEnd.SOCKET_ERROR, StreamEnd.PEER_RESET]
        assert ends == (expected if side == "public" else expected[::-1])


def test_a_refused_stream_is_reset(certificate: Certificate) -> None:
    """As if the local service could not be reached: a clean end would look like an empty answer."""
    with connected(certificate) as pair:
        stream = pair.server_connection.open_stream(HEADER)
        public, visitor = tcp_pair()
        with public, visitor:
            relay = Relay(stream, public)
            relay.start()
            pair.client.expect(StreamOpened).stream.refuse()
            expect_reset(visitor)
            assert relay.finish() == StreamResult(0, 0, StreamEnd.PEER_RESET, error=STREAM_REFUSED)


def test_attached_streams_end_with_an_event(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        stream, opened = open_stream(pair)
        public, visitor = tcp_pair()
        local, service = tcp_pair()
        with visitor, service:
            for side in (pair.server, pair.client):
                side.engine.report_streams(100)
            stream.attach(public)
            opened.attach(local)
            assert public.fileno() == local.fileno() == -1
            data = os.urandom(2_000_000)
            sender = threading.Thread(target=send_and_end, args=(visitor, data))
            sender.start()
            assert receive_to_end(service) == data
            sender.join()
            service.sendall(b"thanks")
            service.shutdown(socket.SHUT_WR)
            assert receive_to_end(visitor) == b"thanks"
            ended = pair.server.expect(StreamEnded)
            assert (ended.stream, ended.connection) == (stream, pair.server_connection)
            assert ended.result == StreamResult(len(data), 6, StreamEnd.FINISHED)
            # Nobody has said whose connection it is: the test has written the Connect.
            assert ended.peer is None
            assert 0 < ended.lasted < EVENT_TIMEOUT
            ended = pair.client.expect(StreamEnded)
            assert ended.result == StreamResult(6, len(data), StreamEnd.FINISHED)
            assert ended.peer == ("203.0.113.7", 54321)


def test_ends_of_attached_streams_are_counted_and_not_reported_unless_asked_for(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        for ending in (StreamEnd.FINISHED, StreamEnd.SOCKET_ERROR):
            stream, opened = open_stream(pair)
            public, visitor = tcp_pair()
            local, service = tcp_pair()
            with visitor, service:
                stream.attach(public)
                opened.attach(local)
                visitor.sendall(b"question")
                if ending is StreamEnd.FINISHED:
                    visitor.shutdown(socket.SHUT_WR)
                    assert receive_to_end(service) == b"question"
                    service.shutdown(socket.SHUT_WR)
                    assert receive_to_end(visitor) == b""
                else:
                    assert service.recv(100) == b"question"
                    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    visitor.close()
                    with pytest.raises(ConnectionResetError):
                        service.recv(1)
        for side, broken in ((pair.server, "relays_socket_error"), (pair.client, "relays_peer_reset")):
            expect_count(side, "streams_attached", 2)
            assert (side.counter("relays_finished"), side.counter(broken)) == (1, 1)
            assert side.seen() == []


def test_ends_beyond_so_many_a_second_are_left_out_and_told_later(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.server.engine.report_streams(1)

        def begin_and_end() -> None:
            stream, opened = open_stream(pair)
            opened.refuse()
            public, visitor = tcp_pair()
            with visitor:
                visitor.shutdown(socket.SHUT_WR)
                stream.attach(public)
                expect_reset(visitor)

        for _ in range(8):
            begin_and_end()
        expect_count(pair.server, "streams_attached", 8)
        time.sleep(1.1)  # a second that has had no end
        begin_and_end()
        told: list[StreamEnded] = []
        while sum(1 + event.left_out for event in told) < 9:
            told.append(pair.server.expect(StreamEnded))
        left_out = sum(event.left_out for event in told)
        assert left_out > 0
        assert len(told) + left_out == 9
        assert pair.server.counter("events_dropped") == left_out
        assert pair.server.seen() == []


def test_more_streams_than_the_peer_grants_wait_for_credit(certificate: Certificate) -> None:
    """The client grants 64: the 100 that are opened at once all get their turn."""
    with connected(certificate) as pair:
        streams = [pair.server_connection.open_stream(HEADER) for _ in range(100)]
        for count in range(100):
            pair.client.expect(StreamOpened).stream.refuse()
            with contextlib.suppress(HandleGoneError):  # where the refusal came first
                streams[count].reset()
        wait_until(lambda: pair.server_connection.info().streams == 0, EVENT_TIMEOUT, "no stream is left")


# --- UDP --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class OpenAssociation:
    """One association: the user's socket, and the service's with the address that reaches it."""

    pair: Pair
    visitor: socket.socket
    service: socket.socket
    public: UdpSocket
    local: UdpSocket
    public_socket: socket.socket
    local_socket: socket.socket

    def to_service(self, payload: bytes) -> None:
        """Sends one datagram into the tunnel."""
        self.visitor.send(payload)

    def to_visitor(self, payload: bytes) -> None:
        """Sends one datagram back."""
        self.service.sendto(payload, self.local_socket.getsockname())


ASSOCIATION = 7


def receive_until(service: socket.socket, last: bytes) -> None:
    """Takes datagrams until this one comes."""
    while service.recv(100) != last:
        pass


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(EVENT_TIMEOUT)
    sock.bind(("127.0.0.1", 0))
    return sock


@contextlib.contextmanager
def open_association(
    pair: Pair, *, peer: Address | None = None, prefix: bytes = b"", association: int = ASSOCIATION
) -> Iterator[OpenAssociation]:
    """One association, through which the datagram "first" has passed.

    Args:
        pair: Connected and admitted.
        peer: What the client's side writes as the address of its Packets, if not what it was told.
        prefix: Goes in front of each datagram to the service.
        association: Its ID.
    """
    with udp_socket() as public_socket, udp_socket() as visitor, udp_socket() as local_socket, udp_socket() as service:
        visitor.connect(public_socket.getsockname())
        local_socket.connect(service.getsockname())
        public = pair.server_connection.open_udp(public_socket, public=True)
        local = pair.client_connection.open_udp(local_socket, public=False)
        visitor.send(b"first")
        expect_source(pair, public, visitor)
        public.add_association(association, visitor.getsockname())
        wanted = pair.client.expect(AssociationWanted)
        assert (wanted.association, wanted.peer) == (association, visitor.getsockname())
        local.add_association(association, peer or wanted.peer, prefix)
        assert service.recv(100) == prefix + b"first"
        yield OpenAssociation(pair, visitor, service, public, local, public_socket, local_socket)
        with contextlib.suppress(EngineError):  # where the test has ended the connection
            public.close()
            local.close()


def expect_source(pair: Pair, public: UdpSocket, visitor: socket.socket) -> None:
    """Waits until the server's engine asks about a source."""
    asked = pair.server.expect(SourceUnknown)
    assert (asked.connection, asked.udp, asked.source) == (pair.server_connection, public, visitor.getsockname())


@CARRIERS
def test_datagrams_of_all_sizes_in_order(certificate: Certificate, carrier: Carrier) -> None:
    sizes = [0, 1, 2, 1100, 1150, 1200, 1400, 1450, 1500, 3000, 9000, 30_000, LARGEST_DATAGRAM]
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with open_association(pair) as assoc:
            for size in sizes:
                payload = os.urandom(size)
                assoc.to_service(payload)
                assert assoc.service.recv(LARGEST_DATAGRAM) == payload, size
                assoc.to_visitor(payload[::-1])
                assert assoc.visitor.recv(LARGEST_DATAGRAM) == payload[::-1], size


@CARRIERS
def test_fragment_boundaries(certificate: Certificate, carrier: Carrier) -> None:
    """Sizes around one, two and three fragments, where a remainder divides evenly once."""
    # Small packets: what loopback takes in one would leave no room for three.
    with connected(
        certificate,
        server_transport=dataclasses.replace(SERVER_TRANSPORT, max_udp_payload=1452),
        client_transport=dataclasses.replace(CLIENT_TRANSPORT, max_udp_payload=1452),
    ) as pair:
        pair.set_joined(carrier)
        with open_association(pair) as assoc:
            limit = pair.server_connection.info().datagram_limit
            first, rest = limit - 17, limit - 11  # header of 10 bytes with an IPv4 address of 7, or with None
            for whole in (first, first + rest, first + 2 * rest):
                for size in range(whole - 2, whole + 3):
                    payload = random.Random(size).randbytes(size)
                    assoc.to_service(payload)
                    assert assoc.service.recv(LARGEST_DATAGRAM) == payload, size


@CARRIERS
def test_datagrams_stay_in_order(certificate: Certificate, carrier: Carrier) -> None:
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with open_association(pair) as assoc:
            for number in range(50):
                assoc.visitor.send(number.to_bytes(2, "big") + bytes(random.Random(number).randrange(4000)))
            assert [int.from_bytes(assoc.service.recv(5000)[:2], "big") for _ in range(50)] == list(range(50))


def test_a_prefix_goes_in_front_of_each_datagram(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair, prefix=b"prefix ") as assoc:
            for payload in (b"", b"x", bytes(3000)):
                assoc.to_service(payload)
                assert assoc.service.recv(LARGEST_DATAGRAM) == b"prefix " + payload
                assoc.to_visitor(payload)
                assert assoc.visitor.recv(LARGEST_DATAGRAM) == payload


def test_who_is_refused_for_now_is_not_asked_about(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc, udp_socket() as late:
            pair.server_connection.refuse_associations(late.getsockname(), 3600.0)
            late.sendto(b"from the same address", assoc.public_socket.getsockname())
            expect_count(pair.server, "udp_drop_no_association", 1)
            assoc.to_service(b"still there")
            assert assoc.service.recv(100) == b"still there"
            assert pair.server.seen() == []
            # The last word counts.
            pair.server_connection.refuse_associations(late.getsockname(), 0.0)
            late.sendto(b"once more", assoc.public_socket.getsockname())
            expect_source(pair, assoc.public, late)
            # The same at the other end, for everybody.
            pair.client_connection.refuse_associations(None, 3600.0)
            assoc.public.add_association(ASSOCIATION + 1, late.getsockname())
            expect_count(pair.client, "packet_drop_association_refused", 1)
            assert pair.client.seen() == []
            pair.client_connection.refuse_associations(None, 0.0)
            late.sendto(b"and once more", assoc.public_socket.getsockname())
            assert pair.client.expect(AssociationWanted).peer == late.getsockname()


def test_who_is_asked_about_already_is_not_turned_away(certificate: Certificate) -> None:
    """Refusals are for new associations: what waits for a word gets it, and its packets in order."""
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with (
            udp_socket() as public_socket,
            udp_socket() as visitor,
            udp_socket() as local_socket,
            udp_socket() as service,
        ):
            visitor.connect(public_socket.getsockname())
            local_socket.connect(service.getsockname())
            public = pair.server_connection.open_udp(public_socket, public=True)
            local = pair.client_connection.open_udp(local_socket, public=False)
            visitor.send(b"1")
            expect_source(pair, public, visitor)
            pair.server_connection.refuse_associations(None, 3600.0)
            visitor.send(b"2")
            expect_count(pair.server, "udp_received", 2)
            public.add_association(ASSOCIATION, visitor.getsockname())
            wanted = pair.client.expect(AssociationWanted)
            pair.client_connection.refuse_associations(None, 3600.0)
            visitor.send(b"3")
            expect_count(pair.server, "packets_sent", 3)
            pair.server_connection.send(encode(Dissociate(ASSOCIATION + 1)))
            pair.client.expect(CommandReceived)  # and so the Packet before it has come too
            local.add_association(ASSOCIATION, wanted.peer)
            assert [service.recv(100) for _ in range(3)] == [b"1", b"2", b"3"]
            assert pair.server.counter("udp_drop_no_association") == 0
            assert pair.client.counter("packet_drop_association_refused") == 0
            public.close()
            local.close()


@CARRIERS
def test_an_answer_to_another_address_is_dropped(certificate: Certificate, carrier: Carrier) -> None:
    """A client may answer the source of an association, and nobody else."""
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with open_association(pair, peer=OTHER_PEER) as assoc:
            assoc.to_visitor(b"not for the user")
            expect_count(pair.server, "packet_drop_wrong_address", 1)
            assoc.to_service(b"still there")
            assert assoc.service.recv(100) == b"still there"
            assoc.visitor.setblocking(False)
            with pytest.raises(BlockingIOError):
                assoc.visitor.recv(100)


def test_packets_are_dropped_where_udp_was_not_asked_for(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.server_connection.set_joined(Carrier.DATAGRAM)
        pair.client_connection.set_joined(None)
        with udp_socket() as public_socket, udp_socket() as visitor:
            visitor.connect(public_socket.getsockname())
            public = pair.server_connection.open_udp(public_socket, public=True)
            visitor.send(b"not wanted")
            expect_source(pair, public, visitor)
            public.add_association(1, visitor.getsockname())
            expect_count(pair.client, "packet_drop_not_joined", 1)
            assert pair.client.seen() == []


def test_an_association_is_known_once(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            for association, peer in ((ASSOCIATION, OTHER_PEER), (ASSOCIATION + 1, assoc.visitor.getsockname())):
                with pytest.raises(EngineError):
                    assoc.public.add_association(association, peer)


def test_idle_associations_are_found_and_forgotten(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            assert pair.server_connection.idle_associations(3600) == []
            wait_until(
                lambda: pair.server_connection.idle_associations(0.05) == [ASSOCIATION],
                EVENT_TIMEOUT,
                "the association is idle",
            )
            assoc.to_service(b"busy again")
            assert assoc.service.recv(100) == b"busy again"
            assert pair.server_connection.idle_associations(3600) == []
            pair.server_connection.remove_association(ASSOCIATION)
            assert pair.server_connection.idle_associations(0) == []
            assert pair.server_connection.info().associations == 0
            assoc.visitor.send(b"from an unknown source")
            expect_source(pair, assoc.public, assoc.visitor)


@CARRIERS
def test_what_waited_for_an_association_comes_before_what_did_not(certificate: Certificate, carrier: Carrier) -> None:
    """Packets go on arriving while the association is added, in the same turn of the engine too."""
    most = 150
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with udp_socket() as public_socket, udp_socket() as service:
            public = pair.server_connection.open_udp(public_socket, public=True)
            for association in range(40):
                with udp_socket() as visitor, udp_socket() as local_socket:
                    visitor.connect(public_socket.getsockname())
                    local_socket.connect(service.getsockname())
                    local = pair.client_connection.open_udp(local_socket, public=False)
                    visitor.send(b"0")
                    expect_source(pair, public, visitor)
                    public.add_association(association, visitor.getsockname())
                    for number in range(1, most):
                        visitor.send(b"%d" % number)
                    wanted = pair.client.expect(AssociationWanted)
                    local.add_association(association, wanted.peer)
                    assert [int(service.recv(100)) for _ in range(most)] == list(range(most))
                    pair.server_connection.remove_association(association)
                    local.close()
            public.close()


def test_a_refused_association_drops_its_packets(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with udp_socket() as public_socket, udp_socket() as visitor:
            visitor.connect(public_socket.getsockname())
            public = pair.server_connection.open_udp(public_socket, public=True)
            visitor.send(b"refused")
            expect_source(pair, public, visitor)
            public.add_association(9, visitor.getsockname())
            wanted = pair.client.expect(AssociationWanted)
            wanted.connection.remove_association(wanted.association)
            expect_count(pair.client, "packet_drop_association_refused", 1)
            # The next packet asks again.
            visitor.send(b"again")
            assert pair.client.expect(AssociationWanted).association == 9
            public.close()


def test_datagrams_wait_for_the_word_on_their_source(certificate: Certificate) -> None:
    """The engine asks once; what comes meanwhile waits, and follows in order."""
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with udp_socket() as public_socket, udp_socket() as visitor, udp_socket() as other:
            for sock in (visitor, other):
                sock.connect(public_socket.getsockname())
            public = pair.server_connection.open_udp(public_socket, public=True)
            for number in range(20):
                visitor.send(b"%d" % number)
            expect_source(pair, public, visitor)
            other.send(b"also new")
            expect_source(pair, public, other)
            visitor.send(b"20")
            expect_count(pair.server, "udp_received", 22)
            assert pair.server.seen() == []
            public.add_association(3, visitor.getsockname())
            wanted = pair.client.expect(AssociationWanted)
            with udp_socket() as local_socket, udp_socket() as service:
                local_socket.connect(service.getsockname())
                local = pair.client_connection.open_udp(local_socket, public=False)
                local.add_association(3, wanted.peer)
                visitor.send(b"21")
                assert [service.recv(100) for _ in range(22)] == [b"%d" % number for number in range(22)]
                local.close()
            public.close()
            assert pair.server.counter("udp_drop_no_association") == 1


def test_a_refused_source_is_asked_about_again(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with udp_socket() as public_socket, udp_socket() as visitor:
            visitor.connect(public_socket.getsockname())
            public = pair.server_connection.open_udp(public_socket, public=True)
            public.refuse(visitor.getsockname())  # nothing waits: nothing happens
            for number in range(3):
                visitor.send(b"one")
                expect_source(pair, public, visitor)
                visitor.send(b"two")
                expect_count(pair.server, "udp_received", 2 * number + 2)
                public.refuse(visitor.getsockname())
                assert pair.server.counter("udp_drop_no_association") == 2 * number + 2
            assert pair.server.seen() == pair.client.seen() == []
            public.close()
            with pytest.raises(HandleGoneError):
                public.refuse(visitor.getsockname())


def test_a_source_is_told_apart_by_the_address_that_it_wrote_to(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as public_socket,
            udp_socket() as bound,
            udp_socket() as visitor,
        ):
            public_socket.bind(("0.0.0.0", 0))
            port = public_socket.getsockname()[1]
            public = pair.server_connection.open_udp(public_socket, public=True)
            source = visitor.getsockname()
            for number in (2, 3):
                visitor.sendto(b"x", (f"127.0.0.{number}", port))
                asked = pair.server.expect(SourceUnknown)
                assert (asked.source, asked.local) == (source, (f"127.0.0.{number}", 0))
            # Each has its own answer: one is refused, and the other goes on.
            public.refuse(source, ("127.0.0.3", 0))
            assert pair.server.counter("udp_drop_no_association") == 1
            public.add_association(1, source, local=("127.0.0.2", 0))
            assert pair.client.expect(AssociationWanted).association == 1
            with pytest.raises(EngineError):
                public.add_association(2, source, local=("127.0.0.2", 0))
            public.close()
            # A socket with one address has no choice.
            public = pair.server_connection.open_udp(bound, public=True)
            visitor.sendto(b"x", bound.getsockname())
            assert pair.server.expect(SourceUnknown).local is None
            with pytest.raises(EngineError):
                public.add_association(3, source, local=("127.0.0.1", 0))
            public.add_association(3, source)
            assert pair.client.expect(AssociationWanted).association == 3
            public.close()


def expect_count(side: Side, name: str, value: int) -> None:
    """Waits until a counter has a value."""
    wait_until(
        lambda: side.counter(name) == value,
        EVENT_TIMEOUT,
        f"{name} of {side.name} is {value}",
        detail=lambda: f"events: {side.seen()}, counters: {side.engine.counters()}",
    )


def test_stop_reaches_a_relay_that_outlived_its_connection(certificate: Certificate) -> None:
    """What came before the end still waits for a service that does not read; the engine's stop ends that wait."""
    with connected(certificate) as pair:
        stream, opened = open_stream(pair)
        public, visitor = tcp_pair()
        local, service = tcp_pair()
        with visitor, service:
            relays = [Relay(stream, public), Relay(opened, local)]
            for relay in relays:
                relay.start()
            fill(visitor)
            pair.server_connection.close()
            expect_closed(pair.client, pair.client_connection)
            relays[0].finish()
            assert relays[1].is_alive()
            pair.client.close()
            result = relays[1].finish()
            assert isinstance(result, StreamResult)
            assert result.end is StreamEnd.STOPPED


@CARRIERS
def test_an_association_goes_on_with_another_socket(certificate: Certificate, carrier: Carrier) -> None:
    """The service refuses: what it did not take is sent to where it is now, and answers come from there."""
    with connected(certificate) as pair:
        pair.set_joined(carrier)
        with open_association(pair, prefix=b"old ") as assoc, udp_socket() as elsewhere, udp_socket() as sock:
            assoc.service.close()
            assoc.to_service(b"lost")
            told = pair.client.expect(UdpRefused)
            assert (told.connection, told.udp) == (pair.client_connection, assoc.local)
            assert (told.error, told.answered) == (errno.ECONNREFUSED, False)
            sock.connect(elsewhere.getsockname())
            assoc.local.move(sock, b"new ")
            receive_until(elsewhere, b"new lost")
            assoc.to_service(b"more")
            assert elsewhere.recv(100) == b"new more"
            elsewhere.sendto(b"answer", sock.getsockname())
            assert assoc.visitor.recv(100) == b"answer"
            assert pair.client.counter("udp_service_refused") == 1
            elsewhere.close()
            assoc.to_service(b"to nobody")
            told = pair.client.expect(UdpRefused)
            assert (told.error, told.answered) == (errno.ECONNREFUSED, True)


def test_refusals_are_told_of_once_a_second(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            assoc.service.close()
            began = time.monotonic()
            for number in range(1, 6):
                assoc.to_service(b"x")
                wait_until(
                    lambda number=number: pair.client.counter("udp_service_refused") == number,  # type: ignore[misc]
                    EVENT_TIMEOUT,
                    "it is refused",
                )
            told = [event for event in pair.client.seen() if isinstance(event, UdpRefused)]
            # One, unless this machine is slow.
            assert 1 <= len(told) <= time.monotonic() - began + 1


def test_a_socket_that_cannot_take_its_place(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            with pytest.raises(EngineError):
                assoc.public.move(assoc.local_socket)  # a public socket has no association of its own
            with pytest.raises(EngineError):
                assoc.local.move(assoc.local_socket, bytes(65))
            assoc.to_service(b"goes on")
            assert assoc.service.recv(100) == b"goes on"
            pair.client_connection.remove_association(ASSOCIATION)
            with pytest.raises(HandleGoneError):
                assoc.local.move(assoc.local_socket)


def test_associations_without_answers(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            for side in (pair.client_connection, pair.server_connection):
                assert side.unanswered_associations(3600, 3600) == []
                assert side.unanswered_associations(0, 3600) == [ASSOCIATION]
            assoc.to_visitor(b"answer")
            assert assoc.visitor.recv(100) == b"answer"
            for side in (pair.client_connection, pair.server_connection):
                assert side.unanswered_associations(0, 3600) == []
                assert side.idle_associations(0, 10, ("127.0.0.1", 0)) == [ASSOCIATION]
                assert side.idle_associations(0, 10, ("127.0.0.2", 0)) == []
