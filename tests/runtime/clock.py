"""A clock that goes when the test says so."""

from __future__ import annotations


class VirtualClock:
    """Seconds since it was made, as a callable like ``time.monotonic``."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
