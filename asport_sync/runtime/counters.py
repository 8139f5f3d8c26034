"""Counters of events and drops, by reason."""

from __future__ import annotations

import threading


class Counters:
    """Named counters that only increase. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _values
        self._values: dict[str, int] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Adds ``amount`` to the counter of this name."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount

    def snapshot(self) -> dict[str, int]:
        """Returns every non-zero counter by name; a consistent snapshot."""
        with self._lock:
            return dict(sorted(self._values.items()))
