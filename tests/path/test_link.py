"""One direction of the emulated path, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.path.forwarder import Link, LinkSettings

PACKET = b"\0" * 1250  # 10,000 bits: 1 ms at 10 Mbit/s


def carry(link: Link, count: int, interval: float = 1.0) -> list[int]:
    """Offer packets at ``interval`` seconds, and return the numbers of those that come out."""
    arrived = []
    for number in range(count):
        link.offer(number.to_bytes(4, "big"), number * interval)
    for packet in link.due(count * interval + 1e3):
        arrived.append(int.from_bytes(packet, "big"))
    return arrived


def test_rate_and_delay_add_up() -> None:
    link = Link(LinkSettings(delay_ms=20, rate_mbit=10), seed=1)
    link.offer(PACKET, 100.0)
    link.offer(PACKET, 100.0)
    assert link.next_delivery() == pytest.approx(100.021)
    assert list(link.due(100.0209)) == []
    assert list(link.due(100.0211)) == [PACKET]
    assert link.next_delivery() == pytest.approx(100.022)


def test_queue_drops_its_tail() -> None:
    link = Link(LinkSettings(rate_mbit=10, queue_ms=4.5), seed=1)
    for _ in range(8):
        link.offer(PACKET, 0.0)
    # One is being sent, and five find at most 4.5 ms of others before them.
    assert len(list(link.due(1.0))) == 5
    assert link.counters.queue_full == 3


def test_loss_is_decided_by_the_seed() -> None:
    settings = LinkSettings(loss=0.1)
    first, again, other = (carry(Link(settings, seed), 1000) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert first == sorted(first)
    # Six standard deviations (9.5 packets) around the mean.
    assert 843 < len(first) < 957


def test_black_hole_takes_everything() -> None:
    link = Link(LinkSettings(black_hole=True), seed=1)
    assert carry(link, 10) == []
    assert link.counters.black_holed == 10


def test_corruption_spares_the_ip_header() -> None:
    link = Link(LinkSettings(corruption=0.2), seed=5)
    for number in range(1000):
        link.offer(PACKET, float(number))
    arrived = list(link.due(2000.0))
    assert len(arrived) == 1000
    changed = [
        (index, (byte ^ 0).bit_count()) for packet in arrived for index, byte in enumerate(packet) if byte
    ]  # PACKET is all zeros
    assert len(changed) == link.counters.corrupted
    assert 120 < len(changed) < 280
    assert {bits for _, bits in changed} == {1}
    assert min(index for index, _ in changed) >= 20
    assert max(index for index, _ in changed) > 1000


def test_duplication() -> None:
    link = Link(LinkSettings(duplication=0.2), seed=5)
    arrived = carry(link, 1000)
    assert sorted(set(arrived)) == list(range(1000))
    assert link.counters.duplicated == len(arrived) - 1000
    assert 120 < link.counters.duplicated < 280


def test_reordering() -> None:
    link = Link(LinkSettings(reordering=0.2), seed=5)
    arrived = carry(link, 1000, interval=0.001)
    assert sorted(arrived) == list(range(1000))
    assert arrived != list(range(1000))
    assert 120 < link.counters.reordered < 280


def test_other_faults_leave_the_losses_alone() -> None:
    alone = set(carry(Link(LinkSettings(loss=0.1), seed=5), 1000))
    beside = set(carry(Link(LinkSettings(loss=0.1, duplication=0.2, reordering=0.2), seed=5), 1000))
    assert beside == alone


def test_every_packet_is_accounted_for() -> None:
    link = Link(LinkSettings(loss=0.3, rate_mbit=1, queue_ms=5), seed=3)
    for number in range(100):
        link.offer(PACKET, number * 0.004)
    on_the_way = link.snapshot()["in_flight"]
    counters = link.counters
    assert counters.received == 100
    assert counters.lost > 0
    assert counters.queue_full > 0
    assert counters.lost + counters.queue_full + on_the_way == 100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", 1.5),
        ("loss", -0.1),
        ("delay_ms", -1),
        ("rate_mbit", 0),
        ("queue_ms", -1),
        ("corruption", 2),
        ("duplication", -1),
        ("reordering", 1.01),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be .*, not {value}"):
        LinkSettings(**settings)
