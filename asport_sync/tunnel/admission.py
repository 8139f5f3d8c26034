"""Who may join a server, and what is granted to whom. Decisions only: nothing here is bound or sent."""

from __future__ import annotations

import collections
import ipaddress
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from asport_sync.config import DialectName, Network, PortSet, ServerConfig
from asport_sync.engine import Connection, equal
from asport_sync.wire import TOKEN_LENGTH, ClientHello, Dialect, ForwardMode, Meaning, UdpMode, token


@dataclass(frozen=True, slots=True)
class User:
    """A user and what he may open.

    Attributes:
        uuid: His name.
        password: His password; not shown by ``repr``.
        bind_ip: Where his ports are opened.
        only_v6: IPV6_V6ONLY of them; None: as the system says.
        allow_ports: Ports he may open.
        allow_network: Networks he may open them for.
        dialect: Meaning of the mode byte he sends.
        max_clients: Clients he may have at the same time.
    """

    uuid: uuid.UUID
    password: str = field(repr=False)
    bind_ip: str
    only_v6: bool | None
    allow_ports: PortSet
    allow_network: Network
    dialect: DialectName
    max_clients: int = 64


def users_of(config: ServerConfig) -> dict[uuid.UUID, User]:
    """The users of a server by their name."""
    return {
        user.uuid: User(
            uuid=user.uuid,
            password=user.password,
            bind_ip=str(proxy.bind_ip),
            only_v6=proxy.only_v6,
            allow_ports=proxy.allow_ports,
            allow_network=proxy.allow_network,
            dialect=config.dialect_of(proxy, user),
            max_clients=user.max_clients or proxy.max_clients,
        )
        for proxy in config.proxies
        for user in proxy.users
    }


def shared_ports(users: Iterable[User]) -> PortSet:
    """The ports that more than one of these users may open."""
    edges = sorted(
        edge for user in users for start, end in user.allow_ports.ranges for edge in ((start, 1), (end + 1, -1))
    )
    shared, sharing, since = [], 0, 0
    for port, change in edges:
        if sharing > 1:
            shared.append((since, port - 1))
        sharing, since = sharing + change, port
    return PortSet(shared)


class Authenticator:
    """Tells users from everybody else by the token of ClientHello. Any thread.

    Args:
        users: By name.
    """

    def __init__(self, users: dict[uuid.UUID, User]) -> None:
        self._users = users
        self._nobodys_password = os.urandom(16).hex()

    def check(self, connection: Connection, hello: ClientHello) -> User | None:
        """The user whose UUID and token these are, or None.

        An unknown UUID costs the same work as a wrong token, so that an answer's delay tells nothing.

        Raises:
            EngineError: The connection is gone.
        """
        user = self._users.get(hello.uuid)
        password = self._nobodys_password if user is None else user.password
        expected = connection.export(token.label(hello.uuid), token.context(password), TOKEN_LENGTH)
        return user if equal(expected, hello.token) else None


class FailureDelay:
    """How long those wait for their answer who fail to authenticate again and again. One thread.

    A source may fail a number of times at once; of what it fails beyond, it hears late. Together with the engine's
    limit of clients of one source that are not admitted yet, this bounds how many passwords it can try. Who
    authenticates gets his answer at once. But that same limit of the engine's may keep him from a handshake for a
    while: before it nobody can tell him from the one that guesses behind the same address.

    Args:
        clock: Monotonic time in seconds.
    """

    _AT_ONCE = 10  # failures: a client with a wrong password, restarted by hand a few times, notices nothing
    _PERIOD = 6.0  # seconds until one more is forgiven
    _DELAY = 1.0  # seconds; a client waits 3 for its ServerHello
    _SOURCES = 4096  # that are remembered; of more, those that failed longest ago are forgotten

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When all of a source's failures are forgiven; the one that failed last is last.
        self._until: collections.OrderedDict[str, float] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def failed(self, ip: str) -> float:
        """Somebody at this address has failed; returns the seconds until he may hear of it."""
        now = self._clock()
        source = source_of(ip)
        until = max(self._until.pop(source, now), now) + self._PERIOD
        late = until > now + self._AT_ONCE * self._PERIOD
        # Not ever longer: whoever stops failing is forgiven after a minute.
        self._until[source] = min(until, now + self._AT_ONCE * self._PERIOD)
        while len(self._until) > self._SOURCES:
            self._until.popitem(last=False)
        return self._DELAY if late else 0.0


def source_of(ip: str) -> str:
    """What limits count as one source: an IPv4 address, or a /64 of IPv6, a subscriber's least (RFC 6177)."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def granted(allowed: Network, asked: ForwardMode, dialect: Dialect) -> ForwardMode | None:
    """What a user gets of the networks he asked for; None: the answer is NetworkDenied.

    The dialects differ. Flags are met as far as they are allowed, and nothing on the wire tells the client of the
    rest. In the draft's enumeration all that is asked for must be allowed.
    """
    tcp = asked.tcp and allowed in ("tcp", "both")
    udp = asked.udp if allowed in ("udp", "both") else None
    mode = ForwardMode(tcp, udp)
    if not tcp and udp is None:
        return None
    if dialect is Dialect.DRAFT and mode != asked:
        return None
    return mode


@dataclass(frozen=True, slots=True)
class Grant:
    """What a user gets where his mode byte may mean two things.

    Attributes:
        meanings: What is served of it: for each meaning that the user may use, what he gets of that. Never empty.
    """

    meanings: tuple[Meaning, ...]

    @property
    def mode(self) -> ForwardMode:
        """The networks to open. The carrier of UDP is that of the first meaning with UDP."""
        modes = [meaning.mode for meaning in self.meanings]
        return ForwardMode(any(mode.tcp for mode in modes), next((mode.udp for mode in modes if mode.udp), None))

    @property
    def carrier_unknown(self) -> bool:
        """Whether UDP travels one way in the one meaning and another way in the other."""
        return len(self._carriers()) > 1

    @property
    def parts(self) -> tuple[Grant, ...]:
        """Where the meanings are different networks, each for itself: what remains if both can't be had."""
        if len({(meaning.mode.tcp, meaning.mode.udp is not None) for meaning in self.meanings}) == 1:
            return ()
        return tuple(Grant((meaning,)) for meaning in self.meanings)

    def __str__(self) -> str:
        if self.carrier_unknown:
            return " or ".join(f"udp {udp.value}" for udp in self._carriers())
        return str(self.mode)

    def _carriers(self) -> list[UdpMode]:
        return list(dict.fromkeys(meaning.mode.udp for meaning in self.meanings if meaning.mode.udp is not None))


def grant(allowed: Network, asked: tuple[Meaning, ...]) -> Grant | None:
    """What a user gets who may have asked for either of these; None: the answer is NetworkDenied."""
    served = tuple(
        Meaning(mode, dialect) for wanted, dialect in asked if (mode := granted(allowed, wanted, dialect)) is not None
    )
    return Grant(served) if served else None
