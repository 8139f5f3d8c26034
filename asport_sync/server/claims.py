"""Claims: which port a client gets, and from which silent connection of its user it takes one over.

A client that was restarted, or whose address changed, finds its place and port taken by its previous connection. The
previous connection is probed, and makes way if it does not answer.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import uuid
from collections.abc import Callable, Iterable, Mapping

from asport_sync.config import PortSet
from asport_sync.engine import Connection, Probed
from asport_sync.errors import EngineError, GoneError, HandleGoneError
from asport_sync.host.host import Host
from asport_sync.runtime.log import logger
from asport_sync.runtime.timers import Timer
from asport_sync.server.connection import ClientConnection
from asport_sync.server.groups import PortGroup
from asport_sync.server.policy import Grant, User
from asport_sync.server.ports import Binding, Leases, Place, PortTable, PublicPort
from asport_sync.wire import Meaning, ServerHelloCode

_log = logger("server")

_BINDS_PER_SLICE = 64  # about 2 ms of system calls; then other events are handled

# Seconds that a connection gets to answer a probe before another client of its user takes its place. A live client on a
# busy machine may be late; a new client waits 3 s for its ServerHello.
_PROBE = 1.0

_MAX_PROBES = 16  # maximum probes at once per new client: each costs this thread a call that waits for the engine

_MAX_PROBING_TIME = 2.0  # seconds; connections that have not answered by then count as alive

_PRIVILEGED = 1024  # first unprivileged port, unless net.ipv4.ip_unprivileged_port_start says otherwise


@dataclasses.dataclass(eq=False)
class Claim:
    """A client that has authenticated and waits for its port. The events thread.

    Attributes:
        asked: All possible meanings of its mode byte, which may be ambiguous.
        whole: What the user may have of these.
        grant: What a port is searched for: ``whole``, or a part of it if there is no port for all.
        others: The parts to search for next.
        has_place: Whether it counts towards the maximums of its user and its entry.
        rivals: Connections of the same user that may be in its way and have not been probed yet; None: not needed so
            far.
        waiting: Connections that are being probed.
        timer: Ends the probing.
        denied: The system's error for a port, other than EADDRINUSE.
        in_use: Whether a port was in use.
    """

    client: ClientConnection
    user: User
    asked: tuple[Meaning, ...]
    whole: Grant
    grant: Grant
    others: list[Grant]
    ports: PortSet
    has_place: bool = False
    rivals: collections.deque[ClientConnection] | None = None
    waiting: set[Connection] = dataclasses.field(default_factory=set)
    timer: Timer | None = None
    denied: OSError | None = None
    in_use: bool = False

    @property
    def may_share(self) -> bool:
        """Whether it may have a port that other clients of the user have already.

        Only where visitors know which port it is: with a choice of ports, each client has one of its own.
        """
        return self.user.balance is not None and len(self.ports) == 1


class Claims:
    """Finds ports for authenticated clients. The events thread.

    Args:
        host: The session's host.
        connections: All connections of the session.
        grant: Called with a claim and its port.
        refuse: Called with a client, the code and the reason.
    """

    def __init__(
        self,
        host: Host,
        connections: Mapping[Connection, ClientConnection],
        grant: Callable[[Claim, PublicPort], None],
        refuse: Callable[[ClientConnection, ServerHelloCode, str], None],
    ) -> None:
        self._host = host
        self._connections = connections
        self._grant = grant
        self._refuse = refuse
        self._ports = PortTable()
        self._leases = Leases()
        self._groups: dict[tuple[Place, int], PortGroup] = {}  # by place and number of their port
        # By user: the clients that have a port or search for one. And how many there are by entry of ``proxies``.
        self._clients: dict[uuid.UUID, dict[Connection, ClientConnection]] = {}
        self._of_entry: collections.Counter[int] = collections.Counter()
        # By connection that is being probed: the claims that wait for its answer, in order.
        self._probed: dict[Connection, dict[Claim, None]] = {}

    def find_place(self, claim: Claim) -> None:
        """Counts a new client towards the maximums of its user and its entry before anything is bound."""
        if self._why_full(claim.user):
            self._probe_rivals(claim)
            return
        self._take_place(claim)
        self._bind(claim)

    def _why_full(self, user: User) -> str:
        """Returns why this user can't have another client now; empty if they can."""
        total = user.max_clients_total
        if len(self._clients.get(user.uuid, ())) >= user.max_clients:
            return f"user {user.label} already has {user.max_clients} clients, the maximum (max_clients)"
        if total is not None and self._of_entry[user.entry] >= total:
            return f"user {user.label}: the users of this entry have {total} clients, the maximum (max_clients_total)"
        return ""

    def _take_place(self, claim: Claim) -> None:
        client, user = claim.client, claim.user
        self._clients.setdefault(user.uuid, {})[client.connection] = client
        self._of_entry[user.entry] += 1
        client.place = user.uuid, user.entry
        claim.has_place = True

    def leave(self, client: ClientConnection) -> None:
        """Stops counting a client towards the maximums of its user and its entry. Idempotent."""
        if client.place is None:
            return
        user, entry = client.place
        client.place = None
        self._of_entry[entry] -= 1
        del self._clients[user][client.connection]
        if not self._clients[user]:
            del self._clients[user]

    def recount(self, users: Mapping[uuid.UUID, User]) -> None:
        """Counts clients towards the entries in which their users are now: the number of an entry may have changed."""
        self._of_entry.clear()
        for user, clients in self._clients.items():
            for client in clients.values():
                assert client.place is not None
                entry = users[user].entry if user in users else client.place[1]
                client.place = user, entry
                self._of_entry[entry] += 1

    def _probe_rivals(self, claim: Claim) -> None:
        """Probes connections in the new client's way, a few at a time.

        A client that was restarted, or whose address changed, finds its place and port taken by its previous
        connection, which would otherwise remain until the idle timeout. The first silent one makes way.
        """
        if claim.rivals is None:
            claim.rivals = collections.deque(self._rivals(claim))
        while claim.rivals and len(claim.waiting) < _MAX_PROBES:
            rival = claim.rivals.popleft()
            if rival.gone or rival.closing:
                continue
            connection = rival.connection
            if connection not in self._probed:
                try:
                    rival.connection.probe(_PROBE)
                except HandleGoneError:
                    self._take_over(claim, rival)
                    return
            self._probed.setdefault(connection, {})[claim] = None
            claim.waiting.add(connection)
        if not claim.waiting:
            self._refuse_place(claim)
        elif claim.timer is None or not claim.timer.pending:
            claim.timer = self._host.timers.after(_MAX_PROBING_TIME, lambda: self._stop_probing(claim))

    def _rivals(self, claim: Claim) -> Iterable[ClientConnection]:
        """Returns the user's connections that hold a port this client could get; all with a port if it lacks a place.

        Those of the same address come first: its own predecessor most likely had that address.
        """

        def in_the_way(client: ClientConnection) -> bool:
            return (
                client.port is not None and client.port.number in claim.ports and client.port.serves(claim.whole.mode)
            )

        clients = self._clients.get(claim.user.uuid, {}).values()
        rivals = [
            client for client in clients if client.port is not None and (not claim.has_place or in_the_way(client))
        ]
        return sorted(rivals, key=lambda client: (not in_the_way(client), client.address[0] != claim.client.address[0]))

    def probed(self, event: Probed) -> None:
        """Handles the result of a probe."""
        rival = self._connections.get(event.connection)
        claims = self._probe_ended(event.connection)
        # Checked again here: the answer may have arrived while the event waited for this thread.
        if claims and rival is not None and not event.alive and not rival.closing and _is_silent(rival):
            self._take_over(claims.pop(0), rival)
        for claim in claims:
            self._probe_rivals(claim)

    def ended(self, connection: Connection) -> None:
        """Resumes the claims that waited for a connection that has ended."""
        for claim in self._probe_ended(connection):
            self._try_again(claim)

    def _probe_ended(self, connection: Connection) -> list[Claim]:
        """Stops waiting for this connection's answer; returns the claims that still waited for it."""
        claims = [claim for claim in self._probed.pop(connection, {}) if connection in claim.waiting]
        for claim in claims:
            claim.waiting.discard(connection)
        return [claim for claim in claims if not (claim.client.gone or claim.client.closing)]

    def _stop_probing(self, claim: Claim) -> None:
        if claim.waiting:
            claim.waiting.clear()
            self._refuse_place(claim)

    def _try_again(self, claim: Claim) -> None:
        """Resumes a claim after a connection in its way has ended. Unanswered probes are repeated if necessary."""
        assert claim.rivals is not None
        claim.rivals.extendleft(self._connections[each] for each in claim.waiting if each in self._connections)
        claim.waiting.clear()
        if claim.has_place:
            self._bind(claim)
        else:
            self.find_place(claim)

    def _refuse_place(self, claim: Claim) -> None:
        user = claim.user
        if claim.client.gone or claim.client.closing:
            return
        if claim.has_place:
            why = f"requested {either(claim.asked)}, user {user.label}, ports {claim.ports}, {_why_none(claim)}"
        elif why := self._why_full(user):
            self._host.counters.add("clients_refused_limit")
        else:
            self.find_place(claim)  # another client has left meanwhile
            return
        self._refuse(claim.client, ServerHelloCode.BIND_FAILED, why)

    def _take_over(self, claim: Claim, rival: ClientConnection) -> None:
        """Gives the place and the port of a silent connection to the new client."""
        claim.waiting.clear()
        # Before the new client is reported to have the port.
        self._host.calls.disconnected(rival.subject, "silent; another client of the user takes its place")
        number = 0 if rival.port is None else rival.port.number
        port = self.detach(rival)
        rival.closing = True
        self.leave(rival)
        rival.handshake.close()
        # Its relays end with it, which is how visitors notice.
        self._close_quietly(rival.connection)
        self._host.counters.add("ports_taken_over")
        _log.info("%s: silent; its port %d is taken over by %s", rival.label, number, claim.client.label)
        if not claim.has_place:
            self._take_place(claim)
        if port is not None and number not in claim.ports:
            self._ports.release(port)
            self._leases.remember(claim.user.uuid, number)
            port = None
        self._bind(claim, [] if port is None else [port])

    def rebalance(self, users: Mapping[uuid.UUID, User]) -> None:
        """Spreads new visitors as the users' entries say now."""
        for (place, _), group in self._groups.items():
            user = users.get(place.user)
            if user is not None and user.balance is not None:
                with contextlib.suppress(EngineError):
                    group.set_balance(user.balance)

    def _joins_group(self, claim: Claim, place: Place) -> bool:
        """Adds the client to those that share its port, if there are any; returns whether it did."""
        if not claim.may_share:
            return False
        group = self._groups.get((place, claim.ports.ranges[0].start))
        if group is None:
            return False
        try:
            # What one of them serves over TCP, another may serve over UDP.
            self._ports.complete(group.port, group.mode(claim.grant.mode))
        except OSError:
            return False
        self._enter(group, claim)
        return True

    def _enter(self, group: PortGroup, claim: Claim) -> None:
        claim.client.group = group
        group.members[claim.client] = claim.grant.mode
        self._grant(claim, group.port)

    def _give(self, claim: Claim, port: PublicPort) -> None:
        """Gives a new port to a client."""
        if not claim.may_share:
            self._grant(claim, port)
            return
        assert claim.user.balance is not None
        try:
            group = PortGroup(self._host.engine, port, claim.user.balance)
        except EngineError:
            self._ports.release(port)
            raise
        self._groups[port.place, port.number] = group
        self._enter(group, claim)

    def _left(self, client: ClientConnection, group: PortGroup) -> PublicPort | None:
        """Returns the port of a client that leaves its group; None: others still need it."""
        del group.members[client]
        if group.members:
            self._ports.reduce(group.port, group.mode())  # closes what only this one needed
            return None
        group.close()
        del self._groups[group.port.place, group.port.number]
        return group.port

    def _bind(self, claim: Claim, inherited: Iterable[PublicPort] = ()) -> None:
        user, mode = claim.user, claim.grant.mode
        place = Place(user.bind_ip, user.only_v6, user.uuid)
        preferred = (
            port
            for port in self._leases.ports(user.uuid)
            if port in claim.ports and not self._ports.holds(place, port, mode)
        )
        binding = Binding(
            self._ports,
            place,
            mode,
            claim.ports,
            inherited,
            [port for port in (next(preferred, None),) if port is not None],
        )
        self._search(claim, binding)

    def _search(self, claim: Claim, binding: Binding) -> None:
        client = claim.client
        if client.gone or client.closing:
            binding.abandon()
        elif self._joins_group(claim, binding.place):  # which may have begun since the last slice
            binding.abandon()
        elif not binding.advance(_BINDS_PER_SLICE):
            if binding.problem is not None:
                self._host.counters.add("binds_deferred")
                said = binding.problem.strerror
                self._host.limit.warning(
                    _log, "%s: no public port yet: %s; retrying", client.label, said, source=claim.user.uuid
                )
            self._host.timers.after(binding.delay, lambda: self._search(claim, binding))
        elif binding.port is not None:
            self._give(claim, binding.port)
        elif binding.problem is not None:
            said = binding.problem.strerror
            detail = f"requested {either(claim.asked)}, user {claim.user.label}, ports {claim.ports}: {said}"
            self._refuse(client, ServerHelloCode.BIND_FAILED, detail)
        else:
            claim.denied = binding.denied or claim.denied
            claim.in_use = binding.in_use or claim.in_use
            if claim.others:
                claim.grant = claim.others.pop(0)
                self._bind(claim)
            else:
                claim.grant, claim.others = claim.whole, list(claim.whole.parts)
                self._probe_rivals(claim)

    def stop_accepting(self, client: ClientConnection) -> None:
        """Accepts no more visitors for a client that has a port. Open connections and associations go on."""
        if client.listener is not None:
            client.listener.close()
            client.listener = None
        if client.port is not None and (client.group is None or not client.group.is_accepting):
            self._ports.stop_listening(client.port)  # visitors are refused now, and do not wait in the backlog
        if client.udp is not None:
            self._host.pump.call(client.udp.drain)

    def detach(self, client: ClientConnection) -> PublicPort | None:
        """Takes a client's port out of service without closing its sockets.

        Returns None if it has none, or if others share it.
        """
        if client.listener is not None:
            client.listener.close()
        # Waits for the pump, for one turn of its loop at most: a descriptor closed while another thread is about to use
        # it may then refer to another socket.
        if client.udp is not None:
            self._host.pump.call_and_wait(client.udp.close)
        client.listener = client.udp = None
        port, client.port = client.port, None
        group, client.group = client.group, None
        return port if group is None else self._left(client, group)

    def release(self, client: ClientConnection) -> None:
        """Closes a client's port, if it has one, and remembers it for the user. Idempotent."""
        port = self.detach(client)
        if port is not None:
            self._ports.release(port)
            if client.user is not None:
                self._leases.remember(client.user.uuid, port.number)

    def _close_quietly(self, connection: Connection) -> None:
        try:
            connection.close(0)
        except GoneError:
            _log.debug("connection already closed")


def _is_silent(client: ClientConnection) -> bool:
    """Whether nothing has been received on a connection since it was probed."""
    try:
        return client.connection.info().silence >= _PROBE
    except HandleGoneError:
        return True


def _why_none(claim: Claim) -> str:
    """Returns why a claim got none of its ports."""
    if claim.denied is None:
        return "all in use"
    said = claim.denied.strerror
    if claim.denied.errno == errno.EACCES and claim.ports.ranges[0].start < _PRIVILEGED:
        said = f"{said} (ports below {_PRIVILEGED} need CAP_NET_BIND_SERVICE)"
    return f"{'all in use or ' if claim.in_use else ''}refused by the system: {said}"


def either(asked: tuple[Meaning, ...]) -> str:
    """Names the possible meanings of a mode byte."""
    return " or ".join(map(str, asked))
