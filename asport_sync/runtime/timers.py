"""Timers of one thread: a heap of calls that are due at a time."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

LONGEST_WAIT = 86400.0
"""Seconds. poll and epoll count milliseconds in 32 bits, so that 24 days are too many; waking up once a day is not."""

_LEAST_SWEPT = 64  # timers; fewer are not worth a look


class Timer:
    """A call that is due once, at ``when``. Made by ``Timers.after``."""

    __slots__ = ("_call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self._call: Callable[[], None] | None = call

    @property
    def pending(self) -> bool:
        """Whether the call is still to come."""
        return self._call is not None

    def cancel(self) -> None:
        """The call won't be made. Does nothing where it has been made already. The owner of the timers only."""
        self._call = None

    def _fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Timers:
    """Timers in the order they are due. One thread owns them and makes the calls; nothing here locks.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._sweep_at = _LEAST_SWEPT  # length of the heap at which those that were cancelled are looked for
        self._order = itertools.count()  # timers due at the same time fire in the order they were set

    def __len__(self) -> int:
        """Timers that are kept, cancelled ones among them."""
        return len(self._heap)

    def after(self, delay: float, call: Callable[[], None]) -> Timer:
        """Calls ``call()`` once ``delay`` seconds have passed."""
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        timer = Timer(self._clock() + delay, call)
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def remaining(self) -> float | None:
        """Seconds to wait until the next call is due, from 0 to ``LONGEST_WAIT``; None where there is none."""
        self._drop_cancelled()
        return min(LONGEST_WAIT, max(0.0, self._heap[0][0] - self._clock())) if self._heap else None

    def run(self) -> None:
        """Makes the calls that are due now. One that sets a timer for "at once" is not followed in the same run."""
        now = self._clock()
        newer = next(self._order)
        while self._heap and self._heap[0][0] <= now and self._heap[0][1] < newer:
            # Taken out first, one at a time: a call that raises costs no other timer its turn.
            heapq.heappop(self._heap)[2]._fire()

    def _sweep(self) -> None:
        """Forgets cancelled timers that are due much later: the heap is never more than twice what is pending."""
        self._heap = [entry for entry in self._heap if entry[2].pending]
        heapq.heapify(self._heap)
        self._sweep_at = max(_LEAST_SWEPT, 2 * len(self._heap))

    def _drop_cancelled(self) -> None:
        while self._heap and not self._heap[0][2].pending:
            heapq.heappop(self._heap)
