"""The UDP side of a public port: each source becomes an association. The pump thread.

The engine forwards datagrams. Python is involved only in the first datagram of each source.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from asport_sync.engine import Connection, SocketAddress, UdpSocket
from asport_sync.errors import EngineError, GoneError
from asport_sync.host.associations import (
    DRAINED_AFTER,
    NONE_TO_EVICT,
    REFUSAL_LASTS,
    Evictions,
    IdleCheck,
    SharedBudget,
    SourceShares,
    Trimming,
)
from asport_sync.host.udp_reader import UdpReader
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.timers import Timer
from asport_sync.server.associations import LAST_ASSOCIATION, AssociationTable
from asport_sync.wire import Dissociate, encode

_OPEN_TRIES = 60  # maximum number of attempts to open a public socket
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, after which a lack of descriptors or memory counts as permanent
_LINE_PERIOD = 60.0  # seconds between two log lines about the same problem of a tunnel
MAX_ASSOCIATIONS = 262144
"""Maximum UDP associations of all public ports of a server: four times the number of IDs; 0.6 KiB each, 160 MiB."""


class PortAssociations:
    """What the associations of one public port share: those of one client, or of all that share the port.

    The pump thread.

    Args:
        maximum: Maximum number of associations.

    Attributes:
        maximum: As given. If it is lowered, there may be more for a while.
        members: The UDP side of each client.
        shares: The number of associations of each source address.
    """

    def __init__(self, maximum: int = LAST_ASSOCIATION) -> None:
        self.maximum = maximum
        self.members: list[PublicUdp] = []
        self.shares = SourceShares(_max_of_one_source(maximum))

    def __len__(self) -> int:
        return sum(len(member.associations) for member in self.members)

    @property
    def full(self) -> bool:
        """Whether the maximum is reached."""
        return len(self) >= self.maximum

    def enter(self, member: PublicUdp, maximum: int) -> None:
        """Adds a client, whose maximum is the latest. Idempotent."""
        if member not in self.members:
            self.members.append(member)
            self.resize(maximum)

    def leave(self, member: PublicUdp) -> None:
        """Removes a client and its associations."""
        self.members.remove(member)
        if self.members:
            for association in member.associations:
                self.shares.give_back((member, association))
        else:
            self.shares.clear()

    def resize(self, maximum: int) -> None:
        """Sets another maximum."""
        if maximum != self.maximum:
            self.maximum = maximum
            self.shares.resize(_max_of_one_source(maximum))

    def excess(self, member: PublicUdp) -> int:
        """Returns how many associations this member has to end if there are more than the maximum."""
        above = len(member.associations) - self.maximum // max(1, len(self.members))
        return max(0, min(len(self) - self.maximum, above))


class PublicUdp:
    """The UDP side of a client's public port: each source becomes an association. The pump thread.

    Args:
        pump: The thread.
        connection: The client's.
        sock: Bound; stays the caller's.
        timeout: Seconds without traffic after which an association ends.
        counters: Counts drops.
        log: Receives one line for each association, at level debug, and the reasons why UDP is not forwarded.
        budget: The associations of all public ports; None: this is the only port.
        maximum: Maximum number of associations of the port.
        port: What the associations of the port share; None: this client has the port for itself.
        for_pump: Whether the pump reads the socket from the beginning.

    Attributes:
        associations: The numbers of its associations.
    """

    def __init__(
        self,
        pump: SelectorThread,
        connection: Connection,
        sock: socket.socket,
        timeout: float,
        counters: Counters,
        log: logging.Logger,
        budget: SharedBudget[PublicUdp] | None = None,
        *,
        maximum: int = LAST_ASSOCIATION,
        port: PortAssociations | None = None,
        for_pump: bool = False,
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._sock = sock
        self._timeout = timeout
        self._counters = counters
        self._log = log
        self._budget: SharedBudget[PublicUdp] = SharedBudget(MAX_ASSOCIATIONS) if budget is None else budget
        self._for_pump = for_pump
        self._udp: UdpSocket | None = None
        self._reader: UdpReader | None = None
        self.associations = AssociationTable(maximum)
        self._of_port = PortAssociations(maximum) if port is None else port
        self._max = maximum
        self._evictions = Evictions(connection, maximum, self._of_port.shares, counters, self._dissociate)
        self._trimming = Trimming(pump, connection, self._evictions, self._excess, self._not_permitted)
        self._limit = RateLimit(5, _LINE_PERIOD, max_per_source=1)
        self._expiry = IdleCheck(pump, connection, timeout, self._expired)
        self._opening: Timer | None = None  # the next attempt to open
        self._failures = 0  # failed attempts to open
        self._is_draining = False

    def open(self) -> None:
        """Begins to forward, now or as soon as the engine has the resources."""
        self._of_port.enter(self, self._max)
        try:
            self._udp = self._connection.open_udp(self._sock, public=True, for_pump=self._for_pump)
        except GoneError:
            return
        except EngineError as problem:
            self._not_opened(problem)
            return
        if self._failures:
            self._log.info("UDP port %d: forwarding now", self._port)
        self._reader = UdpReader(self._pump, self._sock, self._udp, self._counters, self._log, always=self._for_pump)
        if self._for_pump:
            self._reader.begin()
        self._expiry.begin()

    def limit(self, maximum: int) -> None:
        """Sets another maximum number of associations; ends those above it and those no longer permitted.

        The connection has the rules already (``Connection.limit``).
        """
        self.associations.maximum = maximum
        self._of_port.resize(maximum)
        self._evictions.resize(maximum)
        try:
            self._trimming.begin()
        except GoneError:
            self.close()

    def close(self) -> None:
        """Stops forwarding and forgets the associations. Idempotent."""
        if self._opening is not None:
            self._opening.cancel()
        self._expiry.end()
        self._trimming.end()
        self._budget.drop(self)
        if self in self._of_port.members:
            self._of_port.leave(self)
        if self._reader is not None:
            self._reader.end()
        udp, self._udp = self._udp, None
        if udp is not None:
            with contextlib.suppress(GoneError):
                udp.close()

    def set_timeout(self, timeout: float) -> None:
        """Lets associations end after another time without traffic, in seconds."""
        self._timeout = timeout
        self._expiry.set_timeout(timeout)

    def drain(self) -> None:
        """Creates no more associations, and lets those that there are end soon after their last traffic."""
        self._is_draining = True
        self.set_timeout(min(self._timeout, DRAINED_AFTER))

    @property
    def _port(self) -> int:
        return sockets.local_address(self._sock)[1]

    def _not_opened(self, problem: EngineError) -> None:
        self._counters.add("udp_open_errors")
        self._failures += 1
        if self._failures == _OPEN_TRIES:
            self._log.error("UDP port %d: cannot forward: %s", self._port, problem)
            return
        if self._failures == 1:
            self._log.warning("UDP port %d: cannot forward yet: %s; retrying", self._port, problem)
        self._opening = self._pump.after(_PAUSE_BETWEEN_OPENS, self.open)

    def busy(self, udp: UdpSocket) -> None:
        """Begins to read a busy socket, which the engine has handed over to the pump."""
        if udp == self._udp and self._reader is not None:
            self._reader.begin()

    def missed(self, udp: UdpSocket, source: SocketAddress, local: SocketAddress | None = None) -> None:
        """Creates an association for a new source, or drops the datagrams that wait for one."""
        if udp != self._udp:
            return  # closed meanwhile
        try:
            if not self._associate(udp, source, local):
                udp.refuse(source, local)
        except GoneError:
            self.close()

    def _associate(self, udp: UdpSocket, source: SocketAddress, local: SocketAddress | None) -> bool:
        if not self._has_place(source):
            return False
        association = self.associations.allocate()
        assert association is not None
        try:
            udp.add_association(association, source, local=local)
        except GoneError:
            raise
        except EngineError as problem:
            self.associations.release(association)
            self._counters.add("udp_sources_refused_by_engine")
            self._log.debug("no association for %s: %s", sockets.text(source), problem)
            return False
        self._of_port.shares.take((self, association), source[0])
        self._budget.take(self)
        self._counters.add("udp_associations")
        self._log.debug("association %d: packets from %s", association, sockets.text(source))
        return True

    def _has_place(self, source: SocketAddress) -> bool:
        """Whether there is room for this source, after evictions if necessary."""
        if self._is_draining:
            self._counters.add("udp_sources_refused_draining")
            self._connection.refuse_associations(None, REFUSAL_LASTS)
            self._limit.log(
                logging.INFO, self._log, "UDP port %d: no association for a new source: draining", self._port
            )
            return False
        victim = self._budget.victim(self)
        if victim is not None and victim is not self:
            victim.evict_excess()
        maximum, of_port = self._of_port.maximum, self._of_port
        if (
            self._evictions.allows(source)
            and (not (victim is self or of_port.full) or self._make_room(source))
            and not (of_port.full or self.associations.full)  # as it may still be if the maximum was lowered
        ):
            return True
        if of_port.shares.full(source[0]):
            counter, of = "udp_sources_refused_share", source[0]
            self._connection.refuse_associations(source, REFUSAL_LASTS)
            what = f"{sockets.host_text(source[0])} has at least half of {maximum} associations"
        else:
            counter, of = "udp_sources_refused_table_full", ""
            self._connection.refuse_associations(None, REFUSAL_LASTS)
            what = f"{len(of_port)} of {maximum} associations of the port are in use"
            what += f", {len(self._budget)} of {self._budget.maximum} of all ports"
        self._counters.add(counter)
        self._limit.warning(
            self._log,
            "UDP port %d: no association for a new source: %s; %s (udp_session_timeout is %g s)",
            self._port,
            what,
            NONE_TO_EVICT,
            self._timeout,
            kind=counter,
            source=of,
        )
        return False

    def _make_room(self, source: SocketAddress) -> bool:
        """Makes room for an association of this source: among its own, or among those of others that share the port."""
        if self._evictions.make_room(source):
            return True
        for other in self._of_port.members:
            if other is not self:
                with contextlib.suppress(GoneError):  # that one is about to be closed
                    if other._evictions.make_room(source):
                        return True
        return False

    def evict_excess(self) -> None:
        """Evicts what exceeds this port's fair share, idle or not: it has the most, and another one lacks some."""
        try:
            self._evictions.evict(max(1, self._budget.excess(self)))
        except GoneError:
            self.close()

    def _excess(self) -> int:
        """Returns how many associations there are above the maximum."""
        return self._of_port.excess(self)

    def _not_permitted(self, association: int) -> None:
        self._dissociate(association)
        self._counters.add("udp_associations_not_permitted")

    def _expired(self, association: int) -> None:
        self._dissociate(association)
        self._counters.add("udp_associations_expired")

    def _dissociate(self, association: int) -> None:
        # In this order: from now on, what the client still sends for it is dropped, and its ID stays in use until the
        # client is notified.
        self._connection.remove_association(association)
        try:
            self._connection.send(encode(Dissociate(association)))
        except GoneError:
            raise
        except EngineError:
            # The client's own timeout ends the association there; a packet it sends before that is dropped and counted.
            self._counters.add("dissociates_not_sent")
        self.associations.release(association)
        self._of_port.shares.give_back((self, association))
        self._budget.give_back(self)


def _max_of_one_source(maximum: int) -> int:
    """Returns how many associations one source address may have while others want some.

    Half of them, so that it can't shut out all others; no less, because many visitors share one address behind a proxy
    or a carrier-grade NAT.
    """
    return max(1, maximum // 2)
