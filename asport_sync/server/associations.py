"""Association IDs of a connection, and how many associations each public port has. The pump thread."""

from __future__ import annotations

import collections
from typing import Generic, TypeVar

Holder = TypeVar("Holder")
LAST_ASSOCIATION = 65535
"""The ID has 16 bits. 0 is left out: an unset field must not name an association."""


class AssociationTable:
    """The IDs in use. One thread.

    IDs are assigned in ascending order from 1 and start over after the last, so that a freed one is reused as late as
    possible: packets of its previous association may still be in flight.

    Args:
        maximum: Maximum number of associations at the same time.
    """

    def __init__(self, maximum: int = LAST_ASSOCIATION) -> None:
        self._maximum = min(maximum, LAST_ASSOCIATION)
        self._taken: set[int] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, association: int) -> bool:
        return association in self._taken

    @property
    def full(self) -> bool:
        """Whether the maximum is reached."""
        return len(self._taken) >= self._maximum

    def allocate(self) -> int | None:
        """Takes the next free ID; returns None if the maximum is reached."""
        if self.full:
            return None
        while True:
            self._last = self._last % LAST_ASSOCIATION + 1
            if self._last not in self._taken:
                self._taken.add(self._last)
                return self._last

    def release(self, association: int) -> None:
        """Frees an ID. Does nothing if it is not in use."""
        self._taken.discard(association)


class SharedBudget(Generic[Holder]):
    """Associations that several ports share. One thread.

    While enough are free, a port may take any number. Once all are in use, no port below its fair share is refused.

    Args:
        maximum: Maximum number of associations of all ports.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._total = 0
        self._held: collections.Counter[Holder] = collections.Counter()

    def __len__(self) -> int:
        return self._total

    def take(self, holder: Holder) -> None:
        """Counts one more association of the holder."""
        self._held[holder] += 1
        self._total += 1

    def give_back(self, holder: Holder, count: int = 1) -> None:
        """Counts ``count`` fewer associations of the holder."""
        self._held[holder] -= count
        self._total -= count
        if self._held[holder] == 0:
            del self._held[holder]

    def drop(self, holder: Holder) -> None:
        """Removes all associations of the holder."""
        self._total -= self._held.pop(holder, 0)

    def excess(self, holder: Holder) -> int:
        """Returns how many more than its fair share the holder has; 0: none."""
        return max(0, self._held.get(holder, 0) - self.maximum // max(1, len(self._held)))

    def victim(self, holder: Holder) -> Holder | None:
        """Returns the holder whose associations to evict before this one takes another; None: not necessary.

        It is the same holder if it has its fair share already, else the one with the most.
        """
        if self._total < self.maximum:
            return None
        held = self._held.get(holder, 0)
        if held >= self.maximum // (len(self._held) + (held == 0)):
            return holder
        return max(self._held, key=self._held.__getitem__)
