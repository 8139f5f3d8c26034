"""UDP: public sockets on the server, one socket per association on the client. Everything here runs on the pump thread.

Datagrams are moved by the engine, or by calls into it where a socket has so much traffic that the pump reads it; Python
sees only the first of each source.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable

from asport_sync.engine import Connection, SocketAddress, UdpSocket
from asport_sync.errors import EngineClosed, EngineError, LifecycleError, LocalProtocolError
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import Slots, WorkerPool
from asport_sync.runtime.timers import Timer
from asport_sync.tunnel.sessions import LAST_ASSOCIATION, AssociationTable, SourceShares
from asport_sync.wire import Address, Dissociate, encode, proxy_header

_BATCHES_PER_TURN = 4  # of 64 messages of the kernel; then the other sockets have their turn
_LOOK_PERIOD = 1.0  # seconds until the pump looks whether a busy socket still is
_QUIET_BELOW = 20000  # datagrams a second with which the engine does better alone; it gives sockets away above 80,000
_PAUSE_AFTER_ERROR = 0.1  # seconds that a socket is left alone when reading it failed
_ENDED_AT_ONCE = 256  # associations; each costs a Dissociate, which the other end must keep up with
_PAUSE_BETWEEN_ENDS = 0.05  # seconds until the next so many are ended
_EVICTABLE_AFTER = 10.0  # seconds without traffic: longer than the pauses of most protocols on UDP
# Seconds that those who get no association are not asked about again: a crowd must not keep Python busy with refusals.
_REFUSAL_LASTS = 0.1
_EVICTED_AT_ONCE = 64  # associations, so that a crowd of sources does not cost a search each
# One source address has half of the associations at most, so that it can't keep everybody else out. No less, for behind
# a proxy or a carrier's NAT many users share one.
_MOST_OF_ONE_SOURCE = LAST_ASSOCIATION // 2
_OPEN_TRIES = 60  # times that a public socket is tried to be taken into service
_PAUSE_BETWEEN_OPENS = 1.0  # seconds; a minute in all, by which descriptors or memory are there again or never
_REFRESH_AFTER = 30.0  # seconds until the name of the local service is looked up again
_FAILURE_LASTS = 1.0  # seconds until a name that could not be resolved is tried again

SHORTEST_EXPIRY_PERIOD = 1.0
"""Seconds: idle associations are looked for at most so often."""


def expiry_period(timeout: float) -> float:
    """Seconds between looks for idle associations: an association lives at most a tenth longer than its timeout."""
    return max(SHORTEST_EXPIRY_PERIOD, timeout / 10)


class _Expiry:
    """Looks for idle associations of a connection, again and again."""

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
            idle = self._connection.idle_flows(self._timeout, _ENDED_AT_ONCE)
            for association in idle:
                self._expired(association)
        except EngineClosed:
            self.end()
        else:
            if len(idle) == _ENDED_AT_ONCE:
                self._look_in(_PAUSE_BETWEEN_ENDS)


class _Reader:
    """Reads a socket through which so much comes that the engine has left it to the pump, for as long as that lasts.

    Args:
        pump: The thread, which makes all calls.
        sock: The socket.
        udp: The engine's name for it.
        counters: Where errors are counted.
        log: Gets the errors, at level debug.
    """

    def __init__(
        self, pump: SelectorThread, sock: socket.socket, udp: UdpSocket, counters: Counters, log: logging.Logger
    ) -> None:
        self._pump = pump
        self._sock = sock
        self._udp = udp
        self._counters = counters
        self._log = log
        self._look: Timer | None = None  # None: the engine reads
        self._datagrams = 0  # since the last look

    def begin(self) -> None:
        """The engine has left the socket."""
        if self._look is None:
            self._pump.watch(self._sock, self._readable)
            self._look_later()

    def end(self) -> None:
        """Leaves the socket alone; it may be closed then. Idempotent."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
            self._pump.unwatch(self._sock)

    def _look_later(self) -> None:
        self._datagrams = 0
        self._look = self._pump.after(_LOOK_PERIOD, self._still_busy)

    def _still_busy(self) -> None:
        if self._datagrams >= _LOOK_PERIOD * _QUIET_BELOW:
            self._look_later()
            return
        self.end()
        try:
            self._udp.give_back()
        except EngineClosed:
            pass
        except EngineError as problem:
            # Nobody would read it.
            self._counters.add("udp_give_back_errors")
            self._log.debug("giving a UDP socket back: %s", problem)
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
            # Also what ICMP says about the service, such as "port unreachable".
            self._counters.add("udp_read_errors")
            self._log.debug("reading a UDP socket: %s", problem)
            self._pump.pause(self._sock, _PAUSE_AFTER_ERROR)


class PublicUdp:
    """The UDP side of a client's public port: each source becomes an association. The pump thread.

    Args:
        pump: The thread.
        connection: The client's.
        sock: Bound; stays the caller's.
        timeout: Seconds without traffic after which an association ends.
        counters: Where drops are counted.
        log: Gets one line for each association, at level debug; and what keeps UDP from being forwarded at all.
    """

    def __init__(
        self,
        pump: SelectorThread,
        connection: Connection,
        sock: socket.socket,
        timeout: float,
        counters: Counters,
        log: logging.Logger,
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._sock = sock
        self._counters = counters
        self._log = log
        self._udp: UdpSocket | None = None
        self._reader: _Reader | None = None
        self._associations = AssociationTable()
        self._shares = SourceShares(_MOST_OF_ONE_SOURCE)
        self._expiry = _Expiry(pump, connection, timeout, self._expired)
        self._opening: Timer | None = None  # the next try to open
        self._evicted: Timer | None = None  # pending: associations were evicted a moment ago
        self._failures = 0  # to open

    def open(self) -> None:
        """Begins to forward, now or as soon as the engine has the means."""
        try:
            self._udp = self._connection.open_udp(self._sock, public=True)
        except EngineClosed:
            return
        except EngineError as problem:
            self._not_opened(problem)
            return
        if self._failures:
            self._log.info("UDP port %d is forwarded now", self._port)
        self._reader = _Reader(self._pump, self._sock, self._udp, self._counters, self._log)
        self._expiry.begin()

    def close(self) -> None:
        """Forwards no more; the associations are forgotten. Idempotent."""
        if self._opening is not None:
            self._opening.cancel()
        self._expiry.end()
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
            self._log.error("UDP port %d is not forwarded: %s", self._port, problem)
            return
        if self._failures == 1:
            self._log.warning("UDP port %d is not forwarded yet: %s; trying again", self._port, problem)
        self._opening = self._pump.after(_PAUSE_BETWEEN_OPENS, self.open)

    def busy(self, udp: UdpSocket) -> None:
        """Much comes through the socket: the engine has left it to the pump."""
        if udp == self._udp and self._reader is not None:
            self._reader.begin()

    def missed(self, udp: UdpSocket, source: SocketAddress, local: SocketAddress | None = None) -> None:
        """A new source: it becomes an association, or what waits for one is dropped."""
        if udp != self._udp:
            return  # closed meanwhile
        try:
            if not self._associate(udp, source, local):
                udp.refuse(source, local)
        except EngineClosed:
            self.close()

    def _associate(self, udp: UdpSocket, source: SocketAddress, local: SocketAddress | None) -> bool:
        if self._shares.full(source[0]):
            self._counters.add("udp_sources_refused_share")
            self._connection.refuse_flows(source, _REFUSAL_LASTS)
            return False
        association = self._associations.allocate()
        if association is None and self._evict():
            association = self._associations.allocate()
        if association is None:
            self._counters.add("udp_sources_refused_table_full")
            self._connection.refuse_flows(None, _REFUSAL_LASTS)
            return False
        try:
            udp.add_flow(association, source, local=local)
        except EngineClosed:
            raise
        except EngineError as problem:
            self._associations.release(association)
            self._counters.add("udp_sources_refused_by_engine")
            self._log.debug("no association for %s: %s", sockets.text(source), problem)
            return False
        self._shares.take(association, source[0])
        self._counters.add("udp_associations")
        self._log.debug("association %d: packets from %s", association, sockets.text(source))
        return True

    def _evict(self) -> bool:
        """Ends associations that have been idle for a while, to make room; returns whether there were any.

        Sources can be made up faster than associations become idle: to look once in a while is enough.
        """
        if self._evicted is not None and self._evicted.pending:
            return False
        self._evicted = self._pump.after(_PAUSE_BETWEEN_ENDS, lambda: None)
        # Those that were made first come first.
        idle = self._connection.idle_flows(_EVICTABLE_AFTER, _EVICTED_AT_ONCE)
        for association in idle:
            self._dissociate(association)
        self._counters.add("udp_associations_evicted", len(idle))
        return bool(idle)

    def _expired(self, association: int) -> None:
        self._dissociate(association)
        self._counters.add("udp_associations_expired")

    def _dissociate(self, association: int) -> None:
        # In this order: what the client still sends for it is dropped from now on, and its id stays taken until the
        # client has been told.
        self._connection.remove_flow(association)
        try:
            self._connection.send(encode(Dissociate(association)))
        except EngineClosed:
            raise
        except EngineError:
            # The client's own timeout is shorter than ours and will do; a packet it sends before is dropped and
            # counted.
            self._counters.add("dissociates_not_sent")
        self._associations.release(association)
        self._shares.give_back(association)


Addresses = list[SocketAddress]


class LocalTarget:
    """Where the local UDP service is. The pump thread.

    A name is looked up in a worker, for the pump must not wait: at the first use and every 30 s of use after.
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
        self._pump = pump
        self._workers = workers
        self._clock = clock
        self._addresses: Addresses = [(host, port)] if sockets.is_literal(host) else []
        self._looked_up = float("inf") if self._addresses else float("-inf")
        self._looking = False
        self._waiting: list[Callable[[Addresses], None]] = []

    def look_up(self) -> None:
        """Looks the name up, unless that was done just now or is being done."""
        lasts = _REFRESH_AFTER if self._addresses else _FAILURE_LASTS
        if self._looking or self._clock() - self._looked_up < lasts:
            return
        try:
            self._workers.submit(self._resolve)
        except (LifecycleError, RuntimeError):
            return  # stopped, or the system has no thread to spare: the next one who asks tries again
        self._looking = True

    def ask(self, call: Callable[[Addresses], None]) -> None:
        """Calls ``call(addresses)`` now or as soon as they are known; an empty list where there are none."""
        self.look_up()
        if self._addresses or not self._looking:
            call(self._addresses)
        else:
            self._waiting.append(call)

    def _resolve(self) -> None:
        # A worker.
        try:
            found = sockets.resolve(self.host, self.port, socket.SOCK_DGRAM)
        except OSError:
            found = []
        self._pump.offer(self._resolved, found)

    def _resolved(self, addresses: Addresses) -> None:
        self._looking = False
        self._looked_up = self._clock()
        # A resolver that fails once doesn't mean that the service has moved.
        self._addresses = addresses or self._addresses
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(self._addresses)


class _Flow:
    """One association of a client: its socket, once the service's address is known."""

    __slots__ = ("reader", "sock", "udp")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.udp: UdpSocket | None = None
        self.reader: _Reader | None = None


class LocalFlows:
    """The associations of one connection to a server. The pump thread.

    Args:
        pump: The thread.
        connection: To the server.
        target: The local service.
        proxy: Whether a PROXY header goes in front of every datagram.
        timeout: Seconds without traffic after which an association's socket is closed.
        budget: Sockets that all connections of the client may have; keeps descriptors for everything else.
        counters: Where drops are counted.
        log: Gets the failures, and at level debug one line for each association.
        limit: Keeps repeated failures from filling the log.
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
        self._budget = budget
        self._counters = counters
        self._log = log
        self._limit = limit
        self._flows: dict[int, _Flow] = {}
        self._shares = SourceShares(max(1, budget.most // 2))
        self._expiry = _Expiry(pump, connection, timeout, self.end)
        self._closed = False

    def open(self) -> None:
        """Begins to look for idle associations, and asks for the service's address before it is needed."""
        self._target.look_up()
        self._expiry.begin()

    def wanted(self, association: int, peer: SocketAddress) -> None:
        """A Packet for a new association has come and waits for it."""
        if self._closed or association in self._flows:
            return
        if not self._budget.take():
            self._refuse(association, "udp_flows_refused_limit", "too many associations have sockets")
            self._refuse_more(None)
            return
        if self._shares.full(peer[0]):
            self._budget.give_back()
            self._refuse(association, "udp_flows_refused_share", f"{peer[0]} has half of all associations")
            self._refuse_more(peer)
            return
        self._shares.take(association, peer[0])
        flow = self._flows[association] = _Flow()
        self._target.ask(lambda addresses: self._connect(association, peer, flow, addresses))

    def end(self, association: int) -> None:
        """An association is over: dissociated, or idle. Does nothing where there is none."""
        flow = self._flows.pop(association, None)
        if flow is None:
            return
        self._budget.give_back()
        self._shares.give_back(association)
        if flow.reader is not None:
            flow.reader.end()
        with contextlib.suppress(EngineClosed):
            if flow.udp is None:
                self._connection.remove_flow(association)
            else:
                flow.udp.close()
        if flow.sock is not None:
            flow.sock.close()
        self._log.debug("association %d: over", association)

    def busy(self, udp: UdpSocket) -> None:
        """Much comes through the socket of an association: the engine has left it to the pump."""
        for flow in self._flows.values():
            if flow.udp == udp and flow.reader is not None:
                flow.reader.begin()

    def close(self) -> None:
        """The connection is over. Idempotent."""
        self._closed = True
        self._expiry.end()
        for association in list(self._flows):
            self.end(association)

    def _connect(self, association: int, peer: SocketAddress, flow: _Flow, addresses: Addresses) -> None:
        if self._flows.get(association) is not flow:
            return  # dissociated while the name was looked up
        try:
            flow.sock = self._dial(addresses)
            prefix = b""
            if self._proxy:
                destination = Address.from_text(*sockets.remote_address(flow.sock))
                prefix = proxy_header.udp_header(Address.from_text(*peer), destination)
            flow.udp = self._connection.open_udp(flow.sock, public=False)
            flow.udp.add_flow(association, peer, prefix)
        except EngineClosed:
            self.end(association)
            return
        except (OSError, EngineError, LocalProtocolError) as problem:
            self.end(association)
            self._refuse(association, "udp_flows_refused_local_service", str(problem))
            return
        flow.reader = _Reader(self._pump, flow.sock, flow.udp, self._counters, self._log)
        self._counters.add("udp_associations")
        self._log.debug("association %d: packets from %s", association, sockets.text(peer))

    def _dial(self, addresses: Addresses) -> socket.socket:
        problem: OSError = OSError(f"the address of {self._target.host} isn't known")
        for address in addresses:
            try:
                return sockets.connected_udp(address)
            except OSError as error:
                problem = error
        raise problem

    def _refuse(self, association: int, counter: str, why: str) -> None:
        self._counters.add(counter)
        self._limit.warning(self._log, "association %d refused: %s", association, why)
        with contextlib.suppress(EngineClosed):
            self._connection.remove_flow(association)

    def _refuse_more(self, peer: SocketAddress | None) -> None:
        with contextlib.suppress(EngineClosed):
            self._connection.refuse_flows(peer, _REFUSAL_LASTS)
