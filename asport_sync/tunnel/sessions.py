"""Association ids of one connection, as the server chooses them, and who has how many."""

from __future__ import annotations

import collections

LAST_ASSOCIATION = 65535
"""The id has 16 bits. 0 is left out: an unset field must not name an association."""


class AssociationTable:
    """Which ids are taken. One thread.

    Ids are given out in ascending order from 1 and start over after the last, so that a freed one comes back as late as
    possible: packets for its former owner may still be on their way.

    Args:
        most: Associations at the same time.
    """

    def __init__(self, most: int = LAST_ASSOCIATION) -> None:
        self._most = min(most, LAST_ASSOCIATION)
        self._taken: set[int] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, association: int) -> bool:
        return association in self._taken

    def allocate(self) -> int | None:
        """Takes the next free id; None where ``most`` are taken."""
        if len(self._taken) >= self._most:
            return None
        while True:
            self._last = self._last % LAST_ASSOCIATION + 1
            if self._last not in self._taken:
                self._taken.add(self._last)
                return self._last

    def release(self, association: int) -> None:
        """Frees an id. Does nothing where it isn't taken."""
        self._taken.discard(association)


class SourceShares:
    """How many associations each source address has, so that none takes them all. One thread.

    Args:
        most: Associations of one source address at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: collections.Counter[str] = collections.Counter()
        self._source: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def full(self, ip: str) -> bool:
        """Whether this address has as many as it may."""
        return self._taken[ip] >= self._most

    def take(self, association: int, ip: str) -> None:
        """The association is this address's."""
        self._source[association] = ip
        self._taken[ip] += 1

    def give_back(self, association: int) -> None:
        """The association is over. Does nothing where it is nobody's."""
        ip = self._source.pop(association, None)
        if ip is not None:
            self._taken[ip] -= 1
            if self._taken[ip] == 0:
                del self._taken[ip]
