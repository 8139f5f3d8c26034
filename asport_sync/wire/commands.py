"""The six ASPORT commands as values, and their numbers on the wire.

Values only: encoding is in ``codec``. Commands whose fields do not fit on the wire cannot be constructed, so all other
modules may rely on field widths. A peer may violate the rules across commands with well-formed ones: ``handshake``
checks their order, the engine fragments.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar, TypeAlias
from uuid import UUID

from asport_sync.errors import LocalProtocolError

VERSION = 0
"""The version byte that starts every command. The same in both dialects of the forward mode."""

TOKEN_LENGTH = 32
"""Length of the token in ClientHello in bytes: 256 bits, fixed by the draft."""

MAX_MODE = 7
"""Maximum mode byte that has a meaning in any dialect (see ``dialect``)."""


class CommandType(enum.IntEnum):
    """Second byte of every command."""

    CLIENT_HELLO = 0
    SERVER_HELLO = 1
    CONNECT = 2
    PACKET = 3
    DISSOCIATE = 4
    HEARTBEAT = 5


class ServerHelloCode(enum.IntEnum):
    """The server's answer to ClientHello."""

    SUCCESS = 0
    AUTH_FAILED = 1
    BIND_FAILED = 2
    PORT_DENIED = 3
    NETWORK_DENIED = 4


class AddressFamily(enum.IntEnum):
    """First byte of an address."""

    IPV4 = 1
    IPV6 = 4
    NONE = 255


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and port. The draft's None family is Python's ``None``.

    Two addresses are equal if and only if their bytes on the wire are: an IPv4 address and its IPv4-mapped IPv6 form
    differ, as associations require. The wire has no field for an IPv6 zone, so it is removed here and never compared.

    Attributes:
        ip: The address, without a zone.
        port: 0 to 65535.

    Raises:
        LocalProtocolError: The port is out of range.
    """

    ip: IPv4Address | IPv6Address
    port: int

    def __post_init__(self) -> None:
        _check_unsigned("port", self.port, 16)
        if isinstance(self.ip, IPv6Address) and self.ip.scope_id is not None:
            object.__setattr__(self, "ip", IPv6Address(self.ip.packed))

    @classmethod
    def from_text(cls, host: str, port: int) -> Address:
        """Returns an address from an IP literal and a port, as ``socket.accept`` and ``recvfrom`` report them.

        Raises:
            LocalProtocolError: ``host`` is no IP literal, or ``port`` is out of range.
        """
        try:
            ip = ip_address(host)
        except ValueError:
            raise LocalProtocolError(f"{host!r} is not an IP address: expected an IPv4 or IPv6 literal") from None
        return cls(ip, port)

    @property
    def host(self) -> str:
        """The IP address as text (RFC 5952); an IPv4-mapped one as ``::ffff:a.b.c.d`` in every Python version."""
        if isinstance(self.ip, IPv6Address) and self.ip.ipv4_mapped is not None:
            return f"::ffff:{self.ip.ipv4_mapped}"
        return str(self.ip)

    def __str__(self) -> str:
        """Formats the address for display, IPv4-mapped IPv6 addresses as IPv4."""
        ip = (self.ip.ipv4_mapped or self.ip) if isinstance(self.ip, IPv6Address) else self.ip
        return f"{ip}:{self.port}" if isinstance(ip, IPv4Address) else f"[{ip}]:{self.port}"


@dataclass(frozen=True, slots=True)
class ClientHello:
    """Client to server, unidirectional stream: the user and the expected port range.

    ``repr`` omits the token. To authenticate, compare tokens with ``asport_sync.engine.equal``, not with ``==``.

    Attributes:
        uuid: The user.
        token: 32 bytes from the TLS exporter; a secret.
        mode: The raw mode byte, 0 to 7. Its meaning depends on the dialect: see ``dialect.decode_mode``.
        port_start: First port of the expected range.
        port_end: Last port of the expected range, inclusive. If below ``port_start``, the range is empty, which is
            well-formed.

    Raises:
        LocalProtocolError: A field does not fit on the wire.
    """

    command_type: ClassVar[CommandType] = CommandType.CLIENT_HELLO

    uuid: UUID
    token: bytes = field(repr=False)
    mode: int
    port_start: int
    port_end: int

    def __post_init__(self) -> None:
        if len(self.token) != TOKEN_LENGTH:
            raise LocalProtocolError(f"token has {len(self.token)} bytes, expected {TOKEN_LENGTH}")
        if not 0 <= self.mode <= MAX_MODE:
            raise LocalProtocolError(f"mode is {self.mode}, expected 0 to {MAX_MODE}")
        _check_unsigned("port_start", self.port_start, 16)
        _check_unsigned("port_end", self.port_end, 16)


@dataclass(frozen=True, slots=True)
class ServerHello:
    """Server to client, unidirectional stream: the answer to ClientHello.

    Attributes:
        code: The outcome.
        port: The public port, present if and only if ``code`` is SUCCESS.

    Raises:
        LocalProtocolError: Port and code do not match, or the port is out of range.
    """

    command_type: ClassVar[CommandType] = CommandType.SERVER_HELLO

    code: ServerHelloCode
    port: int | None = None

    def __post_init__(self) -> None:
        if self.code is not ServerHelloCode.SUCCESS:
            if self.port is not None:
                raise LocalProtocolError(f"ServerHello {self.code.name} with port {self.port}, expected none")
        elif self.port is None:
            raise LocalProtocolError("ServerHello SUCCESS without a port, expected one")
        else:
            _check_unsigned("port", self.port, 16)


@dataclass(frozen=True, slots=True)
class Connect:
    """Server to client, first on a bidirectional stream: a visitor's TCP connection; its bytes follow on the stream.

    Attributes:
        address: The visitor's address, or None if the server does not report it.
    """

    command_type: ClassVar[CommandType] = CommandType.CONNECT

    address: Address | None


@dataclass(frozen=True, slots=True)
class Packet:
    """Both directions, datagram or unidirectional stream: one UDP packet or one fragment of it.

    Only widths are checked here. The engine checks fragment numbers and the address: an error there costs the
    fragment, not the connection.

    Attributes:
        assoc_id: The association, chosen by the server; 0 is valid.
        pkt_id: Counter of UDP packets per association and direction; wraps after 65535. Equal in all fragments of a
            packet.
        frag_total: Number of fragments; 1 for a whole packet.
        frag_id: Index of this fragment, from 0.
        address: The visitor's address. None on every fragment except the first.
        payload: Payload of this fragment, at most 65535 bytes; may be empty.

    Raises:
        LocalProtocolError: A field does not fit on the wire.
    """

    command_type: ClassVar[CommandType] = CommandType.PACKET

    assoc_id: int
    pkt_id: int
    frag_total: int
    frag_id: int
    address: Address | None
    payload: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_unsigned("assoc_id", self.assoc_id, 16)
        _check_unsigned("pkt_id", self.pkt_id, 16)
        _check_unsigned("frag_total", self.frag_total, 8)
        _check_unsigned("frag_id", self.frag_id, 8)
        _check_unsigned("size", self.size, 16)

    @property
    def size(self) -> int:
        """The size field: length of this fragment's payload in bytes."""
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class Dissociate:
    """Server to client, unidirectional stream: the association has ended.

    Attributes:
        assoc_id: The association.

    Raises:
        LocalProtocolError: ``assoc_id`` is not a 16-bit number.
    """

    command_type: ClassVar[CommandType] = CommandType.DISSOCIATE

    assoc_id: int

    def __post_init__(self) -> None:
        _check_unsigned("assoc_id", self.assoc_id, 16)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Client to server, datagram: prevents the idle timeout. No fields."""

    command_type: ClassVar[CommandType] = CommandType.HEARTBEAT


Command: TypeAlias = ClientHello | ServerHello | Connect | Packet | Dissociate | Heartbeat


def _check_unsigned(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise LocalProtocolError(f"{name} is {value}, expected 0 to {(1 << bits) - 1}")
