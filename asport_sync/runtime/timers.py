"""Timers of one thread: a heap of calls ordered by due time."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

LONGEST_WAIT = 86400.0
"""Seconds. poll and epoll take 32-bit milliseconds, so waits are limited to about 24 days; one wake-up per day costs
nothing."""

_MIN_SWEPT = 64  # timers; a smaller heap is not swept


class Timer:
    """A call that is due once, at ``when``. Created by ``Timers.after``."""

    __slots__ = ("_call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self._call: Callable[[], None] | None = call

    @property
    def pending(self) -> bool:
        """Whether the call has yet to be made."""
        return self._call is not None

    def cancel(self) -> None:
        """Cancels the call; no effect if it was made already. Only from the thread that owns the timers."""
        self._call = None

    def _fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Timers:
    """Timers in order of due time. One thread owns them and makes the calls; there is no locking.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._sweep_at = _MIN_SWEPT  # heap length at which cancelled timers are removed
        self._order = itertools.count()  # ties fire in the order they were set

    def __len__(self) -> int:
        """The number of timers in the heap, including cancelled ones."""
        return len(self._heap)

    def after(self, delay: float, call: Callable[[], None]) -> Timer:
        """Calls ``call()`` once ``delay`` seconds have passed."""
        return self.at(self._clock() + delay, call)

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Calls ``call()`` at a time of the clock."""
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        timer = Timer(when, call)
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def remaining(self) -> float | None:
        """Returns the seconds until the next call is due, 0 to ``LONGEST_WAIT``; None if there is none."""
        self._drop_cancelled()
        return min(LONGEST_WAIT, max(0.0, self._heap[0][0] - self._clock())) if self._heap else None

    def run(self) -> None:
        """Makes the calls that are due now. A timer that such a call sets with delay 0 fires in the next run."""
        now = self._clock()
        newer = next(self._order)
        while self._heap and self._heap[0][0] <= now and self._heap[0][1] < newer:
            # Removed before the call, one at a time, so that an exception does not lose other timers.
            heapq.heappop(self._heap)[2]._fire()

    def _sweep(self) -> None:
        """Removes cancelled timers before they are due, so that at most half of the heap is cancelled timers."""
        self._heap = [entry for entry in self._heap if entry[2].pending]
        heapq.heapify(self._heap)
        self._sweep_at = max(_MIN_SWEPT, 2 * len(self._heap))

    def _drop_cancelled(self) -> None:
        while self._heap and not self._heap[0][2].pending:
            heapq.heappop(self._heap)
