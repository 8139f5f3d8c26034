"""Counters of events and drops, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Protocol


class Counters(Protocol):
    """Named counters that only increase. Any thread.

    Everything that counts takes this, so that a test can pass a fake.
    """

    def add(self, name: str, amount: int = 1) -> None:
        """Adds ``amount`` to the counter of this name.

        Raises:
            KeyError: No counter has this name.
        """

    def snapshot(self) -> Mapping[str, int]:
        """Returns the counters by name; a consistent snapshot."""


class CounterTable:
    """A fixed set of counters that start at zero. Any thread.

    Args:
        names: The names of all counters.
        total: Counters of which these are a part: they count the same, too.
    """

    def __init__(self, names: Iterable[str], total: Counters | None = None) -> None:
        self._total = total
        self._lock = threading.Lock()  # guards the values; the names never change
        self._values = dict.fromkeys(names, 0)

    def add(self, name: str, amount: int = 1) -> None:
        """Adds ``amount`` to the counter of this name.

        Raises:
            KeyError: No counter has this name.
        """
        with self._lock:
            self._values[name] += amount
        if self._total is not None:
            self._total.add(name, amount)

    def snapshot(self) -> dict[str, int]:
        """Returns all counters by name, also those at zero; a consistent snapshot."""
        with self._lock:
            return dict(self._values)
