"""Back-off: when to try again.

There are three kinds of failure:

* No answer, or an established connection was lost: retried at short, steady intervals for the first minutes, so that
  the tunnel is back as soon as the server or the network is; one packet per second is no burden.
* An answer but no connection: full jitter. The first retry is immediate, later ones follow after a random time up to a
  bound that doubles. A connection too short to count as healthy resets the bound to one step above where this series of
  attempts began.
* A refusal or a wrong certificate, which needs human action: retried slowly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

STEADY = 0.7
"""Seconds: maximum pause after an attempt without an answer. The tunnel is back within a second, including the
handshake."""

STEADY_FOR = 300.0
"""Seconds that pauses stay that short. A longer outage is neither a restart nor a change of network."""

PARALLEL = 0.8
"""Seconds until another attempt is started in parallel to those without an answer, on average. QUIC's own
retransmissions come after 1, 2 and 4 seconds (RFC 9002 section 6.2), so a network that is back would have to wait for
them."""

PARALLEL_LATER = 10.0
"""Seconds: the same after ``STEADY_FOR``."""

SETTLED_AFTER = 2.0
"""Seconds that a connection must have lasted for its loss to be followed by an immediate attempt. A connection that is
repeatedly lost sooner is not reopened without a pause."""

BASE = 0.5
"""Seconds: the bound of the first random delay."""

CAP = 20.0
"""Seconds: upper limit of the bound, and thus the longest time that an available server waits for its client."""

SLOW_BASE = 5.0
"""Seconds: minimum delay after a failure that needs human action."""

SLOW_CAP = 60.0
"""Seconds: maximum of such a delay."""

HEALTHY_AFTER = 60.0
"""Seconds that a connection must have lasted for earlier failures to be forgotten."""


class Backoff:
    """Computes delays between attempts. One thread.

    Args:
        clock: Monotonic time in seconds.
        chance: A random number from 0 to 1.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._failures = 0  # consecutive transient failures; after a success counted from _began
        self._began = 0  # _failures when the latest series of attempts began
        self._refusals = 0  # consecutive failures that need human action
        self._healthy_since: float | None = None
        self._silent_since: float | None = None  # start of the current outage; None: no outage

    def succeeded(self) -> None:
        """Records that the connection is established."""
        self._healthy_since = self._clock()

    def failed(self, *, slow: bool = False, steady: bool = False) -> float:
        """Records that an attempt failed or an established connection was lost.

        Args:
            slow: The failure needs human action.
            steady: There was no answer, or the connection had been established.

        Returns:
            Seconds until the next attempt.
        """
        at_once = self._silent_since is None
        if self._healthy_since is not None:
            lasted = self._clock() - self._healthy_since
            if lasted >= HEALTHY_AFTER:
                self._began = self._failures = self._refusals = 0
            else:
                self._began = self._failures = min(self._began + 1, self._failures)
            at_once = lasted >= SETTLED_AFTER
            if at_once:
                self._silent_since = None
            self._healthy_since = None
        if slow:
            bound = min(SLOW_CAP, SLOW_BASE * 2.0 ** min(self._refusals, 16))
            self._refusals += 1
            # The upper half of the bound: jitter spreads clients that one restart refused together.
            return max(SLOW_BASE, bound / 2 + self._chance() * bound / 2)
        self._refusals = 0
        if steady and self._is_new_outage():
            return 0.0 if at_once else self._upper_half(STEADY)
        failures, self._failures = self._failures, self._failures + 1
        if failures == 0:
            return 0.0
        return self._chance() * min(CAP, BASE * 2.0 ** min(failures - 1, 16))

    def parallel(self) -> float:
        """Returns the seconds until another attempt is started in parallel to those without an answer."""
        return self._upper_half(PARALLEL * 4 / 3 if self._is_new_outage() else PARALLEL_LATER * 4 / 3)

    def _is_new_outage(self) -> bool:
        """Returns whether the current outage began less than ``STEADY_FOR`` ago; starts one if there is none."""
        if self._healthy_since is not None:
            return True  # the established connection has just become silent
        if self._silent_since is None:
            self._silent_since = self._clock()
        return self._clock() - self._silent_since < STEADY_FOR

    def _upper_half(self, bound: float) -> float:
        return bound / 2 + self._chance() * bound / 2
