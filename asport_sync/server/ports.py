"""Public ports: binding, ownership, and which port a returning user gets. The events thread."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import ipaddress
import itertools
import socket
import uuid
from collections.abc import Container, Iterable, Iterator

from asport_sync.runtime import sockets
from asport_sync.wire import ForwardMode

_NEXT_PORT = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM})
"""Errors that concern this port only; any other error would be the same with every port."""

_RESOURCE_TRIES = 6
_RESOURCE_DELAY = 0.2  # seconds between these tries; with a probe of predecessors, the total is below the client's 3 s

_PREFERRED_TRIES = 4
_PREFERRED_DELAY = 0.02  # seconds between these tries: the engine closes the predecessor's UDP socket asynchronously


@dataclasses.dataclass(frozen=True)
class Place:
    """Where public ports are bound, and for which user.

    Attributes:
        ip: IP literal.
        only_v6: IPV6_V6ONLY; None: the system's default.
        user: UUID of the user.
    """

    ip: str
    only_v6: bool | None
    user: uuid.UUID

    def overlaps(self, other: Place) -> bool:
        """Whether some address may reach both."""
        mine, others = ipaddress.ip_address(self.ip), ipaddress.ip_address(other.ip)
        return mine == others or self._covers(others) or other._covers(mine)

    def _covers(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        mine = ipaddress.ip_address(self.ip)
        return mine.is_unspecified and (mine.version == address.version or (mine.version == 6 and not self.only_v6))


class PublicPort:
    """A public port, with the sockets of the networks that it was bound for.

    Attributes:
        place: Where it is bound, and for which user.
        number: The same for TCP and UDP.
        tcp: Listening socket, or None.
        udp: Bound socket, or None.
    """

    def __init__(self, place: Place, number: int) -> None:
        self.place = place
        self.number = number
        self.tcp: socket.socket | None = None
        self.udp: socket.socket | None = None

    def serves(self, mode: ForwardMode) -> bool:
        """Whether it has at least one of the sockets that ``mode`` needs."""
        return (mode.tcp and self.tcp is not None) or (mode.udp is not None and self.udp is not None)


class PortTable:
    """The public ports of a server."""

    def __init__(self) -> None:
        self._held: dict[int, set[tuple[socket.SocketKind, Place]]] = {}  # by port number; no set is empty
        # The same by place and kind, for searches. Each user of the configuration that has come has up to two sets.
        self._numbers: collections.defaultdict[tuple[Place, socket.SocketKind], set[int]] = collections.defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def holds(self, place: Place, number: int, mode: ForwardMode) -> bool:
        """Whether a socket that ``mode`` needs is held here, or any socket of this number by another user.

        A number means one service to visitors, so what one user serves over TCP, another must not answer over UDP. For
        different users, overlapping addresses count as the same. Overlapping sockets of one user are left to the
        kernel, which refuses the second one.
        """
        kinds = list(_kinds(mode))
        return any(
            kind in kinds and held.ip == place.ip if held.user == place.user else bool(kinds) and held.overlaps(place)
            for kind, held in self._held.get(number, ())
        )

    def numbers(self, place: Place, kind: socket.SocketKind) -> Container[int]:
        """Returns the numbers of the sockets of this kind that the user holds there; it changes as they do."""
        return self._numbers[place, kind]

    def bind(self, place: Place, number: int, mode: ForwardMode) -> PublicPort:
        """Binds what ``mode`` needs, TCP first.

        Raises:
            OSError: Not everything can be bound; nothing is held then. EADDRINUSE also if a client of this server holds
                it.
        """
        port = PublicPort(place, number)
        try:
            self.complete(port, mode)
        except OSError:
            self.release(port)
            raise
        return port

    def complete(self, port: PublicPort, mode: ForwardMode) -> None:
        """Binds what ``mode`` needs and the port lacks.

        Raises:
            OSError: As for ``bind``. The port keeps what it has.
        """
        place, number = port.place, port.number
        if self.holds(place, number, ForwardMode(mode.tcp and not port.tcp, None if port.udp else mode.udp)):
            raise OSError(errno.EADDRINUSE, "held by another client")
        if mode.tcp and port.tcp is None:
            port.tcp = sockets.listen_tcp(place.ip, number, only_v6=place.only_v6)
            self._remember(port, socket.SOCK_STREAM)
        if mode.udp is not None and port.udp is None:
            port.udp = sockets.bind_udp(place.ip, number, only_v6=place.only_v6)
            self._remember(port, socket.SOCK_DGRAM)

    def reduce(self, port: PublicPort, mode: ForwardMode) -> None:
        """Closes what ``mode`` does not need; it must no longer be in use."""
        if not mode.tcp:
            self.stop_listening(port)
        if mode.udp is None:
            self._release_udp(port)

    def release(self, port: PublicPort) -> None:
        """Closes the sockets, which must no longer be in use. Idempotent."""
        self.stop_listening(port)
        self._release_udp(port)

    def stop_listening(self, port: PublicPort) -> None:
        """Closes the TCP socket, which must no longer be in use. Idempotent."""
        if port.tcp is not None:
            # Ends the listening itself, even if a child that C code forked, unnoticed by Python, holds a duplicate.
            with contextlib.suppress(OSError):
                port.tcp.shutdown(socket.SHUT_RDWR)
            port.tcp.close()
            port.tcp = None
            self._forget(port, socket.SOCK_STREAM)

    def _release_udp(self, port: PublicPort) -> None:
        if port.udp is not None:
            port.udp.close()
            port.udp = None
            self._forget(port, socket.SOCK_DGRAM)

    def _remember(self, port: PublicPort, kind: socket.SocketKind) -> None:
        self._held.setdefault(port.number, set()).add((kind, port.place))
        self._numbers[port.place, kind].add(port.number)

    def _forget(self, port: PublicPort, kind: socket.SocketKind) -> None:
        held = self._held[port.number]
        held.discard((kind, port.place))
        if not held:
            del self._held[port.number]
        self._numbers[port.place, kind].discard(port.number)


def _kinds(mode: ForwardMode) -> Iterator[socket.SocketKind]:
    if mode.tcp:
        yield socket.SOCK_STREAM
    if mode.udp is not None:
        yield socket.SOCK_DGRAM


class Binding:
    """An incremental search for a port: a range may have 65,535, and other clients must not wait for all of them.

    The order is: ports inherited from predecessors, preferred ports, then all others, ascending.

    Args:
        table: The ports held now.
        place: Where to bind, and for which user.
        mode: What is needed.
        ports: The allowed ports; 0 is skipped.
        inherited: Ports of dead predecessors with their sockets; unused ones are released.
        preferred: Ports to try before the others.

    Attributes:
        place: As given.
        port: The port, once found.
        denied: The system's error for a port, other than EADDRINUSE.
        in_use: Whether a port was in use.
        problem: Why the search was given up early, or which resource is lacking for the moment; None: neither.
        delay: Seconds to wait before the next slice.
    """

    def __init__(
        self,
        table: PortTable,
        place: Place,
        mode: ForwardMode,
        ports: Iterable[int],
        inherited: Iterable[PublicPort] = (),
        preferred: Iterable[int] = (),
    ) -> None:
        self.port: PublicPort | None = None
        self.problem: OSError | None = None
        self.denied: OSError | None = None
        self.in_use = False
        self.delay = 0.0
        self._table = table
        self.place = place
        self._mode = mode
        self._inherited = list(inherited)
        # A predecessor's port may stay in use for a moment after its release.
        self._preferred = [*(port.number for port in self._inherited), *preferred]
        self._preferred_tries = _PREFERRED_TRIES
        self._resource_tries = _RESOURCE_TRIES
        self._candidates = self._untaken(ports)

    def advance(self, attempts: int) -> bool:
        """Tries inherited and preferred ports, then up to ``attempts`` others; returns whether the search is over."""
        self.delay = 0.0
        self.problem = None
        while self._inherited:
            if self._adopt(self._inherited.pop(0)):
                self.abandon()
                return True
        if self._preferred:
            if self._try_all(self._preferred):
                return True
            if self.problem is not None:
                return False
            self._preferred_tries -= 1
            if self._preferred_tries > 0:
                self.delay = _PREFERRED_DELAY
                return False
            self._preferred.clear()
        batch = list(itertools.islice(self._candidates, attempts))
        if self._try_all(batch):
            return True
        if self.problem is not None:
            self._candidates = itertools.chain(batch, self._candidates)
            return False
        return len(batch) < attempts

    def abandon(self) -> None:
        """Releases inherited ports that are not needed. A port that was found stays with the caller."""
        for port in self._inherited:
            self._table.release(port)
        self._inherited.clear()

    def _untaken(self, numbers: Iterable[int]) -> Iterator[int]:
        """Leaves out what the user already holds: that may be thousands, each of which takes ``bind`` microseconds."""
        tcp, udp = (
            self._table.numbers(self.place, kind) if kind in _kinds(self._mode) else ()
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        )
        for number in numbers:
            if number in tcp or number in udp:
                self.in_use = True
            elif number != 0:
                yield number

    def _adopt(self, port: PublicPort) -> bool:
        if port.place == self.place:
            try:
                self._table.complete(port, self._mode)
            except OSError:
                pass
            else:
                self._table.reduce(port, self._mode)
                self.port = port
                return True
        self._table.release(port)
        return False

    def _try_all(self, numbers: Iterable[int]) -> bool:
        """Returns whether the search is over. If not and ``problem`` is set, all ports must be tried again."""
        for number in numbers:
            try:
                self.port = self._table.bind(self.place, number, self._mode)
                return True
            except OSError as problem:
                if problem.errno in _NEXT_PORT:
                    if problem.errno == errno.EADDRINUSE:
                        self.in_use = True
                    else:
                        self.denied = problem
                    continue
                self.problem = problem
                self._resource_tries -= 1
                if problem.errno not in sockets.OUT_OF_RESOURCES or self._resource_tries == 0:
                    return True
                self.delay = _RESOURCE_DELAY
                return False
        return False


class Leases:
    """The latest ports of each user, so that a returning client gets the same one.

    Users not seen for longest are forgotten first.

    Args:
        max_users: Maximum number of users remembered.
        max_ports: Maximum number of ports remembered for each.
    """

    def __init__(self, max_users: int = 4096, max_ports: int = 8) -> None:
        self._max_users = max_users
        self._max_ports = max_ports
        self._ports: collections.OrderedDict[uuid.UUID, list[int]] = collections.OrderedDict()

    def remember(self, user: uuid.UUID, port: int) -> None:
        """Records that the user held this port until now."""
        earlier = self._ports.pop(user, [])
        self._ports[user] = [port, *(other for other in earlier if other != port)][: self._max_ports]
        while len(self._ports) > self._max_users:
            self._ports.popitem(last=False)

    def ports(self, user: uuid.UUID) -> tuple[int, ...]:
        """Returns the ports of a user, the latest first."""
        return tuple(self._ports.get(user, ()))
