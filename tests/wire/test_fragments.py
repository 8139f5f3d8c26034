"""Cutting packets and putting them together, in order and out of it, with and without a friendly peer."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import Address, Packet, decode, encode

from .fragments import (
    MAX_FRAGMENTS,
    MAX_PAYLOAD_LENGTH,
    DropReason,
    Reassembler,
    fragment,
    plan,
)
from .strategies import addresses, packets, uint8, wire_bytes
from .vectors import RESOLVER

IPV4 = Address.from_text("192.0.2.1", 1)
IPV6 = Address.from_text("2001:db8::1", 1)


def reassembler(max_packets: int = 8, max_bytes: int = 1 << 20, lifetime: float = 10.0) -> Reassembler:
    return Reassembler(max_packets, max_bytes, lifetime)


def piece(frag_id: int, total: int = 3, payload: bytes = b"x", *, assoc_id: int = 1, pkt_id: int = 0) -> Packet:
    """A fragment that keeps the address rule."""
    return Packet(assoc_id, pkt_id, total, frag_id, RESOLVER if frag_id == 0 else None, payload)


def total_drops(subject: Reassembler) -> int:
    return sum(subject.drops.values())


# --- plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "address", "first", "later"),
    [(1162, IPV4, 1145, 1151), (1162, IPV6, 1133, 1151), (1414, IPV4, 1397, 1403), (1414, IPV6, 1385, 1403)],
)
def test_v12_plan(size: int, address: Address, first: int, later: int) -> None:
    assert plan(size, address, 0) == [0]
    assert plan(size, address, 1) == [1]
    assert plan(size, address, first) == [first]
    assert plan(size, address, first + 1) == [first, 1]
    assert plan(size, address, first + later) == [first, later]
    assert plan(size, address, first + later + 1) == [first, later, 1]
    assert plan(size, address, first + 2 * later) == [first, later, later]
    assert len(plan(size, address, 1350)) == (2 if size == 1162 else 1)


def test_plan_of_the_smallest_datagrams() -> None:
    assert plan(17, IPV4, 0) == [0]
    assert plan(18, IPV4, 1) == [1]
    assert plan(18, IPV4, 15) == [1, 7, 7]
    for size, length in ((16, 0), (17, 1), (0, 0), (0, 5), (-3, 1)):
        needed = 17 + min(length, 1)
        with pytest.raises(
            LocalProtocolError,
            match=f"datagrams of {size} bytes are too small for a fragment, expected at least {needed}",
        ):
            plan(size, IPV4, length)
    with pytest.raises(LocalProtocolError, match="expected at least 30"):
        plan(29, IPV6, 1)
    assert plan(29, IPV6, 0) == [0]


def test_plan_of_the_most_fragments() -> None:
    most = 1 + 7 * (MAX_FRAGMENTS - 1)
    lengths = plan(18, IPV4, most)
    assert len(lengths) == MAX_FRAGMENTS
    assert sum(lengths) == most
    with pytest.raises(LocalProtocolError, match="take 256 fragments, expected at most 255"):
        plan(18, IPV4, most + 1)


@pytest.mark.parametrize("length", [-1, 65536])
def test_plan_of_an_impossible_length(length: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"payload has {length} bytes, expected 0 to 65535"):
        plan(1200, IPV4, length)


@settings(deadline=None)
@given(st.integers(0, 2000), addresses, st.integers(0, MAX_PAYLOAD_LENGTH))
def test_plan_is_complete_and_minimal(size: int, address: Address, length: int) -> None:
    header = 17 if address.ip.version == 4 else 29
    first, later = size - header, size - 11
    fragments = 1 if length <= first else 1 + math.ceil((length - first) / max(later, 1))
    if first < min(length, 1) or fragments > MAX_FRAGMENTS:
        with pytest.raises(LocalProtocolError):
            plan(size, address, length)
        return
    lengths = plan(size, address, length)
    assert sum(lengths) == length
    assert len(lengths) == fragments
    assert lengths[0] == min(first, length)
    assert all(each == later for each in lengths[1:-1])
    assert length == 0 or 0 < lengths[-1] <= (later if fragments > 1 else first)


# --- fragment --------------------------------------------------------------------------------------------------------


def test_v6_fragments() -> None:
    whole = Packet(0x0102, 0xFFFE, 1, 0, RESOLVER, b"AAAABBBBBBBBBBC")
    assert [encode(each).hex() for each in fragment(whole, 21)] == [
        "00030102fffe0300000401c0000201003541414141",
        "00030102fffe0301000aff" + "42" * 10,
        "00030102fffe03020001ff43",
    ]


def test_packet_that_fits_stays_as_it_is() -> None:
    whole = Packet(1, 2, 1, 0, RESOLVER, b"abc")
    assert fragment(whole, 20) == [whole]
    assert fragment(Packet(1, 2, 1, 0, RESOLVER, b""), 17) == [Packet(1, 2, 1, 0, RESOLVER, b"")]


def test_only_whole_packets_with_an_address_can_be_cut() -> None:
    with pytest.raises(LocalProtocolError, match="fragment 1 of 3, expected a whole packet"):
        fragment(piece(1), 1200)
    with pytest.raises(LocalProtocolError, match="without an address"):
        fragment(Packet(1, 2, 1, 0, None, b"abc"), 1200)


@settings(deadline=None)
@given(addresses, st.binary(max_size=3000), st.integers(60, 1500), st.randoms(use_true_random=False))
def test_reassembly_inverts_fragmentation(address: Address, payload: bytes, size: int, random: Random) -> None:
    whole = Packet(5, 6, 1, 0, address, payload)
    fragments = fragment(whole, size)
    assert all(len(encode(each)) <= size for each in fragments)
    random.shuffle(fragments)
    subject = reassembler()
    results = [subject.add(each, 0.0) for each in fragments]
    assert results == [None] * (len(fragments) - 1) + [whole]
    assert (subject.pending_packets, subject.pending_fragments, subject.pending_bytes) == (0, 0, 0)
    assert total_drops(subject) == 0


# --- reassembly ------------------------------------------------------------------------------------------------------


def test_whole_packet_passes() -> None:
    subject = reassembler()
    for payload in (b"hello", b""):
        whole = Packet(0, 0, 1, 0, RESOLVER, payload)
        assert subject.add(whole, 0.0) == whole
    assert subject.pending_packets == 0


def test_whole_packet_passes_beside_an_incomplete_one_of_the_same_id() -> None:
    subject = reassembler()
    assert subject.add(piece(1), 0.0) is None
    whole = Packet(1, 0, 1, 0, RESOLVER, b"whole")
    assert subject.add(whole, 0.0) == whole
    assert subject.pending_packets == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_any_order(order: tuple[int, ...]) -> None:
    subject = reassembler()
    parts = [b"AAAA", b"BBBB", b"C"]
    results = [subject.add(piece(frag_id, 3, parts[frag_id]), 0.0) for frag_id in order]
    assert results == [None, None, Packet(1, 0, 1, 0, RESOLVER, b"AAAABBBBC")]


def test_empty_fragments_count_as_fragments() -> None:
    subject = reassembler()
    assert subject.add(piece(1, 3, b""), 0.0) is None
    assert subject.add(piece(0, 3, b""), 0.0) is None
    assert subject.pending_fragments == 2
    assert subject.add(piece(2, 3, b""), 0.0) == Packet(1, 0, 1, 0, RESOLVER, b"")


def test_packets_are_told_apart_by_association_and_packet_id() -> None:
    subject = reassembler()
    assert subject.add(piece(0, 2, b"a", assoc_id=1, pkt_id=1), 0.0) is None
    assert subject.add(piece(1, 2, b"b", assoc_id=1, pkt_id=2), 0.0) is None
    assert subject.add(piece(1, 2, b"c", assoc_id=2, pkt_id=1), 0.0) is None
    assert subject.add(piece(1, 2, b"d", assoc_id=1, pkt_id=1), 0.0) == Packet(1, 1, 1, 0, RESOLVER, b"ad")
    assert subject.pending_packets == 2


def test_most_fragments() -> None:
    subject = reassembler()
    results = [subject.add(piece(frag_id, 255, bytes([frag_id])), 0.0) for frag_id in range(255)]
    assert results[:-1] == [None] * 254
    assert results[-1] == Packet(1, 0, 1, 0, RESOLVER, bytes(range(255)))


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Packet(1, 0, 0, 0, RESOLVER, b"x"), DropReason.ZERO_TOTAL),
        (Packet(1, 0, 0, 0, None, b""), DropReason.ZERO_TOTAL),
        (Packet(1, 0, 1, 1, None, b"x"), DropReason.ID_OUT_OF_RANGE),
        (Packet(1, 0, 3, 3, None, b"x"), DropReason.ID_OUT_OF_RANGE),
        (Packet(1, 0, 3, 255, None, b"x"), DropReason.ID_OUT_OF_RANGE),
        (Packet(1, 0, 3, 0, None, b"x"), DropReason.ADDRESS_MISSING),
        (Packet(1, 0, 1, 0, None, b"x"), DropReason.ADDRESS_MISSING),
        (Packet(1, 0, 3, 1, RESOLVER, b"x"), DropReason.ADDRESS_UNEXPECTED),
    ],
)
def test_fragment_that_breaks_a_rule_by_itself(packet: Packet, reason: DropReason) -> None:
    subject = reassembler()
    assert subject.add(packet, 0.0) is reason
    assert dict(subject.drops) == {reason: 1}
    assert subject.pending_packets == 0


def test_duplicate_is_dropped_and_the_first_counts() -> None:
    subject = reassembler()
    assert subject.add(piece(0, 2, b"first"), 0.0) is None
    assert subject.add(piece(0, 2, b"again"), 0.0) is DropReason.DUPLICATE
    assert subject.pending_bytes == 5
    assert subject.add(piece(1, 2, b"!"), 0.0) == Packet(1, 0, 1, 0, RESOLVER, b"first!")
    assert dict(subject.drops) == {DropReason.DUPLICATE: 1}


def test_contradicted_total_is_dropped_and_the_first_counts() -> None:
    subject = reassembler()
    assert subject.add(piece(0, 2, b"a"), 0.0) is None
    assert subject.add(piece(1, 3, b"?"), 0.0) is DropReason.TOTAL_CONTRADICTED
    assert subject.add(piece(2, 3, b"?"), 0.0) is DropReason.TOTAL_CONTRADICTED
    assert subject.add(piece(1, 2, b"b"), 0.0) == Packet(1, 0, 1, 0, RESOLVER, b"ab")
    assert dict(subject.drops) == {DropReason.TOTAL_CONTRADICTED: 2}


def test_longest_packet() -> None:
    subject = reassembler()
    assert subject.add(piece(0, 2, bytes(65000)), 0.0) is None
    result = subject.add(piece(1, 2, bytes(535)), 0.0)
    assert isinstance(result, Packet)
    assert result.size == MAX_PAYLOAD_LENGTH


@pytest.mark.parametrize("total", [2, 3])
def test_too_long_packet_is_given_up(total: int) -> None:
    subject = reassembler()
    assert subject.add(piece(0, total, bytes(65000)), 0.0) is None
    assert subject.add(piece(1, total, bytes(536)), 0.0) is DropReason.TOO_LONG
    assert dict(subject.drops) == {DropReason.TOO_LONG: 2}
    assert (subject.pending_packets, subject.pending_bytes) == (0, 0)


def test_incomplete_packets_are_limited_and_the_oldest_goes() -> None:
    subject = reassembler(max_packets=2)
    for pkt_id in range(3):
        assert subject.add(piece(0, 2, pkt_id=pkt_id), float(pkt_id)) is None
    assert subject.pending_packets == 2
    assert dict(subject.drops) == {DropReason.TOO_MANY_PACKETS: 1}
    assert subject.add(piece(1, 2, pkt_id=1), 3.0) == Packet(1, 1, 1, 0, RESOLVER, b"xx")
    assert subject.add(piece(1, 2, pkt_id=2), 3.0) == Packet(1, 2, 1, 0, RESOLVER, b"xx")


def test_held_bytes_are_limited_and_the_oldest_goes() -> None:
    subject = reassembler(max_bytes=MAX_PAYLOAD_LENGTH)
    assert subject.add(piece(0, 3, bytes(30000), pkt_id=0), 0.0) is None
    assert subject.add(piece(0, 3, bytes(30000), pkt_id=1), 1.0) is None
    assert subject.add(piece(1, 3, bytes(5535), pkt_id=0), 2.0) is None
    assert subject.pending_bytes == MAX_PAYLOAD_LENGTH
    # The oldest packet itself grows: the next oldest goes.
    assert subject.add(piece(2, 4, bytes(1), pkt_id=2), 3.0) is None
    assert dict(subject.drops) == {DropReason.TOO_MANY_BYTES: 2}
    assert subject.add(piece(1, 3, bytes(30000), pkt_id=1), 4.0) is None
    assert subject.add(piece(3, 4, bytes(10000), pkt_id=2), 5.0) is None
    assert dict(subject.drops) == {DropReason.TOO_MANY_BYTES: 4}
    assert (subject.pending_packets, subject.pending_bytes) == (1, 10001)


def test_growing_packet_pushes_out_others_never_itself() -> None:
    subject = reassembler(max_bytes=MAX_PAYLOAD_LENGTH)
    assert subject.add(piece(0, 3, bytes(40000), pkt_id=0), 0.0) is None
    assert subject.add(piece(0, 2, bytes(20000), pkt_id=1), 1.0) is None
    assert subject.add(piece(1, 3, bytes(25535), pkt_id=0), 2.0) is None
    assert dict(subject.drops) == {DropReason.TOO_MANY_BYTES: 1}
    assert (subject.pending_packets, subject.pending_bytes) == (1, MAX_PAYLOAD_LENGTH)
    assert isinstance(subject.add(piece(2, 3, b"", pkt_id=0), 3.0), Packet)


def test_completing_fragment_needs_no_room() -> None:
    subject = reassembler(max_bytes=MAX_PAYLOAD_LENGTH)
    assert subject.add(piece(0, 2, bytes(40000), pkt_id=0), 0.0) is None
    assert subject.add(piece(0, 2, bytes(25535), pkt_id=1), 0.0) is None
    assert isinstance(subject.add(piece(1, 2, bytes(25535), pkt_id=0), 0.0), Packet)
    assert subject.pending_bytes == 25535
    assert total_drops(subject) == 0


def test_incomplete_packets_expire_from_their_first_fragment_on() -> None:
    subject = reassembler(lifetime=10.0)
    assert subject.add(piece(0, pkt_id=0), 100.0) is None
    assert subject.add(piece(0, pkt_id=1), 105.0) is None
    assert subject.add(piece(1, pkt_id=0), 109.0) is None
    subject.expire(109.9)
    assert subject.pending_packets == 2
    subject.expire(110.0)
    assert subject.pending_packets == 1
    assert dict(subject.drops) == {DropReason.EXPIRED: 2}
    subject.expire(200.0)
    assert subject.pending_bytes == 0
    assert dict(subject.drops) == {DropReason.EXPIRED: 3}


def test_late_fragment_does_not_meet_what_expired() -> None:
    subject = reassembler(lifetime=10.0)
    assert subject.add(piece(0, 2, b"old"), 0.0) is None
    assert subject.add(piece(1, 2, b"new"), 10.0) is None
    assert subject.add(piece(0, 2, b"new"), 10.0) == Packet(1, 0, 1, 0, RESOLVER, b"newnew")


def test_dissociation_gives_up_the_association_only() -> None:
    subject = reassembler()
    assert subject.add(piece(0, assoc_id=1, pkt_id=1), 0.0) is None
    assert subject.add(piece(1, assoc_id=1, pkt_id=1), 0.0) is None
    assert subject.add(piece(0, assoc_id=1, pkt_id=2), 0.0) is None
    assert subject.add(piece(0, 2, assoc_id=2, pkt_id=1), 0.0) is None
    subject.forget(1)
    subject.forget(9)
    assert dict(subject.drops) == {DropReason.DISSOCIATED: 3}
    assert (subject.pending_packets, subject.pending_bytes) == (1, 1)
    assert isinstance(subject.add(piece(1, 2, assoc_id=2, pkt_id=1), 0.0), Packet)


def test_counters_read_as_zero_and_cannot_be_written() -> None:
    subject = reassembler()
    assert [subject.drops[reason] for reason in DropReason] == [0] * len(DropReason)
    with pytest.raises(TypeError):
        subject.drops[DropReason.EXPIRED] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((0, 65535, 1.0), "max_packets is 0, expected at least 1"),
        ((1, 65534, 1.0), "max_bytes is 65534, expected at least 65535"),
        ((1, 65535, 0.0), "lifetime is 0.0 seconds, expected more than 0"),
        ((1, 65535, math.nan), "lifetime is nan seconds"),
    ],
)
def test_limits_that_cannot_work_are_refused(limits: tuple[int, int, float], text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        Reassembler(*limits)


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def hostile_packets(draw: st.DrawFn) -> Packet:
    """Fragments that often belong together and often contradict each other."""
    frag_total = draw(st.integers(0, 4))
    frag_id = draw(st.integers(0, 4))
    well_addressed = draw(st.integers(0, 9)) > 0
    address = RESOLVER if (frag_id == 0) is well_addressed else None
    length = draw(st.sampled_from([0, 1, 7, 30000, 65535]))
    return Packet(draw(st.integers(0, 2)), draw(st.integers(0, 1)), frag_total, frag_id, address, bytes(length))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(hostile_packets() | packets, st.integers(0, 3)), max_size=30), st.integers(1, 4))
def test_every_fragment_is_accounted_for_and_limits_hold(arrivals: list[tuple[Packet, int]], max_packets: int) -> None:
    subject = reassembler(max_packets, MAX_PAYLOAD_LENGTH, lifetime=5.0)
    now = 0.0
    delivered = 0
    totals: dict[tuple[int, int], set[int]] = {}
    for count, (packet, pause) in enumerate(arrivals, start=1):
        now += pause
        totals.setdefault((packet.assoc_id, packet.pkt_id), set()).add(packet.frag_total)
        result = subject.add(packet, now)
        if isinstance(result, Packet):
            assert (result.frag_total, result.frag_id) == (1, 0)
            assert result.address is not None
            assert packet.frag_total in totals[result.assoc_id, result.pkt_id]
            delivered += packet.frag_total
        assert delivered + subject.pending_fragments + total_drops(subject) == count
        assert subject.pending_packets <= max_packets
        assert subject.pending_bytes <= MAX_PAYLOAD_LENGTH
    subject.expire(now + 5.0)
    assert (subject.pending_packets, subject.pending_fragments, subject.pending_bytes) == (0, 0, 0)
    assert delivered + total_drops(subject) == len(arrivals)


@settings(deadline=None)
@given(st.lists(wire_bytes, max_size=10))
def test_bytes_from_outside_raise_remote_errors_only(datagrams: list[bytes]) -> None:
    subject = reassembler(max_packets=2, max_bytes=MAX_PAYLOAD_LENGTH)
    taken = 0
    delivered = 0
    for datagram in datagrams:
        try:
            command, _ = decode(datagram)
        except RemoteProtocolError:
            continue
        if isinstance(command, Packet):
            taken += 1
            delivered += command.frag_total if isinstance(subject.add(command, 0.0), Packet) else 0
    assert taken == delivered + subject.pending_fragments + total_drops(subject)


@settings(deadline=None)
@given(st.data(), st.lists(st.binary(max_size=400), min_size=1, max_size=4), uint8)
def test_interleaved_packets_are_all_delivered(data: st.DataObject, payloads: list[bytes], assoc_id: int) -> None:
    sent = [Packet(assoc_id, pkt_id, 1, 0, RESOLVER, payload) for pkt_id, payload in enumerate(payloads)]
    arrivals = data.draw(st.permutations([each for packet in sent for each in fragment(packet, 60)]))
    subject = reassembler(max_packets=len(sent))
    results = [subject.add(each, 0.0) for each in arrivals]
    received = [result for result in results if isinstance(result, Packet)]
    assert sorted(received, key=lambda packet: packet.pkt_id) == sent
    assert total_drops(subject) == 0
