"""The decisions about datagrams, with a clock of the test's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from asport_sync.testing import Faults
from asport_sync.testing.faults import MAX_HOLD, Direction

COUNT = 4000
LONG = b"\xc0"  # the first byte of a QUIC long header
SHORT = b"\x40"


def direction(seed: str = "7", **faults: Any) -> Direction[str]:
    return Direction(Faults(**faults), seed, 0.0)


def payload(number: int, first: bytes = SHORT, size: int = 100) -> bytes:
    return (first + number.to_bytes(4, "big")).ljust(size, b"\xaa")


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[1:5], "big")


def carry(path: Direction[str], count: int = COUNT, interval: float = 0.001, first: bytes = SHORT) -> list[bytes]:
    """Offer packets at ``interval`` seconds; what comes out, each as soon as it is due, and the rest at the end."""
    arrived = []
    for number in range(count):
        path.offer(payload(number, first), "there", number * interval)
        arrived += [packet for packet, _ in path.due(number * interval)]
    arrived += [packet for packet, _ in path.due(count * interval + 1000)]
    adds_up(path)
    return arrived


def adds_up(path: Direction[str]) -> None:
    counters = path.snapshot()
    assert counters.received + counters.duplicated == counters.delivered + counters.dropped + counters.in_flight


@pytest.fixture(autouse=True)
def deliveries_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for the relay, which counts what it has sent on."""
    original = Direction.due

    def due(self: Direction[str], now: float) -> Any:
        for packet, route in original(self, now):
            self.counters.delivered += 1
            yield packet, route

    monkeypatch.setattr(Direction, "due", due)


def within(figure: int, share: float, count: int = COUNT) -> bool:
    """Whether it is no more than five standard deviations off."""
    deviation: float = (share * (1 - share) * count) ** 0.5
    return abs(figure - share * count) <= 5 * deviation


def test_without_faults_everything_arrives_at_once_and_in_order() -> None:
    path = direction()
    for number in range(10):
        path.offer(payload(number), "there", 1.0)
        assert list(path.due(1.0)) == [(payload(number), "there")]
    assert path.next_time() is None
    adds_up(path)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.3])
def test_loss(share: float) -> None:
    path = direction(loss=share)
    arrived = carry(path)
    assert within(COUNT - len(arrived), share)
    assert path.counters.lost == path.counters.dropped == COUNT - len(arrived) > 0
    assert arrived == sorted(set(arrived))


@pytest.mark.parametrize("share", [0.005, 0.2])
def test_duplication(share: float) -> None:
    path = direction(duplication=share)
    arrived = carry(path)
    assert within(len(arrived) - COUNT, share)
    assert path.counters.duplicated == len(arrived) - COUNT > 0
    assert sorted(set(arrived)) == [payload(number) for number in range(COUNT)]
    assert arrived == sorted(arrived)


@pytest.mark.parametrize("bits", [1, 5])
@pytest.mark.parametrize("share", [0.002, 0.1])
def test_corruption(share: float, bits: int) -> None:
    path = direction(corruption=share, corrupted_bits=bits)
    arrived = carry(path)
    assert len(arrived) == COUNT
    flipped = [
        sum((one ^ other).bit_count() for one, other in zip(packet, payload(number), strict=True))
        for number, packet in enumerate(arrived)
    ]
    assert set(flipped) == {0, bits}
    assert path.counters.corrupted == flipped.count(bits)
    assert within(flipped.count(bits), share)


def test_corrupted_bits_are_anywhere() -> None:
    arrived = carry(direction(corruption=1.0))
    changed = {
        index
        for number, packet in enumerate(arrived)
        for index, (one, other) in enumerate(zip(packet, payload(number), strict=True))
        if one != other
    }
    assert changed == set(range(100))


def test_more_bits_than_there_are() -> None:
    path = direction(corruption=1.0, corrupted_bits=9)
    for packet in (b"", b"\x0f"):
        path.offer(packet, "there", 0.0)
    assert [packet for packet, _ in path.due(0.0)] == [b"", b"\xf0"]


@pytest.mark.parametrize("depth", [1, 3])
def test_reordering(depth: int) -> None:
    path = direction(reordering=0.01, reordering_depth=depth)
    arrived = [number_of(packet) for packet in carry(path)]
    assert sorted(arrived) == list(range(COUNT))
    assert within(path.counters.reordered, 0.01)
    # Some late one has been overtaken by exactly so many, and none by more that were not late themselves.
    overtaken = [sum(other > number for other in arrived[:index]) for index, number in enumerate(arrived)]
    late = [count for count in overtaken if count]
    assert late
    assert late.count(depth) > 0.8 * len(late)
    assert max(late) <= depth + 2


def test_a_packet_held_back_goes_on_when_nothing_comes() -> None:
    path = direction(reordering=1.0)
    path.offer(payload(0), "there", 5.0)
    assert list(path.due(5.0)) == []
    assert path.next_time() == 5.0 + MAX_HOLD
    assert path.snapshot().in_flight == 1
    assert [packet for packet, _ in path.due(5.0 + MAX_HOLD)] == [payload(0)]


def test_delay_and_jitter_keep_the_order() -> None:
    path = direction(delay=0.02, jitter=0.01)
    times = []
    for number in range(COUNT):
        path.offer(payload(number), "there", number * 0.001)
        due = path.next_time()
        assert due is not None
        while due is not None and due <= number * 0.001:
            times += [(number_of(packet), due) for packet, _ in path.due(due)]
            due = path.next_time()
    assert [number for number, _ in times] == list(range(len(times)))
    spent = [at - number * 0.001 for number, at in times]
    assert 0.02 <= min(spent) < 0.022
    assert 0.028 < max(spent) <= 0.03


def test_delay_alone_is_exact() -> None:
    path = direction(delay=0.5)
    path.offer(payload(0), "there", 1.0)
    assert path.next_time() == 1.5
    assert list(path.due(1.49)) == []
    assert len(list(path.due(1.5))) == 1


def test_those_on_their_way_keep_their_times() -> None:
    path = direction(delay=0.5)
    path.offer(payload(0), "there", 1.0)
    path.change(Faults(), 1.1)
    path.offer(payload(1), "there", 1.2)
    assert list(path.due(1.4)) == []
    assert [number_of(packet) for packet, _ in path.due(1.5)] == [0, 1]


def test_mtu() -> None:
    path = direction(mtu=1250)
    for size in (1249, 1250, 1251, 1400):
        path.offer(payload(0, size=size), "there", 0.0)
    assert [len(packet) for packet, _ in path.due(0.0)] == [1249, 1250]
    assert path.counters.too_big == path.counters.dropped == 2


def test_dropping_by_number() -> None:
    path = direction(drop_packets=(1, 4), drop_every=5)
    arrived = [number_of(packet) + 1 for packet in carry(path, 11)]
    assert arrived == [2, 3, 6, 7, 8, 9, 11]
    assert path.counters.dropped_by_number == 4


def test_black_hole() -> None:
    path = direction(black_hole=True)
    assert carry(path, 10) == []
    path.change(Faults(), 2000.0)
    path.offer(payload(1), "there", 2000.0)
    assert len(list(path.due(2000.0))) == 1
    assert path.counters.black_holed == 10


def test_outages_come_and_go() -> None:
    path = direction(up_time=5.0, down_time=2.0)
    path.change(path.faults, 10.0)
    arrived = []
    for number in range(10, 31):
        path.offer(payload(number), "there", float(number))
        arrived += [number_of(packet) for packet, _ in path.due(float(number))]
    assert arrived == [*range(10, 15), *range(17, 22), *range(24, 29)]
    assert path.counters.black_holed == 6


def test_only_the_handshake_suffers() -> None:
    path = direction(loss=1.0, handshake_only=True)
    assert len(carry(path, 10, first=SHORT)) == 10
    path.offer(b"", "there", 2000.0)
    assert len(list(path.due(2000.0))) == 1
    path.offer(payload(0, LONG), "there", 2000.0)
    assert list(path.due(2000.0)) == []


def test_only_the_first_packets_suffer() -> None:
    arrived = carry(direction(loss=1.0, first_packets=7), 10)
    assert [number_of(packet) for packet in arrived] == [7, 8, 9]
    assert len(carry(direction(loss=1.0, first_packets=0), 10)) == 10


ALL_AT_ONCE: dict[str, Any] = {
    "loss": 0.1,
    "duplication": 0.1,
    "reordering": 0.1,
    "corruption": 0.1,
    "jitter": 0.01,
    "drop_every": 7,
}


def test_the_seed_decides() -> None:
    first, again, other = (carry(direction(seed, **ALL_AT_ONCE)) for seed in ("7", "7", "8"))
    assert first == again
    assert first != other
    lost, lost_otherwise = (carry(direction(seed, loss=0.1)) for seed in ("7", "8"))
    assert lost != lost_otherwise


def test_the_number_of_bits_changes_nothing_else() -> None:
    few, many = (direction(loss=0.1, corruption=0.1, corrupted_bits=bits) for bits in (1, 50))
    assert len(carry(few)) == len(carry(many))
    assert few.counters == many.counters


def test_a_change_of_one_fault_leaves_the_others_alone() -> None:
    """The same packets are lost, whether others are falsified, doubled or held back meanwhile or not."""
    alone = {number_of(packet) for packet in carry(direction(loss=0.1))}
    beside = carry(direction(loss=0.1, duplication=0.3, reordering=0.2, corruption=0.0, jitter=0.01))
    assert {number_of(packet) for packet in beside} == alone


def test_what_is_abandoned_is_counted() -> None:
    path = direction(delay=1.0, reordering=0.5)
    for number in range(10):
        path.offer(payload(number), "there", 0.0)
    assert path.snapshot().in_flight == 10
    path.abandon()
    assert path.counters.abandoned == path.counters.dropped == 10
    assert path.next_time() is None
    adds_up(path)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, value, "between 0 and 1") for name in ("loss", "duplication", "reordering") for value in (-0.1, 1.1)),
        ("corruption", "much", "between 0 and 1"),
        ("corruption", float("nan"), "between 0 and 1"),
        ("loss", True, "between 0 and 1"),
        ("delay", -1, "seconds, 0 or more"),
        ("delay", float("inf"), "seconds, 0 or more"),
        ("jitter", -0.001, "seconds, 0 or more"),
        ("mtu", 0, "a whole number, 1 or more"),
        ("mtu", 12.5, "a whole number, 1 or more"),
        ("drop_every", 0, "a whole number, 1 or more"),
        ("first_packets", -1, "a whole number, 0 or more"),
        ("reordering_depth", 0, "a whole number, 1 or more"),
        ("corrupted_bits", 0, "a whole number, 1 or more"),
        ("drop_packets", (0,), "a whole number, 1 or more"),
        ("drop_packets", "12", "a tuple of whole numbers"),
        ("black_hole", 1, "True or False"),
        ("handshake_only", "yes", "True or False"),
        ("up_time", 1.0, "both above 0 or both 0"),
        ("down_time", 1.0, "both above 0 or both 0"),
    ],
)
def test_impossible_faults_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.* must be .*{expected}"):
        Faults(**{name: value})


def test_faults_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Faults().loss = 0.5  # type: ignore[misc]
