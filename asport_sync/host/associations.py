"""Which UDP associations of a connection end: idle ones, and some to make room for others. The pump thread."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from asport_sync.engine import Connection, SocketAddress
from asport_sync.errors import GoneError
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.timers import Timer

Holder = TypeVar("Holder")

_ENDED_AT_ONCE = 256  # associations; each costs a Dissociate, which the peer must keep up with
_PAUSE_BETWEEN_ENDS = 0.05  # seconds until the next of these are ended
# Seconds without traffic after which an association may be evicted: longer than a service takes to answer and a visitor
# to repeat a request, and short enough for thousands of new associations per second.
_EVICTABLE_AFTER = 1.0
_EVICTED_AT_ONCE = 64  # maximum associations evicted at once, so that many new sources don't cost one search each
_EVICTED_SHARE = 64  # and at most one in 64 of all
# Maximum number of associations per second, of a port or of a client, that need an eviction or whose address has its
# maximum already: each costs Python a tenth of a millisecond on a server and more on a client, time that a flood must
# not take from others.
_MAX_NEW_PER_SECOND = 2500
NONE_TO_EVICT = f"none was idle for {_EVICTABLE_AFTER:g} s, or {_MAX_NEW_PER_SECOND} were evicted in the last second"
"""Why nothing was evicted, for log lines."""
# Seconds after a refusal for which the engine drops further requests without reporting them: many sources must not keep
# Python busy with refusals.
REFUSAL_LASTS = 0.1
MIN_EXPIRY_PERIOD = 1.0
"""Minimum number of seconds between checks for idle associations."""


DRAINED_AFTER = 10.0
"""Seconds without traffic after which an association ends while its connection is drained: visitors of games and calls
send more often, and those of single questions have their answers."""


def expiry_period(timeout: float) -> float:
    """Returns the seconds between checks for idle associations.

    An association outlives its timeout by at most a tenth of it or ``MIN_EXPIRY_PERIOD``, whichever is longer.
    """
    return max(MIN_EXPIRY_PERIOD, timeout / 10)


class IdleCheck:
    """Checks periodically for idle associations of a connection."""

    def __init__(
        self, pump: SelectorThread, connection: Connection, timeout: float, expired: Callable[[int], None]
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._timeout = timeout
        self._expired = expired
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Begins to check, or restarts the period."""
        self._check_in(expiry_period(self._timeout))

    def end(self) -> None:
        """Ends the checks. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def set_timeout(self, timeout: float) -> None:
        """Lets associations end after another time."""
        self._timeout = timeout
        if self._timer is not None:
            self.begin()

    def _check_in(self, delay: float) -> None:
        self.end()
        self._timer = self._pump.after(delay, self._check)

    def _check(self) -> None:
        self.begin()
        try:
            idle = self._connection.idle_associations(self._timeout, _ENDED_AT_ONCE)
            for association in idle:
                self._expired(association)
        except GoneError:
            self.end()
        else:
            if len(idle) == _ENDED_AT_ONCE:
                self._check_in(_PAUSE_BETWEEN_ENDS)


class Trimming:
    """Ends associations that the rules for visitors no longer permit, and those above a lowered maximum.

    Args:
        pump: The thread.
        connection: The connection of the associations.
        evictions: Ends those above the maximum.
        excess: Returns how many associations there are above the maximum.
        refused: Called for each association that the rules no longer permit.
    """

    def __init__(
        self,
        pump: SelectorThread,
        connection: Connection,
        evictions: Evictions,
        excess: Callable[[], int],
        refused: Callable[[int], None],
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._evictions = evictions
        self._excess = excess
        self._refused = refused
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Ends some at once, and the others in a while.

        Raises:
            GoneError: The connection is over.
        """
        self.end()
        refused = self._connection.refused_associations(_ENDED_AT_ONCE)
        for association in refused:
            self._refused(association)
        if (excess := self._excess()) > 0:
            self._evictions.trim(excess)
        if len(refused) == _ENDED_AT_ONCE or self._excess() > 0:
            self._timer = self._pump.after(_PAUSE_BETWEEN_ENDS, self._go_on)

    def end(self) -> None:
        """Ends nothing more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _go_on(self) -> None:
        with contextlib.suppress(GoneError):
            self.begin()


class Evictions:
    """Evicts associations of a connection to make room for new ones. The pump thread.

    Args:
        connection: The connection of the associations.
        max_associations: Maximum number of associations.
        shares: The number of associations of each source address.
        counters: Counts evictions.
        end: Called for each association to end.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        max_associations: int,
        shares: SourceShares,
        counters: Counters,
        end: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._allowed = float(_MAX_NEW_PER_SECOND)  # new associations allowed now
        self._allowed_at = clock()
        self._connection = connection
        self._shares = shares
        self._counters = counters
        self._end = end
        self.resize(max_associations)

    def resize(self, max_associations: int) -> None:
        """Sets another maximum number of associations."""
        self._at_once = max(1, min(_EVICTED_AT_ONCE, max_associations // _EVICTED_SHARE))

    def allows(self, source: SocketAddress) -> bool:
        """Whether Python has time for another association of this address; always true below the address's maximum."""
        return not self._shares.full(source[0]) or self._take(1) == 1

    def make_room(self, source: SocketAddress) -> bool:
        """Makes room for an association of this address; returns whether it could.

        If the address is below its maximum and another exceeds it, associations of the latter are evicted, idle or not.
        """
        if self._shares.full(source[0]):
            return self._evict(source, _EVICTABLE_AFTER, self._at_once) > 0
        if self._shares.over is not None:
            return self._evict((self._shares.over, 0), 0.0, self._at_once) > 0
        taken = self._take(self._at_once)
        evicted = self._evict(None, _EVICTABLE_AFTER, taken) if taken else 0
        self._allowed += taken - evicted
        return evicted > 0

    def _take(self, wanted: int) -> int:
        """Takes up to ``wanted`` from the allowance of a second; returns how many."""
        now = self._clock()
        self._allowed = min(self._allowed + (now - self._allowed_at) * _MAX_NEW_PER_SECOND, _MAX_NEW_PER_SECOND)
        self._allowed_at = now
        taken = min(wanted, int(self._allowed))
        self._allowed -= taken
        return taken

    def evict(self, maximum: int) -> None:
        """Ends up to ``maximum`` associations, idle or not."""
        self._evict(None, 0.0, min(maximum, self._at_once))

    def trim(self, excess: int) -> None:
        """Ends associations above a lowered maximum, idle or not; not more than the peer can keep up with."""
        self._evict(None, 0.0, min(excess, _ENDED_AT_ONCE))

    def _evict(self, host: SocketAddress | None, idle: float, maximum: int) -> int:
        """Ends up to ``maximum`` associations of a host, or of any, that were idle for so long; returns how many."""
        evicted = self._connection.idle_associations(idle, maximum, host)
        for association in evicted:
            self._end(association)
        self._counters.add("udp_associations_evicted", len(evicted))
        return len(evicted)


class SourceShares:
    """Counts the associations of each source address, so that none takes all. One thread.

    Args:
        maximum: Maximum number of associations of one source address while others want some; at least half of all, so
            that only one address can exceed it.

    Attributes:
        over: The address that exceeds the maximum; None: there is none.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.over: str | None = None
        self._taken: collections.Counter[str] = collections.Counter()
        self._source: dict[Hashable, str] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def resize(self, maximum: int) -> None:
        """Sets another maximum. If several addresses exceed it, ``over`` is one of them."""
        self._maximum = maximum
        self.over = next((ip for ip, taken in self._taken.items() if taken > maximum), None)

    def clear(self) -> None:
        """Counts none any more."""
        self._taken.clear()
        self._source.clear()
        self.over = None

    def full(self, ip: str) -> bool:
        """Whether this address has reached its maximum."""
        return self._taken[ip] >= self._maximum

    def take(self, association: Hashable, ip: str) -> None:
        """Counts an association of this address."""
        self._source[association] = ip
        self._taken[ip] += 1
        if self._taken[ip] > self._maximum:
            self.over = ip

    def give_back(self, association: Hashable) -> None:
        """Stops counting an association. Does nothing if it is not counted."""
        ip = self._source.pop(association, None)
        if ip is not None:
            self._taken[ip] -= 1
            if ip == self.over and self._taken[ip] <= self._maximum:
                self.over = None
            if self._taken[ip] == 0:
                del self._taken[ip]


class SharedBudget(Generic[Holder]):
    """Associations that several public ports, or connections to servers, share. One thread.

    While enough are free, each may take any number. Once all are in use, none below its fair share is refused.

    Args:
        maximum: Maximum number of associations of all.
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
