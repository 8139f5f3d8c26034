"""Counters for what is tested alone, without a host."""

from __future__ import annotations

import collections

from asport_sync.host.stats import COUNTER_NAMES


class FakeCounters:
    """Notes what is counted. Knows the registered names, and forgets those at zero. Any thread.

    Attributes:
        added: Names and amounts, in order.
    """

    def __init__(self) -> None:
        self.added: list[tuple[str, int]] = []

    def add(self, name: str, amount: int = 1) -> None:
        if name not in COUNTER_NAMES:
            raise KeyError(name)
        self.added.append((name, amount))

    def snapshot(self) -> dict[str, int]:
        counted: collections.Counter[str] = collections.Counter()
        for name, amount in list(self.added):
            counted[name] += amount
        return {name: count for name, count in counted.items() if count}

    def __getitem__(self, name: str) -> int:
        """The count of a registered name, 0 included."""
        if name not in COUNTER_NAMES:
            raise KeyError(name)
        return self.snapshot().get(name, 0)
