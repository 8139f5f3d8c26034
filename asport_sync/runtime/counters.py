"""Counting what happened and what was dropped, by reason."""

from __future__ import annotations

import threading


class Counters:
    """Named counters that only grow. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _values
        self._values: dict[str, int] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Counts ``amount`` more events of this name."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount

    def snapshot(self) -> dict[str, int]:
        """Every counter that isn't zero, by name, as of one moment."""
        with self._lock:
            return dict(sorted(self._values.items()))
