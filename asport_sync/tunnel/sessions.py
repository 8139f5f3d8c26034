"""Association ids of one connection, as the server chooses them, and who has how many."""

from __future__ import annotations

import collections
from typing import Generic, TypeVar

Holder = TypeVar("Holder")

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

    @property
    def full(self) -> bool:
        """Whether ``most`` are taken."""
        return len(self._taken) >= self._most

    def allocate(self) -> int | None:
        """Takes the next free id; None where ``most`` are taken."""
        if self.full:
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
    """How many associations each source address has, so that none keeps them from others. One thread.

    Args:
        most: Associations of one source address, where others want some as well; at least half of all, so that no two
            can have more.

    Attributes:
        over: The address that has more than that; None: there is none.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.over: str | None = None
        self._taken: collections.Counter[str] = collections.Counter()
        self._source: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def full(self, ip: str) -> bool:
        """Whether this address has as many as it may where others want some."""
        return self._taken[ip] >= self._most

    def take(self, association: int, ip: str) -> None:
        """The association is this address's."""
        self._source[association] = ip
        self._taken[ip] += 1
        if self._taken[ip] > self._most:
            self.over = ip

    def give_back(self, association: int) -> None:
        """The association is over. Does nothing where it is nobody's."""
        ip = self._source.pop(association, None)
        if ip is not None:
            self._taken[ip] -= 1
            if ip == self.over and self._taken[ip] <= self._most:
                self.over = None
            if self._taken[ip] == 0:
                del self._taken[ip]


class SharedBudget(Generic[Holder]):
    """Associations that several ports have together. One thread.

    While there are enough, each port may have as many as it likes; then none that has less than its fair share goes
    without.

    Args:
        most: Associations of all ports.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._total = 0
        self._held: collections.Counter[Holder] = collections.Counter()

    def __len__(self) -> int:
        return self._total

    def take(self, holder: Holder) -> None:
        """The holder has one more."""
        self._held[holder] += 1
        self._total += 1

    def give_back(self, holder: Holder, count: int = 1) -> None:
        """The holder has so many less."""
        self._held[holder] -= count
        self._total -= count
        if self._held[holder] == 0:
            del self._held[holder]

    def drop(self, holder: Holder) -> None:
        """The holder has none any more."""
        self._total -= self._held.pop(holder, 0)

    def excess(self, holder: Holder) -> int:
        """How many more than its fair share the holder has; 0: none."""
        return max(0, self._held.get(holder, 0) - self.most // max(1, len(self._held)))

    def giver(self, holder: Holder) -> Holder | None:
        """Who has to give some up before this one may have another: None, the same one, or one that has more."""
        if self._total < self.most:
            return None
        held = self._held.get(holder, 0)
        if held >= self.most // (len(self._held) + (held == 0)):
            return holder
        return max(self._held, key=self._held.__getitem__)
