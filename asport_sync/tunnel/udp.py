"""UDP: public sockets on the server, one socket per association on the client. The pump thread, unless noted otherwise.

The engine forwards datagrams, either on its own or, for a socket with so much traffic that the pump reads it, when the
pump calls it. Python is involved only in the first datagram of each source.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable

from asport_sync.engine import Connection, SocketAddress, UdpSocket, error_number
from asport_sync.errors import EngineClosed, EngineError, LifecycleError, LocalProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import Slots, WorkerPool
from asport_sync.runtime.timers import Timer
from asport_sync.tunnel.sessions import LAST_ASSOCIATION, AssociationTable, SharedBudget, SourceShares
from asport_sync.wire import Address, Dissociate, encode, proxy_header

_BATCHES_PER_TURN = 4  # recvmmsg calls of up to 64 messages; then the other sockets are read
_CHECK_PERIOD = 1.0  # seconds between checks whether a busy socket is still busy
_QUIET_BELOW = 20000  # datagrams per second below which the engine alone is better; it hands sockets over above 80,000
_PAUSE_AFTER_ERROR = 0.1  # seconds of back-off after a socket could not be read
_ENDED_AT_ONCE = 256  # associations; each costs a Dissociate, which the peer must keep up with
_PAUSE_BETWEEN_ENDS = 0.05  # seconds until the next of these are ended
# Seconds without traffic after which an association may be evicted: longer than a service takes to answer and a visitor
# to repeat a request, and short enough for thousands of new associations per second.
_EVICTABLE_AFTER = 1.0
# Seconds after a refusal for which the engine drops further requests without reporting them: many sources must not keep
# Python busy with refusals.
_REFUSAL_LASTS = 0.1
_EVICTED_AT_ONCE = 64  # maximum associations evicted at once, so that many new sources don't cost one search each
_EVICTED_SHARE = 64  # and at most one in 64 of all
# Maximum number of associations per second, of a port or of a client, that need an eviction or whose address has its
# maximum already: each costs Python a tenth of a millisecond on a server and more on a client, time that a flood must
# not take from others.
_NEWCOMERS_PER_SECOND = 2500
_NONE_TO_EVICT = f"none was idle for {_EVICTABLE_AFTER:g} s, or {_NEWCOMERS_PER_SECOND} were evicted in the last second"
# While others want some, one source address has at most half of the associations, so that it can't shut out all others.
# No less, because many visitors share one address behind a proxy or a carrier-grade NAT.
_MAX_OF_ONE_SOURCE = LAST_ASSOCIATION // 2
_OPEN_TRIES = 60  # maximum number of attempts to open a public socket
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, after which a lack of descriptors or memory counts as permanent
_REFRESH_AFTER = 30.0  # seconds until the local service's name is looked up again
_FAILURE_LASTS = 1.0  # seconds until a failed look-up is repeated
_DOUBT_LASTS = 1.0  # seconds until a name is looked up again whose address may be outdated
_SILENCE_PERIOD = 3.0  # seconds between checks for associations whose service no longer answers
_SILENT_AFTER = 3.0  # seconds that an answer may take before the service may have moved
_STILL_SENDING = 10.0  # seconds within which the visitor of such an association has sent something
_LINE_PERIOD = 60.0  # seconds between two log lines about the same problem of a tunnel
# Errors for lack of a descriptor, memory or a local port for another socket.
_NO_MORE_SOCKETS = sockets.OUT_OF_RESOURCES | {errno.EAGAIN}

MAX_ASSOCIATIONS = 262144
"""Maximum UDP associations of all public ports of a server: four times the number of IDs; 0.6 KiB each, 160 MiB."""

SHORTEST_EXPIRY_PERIOD = 1.0
"""Minimum number of seconds between checks for idle associations."""


def expiry_period(timeout: float) -> float:
    """Returns the seconds between checks for idle associations.

    An association outlives its timeout by at most a tenth of it or ``SHORTEST_EXPIRY_PERIOD``, whichever is longer.
    """
    return max(SHORTEST_EXPIRY_PERIOD, timeout / 10)


class _Expiry:
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
        self._look_in(expiry_period(self._timeout))

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _look_in(self, delay: float) -> None:
        self.end()
        self._timer = self._pump.after(delay, self._look)

    def _look(self) -> None:
        self.begin()
        try:
            idle = self._connection.idle_associations(self._timeout, _ENDED_AT_ONCE)
            for association in idle:
                self._expired(association)
        except EngineClosed:
            self.end()
        else:
            if len(idle) == _ENDED_AT_ONCE:
                self._look_in(_PAUSE_BETWEEN_ENDS)


class _Reader:
    """Reads a busy socket that the engine has handed over to the pump, for as long as it is busy.

    Args:
        pump: The thread, which makes all calls.
        sock: The socket.
        udp: The engine's handle of it.
        counters: Counts errors.
        log: Receives the errors, at level debug.
    """

    def __init__(
        self, pump: SelectorThread, sock: socket.socket, udp: UdpSocket, counters: Counters, log: logging.Logger
    ) -> None:
        self._pump = pump
        self._sock = sock
        self._udp = udp
        self._counters = counters
        self._log = log
        self._look: Timer | None = None  # the next check; None: the engine reads
        self._datagrams = 0  # since the latest check

    def begin(self) -> None:
        """Begins to read the socket, which the engine has handed over."""
        if self._look is None:
            self._pump.watch(self._sock, self._readable)
            self._look_later()

    def end(self) -> None:
        """Stops reading the socket, which may be closed then. Idempotent."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
            self._pump.unwatch(self._sock)

    def _look_later(self) -> None:
        self._datagrams = 0
        self._look = self._pump.after(_CHECK_PERIOD, self._still_busy)

    def _still_busy(self) -> None:
        if self._datagrams >= _CHECK_PERIOD * _QUIET_BELOW:
            self._look_later()
            return
        self.end()
        try:
            self._udp.give_back()
        except EngineClosed:
            pass
        except EngineError as problem:
            # Otherwise nothing would read the socket.
            self._counters.add("udp_give_back_errors")
            self._log.debug("cannot return a UDP socket to the engine: %s", problem)
            self.begin()

    def _readable(self) -> None:
        try:
            for _ in range(_BATCHES_PER_TURN):
                received = self._udp.receive()
                self._datagrams += received
                if received == 0:
                    return
        except EngineClosed:
            self.end()
        except EngineError as problem:
            # Includes ICMP errors about the service, such as "port unreachable".
            self._counters.add("udp_read_errors")
            self._log.debug("cannot read a UDP socket: %s", problem)
            self._pump.pause(self._sock, _PAUSE_AFTER_ERROR)


class _Places:
    """Evicts associations of a connection to make room for new ones. The pump thread.

    Args:
        connection: The connection of the associations.
        most: Maximum number of associations.
        shares: The number of associations of each source address.
        counters: Counts evictions.
        end: Called for each association to end.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        most: int,
        shares: SourceShares,
        counters: Counters,
        end: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._allowed = float(_NEWCOMERS_PER_SECOND)  # new associations allowed now
        self._allowed_at = clock()
        self._connection = connection
        self._at_once = max(1, min(_EVICTED_AT_ONCE, most // _EVICTED_SHARE))
        self._shares = shares
        self._counters = counters
        self._end = end

    def may_come(self, newcomer: SocketAddress) -> bool:
        """Whether Python has time for another association of this address; always true below the address's maximum."""
        return not self._shares.full(newcomer[0]) or self._take(1) == 1

    def make(self, newcomer: SocketAddress) -> bool:
        """Makes room for an association of this address; returns whether it could.

        If the address is below its maximum and another exceeds it, associations of the latter are evicted, idle or not.
        """
        if self._shares.full(newcomer[0]):
            return self.free(newcomer, _EVICTABLE_AFTER, self._at_once) > 0
        if self._shares.over is not None:
            return self.free((self._shares.over, 0), 0.0, self._at_once) > 0
        most = self._take(self._at_once)
        freed = self.free(None, _EVICTABLE_AFTER, most) if most else 0
        self._allowed += most - freed
        return freed > 0

    def _take(self, wanted: int) -> int:
        """Takes up to ``wanted`` from the allowance of a second; returns how many."""
        now = self._clock()
        self._allowed = min(self._allowed + (now - self._allowed_at) * _NEWCOMERS_PER_SECOND, _NEWCOMERS_PER_SECOND)
        self._allowed_at = now
        taken = min(wanted, int(self._allowed))
        self._allowed -= taken
        return taken

    def give_up(self, most: int) -> None:
        """Ends up to ``most`` associations, idle or not."""
        self.free(None, 0.0, min(most, self._at_once))

    def free(self, host: SocketAddress | None, idle: float, most: int) -> int:
        """Ends up to ``most`` associations of a host, or of any, that were idle for so long; returns how many."""
        evicted = self._connection.idle_associations(idle, most, host)
        for association in evicted:
            self._end(association)
        self._counters.add("udp_associations_evicted", len(evicted))
        return len(evicted)


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
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._sock = sock
        self._timeout = timeout
        self._counters = counters
        self._log = log
        self._budget: SharedBudget[PublicUdp] = SharedBudget(MAX_ASSOCIATIONS) if budget is None else budget
        self._udp: UdpSocket | None = None
        self._reader: _Reader | None = None
        self._associations = AssociationTable()
        self._shares = SourceShares(_MAX_OF_ONE_SOURCE)
        self._places = _Places(connection, LAST_ASSOCIATION, self._shares, counters, self._dissociate)
        self._limit = RateLimit(5, _LINE_PERIOD, each=1)
        self._expiry = _Expiry(pump, connection, timeout, self._expired)
        self._opening: Timer | None = None  # the next attempt to open
        self._failures = 0  # failed attempts to open

    def open(self) -> None:
        """Begins to forward, now or as soon as the engine has the resources."""
        try:
            self._udp = self._connection.open_udp(self._sock, public=True)
        except EngineClosed:
            return
        except EngineError as problem:
            self._not_opened(problem)
            return
        if self._failures:
            self._log.info("UDP port %d: forwarding now", self._port)
        self._reader = _Reader(self._pump, self._sock, self._udp, self._counters, self._log)
        self._expiry.begin()

    def close(self) -> None:
        """Stops forwarding and forgets the associations. Idempotent."""
        if self._opening is not None:
            self._opening.cancel()
        self._expiry.end()
        self._budget.drop(self)
        if self._reader is not None:
            self._reader.end()
        udp, self._udp = self._udp, None
        if udp is not None:
            with contextlib.suppress(EngineClosed):
                udp.close()

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
        except EngineClosed:
            self.close()

    def _associate(self, udp: UdpSocket, source: SocketAddress, local: SocketAddress | None) -> bool:
        if not self._has_place(source):
            return False
        association = self._associations.allocate()
        assert association is not None
        try:
            udp.add_association(association, source, local=local)
        except EngineClosed:
            raise
        except EngineError as problem:
            self._associations.release(association)
            self._counters.add("udp_sources_refused_by_engine")
            self._log.debug("no association for %s: %s", sockets.text(source), problem)
            return False
        self._shares.take(association, source[0])
        self._budget.take(self)
        self._counters.add("udp_associations")
        self._log.debug("association %d: packets from %s", association, sockets.text(source))
        return True

    def _has_place(self, source: SocketAddress) -> bool:
        """Whether there is room for this source, after evictions if necessary."""
        giver = self._budget.giver(self)
        if giver is not None and giver is not self:
            giver.give_up()
        if self._places.may_come(source) and (
            not (giver is self or self._associations.full) or self._places.make(source)
        ):
            return True
        if self._shares.full(source[0]):
            counter, of = "udp_sources_refused_share", source[0]
            self._connection.refuse_associations(source, _REFUSAL_LASTS)
            what = f"{sockets.host_text(source[0])} has at least half of {LAST_ASSOCIATION} associations"
        else:
            counter, of = "udp_sources_refused_table_full", ""
            self._connection.refuse_associations(None, _REFUSAL_LASTS)
            what = f"{len(self._associations)} of {LAST_ASSOCIATION} associations of the port are in use"
            what += f", {len(self._budget)} of {self._budget.most} of all ports"
        self._counters.add(counter)
        self._limit.warning(
            self._log,
            "UDP port %d: no association for a new source: %s; %s (udp_session_timeout is %g s)",
            self._port,
            what,
            _NONE_TO_EVICT,
            self._timeout,
            kind=counter,
            source=of,
        )
        return False

    def give_up(self) -> None:
        """Evicts what exceeds this port's fair share, idle or not: it has most, and another port is below its own."""
        try:
            self._places.give_up(max(1, self._budget.excess(self)))
        except EngineClosed:
            self.close()

    def _expired(self, association: int) -> None:
        self._dissociate(association)
        self._counters.add("udp_associations_expired")

    def _dissociate(self, association: int) -> None:
        # In this order: from now on, what the client still sends for it is dropped, and its ID stays in use until the
        # client is notified.
        self._connection.remove_association(association)
        try:
            self._connection.send(encode(Dissociate(association)))
        except EngineClosed:
            raise
        except EngineError:
            # The client's own timeout ends the association there; a packet it sends before that is dropped and counted.
            self._counters.add("dissociates_not_sent")
        self._associations.release(association)
        self._shares.give_back(association)
        self._budget.give_back(self)


Addresses = list[SocketAddress]


class LocalTarget:
    """The address of the local UDP service. The pump thread.

    A worker looks names up, because the pump must not block: at the first use, then every 30 s of use, and sooner if
    the service seems to have moved. An address that refuses datagrams is tried after all others.

    Attributes:
        trouble: Rate limit of log lines that the service does not take datagrams.
        changes: Rate limit of log lines that it is reached at another address.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pump: SelectorThread,
        workers: WorkerPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self.port = port
        self.trouble = RateLimit(1, _LINE_PERIOD, clock)
        self.changes = RateLimit(1, _LINE_PERIOD, clock)
        self._pump = pump
        self._workers = workers
        self._clock = clock
        self._addresses: Addresses = [(host, port)] if self.is_fixed else []
        self._looked_up = float("inf") if self._addresses else float("-inf")
        self._looking = False
        self._refused: dict[SocketAddress, float] = {}  # by address: when it refused datagrams last
        self._waiting: list[Callable[[Addresses], None]] = []

    @property
    def is_fixed(self) -> bool:
        """Whether there is no name to look up."""
        return sockets.is_literal(self.host)

    @property
    def addresses(self) -> Addresses:
        """The addresses known now, those more likely to take datagrams first."""
        return sorted(self._addresses, key=lambda address: self._refused.get(address, float("-inf")))

    def refuses(self, address: SocketAddress) -> None:
        """Records that this address does not take datagrams."""
        self._refused[address] = self._clock()

    def look_up(self) -> None:
        """Looks the name up, unless that was done recently or is under way."""
        self._look_up(_REFRESH_AFTER if self._addresses else _FAILURE_LASTS)

    def ask(self, call: Callable[[Addresses], None]) -> None:
        """Calls ``call(addresses)`` now or as soon as they are known, with an empty list if there are none."""
        self.look_up()
        if self._addresses or not self._looking:
            call(self.addresses)
        else:
            self._waiting.append(call)

    def ask_again(self, call: Callable[[Addresses], None]) -> None:
        """Like ``ask``, but waits for a new look-up, because the known addresses may be outdated."""
        self._look_up(_DOUBT_LASTS)
        if self._looking:
            self._waiting.append(call)
        else:
            call(self.addresses)

    def _look_up(self, lasts: float) -> None:
        if self._looking or self._clock() - self._looked_up < lasts:
            return
        try:
            self._workers.submit(self._resolve)
        except (LifecycleError, RuntimeError):
            return  # stopped, or the system can't create a thread: the next call tries again
        self._looking = True

    def _resolve(self) -> None:
        # Worker thread.
        try:
            found = sockets.resolve(self.host, self.port, socket.SOCK_DGRAM)
        except OSError:
            found = []
        self._pump.offer(self._resolved, found)

    def _resolved(self, addresses: Addresses) -> None:
        self._looking = False
        self._looked_up = self._clock()
        # One failed look-up doesn't mean that the service has moved.
        self._addresses = addresses or self._addresses
        self._refused = {each: when for each, when in self._refused.items() if each in self._addresses}
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(self.addresses)


class _LocalAssociation:
    """One association of a client, with its socket once the service's address is known.

    Attributes:
        tried: Addresses of the service that have refused datagrams since all were last tried.
    """

    __slots__ = ("address", "association", "peer", "reader", "sock", "tried", "udp")

    def __init__(self, association: int, peer: SocketAddress) -> None:
        self.association = association
        self.peer = peer
        self.address: SocketAddress | None = None
        self.tried: tuple[SocketAddress, ...] = ()
        self.sock: socket.socket | None = None
        self.udp: UdpSocket | None = None
        self.reader: _Reader | None = None


class LocalAssociations:
    """The associations of one connection to a server. The pump thread.

    Args:
        pump: The thread.
        connection: To the server.
        target: The local service.
        proxy: Whether every datagram begins with a PROXY header.
        timeout: Seconds without traffic after which an association's socket is closed.
        budget: Sockets that all connections of the client may have; leaves descriptors for everything else.
        counters: Counts drops.
        log: Receives the failures, and at level debug one line for each association.
        limit: Rate limit of repeated failures.
    """

    def __init__(
        self,
        pump: SelectorThread,
        connection: Connection,
        target: LocalTarget,
        *,
        proxy: bool,
        timeout: float,
        budget: Slots,
        counters: Counters,
        log: logging.Logger,
        limit: RateLimit,
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._target = target
        self._proxy = proxy
        self._timeout = timeout
        self._budget = budget
        self._counters = counters
        self._log = log
        self._limit = limit
        self._public: Address | None = None  # the public address and port
        # Requested before the ServerHello. Bounded, because the engine requests only associations with waiting packets.
        self._early: dict[int, SocketAddress] = {}
        self._by_association: dict[int, _LocalAssociation] = {}
        self._by_udp: dict[int, _LocalAssociation] = {}  # by the engine's ID of the socket
        self._shares = SourceShares(max(1, budget.most // 2))
        self._places = _Places(connection, budget.most, self._shares, counters, self.end)
        self._expiry = _Expiry(pump, connection, timeout, self.end)
        self._silence: Timer | None = None  # the next check for unanswered associations
        self._closed = False

    def open(self) -> None:
        """Begins to check for idle associations, and looks up the service's address before it is needed."""
        self._target.look_up()
        self._expiry.begin()
        if not self._target.is_fixed:
            self._silence = self._pump.after(_SILENCE_PERIOD, self._look_for_silence)

    def joined(self, public: Address) -> None:
        """Handles requests from before the ServerHello, now that the public address and port are known."""
        self._public = public
        early, self._early = self._early, {}
        for association, peer in early.items():
            self.wanted(association, peer)

    def wanted(self, association: int, peer: SocketAddress) -> None:
        """Creates an association for a Packet that waits for it."""
        if self._closed or association in self._by_association:
            return
        if self._public is None:
            self._early[association] = peer
            return
        try:
            has_place = self._places.may_come(peer) and (
                self._budget.take() or (self._places.make(peer) and self._budget.take())
            )
        except EngineClosed:
            return
        if not has_place:
            self._no_place(association, peer)
            return
        self._shares.take(association, peer[0])
        assoc = self._by_association[association] = _LocalAssociation(association, peer)
        self._target.ask(lambda addresses: self._connect(assoc, addresses))

    def end(self, association: int) -> None:
        """Ends an association that was dissociated or is idle. Does nothing if there is none."""
        assoc = self._by_association.pop(association, None)
        if assoc is None:
            if self._early.pop(association, None) is not None:
                with contextlib.suppress(EngineClosed):
                    self._connection.remove_association(association)
            return
        self._budget.give_back()
        self._shares.give_back(association)
        if assoc.reader is not None:
            assoc.reader.end()
        with contextlib.suppress(EngineClosed):
            if assoc.udp is None:
                self._connection.remove_association(association)
            else:
                del self._by_udp[assoc.udp.id]
                assoc.udp.close()
        if assoc.sock is not None:
            assoc.sock.close()
        self._log.debug("association %d: ended", association)

    def busy(self, udp: UdpSocket) -> None:
        """Begins to read an association's busy socket, which the engine has handed over to the pump."""
        assoc = self._by_udp.get(udp.id)
        if assoc is not None and assoc.reader is not None:
            assoc.reader.begin()

    def refused(self, udp: UdpSocket, error: int, *, answered: bool) -> None:
        """Handles a service that does not take an association's datagrams.

        Args:
            udp: The association's socket.
            error: The reason, as errno.
            answered: Whether the service has answered from its current address: it may then come back there, and the
                association moves only if the name no longer resolves to that address.
        """
        assoc = self._by_udp.get(udp.id)
        if assoc is None or assoc.address is None:
            return
        self._target.refuses(assoc.address)
        assoc.tried = (*assoc.tried, assoc.address)
        if not answered and self._move(assoc, self._target.addresses, error):
            return
        self._target.ask_again(lambda addresses: self._is_elsewhere(assoc, addresses, error))

    def close(self) -> None:
        """Ends all associations of a connection that is over. Idempotent."""
        self._closed = True
        self._early.clear()
        self._expiry.end()
        if self._silence is not None:
            self._silence.cancel()
        for association in list(self._by_association):
            self.end(association)

    # --- new associations ---

    def _connect(self, assoc: _LocalAssociation, addresses: Addresses) -> None:
        if self._by_association.get(assoc.association) is not assoc:
            return  # dissociated while the name was looked up
        try:
            try:
                self._open(assoc, addresses)
            except (OSError, EngineError) as problem:
                # Other code in this process, or other programs on this machine, hold what the budget counted on.
                if not _is_want(problem) or not self._places.make(assoc.peer):
                    raise
                self._open(assoc, addresses)
        except EngineClosed:
            self.end(assoc.association)
            return
        except (OSError, EngineError, LocalProtocolError) as problem:
            self.end(assoc.association)
            self._refuse(assoc.association, "udp_associations_refused_local_service", str(problem))
            return
        self._counters.add("udp_associations")
        self._log.debug("association %d: packets from %s", assoc.association, sockets.text(assoc.peer))

    def _open(self, assoc: _LocalAssociation, addresses: Addresses) -> None:
        """Opens the socket of an association.

        Raises:
            OSError, EngineError, LocalProtocolError: Not possible.
        """
        sock, address = self._dial(addresses)
        try:
            prefix = self._prefix(assoc.peer)
            udp = self._connection.open_udp(sock, public=False)
        except BaseException:
            sock.close()
            raise
        assoc.sock, assoc.udp, assoc.address = sock, udp, address
        assoc.reader = _Reader(self._pump, sock, udp, self._counters, self._log)
        self._by_udp[udp.id] = assoc
        udp.add_association(assoc.association, assoc.peer, prefix)

    def _dial(self, addresses: Addresses) -> tuple[socket.socket, SocketAddress]:
        problem: OSError = OSError(f"no address of {self._target.host} is known")
        for address in addresses:
            try:
                return sockets.connected_udp(address), address
            except OSError as error:
                problem = error
        raise problem

    def _prefix(self, peer: SocketAddress) -> bytes:
        if not self._proxy or self._public is None:
            return b""
        return proxy_header.udp_header(Address.from_text(*peer), self._public)

    def _no_place(self, association: int, peer: SocketAddress) -> None:
        if self._shares.full(peer[0]):
            counter = "udp_associations_refused_share"
            what = f"{sockets.host_text(peer[0])} has at least half of {self._budget.most} associations"
            self._refuse_more(peer)
        else:
            counter = "udp_associations_refused_limit"
            what = f"all {self._budget.most} associations are in use"
            self._refuse_more(None)
        what += f"; {_NONE_TO_EVICT} (udp_timeout is {self._timeout:g} s); the maximum is one per four descriptors"
        what += " (LimitNOFILE, ulimit -n)"
        self._refuse(association, counter, what)

    def _refuse(self, association: int, counter: str, why: str) -> None:
        self._counters.add(counter)
        self._limit.warning(self._log, "association %d refused: %s", association, why, kind=counter)
        with contextlib.suppress(EngineClosed):
            self._connection.remove_association(association)

    def _refuse_more(self, peer: SocketAddress | None) -> None:
        with contextlib.suppress(EngineClosed):
            self._connection.refuse_associations(peer, _REFUSAL_LASTS)

    # --- a service that has moved or is unavailable ---

    def _is_elsewhere(self, assoc: _LocalAssociation, addresses: Addresses, error: int) -> None:
        """Handles the look-up of a name whose service refuses datagrams."""
        if self._by_association.get(assoc.association) is not assoc or assoc.address is None:
            return
        # If the address is still the service's, all of them have been tried, or it will come back there.
        if assoc.address in addresses or not self._move(assoc, addresses, error):
            assoc.tried = ()
            self._counters.add("udp_service_away")
            self._target.trouble.warning(
                self._log,
                "the local service does not accept UDP at %s: %s",
                sockets.text(assoc.address),
                os.strerror(error),
            )

    def _look_for_silence(self) -> None:
        """Checks for associations whose service may have moved. Not used with an IP literal, which can't move."""
        self._silence = self._pump.after(_SILENCE_PERIOD, self._look_for_silence)
        try:
            silent = self._connection.unanswered_associations(_SILENT_AFTER, _STILL_SENDING)
        except EngineClosed:
            self._silence.cancel()
            return
        assocs = [self._by_association[association] for association in silent if association in self._by_association]
        if assocs:
            self._target.ask_again(lambda addresses: self._are_elsewhere(assocs, addresses))

    def _are_elsewhere(self, assocs: list[_LocalAssociation], addresses: Addresses) -> None:
        for assoc in assocs:
            if self._by_association.get(assoc.association) is assoc and assoc.address not in addresses:
                self._move(assoc, addresses, None)

    def _move(self, assoc: _LocalAssociation, addresses: Addresses, error: int | None) -> bool:
        """Moves an association to another address of the service that was not tried; returns whether there was one.

        Args:
            assoc: The association.
            addresses: The service's.
            error: The reason, as errno; None: it does not answer.
        """
        former = assoc.address
        untried = [address for address in addresses if address not in (*assoc.tried, former)]
        if not untried or former is None or assoc.udp is None or assoc.sock is None:
            return False
        try:
            sock, assoc.address = self._dial(untried)
        except OSError:
            return False
        if assoc.reader is not None:
            assoc.reader.end()
        assoc.sock.close()
        assoc.sock = sock
        assoc.reader = _Reader(self._pump, sock, assoc.udp, self._counters, self._log)
        try:
            assoc.udp.move(sock, self._prefix(assoc.peer))
        except (EngineError, LocalProtocolError) as problem:
            # Its next datagram requests a new association.
            self.end(assoc.association)
            self._log.debug("association %d: cannot be moved: %s", assoc.association, problem)
            return True
        self._counters.add("udp_associations_moved")
        self._target.changes.log(
            logging.INFO,
            self._log,
            "the local service %s at %s; UDP continues at %s",
            "does not answer" if error is None else f"does not accept UDP ({os.strerror(error)})",
            sockets.text(former),
            sockets.text(assoc.address),
        )
        return True


def _is_want(problem: OSError | EngineError) -> bool:
    """Whether a socket failed for lack of a descriptor, memory or a local port."""
    number = problem.errno if isinstance(problem, OSError) else error_number(problem)
    return number in _NO_MORE_SOCKETS
