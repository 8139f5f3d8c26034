from __future__ import annotations

import pytest

from asport_sync.runtime.timers import LONGEST_WAIT, Timers
from tests.runtime.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def timers(clock: VirtualClock) -> Timers:
    return Timers(clock)


def test_timers_fire_in_the_order_they_are_due(timers: Timers, clock: VirtualClock) -> None:
    fired: list[str] = []
    for name, delay in (("c", 3.0), ("a", 1.0), ("b", 1.0)):
        timers.after(delay, lambda name=name: fired.append(name))  # type: ignore[misc]
    timers.run()
    assert fired == []
    assert timers.remaining() == 1
    clock.advance(1)
    assert timers.remaining() == 0
    timers.run()
    assert fired == ["a", "b"]
    assert timers.remaining() == 2
    clock.advance(10)
    timers.run()
    assert fired == ["a", "b", "c"]
    assert timers.remaining() is None


def test_a_cancelled_timer_does_not_fire_nor_wake(timers: Timers, clock: VirtualClock) -> None:
    fired: list[str] = []
    timer = timers.after(1, lambda: fired.append("cancelled"))
    timers.after(5, lambda: fired.append("other"))
    assert timer.pending
    timer.cancel()
    timer.cancel()
    assert not timer.pending
    assert timers.remaining() == 5
    clock.advance(5)
    timers.run()
    assert fired == ["other"]


def test_a_timer_may_cancel_another_that_is_due(timers: Timers) -> None:
    fired: list[str] = []
    timers.after(0, lambda: second.cancel())
    second = timers.after(0, lambda: fired.append("second"))
    timers.run()
    assert fired == []


def test_a_timer_set_by_a_timer_waits_for_the_next_run(timers: Timers) -> None:
    fired: list[int] = []

    def again() -> None:
        fired.append(len(fired))
        timers.after(0, again)

    timers.after(0, again)
    timers.run()
    assert fired == [0]
    timers.run()
    assert fired == [0, 1]


def test_a_timer_that_raises_costs_no_other_its_turn(timers: Timers) -> None:
    fired: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    timers.after(0, fail)
    timers.after(0, lambda: fired.append("other"))
    with pytest.raises(ZeroDivisionError):
        timers.run()
    timers.run()
    assert fired == ["other"]


def test_nobody_is_told_to_wait_longer_than_the_system_can_count(clock: VirtualClock, timers: Timers) -> None:
    fired: list[int] = []
    timers.after(100 * LONGEST_WAIT, lambda: fired.append(1))
    for _ in range(100):
        assert fired == []
        assert timers.remaining() == LONGEST_WAIT
        clock.advance(LONGEST_WAIT)
        timers.run()
    assert fired == [1]


def test_cancelled_timers_do_not_pile_up(timers: Timers, clock: VirtualClock) -> None:
    fired: list[int] = []
    for number in range(1000):
        timers.after(3600 + number, lambda number=number: fired.append(number)).cancel()  # type: ignore[misc]
        if number % 100 == 0:
            timers.after(7200, lambda number=number: fired.append(number))  # type: ignore[misc]
        assert len(timers) <= 64
    clock.advance(7200)
    timers.run()
    assert fired == list(range(0, 1000, 100))
    assert len(timers) == 0
