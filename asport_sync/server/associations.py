"""Association IDs of a connection. The pump thread."""

from __future__ import annotations

from collections.abc import Iterator

LAST_ASSOCIATION = 65535
"""The ID has 16 bits. 0 is left out: an unset field must not name an association."""


class AssociationTable:
    """The IDs in use. One thread.

    IDs are assigned in ascending order from 1 and start over after the last, so that a freed one is reused as late as
    possible: packets of its previous association may still be in flight.

    Args:
        maximum: Maximum number of associations at the same time; at most ``LAST_ASSOCIATION``.

    Attributes:
        maximum: As given. If it is lowered, there may be more for a while.
    """

    def __init__(self, maximum: int = LAST_ASSOCIATION) -> None:
        self.maximum = maximum
        self._taken: set[int] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._taken)

    def __iter__(self) -> Iterator[int]:
        return iter(self._taken)

    def __contains__(self, association: int) -> bool:
        return association in self._taken

    @property
    def full(self) -> bool:
        """Whether the maximum is reached."""
        return len(self._taken) >= self.maximum

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
