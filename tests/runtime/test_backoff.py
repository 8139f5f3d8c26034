from __future__ import annotations

import pytest

from asport_sync.runtime.backoff import (
    CAP,
    HEALTHY_AFTER,
    PARALLEL,
    PARALLEL_LATER,
    SETTLED_AFTER,
    SLOW_BASE,
    SLOW_CAP,
    STEADY,
    STEADY_FOR,
    Backoff,
)
from tests.runtime.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def test_the_first_retry_is_at_once_and_the_bound_doubles(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    assert [backoff.failed() for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, CAP, CAP]


def test_the_delay_is_anywhere_below_the_bound(clock: VirtualClock) -> None:
    chances = iter([0.0, 0.25, 0.5])
    backoff = Backoff(clock, lambda: next(chances))
    assert [backoff.failed() for _ in range(4)] == [0, 0, 0.25, 1]


def test_a_refusal_is_retried_slowly(clock: VirtualClock) -> None:
    for chance in (0.0, 1.0):
        backoff = Backoff(clock, lambda chance=chance: chance)  # type: ignore[misc]
        delays = [backoff.failed(slow=True) for _ in range(8)]
        assert delays == sorted(delays)
        assert delays[0] == SLOW_BASE
        assert SLOW_CAP / 2 <= delays[-1] <= SLOW_CAP


def test_health_makes_earlier_failures_forgotten(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    for _ in range(5):
        backoff.failed()
    backoff.succeeded()
    clock.advance(HEALTHY_AFTER)
    assert backoff.failed() == 0


def test_after_a_short_success_the_next_series_begins_one_step_higher(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    for _ in range(5):
        backoff.failed()
    for first, second in ((0.5, 1), (1, 2), (2, 4)):
        backoff.succeeded()
        clock.advance(HEALTHY_AFTER - 1)
        assert [backoff.failed(), backoff.failed()] == [first, second]
    backoff.succeeded()
    clock.advance(HEALTHY_AFTER)
    assert [backoff.failed(), backoff.failed()] == [0, 0.5]


def test_a_connection_that_is_lost_again_and_again_is_reopened_ever_later(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    delays = []
    for _ in range(9):
        backoff.succeeded()
        delays.append(backoff.failed())
    assert delays == [0, 0.5, 1, 2, 4, 8, 16, CAP, CAP]


def test_a_short_success_does_not_make_refusals_forgotten(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    assert [backoff.failed(slow=True), backoff.failed(slow=True)] == [SLOW_BASE, 2 * SLOW_BASE]
    backoff.succeeded()
    assert backoff.failed(slow=True) == 4 * SLOW_BASE


def test_the_time_without_a_connection_is_no_health(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    backoff.succeeded()
    backoff.failed()
    clock.advance(HEALTHY_AFTER)
    assert backoff.failed() == 0.5


def test_many_failures_do_not_overflow(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    assert [backoff.failed() for _ in range(5000)][-1] == CAP
    assert [backoff.failed(slow=True) for _ in range(5000)][-1] == SLOW_CAP


def test_silence_is_met_steadily_for_some_minutes(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    assert backoff.failed(steady=True) == 0
    for _ in range(100):
        clock.advance(STEADY_FOR / 101)
        assert backoff.failed(steady=True) == STEADY
    clock.advance(STEADY_FOR / 101)
    assert [backoff.failed(steady=True) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, CAP, CAP]


def test_steady_pauses_have_jitter(clock: VirtualClock) -> None:
    chances = iter([0.0, 0.5, 0.0, 1.0])
    backoff = Backoff(clock, lambda: next(chances))
    backoff.failed(steady=True)
    assert [backoff.failed(steady=True) for _ in range(2)] == pytest.approx([STEADY / 2, STEADY * 3 / 4])
    assert [backoff.parallel() for _ in range(2)] == pytest.approx([PARALLEL * 2 / 3, PARALLEL * 4 / 3])


def test_attempts_join_each_other_less_often_later(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 0.5)
    assert backoff.parallel() == pytest.approx(PARALLEL)
    clock.advance(STEADY_FOR)
    assert backoff.parallel() == pytest.approx(PARALLEL_LATER)
    backoff.succeeded()
    assert backoff.parallel() == pytest.approx(PARALLEL)


def test_the_loss_of_a_connection_that_has_stood_is_met_at_once(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    for _ in range(3):
        backoff.succeeded()
        clock.advance(SETTLED_AFTER)
        assert backoff.failed(steady=True) == 0
        assert backoff.failed(steady=True) == STEADY
    backoff.succeeded()
    clock.advance(SETTLED_AFTER / 2)
    assert backoff.failed(steady=True) == STEADY


def test_an_outage_of_long_ago_is_forgotten(clock: VirtualClock) -> None:
    backoff = Backoff(clock, lambda: 1.0)
    backoff.failed(steady=True)
    backoff.succeeded()
    clock.advance(10 * STEADY_FOR)
    assert [backoff.failed(steady=True), backoff.failed(steady=True)] == [0, STEADY]
