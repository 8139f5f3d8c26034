"""Admission policy of a server: which clients may join, and what each is granted. Nothing is bound or sent here."""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from asport_sync.config import (
    BalanceName,
    Bandwidth,
    DialectName,
    LimitsConfig,
    Network,
    PortSet,
    ServerConfig,
    dialect_of,
)
from asport_sync.engine import VisitorLimits, equal
from asport_sync.host.visitors import limits_of
from asport_sync.server.associations import LAST_ASSOCIATION
from asport_sync.wire import TOKEN_LENGTH, ClientHello, Dialect, ForwardMode, Meaning, UdpMode, token


@dataclass(frozen=True, slots=True)
class User:
    """A user and their permissions.

    Attributes:
        uuid: Identifies the user.
        password: Not shown by ``repr``.
        bind_ip: Address that their ports are bound to.
        only_v6: IPV6_V6ONLY of these sockets; None: the system's default.
        allow_ports: Ports that they may open.
        allow_network: Networks that they may open ports for.
        dialect: Dialect of the mode byte that they send.
        max_clients: Maximum number of clients at the same time.
        entry: Users with the same number share ``max_clients_total`` and ``entry_bandwidth``.
        max_clients_total: Maximum number of clients of all these users together; None: no limit.
        visitors: Which visitors their ports serve, and how many TCP connections.
        max_associations: Maximum number of UDP associations of each port.
        bandwidth: Limits on the payload of all their connections together; None: none of their own.
        entry_bandwidth: Limits on that of all users with the same number together; None: none.
        balance: How visitors are spread over clients that share a port; None: each port belongs to one client.
        name: A name for people; None: there is none.
    """

    uuid: uuid.UUID
    password: str = field(repr=False)
    bind_ip: str
    only_v6: bool | None
    allow_ports: PortSet
    allow_network: Network
    dialect: DialectName
    max_clients: int = 64
    entry: int = 0
    max_clients_total: int | None = None
    visitors: VisitorLimits = field(default_factory=VisitorLimits)
    max_associations: int = LAST_ASSOCIATION
    bandwidth: Bandwidth | None = None
    entry_bandwidth: Bandwidth | None = None
    balance: BalanceName | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """The user in log lines: the UUID, after the name if there is one."""
        return str(self.uuid) if self.name is None else f"{self.name} ({self.uuid})"


def users_of(config: ServerConfig) -> dict[uuid.UUID, User]:
    """Returns a server's users, keyed by UUID."""
    users = {}
    for entry, proxy in enumerate(config.proxies):
        of_entry = limits_of([proxy])
        for user in proxy.users:
            has_rules = user.allow_from is not None or user.deny_from is not None
            visitors = dataclasses.replace(
                limits_of([proxy, user]) if has_rules else of_entry,
                max_connections=_nearest("max_connections", user, proxy, config) or 0,
                max_new=_nearest("new_connections_per_second", user, proxy, config) or 0,
            )
            users[user.uuid] = User(
                uuid=user.uuid,
                password=user.password,
                bind_ip=str(proxy.bind_ip),
                only_v6=proxy.only_v6,
                allow_ports=proxy.allow_ports,
                allow_network=proxy.allow_network,
                dialect=dialect_of(config, proxy, user),
                max_clients=user.max_clients or proxy.max_clients,
                entry=entry,
                max_clients_total=proxy.max_clients_total,
                visitors=visitors,
                max_associations=_nearest("udp_sessions", user, proxy, config) or LAST_ASSOCIATION,
                bandwidth=user.bandwidth,
                entry_bandwidth=proxy.bandwidth,
                balance=proxy.balance,
                name=user.name,
            )
    return users


def _nearest(name: str, *levels: LimitsConfig) -> int | None:
    """Returns the limit that the first of these levels gives; None: none does."""
    return next((value for level in levels if (value := getattr(level, name)) is not None), None)


def shared_ports(users: Iterable[User]) -> PortSet:
    """Returns the ports that more than one of these users may open."""
    edges = sorted(
        edge for user in users for start, end in user.allow_ports.ranges for edge in ((start, 1), (end + 1, -1))
    )
    shared, sharing, since = [], 0, 0
    for port, change in edges:
        if sharing > 1:
            shared.append((since, port - 1))
        sharing, since = sharing + change, port
    return PortSet(shared)


class Exporter(Protocol):
    """The TLS exporter of a connection (RFC 8446 section 7.5)."""

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """Returns ``length`` bytes of keying material."""


class Policy(Protocol):
    """Who may use a server, what they may open, and within which limits. All methods: the events thread.

    Attributes:
        users: The users known now, by UUID: for warnings about their ports and addresses.
    """

    users: dict[uuid.UUID, User]

    def authenticate(self, connection: Exporter, hello: ClientHello, answer: Callable[[User | None], None]) -> None:
        """Calls ``answer`` with the user that this UUID and token belong to; with None if there is none.

        Must not block. The answer may be given later, in the same thread: the client waits for it, for at most
        ``handshake_timeout`` after it has connected. Only the first answer counts.

        Raises:
            EngineError: The connection is gone.
        """


class ConfiguredPolicy:
    """The users of a configuration.

    Args:
        users: By UUID.
    """

    def __init__(self, users: dict[uuid.UUID, User]) -> None:
        self.users = users
        self._dummy_password = os.urandom(16).hex()

    def authenticate(self, connection: Exporter, hello: ClientHello, answer: Callable[[User | None], None]) -> None:
        """Answers at once.

        An unknown UUID costs the same work as a wrong token, so the response time does not reveal which UUIDs exist.

        Raises:
            EngineError: The connection is gone.
        """
        user = self.users.get(hello.uuid)
        password = self._dummy_password if user is None else user.password
        expected = connection.export(token.label(hello.uuid), token.context(password), TOKEN_LENGTH)
        answer(user if equal(expected, hello.token) else None)


def why_to_end(before: User, after: User | None, port: int | None, grant: Grant | None) -> str | None:
    """Returns why a client has to disconnect after a change of its user; None: it may go on.

    Args:
        before: Its user so far.
        after: The same user now; None: removed.
        port: Its public port; None: it has none yet.
        grant: What it was granted; None: nothing yet.
    """
    if after is None:
        return "removal"
    if after.password != before.password:
        return "change of the password"
    if (after.bind_ip, after.only_v6) != (before.bind_ip, before.only_v6):
        return "change of bind_ip or only_v6"
    if port is None or grant is None:
        return None if after == before else "change of the settings"  # a port for it is searched by the earlier ones
    if port not in after.allow_ports:
        return "change of allow_ports"
    if (after.balance is None) != (before.balance is None):
        return "change of balance"
    tcp, udp = after.allow_network in ("tcp", "both"), after.allow_network in ("udp", "both")
    if (grant.mode.tcp and not tcp) or (grant.mode.udp is not None and not udp):
        return "change of allow_network"
    return None


class FailureDelay:
    """Delays the answers to repeated authentication failures of one source. One thread.

    A source may fail a number of times without delay; answers to further failures are delayed. Together with the
    engine's limit on unauthenticated clients per source, this bounds how many passwords one source can try. Valid
    credentials are never delayed, even from a throttled address. The engine's limit, however, may delay their
    handshake: before the handshake, a valid client cannot be distinguished from a password guesser behind the same
    address.

    Args:
        clock: Monotonic time in seconds.
    """

    _AT_ONCE = 10  # failures without delay: enough for a client with a wrong password that is restarted by hand
    _PERIOD = 6.0  # seconds until one more failure is forgiven
    _DELAY = 1.0  # seconds; a client waits 3 s for its ServerHello
    _SOURCES = 4096  # maximum number of sources remembered; those that failed longest ago are forgotten first

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Key: source. Value: when all of its failures are forgiven. Ordered by the latest failure, newest last.
        self._until: collections.OrderedDict[str, float] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def failed(self, ip: str) -> float:
        """Records a failure from this address; returns the delay of the answer in seconds."""
        now = self._clock()
        source = source_of(ip)
        until = max(self._until.pop(source, now), now) + self._PERIOD
        late = until > now + self._AT_ONCE * self._PERIOD
        # Capped, so that a source is forgiven one minute after its last failure.
        self._until[source] = min(until, now + self._AT_ONCE * self._PERIOD)
        while len(self._until) > self._SOURCES:
            self._until.popitem(last=False)
        return self._DELAY if late else 0.0


def source_of(ip: str) -> str:
    """Returns what limits count as one source: an IPv4 address, or an IPv6 /64, a subscriber's minimum (RFC 6177)."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def granted(allowed: Network, asked: ForwardMode, dialect: Dialect) -> ForwardMode | None:
    """Returns which of the requested networks a user gets; None: the answer is NetworkDenied.

    The dialects differ. Flags are granted as far as they are allowed, and nothing on the wire tells the client which
    were not. In the draft's enumeration, everything requested must be allowed.
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
    """What a user is granted. An ambiguous mode byte may have two meanings.

    Attributes:
        meanings: What is served: one entry for each meaning that the user may use. Never empty.
    """

    meanings: tuple[Meaning, ...]

    @property
    def mode(self) -> ForwardMode:
        """The networks to open. The UDP carrier is that of the first meaning with UDP."""
        modes = [meaning.mode for meaning in self.meanings]
        return ForwardMode(any(mode.tcp for mode in modes), next((mode.udp for mode in modes if mode.udp), None))

    @property
    def carrier_unknown(self) -> bool:
        """Whether the meanings have different UDP carriers."""
        return len(self._carriers()) > 1

    @property
    def parts(self) -> tuple[Grant, ...]:
        """One grant per meaning if their networks differ, else empty: the fallbacks if no port is free for all."""
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
    """Returns what a user gets for a mode byte with these meanings; None: the answer is NetworkDenied."""
    served = tuple(
        Meaning(mode, dialect) for wanted, dialect in asked if (mode := granted(allowed, wanted, dialect)) is not None
    )
    return Grant(served) if served else None
