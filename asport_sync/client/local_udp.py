"""The local UDP service: one socket per association. The pump thread.

The engine forwards datagrams. Python is involved only in the first datagram of each source, and where a service moves.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable

from asport_sync.client.address_order import AddressOrder
from asport_sync.config import HostPort, LocalAddress
from asport_sync.engine import Connection, SocketAddress, UdpSocket, error_number
from asport_sync.errors import EngineError, GoneError, LifecycleError, LocalProtocolError
from asport_sync.host.associations import (
    DRAINED_AFTER,
    NONE_TO_EVICT,
    REFUSAL_LASTS,
    Evictions,
    IdleCheck,
    SharedBudget,
    SourceShares,
)
from asport_sync.host.udp_reader import UdpReader
from asport_sync.runtime import sockets
from asport_sync.runtime.counters import Counters
from asport_sync.runtime.log import Log, RateLimit
from asport_sync.runtime.selecting import SelectorThread
from asport_sync.runtime.threads import WorkerPool
from asport_sync.runtime.timers import Timer
from asport_sync.wire import Address, proxy_header

_REFRESH_AFTER = 30.0  # seconds until the local service's name is looked up again
_FAILURE_LASTS = 1.0  # seconds until a failed look-up is repeated
_DOUBT_LASTS = 1.0  # seconds until a name is looked up again whose address may be outdated
_SILENCE_PERIOD = 3.0  # seconds between checks for associations whose service no longer answers
_SILENT_AFTER = 3.0  # seconds that an answer may take before the service may have moved
_STILL_SENDING = 10.0  # seconds within which the visitor of such an association has sent something
_LINE_PERIOD = 60.0  # seconds between two log lines about the same problem of a tunnel
# Errors for lack of a descriptor, memory or a local port for another socket.
_NO_MORE_SOCKETS = sockets.OUT_OF_RESOURCES | {errno.EAGAIN}
Addresses = list[SocketAddress]


class LocalTarget:
    """The IP addresses of the local UDP service. The pump thread.

    A worker looks names up, because the pump must not block: at the first use, then every 30 s of use, and sooner if
    the service seems to have moved. An address that refuses datagrams is tried after all others.

    Args:
        order: Where the service is.
        pump: The thread.
        workers: Look names up.
        clock: Monotonic time in seconds.

    Attributes:
        order: Where the service is.
        refusal_limit: Rate limit of log lines that the service does not take datagrams.
        move_limit: Rate limit of log lines that it is reached at another address.
    """

    def __init__(
        self,
        order: AddressOrder,
        pump: SelectorThread,
        workers: WorkerPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.order = order
        self.refusal_limit = RateLimit(1, _LINE_PERIOD, clock)
        self.move_limit = RateLimit(1, _LINE_PERIOD, clock)
        self._pump = pump
        self._workers = workers
        self._clock = clock
        hosts = [each for each in order.local.addresses if isinstance(each, HostPort)]
        self._names = [each for each in hosts if not sockets.is_literal(each.host)]
        # By host in the configuration: what its name resolved to, or the literal.
        self._found: dict[LocalAddress, Addresses] = {
            each: [(each.host, each.port)] for each in hosts if each not in self._names
        }
        self._looked_up = float("-inf") if self._names else float("inf")
        self._is_resolving = False
        self._refused: dict[SocketAddress, float] = {}  # by address: when it refused datagrams last
        self._waiting: list[Callable[[Addresses], None]] = []

    @property
    def is_fixed(self) -> bool:
        """Whether there is no name to look up."""
        return not self._names

    @property
    def addresses(self) -> Addresses:
        """The addresses known now, those more likely to take datagrams first."""
        known = [address for host in self.order.healthy() for address in self._found.get(host, ())]
        return sorted(dict.fromkeys(known), key=lambda address: self._refused.get(address, float("-inf")))

    def refuses(self, address: SocketAddress) -> None:
        """Records that this address does not take datagrams."""
        self._refused[address] = self._clock()

    def look_up(self) -> None:
        """Looks the name up, unless that was done recently or is under way."""
        self._look_up(_REFRESH_AFTER if self.addresses else _FAILURE_LASTS)

    def ask(self, call: Callable[[Addresses], None]) -> None:
        """Calls ``call(addresses)`` now or as soon as they are known, with an empty list if there are none."""
        self.look_up()
        addresses = self.addresses
        if addresses or not self._is_resolving:
            call(addresses)
        else:
            self._waiting.append(call)

    def ask_again(self, call: Callable[[Addresses], None]) -> None:
        """Like ``ask``, but waits for a new look-up, because the known addresses may be outdated."""
        self._look_up(_DOUBT_LASTS)
        if self._is_resolving:
            self._waiting.append(call)
        else:
            call(self.addresses)

    def _look_up(self, lasts: float) -> None:
        if self._is_resolving or self._clock() - self._looked_up < lasts:
            return
        try:
            self._workers.submit(self._resolve)
        except (LifecycleError, RuntimeError):
            return  # stopped, or the system can't create a thread: the next call tries again
        self._is_resolving = True

    def _resolve(self) -> None:
        # Worker thread.
        found: dict[LocalAddress, Addresses] = {}
        try:
            for name in self._names:
                with contextlib.suppress(OSError):
                    found[name] = sockets.resolve(*name, socket.SOCK_DGRAM)
        finally:
            # Associations wait for an answer in any case. The pool logs what else is wrong, such as a lack of memory.
            self._pump.offer(self._resolved, found)

    def _resolved(self, found: dict[LocalAddress, Addresses]) -> None:
        self._is_resolving = False
        self._looked_up = self._clock()
        # One failed look-up doesn't mean that the service has moved.
        self._found.update(found)
        known = {address for addresses in self._found.values() for address in addresses}
        self._refused = {each: when for each, when in self._refused.items() if each in known}
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
        self.reader: UdpReader | None = None


class LocalAssociations:
    """The associations of one connection to a server. The pump thread.

    Args:
        pump: The thread.
        connection: To the server.
        target: The local service.
        proxy: Whether every datagram begins with a PROXY header.
        timeout: Seconds without traffic after which an association's socket is closed.
        budget: Sockets that all connections of the client may have, to any server; leaves descriptors for everything
            else.
        own_budget: Those that all connections of the tunnel may have; None: there is no such limit.
        counters: Counts drops.
        log: Receives the failures, and at level debug one line for each association.
        limit: Rate limit of repeated failures.
        for_pump: Whether the pump reads the sockets from the beginning.
        failed: Called with the reason why the service does not get datagrams.
    """

    def __init__(
        self,
        pump: SelectorThread,
        connection: Connection,
        target: LocalTarget,
        *,
        proxy: bool,
        timeout: float,
        budget: SharedBudget[LocalAssociations],
        counters: Counters,
        log: Log,
        limit: RateLimit,
        own_budget: SharedBudget[LocalAssociations] | None = None,
        for_pump: bool = False,
        failed: Callable[[str], object] = lambda why: None,
    ) -> None:
        self._pump = pump
        self._connection = connection
        self._target = target
        self._proxy = proxy
        self._timeout = timeout
        self._budgets = (budget,) if own_budget is None else (budget, own_budget)
        self._counters = counters
        self._log = log
        self._limit = limit
        self._for_pump = for_pump
        self._failed = failed
        self._public: Address | None = None  # the public address and port
        # Requested before the ServerHello. Bounded, because the engine requests only associations with waiting packets.
        self._early: dict[int, SocketAddress] = {}
        self._by_association: dict[int, _LocalAssociation] = {}
        self._by_udp: dict[int, _LocalAssociation] = {}  # by the engine's ID of the socket
        self._maximum = min(each.maximum for each in self._budgets)
        self._shares = SourceShares(max(1, self._maximum // 2))
        self._evictions = Evictions(connection, self._maximum, self._shares, counters, self.end)
        self._expiry = IdleCheck(pump, connection, timeout, self.end)
        self._silence: Timer | None = None  # the next check for unanswered associations
        self._closed = False

    def open(self) -> None:
        """Begins to check for idle associations, and looks up the service's address before it is needed."""
        self._target.look_up()
        self._expiry.begin()
        if not self._target.is_fixed:
            self._silence = self._pump.after(_SILENCE_PERIOD, self._check_silence)

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
            has_place = self._has_place(peer)
        except GoneError:
            return
        if not has_place:
            self._no_place(association, peer)
            return
        for budget in self._budgets:
            budget.take(self)
        self._shares.take(association, peer[0])
        assoc = self._by_association[association] = _LocalAssociation(association, peer)
        self._target.ask(lambda addresses: self._connect(assoc, addresses))

    def end(self, association: int) -> None:
        """Ends an association that was dissociated or is idle. Does nothing if there is none."""
        assoc = self._by_association.pop(association, None)
        if assoc is None:
            if self._early.pop(association, None) is not None:
                with contextlib.suppress(GoneError):
                    self._connection.remove_association(association)
            return
        for budget in self._budgets:
            budget.give_back(self)
        self._shares.give_back(association)
        if assoc.reader is not None:
            assoc.reader.end()
        with contextlib.suppress(GoneError):
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
        self._target.ask_again(lambda addresses: self._service_is_elsewhere(assoc, addresses, error))

    def drain(self) -> None:
        """Lets associations end soon after their last traffic. No more are wanted."""
        self._expiry.set_timeout(min(self._timeout, DRAINED_AFTER))

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

    def _has_place(self, peer: SocketAddress) -> bool:
        """Whether there is room for an association of this visitor, after evictions if necessary."""
        for budget in self._budgets:
            victim = budget.victim(self)
            if victim is not None and victim is not self:
                victim._evict_excess(budget)
        if not self._evictions.allows(peer):
            return False
        return not self._is_full or (self._evictions.make_room(peer) and not self._is_full)

    @property
    def _is_full(self) -> bool:
        return any(len(budget) >= budget.maximum for budget in self._budgets)

    def _evict_excess(self, budget: SharedBudget[LocalAssociations]) -> None:
        """Evicts what exceeds this connection's fair share, idle or not: it has the most, and another lacks some."""
        try:
            self._evictions.evict(max(1, budget.excess(self)))
        except GoneError:
            self.close()

    def _connect(self, assoc: _LocalAssociation, addresses: Addresses) -> None:
        if self._by_association.get(assoc.association) is not assoc:
            return  # dissociated while the name was looked up
        try:
            try:
                self._open(assoc, addresses)
            except (OSError, EngineError) as problem:
                # Other code in this process, or other programs on this machine, hold what the budget counted on.
                if not _is_shortage(problem) or not self._evictions.make_room(assoc.peer):
                    raise
                self._open(assoc, addresses)
        except GoneError:
            self.end(assoc.association)
            return
        except (OSError, EngineError, LocalProtocolError) as problem:
            self.end(assoc.association)
            self._failed(f"cannot open a UDP socket to {self._target.order.local}: {problem}")
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
            udp = self._connection.open_udp(sock, public=False, for_pump=self._for_pump)
        except BaseException:
            sock.close()
            raise
        assoc.sock, assoc.udp, assoc.address = sock, udp, address
        assoc.reader = self._new_reader(sock, udp)
        self._by_udp[udp.id] = assoc
        udp.add_association(assoc.association, assoc.peer, prefix)

    def _new_reader(self, sock: socket.socket, udp: UdpSocket) -> UdpReader:
        reader = UdpReader(self._pump, sock, udp, self._counters, self._log, always=self._for_pump)
        if self._for_pump:
            reader.begin()
        return reader

    def _dial(self, addresses: Addresses) -> tuple[socket.socket, SocketAddress]:
        problem: OSError = OSError(f"no address of {self._target.order.local} is known")
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
        full = next((each for each in self._budgets if len(each) >= each.maximum), self._budgets[0])
        if self._shares.full(peer[0]):
            counter = "udp_associations_refused_share"
            what = f"{sockets.host_text(peer[0])} has at least half of {self._maximum} associations"
            self._refuse_more(peer)
        else:
            counter = "udp_associations_refused_limit"
            what = f"all {full.maximum} associations are in use"
            self._refuse_more(None)
        what += f"; {NONE_TO_EVICT} (udp_timeout is {self._timeout:g} s); the maximum is "
        own = full is not self._budgets[0]
        what += "udp_sessions" if own else "one per four descriptors (LimitNOFILE, ulimit -n)"
        self._refuse(association, counter, what)

    def _refuse(self, association: int, counter: str, why: str) -> None:
        self._counters.add(counter)
        self._limit.warning(self._log, "association %d refused: %s", association, why, kind=counter)
        with contextlib.suppress(GoneError):
            self._connection.remove_association(association)

    def _refuse_more(self, peer: SocketAddress | None) -> None:
        with contextlib.suppress(GoneError):
            self._connection.refuse_associations(peer, REFUSAL_LASTS)

    # --- a service that has moved or is unavailable ---

    def _service_is_elsewhere(self, assoc: _LocalAssociation, addresses: Addresses, error: int) -> None:
        """Handles the look-up of a name whose service refuses datagrams."""
        if self._by_association.get(assoc.association) is not assoc or assoc.address is None:
            return
        # If the address is still the service's, all of them have been tried, or it will come back there.
        if assoc.address in addresses or not self._move(assoc, addresses, error):
            assoc.tried = ()
            self._counters.add("udp_service_away")
            text = "the local service does not accept UDP at %s: %s"
            where, why = sockets.text(assoc.address), os.strerror(error)
            self._failed(text % (where, why))
            self._target.refusal_limit.warning(self._log, text, where, why)

    def _check_silence(self) -> None:
        """Checks for associations whose service may have moved. Not used with an IP literal, which can't move."""
        self._silence = self._pump.after(_SILENCE_PERIOD, self._check_silence)
        try:
            silent = self._connection.unanswered_associations(_SILENT_AFTER, _STILL_SENDING)
        except GoneError:
            self._silence.cancel()
            return
        assocs = [self._by_association[association] for association in silent if association in self._by_association]
        if assocs:
            self._target.ask_again(lambda addresses: self._services_are_elsewhere(assocs, addresses))

    def _services_are_elsewhere(self, assocs: list[_LocalAssociation], addresses: Addresses) -> None:
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
        assoc.reader = self._new_reader(sock, assoc.udp)
        try:
            assoc.udp.move(sock, self._prefix(assoc.peer))
        except (EngineError, LocalProtocolError) as problem:
            # Its next datagram requests a new association.
            self.end(assoc.association)
            self._log.debug("association %d: cannot be moved: %s", assoc.association, problem)
            return True
        self._counters.add("udp_associations_moved")
        self._target.move_limit.log(
            logging.INFO,
            self._log,
            "the local service %s at %s; UDP continues at %s",
            "does not answer" if error is None else f"does not accept UDP ({os.strerror(error)})",
            sockets.text(former),
            sockets.text(assoc.address),
        )
        return True


def _is_shortage(problem: OSError | EngineError) -> bool:
    """Whether a socket failed for lack of a descriptor, memory or a local port."""
    number = problem.errno if isinstance(problem, OSError) else error_number(problem)
    return number in _NO_MORE_SOCKETS
