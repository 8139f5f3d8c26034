"""Limits at the boundary: what visitors are granted, what is refused and how, what changes while they are in force."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import pytest

from asport_sync.engine import Carrier, Engine, RefusedBy, StreamOpened, VisitorLimits, VisitorsRefused, packed_ranges
from asport_sync.errors import EngineError, HandleGoneError
from asport_sync.wire import Address as WireAddress
from asport_sync.wire import Connect, encode
from tests.engine.pair import EVENT_TIMEOUT, client_credentials, connected
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until


def packed(*networks: str) -> bytes:
    return packed_ranges(
        (each.network_address.packed, each.broadcast_address.packed) for each in map(ipaddress.ip_network, networks)
    )


def header(host: str | None) -> bytes:
    return encode(Connect(None if host is None else WireAddress.from_text(host, 4711)))


@pytest.mark.parametrize(
    "ranges",
    [
        packed("10.0.0.0/8", "10.0.0.0/8"),
        packed("10.2.0.0/16", "10.1.0.0/16"),
        packed("2001:db8::/32", "10.0.0.0/8"),
        packed_ranges([(b"\x02\0\0\0", b"\x01\0\0\0")]),
        packed("10.0.0.0/8") * 32769,
    ],
    ids=["twice", "descending", "ipv6 first", "backwards", "too many"],
)
def test_wrong_ranges_are_refused(certificate: Certificate, ranges: bytes) -> None:
    with connected(certificate) as both, pytest.raises(EngineError, match="out of range"):
        both.server_connection.limit(VisitorLimits(ranges))


def test_the_client_refuses_streams_of_visitors_that_are_not_permitted(certificate: Certificate) -> None:
    """Among them those that name none, unless unknown ones are permitted. Python sees none of them."""
    with connected(certificate) as both:
        both.client_connection.limit(VisitorLimits(packed("192.0.2.0/24", "2001:db8::/32"), unknown_permitted=False))
        for host in ("203.0.113.1", "::ffff:203.0.113.1", None):
            both.server_connection.open_stream(header(host))
        both.server_connection.open_stream(header("192.0.2.7"))
        both.server_connection.open_stream(header("::ffff:192.0.2.8"))
        both.server_connection.open_stream(header("2001:db8::1"))
        opened = [both.client.expect(StreamOpened) for _ in range(3)]
        assert {each.header for each in opened} == {
            header(host) for host in ("192.0.2.7", "::ffff:192.0.2.8", "2001:db8::1")
        }
        assert both.client.counter("tcp_drop_not_permitted") == 3
        first = both.client.expect(VisitorsRefused)
        assert (first.reason, first.count) == (RefusedBy.TCP_RULES, 1)
        wait_until(
            lambda: both.server.counter("streams_reset_by_peer") == 3, EVENT_TIMEOUT, "the server knows of the refusal"
        )
        info = both.client_connection.info()
        assert (info.streams, info.streams_total) == (3, 3)

        # Those that are open and no longer permitted end; another may come in their place.
        both.client_connection.limit(VisitorLimits(packed("2001:db8::/32"), max_connections=2))
        wait_until(lambda: both.server.counter("streams_reset_by_peer") == 5, EVENT_TIMEOUT, "two more are reset")
        assert both.client.counter("tcp_drop_not_permitted") == 5
        both.server_connection.open_stream(header(None))
        assert both.client.expect(StreamOpened).header == header(None)
        both.server_connection.open_stream(header("2001:db8::2"))
        event = both.client.expect(VisitorsRefused, lambda event: event.reason is RefusedBy.MAX_CONNECTIONS)
        assert event.peer == ("2001:db8::2", 4711)
        for each in opened:
            if each.header == header("2001:db8::1"):
                each.stream.refuse()
        wait_until(lambda: both.client_connection.info().streams == 1, EVENT_TIMEOUT, "one has left")
        both.server_connection.open_stream(header("2001:db8::3"))
        assert both.client.expect(StreamOpened).header == header("2001:db8::3")


def test_the_client_drops_packets_of_visitors_that_are_not_permitted(certificate: Certificate) -> None:
    with connected(certificate) as both, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as public:
        public.bind(("127.0.0.1", 0))
        both.set_joined(Carrier.DATAGRAM)
        both.client_connection.limit(VisitorLimits(packed("192.0.2.0/24")))
        udp = both.server_connection.open_udp(public, public=True)
        udp.add_association(7, ("203.0.113.5", 1234))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.bind(("127.0.0.1", 0))
            udp.add_association(8, visitor.getsockname())
            for _ in range(3):
                visitor.sendto(b"x", public.getsockname())
            wait_until(
                lambda: both.client.counter("packet_drop_not_permitted") == 3, EVENT_TIMEOUT, "all three are dropped"
            )
            event = both.client.expect(VisitorsRefused)
            assert (event.reason, event.peer) == (RefusedBy.UDP_RULES, visitor.getsockname())
        assert both.server_connection.refused_associations() == []
        both.server_connection.limit(VisitorLimits(packed("127.0.0.0/8")))
        assert both.server_connection.refused_associations() == [7]
        with pytest.raises(EngineError):
            udp.add_association(9, ("203.0.113.6", 1234))
        both.server_connection.remove_association(7)
        assert both.server_connection.refused_associations() == []
        both.server_connection.limit(VisitorLimits())
        udp.add_association(9, ("203.0.113.6", 1234))
        udp.close()


def test_a_connection_that_is_gone_has_no_limits(certificate: Certificate) -> None:
    with connected(certificate) as both:
        both.client_connection.close()
        wait_until(lambda: both.server.counter("connections_closed") == 1, EVENT_TIMEOUT, "it is over")
        with pytest.raises(HandleGoneError):
            both.server_connection.limit(VisitorLimits(packed("10.0.0.0/8")))
        both.endpoint.limit(5)
        both.endpoint.close()
        with pytest.raises(HandleGoneError):
            both.endpoint.limit(5)


def test_more_credentials_than_there_is_room_for_are_refused_with_that_reason(certificate: Certificate) -> None:
    """And not with a text about the last that were loaded."""

    def load(engine: Engine) -> None:
        for _ in range(5000):
            client_credentials(engine, certificate)

    with (
        contextlib.closing(Engine()) as engine,
        pytest.raises(EngineError, match="a table or queue of the engine is full"),
    ):
        load(engine)
