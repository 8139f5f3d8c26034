"""When to try again.

Failures that a moment may mend (no answer, connection lost) are retried with full jitter: at once the first time, then
after a random time up to a bound that doubles. A success in between, too short to count as health, puts the bound back
to where this series of attempts began and one step on, so that a connection that is lost again and again is not
reopened without a pause. Failures that somebody has to mend (refused, wrong certificate) are
retried slowly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

BASE = 0.5
"""Seconds: the bound of the first random delay. A server that restarts is back about then."""

CAP = 20.0
"""Seconds: no bound grows beyond it, so this is the longest an available server waits for its client."""

SLOW_BASE = 5.0
"""Seconds: the least delay after a failure that somebody has to mend."""

SLOW_CAP = 60.0
"""Seconds: the longest such delay."""

HEALTHY_AFTER = 60.0
"""Seconds that a connection must have stood for earlier failures to be forgotten."""


class Backoff:
    """Delays between attempts. One thread.

    Args:
        clock: Monotonic time in seconds.
        chance: A random number from 0 to 1.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._failures = 0  # that a moment may mend, in a row; after a success counted on from _began
        self._began = 0  # what _failures was when the latest series of attempts began
        self._refusals = 0  # in a row that somebody has to mend
        self._healthy_since: float | None = None

    def succeeded(self) -> None:
        """The connection stands from now on."""
        self._healthy_since = self._clock()

    def failed(self, *, slow: bool = False) -> float:
        """An attempt failed, or the connection that stood was lost.

        Args:
            slow: Somebody has to mend it.

        Returns:
            Seconds until the next attempt.
        """
        if self._healthy_since is not None:
            if self._clock() - self._healthy_since >= HEALTHY_AFTER:
                self._began = self._failures = self._refusals = 0
            else:
                self._began = self._failures = min(self._began + 1, self._failures)
            self._healthy_since = None
        if slow:
            bound = min(SLOW_CAP, SLOW_BASE * 2.0 ** min(self._refusals, 16))
            self._refusals += 1
            # The upper half of the bound: jitter spreads clients that were all refused by one restart.
            return max(SLOW_BASE, bound / 2 + self._chance() * bound / 2)
        self._refusals = 0
        failures, self._failures = self._failures, self._failures + 1
        if failures == 0:
            return 0.0
        return self._chance() * min(CAP, BASE * 2.0 ** min(failures - 1, 16))
