"""When to try again.

Three kinds of failure. Nobody answered, or a connection that stood was lost: tried again at short, steady intervals for
the first minutes, for whoever waits wants the tunnel back the moment the server or the network is, and a packet a
second burdens nobody. Answered and yet no connection: full jitter, at once the first time, then after a random time up
to a bound that doubles; a success in between, too short to count as health, puts the bound back to where this series of
attempts began and one step on. Refused, or a wrong certificate, which somebody has to mend: slowly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

STEADY = 0.7
"""Seconds: the longest pause after nobody has answered. Back within a second, with time for the handshake."""

STEADY_FOR = 300.0
"""Seconds that such pauses stay so short. What lasts longer is no restart and no change of network."""

BESIDE = 0.8
"""Seconds until another attempt joins those without an answer, on average. QUIC's own repetitions come after 1, 2 and 4
seconds (RFC 9002 section 6.2), so that a network that is back would have to wait for them."""

BESIDE_LATER = 10.0
"""Seconds: the same once ``STEADY_FOR`` is over."""

SETTLED_AFTER = 2.0
"""Seconds that a connection must have stood for its loss to be met at once. One that is lost sooner, again and again,
is not reopened without a pause."""

BASE = 0.5
"""Seconds: the bound of the first random delay."""

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
        self._silent_since: float | None = None  # when an outage began; None: there is none

    def succeeded(self) -> None:
        """The connection stands from now on."""
        self._healthy_since = self._clock()

    def failed(self, *, slow: bool = False, steady: bool = False) -> float:
        """An attempt failed, or the connection that stood was lost.

        Args:
            slow: Somebody has to mend it.
            steady: Nobody answered, or the connection had stood.

        Returns:
            Seconds until the next attempt.
        """
        at_once = self._silent_since is None
        if self._healthy_since is not None:
            stood = self._clock() - self._healthy_since
            if stood >= HEALTHY_AFTER:
                self._began = self._failures = self._refusals = 0
            else:
                self._began = self._failures = min(self._began + 1, self._failures)
            at_once = stood >= SETTLED_AFTER
            if at_once:
                self._silent_since = None
            self._healthy_since = None
        if slow:
            bound = min(SLOW_CAP, SLOW_BASE * 2.0 ** min(self._refusals, 16))
            self._refusals += 1
            # The upper half of the bound: jitter spreads clients that were all refused by one restart.
            return max(SLOW_BASE, bound / 2 + self._chance() * bound / 2)
        self._refusals = 0
        if steady and self._is_new_outage():
            return 0.0 if at_once else self._upper_half(STEADY)
        failures, self._failures = self._failures, self._failures + 1
        if failures == 0:
            return 0.0
        return self._chance() * min(CAP, BASE * 2.0 ** min(failures - 1, 16))

    def beside(self) -> float:
        """Seconds until another attempt is to join those that have had no answer."""
        return self._upper_half(BESIDE * 4 / 3 if self._is_new_outage() else BESIDE_LATER * 4 / 3)

    def _is_new_outage(self) -> bool:
        """Whether no more than some minutes have passed since nobody answered for the first time."""
        if self._healthy_since is not None:
            return True  # what stands is silent, and was not before
        if self._silent_since is None:
            self._silent_since = self._clock()
        return self._clock() - self._silent_since < STEADY_FOR

    def _upper_half(self, bound: float) -> float:
        return bound / 2 + self._chance() * bound / 2
